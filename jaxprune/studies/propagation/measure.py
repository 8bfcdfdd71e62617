"""Divide the change of every pruned model and control, and write the rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxprune import checkpoints, devices, report
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.models.config import ModelConfig
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation import memory
from jaxprune.studies import texts as texts_lib
from jaxprune.studies.propagation import arrays
from jaxprune.studies.propagation.arrays import Attributed, Settings
from jaxprune.studies.propagation.models import changed_models
from jaxprune.studies.propagation.rows import FIELDS, rows
from jaxprune.studies.pruned_models import PrunedModel

__all__ = ["FIELDS", "Settings", "check", "measure"]


def check(
  config: ModelConfig, prompts: prompts_lib.Prompts, settings: Settings
) -> memory.PeakBytes:
  """Count the bytes of the run, and refuse what cannot be.

  Args:
    config: of the dense model.
    prompts: what is continued.
    settings: of the run.

  Raises:
    ValueError: more groups than layers, or more bytes than the device has.
  """
  propagation.layer_groups(config.num_layers, settings.groups)
  steps = settings.max_new_tokens
  needed = memory.estimate_bytes(
    config,
    batch=settings.batch,
    length=max(map(len, prompts.tokens)) + steps - 1,
    num_steps=steps,
    directions=max(2 * config.num_layers, settings.groups * (steps + 1)),
    nodes=settings.max_nodes,
    memory=arrays.TANGENTS,
  )
  there, _ = devices.available_bytes()
  if there is not None and needed.total > there:
    raise ValueError(
      f"needs {devices.gib(needed.total)} on the device, of which weights"
      f" {devices.gib(needed.weights)}, tangents"
      f" {devices.gib(needed.tangents)}; there are {devices.gib(there)}:"
      " use a smaller --batch, fewer --max_new_tokens or shorter prompts"
    )
  return needed


def measure(
  source: checkpoints.Source,
  pruned: Sequence[PrunedModel],
  prompts: prompts_lib.Prompts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> Mapping[tuple[str, str], dict[int, Attributed]]:
  """Measure every pruned model and its controls, and write their rows.

  The controls of a configuration are measured on the pairs of sublayers that
  were strongest in its first pruned model, and are not divided among groups of
  layers: chance has no depth.

  Args:
    source: the dense checkpoint.
    pruned: the pruned models, opened one after the other.
    prompts: continued by the dense model; both models read that text.
    settings: of the run.
    run: where rows go.
    progress: stepped for each model.

  Returns:
    What was measured, by configuration and source, by seed.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  writing = texts_lib.Writing(
    max_new_tokens=settings.max_new_tokens, batch=settings.batch
  )
  texts = list(texts_lib.dense_texts(config, params, prompts.tokens, writing))
  by_model: dict[tuple[str, str], dict[int, Attributed]] = {}
  pairs: dict[str, Any] = {}
  models = changed_models(
    config, params, pruned, with_controls=settings.controls
  )
  for index, model in enumerate(models):
    attributed = arrays.attribute(
      config,
      model.both,
      texts,
      settings
      if model.source == "pruned"
      else dataclasses.replace(settings, groups=1),
      pairs.get(model.configuration),
    )
    pairs.setdefault(model.configuration, attributed.pairs)
    key = (model.configuration, model.source)
    by_model.setdefault(key, {})[model.seed] = attributed
    run.write_all(rows(model, attributed, settings))
    progress.step(
      index,
      completeness=max(
        max(errors.values()) for errors in attributed.completeness.values()
      ),
    )
  return by_model
