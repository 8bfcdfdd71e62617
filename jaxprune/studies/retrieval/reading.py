"""What do the encoders read: texts to embed, and texts to calibrate on."""

import dataclasses
from typing import Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import documents, load_tokenizer, tokens
from jaxprune.evaluation import sentences
from jaxprune.pruning.checkpoint.streaming import PaddedTokens
from jaxprune.studies.tasks import retrieval_data


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
  """Everything that is embedded, as ids, and what it is judged by.

  Attributes:
    collection: queries, documents and judgements.
    pairs: sentence pairs; None has none.
    ids: of `documents`, `queries`, and of the `first` and `second` sentences.
    max_tokens: to which texts were cut.
  """

  collection: retrieval_data.Collection
  pairs: retrieval_data.Pairs | None
  ids: dict[str, list[list[int]]]
  max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
  """Padded calibration sequences.

  Attributes:
    tokens: int32 [X, T].
    valid: bool [X, T].
    description: for run.json.
  """

  tokens: np.ndarray
  valid: np.ndarray
  description: dict[str, Any]

  @property
  def padded(self) -> PaddedTokens:
    """The sequences as pruning takes them."""
    return PaddedTokens(ids=self.tokens, valid=self.valid)


def read_texts(
  source: checkpoints.Source,
  collection: str,
  pairs: str | None,
  max_tokens: int,
) -> Texts:
  """Read and tokenise all texts, the same for all models.

  Args:
    source: the dense encoder.
    collection: folder of queries, documents and judgements.
    pairs: file of sentence pairs; None reads none.
    max_tokens: a longer text loses its end.
  """
  read = retrieval_data.read_collection(collection)
  sentence_pairs = None if pairs is None else retrieval_data.read_pairs(pairs)
  texts = {"documents": read.documents, "queries": read.queries}
  if sentence_pairs is not None:
    texts |= {"first": sentence_pairs.first, "second": sentence_pairs.second}
  tokenizer = load_tokenizer(source.folder)
  return Texts(
    collection=read,
    pairs=sentence_pairs,
    max_tokens=max_tokens,
    ids={
      name: sentences.tokenise(tokenizer, lines, max_tokens)
      for name, lines in texts.items()
    },
  )


def calibrate(
  source: checkpoints.Source,
  name: str,
  texts: Texts,
  *,
  num_samples: int,
  seed: int,
) -> Calibration:
  """Draw the beginnings of random documents, without replacement.

  Args:
    source: the dense encoder.
    name: `collection` for its documents, else a text file or data set.
    texts: of the study.
    num_samples: documents.
    seed: of the draw.

  Raises:
    ValueError: there are fewer documents with text.
  """
  lines = (
    texts.collection.documents
    if name == "collection"
    else documents.read_documents(name)
  )
  lines = [line for line in lines if line.strip()]
  if len(lines) < num_samples:
    raise ValueError(
      f"{name}: {len(lines)} documents with text, fewer than --num_samples="
      f"{num_samples}; use more text or fewer samples"
    )
  chosen = np.random.default_rng(seed).choice(
    len(lines), num_samples, replace=False
  )
  ids = sentences.tokenise(
    load_tokenizer(source.folder),
    [lines[index] for index in chosen],
    texts.max_tokens,
  )
  rows, valid = sentences.pad(
    ids, max(map(len, ids)), source.config.pad_id or 0
  )
  return Calibration(
    tokens=rows,
    valid=valid,
    description={
      "source": name,
      "sampling": "beginnings of random documents",
      "seed": seed,
      "sequences": num_samples,
      "length": rows.shape[1],
      "tokens": int(valid.sum()),
      "hash": tokens.token_hash(rows),
    },
  )
