"""When does softmax amplify a change of the logits, and when does it damp it?

The Jacobian J = (diag p - p p^T) / T of p = softmax(z / T) is symmetric, so
J v and v J are one vector and the left and right singular vectors coincide. It
vanishes for a confident p (softmax damps) and its largest singular value is at
most 1 / (2T), reached by two equally likely tokens.

`softmax_gain` sets the real change of p against that: ||dp|| / ||p|| over
||dz|| / ||z||, how far dz lies along the worst direction, and what the entropy
was, which decides the regime.

Reference: He et al., arXiv:2603.24652, equations 45-51 (dp ~ J dz); the regime
of the entropy is a question its reviewers raised.
Differs from the reference in: it has no measurement of J.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.probes import divergences, log_ratio, spaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TopSingular:
  """Largest singular value of the softmax Jacobian.

  Attributes:
    value: scalar, probability per logit, in [0, 1 / (2T)].
    vector: unit vector [V], left and right singular vector at once, positive
      at the most likely token; its entries sum to 0. Zeros if J is zero.
    iterations: int32, applications of J used.
    residual: |J v - value v| / value; some singular value lies within
      `residual` of `value`, relatively.
    converged: bool, residual <= tolerance. False after `max_iterations`.
  """

  value: jax.Array
  vector: jax.Array
  iterations: jax.Array
  residual: jax.Array
  converged: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxGain:
  """Amplification of one change of the logits by softmax; scalars.

  A ratio is 0 where its numerator is (nothing moved: 0, not NaN) and inf where
  only its denominator is. Norms of z and dz are over tokens that neither side
  masks with -inf.

  Attributes:
    relative_z: |dz| / |z|.
    relative_z_centred: the same after centring both over the vocabulary.
    relative_p: |dp| / |p|, the exact dp.
    amplification: relative_p / relative_z; below 1 softmax damps.
    amplification_centred: relative_p / relative_z_centred.
    linear_ratio: |J dz| / |dp|, near 1 for a small change.
    worst_share: |J dz| / (value |dz centred|) in [0, 1]: 1 when dz lies along
      the worst direction.
    worst_amplification: largest amplification_centred of a small change.
    random_amplification: root mean square amplification_centred of a small
      change in a random direction.
    entropy: of p, nats.
    participation: 1 / sum p^2, tokens.
    worst: the worst direction and its singular value.
  """

  relative_z: jax.Array
  relative_z_centred: jax.Array
  relative_p: jax.Array
  amplification: jax.Array
  amplification_centred: jax.Array
  linear_ratio: jax.Array
  worst_share: jax.Array
  worst_amplification: jax.Array
  random_amplification: jax.Array
  entropy: jax.Array
  participation: jax.Array
  worst: TopSingular


def apply_jacobian(z, v, temperature=1.0) -> jax.Array:
  """Returns J v = v J = p (v - <p, v>) / T [V], in closed form.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, v_V = spaces.checked_pair(z, v)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  return _apply(log_ratio.softmax(z_V, temperature), v_V) / temperature


def jacobian_vector(z, v, temperature=1.0) -> jax.Array:
  """Returns J v [V] by forward differentiation of softmax(z / T)."""
  z_V, v_V = spaces.checked_pair(z, v)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  _, out_V = jax.jvp(
    lambda z_V: jax.nn.softmax(z_V / temperature), [z_V], [v_V]
  )
  return out_V


def vector_jacobian(z, v, temperature=1.0) -> jax.Array:
  """Returns v J [V] by reverse differentiation of softmax(z / T)."""
  z_V, v_V = spaces.checked_pair(z, v)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  _, pull = jax.vjp(lambda z_V: jax.nn.softmax(z_V / temperature), z_V)
  return pull(v_V)[0]


