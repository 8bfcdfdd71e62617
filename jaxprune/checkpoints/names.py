"""Which Hugging Face tensor is which leaf of the parameter tree?

Reads the tables of `tables`, one per architecture, for a model at hand.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.checkpoints import shards
from jaxprune.checkpoints.rows import SIZES, Row, Table
from jaxprune.checkpoints.tables import TABLES
from jaxprune.models import KERNEL_INPUTS
from jaxprune.models.config import ModelConfig
from jaxprune.models.encoder_config import EncoderConfig

Path = tuple[str, ...]
Config = ModelConfig | EncoderConfig


def table(config: Config) -> Table:
  """Return the table of a model's family, with the names of its file."""
  if config.family not in TABLES:
    raise ValueError(
      f"family {config.family!r} has no table of tensor names; use a model"
      f" of one of {', '.join(TABLES)}"
    )
  return _named(config.family, getattr(config, "bare_names", False))


@functools.cache
def _named(family: str, bare: bool) -> Table:
  """The table of a family; `bare` takes the prefix off its names."""
  found = TABLES[family]
  if not bare:
    return found

  def renamed(rows):
    return tuple(
      dataclasses.replace(row, name=row.name.removeprefix(found.prefix))
      for row in rows
    )

  return dataclasses.replace(
    found,
    outer=renamed(found.outer),
    layer=renamed(found.layer),
    tied=found.tied
    and tuple(name.removeprefix(found.prefix) for name in found.tied),
  )


def outer_rows(config: Config) -> tuple[Row, ...]:
  """Return the rows outside the layers that this model has."""
  return tuple(row for row in table(config).outer if _has(config, row))


def layer_rows(config: Config) -> tuple[Row, ...]:
  """Return the rows of one layer that this model has, one per tensor."""
  return tuple(
    one
    for row in table(config).layer
    if _has(config, row)
    for one in (
      map(row.of_expert, range(config.num_experts)) if row.experts else (row,)
    )
  )


def leaf_shape(config: Config, row: Row) -> tuple[int, ...]:
  """Return the shape of a row's leaf, without a leading `L`.

  Args:
    config: the model.
    row: of one of its tensors.
  """
  return tuple(_size(config, axis) for axis in row.shape)


def tensor_shape(config: Config, row: Row) -> tuple[int, ...]:
  """Return the shape in the file of the tensor of a row.

  Args:
    config: the model.
    row: of one of its tensors; where leaves share one, of any of them.
  """
  shape = leaf_shape(config, row)
  if row.part:
    sizes = sum(_size(config, size) for size in row.part.sizes)
    shape = (*shape[:-1], _size(config, row.part.groups) * sizes)
  return shape[::-1] if row.transpose else shape


def leaf_of(config: Config, row: Row, tensor: np.ndarray) -> np.ndarray:
  """Return the leaf that a tensor of the file holds, in the leaf's axes.

  Args:
    config: the model.
    row: of the leaf.
    tensor: as in the file, of the shape `tensor_shape`.

  Returns:
    A view of the tensor, of the shape `leaf_shape`; a copy where the leaf is
    scattered over several groups.
  """
  if row.part is not None:
    shape = leaf_shape(config, row)
    tensor = _place(config, row, tensor).reshape(
      shape[::-1] if row.transpose else shape
    )
  return tensor.T if row.transpose else tensor


def put_leaf(
  config: Config, row: Row, tensor: np.ndarray, leaf: np.ndarray | float
) -> None:
  """Write a leaf to its place in a tensor of the file.

  Args:
    config: the model.
    row: of the leaf.
    tensor: C-contiguous, of the shape `tensor_shape`, changed in place.
    leaf: of the shape `leaf_shape`; cast to the dtype of the tensor, where what
      does not fit becomes infinite.
  """
  place = _place(config, row, tensor)
  leaf = leaf.T if row.transpose else leaf
  shards.copy_into(place, leaf.reshape(place.shape))


