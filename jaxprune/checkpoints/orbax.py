"""How is a tree of arrays kept between runs of our own?

The two functions hide orbax v1 (`orbax.checkpoint.v1`), whose module will be
renamed: gradients, statistics, activations and sharded parameters go here;
models for other programs go to `export`. Orbax writes to a temporary folder
and renames it; every process must call both functions.
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

_IN_WORK = 1 << 27  # bytes of small leaves read or written together
_CHUNK = 1 << 22  # bytes of a leaf that can be read without the others
_MOST_CHUNKS = 512  # about; those of a large tree are larger


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
  with _small_steps(tree), _quiet():
    ocp.save(folder, tree, custom_metadata=dict(metadata))


def load_tree(
  folder: str | os.PathLike, like: Any = None, *, partial: bool = False
) -> tuple[Any, dict[str, Any]]:
  """Read a tree, or some of its leaves.

  Args:
    folder: written by `save_tree`.
    like: a tree of arrays or `jax.ShapeDtypeStruct` whose structure, shapes,
      dtypes and shardings the result takes; leaves without a sharding go to
      the first device. None gives dicts and lists as they were saved.
    partial: `like`, of dicts, has only the leaves that are to be read.

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
    _check(folder, saved.metadata, like, partial)
  target = jax.tree.map(_target, saved.metadata if like is None else like)
  if partial:
    target = _with_gaps(saved.metadata, target)
  with _small_steps(target):
    tree = ocp.load(folder, target)
  if partial:
    tree = _without_gaps(tree)
  return tree, dict(saved.custom_metadata or {})


def saved_shapes(folder: str | os.PathLike) -> Any:
  """What `save_tree` wrote, as a tree of `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: no such folder, or not a tree of `save_tree`.
  """
  folder = os.path.abspath(folder)
  try:
    saved = ocp.metadata(folder).metadata
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{folder}: not a saved tree, or one that was cut off; save it again"
    ) from error
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved
  )


def _small_steps(tree: Any) -> ocp.Context:
  """Little memory beside the tree, and leaves that can be read in parts.

  Each chunk is a file, in the layout of zarr 2: OCDBT gathers what it has
  compressed in memory, and zarr 3 without OCDBT is not recognised as a
  checkpoint without a warning. Orbax wants room for more than the largest leaf.
  """
  sizes = [
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
    if hasattr(leaf, "shape")
  ]
  room = max([_IN_WORK, *sizes]) + 1
  context = ocp.Context()
  context.memory.write_concurrent_bytes = room
  context.memory.read_concurrent_bytes = room
  context.array.saving.use_ocdbt = False
  context.array.saving.use_zarr3 = False
  context.array.saving.storage_options.chunk_byte_size = max(
    _CHUNK, sum(sizes) // _MOST_CHUNKS
  )
  return context


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Leave out warnings that are no news.

  One says what was asked for, one that a killed run's half folder is removed.
  """
  logger = logging.getLogger("absl")
  texts = ("Skipping merge of OCDBT", "since it is not finalized")
  mute = lambda record: not any(text in record.getMessage() for text in texts)
  logger.addFilter(mute)
  try:
    yield
  finally:
    logger.removeFilter(mute)


def _with_gaps(saved: Any, part: Any) -> Any:
  """A tree of the saved structure that asks for the leaves of `part` only."""
  if not isinstance(saved, Mapping):
    return ocp.PLACEHOLDER if part is None else part
  part = part or {}
  return {key: _with_gaps(saved[key], part.get(key)) for key in saved}


def _without_gaps(tree: Any) -> Any:
  """The leaves of a tree of dicts that were asked for."""
  if not isinstance(tree, Mapping):
    return tree
  found = {
    key: _without_gaps(value)
    for key, value in tree.items()
    if value is not ocp.PLACEHOLDER
  }
  # Nothing was asked for below an empty dict.
  return {
    key: value
    for key, value in found.items()
    if not isinstance(value, Mapping) or value
  }


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


def _check(folder: str, saved: Any, like: Any, partial: bool) -> None:
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
  if partial and like.keys() <= saved.keys():
    saved = {name: saved[name] for name in like}
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
