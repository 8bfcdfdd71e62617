"""How is a tree of arrays kept between runs of our own?

The two functions hide orbax v1 (`orbax.checkpoint.v1`), whose module will be
renamed: gradients, statistics, activations and sharded parameters go here;
models for other programs go to `export`. Orbax writes to a temporary folder
and renames it; every process must call both functions.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp


def save_tree(
  folder: str | os.PathLike, tree: Any, metadata: Mapping[str, Any]
) -> None:
  """Write a tree, whole or not at all.

  Args:
    folder: must not exist.
    tree: leaves jax or numpy arrays, numbers, strings or None.
    metadata: JSON values.

  Raises:
    ValueError: the folder exists.
  """
  folder = os.path.abspath(folder)
  if os.path.lexists(folder):
    raise ValueError(f"{folder}: exists; choose another folder or remove it")
  ocp.save(folder, tree, custom_metadata=dict(metadata))


def load_tree(
  folder: str | os.PathLike, like: Any = None
) -> tuple[Any, dict[str, Any]]:
  """Read a tree.

  Args:
    folder: written by `save_tree`.
    like: a tree of arrays or `jax.ShapeDtypeStruct` whose structure, shapes,
      dtypes and shardings the result takes; leaves without a sharding go to
      the first device. None gives dicts and lists as they were saved.

  Returns:
    (tree, metadata).

  Raises:
    ValueError: no such folder, not a tree of `save_tree`, or `like` has other
      leaves or shapes.
  """
  folder = os.path.abspath(folder)
  if not os.path.isdir(folder):
    raise ValueError(f"{folder}: no such folder; save a tree there first")
  try:
    saved = ocp.metadata(folder)
  except ValueError as error:
    raise ValueError(
      f"{folder}: not a saved tree, or one that was cut off; save it again"
    ) from error
  if like is not None:
    _check(folder, saved.metadata, like)
  target = jax.tree.map(_target, saved.metadata if like is None else like)
  return ocp.load(folder, target), dict(saved.custom_metadata or {})


def _target(leaf: Any) -> Any:
  """Say how a leaf is to be restored; without a sharding orbax warns."""
  if isinstance(leaf, np.ndarray) or not hasattr(leaf, "shape"):
    return leaf
  if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    sharding = leaf.sharding
  elif hasattr(leaf, "sharding_metadata"):
    sharding = None
  else:  # saved from numpy
    return np.empty(leaf.shape, leaf.dtype)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check(folder: str, saved: Any, like: Any) -> None:
  """Refuse a target of other leaves; orbax would pad or cut shapes."""
  saved, like = (
    {
      jax.tree_util.keystr(path, simple=True, separator="/"): getattr(
        leaf, "shape", None
      )
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (saved, like)
  )
  if saved.keys() != like.keys():
    raise ValueError(
      f"{folder}: leaves {sorted(saved.keys() ^ like.keys())} are not both"
      " saved and asked for; pass a tree of the saved structure"
    )
  for name, shape in like.items():
    if shape != saved[name]:
      raise ValueError(
        f"{folder}: leaf {name!r} was saved with shape {saved[name]}, asked"
        f" for with {shape}; pass the saved shapes"
      )
