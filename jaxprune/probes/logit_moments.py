"""How large is the change of the logits, for each way to weigh the tokens?

Softmax weighs a change of the logits by the tokens that matter: by p for KL,
by r = softmax(2 z / T), proportional to p^2, for the cosine. The variance over
the whole vocabulary, which the paper plots beside them, weighs tokens that are
never drawn.

Reference: He et al., arXiv:2603.24652, Theorems 2 and 3 (the weights), Figures
12 and 19; top-5, top-10, L1 and L2 as its official scripts log them.
Differs from the reference in: weights are always the dense side's (one mode of
the official scripts weights by the pruned side), and no variance here carries
the factor 1 / (2 T^2) (the official free-running script logs the uniform one
with it and the others without).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import log_ratio, spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMoments:
  """Sizes of dz under several weights; scalars in logits or logits squared.

  Tokens masked (-inf) on both sides do not count.

  Attributes:
    var_p: variance under p = softmax(z / T).
    var_r: variance under r = softmax(2 z / T).
    var_uniform: variance over the vocabulary.
    var_top5, var_top10: variance under p renormalised over the dense top 5 and
      top 10 tokens (all that p has if those are fewer).
    max_abs_dz: largest |dz|.
    mean_abs_dz: mean |dz| (the reference's global L1).
    rms_dz: root mean square of dz, its constant part included.
    l1_top5, l1_top10: sum of |dz| over the dense top 5 and top 10.
    l2_top5, l2_top10: Euclidean norm of dz there.
  """

  var_p: jax.Array
  var_r: jax.Array
  var_uniform: jax.Array
  var_top5: jax.Array
  var_top10: jax.Array
  max_abs_dz: jax.Array
  mean_abs_dz: jax.Array
  rms_dz: jax.Array
  l1_top5: jax.Array
  l1_top10: jax.Array
  l2_top5: jax.Array
  l2_top10: jax.Array


def compare_moments(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> LogitMoments:
  """Measures dz = z_pruned - z [V] under p, r, uniform and top-k weights.

  A token masked by one side only has an infinite dz: whatever gives it weight
  is inf.

  Args:
    z: dense logits [V]; -inf masks a token.
    z_pruned: pruned logits [V].
    temperature: T > 0 of the softmax that gives p and r.

  Returns:
    Variances in logits squared, the other sizes in logits.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  dz_V = spaces.logit_change(z_V, zq_V)
  p_V, r_V = weights(z_V, temperature)
  masked_V = (z_V == -jnp.inf) & (zq_V == -jnp.inf)
  even_V = jnp.where(masked_V, 0, jnp.ones_like(z_V))
  even_V /= jnp.sum(even_V)
  # The change of the top token, which has most of the mass, is subtracted.
  x_V, offset = log_ratio.scaled_change(z_V, zq_V, 1)
  var_uniform, _ = cumulants(even_V, x_V)
  mean = jnp.sum(even_V * log_ratio.bounded(x_V)) + offset
  tops = []
  for k in (5, 10):
    z_k, token_k = jax.lax.top_k(z_V, min(k, z_V.size))
    dz_k = jnp.where(z_k == -jnp.inf, 0, dz_V[token_k])
    p_k = p_V[token_k]
    variance, _ = cumulants(p_k / jnp.sum(p_k), x_V[token_k])
    tops.append((variance, jnp.sum(jnp.abs(dz_k)), spaces.norm_of(dz_k)))
  (var_top5, l1_top5, l2_top5), (var_top10, l1_top10, l2_top10) = tops
  return LogitMoments(
    var_p=cumulants(p_V, x_V)[0],
    var_r=cumulants(r_V, x_V)[0],
    var_uniform=var_uniform,
    var_top5=var_top5,
    var_top10=var_top10,
    max_abs_dz=jnp.max(jnp.abs(dz_V)),
    mean_abs_dz=jnp.sum(even_V * jnp.abs(dz_V)),
    rms_dz=jnp.sqrt(var_uniform + mean * mean),
    l1_top5=l1_top5,
    l1_top10=l1_top10,
    l2_top5=l2_top5,
    l2_top10=l2_top10,
  )


def weights(
  z_V: ArrayLike, temperature: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Returns p = softmax(z / T) [V] and r = p^2 / sum p^2 [V].

  Args:
    z_V: logits [V]; -inf masks a token.
    temperature: T > 0.
  """
  p_V = log_ratio.softmax(z_V, temperature)
  return p_V, p_V * p_V / jnp.sum(p_V * p_V)


def cumulants(weight: ArrayLike, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Returns the variance and third central moment of x.

  Args:
    weight: [V], adds up to 1.
    x: [V]. An infinite one that carries weight (a token masked by the pruned
      side only) gives inf and -inf. Give a change less that of a likely
      token, or call `variance`: the mean of a large constant has a rounding
      error, whose square would be a variance.
  """
  # inf becomes the largest number: times a weight of 0 it is then 0, and its
  # square, after any other weight, is inf.
  x = log_ratio.bounded(x)
  x = x - jnp.sum(weight * x)
  variance = jnp.sum(weight * x * x)
  rest = jnp.sum(weight * x)
  third = jnp.sum(weight * x * x * x) - 3 * variance * rest
  return variance, jnp.where(jnp.isinf(variance), -jnp.inf, third)


def variance(weight: ArrayLike, x: ArrayLike) -> jax.Array:
  """Returns the variance of x [V]; exactly 0 for a constant.

  Args:
    weight: [V], adds up to 1.
    x: [V], finite at the likeliest token.
  """
  return cumulants(weight, x - x[spaces.top_token(weight)])[0]
