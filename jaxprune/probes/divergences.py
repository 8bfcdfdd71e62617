"""How far apart are two next-token distributions p and q? Probabilities p.

Pruning changes most distributions by very little, and a few by very much, so
each number here is accurate at both ends. All of them are sums of
non-negative terms in the log-ratio D = log q - log p of one token:

  KL(p||q) = E_p[e^D - 1 - D]            TV = E_m[|tanh(D/2)|]
  JS       = E_m[(D/2) tanh(D/2) - log cosh(D/2)],    m = (p + q) / 2,

and since cos(p, q) = sum_i sqrt(r_i s_i), where r and s are the same logits at
half the temperature, 1 - cos(p, q) = E_m[1 - sech(D/2)] of r and s. An error
in the normaliser of D enters them (TV apart) only squared.

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

from jaxprune.probes import spaces, tilt


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


def compare_distributions(z, z_pruned, temperature=1.0) -> Divergences:
  """Compares p = softmax(z / T) with q = softmax(z_pruned / T).

  Args:
    z, z_pruned: logits [V] of one position; -inf masks a token.
    temperature: T > 0, a number or a scalar array.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  x_V, offset = tilt.scaled_change(z_V, zq_V, temperature)
  full = tilt.tilt_by(z_V, zq_V, temperature, x_V, offset)
  sharp = tilt.tilt_by(z_V, zq_V, temperature / 2, 2 * x_V, 2 * offset)
  kl, kl_reverse = kl_of(full)
  mix_V, half_V = _mixture(full)
  js_V, tanh_V = _js_term(half_V)
  js = jnp.sum(mix_V * js_V)
  tv = jnp.sum(mix_V * tanh_V)
  cos_p, one_minus_cos_p = _cosine(sharp)
  # The caps undo a last-digit excess of the sum of m over 1.
  return Divergences(
      cos_p=cos_p,
      one_minus_cos_p=one_minus_cos_p,
      kl=kl,
      kl_reverse=kl_reverse,
      jeffreys=kl + kl_reverse,
      js=jnp.minimum(js, math.log(2)),
      tv=jnp.minimum(tv, 1),
  )


def kl_of(pair: tilt.Tilt) -> tuple[jax.Array, jax.Array]:
  """Returns KL(p||q) and KL(q||p) in nats, both >= 0."""
  p_V, q_V = jnp.exp(pair.log_p), jnp.exp(pair.log_q)
  forward_V = kl_terms(p_V, q_V, pair.log_ratio)
  reverse_V = kl_terms(q_V, p_V, -pair.log_ratio)
  return jnp.sum(forward_V), jnp.sum(reverse_V)


def kl_terms(p, q, log_ratio) -> jax.Array:
  """Returns p (e^D - 1 - D) >= 0 entry by entry, D = log(q / p)."""
  small = jnp.abs(log_ratio) < 1
  ratio = jnp.where(small, log_ratio, 0)
  # e^D - 1 - D = (D^2 / 2) (1 + D/3 (1 + D/4 (...))), exact to the last digit
  # of the type for |D| < 1. Times 1/n: a division costs as much as five.
  series = jnp.ones_like(ratio)
  for n in range(18 if ratio.dtype == jnp.float64 else 11, 2, -1):
    series = 1 + series * (ratio * (1 / n))
  # p D with 0 log 0 = 0, also where D is infinite.
  weighted = jnp.where(p > 0, p * jnp.where(p > 0, log_ratio, 0), 0)
  return jnp.where(small, p * series * ratio * ratio / 2, q - p - weighted)


def concentration(z, temperature=1.0) -> Concentration:
  """Describes how peaked p = softmax(z / T) is; z is [V], -inf masks.

  Raises:
    ValueError: z is not one-dimensional, or T <= 0.
  """
  z_V, _ = spaces.checked_pair(z, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  log_p_V, _ = tilt.log_softmax(z_V, temperature)
  p_V = jnp.exp(log_p_V)
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


def top_overlap(z, z_pruned, k: int) -> jax.Array:
  """Returns the share of the dense top-k tokens in the pruned top-k, [0, 1].

  Among equal logits the lowest id ranks first.

  Raises:
    ValueError: shapes differ or are not one-dimensional; k not in [1, V].
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  if not 1 <= k <= z_V.size:
    raise ValueError(f"k={k}: must be between 1 and V={z_V.size}")
  _, dense_k = jax.lax.top_k(z_V, k)
  _, pruned_k = jax.lax.top_k(zq_V, k)
  return jnp.mean(jnp.isin(dense_k, pruned_k), dtype=z_V.dtype)


def _mixture(pair: tilt.Tilt) -> tuple[jax.Array, jax.Array]:
  """Returns m = (p + q) / 2 and |log(q / p)| / 2."""
  mix_V = (jnp.exp(pair.log_p) + jnp.exp(pair.log_q)) / 2
  return mix_V, jnp.abs(pair.log_ratio) / 2


def _js_term(half) -> tuple[jax.Array, jax.Array]:
  """Returns a tanh a - log cosh a for a >= 0 (a^2 / 2 at 0), and tanh a.

  From one exponential s = e^a - 1: tanh a = s (s + 2) / (s^2 + 2 s + 2) and
  cosh a - 1 = s^2 / (2 (1 + s)).
  """
  # 40 is infinity here: e^-80 is below both float types' last digit, and e^80
  # still a number.
  a = jnp.minimum(half, 40)
  s = jnp.expm1(a)
  tanh = s * (s + 2) / (s * (s + 2) + 2)
  near = jnp.where(a < 1, s, 0)
  low = a * tanh - jnp.log1p(near * near / (2 * (1 + near)))
  u = 1 / jnp.square(1 + s)  # e^(-2 a)
  high = math.log(2) - jnp.log1p(u) - 2 * a * u / (1 + u)
  return jnp.where(a < 1, low, high), tanh


def _cosine(sharp: tilt.Tilt) -> tuple[jax.Array, jax.Array]:
  """Returns cos(p, q) and 1 - cos(p, q) from p and q at half temperature.

  log cos = LSE((2z + dz)/T) - LSE(2z/T)/2 - LSE(2(z + dz)/T)/2; the last two
  are the normalisers that are already in log_p and log_q here.
  """
  mix_V, half_V = _mixture(sharp)
  fallen_V = jnp.expm1(-half_V)
  fall_V = fallen_V**2 / (1 + jnp.square(1 + fallen_V))
  one_minus_cos = jnp.minimum(jnp.sum(mix_V * fall_V), 1)
  root_p_V, root_q_V = (
      jnp.sqrt(jnp.exp(log_V)) for log_V in (sharp.log_p, sharp.log_q))
  cos = jnp.sum(root_p_V * root_q_V)
  cos = jnp.where(one_minus_cos < 0.5, 1 - one_minus_cos, cos)
  return cos, one_minus_cos
