"""One recovery: models and text in, a folder that `verify` accepts out.

Shared by `recover` and `recovery_study`. Nothing here knows flags.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.probes.decoder import sequences
from jaxprune.recovery import finetune, freedom

MASKS = "masks.safetensors"
# Their weights lie on levels, which training would leave.
_ROUNDED = ("rtn", "awq")


def check(
  pruned: checkpoints.Source,
  dense: checkpoints.Source | None,
  recovery: finetune.Recovery,
  tokens: np.ndarray,
) -> None:
  """Refuse, before any work, what cannot be trained.

  Raises:
    ValueError: as `finetune.check`; models of two shapes, ids that the model
      does not have, or a model of rounded weights.
  """
  finetune.check(recovery, tokens, dense is not None)
  if dense is not None:
    sequences.check_same_shape(dense.config, pruned.config)
  if tokens.max() >= pruned.config.vocab_size:
    raise ValueError(
      f"token id {tokens.max()}: the vocabulary has"
      f" {pruned.config.vocab_size}; use this model's own tokenizer"
    )
  method = pruned.hf.get("jaxprune", {}).get("method")
  if method in _ROUNDED:
    raise ValueError(
      f"{pruned.folder}: its weights are rounded ({method}), and training"
      " would leave the levels; recover a pruned model instead"
    )


def read_masks(source: checkpoints.Source, params: Any) -> freedom.Masks:
  """The masks of a pruned folder: its file, or else the zeros themselves."""
  path = source.folder / MASKS
  if path.is_file():
    return checkpoints.read_masks(path, source.config)[0]
  return freedom.masks_from_zeros(params)


def train(
  pruned: checkpoints.Source,
  dense: checkpoints.Source | None,
  recovery: finetune.Recovery,
  tokens: np.ndarray,
  report: Callable[[str], None],
) -> tuple[finetune.Recovered, freedom.Masks]:
  """Train a pruned folder; returns the model and the masks that held."""
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
    report=report,
  ), masks


def write(
  folder: str | os.PathLike,
  pruned: checkpoints.Source,
  params: Any,
  masks: freedom.Masks,
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
  export = checkpoints.start_export(
    folder, pruned, provenance=provenance, overwrite=overwrite
  )
  layers = params["layers"]
  for index in range(pruned.config.num_layers):
    checkpoints.write_layer(export, index, _pick(layers, index))
  if masks:
    checkpoints.write_masks(export.work / MASKS, masks, provenance)
  outer = {name: tree for name, tree in params.items() if name != "layers"}
  return checkpoints.finish_export(export, outer)


def _pick(tree, index):
  if isinstance(tree, dict):
    return {name: _pick(branch, index) for name, branch in tree.items()}
  return tree[index]
