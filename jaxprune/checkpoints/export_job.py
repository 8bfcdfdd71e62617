"""May this export begin, whose is the work that lies there, and is it whole?"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune import files, staging
from jaxprune.checkpoints import names, shards
from jaxprune.checkpoints.source import Source

RECORD = "jaxprune_export.json"
_SAMPLE = 4096  # bytes of each tensor that tell two sources apart


def check_drops(
  source: Source, sublayer: str, indices: Sequence[int]
) -> list[int]:
  """Check the layers to drop from.

  Args:
    source: the model.
    sublayer: attention or mlp.
    indices: of the layers.

  Returns:
    The indices, ascending.

  Raises:
    ValueError: there is no such layer, or a zero projection is no identity.
  """
  num_layers = source.config.num_layers
  drops = sorted({int(index) for index in indices})
  if drops and not 0 <= drops[0] <= drops[-1] < num_layers:
    raise ValueError(
      f"drop_{sublayer}={drops}: the model has layers 0..{num_layers - 1};"
      " drop some of those"
    )
  if drops and sublayer not in names.table(source.config).sublayer_outputs:
    raise ValueError(
      f"drop_{sublayer}={drops}: a zero projection is no identity in family"
      f" {source.config.family!r}; it cannot be exported with drops"
    )
  return drops


def check_target(
  folder: pathlib.Path, home: pathlib.Path, overwrite: bool
) -> None:
  """Refuse an output folder before any long work.

  Args:
    folder: the final place.
    home: the folder of the source, which is kept.
    overwrite: whether an older model folder may be replaced.

  Raises:
    ValueError: it holds the source, or something that is not to be replaced.
  """
  home = home.resolve()
  if folder == home or folder in home.parents:
    raise ValueError(
      f"{folder}: holds the source model; choose another output folder"
    )
  staging.check_place(folder)
  if not folder.exists() or not any(folder.iterdir()):
    return
  if not overwrite:
    raise ValueError(
      f"{folder}: is not empty; choose another output folder or overwrite"
    )
  if not (folder / "config.json").is_file():
    raise ValueError(
      f"{folder}: is not a model folder (no config.json), so it is not"
      " overwritten; choose another output folder"
    )


def fingerprint(source: Source) -> dict[str, Any]:
  """Tell sources apart, by what is read before any work.

  Args:
    source: the model.

  Returns:
    `tensors`: sha256 over headers and the first bytes of every tensor;
    `config`: the fields that reach the logits or end a text.
  """
  digest = hashlib.sha256()
  for name, tensor in sorted(source.tensors.items()):
    line = json.dumps([name, tensor.dtype, list(tensor.shape)])
    digest.update(line.encode("utf-8") + b"\n")
    raw = shards.view(tensor).reshape(-1).view(np.uint8)
    digest.update(raw[:_SAMPLE].data)
  return {
    "tensors": digest.hexdigest(),
    "config": describe_config(source.config),
  }


def describe_config(config: names.Config) -> dict[str, Any]:
  """The fields in which two configurations of other outputs differ, as JSON.

  Args:
    config: of a decoder or an encoder.
  """
  compared = {f.name for f in dataclasses.fields(config) if f.compare}
  return {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name in compared
  }


def check_whole(folder: pathlib.Path) -> None:
  """Compare the shards of a finished folder with what was written.

  Args:
    folder: of `finish_export`.

  Raises:
    ValueError: a shard is missing or another one; names it.
  """
  for name, written in recorded_shards(folder).items():
    path = folder / name
    if not isinstance(written, dict) or "sha256" not in written:
      raise ValueError(
        f"{folder / RECORD}: is damaged (shard {name!r:.80}); copy it again"
      )
    if not path.is_file() or files.sha256_file(path) != written["sha256"]:
      raise ValueError(
        f"{path}: is not what was written (its sha256 is not that in"
        f" {RECORD}); copy it again or write the model anew, or remove {RECORD}"
        " to read a file that you changed on purpose"
      )


def recorded_shards(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Size and sha256 of each shard of a finished folder; {} for no record.

  Args:
    folder: of `finish_export`, or any other.
  """
  path = folder / RECORD
  shards = files.read_json(path).get("shards", {}) if path.is_file() else {}
  if not isinstance(shards, dict):
    raise ValueError(f"{path}: is damaged (shards); copy it again")
  return shards


def finished_job(folder: pathlib.Path) -> dict[str, Any] | None:
  """The job of a folder of `finish_export`; None where there is none."""
  path = folder / RECORD
  if not path.is_file():
    return None
  record = files.read_json(path)
  return record.get("job") if "shards" in record else None
