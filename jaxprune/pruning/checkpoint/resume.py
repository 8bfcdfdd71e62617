"""What does a finished layer leave on disk, so that a killed run can go on?

Its shard, its masks, the activations that enter the next layer and a line of
`progress.json`, in that order: the line, written last, makes the layer count.
Only the writer process writes; all processes read the same folder, which
therefore must be on a file system that they share.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from jaxprune import checkpoints, devices, files
from jaxprune.checkpoints import export as exports
from jaxprune.checkpoints import masks
from jaxprune.pruning.checkpoint import streaming
from jaxprune.pruning.checkpoint.streaming import Memory, States

PROGRESS = "progress.json"
MASKS = "masks.safetensors"

Export = exports.Export
Tree = dict[str, Any]


def read_log(export: Export) -> list[dict[str, Any]]:
  """The rows of the layers that an earlier run finished."""
  path = export.work / PROGRESS
  log = files.read_json(path)["layers"] if path.is_file() else []
  whole = set(checkpoints.finished_layers(export))
  return log if whole.issuperset(range(len(log))) else []


def read_states(export: Export, index: int, memory: Memory) -> States:
  """The activations that enter layer `index`, as they were committed.

  Raises:
    ValueError: they were cut into other micro-batches.
  """
  path = _states_file(export, index)
  with np.load(path) as data:
    batches = [data[name] for name in data.files]
  return [streaming.place_states(x, memory) for x in batches]


def commit(
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
  last = index + 1 == export.config.num_layers
  batches = (
    [] if states is None or last else [devices.to_host(x) for x in states]
  )
  if devices.is_writer():
    checkpoints.write_layer(export, index, layer)
    if keep:
      stacked = jax.tree.map(lambda mask: mask[None], keep)
      checkpoints.write_masks(_masks_file(export, index), stacked, {})
    if batches:
      with files.atomic_file(_states_file(export, index + 1)) as file:
        np.savez(file, **{f"batch{i:05d}": x for i, x in enumerate(batches)})
    files.atomic_write_json(export.work / PROGRESS, {"layers": log})
    _states_file(export, index).unlink(missing_ok=True)
  devices.wait_for_all(f"layer {index}")


def finish(export: Export, job: dict[str, Any]) -> None:
  """Join the masks, remove the scaffolding, give the folder its name."""
  if devices.is_writer():
    paths = [_masks_file(export, i) for i in range(export.config.num_layers)]
    parts = [path for path in paths if path.is_file()]
    if parts and not (export.work / MASKS).is_file():
      masks.merge_masks(export.work / MASKS, parts, job)
    for path in parts:
      path.unlink()
    checkpoints.finish_export(export)
  devices.wait_for_all("finished")


def _states_file(export, index) -> pathlib.Path:
  return export.work / f"states-{index:05d}.npz"


def _masks_file(export, index) -> pathlib.Path:
  return export.work / f"masks-{index:05d}.safetensors"
