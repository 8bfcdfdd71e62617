"""By which log-ratio does q differ from p? Accurate when they nearly agree.

Changing logits from z to z + dz turns p = softmax(z / T) into
q_i = p_i e^x_i / E_p[e^x] with x = dz / T, so D = log q - log p is
x - log E_p[e^x]. The difference of two log-softmaxes loses every digit of a
small D; x and the log mean log E_p[e^x], each by itself, do not.

A float32 estimate m of the log mean suffices to begin with. With y = x - m,
E_p[e^y] - 1 would be 0 if m were exact; log1p of that sum is therefore the
error of m, and the same sum corrects D and q - p. The terms e^y - 1 are
computed once for every token.

Reference: He et al., arXiv:2603.24652, equations 18-22 (exact steps of its
Theorem 3).
Differs from the reference in: it takes logarithms of rounded probabilities
plus an epsilon.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogRatio:
  """The distributions p and q of one position, and q relative to p.

  Attributes:
    log_p: log-probabilities [V], nats.
    log_q: log-probabilities [V], nats.
    p: probabilities [V].
    q: probabilities [V].
    log_ratio: D = log q - log p [V], accurate when tiny; 0 where both are
      masked.
    change: q - p [V], accurate when tiny.
    log_mean: scalar log E_p[e^x], nats, of the x that was given.
  """

  log_p: jax.Array
  log_q: jax.Array
  p: jax.Array
  q: jax.Array
  log_ratio: jax.Array
  change: jax.Array
  log_mean: jax.Array


def log_softmax(
  z: ArrayLike, temperature: ArrayLike = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Returns log softmax(z / T) [V] and the log normaliser, in nats.

  Args:
    z: logits [V]; -inf masks a token.
    temperature: T > 0.
  """
  log_p_V, _, log_normaliser = distribution(z, temperature)
  return log_p_V, log_normaliser


def softmax(z: ArrayLike, temperature: ArrayLike = 1.0) -> jax.Array:
  """Returns softmax(z / T) [V]; NaN where `log_softmax` is.

  Args:
    z: logits [V]; -inf masks a token.
    temperature: T > 0.
  """
  return distribution(z, temperature)[1]


