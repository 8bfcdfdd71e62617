"""What does run.json say of a script: its flags, seeds, versions and inputs?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import command_line

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints
  from jaxprune.calibration import prompts as prompts_lib
  from jaxprune.calibration import tokens

  Models = (
    checkpoints.Source | str | Mapping[str, checkpoints.Source | str | None]
  ) | None


def flag_values() -> dict[str, Any]:
  """The script's own flags with their resolved values, for run.json."""
  return {flag.name: flag.value for flag in command_line.own_flags()}


def describe(
  *,
  seeds: Mapping[str, Any],
  models: "Models" = None,
  calibration: "tokens.Calibration | Mapping[str, Any] | None" = None,
  prompts: "prompts_lib.Prompts | Mapping[str, Any] | None" = None,
  notes: Mapping[str, Any] | None = None,
  whole: bool = True,
) -> dict[str, Any]:
  """What run.json says of this script.

  Args:
    seeds: by name, what was drawn with them.
    models: checkpoints or folders, by name or alone, whose hashes are kept.
    calibration: tokens that the method looked at, or a description of them.
    prompts: what the models read, or a description of it.
    notes: other entries.
    whole: whether weights must be those that were written, in a folder that
      says which.

  Returns:
    A JSON-able dict.

  Raises:
    ValueError: a file of weights was changed.
  """
  from jaxprune import report
  from jaxprune.calibration import tokens
  from jaxprune.checkpoints import export_job
  from jaxprune.studies import fingerprint, inputs

  # All bytes are read for the hash anyway: the moment to compare them.
  for source in opened(models).values() if whole else ():
    export_job.check_whole(source.folder)
  if isinstance(calibration, tokens.Calibration):
    calibration = tokens.describe(calibration)
  description = report.describe_run(
    flags=flag_values(),
    command=command_line.command(),
    seeds=seeds,
    checkpoint_hash=_hashes(models),
    calibration=calibration,
  )
  if prompts is not None:
    description["prompts"] = (
      dict(prompts)
      if isinstance(prompts, Mapping)
      else inputs.describe_prompts(prompts)
    )
  description["inputs"] = fingerprint.describe_inputs(
    opened(models),
    {k: v for k, v in description["flags"].items() if k != "out"},
  )
  return description | dict(notes or {})


def opened(models) -> "dict[str, checkpoints.Source]":
  """Those of the models that are opened checkpoints, by role."""
  if models is None or isinstance(models, str):
    return {}
  if not isinstance(models, Mapping):
    return {"model": models}
  return {
    role: model
    for role, model in models.items()
    if model is not None and not isinstance(model, str)
  }


def _hashes(models):
  """Hashes of models that are given as they are, by role, or as hashes."""
  from jaxprune import checkpoints

  if models is None or isinstance(models, str):
    return models
  if isinstance(models, Mapping):
    return {
      role: _hashes(model)
      for role, model in models.items()
      if model is not None
    }
  return checkpoints.checkpoint_hash(models)
