"""When does softmax amplify a change of the logits, and when does it damp it?

The Jacobian J = (diag p - p p^T) / T of p = softmax(z / T) is symmetric, so
J v and v J are one vector and the left and right singular vectors coincide. It
vanishes for a confident p (softmax damps) and its largest singular value is at
most 1 / (2T), reached by two equally likely tokens.

`softmax_gain` compares the real change of p with that: ||dp|| / ||p|| over
||dz|| / ||z||, how far dz lies along the worst direction, and the entropy,
which decides the regime.

`rates` measures the same along a path of logits z(t), where p moves as

  dp/dt = p (dz - E_p dz) / T,

and its length relative to p falls into two parts at right angles:

  |dp/dt|^2 / |p|^2 = Var_r(dz) / T^2 + ((E_r dz - E_p dz) / T)^2,

with r = p^2 / sum p^2. The first part is the angle by which p turns, exactly
and at every t: Theorem 2 of the paper, 1 - cos(p, q) ~ Var_r(dz) / (2 T^2),
takes one dz and one r, those at t = 0, for the whole path. The second part
changes the length of p, which the cosine does not see.

Reference: He et al., arXiv:2603.24652, equations 45-62 (dp ~ J dz, Theorem 2).
Differs from the reference in: it has no measurement of J.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import divergences, log_ratio, logit_moments, spaces


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
  """How fast one position moves at one place of a path; scalars per unit t.

  Attributes:
    p: |dp/dt| / |p|, by the Jacobian.
    turn: sqrt(Var_r(dz)) / T, radians; p^2 = turn^2 + stretch^2.
    stretch: (E_r dz - E_p dz) / T, the growth of log |p|.
    z: |dz| / |z|.
    z_centred: |dz| / |z| after centring both over the vocabulary.
    moved_p: |q - p| / |p| from the start of the path to here; a distance.
    moved_z_centred: |z - start| / |start|, both centred; a distance.
    entropy: of softmax(z / T) here, nats.
  """

  p: jax.Array
  turn: jax.Array
  stretch: jax.Array
  z: jax.Array
  z_centred: jax.Array
  moved_p: jax.Array
  moved_z_centred: jax.Array
  entropy: jax.Array


def apply_jacobian(
  z: ArrayLike, v: ArrayLike, temperature: ArrayLike = 1.0
) -> jax.Array:
  """Applies the Jacobian in closed form: J v = v J = p (v - <p, v>) / T.

  Args:
    z: logits [V]; -inf masks a token.
    v: a change of the logits [V].
    temperature: T > 0.

  Returns:
    J v [V], probability per unit of v.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, v_V = spaces.checked_pair(z, v)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  return _apply(log_ratio.softmax(z_V, temperature), v_V) / temperature


def top_singular(
  z: ArrayLike,
  temperature: ArrayLike = 1.0,
  *,
  max_iterations: int = 1000,
  tolerance: float = 1e-4,
) -> TopSingular:
  """Finds the worst direction of softmax at z [V] by power iteration.

  J is applied, never formed. The start, J of the most likely token, is never
  orthogonal to the answer, so no random key is needed. A flat p has a cluster
  of nearly equal values: `value` is then right to `residual` long before
  `vector` settles on one direction of the cluster.

  Args:
    z: logits [V]; -inf masks a token.
    temperature: T > 0.
    max_iterations: most applications of J.
    tolerance: relative residual at which the iteration stops.

  Returns:
    The largest singular value and its vector.

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
  z: ArrayLike,
  z_pruned: ArrayLike,
  temperature: ArrayLike = 1.0,
  *,
  max_iterations: int = 1000,
  tolerance: float = 1e-4,
) -> SoftmaxGain:
  """Measures how softmax passed on the change of one position's logits [V].

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0.
    max_iterations, tolerance: of the power iteration, see `top_singular`.

  Returns:
    Relative changes, their ratios, and the worst case.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  pair = log_ratio.from_logits(z_V, zq_V, temperature)
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


def rates(
  start: ArrayLike, z: ArrayLike, dz: ArrayLike, temperature: ArrayLike = 1.0
) -> Rates:
  """Measures how fast z and p move at one place of a path of logits.

  Args:
    start: logits [V] where the path began.
    z: logits [V] at this place.
    dz: derivative of z by t at this place [V].
    temperature: T > 0.

  Returns:
    Relative rates of z and p, and the distances from the start.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, dz_V = spaces.checked_pair(z, dz)
  start_V, _ = spaces.checked_pair(start, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  p_V, r_V = logit_moments.weights(z_V, temperature)
  dp_V = apply_jacobian(z_V, dz_V, temperature)
  # Subtracting a constant from dz changes nothing, and without it the two means
  # no longer cancel.
  x_V = (dz_V - dz_V[jnp.argmax(z_V)]) / temperature
  pair = log_ratio.from_logits(start_V, z_V, temperature)
  return Rates(
    p=spaces.norm_of(dp_V) / spaces.norm_of(p_V),
    turn=jnp.sqrt(logit_moments.cumulants(r_V, x_V)[0]),
    stretch=jnp.sum((r_V - p_V) * x_V),
    z=spaces.ratio(spaces.norm_of(dz_V), spaces.norm_of(z_V)),
    z_centred=_centred_ratio(dz_V, z_V),
    moved_p=spaces.norm_of(pair.change) / spaces.norm_of(pair.p),
    moved_z_centred=_centred_ratio(z_V - start_V, start_V),
    entropy=divergences.concentration(z_V, temperature).entropy,
  )


def _centred_ratio(change_V, base_V):
  """|change| / |base| after centring both; 0 where nothing changed."""
  change, base = (
    spaces.norm_of(spaces.centre(vector_V)) for vector_V in (change_V, base_V)
  )
  return spaces.ratio(change, base)


def _apply(p_V, v_V) -> jax.Array:
  """Returns p (v - <p, v>) [V], T times J v."""
  # J ignores a constant in v. With v = 0 at the most likely token nothing
  # cancels where that token has nearly all the mass.
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
