"""How well do the paper's local estimates predict what really happened?

With X = dz / T and r = softmax(2 z / T), the same logits at half temperature:

  Theorem 1   1 - cos(h, h + dh) ~ rho^2 / 2           (the same for z)
  Theorem 2   1 - cos(p, q)      ~ Var_r(X) / 2
  Theorem 3   KL(p||q)           ~ Var_p(X) / 2        (KL(q||p) as well)

Each function returns the estimate beside the exact value, the signed error
(0 where both are inf) and what says whether the estimate may be trusted. The
next order comes from the cumulant generating function K(t) = log E[e^tX] of
the same weights: KL(p||q) = K_p(1) - K_p'(0) gives k2/2 + k3/6, KL(q||p) =
K_p'(1) - K_p(1) gives k2/2 + k3/3, and -log cos(p, q) = K_r(2)/2 - K_r(1)
gives k2/2 + k3/2.

Reference: He et al., arXiv:2603.24652, Theorems 1-3 (equations 6-10, 44-62)
and their derivations; the third orders are ours.
Differs from the reference in: weights are always the dense side's, and the
exact value, the error and the next order stand beside each estimate.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.probes import divergences, log_ratio, logit_moments, spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Theorem1:
  """1 - cos(x, x + dx) against rho^2 / 2; scalars.

  Attributes:
    estimate: rho^2 / 2, the paper's.
    exact: 1 - cos.
    error: estimate - exact.
    corrected: rho^2 / (2 (1 + alpha)^2), which keeps the parallel part; inf
      when nothing is left along x.
    alpha: validity: the estimate is too high by about (1 + alpha)^2 when
      alpha > 0 and too low when alpha < 0.
    rho: validity: the estimate is of order rho^2, the truth at most 2.
  """

  estimate: jax.Array
  exact: jax.Array
  error: jax.Array
  corrected: jax.Array
  alpha: jax.Array
  rho: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Theorem2:
  """1 - cos(p, q) against Var_r(dz) / (2 T^2); scalars.

  Attributes:
    estimate: Var_r(dz) / (2 T^2), unbounded, while the truth is in [0, 1].
    exact: 1 - cos(p, q).
    error: estimate - exact.
    third_order: estimate + k3 / 2.
    third_cumulant: validity: k3 = E_r[(X - E_r X)^3]; the estimate is too high
      where it is negative.
    max_abs_x: validity: max |dz - E_r dz| / T over the vocabulary.
  """

  estimate: jax.Array
  exact: jax.Array
  error: jax.Array
  third_order: jax.Array
  third_cumulant: jax.Array
  max_abs_x: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Theorem3:
  """KL against Var_p(dz) / (2 T^2); scalars in nats.

  Attributes:
    estimate: Var_p(dz) / (2 T^2), of both directions.
    exact: KL(p||q), dense to pruned.
    exact_reverse: KL(q||p).
    error: estimate - exact.
    error_reverse: estimate - exact_reverse.
    third_order: estimate + k3 / 6, of KL(p||q).
    third_order_reverse: estimate + k3 / 3, of KL(q||p).
    bound: Hoeffding's (max X - min X)^2 / 8, which no direction exceeds.
    third_cumulant: validity: k3 = E_p[(X - E_p X)^3].
    max_abs_x: validity: max |dz - E_p dz| / T over the vocabulary.
  """

  estimate: jax.Array
  exact: jax.Array
  exact_reverse: jax.Array
  error: jax.Array
  error_reverse: jax.Array
  third_order: jax.Array
  third_order_reverse: jax.Array
  bound: jax.Array
  third_cumulant: jax.Array
  max_abs_x: jax.Array


def theorem_1(deviation: spaces.Deviation) -> Theorem1:
  """Checks Theorem 1 on a pair of vectors that `spaces` compared.

  Args:
    deviation: of h, of z, or of the centred z.
  """
  estimate = deviation.rho**2 / 2
  along = 1 + deviation.alpha
  corrected = estimate / jnp.where(along == 0, 1, along) ** 2
  return Theorem1(
    estimate=estimate,
    exact=deviation.one_minus_cos,
    error=_signed_error(estimate, deviation.one_minus_cos),
    corrected=jnp.where(along == 0, jnp.inf, corrected),
    alpha=deviation.alpha,
    rho=deviation.rho,
  )


def theorem_2(z, z_pruned, temperature=1.0) -> Theorem2:
  """Checks Theorem 2 on the logits [V] of one position.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  x_V, _ = log_ratio.scaled_change(z_V, zq_V, temperature)
  _, r_V = logit_moments.weights(z_V, temperature)
  variance, third = logit_moments.cumulants(r_V, x_V)
  in_p = divergences.compare_distributions(z_V, zq_V, temperature)
  exact = in_p.one_minus_cos_p
  return Theorem2(
    estimate=variance / 2,
    exact=exact,
    error=_signed_error(variance / 2, exact),
    third_order=_next_order(variance, third / 2),
    third_cumulant=third,
    max_abs_x=_largest(r_V, x_V),
  )


def theorem_3(z, z_pruned, temperature=1.0) -> Theorem3:
  """Checks Theorem 3, in both directions, on the logits [V] of one position.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  x_V, _ = log_ratio.scaled_change(z_V, zq_V, temperature)
  p_V = log_ratio.softmax(z_V, temperature)
  variance, third = logit_moments.cumulants(p_V, x_V)
  kl, kl_reverse = divergences.kl_of(
    log_ratio.from_logits(z_V, zq_V, temperature)
  )
  return Theorem3(
    estimate=variance / 2,
    exact=kl,
    exact_reverse=kl_reverse,
    error=_signed_error(variance / 2, kl),
    error_reverse=_signed_error(variance / 2, kl_reverse),
    third_order=_next_order(variance, third / 6),
    third_order_reverse=_next_order(variance, third / 3),
    bound=(jnp.max(x_V) - jnp.min(x_V)) ** 2 / 8,
    third_cumulant=third,
    max_abs_x=_largest(p_V, x_V),
  )


def _signed_error(estimate, exact) -> jax.Array:
  """Returns estimate - exact; 0 where both are inf."""
  return jnp.where(estimate == exact, 0, estimate - exact)


def _largest(weight, x) -> jax.Array:
  """Returns max |x - E[x]|, inf if any x is."""
  mean = jnp.sum(weight * jnp.where(jnp.isinf(x), 0, x))
  return jnp.max(jnp.abs(x - mean))


def _next_order(variance, term) -> jax.Array:
  """Returns variance / 2 + term; inf where the variance is."""
  return jnp.where(jnp.isinf(variance), variance / 2, variance / 2 + term)
