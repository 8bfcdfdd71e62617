"""What do two changed sublayers do together that neither does alone?

For a read-out f of the interpolation coefficients s of two sublayers,

  exact         f(1, 1) - f(1, 0) - f(0, 1) + f(0, 0),
  second order  d^2 f / ds_i ds_j at the dense model;

the second is what the first becomes for small changes. For the KL everything
begins at second order: with the first-order changes dz_i of the logits,

  d^2 KL / ds_i ds_j = Cov_p(dz_i, dz_j) / T^2,

so that half of the sum over all pairs is the paper's Theorem 3 for the whole
change, its diagonal what each sublayer does alone, and the rest what they do by
pointing the same way. That table costs one derivative per sublayer.

Reference: He et al., arXiv:2603.24652, Theorem 3; the interactions are ours.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.probes import log_ratio, propagation, scan
from jaxprune.probes.decoder.propagation.path import hidden_at
from jaxprune.probes.decoder.propagation.read_outs import ROWS, Path, read_out


@functools.partial(jax.jit, static_argnames=("config", "batch_size"))
def curvature_of_kl(
  config: ModelConfig, path: Path, directions: jax.Array, *, batch_size: int
) -> jax.Array:
  """Second derivatives of KL(p||q) at the dense model, nats: [P, P, B, R].

  Args:
    config: of the dense model.
    path: from `make_path`.
    directions: [P, L, 2, T].
    batch_size: directions differentiated together.
  """
  slopes_PBRD = propagation.slopes_at(
    lambda coefficients: hidden_at(config, path, coefficients),
    directions,
    0.0,
    batch_size=batch_size,
  )

  def measure(start_D, slopes_PD, alive):
    z_V, change = jax.linearize(
      lambda h_D: decoder.unembed(config, path.params, h_D, "raw"), start_D
    )
    dz_PV = jax.vmap(change)(slopes_PD)
    p_V = log_ratio.softmax(z_V, path.temperature)
    # The change of the likeliest token, which has most of the mass, is
    # subtracted from all changes, so that few digits cancel in the covariance.
    x_PV = dz_PV - dz_PV[:, jnp.argmax(z_V)][:, None]
    x_PV = x_PV - jnp.einsum("V,PV->P", p_V, x_PV)[:, None]
    covariance_PP = jnp.einsum("V,PV,QV->PQ", p_V, x_PV, x_PV)
    return jnp.where(alive, covariance_PP / path.temperature**2, 0)

  curvature_BRPP = scan.measure_rows(
    measure,
    path.start,
    rearrange(slopes_PBRD, "P B R D -> B R P D"),
    path.alive,
    chunk=max(1, ROWS // len(directions)),
  )
  return rearrange(curvature_BRPP, "B R P Q -> P Q B R")


@functools.partial(jax.jit, static_argnames="config")
def alone(
  config: ModelConfig, path: Path, directions: jax.Array
) -> dict[str, jax.Array]:
  """The effect of each direction alone on the read-outs of the dense model.

  Args:
    config: of the dense model.
    path: from `make_path`.
    directions: [P, L, 2, T].

  Returns:
    [P, B, R] by metric: with one direction applied, less the dense model.
  """
  begin = read_out(config, path, path.start)

  def effect(direction):
    h_BRD = hidden_at(config, path, direction)
    return jax.tree.map(jnp.subtract, read_out(config, path, h_BRD), begin)

  return jax.lax.map(effect, directions)


@functools.partial(jax.jit, static_argnames="config")
def second_order(
  config: ModelConfig, path: Path, first: jax.Array, second: jax.Array
) -> dict[str, jax.Array]:
  """Mixed second derivatives [P, B, R] of the read-outs, dense model.

  Args:
    config: of the dense model.
    path: from `make_path`.
    first: one direction of each pair, [P, L, 2, T].
    second: the other direction of each pair, [P, L, 2, T].
  """

  def f(coefficients):
    h_BRD = hidden_at(config, path, coefficients)
    return read_out(config, path, h_BRD, smooth=True)

  return jax.lax.map(
    lambda pair: propagation.interaction(f, jnp.zeros_like(pair[0]), *pair),
    (first, second),
  )
