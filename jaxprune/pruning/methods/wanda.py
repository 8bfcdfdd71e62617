"""Which weights go if their size and the norm of their input count?

  score_ij = |W_ij| sqrt(s_i),  s_i = mean over sequences of sum over tokens x^2

Wanda removes the lowest scores of each output. Its variant removes from each
output the lowest scores that together hold at most a share alpha of that
output's total, and searches the one alpha that meets the sparsity of the
matrix, so outputs end up unevenly sparse.

The search of the variant is the official one, of few steps, where that comes
within 1e-3 of the sparsity. Where it does not (few weights, many equal ones, a
sparsity near 0 or 1), the alpha is found to the last bit, and of the weights
that leave at that alpha at once, those of the first outputs go: then the count
of the matrix is exact.

Reference: Sun et al., "A Simple and Effective Pruning Approach for Large
Language Models" (Wanda, arXiv 2306.11695), equation 1; the variant is the
official code's `use_variant`.

Differs from the reference in: ties go by index, one after the other, where the
official variant removes all of them if one fits; a count of zero is possible,
where it wraps around to the highest score of the output when not even its
lowest one fits in the share; the second search.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import SquaredNorm
from jaxprune.pruning.patterns import (
  Pattern,
  Unstructured,
  keep_mask_count,
  nan_unless,
  remove_lowest,
  removed_count,
)

# The search for alpha: where it starts, the highest value, and when it stops.
_ALPHA = 0.4
_ALPHA_MOST = 0.8
_CLOSE = 1e-3
# Bits of a finite nonnegative float32: they are ordered like the floats.
_FLOAT_BITS = 31


def wanda_scores(w_IO: jax.Array, statistics: SquaredNorm) -> jax.Array:
  """Score each weight; higher is kept.

  Args:
    w_IO: kernel [I, O], any float dtype.
    statistics: squared norms of the inputs.

  Returns:
    [I, O] float32, nonnegative.
  """
  norm_I = jnp.sqrt(statistics.mean)
  return jnp.abs(w_IO.astype(jnp.float32)) * norm_I[:, None]


def wanda(
  w_IO: jax.Array, statistics: SquaredNorm, pattern: Pattern
) -> tuple[jax.Array, jax.Array]:
  """Remove the weights of lowest |W| ||x||.

  Args:
    w_IO: kernel [I, O].
    statistics: squared norms of the inputs.
    pattern: what to remove; group 'output' is the paper's.

  Returns:
    The kernel with zeros, [I, O], all nan where a score is inf or nan; and the
    mask, bool [I, O], True = keep.

  Raises:
    ValueError: what `patterns.remove_lowest` refuses.
  """
  return remove_lowest(w_IO, wanda_scores(w_IO, statistics), pattern)


def _highest_bits(fits: Callable[[jax.Array], jax.Array], zero: jax.Array):
  """Find the highest nonnegative float that fits, bit by bit from the top.

  Args:
    fits: from floats to bool, True up to some value and False above.
    zero: int32 zeros, one for each search.
  """

  def body(i, bits):
    more = bits | (jnp.int32(1 << (_FLOAT_BITS - 1)) >> i)
    value = jax.lax.bitcast_convert_type(more, jnp.float32)
    return jnp.where(fits(value), more, bits)

  bits = jax.lax.fori_loop(0, _FLOAT_BITS, body, zero)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _counts_in_share(scores_IO: jax.Array, share_O: jax.Array) -> jax.Array:
  """Count the lowest scores of an output that together fit in its share.

  A threshold v fits when the scores below v and one of v itself add up to at
  most the share. That holds for all v up to some value and for none above, so
  it is found without a sort. Then all scores below it leave, and of those equal
  to it as many as fit.

  Returns:
    int32 [O].
  """

  def below(v_O):
    return jnp.sum(jnp.where(scores_IO < v_O[None], scores_IO, 0.0), axis=0)

  # The zeros are computed from the data, so that shard_map sees them split over
  # the same devices.
  zero_O = jax.lax.bitcast_convert_type(share_O, jnp.int32) & 0
  v_O = _highest_bits(lambda v_O: below(v_O) + v_O <= share_O, zero_O)
  ties_O = jnp.sum(scores_IO == v_O[None], axis=0, dtype=jnp.int32)
  room_O = (share_O - below(v_O)) / jnp.where(v_O > 0, v_O, 1.0)
  # Rounding of the quotient takes no tie away that the threshold found to fit.
  room_O = jnp.maximum(jnp.floor(room_O), 1.0)
  fit_O = jnp.where(v_O > 0, jnp.minimum(room_O, ties_O), ties_O)
  lower_O = jnp.sum(scores_IO < v_O[None], axis=0, dtype=jnp.int32)
  return lower_O + jnp.minimum(fit_O.astype(jnp.int32), ties_O)


def _official_counts(counts_at, none_O, size, sparsity):
  """How many leave each output after the reference's search, [O] int32."""

  def more(state):
    _, low, high, counts_O, begun = state
    far = jnp.abs(jnp.sum(counts_O) / size - sparsity) > _CLOSE
    return ~begun | (far & (high - low >= _CLOSE))

  def step(state):
    alpha, low, high, counts_O, begun = state
    # Counted in int32: a float32 sum of ones stops growing at 2^24.
    much = jnp.sum(counts_O) / size > sparsity
    low = jnp.where(begun & ~much, alpha, low)
    high = jnp.where(begun & much, alpha, high)
    alpha = jnp.where(begun, (low + high) / 2, alpha)
    return alpha, low, high, counts_at(alpha), jnp.bool_(True)

  state = (
    jnp.float32(_ALPHA),
    jnp.float32(0),
    jnp.float32(_ALPHA_MOST),
    none_O,
    jnp.bool_(False),
  )
  return jax.lax.while_loop(more, step, state)[3]


