"""What `propagation` measures on one changed model, as arrays.

P sublayers (attention 0, MLP 0, attention 1, ...), G groups of layers, N
prompts, R output steps, n places of the path.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import devices
from jaxprune.calibration import batching
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.models import generation
from jaxprune.models.config import ModelConfig
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation import along_path, memory
from jaxprune.probes.decoder.propagation import (
  interactions as decoder_interactions,
)
from jaxprune.probes.decoder.propagation import path as decoder_path

GRID = tuple(np.linspace(0.05, 1.0, 20).tolist())
# Places of the speeds: both ends, and nodes whose weights integrate over t.
_NODES, _WEIGHTS = propagation.gauss_legendre(8)
SPEED_GRID = (0.0, *_NODES.tolist(), 1.0)
SPEED_WEIGHTS = (0.0, *_WEIGHTS.tolist(), 0.0)
# Metrics that are taken apart by step; there are as many as steps squared.
STEP_METRICS = ("kl", "log_prob", "dz_centred")
_TANGENTS = 1 << 30  # bytes
_FIRST_NODES = 6  # and doubled until the change is complete


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a change is divided; the flags of `propagation`."""

  max_new_tokens: int
  analysis_temperature: float = 1.0
  tolerance: float = 1e-3
  max_nodes: int = 64
  batch: int = 8
  groups: int = 3
  interactions: int = 8
  options: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """The dense model's text of a batch.

  Attributes:
    tokens: int [B, T].
    valid: bool [B, T].
    alive: bool [B, R]; False also for rows that only fill the batch.
    size: prompts of this batch.
  """

  tokens: np.ndarray
  valid: np.ndarray
  alive: np.ndarray
  size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """Everything that was measured on one changed model.

  Attributes:
    alive: bool [N, R], outputs that count.
    change: by metric, [N, R].
    sublayers: contributions by metric, [P, N, R].
    sublayers_first: the same to first order.
    steps: by metric of STEP_METRICS, [G, R + 1, N, R]; cause 0 is the text
      before the first step.
    steps_first: likewise.
    scan: of GRID: error_1, error_2 and size, norms; by metric truth, order_1
      and order_2; [n, N, R] each.
    speeds: by field, of SPEED_GRID, [n, N, R].
    curvature: second derivatives of the KL, [P, P, N, R].
    alone: effects of one sublayer alone, by metric, [P, N, R].
    pairs: indices of two sublayers.
    pairs_exact: interactions by metric, [pairs, N, R].
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
  speeds: dict[str, np.ndarray]
  curvature: np.ndarray
  alone: dict[str, np.ndarray]
  pairs: tuple[tuple[int, int], ...]
  pairs_exact: dict[str, np.ndarray]
  pairs_second: dict[str, np.ndarray]
  completeness: dict[str, dict[str, float]]
  nodes: int
  seconds: dict[str, float]


def estimate_bytes(
  config: ModelConfig, prompts: prompts_lib.Prompts, settings: Settings
) -> memory.Estimate:
  """Bytes of the run.

  Raises:
    ValueError: they are more than the device has.
  """
  steps = settings.max_new_tokens
  found = memory.estimate_bytes(
    config,
    batch=settings.batch,
    length=max(map(len, prompts.tokens)) + steps - 1,
    num_steps=steps,
    directions=max(2 * config.num_layers, settings.groups * (steps + 1)),
    nodes=settings.max_nodes,
    memory=_TANGENTS,
  )
  there, _ = devices.available_bytes()
  if there is not None and found.total > there:
    raise ValueError(
      f"needs {devices.gib(found.total)} on the device, of which weights"
      f" {devices.gib(found.weights)}, tangents"
      f" {devices.gib(found.tangents)}; there are {devices.gib(there)}:"
      " use a smaller --batch, fewer --max_new_tokens or shorter prompts"
    )
  return found


def write_texts(
  config: ModelConfig,
  params: Any,
  prompts: prompts_lib.Prompts,
  settings: Settings,
) -> list[Text]:
  """The dense model's greedy texts, in batches of one shape."""
  tokens_XT, valid_XT = prompts_lib.left_pad(prompts.tokens, config.pad_id or 0)
  count, steps, texts = len(tokens_XT), settings.max_new_tokens, []
  for pick, size in batching.batches(count, settings.batch):
    tokens_BT, valid_BT = tokens_XT[pick], valid_XT[pick]
    text = generation.generate(
      config,
      params,
      jnp.asarray(tokens_BT),
      valid_BT=jnp.asarray(valid_BT),
      max_new_tokens=steps,
    )
    alive_BR = np.arange(steps)[None] < np.asarray(text.lengths)[:, None]
    texts.append(
      Text(
        # The last token is a prediction of the last step and is never read.
        tokens=np.concatenate([tokens_BT, text.tokens[:, :-1]], axis=1),
        valid=np.pad(valid_BT, ((0, 0), (0, steps - 1)), constant_values=True),
        alive=alive_BR & (np.arange(len(alive_BR)) < size)[:, None],
        size=size,
      )
    )
  return texts


