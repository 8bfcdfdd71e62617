"""How far apart are two next-token distributions p and q? Probabilities p.

Pruning changes most distributions by very little, and a few by very much, so
each number here is accurate at both ends. All of them are sums of
non-negative terms in the log-ratio D = log q - log p of one token:

  KL(p||q) = E_p[e^D - 1 - D]            TV = E_m[|tanh(D/2)|]
  JS       = E_m[(D/2) tanh(D/2) - log cosh(D/2)],    m = (p + q) / 2,

and 1 - cos(p, q) is half the squared length of q / |q| - p / |p|, where q - p
and |q| - |p| = sum (q - p)(q + p) / (|q| + |p|) are known as well as D. An
error in the normaliser of D enters them (TV apart) only squared.

Reference: He et al., arXiv:2603.24652, equations 8-27. The sums of
non-negative terms are f-divergences, as in Csiszar (1967).
Differs from the reference in: KL is KL(dense || pruned), from log-softmax and
without an epsilon inside the logarithm; the official transition script
computes KL(pruned || dense) in one of its modes.

Masked tokens have logit -inf. Masked on both sides, a token is as if it were
not in the vocabulary. Masked by the pruned side only, KL(p||q) is inf; by the
dense side only, KL(q||p) is; everything else stays finite and exact. A +inf
or NaN logit, or a vocabulary masked whole, gives NaN.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import log_ratio as log_ratio_lib
from jaxprune.probes import spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergences:
  """Distances of a pruned distribution q from the dense p; all scalars.

  Attributes:
    cos_p: cosine of p and q in [0, 1]; exactly 1 for equal logits.
    one_minus_cos_p: in [0, 1], accurate when tiny; exactly 0 for equal logits.
    kl: KL(p||q), nats, >= 0.
    kl_reverse: KL(q||p), nats, >= 0.
    jeffreys: kl + kl_reverse, nats.
    js: Jensen-Shannon divergence, nats, in [0, log 2].
    tv: total variation sum |p - q| / 2, in [0, 1].
  """

  cos_p: jax.Array
  one_minus_cos_p: jax.Array
  kl: jax.Array
  kl_reverse: jax.Array
  jeffreys: jax.Array
  js: jax.Array
  tv: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Concentration:
  """How peaked one distribution is; all scalars.

  Attributes:
    token: the id of the largest logit; the lowest id among equals.
    margin: largest logit less the second largest, in logits (not divided by
      T); inf when only one token is not masked.
    entropy: nats.
    support: exp(entropy), in tokens.
    participation: 1 / sum p^2, in tokens.
  """

  token: jax.Array
  margin: jax.Array
  entropy: jax.Array
  support: jax.Array
  participation: jax.Array


def compare_distributions(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> Divergences:
  """Compares p = softmax(z / T) with q = softmax(z_pruned / T).

  Args:
    z, z_pruned: logits [V] of one position; -inf masks a token.
    temperature: T > 0, a number or a scalar array.

  Returns:
    Cosine, KL in both directions, Jensen-Shannon and total variation.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  pair = log_ratio_lib.from_logits(z_V, zq_V, temperature)
  kl, kl_reverse = kl_of(pair)
  cos_p, one_minus_cos_p = _cosine(pair)
  # The caps remove the excess in the last digit by which p or q may sum to more
  # than 1.
  return Divergences(
    cos_p=cos_p,
    one_minus_cos_p=one_minus_cos_p,
    kl=kl,
    kl_reverse=kl_reverse,
    jeffreys=kl + kl_reverse,
    js=jnp.minimum(_js(pair), math.log(2)),
    tv=jnp.minimum(jnp.sum(jnp.abs(pair.change)) / 2, 1),
  )


def kl_of(pair: log_ratio_lib.LogRatio) -> tuple[jax.Array, jax.Array]:
  """Returns KL(p||q) and KL(q||p) in nats, both >= 0, of one position."""
  forward_V = kl_terms(pair.p, pair.q, pair.log_ratio)
  # The terms of both directions add up to (q - p) D. Where D is large, the
  # reverse term is taken from its definition q D - (q - p).
  small_V = jnp.abs(pair.log_ratio) < 1
  far_V = _times_log(pair.q, pair.log_ratio) - pair.change
  near_V = pair.change * jnp.where(small_V, pair.log_ratio, 0) - forward_V
  reverse_V = jnp.where(small_V, near_V, far_V)
  return jnp.sum(forward_V), jnp.sum(reverse_V)


