"""Which vector does an encoder give a text?

Texts are cut to a number of tokens, run in batches of like length, pooled and
normalised as the checkpoint says.

Reference: Reimers and Gurevych, Sentence-BERT, arXiv:1908.10084.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration import batching
from jaxprune.checkpoints import Pooling
from jaxprune.models import EncoderConfig, encoder
from jaxprune.models.vocabulary import check_ids

if TYPE_CHECKING:
  import tokenizers

# Lengths are rounded up to a multiple, so that few programs are compiled.
_STEP = 16


def tokenise(
  tokenizer: "tokenizers.Tokenizer", texts: Sequence[str], max_tokens: int
) -> list[list[int]]:
  """Ids of texts between the special tokens of the encoder.

  Args:
    tokenizer: from `calibration.tokenizer.load_tokenizer`.
    texts: any.
    max_tokens: a longer text loses its end; special tokens count and stay.

  Raises:
    ValueError: no text, or max_tokens below 3.
  """
  if not len(texts):
    raise ValueError("no texts: give at least one")
  if max_tokens < 3:
    raise ValueError(
      f"max_tokens={max_tokens}: must be at least 3, one token between two"
      " special ones"
    )
  tokenizer.enable_truncation(max_tokens)
  try:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
  finally:
    tokenizer.no_truncation()


def pad(
  ids: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Put padding behind sequences.

  Args:
    ids: of each sequence, none longer than `length`.
    length: T.
    pad_id: the id that padding consists of.

  Returns:
    Tokens int32 [X, T] and valid bool [X, T].
  """
  tokens = np.full((len(ids), length), pad_id, np.int32)
  valid = np.zeros((len(ids), length), bool)
  for row, sequence in enumerate(ids):
    tokens[row, : len(sequence)] = sequence
    valid[row, : len(sequence)] = True
  return tokens, valid


def embed_texts(
  config: EncoderConfig,
  params: Mapping[str, Any],
  ids: Sequence[Sequence[int]],
  pooling: Pooling,
  *,
  batch_size: int = 8,
) -> np.ndarray:
  """One vector for each text, in their order.

  Args:
    config: the model.
    params: its parameters.
    ids: from `tokenise`.
    pooling: from `checkpoints.read_pooling`.
    batch_size: texts at a time; does not change the result beyond rounding.

  Returns:
    float32 [texts, D].

  Raises:
    ValueError: a text longer than the model's positions, or an id outside its
      vocabulary.
  """
  check_ids(
    [pick(map(pick, ids)) for pick in (min, max)], config.vocab_size, "texts"
  )
  lengths = [len(text) for text in ids]
  if max(lengths) > config.max_positions:
    raise ValueError(
      f"a text of {max(lengths)} tokens is longer than the"
      f" {config.max_positions} positions of the encoder: cut it"
    )
  order = np.argsort(lengths, kind="stable")
  vectors = np.zeros((len(ids), config.embed_dim), np.float32)
  for pick, count in batching.batches(len(order), batch_size):
    chosen = order[pick]
    longest = -(-lengths[chosen[-1]] // _STEP) * _STEP
    tokens_BT, valid_BT = pad(
      [ids[index] for index in chosen],
      min(longest, config.max_positions),
      config.pad_id or 0,
    )
    pooled_BD = _embed(config, pooling, params, tokens_BT, valid_BT)
    vectors[chosen[:count]] = np.asarray(pooled_BD)[:count]
  return vectors


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(config, pooling, params, tokens_BT, valid_BT):
  x_BTD, _ = encoder.forward(
    config, params, jnp.asarray(tokens_BT), valid_BT=jnp.asarray(valid_BT)
  )
  return encoder.pool(
    x_BTD, valid_BT, pooling=pooling.kind, normalise=pooling.normalise
  )
