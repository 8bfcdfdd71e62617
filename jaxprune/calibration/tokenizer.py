"""Which ids does a text become, and does a text begin with a special one?

Reads tokenizer.json by the package tokenizers, without transformers.

Reference: AutoTokenizer of transformers 5, whose ids are reproduced with and
without special tokens.
Differs from the reference in: padding and truncation that tokenizer.json asks
for are switched off, because a calibration window is cut here.
"""

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from jaxprune.calibration import tokenizer_classes

if TYPE_CHECKING:
  # At run time only where it is used: the pruning methods import this package
  # for its statistics and need no tokenizer.
  import tokenizers


# What other tokenizers are kept in; AutoTokenizer makes tokenizer.json of them.
_OTHER_FILES = (
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tekken.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
  """Which tokens begin and end a text, by the tokenizer's own files.

  config.json says it too, and may say something else.

  Attributes:
    bos_id: beginning of text, or None.
    eos_id: end of text, or None.
  """

  bos_id: int | None = None
  eos_id: int | None = None

  @property
  def prefix_id(self) -> int | None:
    """What a text without a context is conditioned on: BOS, or else EOS."""
    return self.eos_id if self.bos_id is None else self.bos_id

  @property
  def end_ids(self) -> tuple[int, ...]:
    """EOS, if there is one."""
    return () if self.eos_id is None else (self.eos_id,)


def special_tokens(
  folder: str | os.PathLike, tokenizer: "tokenizers.Tokenizer"
) -> SpecialTokens:
  """Read bos_token and eos_token as AutoTokenizer does.

  Args:
    folder: a checkpoint; tokenizer_config.json and special_tokens_map.json of
      it are read where they are there.
    tokenizer: from `load_tokenizer` of the same folder.

  Raises:
    ValueError: one of the files is broken.
  """
  fields, name = _read_class(pathlib.Path(folder))
  found = tokenizer_classes.find_class(name)

  def id_of(key):
    token = fields.get(key, found.tokens.get(key) if found else None)
    text = tokenizer_classes.text_of(token)
    return None if text is None else tokenizer.token_to_id(text)

  return SpecialTokens(bos_id=id_of("bos_token"), eos_id=id_of("eos_token"))


def load_tokenizer(folder: str | os.PathLike) -> "tokenizers.Tokenizer":
  """Load tokenizer.json of a checkpoint, without padding and truncation.

  What AutoTokenizer would change of it for this family and class is changed.
  Special tokens are put around a text as tokenizer.json says. Like
  transformers 5, and unlike 4, this does not read `add_bos_token` of
  tokenizer_config.json.

  Raises:
    ValueError: there is none, or it is broken.
  """
  import tokenizers

  path = pathlib.Path(folder) / "tokenizer.json"
  if not path.is_file():
    there = [name for name in _OTHER_FILES if (path.parent / name).is_file()]
    beside = f" beside {' and '.join(there)}" if there else ""
    raise ValueError(
      f"{path}: no such file{beside}; make it once:"
      f" transformers.AutoTokenizer.from_pretrained({os.fspath(folder)!r})"
      f".save_pretrained({os.fspath(folder)!r})"
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
  except Exception as error:  # the Rust side raises bare Exception
    raise ValueError(
      f"{path}: not a tokenizer ({error}); copy or download it again"
    ) from error
  fields, name = _read_class(pathlib.Path(folder))
  found = tokenizer_classes.find_class(name)
  if found:
    found.rebuild(tokenizer, fields)
  tokenizer_classes.add_special_tokens(
    tokenizer, fields, found.tokens if found else {}
  )
  tokenizer.encode_special_tokens = bool(fields.get("split_special_tokens"))
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def encode(
  tokenizer: "tokenizers.Tokenizer",
  text: str,
  add_bos: bool | None = None,
  bos_id: int | None = None,
) -> list[int]:
  """Token ids of a text.

  Args:
    tokenizer: from `load_tokenizer`.
    text: any.
    add_bos: None: the special tokens that the tokenizer adds by itself, as
      transformers does. False: none. True: exactly one `bos_id` first, and no
      other.
    bos_id: needed for True.

  Raises:
    ValueError: add_bos=True without bos_id.
  """
  if add_bos and bos_id is None:
    raise ValueError(
      "add_bos=True: the model names no beginning-of-text token; use None"
    )
  ids = tokenizer.encode(text, add_special_tokens=add_bos is None).ids
  return [bos_id, *ids] if add_bos else ids


def adds_bos(tokenizer: "tokenizers.Tokenizer") -> bool:
  """Whether `encode` puts a token before a text by itself."""
  plain = tokenizer.encode("a", add_special_tokens=False).ids
  return tokenizer.encode("a").ids[: len(plain)] != plain


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: not JSON ({error}); mend it") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path}: not a JSON object; mend it")
  return content


def _read_class(folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """tokenizer_config.json, and the name of the class that stock takes."""
  fields = _read_object(folder / "tokenizer_config.json")
  if "added_tokens_decoder" not in fields:
    fields = fields | _read_object(folder / "special_tokens_map.json")
  config = _read_object(folder / "config.json")
  named = fields.get("tokenizer_class") or config.get("tokenizer_class")
  path = folder / "tokenizer.json"
  return fields, tokenizer_classes.class_name(
    config.get("model_type"),
    named if isinstance(named, str) else None,
    lambda: '"ByteLevel"' in path.read_text(encoding="utf-8"),
  )
