"""What `propagation` measures on one changed model, as arrays.

P sublayers (attention 0, MLP 0, attention 1, ...) or groups of layers, X
prompts, R output steps, Z places of the path.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune.models.config import ModelConfig
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation import along_path, memory
from jaxprune.probes.decoder.propagation import (
  interactions as decoder_interactions,
)
from jaxprune.probes.decoder.propagation import path as decoder_path
from jaxprune.studies.texts import DenseTexts

GRID = tuple(np.linspace(0.05, 1.0, 20).tolist())
# Places of the rates: both ends, and nodes whose weights integrate over t.
_NODES, _WEIGHTS = propagation.gauss_legendre(8)
RATE_GRID = (0.0, *_NODES.tolist(), 1.0)
RATE_WEIGHTS = (0.0, *_WEIGHTS.tolist(), 0.0)
# Metrics whose change is divided by step too: it has as many parts as the
# square of the steps.
STEP_METRICS = ("kl", "log_prob", "dz_centred")
TANGENTS = 1 << 30  # bytes
_FIRST_NODES = 6  # and doubled until the change is complete


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a change is divided.

  Attributes:
    max_new_tokens: R, steps of each text.
    analysis_temperature: T of the softmax that is measured.
    tolerance: largest relative completeness error.
    max_nodes: quadrature nodes at most.
    batch: prompts measured together.
    groups: G, groups of layers in the time influence.
    interactions: pairs of sublayers, the strongest.
    options: token ids of options, for their margin.
    controls: whether changes as large, made by chance, are measured too.
  """

  max_new_tokens: int
  analysis_temperature: float = 1.0
  tolerance: float = 1e-3
  max_nodes: int = 64
  batch: int = 8
  groups: int = 3
  interactions: int = 8
  options: tuple[int, ...] = ()
  controls: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributed:
  """Everything that was measured on one changed model.

  Attributes:
    alive: bool [X, R], outputs that count.
    change: by metric, [X, R].
    sublayers: contributions by metric, [P, X, R].
    sublayers_first: the same to first order.
    steps: by metric of STEP_METRICS, [P, R + 1, X, R]; cause 0 is the text
      before the first step.
    steps_first: `steps` to first order.
    scan: of GRID: error_1, error_2 and size, norms; by metric truth, order_1
      and order_2; [Z, X, R] each.
    rates: by field, of RATE_GRID, [Z, X, R].
    curvature: second derivatives of the KL, [P, P, X, R].
    alone: effects of one sublayer alone, by metric, [P, X, R].
    pairs: indices of two sublayers.
    pairs_exact: interactions by metric, [pairs, X, R].
    pairs_second: the same to second order.
    completeness: relative error by cause and metric, the worst batch.
    nodes: of the quadrature, the most.
    seconds: by what took them.
  """

  alive: np.ndarray
  change: dict[str, np.ndarray]
  sublayers: dict[str, np.ndarray]
  sublayers_first: dict[str, np.ndarray]
  steps: dict[str, np.ndarray]
  steps_first: dict[str, np.ndarray]
  scan: dict[str, Any]
  rates: dict[str, np.ndarray]
  curvature: np.ndarray
  alone: dict[str, np.ndarray]
  pairs: tuple[tuple[int, int], ...]
  pairs_exact: dict[str, np.ndarray]
  pairs_second: dict[str, np.ndarray]
  completeness: dict[str, dict[str, float]]
  nodes: int
  seconds: dict[str, float]


def attribute(
  config: ModelConfig,
  both: Any,
  texts: Sequence[DenseTexts],
  settings: Settings,
  pairs: tuple[tuple[int, int], ...] | None = None,
) -> Attributed:
  """Divide the change of one model.

  Args:
    config: of the dense model.
    both: parameters from `path.add_delta`.
    texts: what the dense model wrote, in batches of one shape.
    settings: how it is divided.
    pairs: sublayers whose interaction is measured; None chooses those whose
      second derivative of the KL is largest on the first texts.
  """
  parts = []
  for text in texts:
    path = decoder_path.make_path(
      config,
      both,
      jnp.asarray(text.tokens),
      jnp.asarray(text.valid),
      jnp.asarray(text.alive),
      temperature=settings.analysis_temperature,
      options=settings.options,
    )
    part = _measure_batch(config, path, settings, pairs)
    pairs = part["pairs"]
    parts.append((part, text.count))
  return _join(parts)


