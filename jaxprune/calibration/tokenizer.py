"""Which ids does a text become, and does a text begin with a special one?

Reads tokenizer.json by the package tokenizers, without transformers.

Reference: AutoTokenizer of transformers 5, whose ids are reproduced with and
without special tokens.
Differs from the reference in: padding and truncation that tokenizer.json asks
for are switched off, because a calibration window is cut here.
"""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

from jaxprune import devices, files
from jaxprune.calibration import panics, tokenizer_classes

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
_LONG = 1 << 20  # characters
# Of memory for a character of a text that is one document, at most.
_BYTES = 128


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
    with panics.hidden():
      tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
      fields, name = _read_class(pathlib.Path(folder))
      _as_stock(tokenizer, fields, tokenizer_classes.find_class(name))
  except ValueError:
    raise
  except BaseException as error:  # the Rust side raises bare Exception, panics
    if not isinstance(error, Exception) and not panics.is_panic(error):
      raise
    reason = files.reason(error)
    raise ValueError(
      f"{path}: not a tokenizer ({reason}); copy or download it again"
    ) from error
  return tokenizer


def _as_stock(tokenizer, fields, found) -> None:
  """Change what AutoTokenizer would, for a class that it would take."""
  if found:
    found.rebuild(tokenizer, fields)
  tokenizer_classes.add_special_tokens(
    tokenizer, fields, found.tokens if found else {}
  )
  tokenizer.encode_special_tokens = bool(fields.get("split_special_tokens"))
  tokenizer.no_padding()
  tokenizer.no_truncation()


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
    ValueError: add_bos=True without bos_id, or the tokenizer is damaged and
      fails on the text, or the text is too long for the memory.
  """
  if add_bos and bos_id is None:
    raise ValueError(
      "add_bos=True: the model names no beginning-of-text token; use None"
    )
  ids = _ids(tokenizer, text, add_bos is None)
  return [bos_id, *ids] if add_bos else ids


def adds_bos(tokenizer: "tokenizers.Tokenizer") -> bool:
  """Whether `encode` puts a token before a text by itself.

  Raises:
    ValueError: the tokenizer is damaged.
  """
  plain = _ids(tokenizer, "a", False)
  return _ids(tokenizer, "a", True)[: len(plain)] != plain


def _ids(tokenizer, text, special) -> list[int]:
  memory = devices.host_bytes()
  if memory is not None and len(text) * _BYTES > memory:
    raise ValueError(
      f"a text of {len(text)} characters ({text[:40]!r}...) needs some"
      f" {devices.gib(len(text) * _BYTES)} to be turned into tokens, there are"
      f" {devices.gib(memory)}: divide it, for example by blank lines"
    )
  try:
    with panics.hidden():
      if len(text) < _LONG:
        return tokenizer.encode(text, add_special_tokens=special).ids
      # Without the place of each token in the text, which takes half the
      # memory.
      batch = tokenizer.encode_batch_fast([text], add_special_tokens=special)
      return batch[0].ids
  except BaseException as error:  # a panic of the Rust side is no Exception
    if not isinstance(error, Exception) and not panics.is_panic(error):
      raise
    reason = files.reason(error)
    raise ValueError(
      f"tokenizer.json fails on the text {text[:40]!r} ({reason}); copy or"
      " download the tokenizer again"
    ) from error


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    content = files.parse_json(path.read_bytes())
  except ValueError as error:
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
