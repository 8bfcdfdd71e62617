"""How do masks combine, and how far apart are two of them?

Masks are pytrees of bool kernels [I, O], or stacked [..., I, O]; True = keep.
Numbers come per matrix, [...] for a stacked leaf, or for all matrices
together, every entry counting alike.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.pruning.patterns import NofM

_PER = ("matrix", "all")


def _check_alike(a: object, b: object) -> None:
  """Refuse trees that do not fit; jnp would broadcast some of them."""
  structures = jax.tree.structure(a), jax.tree.structure(b)
  if structures[0] != structures[1]:
    raise ValueError(
      f"mask trees differ: {structures[0]} and {structures[1]}; compare masks"
      " of the same kernels"
    )
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  )
  for (path, x), y in pairs:
    if x.shape != y.shape:
      raise ValueError(
        f"masks{jax.tree_util.keystr(path)} have shapes {list(x.shape)} and"
        f" {list(y.shape)}; compare masks of one model"
      )


def union(*masks: object) -> object:
  """Keep what any of the masks keeps.

  Args:
    *masks: pytrees of bool [..., I, O], all of one structure and shapes.

  Raises:
    ValueError: masks that do not fit.
  """
  return _combine(jnp.logical_or, masks)


def intersection(*masks: object) -> object:
  """Keep what all masks keep; masks are given as for a `union`."""
  return _combine(jnp.logical_and, masks)


def _combine(operation, masks):
  for other in masks[1:]:
    _check_alike(masks[0], other)
  return jax.tree.map(
    lambda *leaves: functools.reduce(operation, leaves), *masks
  )


def _count(leaf: jax.Array) -> jax.Array:
  """True entries of each matrix, exact: int32, then rounded to float32."""
  return jnp.sum(leaf, axis=(-2, -1), dtype=jnp.int32).astype(jnp.float32)


def _share(part: object, whole: object, per: str, empty: float) -> object:
  """Divide the counts of two trees, per matrix or over all.

  `empty` is the result where there is nothing to divide by.
  """
  if per not in _PER:
    raise ValueError(f"per is {per!r}; use one of {_PER}")
  if per == "all":
    part, whole = (
      sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
      for tree in (part, whole)
    )
  return jax.tree.map(
    lambda x, y: jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), empty),
    part,
    whole,
  )


def _sizes(masks: object) -> object:
  """Entries of each matrix, float32 like the counts."""
  return jax.tree.map(
    lambda m: jnp.full(m.shape[:-2], m.shape[-2] * m.shape[-1], jnp.float32),
    masks,
  )


def density(masks: object, *, per: str = "matrix") -> object:
  """Fraction kept, in [0, 1]; sparsity is one minus it.

  Args:
    masks: pytree of bool [..., I, O].
    per: 'matrix' or 'all'.

  Returns:
    float32: the same tree with leaves [...], or [] for 'all'.

  Raises:
    ValueError: unknown `per`.
  """
  counts = jax.tree.map(_count, masks)
  return _share(counts, _sizes(masks), per, empty=1.0)


def overlap(a: object, b: object, *, per: str = "matrix") -> object:
  """Jaccard index of what is kept: |both| / |either|, in [0, 1].

  1 for equal masks, also for two that keep nothing. Two independent masks of
  density d overlap by d / (2 - d): 1/3 at 50 % sparsity.

  Args:
    a: pytree of bool [..., I, O].
    b: the same structure and shapes.
    per: 'matrix' or 'all'.

  Returns:
    float32: the same tree with leaves [...], or [] for 'all'.

  Raises:
    ValueError: unknown `per`, or masks that do not fit.
  """
  both = jax.tree.map(_count, intersection(a, b))
  either = jax.tree.map(_count, union(a, b))
  return _share(both, either, per, empty=1.0)


def distance(a: object, b: object, *, per: str = "matrix") -> object:
  """Hamming distance as a fraction of all entries, in [0, 1].

  Args:
    a, b: pytrees of bool [..., I, O], alike.
    per: 'matrix' or 'all'.

  Returns:
    float32: the same tree with leaves [...], or [] for 'all'.

  Raises:
    ValueError: unknown `per`, or masks that do not fit.
  """
  _check_alike(a, b)
  differ = jax.tree.map(lambda x, y: _count(x ^ y), a, b)
  return _share(differ, _sizes(a), per, empty=0.0)


def verify_nm(masks: object, pattern: NofM, *, exact: bool = True) -> object:
  """Say whether every group of every output obeys n:m.

  Args:
    masks: pytree of bool [..., I, O]. For weights give `w != 0` and
      exact=False, since a weight that was kept may be zero.
    pattern: the n:m.
    exact: exactly `keep` of every `of`; False for at most `keep`, which is
      all that sparse hardware asks.

  Returns:
    bool tree with leaves [...], one per matrix. False where `of` does not
    divide the inputs.
  """

  def verify(leaf):
    *stack, inputs, _ = leaf.shape
    if inputs % pattern.of:
      return jnp.zeros(stack, bool)
    groups = rearrange(leaf, "... (U M) O -> ... U M O", M=pattern.of)
    kept = jnp.sum(groups, axis=-2, dtype=jnp.int32)
    obeyed = kept == pattern.keep if exact else kept <= pattern.keep
    return jnp.all(obeyed, axis=(-2, -1))

  return jax.tree.map(verify, masks)
