"""Which files of a model folder may be read, and which tensors do they hold?

An index file is data from elsewhere: the names in it may not lead out of the
folder (stock transformers follows `../` there). Pickled weights are never
read.
"""

import os
import pathlib
from collections.abc import Iterable

from jaxprune import files
from jaxprune.checkpoints import shards

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 5  # problems spelled out in one message


def inside(folder: str | os.PathLike, name: object) -> pathlib.Path:
  """Return the path of a file that lies in a model folder.

  Symbolic links are followed; they may end in the folder or, for a snapshot in
  the Hugging Face cache (`snapshots/REVISION/`), in `../../blobs`. Large files
  are often kept elsewhere, so that `model*.safetensors` may be a link to any
  file: only tensors of the right names and shapes are read from it. What is
  copied into a written model, or read as text, may not.

  Args:
    folder: a model folder.
    name: a plain file name.

  Raises:
    ValueError: not a plain name, outside the folder, or no such file.
  """
  folder = pathlib.Path(folder)
  plain = (
    isinstance(name, str)
    and name == os.path.basename(name)
    and name not in ("", ".", "..")
    and "\\" not in name
    and "\0" not in name
  )
  if not plain:
    raise ValueError(
      f"{folder}: {name!r} is not a plain file name; a model may only name"
      " files of its own folder, get it from a source you trust"
    )
  path = folder / name
  home = pathlib.Path(os.path.realpath(folder))
  real = pathlib.Path(os.path.realpath(path))
  homes = [home]
  if home.parent.name == "snapshots":
    homes.append(home.parents[1] / "blobs")
  may_lead_out = name.startswith("model") and name.endswith(".safetensors")
  if not may_lead_out and not any(
    real.is_relative_to(place) for place in homes
  ):
    raise ValueError(
      f"{path}: leads out of its folder to {str(real)!r}; put a copy of the"
      " file there instead of a link"
    )
  if real.exists() and not real.is_file():
    raise ValueError(
      f"{path}: is no ordinary file; put a copy of the file there instead"
    )
  if not real.is_file():
    raise ValueError(
      f"{path}: no such file; the copy of the model is incomplete, copy or"
      " download it again"
    )
  return path


def check_files(folder: str | os.PathLike) -> None:
  """Refuse a folder from which other code could be led elsewhere.

  Stock transformers opens what has the right name: it follows links out of the
  folder, and waits for ever at a FIFO.

  Args:
    folder: a model folder; folders within it are not looked at.

  Raises:
    ValueError: a link leads out of it or to nothing, or an entry is neither a
      file nor a folder.
  """
  folder = pathlib.Path(folder)
  for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
    if not entry.is_dir(follow_symlinks=False):
      inside(folder, entry.name)


def read_tensors(folder: str | os.PathLike) -> dict[str, shards.Tensor]:
  """List the tensors of a model folder from its headers.

  Args:
    folder: holds `model.safetensors`, or `model.safetensors.index.json` and
      the shards it names.

  Raises:
    ValueError: no safetensors, both layouts at once, an index that names
      something other than a shard of this folder, or an index and shards that
      disagree (all disagreements in one message).
  """
  folder = pathlib.Path(folder)
  single, index = (os.path.lexists(folder / name) for name in (SINGLE, INDEX))
  if single and index:
    raise ValueError(
      f"{folder}: has both {SINGLE} and {INDEX}; remove the one that is not"
      " the model"
    )
  if single:
    return shards.read_header(inside(folder, SINGLE))[0]
  if not index:
    raise ValueError(_no_weights(folder))
  listed = _read_index(folder)
  tensors: dict[str, shards.Tensor] = {}
  problems = []
  for shard, names in listed.items():
    in_shard, _ = shards.read_header(inside(folder, shard))
    problems += [
      f"tensor {name!r} listed for {shard} but not in it"
      for name in sorted(names - in_shard.keys())
    ]
    problems += [
      f"tensor {name!r} in {shard} but not listed for it"
      for name in sorted(in_shard.keys() - names)
    ]
    tensors |= in_shard
  if problems:
    raise ValueError(
      f"{folder / INDEX}: {summarise(problems)}; index and shards are not of"
      " one model, download or export the folder again"
    )
  return tensors


def summarise(problems: Iterable[str]) -> str:
  """Join problems into one line, the first few spelled out."""
  problems = list(problems)
  line = "; ".join(problems[:_SHOWN])
  more = len(problems) - _SHOWN
  return line + (f"; and {more} more" if more > 0 else "")


def _read_index(folder: pathlib.Path) -> dict[str, set[str]]:
  """Return the tensor names that the index lists for each shard."""
  path = inside(folder, INDEX)
  weight_map = files.read_json(path).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(
      f"{path}: 'weight_map' should map tensor names to shards, found"
      f" {weight_map!r:.80}; download or export the folder again"
    )
  listed: dict[str, set[str]] = {}
  for name, shard in weight_map.items():
    # Checked before it becomes a dictionary key: a list would raise TypeError
    # there.
    if not isinstance(shard, str) or not shard.endswith(".safetensors"):
      raise ValueError(
        f"{path}: {shard!r} for tensor {name!r} is not a .safetensors file"
        " name; download or export the folder again"
      )
    listed.setdefault(shard, set()).add(name)
  return listed


def _no_weights(folder: pathlib.Path) -> str:
  """Say why a folder has no weights to read."""
  pickled = sorted(
    path.name for path in folder.iterdir() if path.suffix in _PICKLED
  )
  if pickled:
    return (
      f"{folder}: only pickled weights ({pickled[0]}), which can run code"
      " when read; convert them where you trust them with transformers:"
      " AutoModelForCausalLM.from_pretrained(FOLDER)"
      ".save_pretrained(NEW_FOLDER)"
    )
  return (
    f"{folder}: no {SINGLE} and no {INDEX}; point to a folder with a"
    " Hugging Face safetensors checkpoint"
  )
