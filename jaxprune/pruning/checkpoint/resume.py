"""What does a finished layer leave on disk, so that a killed run can go on?

Its shard, its masks, the activations that enter the next layer and a line of
`progress.json`, in that order: the line, written last, makes the layer count.
What a killed run left of a layer without such a line is written again. With the
line stands the sha256 of all that the next layers rest on, and a run that goes
on compares it first: what a disk has changed is refused.

Masks and activations are scaffolding: they lie beside the folder that is
published, and never get its name.

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
from jaxprune.checkpoints import export_job, masks, orbax
from jaxprune.pruning.checkpoint.streaming import States

PROGRESS = "progress.json"
MASKS = masks.FILE

Export = exports.Export
Tree = dict[str, Any]


def read_log(export: Export) -> list[dict[str, Any]]:
  """The rows of the layers that an earlier run finished.

  Every process must call it.

  Raises:
    ValueError: tensors, masks or activations are not what was written.
  """
  progress = _read_progress(export.work)
  log = progress["layers"]
  whole = set(checkpoints.finished_layers(export))
  if not whole.issuperset(range(len(log))):
    return []
  devices.ask_writer(lambda: _check(export, progress))
  return log


def read_finished(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a folder that the same job has finished.

  Every process must call it.

  Raises:
    ValueError: a file is not what was written.
  """
  devices.ask_writer(lambda: export_job.check_whole(folder))
  return _read_progress(folder)["layers"]


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
      f" {export.stage.scaffold} to start over"
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
    earlier = _read_progress(export.work).get("sha256", {}) if index else {}
    hashes = {name: h for name, h in earlier.items() if not _is_states(name)}
    for path in (_masks_file(export, index), _states_folder(export, index + 1)):
      if path.exists():
        hashes[path.name] = _hash(path)
    files.atomic_write_json(
      export.work / PROGRESS, {"layers": log, "sha256": hashes}
    )
    _remove_states(export, but=index + 1)
  devices.wait_for_all(f"layer {index}")


def finish(export: Export, job: dict[str, Any]) -> None:
  """Join the masks and give the folder its name.

  Args:
    export: all of whose layers are saved.
    job: JSON values that describe the masks.
  """
  if devices.is_writer():
    paths = [_masks_file(export, i) for i in range(export.config.num_layers)]
    parts = [path for path in paths if path.is_file()]
    if parts:
      masks.merge_masks(export.work / MASKS, parts, job)
    progress = _read_progress(export.work)
    files.atomic_write_json(
      export.work / PROGRESS, {"layers": progress["layers"]}
    )
    checkpoints.finish_export(export)
  devices.wait_for_all("finished")


def _read_progress(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / PROGRESS
  return files.read_json(path) if path.is_file() else {"layers": []}


def _check(export: Export, progress: dict[str, Any]) -> None:
  """Refuse what is not as the record says."""
  exports.check_layers(export, range(len(progress["layers"])))
  for name, expected in progress.get("sha256", {}).items():
    path = export.stage.scaffold / name
    if not path.exists() or _hash(path) != expected:
      raise ValueError(
        f"{path}: is not what was written; check the disk, and remove"
        f" {export.stage.scaffold} to start over"
      )


def _hash(path: pathlib.Path) -> str:
  return files.sha256_tree(path) if path.is_dir() else files.sha256_file(path)


def _named(states: States) -> dict[str, Any]:
  """The micro-batches by names that sort as they stand."""
  return {f"batch{i:05d}": x for i, x in enumerate(states.batches)}


def _is_states(name: str) -> bool:
  return name.startswith("states-")


def _states_folder(export, index) -> pathlib.Path:
  return export.stage.scaffold / f"states-{index:05d}"


def _remove_states(export, but: int | None = None) -> None:
  """Remove all activations but those that enter layer `but`.

  Also what a killed step left: unfinished writes of orbax, whose folders have
  longer names.
  """
  kept = None if but is None else _states_folder(export, but)
  for folder in export.stage.scaffold.glob("states-*"):
    if folder != kept:
      shutil.rmtree(folder)


def _masks_file(export, index) -> pathlib.Path:
  return export.stage.scaffold / f"masks-{index:05d}.safetensors"
