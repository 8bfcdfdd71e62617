"""How does a checkpoint say that one vector stands for a text?

Reads `modules.json`, the pooling module and the prompts beside it, as
sentence-transformers writes them, and copies them along with a changed model.

Reference: the folder layout of sentence-transformers.
Differs from the reference in: a module other than a transformer, a pooling and
a normalisation raises; the pooling may also lie beside modules.json as
`1_Pooling_config.json`, and is then written back into its folder.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune import files
from jaxprune.checkpoints import folders

MODULES = "modules.json"
_COPIED = (
  MODULES,
  "sentence_bert_config.json",
  "config_sentence_transformers.json",
)
PATTERNS = (*_COPIED, "1_Pooling/config.json")  # what the hub is asked for
_KINDS = {
  "mean_tokens": "mean",
  "cls_token": "cls",
  "lasttoken": "last",
  "weightedmean_tokens": "weighted_mean",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
  """From hidden states to one vector.

  Attributes:
    kind: 'mean' over tokens, 'cls', the first token, or, of decoders, 'last',
      the last token, or 'weighted_mean', token t = 1..n with weight t.
    normalise: whether the vector is divided by its length.
  """

  kind: str
  normalise: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """From a text to one vector.

  Attributes:
    pooling: of the hidden states.
    max_tokens: a longer text loses its end; None is the model's context.
    prompts: texts that are put in front of one, by the name of their use, such
      as 'query'.
  """

  pooling: Pooling
  max_tokens: int | None = None
  prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def prompt(self, *names: str) -> str:
    """The first prompt that there is of these names; "" without any."""
    return next((self.prompts[n] for n in names if n in self.prompts), "")


def read_recipe(folder: str | os.PathLike) -> Recipe | None:
  """Read how a sentence-transformers folder embeds a text.

  Returns:
    None where there is no modules.json.

  Raises:
    ValueError: a module, a pooling or a file that is not as known here.
  """
  folder = pathlib.Path(folder)
  if not os.path.lexists(folder / MODULES):
    return None
  sizes = _read_optional(folder, "sentence_bert_config.json")
  if sizes.get("do_lower_case"):
    raise ValueError(
      f"{folder / 'sentence_bert_config.json'}: do_lower_case=true is not done"
      " here; lower the texts, and set it to false"
    )
  most = sizes.get("max_seq_length")
  if most is not None and (type(most) is not int or most < 1):
    raise ValueError(
      f"{folder / 'sentence_bert_config.json'}: max_seq_length={most!r}: must"
      " be a number of tokens or null"
    )
  path = folder / "config_sentence_transformers.json"
  fields = _read_optional(folder, path.name)
  prompts, default = (
    fields.get("prompts") or {},
    fields.get("default_prompt_name"),
  )
  texts = [*prompts.values()] if isinstance(prompts, dict) else [None]
  if not all(isinstance(text, str) for text in texts) or (
    default is not None and default not in prompts
  ):
    raise ValueError(
      f"{path}: prompts={prompts!r}, default_prompt_name={default!r}: must be"
      " texts by name, and null or one of the names"
    )
  if default is not None:
    prompts = {
      "query": prompts[default],
      "document": prompts[default],
    } | prompts
  pooling = read_pooling(folder)
  if files.read_json(_pooling_file(folder)).get("include_prompt") is False and (
    any(prompts.values())
  ):
    raise ValueError(
      f"{folder}: include_prompt=false leaves the prompt out of the pooling,"
      " which is not done here"
    )
  return Recipe(pooling=pooling, max_tokens=most, prompts=prompts)


def _read_optional(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """The object in a JSON file of the folder; {} where there is none."""
  if not os.path.lexists(folder / name):
    return {}
  return files.read_json(folders.inside(folder, name))


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


def check_sentence_files(folder: str | os.PathLike) -> None:
  """Refuse what `copy_sentence_files` would refuse, before any work.

  Raises:
    ValueError: a link that leads out of the folder, or to nothing.
  """
  folder = pathlib.Path(folder)
  for name in _COPIED:
    if os.path.lexists(folder / name):
      folders.inside(folder, name)
  if os.path.lexists(folder / MODULES):
    _pooling_file(folder)


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
    modules = files.parse_json(path.read_bytes())
    return [module["type"].rpartition(".")[2] for module in modules]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{path}: not a list of modules with a type ({error!r:.200}); copy it"
      " again"
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
  known = _KINDS | {kind: kind for kind in _KINDS.values()}
  if len(chosen) != 1 or chosen[0] not in known:
    raise ValueError(
      f"{path}: pooling {' and '.join(chosen) or 'none'}; only the mean over"
      " tokens, weighted or not, the first and the last token are computed here"
    )
  return known[chosen[0]]
