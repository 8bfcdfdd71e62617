"""One recovery: models and text in, a folder that `verify` accepts out."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune import report as report_lib
from jaxprune.calibration import tokens as tokens_lib
from jaxprune.checkpoints import masks as masks_file
from jaxprune.models.vocabulary import check_ids
from jaxprune.probes.decoder import sequences
from jaxprune.pruning import registry
from jaxprune.recovery import finetune, trainable_mask
from jaxprune.recovery import states as states_lib

FIELDS = {
  "optimiser_step": report_lib.Field("int", "", "steps before this one")
}


def check(
  pruned: checkpoints.Source,
  dense: checkpoints.Source | None,
  recovery: finetune.Recovery,
  tokens: np.ndarray,
) -> None:
  """Refuse, before any work, what cannot be trained.

  Args:
    pruned: the model.
    dense: the original; None where the objective does not need it.
    recovery: the run.
    tokens: rows to read, int [X, T].

  Raises:
    ValueError: a setting that is out of range, models of two shapes, ids that
      the model does not have, or a model of rounded weights.
  """
  finetune.check(recovery, tokens, dense is not None)
  if dense is not None:
    sequences.check_same_shape(dense.config, pruned.config)
  check_ids(tokens, pruned.config.vocab_size, "training text")
  method = pruned.hf.get("jaxprune", {}).get("method")
  # Rounded weights would not stay on their levels in training.
  if method in registry.names(rounds=True):
    raise ValueError(
      f"{pruned.folder}: its weights are rounded ({method}), and training"
      " would leave the levels; recover a pruned model instead"
    )


def read_masks(source: checkpoints.Source, params: Any) -> trainable_mask.Masks:
  """The masks of a pruned folder: its file, or else the zeros themselves.

  Args:
    source: the pruned model.
    params: its stacked parameters.

  Returns:
    bool [L, I, O] by group and kernel, True = keep.
  """
  path = source.folder / masks_file.FILE
  if path.is_file():
    return checkpoints.read_masks(path, source.config)[0]
  return trainable_mask.masks_from_zeros(params)


def train(
  pruned: checkpoints.Source,
  dense: checkpoints.Source | None,
  recovery: finetune.Recovery,
  tokens: np.ndarray,
  logbook: finetune.Logbook | None = None,
) -> tuple[finetune.Recovered, trainable_mask.Masks]:
  """Train a pruned model.

  Args:
    pruned: the model.
    dense: the original; None where the objective does not need it.
    recovery: the run.
    tokens: rows to read, int [X, T].
    logbook: where it says how far it is, and keeps its state; None for neither.

  Returns:
    The trained model, and the masks that held.
  """
  config, params = checkpoints.load_params(pruned, jnp.float32)
  masks = read_masks(pruned, params)
  needed = dense is not None and recovery.objective != "language"
  return finetune.recover(
    config,
    params,
    tokens,
    recovery,
    masks=masks,
    drops=checkpoints.read_drops(pruned),
    dense=checkpoints.load_params(dense, jnp.float32) if needed else None,
    logbook=logbook or finetune.Logbook(),
  ), masks


def write(
  folder: str | os.PathLike,
  pruned: checkpoints.Source,
  params: Any,
  masks: trainable_mask.Masks,
  recovery: finetune.Recovery,
  *,
  notes: dict[str, Any] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write the recovered model beside its masks, in the dtype of the pruned.

  Args:
    folder: the final place.
    pruned: what was trained; its record under `jaxprune` in config.json is
      kept, and `recovery` added.
    params: float32, stacked.
    masks: True = keep.
    recovery: what was done.
    notes: more JSON values for the record, hashes for example.
    overwrite: replace an older model folder.
  """
  earlier = dict(pruned.hf.get("jaxprune", {}))
  provenance = earlier | {
    "recovery": dataclasses.asdict(recovery) | (notes or {})
  }
  return checkpoints.save_params(
    folder,
    params,
    pruned,
    provenance=provenance,
    masks=masks,
    overwrite=overwrite,
  )


def recover(
  out: str | os.PathLike,
  models: Mapping[str, checkpoints.Source],
  recovery: finetune.Recovery,
  calibration: tokens_lib.Calibration,
  *,
  states: pathlib.Path | None = None,
  report: Callable[[str], None] = lambda line: None,
) -> dict[str, np.ndarray]:
  """Train a pruned model and write the folder of the trained one.

  Args:
    out: the folder.
    models: `pruned`, and `dense` where the objective needs it.
    recovery: the run.
    calibration: the text.
    states: folder in which a long run keeps its state, to go on after a kill;
      None keeps nothing.
    report: gets a line of progress every few seconds.

  Returns:
    The losses, see `finetune.Recovered`.
  """
  pruned = models["pruned"]
  notes = {
    "calibration": tokens_lib.describe(calibration),
    "checkpoint_hash": {
      name: checkpoints.checkpoint_hash(source)
      for name, source in models.items()
    },
  }
  kept = None
  if states is not None:
    kept = states_lib.States(states, dataclasses.asdict(recovery) | notes)
  recovered, masks = train(
    pruned,
    models.get("dense"),
    recovery,
    calibration.tokens,
    finetune.Logbook(report=report, states=kept),
  )
  write(out, pruned, recovered.params, masks, recovery, notes=notes)
  return recovered.losses


def loss_rows(
  losses: dict[str, np.ndarray], seed: int
) -> Iterator[dict[str, Any]]:
  """Make a row per step and part of the loss.

  Args:
    losses: of `finetune.Recovered`.
    seed: of the run.
  """
  for name, values in losses.items():
    for step, value in enumerate(values):
      yield {
        "metric": name,
        "optimiser_step": step,
        "value": value,
        "seed": seed,
      }


def summarise(
  recovery: finetune.Recovery, losses: dict[str, np.ndarray], sparsity: float
) -> dict[str, Any]:
  """What a recovery did.

  Args:
    recovery: the run.
    losses: of `finetune.Recovered`.
    sparsity: fraction of zeros in the kernels of the folder that was written.

  Returns:
    `objective`, `steps`, `sparsity`, and the mean loss of the `first` and the
    `last` tenth of the steps, by part.
  """
  tenth = max(1, recovery.steps // 10)
  return {
    "objective": recovery.objective,
    "steps": recovery.steps,
    "sparsity": sparsity,
    "first": {
      name: float(np.mean(values[:tenth])) for name, values in losses.items()
    },
    "last": {
      name: float(np.mean(values[-tenth:])) for name, values in losses.items()
    },
  }


def headline(summary: dict[str, Any]) -> str:
  """One line, and another where training brought nothing."""
  first, last = summary["first"]["loss"], summary["last"]["loss"]
  line = (
    f"{summary['sparsity']:.4f} of the kernels is zero, loss {first:.4g} to"
    f" {last:.4g} nats"
  )
  if last < first:
    return line
  return (
    f"{line}\nthe loss did not fall: lower the learning rate, or read more"
    " tokens in a step"
  )
