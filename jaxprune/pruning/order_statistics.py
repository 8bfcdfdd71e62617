"""Which entries of an array are the lowest, counting exactly?

Scores become uint32 keys of the same order. The k-th lowest key is found bit by
bit, each bit by one pass that counts what lies below, on a GPU by a sort: the
answer is the same integer. Ties at that key are settled by index. So nothing
here rounds, and platforms agree.

Other code uses these functions through `patterns.py`.
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
  """Cut the inputs in U stretches of M rows for counting, [U, M, O].

  Padding has the highest key, which no float has.
  """
  rows = min(max(keys_IO.shape[0] // _FEWEST, 1), _LONGEST)
  pad = -keys_IO.shape[0] % rows
  padded_IO = jnp.pad(
    keys_IO, ((0, pad), (0, 0)), constant_values=np.uint32(0xFFFFFFFF)
  )
  return rearrange(padded_IO, "(U M) O -> U M O", M=rows)


def _stretch_counts(true_UMO: jax.Array) -> jax.Array:
  """Count what is true in each stretch, [U, O] int32."""
  return jnp.sum(true_UMO, axis=1, dtype=jnp.int8).astype(jnp.int32)


def _counts(true_UMO: jax.Array) -> jax.Array:
  """Count what is true for each output, [O] int32."""
  return _stretch_counts(true_UMO).sum(axis=0)


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
  keys_UMO = _rowed(keys_IO)
  # The zeros are computed from the data, so that shard_map sees them split over
  # the same devices.
  if group == "output":
    return _bisect(
      lambda key_O: _counts(keys_UMO < key_O[None, None]),
      removed_O,
      keys_IO[0] & 0,
    )
  return _bisect(
    lambda key: _counts(keys_UMO < key).sum(), removed_O, keys_IO[0, 0] & 0
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
  """The key by the algorithm that is faster on this platform; both agree."""

  def counting(keys_IO, removed_O):
    return _kth_by_counting(keys_IO, removed_O, group)

  def sorting(keys_IO, removed_O):
    return _kth_by_sorting(keys_IO, removed_O, group)

  return jax.lax.platform_dependent(
    keys_IO, removed_O, cuda=sorting, rocm=sorting, default=counting
  )


def _cut_row_by_row(keys_UMO, kth_O, need_O):
  """The place of each output's first tie that stays, [O] int32.

  Of the entries that tie with the k-th key, the first `need` leave: the places
  are counted up to which no more than that have been seen. One pass, and half
  as much to compile as `_cut_by_stretches`.
  """

  def step(carry, keys_MO):
    seen_O, cut_O = carry
    for key_O in keys_MO:
      seen_O += (key_O == kth_O).astype(jnp.int32)
      cut_O += (seen_O <= need_O).astype(jnp.int32)
    return (seen_O, cut_O), None

  # Computed from the data, as in `_kth_by_counting`.
  zero_O = (keys_UMO[0, 0] & 0).astype(jnp.int32)
  return jax.lax.scan(step, (zero_O, zero_O), keys_UMO)[0][1]


def _cut_by_stretches(keys_UMO, kth_O, need_O):
  """The same without a loop over the inputs.

  We look for the stretch that holds the last tie that leaves, then for its
  place in that stretch, so that only one stretch is counted again.
  """
  tie_UMO = keys_UMO == kth_O[None, None]
  upto_UO = _running_sum(_stretch_counts(tie_UMO))
  full_O = jnp.sum(upto_UO <= need_O[None], axis=0, dtype=jnp.int32)
  inside_O = jnp.minimum(full_O, upto_UO.shape[0] - 1)
  before_O = jnp.take_along_axis(
    jnp.pad(upto_UO, ((1, 0), (0, 0))), inside_O[None], axis=0
  )[0]
  tie_MO = jnp.take_along_axis(tie_UMO, inside_O[None, None], axis=0)[0]
  upto_MO = _running_sum(tie_MO.astype(jnp.int32)) + before_O[None]
  place_O = jnp.sum(upto_MO <= need_O[None], axis=0, dtype=jnp.int32)
  return inside_O * keys_UMO.shape[1] + place_O


def keep_output(keys_IO: jax.Array, removed_O: jax.Array) -> jax.Array:
  """The mask that loses the lowest entries of each output.

  Args:
    keys_IO: from `ordered_keys`, [I, O].
    removed_O: int32 [] or [O], how many leave.

  Returns:
    bool [I, O], True = keep.
  """
  kth_O = _kth(keys_IO, removed_O, "output")
  keys_UMO = _rowed(keys_IO)
  need_O = removed_O - _counts(keys_UMO < kth_O[None, None])
  # Mostly all ties leave, as there is one; then none has to be found.
  ties_O = _counts(keys_UMO == kth_O[None, None])
  cut_O = jax.lax.cond(
    jnp.any(ties_O > need_O),
    lambda *of: jax.lax.platform_dependent(
      *of, cpu=_cut_row_by_row, default=_cut_by_stretches
    ),
    lambda _, __, need_O: (need_O & 0) + keys_IO.shape[0],
    *(keys_UMO, kth_O, need_O),
  )
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
  keys_UMO = rearrange(keys_IO, "(U M) O -> U M O", M=of)
  leave = of - keep
  if of > _MOST_PAIRED:
    kept_UMO = jax.vmap(lambda k_MO: keep_output(k_MO, jnp.int32(leave)))(
      keys_UMO
    )
    return rearrange(kept_UMO, "U M O -> (U M) O")
  # The rank of an entry is how many of its group leave before it. Each pair is
  # compared once; of two equal entries the earlier one leaves first.
  places = [keys_UMO[:, m] for m in range(of)]
  rank = [jnp.zeros(keys_UO.shape, jnp.int8) for keys_UO in places]
  for late in range(of):
    for early in range(late):
      first_UO = places[early] <= places[late]
      rank[late] += first_UO
      rank[early] += ~first_UO
  kept_UMO = jnp.stack([r_UO >= leave for r_UO in rank], axis=1)
  return rearrange(kept_UMO, "U M O -> (U M) O")
