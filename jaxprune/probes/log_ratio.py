"""By which log-ratio does q differ from p? Accurate when they nearly agree.

Changing logits from z to z + dz tilts p = softmax(z / T) into
q_i = p_i e^x_i / E_p[e^x] with x = dz / T, so D = log q - log p is
x - log E_p[e^x]. The difference of two log-softmaxes loses every digit of a
small D; x and the log mean, each by itself, do not. A rough log mean, of which
e^(x - rough) - 1 is taken once for every token, is enough: what the sum over p
of these falls short of 0 is its error, by which the log mean, D and q - p are
put right.

Reference: He et al., arXiv:2603.24652, equations 18-22 (exact steps of its
Theorem 3).
Differs from the reference in: it takes logarithms of rounded probabilities
plus an epsilon.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.probes import spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tilt:
  """p, and the q that e^x makes of it.

  Attributes:
    log_p: log-probabilities [V], nats.
    log_q: log-probabilities [V], nats.
    p: probabilities [V].
    q: probabilities [V].
    log_ratio: D = log q - log p [V], accurate when tiny; 0 where both are
      masked.
    change: q - p [V], accurate when tiny.
    log_mean: scalar log E_p[e^x], nats, x as it was given.
  """

  log_p: jax.Array
  log_q: jax.Array
  p: jax.Array
  q: jax.Array
  log_ratio: jax.Array
  change: jax.Array
  log_mean: jax.Array


def log_softmax(z, temperature=1.0) -> tuple[jax.Array, jax.Array]:
  """Returns log softmax(z / T) [V] and the log normaliser, in nats."""
  log_p_V, _, log_normaliser = distribution(z, temperature)
  return log_p_V, log_normaliser


def softmax(z, temperature=1.0) -> jax.Array:
  """Returns softmax(z / T) [V]; NaN where `log_softmax` is."""
  return distribution(z, temperature)[1]


def distribution(z, temperature=1.0) -> tuple[jax.Array, ...]:
  """Returns log p and p = softmax(z / T) [V], and the log normaliser; nats.

  The largest term is left out of the sum, whose log1p then keeps the tiny
  -log p of a confident distribution. The difference to it is taken before the
  division, which would round large logits.
  """
  (z_V,) = spaces.widen(z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  top = spaces.top_token(z_V)
  is_top_V = jnp.arange(z_V.size) == top
  # Written out, 0 at the top stays 0: a compiler that fuses what came before
  # into this difference may leave the rounding of z there.
  below_V = jnp.where(is_top_V, 0, z_V - z_V[top]) / temperature
  share_V = jnp.exp(below_V)
  # A top of inf, NaN or -inf is no distribution: NaN, and else 0.
  others = jnp.sum(jnp.where(is_top_V, 0 * z_V[top], share_V))
  log_sum = jnp.log1p(others)
  return (
    below_V - log_sum,
    share_V * jnp.exp(-log_sum),
    z_V[top] / temperature + log_sum,
  )


def bounded(x) -> jax.Array:
  """Returns x [V] with the largest numbers for inf and -inf."""
  largest = jnp.finfo(x.dtype).max
  return jnp.where(jnp.isinf(x), jnp.where(x > 0, largest, -largest), x)


def scaled_change(z, z_pruned, temperature) -> tuple[jax.Array, jax.Array]:
  """Returns x [V] and a scalar c with (z_pruned - z) / T = x + c.

  c is the change of the dense top-1 token (0 if the pruned side masks it). A
  constant offset, to which softmax is blind, has then gone before anything is
  summed, and a confident distribution has x = 0 where its mass is. A token
  masked on both sides has x = 0 too.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  dz_V = spaces.logit_change(z_V, zq_V)
  top = spaces.top_token(z_V)
  lost = dz_V[top] == -jnp.inf
  offset = jnp.where(lost, 0, dz_V[top])
  # No change, or the one that is subtracted: 0 in so many words, as above.
  still_V = (z_V == -jnp.inf) & (zq_V == -jnp.inf)
  still_V |= (jnp.arange(z_V.size) == top) & ~lost
  x_V = jnp.where(still_V, 0, dz_V - offset)
  return x_V / temperature, offset / temperature


def tilt_logits(z, z_pruned, temperature=1.0) -> Tilt:
  """Returns p = softmax(z / T), q = softmax(z_pruned / T), and log(q / p).

  `log_mean` is of x = (dz - dz[argmax z]) / T; see `scaled_change`.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  x_V, offset = scaled_change(z_V, zq_V, temperature)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  return tilt_by(z_V, zq_V, temperature, x_V, offset)


def tilt_by(z, z_pruned, temperature, x, offset) -> Tilt:
  """Tilts softmax(z / T) [V] by x [V], known better than the difference.

  Args:
    z, z_pruned: logits [V]; -inf masks.
    temperature: T > 0.
    x: [V], (z_pruned - z) / T - offset with full relative accuracy, infinite
      where one side is masked. Not read where both are.
    offset: scalar.
  """
  log_p_V, p_V, log_sum = distribution(z, temperature)
  log_q_V, q_V, log_sum_pruned = distribution(z_pruned, temperature)
  masked_V = (z == -jnp.inf) & (z_pruned == -jnp.inf)
  x_V = jnp.where(masked_V, 0, x)
  # Right to a rounding error of the logits.
  rough = log_sum_pruned - log_sum - offset
  # A small one is nearly the mean of x, which is right to its own last digit.
  mean = jnp.sum(p_V * bounded(x_V))
  small = (jnp.abs(rough) < 0.5) & (jnp.abs(mean) < 1)
  mean = jnp.where(small, mean, rough)
  # E_p[e^y] - 1, by q where e^y is large: q = p e^y up to a constant factor.
  y_V = x_V - mean
  up_V = y_V > 0
  fall_V = jnp.expm1(jnp.where(up_V, -y_V, y_V))
  factor = jnp.where(up_V, -jnp.exp(rough - mean), 1)
  rise = jnp.sum(factor * jnp.where(up_V, q_V, p_V) * fall_V)
  log_mean = jnp.log1p(rise)
  # e^-|D| - 1 from e^-|y| - 1.
  shift_V = jnp.where(up_V, jnp.expm1(log_mean), jnp.expm1(-log_mean))
  fall_V += shift_V * (1 + fall_V)
  return Tilt(
    log_p=log_p_V,
    log_q=log_q_V,
    p=p_V,
    q=q_V,
    log_ratio=jnp.where(masked_V, 0, y_V - log_mean),
    change=jnp.where(up_V, -q_V, p_V) * fall_V,
    log_mean=mean + log_mean,
  )