def kl_terms(p: ArrayLike, q: ArrayLike, log_ratio: ArrayLike) -> jax.Array:
  """Computes p (e^D - 1 - D) entry by entry; the sum of all is KL(p||q).

  Args:
    p: probabilities, any shape.
    q: probabilities of that shape.
    log_ratio: D = log(q / p) of that shape, nats.

  Returns:
    Terms >= 0 of that shape, nats, with full relative accuracy.
  """
  small = jnp.abs(log_ratio) < 1
  ratio = jnp.where(small, log_ratio, 0)
  # e^D - 1 - D = D^2 (1/2! + D/3! + ...), exact to the last digit of the type
  # for |D| < 1.
  terms = 18 if ratio.dtype == jnp.float64 else 11
  series = jnp.zeros_like(ratio)
  for n in range(terms, 1, -1):
    series = 1 / math.factorial(n) + series * ratio
  return jnp.where(
    small, p * series * ratio * ratio, q - p - _times_log(p, log_ratio)
  )


def concentration(z: ArrayLike, temperature: ArrayLike = 1.0) -> Concentration:
  """Describes how peaked p = softmax(z / T) is.

  Args:
    z: logits [V]; -inf masks a token.
    temperature: T > 0.

  Returns:
    The top token, its margin, and the entropy and width of p.

  Raises:
    ValueError: z is not one-dimensional, or T <= 0.
  """
  z_V, _ = spaces.checked_pair(z, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  log_p_V, p_V, _ = log_ratio_lib.distribution(z_V, temperature)
  token = spaces.top_token(z_V)
  others_V = jnp.where(jnp.arange(z_V.size) == token, -jnp.inf, z_V)
  entropy = -jnp.sum(p_V * jnp.where(p_V > 0, log_p_V, 0))
  return Concentration(
    token=token,
    margin=z_V[token] - jnp.max(others_V),
    entropy=entropy,
    support=jnp.exp(entropy),
    participation=1 / jnp.sum(p_V * p_V),
  )


def _times_log(weight, log_ratio) -> jax.Array:
  """Returns weight * D with 0 log 0 = 0, also where D is infinite."""
  some = weight > 0
  return jnp.where(some, weight * jnp.where(some, log_ratio, 0), 0)


def _js(pair: log_ratio_lib.LogRatio) -> jax.Array:
  """Returns the sum of m (a tanh a - log cosh a) >= 0 with a = |D| / 2.

  By t = tanh a and by w = min(p, q) / (p + q) a term is m times

    a t + log(1 - t^2) / 2 = log 2 - |D| w + log(1 - w);

  the left side loses no digit near 0, the right one is right far from it.
  """
  both_V = pair.p + pair.q
  share_V = 1 / jnp.where(both_V == 0, 1, both_V)
  t_V = jnp.abs(pair.change) * share_V
  w_V = jnp.minimum(pair.p, pair.q) * share_V
  near_V = t_V < 0.5
  # 80 stands for infinity here: e^-80 is below the last digit of both float
  # types.
  size_V = jnp.minimum(jnp.abs(pair.log_ratio), 80)
  plain_V = jnp.where(near_V, size_V * t_V / 2, math.log(2) - size_V * w_V)
  log_V = jnp.log1p(-jnp.where(near_V, t_V * t_V, w_V))
  # Two sums instead of one: a CPU takes half as long if the sum with the
  # logarithm holds nothing else.
  return jnp.sum(both_V / 2 * plain_V) + jnp.sum(
    both_V * jnp.where(near_V, 0.25, 0.5) * log_V
  )


def _cosine(pair: log_ratio_lib.LogRatio) -> tuple[jax.Array, jax.Array]:
  """Returns cos(p, q) and 1 - cos(p, q)."""
  p_V, q_V, change_V = pair.p, pair.q, pair.change
  square, square_pruned = jnp.sum(p_V * p_V), jnp.sum(q_V * q_V)
  norm, norm_pruned = jnp.sqrt(square), jnp.sqrt(square_pruned)
  gained = jnp.sum(change_V * (p_V + q_V))
  stretch = jnp.where(
    jnp.abs(gained) < square / 2,
    gained / (norm_pruned + norm),
    norm_pruned - norm,
  )
  # This is q / |q| - p / |p|.
  moved_V = (change_V - stretch / norm * p_V) / norm_pruned
  one_minus_cos = jnp.minimum(jnp.sum(moved_V * moved_V) / 2, 1)
  cos = jnp.sum(p_V * q_V) / (norm * norm_pruned)
  near = cos > 0.5
  return (
    jnp.where(near, 1 - one_minus_cos, cos),
    jnp.where(near, one_minus_cos, 1 - cos),
  )
