"""Which tokens: a small byte-level BPE, trained on the model's own corpus.

Every byte is in the vocabulary, so any text can be encoded. A digit is always
a token of its own (with the space before it, where there is one), so numbers
are written digit by digit.
"""

import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxprune.pocket import documents

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
_PIECES = r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s"


def train_tokenizer(
  index: documents.Index, *, vocab_size: int = 1024, num_documents: int = 20000
) -> tokenizers.Tokenizer:
  """Learn merges from sampled training documents.

  Args:
    index: the world to read about.
    vocab_size: at least 259 (bytes and three special tokens).
    num_documents: how many documents are drawn.

  Returns:
    A tokenizer that puts BOS before a text; the same for the same arguments.
  """
  if vocab_size < 256 + len(SPECIAL):
    raise ValueError(
      f"vocab_size={vocab_size} has no room for all bytes: "
      f"use at least {256 + len(SPECIAL)}"
    )
  rng = np.random.default_rng([index.world.seed, 3])
  texts = (
    "".join(documents.sample_document(index, rng)) for _ in range(num_documents)
  )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=list(SPECIAL),
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
    ),
  )
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
  )
  return tokenizer


def load_tokenizer(folder: str | pathlib.Path) -> tokenizers.Tokenizer:
  """Read tokenizer.json of an exported folder."""
  path = pathlib.Path(folder) / "tokenizer.json"
  if not path.is_file():
    raise ValueError(f"no tokenizer at {path}: name a folder that has one")
  return tokenizers.Tokenizer.from_file(str(path))


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
  """Token ids of a text without BOS.

  Args:
    tokenizer: from `load_tokenizer` or `train_tokenizer`.
    text: any.
  """
  return tokenizer.encode(text, add_special_tokens=False).ids
