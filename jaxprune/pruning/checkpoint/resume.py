"""What does a finished layer leave on disk, so that a killed run can go on?

Its shard, its masks, the activations that enter the next layer and a line of
`progress.json`, in that order: the line, written last, makes the layer count.
What a killed run left of a layer without such a line is written again.

The activations are kept by orbax: every process writes the parts that lie on
its devices, and reads them back onto the mesh of the run. All else is written
by the writer process alone. All processes see one folder, which therefore must
be on a file system that they share.
"""

import pathlib
import shutil
from typing import Any

import jax

from jaxprune import checkpoints, devices, files
from jaxprune.checkpoints import export as exports
from jaxprune.checkpoints import masks, orbax
from jaxprune.pruning.checkpoint.streaming import States

PROGRESS = "progress.json"
MASKS = masks.FILE

Export = exports.Export
Tree = dict[str, Any]


def read_log(export: Export) -> list[dict[str, Any]]:
  """The rows of the layers that an earlier run finished."""
  path = export.work / PROGRESS
  log = files.read_json(path)["layers"] if path.is_file() else []
  whole = set(checkpoints.finished_layers(export))
  return log if whole.issuperset(range(len(log))) else []


def read_states(export: Export, index: int, like: States) -> States:
  """The activations that enter layer `index`, as they were saved.

  Args:
    export: of the earlier run.
    index: of the layer.
    like: shapes and placement, from `streaming.shapes_of_states`.

  Raises:
    ValueError: they were cut into other micro-batches.
  """
  folder = _states_folder(export, index)
  try:
    tree, _ = orbax.load_tree(folder, _named(like))
  except ValueError as error:
    raise ValueError(
      f"{folder}: not the activations of this run ({error}); use the"
      " calibration and the micro_batch of the run that began, or remove"
      f" {export.work} to start over"
    ) from error
  return States(batches=[tree[name] for name in sorted(tree)], valid=like.valid)


def save_layer(
  export: Export,
  index: int,
  layer: Tree,
  keep: Tree,
  states: States | None,
  log: list[dict[str, Any]],
) -> None:
  """Put a finished layer on disk.

  Args:
    export: where to.
    index: of the layer.
    layer: what is written of it.
    keep: its masks, {} for none.
    states: the activations that leave it; None for none.
    log: the rows so far, this layer's last.
  """
  layer, keep = devices.to_host(layer), devices.to_host(keep)
  if devices.is_writer():
    checkpoints.write_layer(export, index, layer)
    if keep:
      stacked = jax.tree.map(lambda mask: mask[None], keep)
      checkpoints.write_masks(_masks_file(export, index), stacked, {})
    _remove_states(export, but=index)
  devices.wait_for_all(f"wrote layer {index}")
  if states is not None and index + 1 < export.config.num_layers:
    orbax.save_tree(_states_folder(export, index + 1), _named(states), {})
  if devices.is_writer():
    files.atomic_write_json(export.work / PROGRESS, {"layers": log})
    _remove_states(export, but=index + 1)
  devices.wait_for_all(f"layer {index}")


def finish(export: Export, job: dict[str, Any]) -> None:
  """Join the masks, remove the scaffolding, give the folder its name.

  Args:
    export: all of whose layers are saved.
    job: JSON values that describe the masks.
  """
  if devices.is_writer():
    _remove_states(export)
    paths = [_masks_file(export, i) for i in range(export.config.num_layers)]
    parts = [path for path in paths if path.is_file()]
    if parts and not (export.work / MASKS).is_file():
      masks.merge_masks(export.work / MASKS, parts, job)
    for path in parts:
      path.unlink()
    checkpoints.finish_export(export)
  devices.wait_for_all("finished")


def _named(states: States) -> dict[str, Any]:
  """The micro-batches by names that sort as they stand."""
  return {f"batch{i:05d}": x for i, x in enumerate(states.batches)}


def _states_folder(export, index) -> pathlib.Path:
  return export.work / f"states-{index:05d}"


def _remove_states(export, but: int | None = None) -> None:
  """Remove all activations but those that enter layer `but`.

  Also what a killed step left: unfinished writes of orbax, whose folders have
  longer names.
  """
  kept = None if but is None else _states_folder(export, but)
  for folder in export.work.glob("states-*"):
    if folder != kept:
      shutil.rmtree(folder)


def _masks_file(export, index) -> pathlib.Path:
  return export.work / f"masks-{index:05d}.safetensors"
