"""Which vector does a decoder give a text?

The embedding is pooled from h, the residual after the final norm, over the
tokens of the text:

  last           the last token, which has seen all others
  mean           all tokens alike
  weighted_mean  token t = 1..n with weight t: later ones have seen more

Texts stand at the left and padding at the right, where no token sees it.

Reference: Wang et al., arXiv:2401.00368 (last); Muennighoff, SGPT,
arXiv:2202.08904 (weighted mean).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration import batching
from jaxprune.checkpoints.sentence import Recipe
from jaxprune.evaluation import sentences
from jaxprune.models import Gates, ModelConfig, final_norm, forward
from jaxprune.models.vocabulary import check_ids

if TYPE_CHECKING:
  import tokenizers

POOLINGS = ("last", "mean", "weighted_mean")
_SHORTEST = 32  # tokens in the smallest length that is compiled


def embed_tokens(
  config: ModelConfig,
  params: Mapping[str, Any],
  texts: Sequence[Sequence[int]],
  *,
  pooling: str = "mean",
  normalise: bool = True,
  gates: Gates | None = None,
  batch_size: int = 32,
) -> np.ndarray:
  """Embed texts, in batches of like length.

  Args:
    config: the model.
    params: its parameters.
    texts: ids of each, special tokens included; they are pooled too.
    pooling: one of `POOLINGS`.
    normalise: to length 1, so that a dot product is the cosine.
    gates: which sublayers stay; None is all.
    batch_size: texts at a time; does not change the result.

  Returns:
    float32 [texts, D].

  Raises:
    ValueError: another pooling; no text, an empty one, one that exceeds the
      model's context, or an id outside the vocabulary.
  """
  if pooling not in POOLINGS:
    raise ValueError(
      f"pooling={pooling!r}: must be one of {', '.join(POOLINGS)}"
    )
  if batch_size < 1 or not len(texts):
    raise ValueError(
      f"batch_size={batch_size}, {len(texts)} texts: need at least 1 of both"
    )
  for index, text in enumerate(texts):
    _check(config, index, text)
  lengths = np.array([len(text) for text in texts], np.int32)
  buckets = np.minimum(
    2 ** np.ceil(np.log2(np.maximum(lengths, _SHORTEST))).astype(int),
    config.max_positions,
  )
  vectors = np.zeros((len(texts), config.embed_dim), np.float32)
  for bucket in np.unique(buckets):
    chosen = np.flatnonzero(buckets == bucket)
    size = min(batch_size, len(chosen))
    for pick, count in batching.batches(len(chosen), size):
      part = chosen[pick]
      tokens_BT = np.zeros((size, bucket), np.int32)
      for row, index in enumerate(part):
        tokens_BT[row, : lengths[index]] = texts[index]
      vectors[part[:count]] = _embed(
        config, pooling, normalise, params, tokens_BT, lengths[part], gates
      )[:count]
  return vectors


def embed_texts(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: "tokenizers.Tokenizer",
  texts: Sequence[str],
  recipe: Recipe,
  *,
  prompt: str = "",
  batch_size: int = 32,
) -> np.ndarray:
  """Embed texts as a sentence-transformers folder says.

  The special tokens that the tokenizer puts around a text, such as the end that
  `last` pools, stay where a long text loses its end.

  Args:
    config: the model.
    params: its parameters.
    tokenizer: from `calibration.load_tokenizer`.
    texts: any.
    recipe: from `checkpoints.read_recipe`.
    prompt: put in front of every text, such as `recipe.prompt("query")`.
    batch_size: texts at a time; does not change the result.

  Returns:
    float32 [texts, D].

  Raises:
    ValueError: no text, one without a token, or a pooling of encoders.
  """
  most = min(recipe.max_tokens or config.max_positions, config.max_positions)
  ids = sentences.tokenise(tokenizer, [prompt + text for text in texts], most)
  return embed_tokens(
    config,
    params,
    ids,
    pooling=recipe.pooling.kind,
    normalise=recipe.pooling.normalise,
    batch_size=batch_size,
  )


def pool(x_BTD: jax.Array, lengths_B: jax.Array, pooling: str) -> jax.Array:
  """One vector of each row of hidden states.

  Args:
    x_BTD: [B, T, D], padded on the right.
    lengths_B: int [B], tokens of each row, at least 1.
    pooling: one of `POOLINGS`.

  Returns:
    float32 [B, D].
  """
  place_T = jnp.arange(x_BTD.shape[1])
  valid_BT = _valid(lengths_B, x_BTD.shape[1])
  if pooling == "last":
    weight_BT = place_T[None] == lengths_B[:, None] - 1
  elif pooling == "mean":
    weight_BT = valid_BT
  else:
    weight_BT = valid_BT * (place_T + 1)[None]
  weight_BT = weight_BT.astype(jnp.float32)
  weight_BT /= weight_BT.sum(axis=1, keepdims=True)
  return jnp.einsum("BTD,BT->BD", x_BTD.astype(jnp.float32), weight_BT)


def _valid(lengths_B, length):
  """Which places hold a token, bool [B, T], T = `length`."""
  return jnp.arange(length)[None] < lengths_B[:, None]


@functools.partial(jax.jit, static_argnames=("config", "pooling", "normalise"))
def _embed(config, pooling, normalise, params, tokens_BT, lengths_B, gates):
  x_BTD, _ = forward(
    config,
    params,
    tokens_BT,
    valid_BT=_valid(lengths_B, tokens_BT.shape[1]),
    gates=gates,
  )
  x_BD = pool(final_norm(config, params, x_BTD), lengths_B, pooling)
  if not normalise:
    return x_BD
  return x_BD / jnp.linalg.norm(x_BD, axis=-1, keepdims=True)


def _check(config, index, text):
  ids = np.asarray(text)
  if not 1 <= len(ids) <= config.max_positions:
    raise ValueError(
      f"text {index} has {len(ids)} tokens: must be from 1 to the model's"
      f" context, {config.max_positions}; cut it"
    )
  check_ids(ids, config.vocab_size, f"text {index}")
