"""Which weights go if their size and the norm of their input count?

  score_ij = |W_ij| sqrt(s_i),  s_i = mean over sequences of sum over tokens x^2

Wanda removes the lowest scores of each output. Its variant removes from each
output the lowest scores that together hold at most a share alpha of that
output's total, and searches the one alpha that meets the sparsity of the
matrix, so outputs end up unevenly sparse.

Reference: Sun et al., "A Simple and Effective Pruning Approach for Large
Language Models" (Wanda, arXiv 2306.11695), equation 1; the variant is the
official code's `use_variant`.

Differs from the reference in: ties go by index and a count of zero is
possible, where the official variant wraps around to the highest score of the
output when not even its lowest one fits in the share.
"""

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import SquaredNorm
from jaxprune.pruning.patterns import Pattern, Unstructured, keep_mask

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
    The kernel with zeros, [I, O], and the mask, bool [I, O], True = keep.

  Raises:
    ValueError: an unknown group, a kernel that is no matrix, or inputs that
      n:m does not divide.
  """
  mask_IO = keep_mask(wanda_scores(w_IO, statistics), pattern)
  return jnp.where(mask_IO, w_IO, 0).astype(w_IO.dtype), mask_IO


def _share_thresholds(scores_IO: jax.Array, share_O: jax.Array) -> jax.Array:
  """Find up to which score an output's lowest ones fit in its share.

  A threshold v fits when the scores below v and one of v itself add up to at
  most the share. That holds for all v up to some value and for none above, so
  its bits can be found from the top, without a sort.

  Returns:
    [O] float32: scores up to and with it leave.
  """

  def fits(v_O):
    below_O = jnp.sum(jnp.where(scores_IO < v_O[None], scores_IO, 0.0), axis=0)
    return below_O + v_O <= share_O

  def body(i, bits_O):
    more_O = bits_O | (jnp.int32(1 << (_FLOAT_BITS - 1)) >> i)
    v_O = jax.lax.bitcast_convert_type(more_O, jnp.float32)
    return jnp.where(fits(v_O), more_O, bits_O)

  # The zeros are computed from the data, so that shard_map sees them split over
  # the same devices.
  zero_O = jax.lax.bitcast_convert_type(share_O, jnp.int32) & 0
  bits_O = jax.lax.fori_loop(0, _FLOAT_BITS, body, zero_O)
  return jax.lax.bitcast_convert_type(bits_O, jnp.float32)


def wanda_variant(
  w_IO: jax.Array, statistics: SquaredNorm, pattern: Unstructured
) -> tuple[jax.Array, jax.Array]:
  """Remove from each output the same share of its total score.

  alpha starts at 0.4 and is bisected in [0, 0.8] until the sparsity of the
  matrix is within 1e-3 of the target, or the interval shorter than 1e-3.

  Args:
    w_IO: kernel [I, O]. The sparsity is that of all outputs given: on a mesh,
      shard under jit; inside `shard_map` every shard would search its own.
    statistics: squared norms of the inputs, finite.
    pattern: Unstructured with group 'output'; its count is met closely, not
      exactly.

  Returns:
    The kernel with zeros, [I, O], and the mask, bool [I, O], True = keep.

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

  def thresholds(alpha):
    v_O = _share_thresholds(scores_IO, alpha * total_O)
    # Counted in int32: a float32 sum of ones stops growing at 2^24.
    gone = jnp.sum(scores_IO <= v_O[None], dtype=jnp.int32)
    return v_O, gone / scores_IO.size

  def more(state):
    _, low, high, _, sparsity = state
    far = jnp.abs(sparsity - pattern.sparsity) > _CLOSE
    return far & (high - low >= _CLOSE)

  def step(state):
    alpha, low, high, _, sparsity = state
    much = sparsity > pattern.sparsity
    low = jnp.where(much, low, alpha)
    high = jnp.where(much, alpha, high)
    alpha = (low + high) / 2
    return (alpha, low, high, *thresholds(alpha))

  start = jnp.float32(_ALPHA)
  state = (start, jnp.float32(0), jnp.float32(_ALPHA_MOST), *thresholds(start))
  v_O = jax.lax.while_loop(more, step, state)[3]
  mask_IO = scores_IO > v_O[None]
  return jnp.where(mask_IO, w_IO, 0).astype(w_IO.dtype), mask_IO
