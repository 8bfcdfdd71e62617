"""Which answer option wins, by how much, and can pruning have changed it?

An option may have several spellings, whose probabilities are added. Spellings
must be distinct events: no token under two options, and no spelling of several
tokens that begins with another spelling.

Reference: He et al., arXiv:2603.24652, section 7 (Figure 8).
Differs from the reference in: options have all their spellings (the official
script takes the last sub-token of one lower-case spelling), log-probabilities
carry no epsilon, and the margin certificate is ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import divergences, log_ratio, spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionChange:
  """How the scores of C options changed.

  Attributes:
    scores, scores_pruned: log-probability of each option [C], nats, as it is.
    log_probs, log_probs_pruned: the same renormalised over the options [C].
    mass, mass_pruned: probability of all options together.
    inside: divergences of the renormalised options.
    choice, choice_pruned: index of the best option, the first of equals.
    flip: bool, whether the choice changed.
    margin: best dense score less the second, nats; inf for one option.
    max_pair_change: largest difference between two options' score changes.
    certified: bool, margin > max_pair_change (by more than rounding): then the
      choice cannot flip.
    rank, rank_pruned: 0 for the best option [C], int32; equals by index.
    discordant: number of option pairs whose order changed (Kendall), int32.
  """

  scores: jax.Array
  scores_pruned: jax.Array
  log_probs: jax.Array
  log_probs_pruned: jax.Array
  mass: jax.Array
  mass_pruned: jax.Array
  inside: divergences.Divergences
  choice: jax.Array
  choice_pruned: jax.Array
  flip: jax.Array
  margin: jax.Array
  max_pair_change: jax.Array
  certified: jax.Array
  rank: jax.Array
  rank_pruned: jax.Array
  discordant: jax.Array


def option_scores(
  spelling_scores: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
  """Adds the probabilities of each option's spellings.

  Args:
    spelling_scores: log-probability [C, U] of each spelling, nats; of several
      tokens, the sum over them.
    mask: bool [C, U], True = keep; a spelling with False is not there.

  Returns:
    Log-probability of each option [C]; -inf for one without a spelling.

  Raises:
    ValueError: shapes are not [C, U].
  """
  (scores_CU,) = spaces.widen(spelling_scores)
  mask_CU = checked_mask(scores_CU.shape, mask)
  scores_CU = jnp.where(mask_CU, scores_CU, -jnp.inf)
  return jax.nn.logsumexp(scores_CU, axis=1)


def compare_options(
  scores: ArrayLike, scores_pruned: ArrayLike
) -> OptionChange:
  """Compares dense and pruned option scores [C], in nats.

  Scores may be log-probabilities of one token or of several: give the output
  of `option_scores`, or any log-likelihoods (`mass` then loses its meaning).

  Args:
    scores: dense scores [C], nats; -inf for an option without a spelling.
    scores_pruned: pruned scores [C], nats.

  Returns:
    The change of the scores, of the renormalised options and of their order.

  Raises:
    ValueError: shapes differ or are not one-dimensional.
  """
  s_C, sq_C = spaces.checked_pair(scores, scores_pruned)
  change_C = spaces.logit_change(s_C, sq_C)
  log_p_C, log_mass = log_ratio.log_softmax(s_C)
  log_q_C, log_mass_pruned = log_ratio.log_softmax(sq_C)
  dense = divergences.concentration(s_C)
  pruned = divergences.concentration(sq_C)
  absent_C = (s_C == -jnp.inf) & (sq_C == -jnp.inf)
  high = jnp.max(jnp.where(absent_C, -jnp.inf, change_C))
  low = jnp.min(jnp.where(absent_C, jnp.inf, change_C))
  spread = jnp.where(high == low, 0, high - low)
  # Margin and spread are rounded. The slack covers that, so that the
  # certificate never claims too much.
  sizes_C = jnp.where(absent_C, 0, jnp.abs(s_C) + jnp.abs(sq_C))
  slack = 4 * jnp.finfo(s_C.dtype).eps * jnp.max(sizes_C)
  rank_C, rank_pruned_C = _rank(s_C), _rank(sq_C)
  swapped_CC = (rank_C[:, None] < rank_C[None]) & (
    rank_pruned_C[:, None] > rank_pruned_C[None]
  )
  return OptionChange(
    scores=s_C,
    scores_pruned=sq_C,
    log_probs=log_p_C,
    log_probs_pruned=log_q_C,
    mass=jnp.exp(log_mass),
    mass_pruned=jnp.exp(log_mass_pruned),
    inside=divergences.compare_distributions(s_C, sq_C),
    choice=dense.token,
    choice_pruned=pruned.token,
    flip=dense.token != pruned.token,
    margin=dense.margin,
    max_pair_change=spread,
    certified=dense.margin > spread + slack,
    rank=rank_C,
    rank_pruned=rank_pruned_C,
    discordant=jnp.sum(swapped_CC, dtype=jnp.int32),
  )


def checked_mask(shape: tuple[int, ...], mask: ArrayLike | None) -> jax.Array:
  """Returns a bool [C, U] that says which spellings exist.

  Args:
    shape: of the spellings.
    mask: bool [C, U], True = keep; None keeps all.

  Raises:
    ValueError: a shape that is not [C, U], or a mask of another shape.
  """
  mask_CU = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask)
  if len(shape) != 2 or mask_CU.shape != tuple(shape):
    raise ValueError(
      f"spellings of shape {tuple(shape)}, mask of shape {mask_CU.shape}:"
      " give [C, U] for both"
    )
  return mask_CU


def _rank(scores_C) -> jax.Array:
  """Returns 0 for the largest; equals in order of their index."""
  order_C = jnp.argsort(-scores_C, stable=True)
  return jnp.argsort(order_C).astype(jnp.int32)