def _measure_batch(config, path, settings, pairs):
  """The fields of `Attributed` for one batch, rows that fill it included."""
  length, steps = path.tokens.shape[1], path.alive.shape[1]
  lines = propagation.sublayer_directions(config.num_layers, length)
  seconds, began = {}, time.monotonic()

  def lap(name):
    nonlocal began
    now = time.monotonic()
    seconds[name], began = now - began, now

  quadrature = decoder_path.find_quadrature(
    config,
    path,
    tolerance=settings.tolerance,
    nodes=min(_FIRST_NODES, settings.max_nodes),
    max_nodes=settings.max_nodes,
  )
  nodes = len(quadrature.places)
  lap("quadrature")
  first, whole = decoder_path.attribute(
    config, path, lines, quadrature, memory=TANGENTS
  )
  completeness = {"sublayer": _floats(whole.completeness_error)}
  lap("sublayers")
  steps_first, by_step = decoder_path.attribute(
    config,
    path,
    propagation.step_directions(
      config.num_layers, length, steps, settings.groups
    ),
    quadrature,
    memory=TANGENTS,
  )
  completeness["step"] = _floats(by_step.completeness_error)
  lap("steps")
  completeness["logits"] = {"z": _check_logits(config, path, quadrature)}
  scan = along_path.scan_path(config, path, jnp.asarray(GRID, jnp.float32))
  rates = along_path.rates(config, path, jnp.asarray(RATE_GRID, jnp.float32))
  lap("path")
  together = memory.directions_at_once(
    config, *path.alive.shape, length, TANGENTS
  )
  curvature = decoder_interactions.curvature_of_kl(
    config, path, lines, batch_size=min(together, len(lines))
  )
  if pairs is None:
    pairs = strongest(curvature, settings.interactions)
  alone, exact, second = _pairs(config, path, lines, pairs)
  lap("interactions")
  by_group = lambda tree: jax.tree.map(
    lambda leaf: rearrange(leaf, "(P Y) B R -> P Y B R", P=settings.groups),
    tree,
  )
  arrays = {
    "alive": path.alive,
    "change": whole.change,
    "sublayers": whole.contributions,
    "sublayers_first": first,
    "steps": by_group(by_step.contributions),
    "steps_first": by_group(steps_first),
    "scan": {
      "size": scan.size,
      "error_1": scan.error[0],
      "error_2": scan.error[1],
      "truth": scan.truth,
      "order_1": scan.predicted[0],
      "order_2": scan.predicted[1],
    },
    "rates": rates,
    "curvature": curvature,
    "alone": alone,
    "pairs_exact": exact,
    "pairs_second": second,
  }
  return jax.tree.map(np.asarray, arrays) | {
    "pairs": pairs,
    "completeness": completeness,
    "nodes": nodes,
    "seconds": seconds,
  }


def strongest(curvature: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
  """The pairs whose mean is largest in size, the largest first.

  Args:
    curvature: second derivatives of the KL, [P, P, B, R].
    count: pairs at most.

  Returns:
    Indices of two sublayers each; pairs without any curvature, of sublayers
    that did not change, are left out.
  """
  table_PP = np.asarray(curvature).mean(axis=(2, 3))
  first, second = np.triu_indices(len(table_PP), 1)
  size = np.abs(table_PP[first, second])
  order = np.argsort(-size, kind="stable")[:count]
  return tuple((int(first[k]), int(second[k])) for k in order if size[k])


def _pairs(config, path, lines, pairs):
  """Effects of sublayers alone, interactions of pairs, their second order."""
  i, j = np.array(pairs, int).reshape(-1, 2).T
  effects = decoder_interactions.alone(
    config, path, jnp.concatenate([lines, lines[i] + lines[j]])
  )
  alone = {name: leaf[: len(lines)] for name, leaf in effects.items()}
  if not pairs:
    return alone, {}, {}
  exact = {
    name: leaf[len(lines) :] - leaf[i] - leaf[j]
    for name, leaf in effects.items()
  }
  return (
    alone,
    exact,
    decoder_interactions.second_order(config, path, lines[i], lines[j]),
  )


def _check_logits(config, path, quadrature):
  """Relative completeness error of all logits at once."""
  _, weights_Z = propagation.gauss_legendre(len(quadrature.places))
  change_BRD = jnp.einsum(
    "Z,ZBRD->BRD", jnp.asarray(weights_Z, jnp.float32), quadrature.slopes
  )
  error_BR, size_BR = along_path.logit_norms(
    config, path, path.start + change_BRD, path.end
  )
  return ratio(error_BR.sum(), size_BR.sum())


def ratio(error: Any, size: Any) -> float:
  """error / size; 0 / 0 is 0 and x / 0 is inf.

  Args:
    error: a number, or an array of one.
    size: the same.
  """
  error, size = float(error), float(size)
  return 0.0 if error == 0 else error / size if size else float("inf")


def _floats(tree):
  return {name: float(value) for name, value in tree.items()}


def _join(parts):
  """Batches one after the other, without the rows that only filled them."""
  first = parts[0][0]
  joined = {}
  for name in first:
    if name in ("pairs", "completeness", "nodes", "seconds"):
      continue
    # The prompts are the last axis but one of every array.
    joined[name] = jax.tree.map(
      lambda *leaves: np.concatenate(
        [leaf[..., :size, :] for leaf, (_, size) in zip(leaves, parts)], axis=-2
      ),
      *(part[name] for part, _ in parts),
    )
  batches = [part for part, _ in parts]
  return Attributed(
    **joined,
    pairs=first["pairs"],
    completeness={
      cause: {
        name: max(part["completeness"][cause][name] for part in batches)
        for name in values
      }
      for cause, values in first["completeness"].items()
    },
    nodes=max(part["nodes"] for part in batches),
    seconds={
      name: sum(part["seconds"][name] for part in batches)
      for name in first["seconds"]
    },
  )
