"""Which weights were kept, in a file small enough to share?

A mask is bool, True = keep, shaped `[L, I, O]` like its stacked kernel, or
`[L, E, I, O]` like one of experts. In the file each layer's mask is packed
eight to a byte (`numpy.packbits`, row-major over `[I, O]`, last byte padded
with zero bits): a uint8 tensor `[L, ceil(I * O / 8)]` named "GROUP.KERNEL".
Shapes and the caller's metadata are JSON strings in the header, and so is the
sha256 of the masks: over the names in their order, a JSON line of name and
shape and then the packed bytes.
A file with a flipped bit or an exchanged name is refused.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import files
from jaxprune.checkpoints import names, shards
from jaxprune.models.config import ModelConfig

Masks = dict[str, dict[str, np.ndarray]]
FILE = "masks.safetensors"  # beside the weights of a pruned model
_FORMAT = "jaxprune masks 2"


def write_masks(
  path: str | os.PathLike,
  masks: Mapping[str, Mapping[str, Any]],
  metadata: Mapping[str, Any],
) -> None:
  """Write masks, whole or not at all.

  Args:
    path: the file, by convention `FILE` in the folder of the model.
    masks: {'attention': {'query': bool [L, I, O], ...}, 'mlp': {...}}; kernels
      that were not pruned may be left out.
    metadata: JSON values.

  Raises:
    ValueError: a mask is not bool or not of rank 3 or 4, or metadata is no
      JSON.
  """
  packed, shapes = {}, {}
  for name, mask in names.flatten(masks).items():
    mask = np.asarray(mask)
    plain = name.count("/") == 1 and "." not in name
    fits = mask.dtype == bool and mask.ndim in (3, 4) and mask.size
    if not plain or not fits:
      raise ValueError(
        f"mask {name!r}: expected GROUP/KERNEL and bool [L, I, O], found"
        f" {mask.dtype} {list(mask.shape)}; pass True = keep per kernel"
      )
    name = name.replace("/", ".")
    shapes[name] = list(mask.shape)
    packed[name] = np.packbits(mask.reshape(mask.shape[0], -1), axis=1)
  _write(path, packed, shapes, metadata)


def read_masks(
  path: str | os.PathLike, config: ModelConfig | None = None
) -> tuple[Masks, dict[str, Any]]:
  """Read masks.

  Args:
    path: a file of `write_masks`.
    config: the model that the masks are for; None takes any shapes.

  Returns:
    (masks, metadata), masks as given to `write_masks`, numpy bool.

  Raises:
    ValueError: not a mask file, a damaged one, or one of another model.
  """
  tensors, shapes, metadata = _read(path)
  known = None if config is None else names.kernel_shapes(config)
  leaves = {}
  for name, shape in shapes.items():
    group, kernel = name.split(".")
    if known is not None and known.get((group, kernel)) != shape:
      raise ValueError(
        f"{path}: mask {name!r} expected shape"
        f" {known.get((group, kernel), 'none (no such kernel)')}, found"
        f" {shape}; the masks are of another model"
      )
    leaves[f"{group}/{kernel}"] = _unpack(tensors[name], shape)
  return names.nest(leaves), metadata


def merge_masks(
  path: str | os.PathLike,
  parts: Sequence[str | os.PathLike],
  metadata: Mapping[str, Any],
) -> None:
  """Join mask files of consecutive layers into one, without unpacking.

  Args:
    path: the file to write, whole or not at all.
    parts: files of `write_masks` with the same kernels, first layers first.
    metadata: JSON values of the joined file.

  Raises:
    ValueError: a part is damaged or has other kernels than the first.
  """
  read = [_read(part) for part in parts]
  kernels = {name: shape[1:] for name, shape in read[0][1].items()}
  for part, (_, shapes, _) in zip(parts, read):
    if {name: shape[1:] for name, shape in shapes.items()} != kernels:
      raise ValueError(
        f"{part}: its kernels are not those of {parts[0]}; prune again"
      )
  packed = {
    name: np.concatenate([shards.view(t[name]) for t, _, _ in read])
    for name in kernels
  }
  joined = {
    name: [sum(shapes[name][0] for _, shapes, _ in read), *kernels[name]]
    for name in kernels
  }
  _write(path, packed, joined, metadata)


def _write(path, packed, shapes, metadata) -> None:
  try:
    text = json.dumps(dict(metadata), allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: metadata cannot be written as JSON ({error}); use strings,"
      " finite numbers, lists and dicts"
    ) from error
  header = {
    "format": _FORMAT,
    "shapes": json.dumps(shapes),
    "metadata": text,
    "sha256": _hash(packed, shapes),
  }
  shards.write_shard(path, packed, header)


def _read(path):
  """Check a mask file; return its tensors, mask shapes and metadata."""
  path = pathlib.Path(path)
  tensors, header = shards.read_header(path)
  if header.get("format") != _FORMAT:
    raise ValueError(
      f"{path}: expected a file of format {_FORMAT!r}, found"
      f" {header.get('format')!r}; point to the masks of a pruned model"
    )
  try:
    shapes = files.parse_json(header["shapes"])
    metadata = files.parse_json(header["metadata"])
    shapes = {name: _sizes(shape) for name, shape in shapes.items()}
  except (KeyError, ValueError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path}: header of a mask file is damaged ({error!r:.200}); write the"
      " masks again"
    ) from error
  if shapes.keys() != tensors.keys():
    raise ValueError(
      f"{path}: masks {sorted(shapes.keys() ^ tensors.keys())} are in the"
      " header or in the file but not in both; write the masks again"
    )
  for name, shape in shapes.items():
    if name.count(".") != 1 or len(shape) not in (3, 4) or min(shape) < 1:
      raise ValueError(
        f"{path}: mask {name!r} {list(shape)} is not GROUP.KERNEL [L, I, O];"
        " write the masks again"
      )
    packed = (shape[0], -(-math.prod(shape[1:]) // 8))
    tensor = tensors[name]
    if tensor.dtype != "U8" or tensor.shape != packed:
      raise ValueError(
        f"{path}: mask {name!r} expected U8 {list(packed)} for shape"
        f" {list(shape)}, found {tensor.dtype} {list(tensor.shape)}; write the"
        " masks again"
      )
  packed = {name: shards.view(tensor) for name, tensor in tensors.items()}
  if header.get("sha256") != _hash(packed, shapes):
    raise ValueError(
      f"{path}: the masks are not those that were written (their sha256 is not"
      " the one in the header); copy the file again, or prune again"
    )
  return tensors, shapes, metadata


def _sizes(shape: list[Any]) -> tuple[int, ...]:
  if not all(type(size) is int for size in shape):
    raise ValueError(f"{shape!r:.80} is no shape")
  return tuple(shape)


def _hash(packed, shapes) -> str:
  """The sha256 over names, shapes and bits."""
  digest = hashlib.sha256()
  for name in sorted(packed):
    line = json.dumps([name, list(shapes[name])])
    digest.update(line.encode("utf-8") + b"\n")
    digest.update(np.ascontiguousarray(packed[name]).data)
  return digest.hexdigest()


def _unpack(tensor, shape) -> np.ndarray:
  size = math.prod(shape[1:])
  bits = np.unpackbits(shards.view(tensor), axis=1, count=size)
  return bits.view(bool).reshape(shape)
