"""By which log-ratio does q differ from p? Accurate when they nearly agree.

Changing logits from z to z + dz tilts p = softmax(z / T) into
q_i = p_i e^x_i / E_p[e^x] with x = dz / T, so D = log q - log p is
x - log E_p[e^x]. The difference of two log-softmaxes loses every digit of a
small D; x and the log mean, each by itself, do not.

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
    log_ratio: log q - log p [V], accurate when tiny; 0 where both are 0.
    log_mean: scalar log E_p[e^x], nats, x as it was given.
  """

  log_p: jax.Array
  log_q: jax.Array
  log_ratio: jax.Array
  log_mean: jax.Array


def log_softmax(z, temperature=1.0) -> tuple[jax.Array, jax.Array]:
  """Returns log softmax(z / T) [V] and the log normaliser, in nats.

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
  others = jnp.sum(jnp.where(is_top_V, 0, jnp.exp(below_V)))
  # A top of inf, NaN or -inf is no distribution.
  log_sum = jnp.log1p(others) + jnp.where(jnp.isfinite(z_V[top]), 0, jnp.nan)
  return below_V - log_sum, z_V[top] / temperature + log_sum


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
    x: [V], (z_pruned - z) / T - offset with full relative accuracy. Read only
      where neither side is masked.
    offset: scalar.
  """
  log_p_V, log_normaliser = log_softmax(z, temperature)
  log_q_V, _ = log_softmax(z_pruned, temperature)
  common_V = (z != -jnp.inf) & (z_pruned != -jnp.inf)
  x_V = jnp.where(common_V, x, 0)
  p_V = jnp.exp(log_p_V)
  mean = jnp.sum(jnp.where(common_V, p_V * x_V, 0))
  y_V = x_V - mean
  # log of p e^y. A token that only the dense side masks has p = 0 but adds to
  # the mean all the same, by its pruned logit.
  won_V = z_pruned / temperature - offset - mean - log_normaliser
  tilted_V = jnp.where(common_V, log_p_V + y_V, won_V)
  _, log_mean = log_softmax(tilted_V)
  # The sum above is right to a rounding error of 1, not of y. Where the
  # result is small, sum p (e^y - 1) instead, by expm1 wherever y is small.
  near = jnp.abs(log_mean) < 0.5
  small_V = common_V & (y_V < 1)
  rise_V = jnp.where(
      small_V,
      p_V * jnp.expm1(jnp.where(small_V, y_V, 0)),
      jnp.exp(jnp.minimum(tilted_V, 1)) - p_V,
  )
  rise = jnp.where(near, jnp.sum(rise_V), 0)
  log_mean = jnp.where(near, jnp.log1p(rise), log_mean)
  no_mass_V = (log_p_V == -jnp.inf) & (log_q_V == -jnp.inf)
  one_sided_V = jnp.where(no_mass_V, 0, log_q_V) - jnp.where(
      no_mass_V, 0, log_p_V
  )
  return Tilt(
      log_p=log_p_V,
      log_q=log_q_V,
      log_ratio=jnp.where(common_V, y_V - log_mean, one_sided_V),
      log_mean=mean + log_mean,
  )