def _exact_counts(counts_at, removed, zero):
  """How many leave each output, for `removed` in all, int32 [O]."""
  # Up to this alpha not too many leave, and at the next float more than that.
  alpha = _highest_bits(
    lambda value: jnp.sum(counts_at(value)) <= removed, zero
  )
  following = jax.lax.bitcast_convert_type(
    jax.lax.bitcast_convert_type(alpha, jnp.int32) + 1, jnp.float32
  )
  most_O, more_O = jax.lax.map(counts_at, jnp.stack([alpha, following]))
  # Weights of score 0 leave even at alpha 0, though fewer may be asked for.
  few = jnp.sum(most_O) > removed
  least_O = jnp.where(few, 0, most_O)
  most_O = jnp.where(few, most_O, more_O)
  left = removed - jnp.sum(least_O)
  upto_O = jax.lax.associative_scan(jnp.add, most_O - least_O)
  before_O = upto_O - (most_O - least_O)
  return least_O + jnp.clip(left - before_O, 0, most_O - least_O)


def wanda_variant(
  w_IO: jax.Array, statistics: SquaredNorm, pattern: Unstructured
) -> tuple[jax.Array, jax.Array]:
  """Remove from each output the same share of its total score.

  The official search starts at alpha = 0.4 and bisects [0, 0.8] until the
  sparsity of the matrix is within 1e-3 of the target, or the interval shorter
  than 1e-3; if what it found is too far from the target, the exact one follows.

  Args:
    w_IO: kernel [I, O]. The sparsity is that of all outputs given: on a mesh,
      shard under jit; inside `shard_map` every shard would search its own.
    statistics: squared norms of the inputs, finite.
    pattern: Unstructured with group 'output'; its count is met to 1e-3 of the
      entries of the kernel, nearer where that is not small beside what leaves
      or stays, and 0 exactly.

  Returns:
    The kernel with zeros, [I, O], all nan where a score is inf or nan; and the
    mask, bool [I, O], True = keep.

  Raises:
    ValueError: n:m, or another group.
  """
  if not isinstance(pattern, Unstructured) or pattern.group != "output":
    raise ValueError(
      f"pattern is {pattern}; the variant takes Unstructured with group"
      " 'output' only"
    )
  scores_IO = wanda_scores(w_IO, statistics)
  total_O = jnp.sum(scores_IO, axis=0)
  size = scores_IO.size
  removed = removed_count(size, pattern.sparsity)

  def counts_at(alpha):
    return _counts_in_share(scores_IO, alpha * total_O)

  if removed:
    none_O = jax.lax.bitcast_convert_type(total_O, jnp.int32) & 0
    official_O = _official_counts(counts_at, none_O, size, pattern.sparsity)
    reached = jnp.sum(official_O) / size
    zero = jax.lax.bitcast_convert_type(reached, jnp.int32) & 0
    # 0.999 must not become 1, nor 0.001 twice that.
    ends = min(pattern.sparsity, 1 - pattern.sparsity)
    counts_O = jax.lax.cond(
      jnp.abs(reached - pattern.sparsity) > min(_CLOSE, 0.1 * ends),
      lambda: _exact_counts(counts_at, removed, zero),
      lambda: official_O,
    )
  else:
    counts_O = jnp.zeros_like(total_O, jnp.int32)
  mask_IO = keep_mask_count(scores_IO, counts_O)
  new_IO = jnp.where(mask_IO, w_IO, 0).astype(w_IO.dtype)
  return nan_unless(jnp.all(jnp.isfinite(total_O)), new_IO), mask_IO