def join_leaves(
  config: Config,
  rows: Sequence[Row],
  leaves: Mapping[str, np.ndarray],
  dtype: np.dtype | None = None,
) -> np.ndarray:
  """Return the tensor of the file that leaves make up.

  Args:
    config: the model.
    rows: all that share the tensor.
    leaves: by the keys of the rows.
    dtype: of the tensor where it is put together; None is that of the first
      leaf.

  Returns:
    A view of the leaf where it is the whole tensor, else a new array.
  """
  first = rows[0]
  leaf = leaves[first.key]
  if len(rows) == 1 and first.part is None:
    return leaf.T if first.transpose else leaf
  tensor = np.zeros(tensor_shape(config, first), dtype or leaf.dtype)
  for row in rows:
    put_leaf(config, row, tensor, leaves[row.key])
  return tensor


def file_shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Return the name and shape in the file of every tensor of a model.

  What lies outside the layers comes first, then layer after layer.
  """
  rows = [(row, 0) for row in outer_rows(config)]
  rows += [
    (row, index)
    for index in range(config.num_layers)
    for row in layer_rows(config)
  ]
  return {
    row.name.format(index): tensor_shape(config, row) for row, index in rows
  }


def kernel_shapes(config: Config) -> dict[Path, tuple[int, ...]]:
  """Return the shape of every prunable kernel, keyed as (group, name).

  Args:
    config: the model.

  Returns:
    `[L, I, O]`, or `[L, E, I, O]` of kernels of experts.
  """
  return {
    tuple(row.path.split("/")[:-1]): (
      config.num_layers,
      *((config.num_experts,) if row.experts else ()),
      *leaf_shape(config, row),
    )
    for row in table(config).layer
    if _has(config, row)
    and row.path.endswith("/kernel")
    and tuple(row.path.split("/")[:-1]) in KERNEL_INPUTS
  }


def leaves_of(config: Config, layer: Mapping[str, Any]) -> dict[str, Any]:
  """Return the leaves of one layer by the keys of their rows.

  Args:
    config: the model.
    layer: its tree, whose leaves of experts are stacked on E.
  """
  leaves = flatten(layer)
  for row in table(config).layer:
    if row.experts and row.path in leaves:
      stack = leaves.pop(row.path)
      leaves |= {f"{row.path}/{i}": one for i, one in enumerate(stack)}
  return leaves


def tree_of(
  config: Config,
  leaves: Mapping[str, Any],
  stack: Callable[[list[Any]], Any] = np.stack,
) -> dict[str, Any]:
  """Return the tree whose leaves have the keys of rows.

  Args:
    config: the model.
    leaves: by keys; consumed where they are dicts.
    stack: joins the leaves of a stack of experts, first expert first.
  """
  leaves = dict(leaves)
  for prefix in ("", "layers/"):
    for row in table(config).layer:
      path = prefix + row.path
      if row.experts and f"{path}/0" in leaves:
        several = range(config.num_experts)
        leaves[path] = stack([leaves.pop(f"{path}/{i}") for i in several])
  return nest(leaves)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Turn leaves keyed by joined paths into a tree of dicts."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Turn a tree of dicts into leaves keyed by joined paths.

  Args:
    tree: of mappings; everything else is a leaf.
    prefix: what all keys begin with.
  """
  leaves = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      leaves |= flatten(value, f"{prefix}{key}/")
    else:
      leaves[f"{prefix}{key}"] = value
  return leaves


def _has(config: Config, row: Row) -> bool:
  return row.when is None or getattr(config, row.when[0]) == row.when[1]


def _size(config: Config, letters: str) -> int:
  """The product of the sizes of some letters."""
  return math.prod(getattr(config, SIZES[letter]) for letter in letters)


def _place(config: Config, row: Row, tensor: np.ndarray) -> np.ndarray:
  """A view of the part of a tensor that a leaf is, in the axes of the file.

  Where leaves share the tensor, its output axis is cut into groups and what is
  in a group: [groups, size, I], or [..., groups, size] if not transposed.
  """
  if row.part is None:
    return tensor
  sizes = [_size(config, size) for size in row.part.sizes]
  begin = sum(sizes[: row.part.index])
  mine = slice(begin, begin + sizes[row.part.index])
  if row.transpose:
    return tensor.reshape(-1, sum(sizes), *tensor.shape[1:])[:, mine]
  return tensor.reshape(*tensor.shape[:-1], -1, sum(sizes))[..., mine]
