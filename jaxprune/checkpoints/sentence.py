"""How does an encoder's checkpoint say that one vector stands for a text?

Reads `modules.json` and the pooling module beside it, as sentence-transformers
writes them, and copies them along with a changed model.

Reference: the folder layout of sentence-transformers.
Differs from the reference in: a module other than a transformer, a pooling and
a normalisation raises; the pooling may also lie beside modules.json as
`1_Pooling_config.json`, and is then written back into its folder.
"""

import dataclasses
import json
import os
import pathlib

from jaxprune import files
from jaxprune.checkpoints import folders

MODULES = "modules.json"
_COPIED = (
  MODULES,
  "sentence_bert_config.json",
  "config_sentence_transformers.json",
)
_KINDS = {"mean_tokens": "mean", "cls_token": "cls"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
  """From hidden states to one vector.

  Attributes:
    kind: 'mean' over tokens, or 'cls', the first token.
    normalise: whether the vector is divided by its length.
  """

  kind: str
  normalise: bool


def read_pooling(folder: str | os.PathLike) -> Pooling:
  """Read how a sentence encoder pools.

  Raises:
    ValueError: no modules.json, a module or a pooling that is not known here.
  """
  folder = pathlib.Path(folder)
  path = folder / MODULES
  if not path.is_file():
    raise ValueError(
      f"{path}: no such file, so nothing says how the encoder pools; copy it"
      " from the sentence-transformers checkpoint"
    )
  kinds = _module_kinds(folders.inside(folder, MODULES))
  if kinds not in (
    ["Transformer", "Pooling"],
    ["Transformer", "Pooling", "Normalize"],
  ):
    raise ValueError(
      f"{path}: modules {kinds}; only Transformer, Pooling and perhaps"
      " Normalize, in this order, are computed here"
    )
  config = _pooling_file(folder)
  return Pooling(kind=_kind(config), normalise=len(kinds) == 3)


def copy_sentence_files(
  folder: str | os.PathLike, work: str | os.PathLike
) -> None:
  """Copy what makes a checkpoint a sentence encoder, if it is one.

  Args:
    folder: the checkpoint.
    work: the folder that is filled.
  """
  folder, work = pathlib.Path(folder), pathlib.Path(work)
  for name in _COPIED:
    if os.path.lexists(folder / name):
      files.atomic_write_bytes(
        work / name, folders.inside(folder, name).read_bytes()
      )
  if os.path.lexists(folder / MODULES):
    (work / "1_Pooling").mkdir(exist_ok=True)
    files.atomic_write_bytes(
      work / "1_Pooling" / "config.json", _pooling_file(folder).read_bytes()
    )


def _module_kinds(path: pathlib.Path) -> list[str]:
  """Last names of the classes that modules.json lists."""
  try:
    modules = json.loads(path.read_text(encoding="utf-8"))
    return [module["type"].rpartition(".")[2] for module in modules]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{path}: not a list of modules with a type ({error!r}); copy it again"
    ) from error


def _pooling_file(folder: pathlib.Path) -> pathlib.Path:
  if os.path.lexists(folder / "1_Pooling_config.json"):
    return folders.inside(folder, "1_Pooling_config.json")
  if not (folder / "1_Pooling").is_dir():
    raise ValueError(
      f"{folder}: has {MODULES} but no 1_Pooling/config.json; copy it from"
      " the sentence-transformers checkpoint"
    )
  return folders.inside(folder / "1_Pooling", "config.json")


def _kind(path: pathlib.Path) -> str:
  config = files.read_json(path)
  chosen = [
    key.removeprefix("pooling_mode_")
    for key, value in config.items()
    if key.startswith("pooling_mode_") and value is True
  ]
  if isinstance(config.get("pooling_mode"), str):
    chosen.append(config["pooling_mode"])
  known = {**_KINDS, "mean": "mean", "cls": "cls"}
  if len(chosen) != 1 or chosen[0] not in known:
    raise ValueError(
      f"{path}: pooling {' and '.join(chosen) or 'none'}; only the mean over"
      " tokens or the first token is computed here"
    )
  return known[chosen[0]]
