"""May this export begin, and is the unfinished work that lies there its own?"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.checkpoints import names, shards
from jaxprune.checkpoints.source import Source

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
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; choose another output folder")
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


def fingerprint(source: Source) -> str:
  """Tell sources apart by headers and the first bytes of every tensor."""
  digest = hashlib.sha256()
  for name, tensor in sorted(source.tensors.items()):
    line = json.dumps([name, tensor.dtype, list(tensor.shape)])
    digest.update(line.encode("utf-8") + b"\n")
    raw = shards.view(tensor).reshape(-1).view(np.uint8)
    digest.update(bytes(_SAMPLE) if name in source.zeroed else raw[:_SAMPLE])
  return digest.hexdigest()


def difference(earlier: Any, job: dict[str, Any]) -> str:
  """Name the first thing in which two jobs differ.

  Args:
    earlier: the job of a record, whatever lies there.
    job: the job of now.
  """
  earlier = earlier if isinstance(earlier, dict) else {}
  flat_earlier, flat_job = names.flatten(earlier), names.flatten(job)
  for key in sorted(flat_earlier.keys() | flat_job.keys()):
    before, now = flat_earlier.get(key), flat_job.get(key)
    if before != now:
      return f"{key} was {before!r:.80}, now {now!r:.80}"
  return "the layout differs"
