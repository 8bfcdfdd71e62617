"""What should a pruned model be trained for? Losses of one position.

  next_token       -log q(token), the text's own next token
  distillation     KL(p||q), the dense model's distribution
  logit_variance   Var_p(dz) / (2 T^2)

p is dense, q pruned, dz = z_pruned - z. The variance is the second-order term
of the KL: at dz near 0 both have the same value and the same curvature. They
differ where dz is large. There the KL grows linearly with dz and its gradient
q - p is bounded, while the variance grows with the square, and a token that q
overrates but p does not know (p near 0) is seen by the KL and not by the
variance.

All are differentiable in z_pruned, in float32, or float64 if an input is. The
gradients are (q - onehot) / T with T = 1, (q - p) / T and
p (dz - E_p dz) / T^2.

Reference: Hinton et al., arXiv:1503.02531 (distillation); He et al.,
arXiv:2603.24652, Theorem 3 (the variance).
Differs from the reference in: the distillation loss is not multiplied by T^2,
so that it stays the KL that the probes report.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import spaces
from jaxprune.probes.logit_moments import variance

OBJECTIVES = ("language", "distill", "distill_variance")


def next_token(z_pruned: ArrayLike, token: ArrayLike) -> jax.Array:
  """Nats of a token under q = softmax(z_pruned).

  Args:
    z_pruned: logits [V] of one position, finite.
    token: its id, an int scalar.

  Returns:
    A scalar, at least 0.
  """
  (zq_V,) = spaces.widen(z_pruned)
  return -jax.nn.log_softmax(zq_V)[token]


def distillation(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> jax.Array:
  """KL(p||q) in nats.

  From two log-softmaxes: `probes.divergences.kl_of` is accurate where this is
  near 0, but the gradient is the same and here costs less.

  Args:
    z, z_pruned: logits [V] of one position, finite.
    temperature: T > 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  log_p_V = jax.nn.log_softmax(z_V / temperature)
  log_q_V = jax.nn.log_softmax(zq_V / temperature)
  return jnp.sum(jnp.exp(log_p_V) * (log_p_V - log_q_V))


def logit_variance(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> jax.Array:
  """Var_p(dz) / (2 T^2), nats; 0 for a constant dz.

  Args:
    z, z_pruned, temperature: logits [V], finite, and T > 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  p_V = jax.nn.softmax(z_V / temperature)
  spread = variance(p_V, (zq_V - z_V) / temperature)
  return spread / 2