def distribution(
  z: ArrayLike, temperature: ArrayLike = 1.0
) -> tuple[jax.Array, ...]:
  """Computes the softmax of z / T and its logarithm.

  The largest term, which is 1, is left out of the sum; log1p of the rest then
  keeps the tiny -log p of a confident distribution. The largest logit is
  subtracted before the division by T, because the division would round large
  logits.

  Args:
    z: logits [V]; -inf masks a token.
    temperature: T > 0.

  Returns:
    (log p [V], p [V], log normaliser, a scalar), nats; NaN where the largest
    logit is NaN or infinite.
  """
  (z_V,) = spaces.widen(z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  top = spaces.top_token(z_V)
  is_top_V = jnp.arange(z_V.size) == top
  # The change of the top token is set to 0 explicitly: a compiler that fuses
  # the computation of z into this difference may leave the rounding error of z
  # there.
  below_V = jnp.where(is_top_V, 0, z_V - z_V[top]) / temperature
  share_V = jnp.exp(below_V)
  # 0 * z is 0 for a finite top logit and NaN otherwise: logits whose largest
  # is inf, NaN or -inf have no distribution.
  others = jnp.sum(jnp.where(is_top_V, 0 * z_V[top], share_V))
  log_sum = jnp.log1p(others)
  return (
    below_V - log_sum,
    share_V * jnp.exp(-log_sum),
    z_V[top] / temperature + log_sum,
  )


def bounded(x: ArrayLike) -> jax.Array:
  """Returns x [V] with the largest numbers for inf and -inf."""
  largest = jnp.finfo(x.dtype).max
  return jnp.where(jnp.isinf(x), jnp.where(x > 0, largest, -largest), x)


def scaled_change(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Splits (z_pruned - z) / T into x [V] and a scalar offset.

  The offset is the change of the dense top-1 token (0 if the pruned side masks
  it). A constant change of all logits, which softmax does not see, is then
  removed before anything is summed, and a confident distribution has x = 0
  where its mass is.

  Args:
    z: dense logits [V]; -inf masks a token.
    z_pruned: pruned logits [V].
    temperature: T > 0.

  Returns:
    (x, offset) with (z_pruned - z) / T = x + offset; x is 0 for a token that
    is masked on both sides.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  dz_V = spaces.logit_change(z_V, zq_V)
  top = spaces.top_token(z_V)
  lost = dz_V[top] == -jnp.inf
  offset = jnp.where(lost, 0, dz_V[top])
  # Set to 0 explicitly, as the fused difference may leave the rounding error of
  # z: tokens without a change, and the token whose change is subtracted.
  still_V = (z_V == -jnp.inf) & (zq_V == -jnp.inf)
  still_V |= (jnp.arange(z_V.size) == top) & ~lost
  x_V = jnp.where(still_V, 0, dz_V - offset)
  return x_V / temperature, offset / temperature


def from_logits(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> LogRatio:
  """Compares p = softmax(z / T) with q = softmax(z_pruned / T).

  Args:
    z: dense logits [V]; -inf masks a token.
    z_pruned: pruned logits [V].
    temperature: T > 0.

  Returns:
    p, q and log(q / p); `log_mean` is that of x = (dz - dz[argmax z]) / T, see
    `scaled_change`.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  x_V, offset = scaled_change(z_V, zq_V, temperature)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  return from_change(z_V, zq_V, temperature, x_V, offset)


def from_change(
  z: ArrayLike,
  z_pruned: ArrayLike,
  temperature: ArrayLike,
  x: ArrayLike,
  offset: ArrayLike,
) -> LogRatio:
  """Compares p and q where the change x is known better than z_pruned - z.

  Args:
    z, z_pruned: logits [V]; -inf masks.
    temperature: T > 0.
    x: [V], (z_pruned - z) / T - offset with full relative accuracy, infinite
      where one side is masked. Not read where both are.
    offset: scalar.

  Returns:
    p, q and log(q / p); `log_mean` is that of the given x.
  """
  log_p_V, p_V, log_sum = distribution(z, temperature)
  log_q_V, q_V, log_sum_pruned = distribution(z_pruned, temperature)
  masked_V = (z == -jnp.inf) & (z_pruned == -jnp.inf)
  x_V = jnp.where(masked_V, 0, x)
  # The difference of two normalisers has the absolute rounding error of the
  # logits.
  rough = log_sum_pruned - log_sum - offset
  # A small log mean is close to the mean of x, whose error is relative to
  # itself.
  mean = jnp.sum(p_V * bounded(x_V))
  small = (jnp.abs(rough) < 0.5) & (jnp.abs(mean) < 1)
  mean = jnp.where(small, mean, rough)
  # E_p[e^y] - 1. Where e^y is large the term is taken from q, which is p e^y
  # up to a constant factor.
  y_V = x_V - mean
  up_V = y_V > 0
  fall_V = jnp.expm1(jnp.where(up_V, -y_V, y_V))
  factor = jnp.where(up_V, -jnp.exp(rough - mean), 1)
  rise = jnp.sum(factor * jnp.where(up_V, q_V, p_V) * fall_V)
  log_mean = jnp.log1p(rise)
  # e^-|D| - 1 follows from e^-|y| - 1 and the correction of the log mean.
  shift_V = jnp.where(up_V, jnp.expm1(log_mean), jnp.expm1(-log_mean))
  fall_V += shift_V * (1 + fall_V)
  return LogRatio(
    log_p=log_p_V,
    log_q=log_q_V,
    p=p_V,
    q=q_V,
    log_ratio=jnp.where(masked_V, 0, y_V - log_mean),
    change=jnp.where(up_V, -q_V, p_V) * fall_V,
    log_mean=mean + log_mean,
  )
