"""How well do the paper's local estimates predict what really happened?

With X = dz / T and r = softmax(2 z / T), the same logits at half temperature:

  Theorem 1   1 - cos(h, h + dh) ~ rho^2 / 2           (the same for z)
  Theorem 2   1 - cos(p, q)      ~ Var_r(X) / 2
  Theorem 3   KL(p||q)           ~ Var_p(X) / 2        (KL(q||p) as well)

Each function returns the estimate, the exact value, the signed error (0 where
both are inf) and what says whether the estimate may be trusted. The next order
comes from the cumulant generating function K(t) = log E[e^tX] of
the same weights: KL(p||q) = K_p(1) - K_p'(0) gives k2/2 + k3/6, KL(q||p) =
K_p'(1) - K_p(1) gives k2/2 + k3/3, and -log cos(p, q) = K_r(2)/2 - K_r(1)
gives k2/2 + k3/2.

`check_position` says of each theorem whether its estimate is valid at one
position: the next order is then at most `TOLERANCE` of the estimate.
The rule needs no exact value, so that the exact value can test it.

Reference: He et al., arXiv:2603.24652, Theorems 1-3 (equations 6-10, 44-62)
and their derivations; the next orders are ours.
Differs from the reference in: weights are always the dense side's, and each
estimate comes with the exact value, the error and the next order.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import divergences, log_ratio, logit_moments, spaces

# An estimate is valid where the next order is at most this fraction of it.
TOLERANCE = 0.1


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks:
  """Where the three theorems hold at one position; scalars.

  The estimates and the exact values are fields of `position.Position`. A next
  order is what the following term of the expansion adds to the estimate.

  Attributes:
    one_minus_cos_h_next_order, one_minus_cos_z_next_order: of Theorem 1, from
      the change along the vector and from the fourth power of rho.
    one_minus_cos_p_next_order: k3 / 2 under r, of Theorem 2.
    kl_next_order: k3 / 6 under p, of Theorem 3; nats.
    kl_bound: Hoeffding's (max X - min X)^2 / 8, which KL never exceeds; nats.
    max_abs_x: max |dz - E_p dz| / T over the vocabulary.
    theorem_1_valid: bool, for h.
    theorem_1_valid_z: bool, for z.
    theorem_2_valid: bool.
    theorem_3_valid: bool.
  """

  one_minus_cos_h_next_order: jax.Array
  one_minus_cos_z_next_order: jax.Array
  one_minus_cos_p_next_order: jax.Array
  kl_next_order: jax.Array
  kl_bound: jax.Array
  max_abs_x: jax.Array
  theorem_1_valid: jax.Array
  theorem_1_valid_z: jax.Array
  theorem_2_valid: jax.Array
  theorem_3_valid: jax.Array


def check_position(
  h: ArrayLike,
  h_pruned: ArrayLike,
  z: ArrayLike,
  z_pruned: ArrayLike,
  temperature: ArrayLike = 1.0,
) -> Checks:
  """Says of each theorem whether its estimate is valid at one position.

  Args:
    h, h_pruned: embeddings [D].
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0 of the softmax.

  Returns:
    The next order of each estimate, and whether it is at most `TOLERANCE` of
    the estimate; never where one of them is not finite.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  in_z, _ = spaces.compare_logits(z, z_pruned)
  of_h, of_z = map(theorem_1, (spaces.compare_vectors(h, h_pruned), in_z))
  of_p = theorem_2(z, z_pruned, temperature)
  of_kl = theorem_3(z, z_pruned, temperature)
  next_h, next_z = map(_next_order_of_cosine, (of_h, of_z))
  next_p = of_p.third_cumulant / 2
  next_kl = of_kl.third_cumulant / 6

  def valid(estimate, next_order):
    return jnp.abs(next_order) <= TOLERANCE * estimate

  return Checks(
    one_minus_cos_h_next_order=next_h,
    one_minus_cos_z_next_order=next_z,
    one_minus_cos_p_next_order=next_p,
    kl_next_order=next_kl,
    kl_bound=of_kl.bound,
    max_abs_x=of_kl.max_abs_x,
    theorem_1_valid=valid(of_h.estimate, next_h),
    theorem_1_valid_z=valid(of_z.estimate, next_z),
    theorem_2_valid=valid(of_p.estimate, next_p) & jnp.isfinite(of_p.estimate),
    theorem_3_valid=valid(of_kl.estimate, next_kl)
    & jnp.isfinite(of_kl.estimate),
  )


def theorem_1(deviation: spaces.Deviation) -> Theorem1:
  """Checks Theorem 1 on a pair of vectors that `spaces` compared.

  Args:
    deviation: of h, of z, or of the centred z.

  Returns:
    The estimate, the exact value and what decides about the error.
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


def theorem_2(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> Theorem2:
  """Checks Theorem 2 on the logits of one position.

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0.

  Returns:
    The estimate of 1 - cos(p, q), the exact value and the next order.

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


def theorem_3(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> Theorem3:
  """Checks Theorem 3, in both directions, on the logits of one position.

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0.

  Returns:
    The estimate of both KL divergences, the exact values and the next orders;
    nats.

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


def _next_order_of_cosine(theorem: Theorem1) -> jax.Array:
  """Returns u^2 / 2 - 3 u^4 / 8 - rho^2 / 2 with u = rho / (1 + alpha)."""
  return theorem.corrected - 3 / 2 * theorem.corrected**2 - theorem.estimate


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
