"""How fast does p turn while the logits move, and what of it is softmax's?

Along a path of logits z(t), p = softmax(z / T) moves as

  dp/dt = p (dz - E_p dz) / T,

and its length relative to p falls into two parts at right angles:

  |dp/dt|^2 / |p|^2 = Var_r(dz) / T^2 + ((E_r dz - E_p dz) / T)^2,

with r = p^2 / sum p^2. The first is the angle by which p turns, exactly and at
every t: Theorem 2 of the paper, 1 - cos(p, q) ~ Var_r(dz) / (2 T^2), is what
becomes of it when one dz and one r, those at t = 0, stand for the whole path.
The second changes the length of p, which the cosine does not see. Beside |p|
stand the relative speeds of z and h: softmax amplifies where p is the faster.

Reference: He et al., arXiv:2603.24652, Theorem 2 and equations 45-62.
Differs from the reference in: speeds at every place of a path, so that nothing
is left out; `jacobian.softmax_gain` is the finite change of one step.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.probes import (
  divergences,
  jacobian,
  log_ratio,
  logit_moments,
  spaces,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
  """How fast one position moves at one place of a path; scalars per unit t.

  Attributes:
    p: |dp/dt| / |p|, by the Jacobian.
    turn: sqrt(Var_r(dz)) / T, radians; p^2 = turn^2 + stretch^2.
    stretch: (E_r dz - E_p dz) / T, the growth of log |p|.
    z: |dz| / |z|.
    z_centred: the same after centring both over the vocabulary.
    moved_p: |q - p| / |p|, from the start of the path to here; no speed.
    moved_z_centred: the same of the centred logits.
    entropy: of softmax(z / T) here, nats; no speed.
  """

  p: jax.Array
  turn: jax.Array
  stretch: jax.Array
  z: jax.Array
  z_centred: jax.Array
  moved_p: jax.Array
  moved_z_centred: jax.Array
  entropy: jax.Array


def speed(start, z, dz, temperature=1.0) -> Speed:
  """Measures one position [V] of a path.

  Args:
    start: logits where the path began.
    z: logits here.
    dz: their derivative by t here.
    temperature: T > 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, dz_V = spaces.checked_pair(z, dz)
  start_V, _ = spaces.checked_pair(start, z)
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  p_V, r_V = logit_moments.weights(z_V, temperature)
  dp_V = jacobian.apply_jacobian(z_V, dz_V, temperature)
  # A constant changes nothing; without it the two means do not cancel.
  x_V = (dz_V - dz_V[jnp.argmax(z_V)]) / temperature
  pair = log_ratio.tilt_logits(start_V, z_V, temperature)
  return Speed(
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
    spaces.norm_of(spaces.centre(each_V)) for each_V in (change_V, base_V)
  )
  return spaces.ratio(change, base)
