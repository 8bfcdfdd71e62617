"""Which kept and removed weights should change places?

Of one output, let d be the removed weights (zero where kept) and g = G d,
with G the Gram of the inputs. The output error is d^T g. Removing p instead
of u changes it by

  (2 w_p g_p + w_p^2 G_pp) + (-2 w_u g_u + w_u^2 G_uu) - 2 w_p w_u G_pu

and g by w_p G_p - w_u G_u. Swaps are made while they help, first those that
are cheap to find: the best partner of the best single removal, or of the
best single restoration, whichever gains more, for O(I). Then the best of all
pairs, for O(I^2), until none helps. Counts per output and per n:m group stay
as they were, whatever mask it starts from; outputs do not see each other.

Reference: Zimmer et al., "SparseSwaps: Tractable LLM Pruning Mask Refinement
at Scale" (arXiv 2512.10922); the idea of swapping after pruning is from
Zhang et al., DSnoT (ICLR 2024, arXiv 2310.08915), which guesses the gain from
means and variances of the inputs instead.

Differs from the reference in: the cheap search comes before the search of
all pairs, which then has little left to do (the errors reached are alike); a
swap must gain more than rounding can feign, and an output whose error,
computed afresh, did not fall keeps its first mask, so no error ever rises.
Ties go to the lowest removed index, then to the lowest restored one.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.calibration.statistics import Gram
from jaxprune.pruning import reconstruction
from jaxprune.pruning.methods import wanda
from jaxprune.pruning.patterns import NofM, Pattern, keep_mask, nan_unless

# Gains below this fraction of an output's first error are taken for rounding.
_NOISE = 1e-6
# How many pairs are looked at together when all pairs of an output are
# searched.
_PAIRS = 2**23


def _single(w_I, keep_I, g_I, diagonal_I):
  """Change of one output's error by each removal and each restoration.

  inf where the weight is already gone, or already there.
  """
  linear_I, square_I = 2 * w_I * g_I, w_I * w_I * diagonal_I
  remove_I = jnp.where(keep_I, linear_I + square_I, jnp.inf)
  restore_I = jnp.where(keep_I, jnp.inf, square_I - linear_I)
  return remove_I, restore_I


def _likely_pair(w_I, keep_I, g_I, gram_II):
  """A good swap of one output: change of the error, removed, restored."""
  remove_I, restore_I = _single(w_I, keep_I, g_I, jnp.diagonal(gram_II))
  u = jnp.argmin(restore_I)
  remove_I_u = remove_I - 2 * w_I * w_I[u] * gram_II[u]
  p = jnp.argmin(remove_I)
  restore_I_p = restore_I - 2 * w_I * w_I[p] * gram_II[p]
  p_u, u_p = jnp.argmin(remove_I_u), jnp.argmin(restore_I_p)
  by_u = remove_I_u[p_u] + restore_I[u]
  by_p = remove_I[p] + restore_I_p[u_p]
  return (
    jnp.minimum(by_u, by_p),
    jnp.where(by_u <= by_p, p_u, p),
    jnp.where(by_u <= by_p, u, u_p),
  )


def _best_pair(w_I, keep_I, g_I, block_UMM):
  """The best swap of one output inside the groups of block_UMM."""
  size = block_UMM.shape[1]
  diagonal_I = rearrange(
    jnp.diagonal(block_UMM, axis1=1, axis2=2), "U M -> (U M)"
  )
  remove_I, restore_I = _single(w_I, keep_I, g_I, diagonal_I)
  w_UM, restore_UM = (
    rearrange(x_I, "(U M) -> U M", M=size) for x_I in (w_I, restore_I)
  )
  # The value of the best restoration for every removal, without its index: a
  # minimum is far cheaper than an argmin over all pairs.
  least_UM = jnp.min(
    restore_UM[:, None, :]
    - 2 * w_UM[:, :, None] * w_UM[:, None, :] * block_UMM,
    axis=-1,
  )
  p = jnp.argmin(remove_I + rearrange(least_UM, "U M -> (U M)"))
  group, place = p // size, p % size
  restore_M = (
    restore_UM[group] - 2 * w_I[p] * w_UM[group] * block_UMM[group, place]
  )
  u = jnp.argmin(restore_M)
  return remove_I[p] + restore_M[u], p, group * size + u


def _search(pair, gram_II, max_swaps, w_I, keep_I, g_I, swaps, noise):
  """Swap in one output while `pair` finds a gain: (keep_I, g_I, swaps)."""

  def more(state):
    return state[3] & (state[2] < max_swaps)

  def step(state):
    keep_I, g_I, swaps, _ = state
    change, p, u = pair(w_I, keep_I, g_I)
    better = change < -noise
    moved_I = g_I + w_I[p] * gram_II[p] - w_I[u] * gram_II[u]
    return (
      jnp.where(better, keep_I.at[p].set(False).at[u].set(True), keep_I),
      jnp.where(better, moved_I, g_I),
      swaps + better,
      better,
    )

  start = (keep_I, g_I, swaps, swaps >= 0)
  return jax.lax.while_loop(more, step, start)[:3]


def refine(
  w_IO: jax.Array,
  mask_IO: jax.Array,
  gram_II: jax.Array,
  *,
  of: int | None = None,
  max_swaps: int = 1000,
  all_pairs: bool = True,
) -> jax.Array:
  """Improve a mask by swaps.

  Args:
    w_IO: dense kernel [I, O], any float dtype.
    mask_IO: bool [I, O], True = keep; any mask.
    gram_II: Gram of the inputs under any positive scale, [I, I].
    of: swap only inside groups of this many neighbouring inputs, the m of
      n:m; None for the whole output. Must divide I. Inside groups all pairs
      are few and are always searched.
    max_swaps: most swaps per output.
    all_pairs: False stops when the cheap search of the whole output finds
      nothing more.

  Returns:
    bool [I, O] with the same count in every output (and group).

  Raises:
    ValueError: `of` does not divide I.
  """
  inputs = w_IO.shape[0]
  size = inputs if of is None else of
  if size < 1 or inputs % size:
    raise ValueError(
      f"groups of {size} do not divide {inputs} inputs; use a divisor"
    )
  gram_II = gram_II.astype(jnp.float32)
  w_IO = w_IO.astype(jnp.float32)

  def errors(mask_IO):
    return reconstruction.output_errors(jnp.where(mask_IO, 0.0, w_IO), gram_II)

  before_O = errors(mask_IO)
  g_IO = reconstruction.product(gram_II, jnp.where(mask_IO, 0.0, w_IO))
  # The zeros are computed from the data, so that shard_map sees them split over
  # the same devices.
  swaps_O = (before_O < 0).astype(jnp.int32)
  state = (w_IO.T, mask_IO.T, g_IO.T, swaps_O)
  noise_O = _NOISE * before_O
  if of is None:
    pair = functools.partial(_likely_pair, gram_II=gram_II)
    search = functools.partial(_search, pair, gram_II, max_swaps)
    state = (state[0], *jax.vmap(search)(*state, noise_O))
  if of is not None or all_pairs:
    places_UM = rearrange(jnp.arange(inputs), "(U M) -> U M", M=size)
    block_UMM = gram_II[places_UM[:, :, None], places_UM[:, None, :]]
    pair = functools.partial(_best_pair, block_UMM=block_UMM)
    search = functools.partial(_search, pair, gram_II, max_swaps)
    state = (
      state[0],
      *jax.lax.map(
        lambda args: search(*args),
        (*state, noise_O),
        batch_size=max(1, min(w_IO.shape[1], _PAIRS // (inputs * size))),
      ),
    )
  better_IO = state[1].T
  kept_O = errors(better_IO) < before_O
  return jnp.where(kept_O[None, :], better_IO, mask_IO)


def sparse_swaps(
  w_IO: jax.Array,
  statistics: Gram,
  pattern: Pattern,
  *,
  mask_IO: jax.Array | None = None,
  max_swaps: int = 1000,
  all_pairs: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """Prune, then swap until the layer error falls no further.

  Args:
    w_IO: kernel [I, O].
    statistics: Gram of the inputs.
    pattern: of the first mask; n:m swaps stay inside their groups, all other
      patterns keep the counts per output that the first mask has.
    mask_IO: the first mask, True = keep, of that pattern; None for Wanda's,
      from the diagonal of the Gram.
    max_swaps: most swaps per output.
    all_pairs: False stops when the cheap search of the whole output finds
      nothing more.

  Returns:
    The kernel with zeros, [I, O], all nan where errors may overflow; and the
    mask, bool [I, O], True = keep.

  Raises:
    ValueError: an unknown group, a kernel that is no matrix, or inputs that
      n:m does not divide.
  """
  gram_II = statistics.sum_outer
  scores_IO = wanda.wanda_scores(w_IO, statistics.squares)
  if mask_IO is None:
    mask_IO = keep_mask(scores_IO, pattern)
  mask_IO = refine(
    w_IO,
    mask_IO,
    gram_II,
    of=pattern.of if isinstance(pattern, NofM) else None,
    max_swaps=max_swaps,
    all_pairs=all_pairs,
  )
  new_IO = jnp.where(mask_IO, w_IO, 0).astype(w_IO.dtype)
  # By the Cauchy-Schwarz inequality no error of an output exceeds this.
  most_O = jnp.square(jnp.sum(scores_IO, axis=0)) * statistics.sequences
  return nan_unless(jnp.all(jnp.isfinite(most_O)), new_IO), mask_IO
