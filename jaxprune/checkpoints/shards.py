"""What does one safetensors file hold, and how is one written?

A file is eight bytes of header length, a JSON header, and the raw
little-endian tensors. Reading maps the file and copies nothing. Writing puts
one tensor after the other into the file, so that a shard never exists a second
time in memory, and always in C order: `safetensors.numpy.save_file` 0.8.0
writes the memory of a transposed view as it lies, under the transposed shape,
without a word (huggingface/safetensors issue 825).

Reference: the format page of huggingface/safetensors.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors

from jaxprune import files

# What is read and written; a header may name others, which are refused by name
# where a tensor is needed.
DTYPES = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE = 1 << 24  # bytes of a large tensor that are handled together
_ALIGNMENT = 64  # bytes, of the buffers of XLA on a CPU
_TILE = 256  # columns copied together
_SCAN = 1 << 16  # entries looked at together; keeps the scratch in cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """Where one tensor lies.

  Attributes:
    path: the safetensors file.
    dtype: its name in the header, such as "BF16".
    shape: as in the header.
    begin: offset of the first byte in the file.
    end: offset behind the last byte.
    stamp: size and time of change of the file when its header was read.
  """

  path: pathlib.Path
  dtype: str
  shape: tuple[int, ...]
  begin: int
  end: int
  stamp: tuple[int, int]


def read_header(
  path: str | os.PathLike,
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Read what a safetensors file holds, without its tensors.

  Args:
    path: the file.

  Returns:
    (tensors by name, the `__metadata__` strings).

  Raises:
    ValueError: the file is truncated, malformed or names a tensor twice.
  """
  path = pathlib.Path(path)
  try:
    # Checks sizes, offsets, overlaps and holes against the length of the file.
    with safetensors.safe_open(path, framework="numpy"):
      pass
    with open(path, "rb") as file:
      stamp = _stamp(os.fstat(file.fileno()))
      length = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(length), object_pairs_hook=_once)
  except (
    OSError,
    RecursionError,
    ValueError,
    safetensors.SafetensorError,
  ) as error:
    reason = files.reason(error)
    raise ValueError(
      f"{path}: not a whole safetensors file ({reason}); copy, download or"
      " export it again"
    ) from error
  metadata = header.pop("__metadata__", None) or {}
  start = 8 + length
  tensors = {}
  for name, entry in header.items():
    begin, end = entry["data_offsets"]
    tensors[name] = Tensor(
      path=path,
      dtype=entry["dtype"],
      shape=tuple(entry["shape"]),
      begin=start + begin,
      end=start + end,
      stamp=stamp,
    )
  return tensors, metadata


def view(tensor: Tensor, rows: slice = slice(None)) -> np.ndarray:
  """Map a tensor of a known dtype, read-only, as it lies in the file.

  Args:
    tensor: where it lies.
    rows: the part of its first axis that is mapped, of step 1.

  Raises:
    ValueError: the file was changed since its header was read.
  """
  if _stamp(os.stat(tensor.path)) != tensor.stamp:
    raise ValueError(
      f"{tensor.path}: was changed while in use; open the checkpoint again"
    )
  begin, end, shape = tensor.begin, tensor.end, tensor.shape
  if shape and rows != slice(None):
    first, last, _ = rows.indices(shape[0])
    stride = (end - begin) // shape[0]
    begin, end = begin + first * stride, begin + last * stride
    shape = (last - first, *shape[1:])
  raw = np.memmap(
    tensor.path, np.uint8, "r", offset=begin, shape=(end - begin,)
  )
  return raw.view(DTYPES[tensor.dtype]).reshape(shape)


