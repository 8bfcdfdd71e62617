"""What may a method look at? Calibration tokens and sums over kernel inputs.

documents, tokenizer, tokens, prompts   from files to token ids
batching                                batches of one shape
statistics, moments                     sums over the inputs of a kernel
observers                               those sums by name
"""

from jaxprune.calibration.documents import read_documents
from jaxprune.calibration.prompts import Prompts, left_pad, read_prompts
from jaxprune.calibration.statistics import (
  Gram,
  SquaredNorm,
  merge,
  observe_gram,
  observe_squares,
)
from jaxprune.calibration.tokenizer import (
  SpecialTokens,
  adds_bos,
  encode,
  load_tokenizer,
  special_tokens,
)
from jaxprune.calibration.tokens import (
  Calibration,
  Draw,
  Vocabulary,
  describe,
  read_calibration,
  token_hash,
)

__all__ = [
  "Calibration",
  "Draw",
  "Gram",
  "Prompts",
  "SpecialTokens",
  "SquaredNorm",
  "Vocabulary",
  "adds_bos",
  "describe",
  "encode",
  "left_pad",
  "load_tokenizer",
  "merge",
  "observe_gram",
  "observe_squares",
  "read_calibration",
  "read_documents",
  "read_prompts",
  "special_tokens",
  "token_hash",
]
