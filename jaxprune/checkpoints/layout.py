"""Where in which file does each tensor of a model go, and is it there?

The names, shapes and dtypes of a model are known before its values, so the
shards are planned and made at full size first, and every tensor is then written
at its place, in any order and in pieces: nothing is gathered in memory, and
nothing is copied from one file into another. A shard that is not finished has a
name that no reader of models knows.

Reference: the greedy filling of shards by `save_pretrained` of transformers 5.
Differs from the reference in: within a shard the widest items come first, which
keeps every tensor aligned to its item size.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxprune import files
from jaxprune.checkpoints import folders, shards

SHARD_SIZE = 5 * 10**9
UNFINISHED = ".unfinished"  # behind the name of a shard that is being written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One file of a model, before it has values.

  Attributes:
    name: of the file in the finished folder.
    header: all that lies before the first tensor.
    tensors: by name, in the order of the file: (offset of the first byte in
      the file, dtype, shape).
    size: of the file, bytes.
  """

  name: str
  header: bytes
  tensors: dict[str, tuple[int, np.dtype, tuple[int, ...]]]
  size: int


def plan_shards(
  tensors: Mapping[str, tuple[str, tuple[int, ...]]], shard_size: int
) -> list[Shard]:
  """Spread tensors over files.

  Args:
    tensors: by name, in the order of the model: name of the dtype, such as
      "BF16", and shape.
    shard_size: bytes of tensors in a file; a single tensor may be larger.

  Returns:
    The files: `model.safetensors` where one is enough.

  Raises:
    ValueError: a size below 1, or a dtype that is not written.
  """
  if shard_size < 1:
    raise ValueError(f"shard size is {shard_size} bytes: use 1 or more")
  groups, filled = [[]], 0
  for name, (dtype, shape) in tensors.items():
    if dtype not in shards.DTYPES:
      raise ValueError(
        f"tensor {name!r} has dtype {dtype}; only {', '.join(shards.DTYPES)}"
        " are written"
      )
    size = shards.DTYPES[dtype].itemsize * math.prod(shape)
    if groups[-1] and filled + size > shard_size:
      groups.append([])
      filled = 0
    groups[-1].append(name)
    filled += size
  names = [folders.SINGLE]
  if len(groups) > 1:
    names = [
      f"model-{index:05d}-of-{len(groups):05d}.safetensors"
      for index in range(1, len(groups) + 1)
    ]
  return [
    _plan(file, {name: tensors[name] for name in group})
    for file, group in zip(names, groups)
  ]


def make_file(folder: pathlib.Path, shard: Shard) -> None:
  """Make the unfinished file of a shard at its full size.

  Args:
    folder: where to.
    shard: what it will hold.

  Raises:
    OSError: there is no room for it.
  """
  path = folder / (shard.name + UNFINISHED)
  with open(path, "wb") as file:
    try:
      # Asks for the room now, where the system can; else the file has a hole.
      if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, shard.size)
      file.truncate(shard.size)
    except OSError as error:
      path.unlink()
      raise OSError(
        error.errno, f"no room for {shard.size} bytes: {error.strerror}", path
      ) from error
    file.write(shard.header)
    file.flush()
    os.fsync(file.fileno())


def is_made(folder: pathlib.Path, shard: Shard) -> bool:
  """Whether the unfinished file of a shard is there with its size and header.

  Args:
    folder: of `make_file`.
    shard: what it is to hold.
  """
  path = folder / (shard.name + UNFINISHED)
  if not path.is_file() or path.stat().st_size != shard.size:
    return False
  with open(path, "rb") as file:
    return file.read(len(shard.header)) == shard.header


def write_tensor(
  folder: pathlib.Path,
  shard: Shard,
  name: str,
  read: Callable[[slice], np.ndarray],
) -> str:
  """Write one tensor at its place in the unfinished file, and flush it.

  Args:
    folder: of `make_file`.
    shard: that holds the tensor.
    name: of the tensor.
    read: gives a part of its first axis, of any layout and float dtype.

  Returns:
    The sha256 of its bytes.

  Raises:
    ValueError: a value that is NaN or infinite in the dtype of the file.
  """
  begin, dtype, shape = shard.tensors[name]
  digest = hashlib.sha256()
  with open(folder / (shard.name + UNFINISHED), "r+b") as file:
    file.seek(begin)
    for rows in shards.row_slices(shape, dtype, shards.PIECE):
      piece = read(rows)
      if piece.dtype != dtype or not piece.flags.c_contiguous:
        copy = np.empty(piece.shape, dtype)
        shards.copy_into(copy, piece)
        piece = copy
      if not shards.all_finite(piece):
        raise ValueError(f"{name!r}: NaN or infinite as {dtype}")
      raw = piece.reshape(-1).view(np.uint8).data
      file.write(raw)
      digest.update(raw)
    file.flush()
    os.fsync(file.fileno())
  return digest.hexdigest()