def measure(
  config: ModelConfig,
  both: Any,
  texts: list[Text],
  settings: Settings,
  pairs: tuple[tuple[int, int], ...] | None = None,
) -> Found:
  """Measure one changed model.

  Args:
    config: of the dense model.
    both: parameters from `propagation_driver.add_delta`.
    texts: from `write_texts`.
    settings: how.
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
    parts.append((part, text.size))
  return _join(parts)


def _measure_batch(config, path, settings, pairs):
  """The fields of `Found` for one batch, rows that fill it included."""
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
    config, path, lines, quadrature, memory=_TANGENTS
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
    memory=_TANGENTS,
  )
  completeness["step"] = _floats(by_step.completeness_error)
  lap("steps")
  completeness["logits"] = {"z": _check_logits(config, path, quadrature)}
  scan = along_path.scan_path(config, path, jnp.asarray(GRID, jnp.float32))
  speeds = along_path.speeds(config, path, jnp.asarray(SPEED_GRID, jnp.float32))
  lap("path")
  together = memory.directions_at_once(
    config, *path.alive.shape, length, _TANGENTS
  )
  curvature = decoder_interactions.curvature_of_kl(
    config, path, lines, batch_size=min(together, len(lines))
  )
  if pairs is None:
    pairs = strongest(curvature, settings.interactions)
  alone, exact, second = _pairs(config, path, lines, pairs)
  lap("interactions")
  by_group = lambda tree: jax.tree.map(
    lambda leaf: leaf.reshape(settings.groups, steps + 1, *leaf.shape[1:]), tree
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
    "speeds": speeds,
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
  """The pairs [P, P, ...] with the largest mean, in size, the largest first.

  Pairs without any, for sublayers that did not change, are left out.
  """
  table_PP = np.asarray(curvature).mean(axis=(2, 3))
  first, second = np.triu_indices(len(table_PP), 1)
  size_X = np.abs(table_PP[first, second])
  order = np.argsort(-size_X, kind="stable")[:count]
  return tuple((int(first[k]), int(second[k])) for k in order if size_X[k])


def _pairs(config, path, lines, pairs):
  """Effects of sublayers alone, interactions of pairs, their second order."""
  i, j = np.array(pairs, int).reshape(-1, 2).T
  found = decoder_interactions.alone(
    config, path, jnp.concatenate([lines, lines[i] + lines[j]])
  )
  alone = {name: leaf[: len(lines)] for name, leaf in found.items()}
  if not pairs:
    return alone, {}, {}
  exact = {
    name: leaf[len(lines) :] - leaf[i] - leaf[j] for name, leaf in found.items()
  }
  return (
    alone,
    exact,
    decoder_interactions.second_order(config, path, lines[i], lines[j]),
  )


def _check_logits(config, path, quadrature):
  """Relative completeness error of all logits at once."""
  _, weights_K = propagation.gauss_legendre(len(quadrature.places))
  change_BRD = jnp.einsum(
    "K,KBRD->BRD", jnp.asarray(weights_K, jnp.float32), quadrature.slopes
  )
  error_BR, size_BR = along_path.logit_norms(
    config, path, path.start + change_BRD, path.end
  )
  return ratio(error_BR.sum(), size_BR.sum())


def ratio(error: Any, size: Any) -> float:
  """error / size; 0 / 0 is 0."""
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
  each = [part for part, _ in parts]
  return Found(
    **joined,
    pairs=first["pairs"],
    completeness={
      cause: {
        name: max(part["completeness"][cause][name] for part in each)
        for name in values
      }
      for cause, values in first["completeness"].items()
    },
    nodes=max(part["nodes"] for part in each),
    seconds={
      name: sum(part["seconds"][name] for part in each)
      for name in first["seconds"]
    },
  )