def row_slices(
  shape: tuple[int, ...], dtype: np.dtype, size: int
) -> Iterator[slice]:
  """Cut the first axis of an array into parts of so many bytes.

  Args:
    shape: of the array; without axes it is one part.
    dtype: of the array.
    size: bytes of a part; one row may have more.
  """
  if not shape:
    yield slice(None)
    return
  stride = math.prod(shape[1:]) * np.dtype(dtype).itemsize
  step = max(1, size // max(1, stride))
  for first in range(0, shape[0], step):
    yield slice(first, min(first + step, shape[0]))


def pieces(tensor: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
  """Map a tensor part by part, so that few of its pages are in memory.

  Args:
    tensor: of a known dtype.

  Yields:
    (rows of the first axis, what `view` gives of them), 16 MiB each.
  """
  for rows in row_slices(tensor.shape, DTYPES[tensor.dtype], PIECE):
    yield rows, view(tensor, rows)


def encode_header(
  tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]],
  metadata: Mapping[str, str],
) -> bytes:
  """Write what lies before the tensors of a file.

  Args:
    tensors: by name: name of the dtype, shape, and the offsets behind the
      header where the tensor begins and ends.
    metadata: the `__metadata__` strings.

  Returns:
    The length of the header and the header, a multiple of 8 bytes.
  """
  header = {"__metadata__": dict(metadata)} | {
    name: {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    for name, (dtype, shape, begin, end) in tensors.items()
  }
  text = json.dumps(header, separators=(",", ":")).encode("utf-8")
  text += b" " * (-len(text) % 8)
  return len(text).to_bytes(8, "little") + text


def write_shard(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> str:
  """Write a safetensors file, whole or not at all.

  Args:
    path: the file.
    tensors: arrays of any memory layout, of a dtype in `DTYPES`.
    metadata: the `__metadata__` strings.

  Returns:
    The sha256 of the file.

  Raises:
    ValueError: a dtype that this module does not write.
  """
  for name, array in tensors.items():
    if array.dtype not in _NAMES:
      raise ValueError(
        f"{path}: tensor {name!r} has dtype {array.dtype}; cast it to one of"
        f" {', '.join(DTYPES)}"
      )
  # The widest items come first, which keeps every tensor aligned to its item
  # size.
  names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
  header, offset = {}, 0
  for name in names:
    array = tensors[name]
    end = offset + array.nbytes
    header[name] = (_NAMES[array.dtype], array.shape, offset, end)
    offset = end
  text = encode_header(header, metadata)
  digest = hashlib.sha256(text)
  with files.atomic_file(path) as file:
    file.write(text)
    for name in names:
      raw = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
      file.write(raw.data)
      digest.update(raw.data)
  return digest.hexdigest()


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Return memory that JAX can use on a CPU as it lies, without a copy.

  Args:
    shape: of the array.
    dtype: of the array.
  """
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  begin = -raw.ctypes.data % _ALIGNMENT
  return raw[begin : begin + size].view(dtype).reshape(shape)


def copy_into(out: np.ndarray, array: np.ndarray) -> None:
  """Copy an array of any layout into a C-contiguous one, casting if need be.

  Args:
    out: any shape.
    array: same shape; what does not fit the dtype of `out` becomes infinite.
  """
  with np.errstate(over="ignore", invalid="ignore"):
    if array.flags.c_contiguous:
      out[...] = array
      return
    # Tiles of columns keep the strided side in the cache, which halves the
    # time.
    for i in range(0, out.shape[-1], _TILE):
      out[..., i : i + _TILE] = array[..., i : i + _TILE]


def all_finite(array: np.ndarray) -> bool:
  """Tell whether a C-contiguous F32, F16 or BF16 array has no NaN or Inf.

  Compares bit patterns: with the sign cleared, every finite value lies below
  infinity. Several times faster than `isfinite` for the half types.
  """
  bits = array.reshape(-1).view(f"u{array.itemsize}")
  infinity = np.array(np.inf, array.dtype).view(bits.dtype)
  magnitude = np.array(np.iinfo(bits.dtype).max >> 1, bits.dtype)
  return all(
    ((bits[i : i + _SCAN] & magnitude) < infinity).all()
    for i in range(0, bits.size, _SCAN)
  )


def _stamp(status: os.stat_result) -> tuple[int, int]:
  return status.st_size, status.st_mtime_ns


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
  """Build a dict, refusing a key that comes twice."""
  result = dict(pairs)
  if len(result) != len(pairs):
    raise ValueError("a name comes twice in the header")
  return result
