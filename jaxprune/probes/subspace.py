"""Do the option tokens move less than the rest of the vocabulary?

Multiple choice reads only the answer options C out of V tokens. The KL of the
whole vocabulary splits by the chain rule

  KL = KL(mass) + p(C) KL_C + p(not C) KL_notC,

and beside the options stand random token sets of the same size and about the
same mass, because options may be stable for being options or merely for being
few and rare.

Reference: He et al., arXiv:2603.24652, section 7 (Figure 8).
Differs from the reference in: it compares the renormalised options with a
handful of top tokens; here the parts of one sum are compared.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune.probes import divergences, spaces
from jaxprune.probes import log_ratio as log_ratio_lib
from jaxprune.probes import options as scoring


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainRule:
  """KL(p||q) split over a token set C and the rest; scalars, KLs in nats.

  kl = kl_mass + mass * kl_inside + mass_outside * kl_outside.

  Attributes:
    kl: of the whole vocabulary.
    kl_mass: of the two-valued variable "in C or not".
    kl_inside: of p and q renormalised within C; 0 if C is empty.
    kl_outside: the same outside C; 0 if C is everything.
    mass, mass_pruned: p(C) and q(C).
    mass_outside: 1 - p(C), accurate when tiny.
  """

  kl: jax.Array
  kl_mass: jax.Array
  kl_inside: jax.Array
  kl_outside: jax.Array
  mass: jax.Array
  mass_pruned: jax.Array
  mass_outside: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Subspace:
  """One token set against the whole vocabulary.

  Attributes:
    options: change of the option scores (spellings added).
    chain: KL of the whole vocabulary, split by the tokens of all options.
    whole: divergences of the whole vocabulary.
  """

  options: scoring.OptionChange
  chain: ChainRule
  whole: divergences.Divergences


def chain_rule(
  z: ArrayLike,
  z_pruned: ArrayLike,
  member: ArrayLike,
  temperature: ArrayLike = 1.0,
) -> ChainRule:
  """Splits KL(p||q) of one position by the token set `member`.

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    member: bool [V], True for a token of C.
    temperature: T > 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  if jnp.shape(member) != z_V.shape:
    raise ValueError(
      f"member has shape {jnp.shape(member)}, the logits {z_V.shape}"
    )
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  x_V, offset = log_ratio_lib.scaled_change(z_V, zq_V, temperature)
  whole = log_ratio_lib.from_change(z_V, zq_V, temperature, x_V, offset)

  def part(keep_V):
    """KL within a set, and p, q and p (e^D - 1 - D) of the whole set."""
    log_p = jax.nn.logsumexp(jnp.where(keep_V, whole.log_p, -jnp.inf))
    log_q = jax.nn.logsumexp(jnp.where(keep_V, whole.log_q, -jnp.inf))
    # A set without mass on one side cannot be renormalised there.
    alive = (log_p > -jnp.inf) & (log_q > -jnp.inf)
    keep_V |= ~alive
    inner_V = jnp.where(keep_V, z_V, -jnp.inf)
    # The change of the set's own top token is subtracted, so that a set of one
    # token has no change.
    start = x_V[spaces.top_token(inner_V)]
    start = jnp.where(jnp.isinf(start), 0, start)
    inside = log_ratio_lib.from_change(
      inner_V,
      jnp.where(keep_V, zq_V, -jnp.inf),
      temperature,
      x_V - start,
      offset + start,
    )
    # log of q(C) / p(C), by difference of two accurate log means.
    gain = inside.log_mean + start - whole.log_mean
    log_ratio = jnp.where(alive, gain, log_q - log_p)
    empty = (log_p == -jnp.inf) & (log_q == -jnp.inf)
    log_ratio = jnp.where(empty, 0, log_ratio)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    kl = jnp.where(alive, divergences.kl_of(inside)[0], 0)
    return kl, p, q, divergences.kl_terms(p, q, log_ratio)

  kl_inside, mass, mass_pruned, term_inside = part(jnp.asarray(member))
  kl_outside, mass_outside, _, term_outside = part(~jnp.asarray(member))
  return ChainRule(
    kl=divergences.kl_of(whole)[0],
    kl_mass=term_inside + term_outside,
    kl_inside=kl_inside,
    kl_outside=kl_outside,
    mass=mass,
    mass_pruned=mass_pruned,
    mass_outside=mass_outside,
  )


