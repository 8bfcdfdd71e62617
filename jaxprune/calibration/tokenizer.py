"""Which ids does a text become, and does a text begin with a special one?

Reads tokenizer.json by the package tokenizers, without transformers.

Reference: AutoTokenizer of transformers 5, whose ids are reproduced with and
without special tokens.
Differs from the reference in: padding and truncation that tokenizer.json asks
for are switched off, because a calibration window is cut here.
"""

import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  # At run time only where it is used: the pruning methods import this package
  # for its statistics and need no tokenizer.
  import tokenizers


def load_tokenizer(folder: str | os.PathLike) -> "tokenizers.Tokenizer":
  """Load tokenizer.json of a checkpoint, without padding and truncation.

  Special tokens are put around a text as tokenizer.json says. Like
  transformers 5, and unlike 4, this does not read `add_bos_token` of
  tokenizer_config.json.

  Raises:
    ValueError: there is none, or it is broken.
  """
  import tokenizers

  path = pathlib.Path(folder) / "tokenizer.json"
  if not path.is_file():
    raise ValueError(
      f"{path}: no such file; convert the tokenizer once with transformers'"
      " AutoTokenizer.save_pretrained"
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
  except Exception as error:  # the Rust side raises bare Exception
    raise ValueError(
      f"{path}: not a tokenizer ({error}); copy or download it again"
    ) from error
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