def hash_tensor(folder: pathlib.Path, shard: Shard, name: str) -> str:
  """The sha256 of what an unfinished file holds at the place of a tensor.

  Args:
    folder: of `make_file`.
    shard: that holds the tensor.
    name: of the tensor.
  """
  begin, dtype, shape = shard.tensors[name]
  digest = hashlib.sha256()
  with open(folder / (shard.name + UNFINISHED), "rb") as file:
    file.seek(begin)
    for piece in _pieces(file, dtype.itemsize * math.prod(shape)):
      digest.update(piece)
  return digest.hexdigest()


def read_back(
  folder: pathlib.Path, shard: Shard, expected: Callable[[str], str]
) -> str:
  """Read an unfinished file through and compare it with what was written.

  Args:
    folder: of `make_file`.
    shard: whose file is read.
    expected: gives the sha256 that `write_tensor` returned for a name.

  Returns:
    The sha256 of the file.

  Raises:
    ValueError: the header or a tensor is not what was written; a `DamagedError`
      where it is a tensor.
  """
  path = folder / (shard.name + UNFINISHED)
  whole = hashlib.sha256()
  with open(path, "rb") as file:
    header = file.read(len(shard.header))
    if header != shard.header:
      raise ValueError(f"{path}: its header is not the one that was written")
    whole.update(header)
    for name, (_, dtype, shape) in shard.tensors.items():
      digest = hashlib.sha256()
      for piece in _pieces(file, dtype.itemsize * math.prod(shape)):
        digest.update(piece)
        whole.update(piece)
      if digest.hexdigest() != expected(name):
        raise DamagedError(path, name)
    if file.read(1):
      raise ValueError(f"{path}: is longer than it was written")
  return whole.hexdigest()


class DamagedError(ValueError):
  """A tensor on the disk is not what was written.

  Attributes:
    tensor: its name.
  """

  def __init__(self, path: pathlib.Path, tensor: str):
    super().__init__(
      f"{path}: tensor {tensor!r} read back is not what was written; check the"
      " disk and start the same command again, which writes it anew"
    )
    self.tensor = tensor


def name_files(folder: pathlib.Path, planned: Sequence[Shard]) -> None:
  """Give finished files their names, and write the index if they are several.

  Args:
    folder: of `make_file`.
    planned: all files of the model, with all their tensors.
  """
  for shard in planned:
    os.replace(folder / (shard.name + UNFINISHED), folder / shard.name)
  if len(planned) == 1:
    return
  weight_map = {name: shard.name for shard in planned for name in shard.tensors}
  total = sum(shard.size - len(shard.header) for shard in planned)
  files.atomic_write_json(
    folder / folders.INDEX,
    {
      "metadata": {"total_size": total},
      "weight_map": dict(sorted(weight_map.items())),
    },
  )


def _plan(file: str, tensors) -> Shard:
  """One file: widest items first, else in the order of the model."""
  names = sorted(tensors, key=lambda n: -shards.DTYPES[tensors[n][0]].itemsize)
  header, offset = {}, 0
  for name in names:
    dtype, shape = tensors[name]
    size = shards.DTYPES[dtype].itemsize * math.prod(shape)
    header[name] = (dtype, shape, offset, offset + size)
    offset += size
  text = shards.encode_header(header, {"format": "pt"})
  return Shard(
    name=file,
    header=text,
    tensors={
      name: (len(text) + begin, shards.DTYPES[dtype], tuple(shape))
      for name, (dtype, shape, begin, _) in header.items()
    },
    size=len(text) + offset,
  )


def _pieces(file, size: int) -> Iterator[bytes]:
  """The next `size` bytes of a file; fewer where it ends before."""
  while size > 0 and (piece := file.read(min(size, shards.PIECE))):
    size -= len(piece)
    yield piece
