"""How does the output of a decoder move from the dense to the pruned model?

On the straight path of `path`, all sublayers together: how far a Taylor
polynomial at the dense model predicts the logits, and how fast h, z and p move
at each t.

Reference: those of `probes.propagation` and `jacobian.rates`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.probes import jacobian, propagation, scan, spaces
from jaxprune.probes.decoder.propagation.path import (
  hidden_at,
  move_at,
  whole_change,
)
from jaxprune.probes.decoder.propagation.read_outs import ROWS, Path, read_out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
  """The truth along the path and its predictions of order 1 and 2.

  Attributes:
    t: [n].
    truth: read-outs, [Z, B, R].
    predicted: the same of the predicted logits, per order.
    error: norm of the error of the predicted logits, [Z, B, R] per order.
    size: norm of the true change of the logits, [Z, B, R].
  """

  t: jax.Array
  truth: dict[str, jax.Array]
  predicted: tuple[dict[str, jax.Array], ...]
  error: tuple[jax.Array, ...]
  size: jax.Array


@functools.partial(jax.jit, static_argnames="config")
def logit_norms(
  config: ModelConfig,
  path: Path,
  predicted_BRD: jax.Array,
  truth_BRD: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Norms [B, R] of two changes of the logits.

  Args:
    config: of the dense model.
    path: from `make_path`.
    predicted_BRD: a prediction of what the LM head reads.
    truth_BRD: what it reads.

  Returns:
    The norm of predicted less true logits, and that of true less dense logits;
    0 where an output does not count.
  """

  def measure(predicted_D, truth_D, start_D, alive):
    y_V, x_V, z_V = (
      decoder.unembed(config, path.params, each_D, "raw")
      for each_D in (predicted_D, truth_D, start_D)
    )
    return (
      jnp.where(alive, jnp.linalg.norm(y_V - x_V), 0),
      jnp.where(alive, jnp.linalg.norm(x_V - z_V), 0),
    )

  return scan.measure_rows(
    measure, predicted_BRD, truth_BRD, path.start, path.alive, chunk=ROWS
  )


@functools.partial(jax.jit, static_argnames="config")
def scan_path(config: ModelConfig, path: Path, grid: jax.Array) -> Scan:
  """The truth along the path beside first and second order.

  What the LM head reads is predicted, and so all logits; the read-outs are
  taken of the prediction, so that the KL is not lost, whose own slope is 0.

  Args:
    config: of the dense model.
    path: from `make_path`.
    grid: t, [n].
  """
  line = propagation.along_path(
    lambda coefficients: hidden_at(config, path, coefficients),
    whole_change(config, path),
    grid,
    order=2,
  )

  def read(h_ZBRD):
    return jax.lax.map(lambda h_BRD: read_out(config, path, h_BRD), h_ZBRD)

  norms = [
    jax.lax.map(
      lambda pair: logit_norms(config, path, *pair), (predicted, line.truth)
    )
    for predicted in line.predicted
  ]
  return Scan(
    t=grid,
    truth=read(line.truth),
    predicted=tuple(map(read, line.predicted)),
    error=tuple(error for error, _ in norms),
    size=norms[0][1],
  )


@functools.partial(jax.jit, static_argnames="config")
def rates(
  config: ModelConfig, path: Path, grid: jax.Array
) -> dict[str, jax.Array]:
  """How fast h, z and p move at each t, [Z, B, R] per field.

  Args:
    config: of the dense model.
    path: from `make_path`.
    grid: t, [n].

  Returns:
    The fields of `jacobian.Rates`, and h, |dh/dt| / |h| of what the LM
    head reads. 0 where an output does not count.
  """

  def measure(start_D, h_D, dh_D, alive):
    start_V = decoder.unembed(config, path.params, start_D, "raw")
    z_V, dz_V = decoder.unembed_change(config, path.params, h_D, dh_D)
    rate = jacobian.rates(start_V, z_V, dz_V, path.temperature)
    values = {
      field.name: getattr(rate, field.name)
      for field in dataclasses.fields(rate)
    }
    values["h"] = spaces.ratio(spaces.norm_of(dh_D), spaces.norm_of(h_D))
    return {name: jnp.where(alive, value, 0) for name, value in values.items()}

  def rates_at(t):
    h_BRD, dh_BRD = move_at(config, path, t)
    return scan.measure_rows(
      measure, path.start, h_BRD, dh_BRD, path.alive, chunk=ROWS
    )

  return jax.lax.map(rates_at, grid)