def top_singular(
  z, temperature=1.0, *, max_iterations=1000, tolerance=1e-4
) -> TopSingular:
  """Finds the worst direction of softmax at z [V] by power iteration.

  J is applied, never formed. The start, J of the most likely token, is never
  orthogonal to the answer, so no random key is needed. A flat p has a cluster
  of nearly equal values: `value` is then right to `residual` long before
  `vector` settles on one direction of the cluster.

  Raises:
    ValueError: z is not one-dimensional, or T <= 0.
  """
  z_V, _ = spaces.checked_pair(z, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  p_V = log_ratio.softmax(z_V, temperature)
  start_V = jnp.where(jnp.arange(p_V.size) == jnp.argmax(z_V), 1, 0)
  image_V = _apply(p_V, start_V.astype(p_V.dtype))

  def rayleigh(state):
    vector_V, image_V, _ = state
    value = jnp.sum(vector_V * image_V)
    error = spaces.norm_of(image_V - value * vector_V)
    return value, spaces.ratio(error, value)

  def unfinished(state):
    return (rayleigh(state)[1] > tolerance) & (state[2] < max_iterations)

  def step(state):
    _, image_V, count = state
    norm = spaces.norm_of(image_V)
    vector_V = image_V / jnp.where(norm == 0, 1, norm)
    return vector_V, _apply(p_V, vector_V), count + 1

  state = step((image_V, image_V, jnp.int32(0)))
  state = jax.lax.while_loop(unfinished, step, state)
  value, residual = rayleigh(state)
  return TopSingular(
    value=value / temperature,
    vector=state[0],
    iterations=state[2],
    residual=residual,
    converged=residual <= tolerance,
  )


def softmax_gain(
  z, z_pruned, temperature=1.0, *, max_iterations=1000, tolerance=1e-4
) -> SoftmaxGain:
  """Measures how softmax passed on the change of one position's logits [V].

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0.
    max_iterations, tolerance: of the power iteration, see `top_singular`.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  pair = log_ratio.tilt_logits(z_V, zq_V, temperature)
  shape = divergences.concentration(z_V, temperature)
  worst = top_singular(
    z_V, temperature, max_iterations=max_iterations, tolerance=tolerance
  )
  p_V, dp = pair.p, spaces.norm_of(pair.change)
  common_V = (z_V != -jnp.inf) & (zq_V != -jnp.inf)
  dz_V = jnp.where(common_V, spaces.logit_change(z_V, zq_V), 0)
  dz_centred_V = spaces.centre(dz_V, common_V)
  z_centred = spaces.norm_of(spaces.centre(z_V, common_V))
  dz, dz_centred = spaces.norm_of(dz_V), spaces.norm_of(dz_centred_V)
  linear = spaces.norm_of(_apply(p_V, dz_centred_V)) / temperature
  p = spaces.norm_of(p_V)
  relative_z = spaces.ratio(dz, spaces.norm_of(jnp.where(common_V, z_V, 0)))
  relative_z_centred = spaces.ratio(dz_centred, z_centred)
  dimensions = jnp.maximum(jnp.sum(common_V, dtype=p.dtype) - 1, 1)
  random = _frobenius(p_V) / temperature / jnp.sqrt(dimensions)
  return SoftmaxGain(
    relative_z=relative_z,
    relative_z_centred=relative_z_centred,
    relative_p=dp / p,
    amplification=spaces.ratio(dp / p, relative_z),
    amplification_centred=spaces.ratio(dp / p, relative_z_centred),
    linear_ratio=spaces.ratio(linear, dp),
    worst_share=spaces.ratio(linear, worst.value * dz_centred),
    worst_amplification=worst.value * z_centred / p,
    random_amplification=random * z_centred / p,
    entropy=shape.entropy,
    participation=shape.participation,
    worst=worst,
  )


def _apply(p_V, v_V) -> jax.Array:
  """Returns p (v - <p, v>) [V], T times J v."""
  # J ignores a constant. With v = 0 at the most likely token nothing cancels
  # when that token has nearly all the mass.
  top = jnp.argmax(p_V)
  v_V = jnp.where(jnp.arange(p_V.size) == top, 0, v_V - v_V[top])
  return p_V * (v_V - jnp.sum(p_V * v_V))


def _frobenius(p_V) -> jax.Array:
  """Returns the Frobenius norm of diag p - p p^T.

  Its square is sum_i p_i^2 (1 - p_i)^2 + sum_{i != j} p_i^2 p_j^2, with the
  most likely token apart so that 1 - p does not cancel.
  """
  top = jnp.argmax(p_V)
  rest_V = jnp.where(jnp.arange(p_V.size) == top, 0, p_V)
  square = jnp.sum(rest_V**2)
  diagonal = (p_V[top] * jnp.sum(rest_V)) ** 2
  diagonal += jnp.sum((rest_V * (1 - rest_V)) ** 2)
  pairs = 2 * p_V[top] ** 2 * square + square**2 - jnp.sum(rest_V**4)
  return jnp.sqrt(diagonal + pairs)
