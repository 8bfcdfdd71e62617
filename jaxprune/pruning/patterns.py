"""Which entries stay, given scores and a pattern?

A pattern says how many entries leave each comparison group; the scores say
which: the lowest. Counts are exact, and among equal scores the entry with the
lowest index leaves first, as if a stable ascending sort lost its first k.

  Unstructured  floor(size * sparsity) entries of every output (a column of
                the kernel), of the whole matrix, or of all matrices together
                (a whole model: `checkpoint/global_magnitude.py`)
  NofM          of - keep entries of every `of` consecutive inputs

`Levels` removes nothing: it says how finely weights are rounded.

Scores are compared in float32. -0 equals 0. A nan counts as the lowest score
of all: it leaves first, and stays only where a group has more nans than it
loses.

Reference: the comparison groups of Sun et al., Wanda (arXiv 2306.11695),
section 3; the exact counts of Lee et al., JaxPruner (arXiv 2304.14082).

Differs from the reference in: n:m is n kept, where Wanda and SparseGPT write
n removed; the official magnitude and SparseGPT code removes every score up to
and with the sorted one at index int(size * sparsity), so one entry too many
and all its ties; a last short n:m group is refused.
"""

import dataclasses
import fractions
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning import order_statistics, registry

GROUPS = ("output", "matrix", "global")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unstructured:
  """Remove a fraction of every comparison group.

  Attributes:
    sparsity: fraction removed, in [0, 1), read as the decimal it prints as.
    group: 'output' compares along the inputs of each output, 'matrix' within
      a kernel, 'global' over several kernels.
  """

  sparsity: float
  group: str = "output"

  def __post_init__(self):
    # Not `< 0 or >= 1`, which a nan would pass.
    if not 0 <= self.sparsity < 1:
      raise ValueError(
        f"sparsity is {self.sparsity}; use a fraction removed in [0, 1)"
      )
    if self.group not in GROUPS:
      raise ValueError(f"group is {self.group!r}; use one of {GROUPS}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NofM:
  """Keep `keep` of every `of` consecutive inputs of each output.

  Attributes:
    keep: how many stay, 1 <= keep < of.
    of: length of a group of inputs.
  """

  keep: int
  of: int

  def __post_init__(self):
    for name in ("keep", "of"):
      value = getattr(self, name)
      if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; use a whole number")
    if not 0 < self.keep < self.of:
      raise ValueError(
        f"{self.keep}:{self.of} keeps {self.keep} of {self.of}; use"
        " 0 < keep < of"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
  """How finely every kernel is rounded.

  Attributes:
    bits: 2 to 8.
    group_size: inputs that share a scale; None for all inputs of an output.
    symmetric: levels around zero without a zero point.
  """

  bits: int
  group_size: int | None = 128
  symmetric: bool = False

  def __post_init__(self):
    if not 2 <= self.bits <= 8:
      raise ValueError(f"bits is {self.bits}; use 2 to 8")
    if self.group_size is not None and self.group_size < 1:
      raise ValueError(
        f"group_size is {self.group_size}; use 1 or more, or None"
      )


Pattern = Unstructured | NofM
AnyPattern = Pattern | Levels


def as_pattern(pattern: AnyPattern | str | float, method: str) -> AnyPattern:
  """Read a pattern that is written in short.

  Args:
    pattern: 'n:m' with n kept out of m inputs; the fraction removed, a number
      in [0, 1) or its text; bits, a whole number, for a method that rounds; or
      a pattern.
    method: a name in `registry.METHODS`, which says what competes.

  Raises:
    ValueError: an unknown method, or no such pattern.
  """
  row = registry.find(method)
  if isinstance(pattern, Unstructured | NofM | Levels):
    return pattern
  keep, colon, of = str(pattern).partition(":")
  try:
    if colon:
      return NofM(keep=int(keep), of=int(of))
    if row.rounds:
      return Levels(bits=int(keep))
    return Unstructured(
      sparsity=float(keep), group=registry.default_group(method)
    )
  except ValueError as error:
    raise ValueError(
      f"pattern={pattern!r}: {error}; use '2:4' (2 kept out of 4 inputs), a"
      " fraction removed such as 0.5, or for a method that rounds its bits"
    ) from None


def removed_count(size: int, sparsity: float) -> int:
  """Count what leaves a group of `size` entries: floor(size * sparsity).

  The product is exact and takes sparsity as the decimal that was typed: 0.7
  of 10 is 7, though the nearest float64 to 0.7 lies below it.

  Args:
    size: entries of the group.
    sparsity: fraction removed, in [0, 1).
  """
  return math.floor(size * fractions.Fraction(str(sparsity)))


def check_shape(shape: tuple[int, int], pattern: Pattern) -> None:
  """Refuse a kernel that the pattern does not fit.

  Args:
    shape: (I, O) of the kernel.
    pattern: what is to be removed.

  Raises:
    ValueError: I is not a multiple of `of`.
  """
  if isinstance(pattern, NofM) and shape[0] % pattern.of:
    raise ValueError(
      f"{pattern.keep}:{pattern.of} needs a multiple of {pattern.of} inputs;"
      f" the kernel [I, O] is {list(shape)}"
    )


def _check_matrix(scores_IO):
  if scores_IO.ndim != 2 or not scores_IO.size:
    raise ValueError(
      f"scores have shape {list(scores_IO.shape)}; use [I, O], not empty,"
      " and vmap over leading axes"
    )


def keep_mask_count(
  scores_IO: jax.Array, removed: jax.Array | int, group: str = "output"
) -> jax.Array:
  """Remove the lowest scores; how many is an array and may be traced.

  Args:
    scores_IO: [I, O], any float dtype.
    removed: int [] or, for 'output', [O]; may be traced, so that sparsities
      can be vmapped. Below 0 is 0, above the group's size is all of it.
    group: 'output' or 'matrix'.

  Returns:
    bool [I, O], True = keep.

  Raises:
    ValueError: unknown group, or scores that are no matrix.
  """
  _check_matrix(scores_IO)
  if group not in GROUPS[:2]:
    raise ValueError(f"group is {group!r}; use 'output' or 'matrix'")
  removed = jnp.asarray(removed, jnp.int32)
  keep = (
    order_statistics.keep_output
    if group == "output"
    else order_statistics.keep_matrix
  )
  return keep(order_statistics.ordered_keys(scores_IO), removed)


def remove_lowest(
  w_IO: jax.Array, scores_IO: jax.Array, pattern: Pattern
) -> tuple[jax.Array, jax.Array]:
  """Zero the weights of lowest score.

  Args:
    w_IO: kernel [I, O], any float dtype.
    scores_IO: [I, O], any float dtype; higher stays.
    pattern: Unstructured with group 'output' or 'matrix', or NofM.

  Returns:
    The kernel with zeros, [I, O] in the dtype of w_IO, all nan where a score is
    inf or nan; and the mask, bool [I, O], True = keep.

  Raises:
    ValueError: an unknown group or 'global', scores that are no matrix, or
      inputs that n:m does not divide.
  """
  mask_IO = keep_mask(scores_IO, pattern)
  new_IO = jnp.where(mask_IO, w_IO, 0).astype(w_IO.dtype)
  return nan_unless(jnp.all(jnp.isfinite(scores_IO)), new_IO), mask_IO


def nan_unless(sound: jax.Array, weights: Any) -> Any:
  """Weights, or nan in their place.

  A mask of scores that overflowed looks like any other. Weights of nan do not,
  and whoever uses them sees it at once, also under jit, where nothing raises.

  Args:
    sound: bool []; whether the scores that the weights come from are finite.
    weights: pytree of float arrays.
  """
  return jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.nan), weights)


def keep_mask(scores_IO: jax.Array, pattern: Pattern) -> jax.Array:
  """Keep the highest scores of one kernel as the pattern says.

  Args:
    scores_IO: [I, O], any float dtype; higher stays.
    pattern: Unstructured with group 'output' or 'matrix', or NofM.

  Returns:
    bool [I, O], True = keep.

  Raises:
    ValueError: scores that are no matrix, group 'global', or inputs that
      n:m does not divide.
  """
  _check_matrix(scores_IO)
  if isinstance(pattern, NofM):
    check_shape(scores_IO.shape, pattern)
    keys_IO = order_statistics.ordered_keys(scores_IO)
    return order_statistics.keep_n_of_m(keys_IO, pattern.keep, pattern.of)
  if pattern.group == "output":
    size = scores_IO.shape[0]
  else:
    size = math.prod(scores_IO.shape)
  removed = removed_count(size, pattern.sparsity)
  return keep_mask_count(scores_IO, removed, pattern.group)
