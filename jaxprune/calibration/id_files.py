"""Which token ids does an .npz hold, and may they be read?

The header of the array is read first: a file that says more than it holds, or
holds more than the memory, is refused before anything is unpacked.
"""

import contextlib
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from jaxprune import devices


def ids_shape(path: str | os.PathLike, key: str) -> tuple[int, ...]:
  """Read the shape of an array in an .npz, and not the array.

  Args:
    path: of the file.
    key: of the array in it.

  Raises:
    ValueError: naming file, field and fix.
  """
  return _read_array_header(path, key)[0]


def read_ids(
  path: str | os.PathLike, key: str, vocab_size: int | None = None
) -> np.ndarray:
  """Read token ids [rows, length] from an .npz, exactly as they are.

  Args:
    path: of the file.
    key: of the array in it.
    vocab_size: ids must be below it; None does not check.

  Raises:
    ValueError: naming file, field and fix.
  """
  shape, dtype = _read_array_header(path, key)
  if len(shape) != 2 or not all(shape):
    raise ValueError(
      f"{path}: {key} has shape {list(shape)}; token ids must be"
      " [rows, length], neither zero"
    )
  if not np.issubdtype(dtype, np.integer):
    raise ValueError(
      f"{path}: {key} holds {dtype}; token ids must be integers, save"
      " them as int32"
    )
  with _reading_npz(path), np.load(path, allow_pickle=False) as content:
    ids = content[key]
  check_vocabulary(ids, path, key, vocab_size)
  return np.ascontiguousarray(ids, np.int32)


@contextlib.contextmanager
def _reading_npz(path) -> Iterator[None]:
  """What a damaged or hostile file raises becomes a ValueError."""
  try:
    yield
  except Exception as error:  # zipfile and numpy raise a dozen types
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
      f"{path}: not readable as .npz ({reason:.200}); write it with numpy.savez"
    ) from error


def _read_array_header(path, key) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array in an .npz that holds it whole."""
  if not pathlib.Path(path).is_file():
    raise ValueError(f"{path}: no such file; give an existing one")
  with _reading_npz(path), zipfile.ZipFile(path) as archive:
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    entry = None
    if key in keys:
      entry = archive.getinfo(archive.namelist()[keys.index(key)])
      with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = (
          np.lib.format.read_array_header_1_0
          if version == (1, 0)
          else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        held = entry.file_size - file.tell()
  if entry is None:
    raise ValueError(
      f"{path}: no array {key} (it has {', '.join(keys)[:200] or 'none'}); save"
      f" the token ids under {key}"
    )
  size = math.prod(shape) * dtype.itemsize
  if min(shape, default=0) < 0 or not dtype.hasobject and size != held:
    raise ValueError(
      f"{path}: not readable as .npz ({key} has {held} bytes for the shape"
      f" {list(shape)}); write it with numpy.savez"
    )
  memory = devices.host_bytes()
  if memory is not None and 4 * size > memory:
    raise ValueError(
      f"{path}: {key} has {devices.gib(size)} of token ids, which this machine"
      f" of {devices.gib(memory)} cannot work on; save fewer rows"
    )
  return shape, dtype


def check_vocabulary(
  ids: np.ndarray, name: str, key: str, vocab_size: int | None
) -> None:
  """Refuse ids that the embedding table does not have.

  Args:
    ids: int [rows, length].
    name: of the file, for the error.
    key: what holds the ids, for the error.
    vocab_size: ids must be below it; None is 2**31.

  Raises:
    ValueError: names the first id that is outside.
  """
  limit = 2**31 if vocab_size is None else vocab_size
  bad = (ids < 0) | (ids >= limit)
  if bad.any():
    row, column = np.argwhere(bad)[0]
    raise ValueError(
      f"{name}: {key} has id {ids[row, column]} at [{row}, {column}], outside"
      f" the vocabulary of {limit}; use this model's own tokenizer"
    )
