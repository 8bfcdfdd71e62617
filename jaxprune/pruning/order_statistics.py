"""Which entries of an array are the lowest, counting exactly?

Scores become uint32 keys of the same order. The k-th lowest key is found bit by
bit, each bit by one pass that counts what lies below, on a GPU by a sort: the
answer is the same integer. Ties at that key are settled by index. So nothing
here rounds, and platforms agree.

`patterns.py` is the way in.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# A counting pass adds stretches of inputs in int8 before it widens the counts,
# three to four times faster on a CPU than int32 throughout. A stretch is at
# most _LONGEST, so that nothing overflows, and there are at least _FEWEST of
# them: over fewer, XLA unrolls the outer sum and loses the vector units.
_LONGEST = 16
_FEWEST = 40
# n:m groups up to this long are ranked by all pairs, longer ones by counting.
_MOST_PAIRED = 16


def ordered_keys(scores: jax.Array) -> jax.Array:
  """Map floats to uint32 of the same order; nan lowest, -0 as 0."""
  scores = scores.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  # On the bits, since hardware that flushes denormals would compare them
  # as zeros and then disagree with the order of the bits.
  bits = jnp.where(bits == sign, jnp.uint32(0), bits)
  keys = jnp.where(bits >= sign, ~bits, bits | sign)
  return jnp.where(jnp.isnan(scores), jnp.uint32(0), keys)


def _rowed(keys_IO: jax.Array) -> jax.Array:
  """Cut the inputs in X stretches of R rows for counting, [X, R, O].

  Padding has the highest key, which no float has.
  """
  rows = min(max(keys_IO.shape[0] // _FEWEST, 1), _LONGEST)
  pad = -keys_IO.shape[0] % rows
  padded_IO = jnp.pad(
    keys_IO, ((0, pad), (0, 0)), constant_values=np.uint32(0xFFFFFFFF)
  )
  return rearrange(padded_IO, "(X R) O -> X R O", R=rows)


def _stretch_counts(true_XRO: jax.Array) -> jax.Array:
  """Count what is true in each stretch, [X, O] int32."""
  return jnp.sum(true_XRO, axis=1, dtype=jnp.int8).astype(jnp.int32)


def _counts(true_XRO: jax.Array) -> jax.Array:
  """Count what is true for each output, [O] int32."""
  return _stretch_counts(true_XRO).sum(axis=0)


def _running_sum(x: jax.Array) -> jax.Array:
  """Sum what comes up to each place of axis 0.

  jnp.cumsum is a windowed reduction on a CPU, quadratic in the length.
  """
  return jax.lax.associative_scan(jnp.add, x)


def _bisect(
  count_below: Callable[[jax.Array], jax.Array],
  removed: jax.Array,
  zero: jax.Array,
) -> jax.Array:
  """Find the removed-th lowest key, bit by bit from the top.

  Args:
    count_below: keys -> how many entries lie strictly below each.
    removed: counts, of the type that count_below gives.
    zero: uint32 zeros, one for each group.

  Returns:
    The highest key with fewer than `removed` entries below it: the removed-th
    lowest one. 0 where nothing is removed.
  """

  def body(i, low):
    middle = low | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(count_below(middle) < removed, middle, low)

  return jax.lax.fori_loop(0, 32, body, zero)


def _kth_by_counting(keys_IO, removed_O, group):
  """Removed-th lowest key of each group in 32 counting passes, [O] or []."""
  keys_XRO = _rowed(keys_IO)
  # Zeros made from the keys, so that they vary over the same devices.
  if group == "output":
    return _bisect(
      lambda key_O: _counts(keys_XRO < key_O[None, None]),
      removed_O,
      keys_IO[0] & 0,
    )
  return _bisect(
    lambda key: _counts(keys_XRO < key).sum(), removed_O, keys_IO[0, 0] & 0
  )


def _kth_by_sorting(keys_IO, removed_O, group):
  """The same by a sort."""
  if group == "matrix":
    keys_IO = rearrange(keys_IO, "I O -> (I O)")
  last = keys_IO.shape[0] - 1
  index_O = jnp.clip(removed_O - 1, 0, last)
  sorted_IO = jnp.sort(keys_IO, axis=0)
  if group == "output":
    index_O = jnp.broadcast_to(index_O, keys_IO.shape[1:])
    kth_O = jnp.take_along_axis(sorted_IO, index_O[None], axis=0)[0]
  else:
    kth_O = sorted_IO[index_O]
  return jnp.where(removed_O > 0, kth_O, jnp.uint32(0))


def _kth(keys_IO, removed_O, group):
  """Choose by platform: one answer, two speeds."""

  def counting(keys_IO, removed_O):
    return _kth_by_counting(keys_IO, removed_O, group)

  def sorting(keys_IO, removed_O):
    return _kth_by_sorting(keys_IO, removed_O, group)

  return jax.lax.platform_dependent(
    keys_IO, removed_O, cuda=sorting, rocm=sorting, default=counting
  )


def keep_output(keys_IO: jax.Array, removed_O: jax.Array) -> jax.Array:
  """The mask that loses the lowest entries of each output.

  Args:
    keys_IO: from `ordered_keys`, [I, O].
    removed_O: int32 [] or [O], how many leave.

  Returns:
    bool [I, O], True = keep.
  """
  kth_O = _kth(keys_IO, removed_O, "output")
  keys_XRO = _rowed(keys_IO)
  need_O = removed_O - _counts(keys_XRO < kth_O[None, None])
  # The first `need` ties leave. Find the stretch where they run out, then
  # the place inside it: that much is looked at once, not counted again.
  tie_XRO = keys_XRO == kth_O[None, None]
  upto_XO = _running_sum(_stretch_counts(tie_XRO))
  full_O = jnp.sum(upto_XO <= need_O[None], axis=0, dtype=jnp.int32)
  inside_O = jnp.minimum(full_O, upto_XO.shape[0] - 1)
  before_O = jnp.take_along_axis(
    jnp.pad(upto_XO, ((1, 0), (0, 0))), inside_O[None], axis=0
  )[0]
  tie_RO = jnp.take_along_axis(tie_XRO, inside_O[None, None], axis=0)[0]
  upto_RO = _running_sum(tie_RO.astype(jnp.int32)) + before_O[None]
  place_O = jnp.sum(upto_RO <= need_O[None], axis=0, dtype=jnp.int32)
  cut_O = inside_O * keys_XRO.shape[1] + place_O
  index_I1 = jnp.arange(keys_IO.shape[0], dtype=jnp.int32)[:, None]
  return (keys_IO > kth_O[None]) | (
    (keys_IO == kth_O[None]) & (index_I1 >= cut_O[None])
  )


def _keep_lowest_rows(keys_IO: jax.Array, kth: jax.Array, need: jax.Array):
  """Mask [I, O] without keys below kth and the first `need` ties, row-major.

  Args:
    keys_IO: uint32.
    kth: [].
    need: [], how many of the entries equal to kth leave.
  """
  tie_IO = keys_IO == kth
  upto_I = _running_sum(jnp.sum(tie_IO, axis=1, dtype=need.dtype))
  row = jnp.minimum(
    jnp.sum(upto_I <= need, dtype=jnp.int32), upto_I.shape[0] - 1
  )
  before = jnp.where(row > 0, upto_I[row - 1], jnp.zeros_like(need))
  upto_O = _running_sum(tie_IO[row].astype(need.dtype)) + before
  column = jnp.sum(upto_O <= need, dtype=jnp.int32)
  index_I = jnp.arange(keys_IO.shape[0], dtype=jnp.int32)
  cut_I = jnp.where(index_I < row, keys_IO.shape[1], 0)
  cut_I = jnp.where(index_I == row, column, cut_I)
  index_O = jnp.arange(keys_IO.shape[1], dtype=jnp.int32)
  late_IO = index_O[None] >= cut_I[:, None]
  return (keys_IO > kth) | (tie_IO & late_IO)


def keep_matrix(keys_IO: jax.Array, removed: jax.Array) -> jax.Array:
  """The mask that loses the lowest entries of a matrix.

  Args:
    keys_IO: from `ordered_keys`, [I, O].
    removed: int32 [], how many leave.

  Returns:
    bool [I, O], True = keep.
  """
  kth = _kth(keys_IO, removed, "matrix")
  need = removed - _counts(_rowed(keys_IO) < kth).sum()
  return _keep_lowest_rows(keys_IO, kth, need)


def keep_n_of_m(keys_IO: jax.Array, keep: int, of: int) -> jax.Array:
  """The mask that keeps the highest of each group along the inputs.

  Args:
    keys_IO: from `ordered_keys`, [I, O].
    keep: how many of a group stay.
    of: length of a group, a divisor of I.

  Returns:
    bool [I, O], True = keep.
  """
  keys_XMO = rearrange(keys_IO, "(X M) O -> X M O", M=of)
  leave = of - keep
  if of > _MOST_PAIRED:
    kept_XMO = jax.vmap(lambda k_MO: keep_output(k_MO, jnp.int32(leave)))(
      keys_XMO
    )
    return rearrange(kept_XMO, "X M O -> (X M) O")
  # rank = how many of the group leave before this one. Each pair is compared
  # once; of equals the earlier leaves first.
  places = [keys_XMO[:, m] for m in range(of)]
  rank = [jnp.zeros(keys_XO.shape, jnp.int8) for keys_XO in places]
  for late in range(of):
    for early in range(late):
      first_XO = places[early] <= places[late]
      rank[late] += first_XO
      rank[early] += ~first_XO
  kept_XMO = jnp.stack([r_XO >= leave for r_XO in rank], axis=1)
  return rearrange(kept_XMO, "X M O -> (X M) O")
