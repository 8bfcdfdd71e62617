"""Which texts does decoding start from?

| file | one prompt is |
|---|---|
| .txt | a line that is not blank |
| .jsonl, .json | the field `prompt`, or else `text`, of an entry |
| .npz | a row of token ids under `prompt` [prompts, length], as it is |

Prompts are raw text: no chat template is applied.
"""

import dataclasses
import os
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.calibration import documents, id_files, tokens
from jaxprune.calibration.tokenizer import adds_bos, encode

if TYPE_CHECKING:
  import tokenizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """Token ids of prompts of different lengths.

  Attributes:
    tokens: one tuple of ids per prompt, none empty.
    source: the file.
    bos: whether each was given a beginning-of-text token; None for token ids
      read from a file.
  """

  tokens: tuple[tuple[int, ...], ...]
  source: str
  bos: bool | None = None

  @property
  def hash(self) -> str:
    """Hexadecimal sha256 over the lengths and then all ids."""
    lengths = [len(row) for row in self.tokens]
    ids = [token for row in self.tokens for token in row]
    return tokens.token_hash(np.asarray([len(lengths), *lengths, *ids]))


def read_prompts(
  source: str | os.PathLike,
  tokenizer: "tokenizers.Tokenizer | None" = None,
  *,
  limit: int | None = None,
  add_bos: bool | None = None,
  bos_id: int | None = None,
  vocab_size: int | None = None,
) -> Prompts:
  """Read prompts.

  Args:
    source: the file.
    tokenizer: from `tokenizer.load_tokenizer`; not needed for token ids.
    limit: read the first so many; None is all.
    add_bos: whether BOS stands first; None asks the tokenizer.
    bos_id: id of BOS, needed where it is added.
    vocab_size: ids must be below it; None does not check.

  Raises:
    ValueError: the file is missing, broken or of unknown format, holds no
      prompt or an empty one, or has an id outside the vocabulary.
  """
  name = os.fspath(source)
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit}: must be at least 1, or None for all")
  if name.endswith(".npz"):
    ids = id_files.read_ids(name, "prompt", vocab_size)[:limit]
    return Prompts(tokens=tuple(map(tuple, ids.tolist())), source=name)
  texts = read_prompt_texts(name)[:limit]
  if tokenizer is None:
    raise ValueError(
      f"{name}: text needs a tokenizer; give one, or token ids in an .npz"
    )
  rows = []
  for number, text in enumerate(texts):
    ids = encode(tokenizer, text, add_bos, bos_id)
    if not ids:
      raise ValueError(f"{name}: prompt {number} has no token; remove it")
    rows.append(tuple(ids))
    id_files.check_vocabulary(
      np.asarray([ids]), name, f"prompt {number}", vocab_size
    )
  return Prompts(
    tokens=tuple(rows),
    source=name,
    bos=adds_bos(tokenizer) if add_bos is None else add_bos,
  )


def read_prompt_texts(path: str | os.PathLike) -> list[str]:
  """Read prompts as text from .txt, .jsonl or .json, perhaps with .gz.

  Raises:
    ValueError: the file is missing, broken or of unknown format, or holds no
      prompt or an empty one.
  """
  kind = documents.file_format(path)
  if kind == ".txt":
    texts = documents.DIVISIONS["lines"](documents.read_text(path))
  elif kind in (".jsonl", ".json"):
    texts = documents.read_rows(path, ("prompt", "text"))
  else:
    raise ValueError(
      f"{path}: unknown format {kind!r}; give .txt, .jsonl, .json or .npz"
    )
  if not texts:
    raise ValueError(f"{path}: no prompt in it; write one per line")
  for number, text in enumerate(texts):
    if not text.strip():
      raise ValueError(f"{path}: prompt {number} is blank; remove it")
  return texts


def left_pad(
  rows: tuple[tuple[int, ...], ...], pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Put prompts of different lengths into one batch.

  Args:
    rows: B tuples of ids.
    pad_id: any id of the vocabulary; the model does not read it.

  Returns:
    Ids int32 [B, T] with the prompts at the right edge, and bool [B, T], True
    where a prompt is.
  """
  length = max(map(len, rows))
  tokens_BT = np.full((len(rows), length), pad_id, np.int32)
  valid_BT = np.zeros((len(rows), length), bool)
  for index, row in enumerate(rows):
    tokens_BT[index, length - len(row) :] = row
    valid_BT[index, length - len(row) :] = True
  return tokens_BT, valid_BT