def compare_tokens(
  z: ArrayLike,
  z_pruned: ArrayLike,
  options: ArrayLike,
  temperature: ArrayLike = 1.0,
  mask: ArrayLike | None = None,
) -> Subspace:
  """Compares options of one token each with the whole vocabulary.

  Args:
    z, z_pruned: logits [V] of one position; -inf masks a token.
    options: token ids [C, U], U spellings for each of C options.
    temperature: T > 0.
    mask: bool [C, U], True = keep; fill unused places with any id.

  Returns:
    The change of the options, the chain rule of KL, and the whole vocabulary.

  Raises:
    ValueError: shapes do not fit, T <= 0; an id is out of range or appears
      twice (checked when the ids are not traced).
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  mask_CU = scoring.checked_mask(jnp.shape(options), mask)
  _check_tokens(options, mask, z_V.size)
  whole = log_ratio_lib.from_logits(z_V, zq_V, temperature)
  tokens_CU = jnp.asarray(options)
  # The id one past the end marks an unused place; it is dropped.
  kept_CU = jnp.where(mask_CU, tokens_CU, z_V.size)
  member_V = jnp.zeros(z_V.shape, bool).at[kept_CU].set(True, mode="drop")
  return Subspace(
    options=scoring.compare_options(
      scoring.option_scores(whole.log_p[tokens_CU], mask_CU),
      scoring.option_scores(whole.log_q[tokens_CU], mask_CU),
    ),
    chain=chain_rule(z_V, zq_V, member_V, temperature),
    whole=divergences.compare_distributions(z_V, zq_V, temperature),
  )


def matched_tokens(
  key: jax.Array,
  z: ArrayLike,
  tokens: ArrayLike,
  temperature: ArrayLike = 1.0,
  *,
  scale: float = 0.1,
) -> jax.Array:
  """Draws for each token another of about the same dense probability.

  Draws are without replacement and avoid all of `tokens`. A candidate's
  chance falls by e for each `scale` nats between its log-probability and the
  token's; a token more likely than all others gets the nearest there is, so
  report the mass that came out.

  Args:
    key: `jax.random.key`.
    z: dense logits [V].
    tokens: ids, any shape; at most V / 2.
    temperature: T > 0.
    scale: nats.

  Returns:
    Ids of the shape of `tokens`.

  Raises:
    ValueError: more than V / 2 tokens.
  """
  z_V, _ = spaces.checked_pair(z, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  tokens = jnp.asarray(tokens)
  if 2 * tokens.size > z_V.size:
    raise ValueError(
      f"{tokens.size} tokens of {z_V.size}: at most half can be matched"
    )
  log_p_V, _ = log_ratio_lib.log_softmax(z_V, temperature)
  possible_V = log_p_V > -jnp.inf
  lowest = jnp.min(jnp.where(possible_V, log_p_V, jnp.inf))
  free_V = possible_V.at[tokens.ravel()].set(False)

  def draw(free_V, step):
    key, token = step
    target = jnp.maximum(log_p_V[token], lowest)
    noise_V = jax.random.gumbel(key, z_V.shape, z_V.dtype)
    chance_V = noise_V - jnp.abs(log_p_V - target) / scale
    choice = jnp.argmax(jnp.where(free_V, chance_V, -jnp.inf))
    return free_V.at[choice].set(False), choice

  keys = jax.random.split(key, tokens.size)
  _, choices = jax.lax.scan(draw, free_V, (keys, tokens.ravel()))
  return choices.reshape(tokens.shape)


def compare_matched(
  key: jax.Array,
  z: ArrayLike,
  z_pruned: ArrayLike,
  options: ArrayLike,
  count: int,
  temperature: ArrayLike = 1.0,
  mask: ArrayLike | None = None,
) -> Subspace:
  """Compares `count` random token sets that match the options' probabilities.

  Args:
    key: `jax.random.key` of the draws.
    z, z_pruned: logits [V] of one position; -inf masks a token.
    options: token ids [C, U], U spellings for each of C options.
    count: how many random sets.
    temperature: T > 0.
    mask: bool [C, U], True = keep.

  Returns:
    The change of the options, the chain rule of KL and the whole vocabulary,
    every field with a leading axis `count`.

  Raises:
    ValueError: shapes do not fit, T <= 0, more than V / 2 tokens, or an id
      that is out of range or appears twice.
  """
  mask_CU = scoring.checked_mask(jnp.shape(options), mask)
  _check_tokens(options, mask, jnp.size(z))

  def compare_draw(key):
    tokens_CU = matched_tokens(key, z, options, temperature)
    return compare_tokens(z, z_pruned, tokens_CU, temperature, mask_CU)

  return jax.vmap(compare_draw)(jax.random.split(key, count))


def _check_tokens(options, mask, vocab_size: int):
  """Refuses ids that do not exist or stand for two options."""
  if isinstance(options, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
    return
  tokens_CU = np.asarray(options)
  kept = tokens_CU.ravel() if mask is None else tokens_CU[np.asarray(mask)]
  wrong = kept[(kept < 0) | (kept >= vocab_size)]
  if wrong.size:
    raise ValueError(
      f"token id {wrong[0]} is not in a vocabulary of {vocab_size}"
    )
  ids, counts = np.unique(kept, return_counts=True)
  if (counts > 1).any():
    raise ValueError(
      f"token id {ids[counts > 1][0]} is given twice: its probability would"
      " count twice"
    )
