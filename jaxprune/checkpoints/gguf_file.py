"""What does a GGUF file hold, and what are rows of one of its tensors?

The header is read here, in order and with every length checked against the
file: `gguf.GGUFReader` keeps two arrays for each of half a million strings,
which takes as much memory as a small model. What the packed weights mean is
left to `gguf.dequantize`.

Reference: the GGUF specification, versions 2 and 3, little-endian.
"""

import dataclasses
import io
import math
import os
import pathlib
import struct
from typing import Any

import numpy as np

from jaxprune import files

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# The kinds of values that are numbers.
_NUMBERS = {
  0: "<u1",
  1: "<i1",
  2: "<u2",
  3: "<i2",
  4: "<u4",
  5: "<i4",
  6: "<f4",
  7: "?",
  10: "<u8",
  11: "<i8",
  12: "<f8",
}
_MOST_AXES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """Where one tensor lies, and how it is packed.

  Attributes:
    path: the GGUF file.
    name: in the file.
    shape: rows first, as in a Hugging Face folder.
    kind: number of the packing, of `gguf.GGMLQuantizationType`.
    begin: offset of the first byte in the file.
    row_bytes: of one row, the last axis.
  """

  path: pathlib.Path
  name: str
  shape: tuple[int, ...]
  kind: int
  begin: int
  row_bytes: int


def is_gguf(path: str | os.PathLike) -> bool:
  """Whether a path is a GGUF file, by its first bytes."""
  path = pathlib.Path(path)
  if not path.is_file():
    return False
  with open(path, "rb") as file:
    return file.read(len(_MAGIC)) == _MAGIC


def read_header(
  path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """Read what a GGUF file holds, without its tensors.

  Args:
    path: the file.

  Returns:
    (metadata, tensors by name).

  Raises:
    ValueError: no GGUF file, a truncated or malformed one, or a packing that
      the package gguf does not know; the package is not installed.
  """
  path = pathlib.Path(path)
  if not is_gguf(path):
    raise ValueError(f"{path}: not a GGUF file; give another one")
  try:
    with open(path, "rb") as file:
      return _read(path, _Reader(file, path.stat().st_size))
  except (struct.error, UnicodeDecodeError, OverflowError, EOFError) as error:
    raise ValueError(
      f"{path}: not a whole GGUF file ({files.reason(error)});"
      " copy or download it again"
    ) from error


def read_rows(
  tensor: Tensor, rows: slice | np.ndarray = slice(None)
) -> np.ndarray:
  """Return rows of a tensor, dequantised to float32.

  Args:
    tensor: of `read_header`.
    rows: of the first axis: a slice, or indices; of a tensor of one axis, which
      is short, its entries.

  Raises:
    ValueError: the package gguf cannot dequantise the tensor.
  """
  gguf = _package(tensor.path)
  count = math.prod(tensor.shape[:-1])
  data = np.memmap(
    tensor.path,
    np.uint8,
    "r",
    offset=tensor.begin,
    shape=(count, tensor.row_bytes),
  )
  kind = gguf.GGMLQuantizationType(tensor.kind)
  try:
    if len(tensor.shape) == 1:
      return gguf.dequantize(data[0], kind)[rows]
    return gguf.dequantize(data[rows], kind).astype(np.float32, copy=False)
  except NotImplementedError as error:
    raise ValueError(
      f"{tensor.path}: tensor {tensor.name!r} is packed as {kind.name}, which"
      " the package gguf cannot dequantise"
    ) from error


class _Reader:
  """Values of a header, one after the other."""

  def __init__(self, file: io.BufferedReader, size: int):
    self._file, self._size = file, size

  def take(self, count: int) -> bytes:
    if count > self._size - self._file.tell():
      raise EOFError(f"{count} bytes are said to follow, and do not")
    return self._file.read(count)

  def number(self, kind: str) -> Any:
    dtype = np.dtype(kind)
    return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

  def text(self) -> str:
    # Some writers cut a character of a token in two.
    return self.take(self.number("<u8")).decode("utf-8", "replace")

  def value(self, kind: int, depth: int = 0) -> Any:
    if kind == _STRING:
      return self.text()
    if kind in _NUMBERS:
      return self.number(_NUMBERS[kind])
    if kind != _ARRAY or depth:
      raise EOFError(f"a value of kind {kind}")
    kind, count = self.number("<u4"), self.number("<u8")
    if kind in _NUMBERS:
      dtype = np.dtype(_NUMBERS[kind])
      raw = self.take(count * dtype.itemsize)
      return np.frombuffer(raw, dtype).tolist()
    if count > self._size:
      raise EOFError(f"{count} values are said to follow, and do not")
    return [self.value(kind, depth + 1) for _ in range(count)]

  def tell(self) -> int:
    return self._file.tell()


def _read(path: pathlib.Path, reader: _Reader):
  """Metadata and tensors, in the order of the file."""
  reader.take(len(_MAGIC))
  version = reader.number("<u4")
  if version not in (2, 3):
    raise ValueError(
      f"{path}: GGUF of version {version}; versions 2 and 3, little-endian,"
      " are read"
    )
  num_tensors, num_values = reader.number("<u8"), reader.number("<u8")
  metadata = {}
  for _ in range(num_values):
    key = reader.text()
    metadata[key] = reader.value(reader.number("<u4"))
  listed = []
  for _ in range(num_tensors):
    name, axes = reader.text(), reader.number("<u4")
    if not 1 <= axes <= _MOST_AXES:
      raise EOFError(f"tensor {name!r} has {axes} axes")
    shape = tuple(reader.number("<u8") for _ in range(axes))[::-1]
    listed.append((name, shape, reader.number("<u4"), reader.number("<u8")))
  alignment = metadata.get("general.alignment", 32)
  start = -(-reader.tell() // alignment) * alignment
  tensors = {}
  for name, shape, kind, offset in listed:
    row_bytes = _row_bytes(path, name, shape, kind)
    tensor = Tensor(
      path=path,
      name=name,
      shape=shape,
      kind=kind,
      begin=start + offset,
      row_bytes=row_bytes,
    )
    end = tensor.begin + row_bytes * math.prod(shape[:-1])
    if end > path.stat().st_size:
      raise EOFError(f"tensor {name!r} ends at byte {end}, behind the file")
    tensors[name] = tensor
  return metadata, tensors


def _row_bytes(path, name, shape, kind) -> int:
  """Bytes of one row of a tensor as it is packed."""
  gguf = _package(path)
  try:
    kind = gguf.GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError) as error:
    raise ValueError(
      f"{path}: tensor {name!r} is packed in a way ({kind}) that the package"
      " gguf does not know; install a newer one"
    ) from error
  if shape[-1] % block:
    raise ValueError(
      f"{path}: tensor {name!r} has rows of {shape[-1]} weights, no multiple of"
      f" {block}; copy or download the file again"
    )
  return shape[-1] // block * size


def _package(path: pathlib.Path):
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      f"{path}: GGUF files are read by the package gguf; install it, for"
      ' example by pip install "jaxprune[gguf]"'
    ) from error
  return gguf
