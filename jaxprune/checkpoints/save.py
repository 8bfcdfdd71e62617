"""How does a whole model in memory become a folder?"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune import staging
from jaxprune.checkpoints import names
from jaxprune.checkpoints.export import finish_export, start_export, write_layer
from jaxprune.checkpoints.huggingface import Tree
from jaxprune.checkpoints.masks import FILE, Masks, write_masks
from jaxprune.checkpoints.source import Source


def save_params(
  folder: str | os.PathLike,
  params: Tree,
  source: Source,
  *,
  provenance: Mapping[str, Any] | None = None,
  drop_attention: Sequence[int] = (),
  drop_mlp: Sequence[int] = (),
  masks: Masks | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write a whole model of the shapes of another as a folder.

  The way back from a Flax tree to Hugging Face, for models that were changed in
  memory: trained ones (`studies.recovery`), or by a program of the user. On
  failure no folder is left that was not there before.

  Args:
    folder: the final place; absent or empty unless `overwrite`.
    params: the tree of `load_params`, layers stacked on `L`, any float dtype.
    source: gives names, dtypes, configuration and tokenizer.
    provenance: JSON values, written under `jaxprune` in config.json.
    drop_attention: layers whose attention is written as zero.
    drop_mlp: layers whose MLP is written as zero.
    masks: {group: {kernel: bool [L, I, O]}}, True = keep, written beside the
      weights; None or {} writes none.
    overwrite: replace an older model folder, at the end.

  Returns:
    The final folder.

  Raises:
    ValueError: the folder is in use, another job's work lies beside it, or a
      leaf is missing, extra, misshapen, not finite or too large for the dtype
      of the source.
  """
  leaves = names.flatten(params)
  stacked = {
    path.removeprefix("layers/"): leaf
    for path, leaf in leaves.items()
    if path.startswith("layers/")
  }
  outer = names.nest(
    {
      path: leaf
      for path, leaf in leaves.items()
      if not path.startswith("layers/")
    }
  )
  for path, leaf in stacked.items():
    if leaf.shape[:1] != (source.config.num_layers,):
      raise ValueError(
        f"layers/{path}: expected {source.config.num_layers} layers on the"
        f" first axis, found shape {list(leaf.shape)}; pass stacked params"
      )
  stage = staging.stage(folder)
  fresh = not stage.scaffold.exists()
  try:
    export = start_export(
      folder,
      source,
      provenance=provenance,
      drop_attention=drop_attention,
      drop_mlp=drop_mlp,
      overwrite=overwrite,
    )
    for index in range(source.config.num_layers):
      layer = {path: leaf[index] for path, leaf in stacked.items()}
      write_layer(export, index, names.nest(layer))
    if masks:
      write_masks(export.work / FILE, masks, export.job["provenance"])
    return finish_export(export, outer)
  except BaseException:
    if fresh:
      staging.discard(stage)
    raise
