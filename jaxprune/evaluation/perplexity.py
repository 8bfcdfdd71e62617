"""How surprised is the model by text it was not pruned on?

Two definitions, which must not be compared with one another.

By windows, as the pruning papers do: the text is joined and encoded once and
cut into n = floor(len / T) windows of T tokens; what is left over is dropped.
In each window tokens 2..T are predicted from those before them in the window:

  perplexity = exp( sum of nll over all n * (T - 1) predictions
                    / (n * (T - 1)) )

By document: each document is encoded by itself and every token but its first is
predicted exactly once. A document longer than T is read in pieces of T tokens
that overlap by one, so a prediction sees at most T tokens and none of another
document. The mean is over predictions, not over documents.

The model reads all tokens of a window or piece but its last, and that is the
length on which RoPE may depend; what fills up a batch counts to no length.

Reference: Wanda (arXiv:2306.11695), lib/eval.py. There the mean loss of a
window, over T - 1 predictions, is multiplied by T and the total divided by
n * T: both factors cancel, and the value is the one above.
Differs from the reference in: windows of any number fit in a batch; sums are
float64; nothing of size [B, T, V] exists.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils

from jaxprune.calibration import batching, read_documents
from jaxprune.models import Gates, ModelConfig, final_norm, forward, unembed

# Logits that exist at a time, in floats: 64 MiB.
_LOGITS = 1 << 24
_SHORTEST = 32  # tokens in the smallest length that is compiled for documents
# What Wanda reads of the validation split of C4.
_C4_DOCUMENTS = 1100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Negative log-likelihoods per window or per document.

  Attributes:
    nll: nats summed over the predictions of each, float64 [n].
    tokens: number of predictions in each, int64 [n].
  """

  nll: np.ndarray
  tokens: np.ndarray

  @property
  def perplexity(self) -> float:
    """exp of the mean nll per prediction; infinite beyond float64."""
    with np.errstate(over="ignore"):
      return float(np.exp(self.nll.sum() / self.tokens.sum()))


def read_held_out_text(source: str | os.PathLike) -> str:
  """The text of the papers' protocol.

  Args:
    source: 'wikitext2': the rows of the test split, joined with two newlines.
      'c4': the first 1100 validation documents, joined with a space; the
      reference then uses `max_windows=256`. A file: its rows or documents (see
      `calibration.read_documents`), joined with two newlines.
  """
  documents = read_documents(source, division="rows", held_out=True)
  if os.fspath(source) == "c4":
    return " ".join(documents[:_C4_DOCUMENTS])
  return "\n\n".join(documents)


def score_windows(
  config: ModelConfig,
  params: Mapping[str, Any],
  ids: Sequence[int] | np.ndarray,
  seq_len: int,
  *,
  gates: Gates | None = None,
  max_windows: int | None = None,
  batch_size: int = 8,
  sharding: jax.sharding.Sharding | None = None,
) -> Scores:
  """Score the windows of one text, see the module.

  Args:
    config: the model.
    params: its parameters.
    ids: int [tokens], the whole text, with special tokens as its tokenizer
      puts them once at the beginning.
    seq_len: T.
    gates: which sublayers stay; None is all.
    max_windows: the first so many; None is all.
    batch_size: windows at a time; does not change the result.
    sharding: of the batch; its first axis must divide `batch_size`.

  Returns:
    One entry per window, each of T - 1 predictions.

  Raises:
    ValueError: the text is shorter than a window, the window longer than the
      model's context, or an id outside the vocabulary.
  """
  _check_length(config, seq_len)
  ids = _check_ids(config, ids, "ids")
  count = len(ids) // seq_len
  if not count:
    raise ValueError(
      f"the text has {len(ids)} tokens, fewer than seq_len={seq_len}; use"
      " more text or a smaller seq_len"
    )
  if max_windows is not None:
    if max_windows < 1:
      raise ValueError(
        f"max_windows={max_windows}: must be at least 1, or None for all"
      )
    count = min(count, max_windows)
  rows = list(rearrange(ids[: count * seq_len], "(X T) -> X T", T=seq_len))
  nll = _score(config, params, rows, seq_len, gates, batch_size, sharding)
  return Scores(nll=nll, tokens=np.full(count, seq_len - 1))


def score_documents(
  config: ModelConfig,
  params: Mapping[str, Any],
  documents: Sequence[Sequence[int]],
  seq_len: int,
  *,
  gates: Gates | None = None,
  batch_size: int = 8,
  sharding: jax.sharding.Sharding | None = None,
) -> Scores:
  """Score each document by itself, see the module.

  Lengths are rounded up to a power of two, so few programs are compiled; what
  is added stands to the right, where no prediction sees it.

  Args:
    config: the model.
    params: its parameters.
    documents: ids of each; with a beginning-of-text token in front, the first
      word is predicted too.
    seq_len: T.
    gates: which sublayers stay; None is all.
    batch_size: pieces at a time; does not change the result.
    sharding: of the batch; its first axis must divide `batch_size`.

  Returns:
    One entry per document.

  Raises:
    ValueError: there is no document, one has less than two tokens, T exceeds
      the model's context, or an id is outside the vocabulary.
  """
  _check_length(config, seq_len)
  if not len(documents):
    raise ValueError("no documents: give at least one")
  pieces, owners = [], []
  for index, document in enumerate(documents):
    ids = _check_ids(config, document, f"document {index}")
    if len(ids) < 2:
      raise ValueError(
        f"document {index} has {len(ids)} tokens and no prediction; remove it"
      )
    parts = [
      ids[start : start + seq_len + 1]
      for start in range(0, len(ids) - 1, seq_len)
    ]
    pieces += parts
    owners += [index] * len(parts)
  lengths = np.array([len(piece) for piece in pieces])
  buckets = np.minimum(
    np.maximum(2 ** np.ceil(np.log2(lengths - 1)), _SHORTEST), seq_len
  )
  nll = np.zeros(len(documents))
  for bucket in np.unique(buckets):
    chosen = np.flatnonzero(buckets == bucket)
    part = _score(
      config,
      params,
      [pieces[index] for index in chosen],
      int(bucket) + 1,
      gates,
      batch_size,
      sharding,
    )
    np.add.at(nll, np.asarray(owners)[chosen], part)
  return Scores(nll=nll, tokens=np.bincount(owners, lengths - 1).astype(int))


def token_nll(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  *,
  valid_BT: jax.Array | None = None,
  gates: Gates | None = None,
) -> jax.Array:
  """Negative log-likelihood of each token given those before it.

  Not jitted; logits are made for some positions at a time.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T], T at least 2.
    valid_BT: bool [B, T], False for padding. None: every token is real.
    gates: which sublayers stay; None is all.

  Returns:
    float32 [B, T - 1], nats: entry t is -log p(token t + 1 | tokens 0..t).
  """
  x_BTD, _ = forward(
    config,
    params,
    tokens_BT[:, :-1],
    # Of each row, the places that have a next token.
    valid_BT=None if valid_BT is None else valid_BT[:, 1:],
    gates=gates,
  )
  x_BTD = final_norm(config, params, x_BTD)
  batch, length, _ = x_BTD.shape
  at_once = min(length, max(1, _LOGITS // (batch * config.vocab_size)))
  steps = -(-length // at_once)
  extra = ((0, 0), (0, steps * at_once - length))
  targets_BT = jnp.pad(tokens_BT[:, 1:], extra)
  x_BTD = jnp.pad(x_BTD, (*extra, (0, 0)))

  def score(chunk):
    part_BRD, targets_BR = chunk
    z_BRV = unembed(config, params, part_BRD, lens="raw")
    z_BR = jnp.take_along_axis(z_BRV, targets_BR[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(z_BRV, axis=-1) - z_BR

  nll_UBR = jax.lax.map(
    score,
    (
      rearrange(x_BTD, "B (U R) D -> U B R D", U=steps),
      rearrange(targets_BT, "B (U R) -> U B R", U=steps),
    ),
  )
  return rearrange(nll_UBR, "U B R -> B (U R)")[:, :length]


@functools.partial(jax.jit, static_argnames="config")
def _token_nll(config, params, batch, gates):
  tokens_BT, valid_BT = batch
  return token_nll(config, params, tokens_BT, valid_BT=valid_BT, gates=gates)


def _score(config, params, rows, length, gates, batch_size, sharding):
  """Sum the nll of each row, in batches of one shape, padded on the right."""
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}: must be at least 1")
  if sharding is None:
    batch_size = min(batch_size, len(rows))
  padded = any(len(row) < length for row in rows)
  sums = []
  for pick, count in batching.batches(len(rows), batch_size):
    batch = [rows[index] for index in pick]
    tokens_BT = np.zeros((batch_size, length), np.int32)
    valid_BT = np.zeros((batch_size, length), bool)
    for index, row in enumerate(batch):
      tokens_BT[index, : len(row)] = row
      valid_BT[index, : len(row)] = True
    placed = jax.device_put((tokens_BT, valid_BT if padded else None), sharding)
    nll_BT = _token_nll(config, params, placed, gates)
    if not nll_BT.is_fully_addressable:
      nll_BT = multihost_utils.process_allgather(nll_BT, tiled=True)
    nll_BT = np.asarray(nll_BT, np.float64)
    sums += [
      nll_BT[index, : len(row) - 1].sum()
      for index, row in enumerate(batch[:count])
    ]
  return np.array(sums)


def _check_length(config, seq_len):
  if not 2 <= seq_len <= config.max_positions:
    raise ValueError(
      f"seq_len={seq_len}: must be from 2 to the model's context,"
      f" {config.max_positions}"
    )


def _check_ids(config, ids, name) -> np.ndarray:
  """Refuse ids that a lookup would silently clamp."""
  ids = np.asarray(ids)
  if ids.ndim != 1 or ids.size and not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(
      f"{name}: {ids.dtype} {list(ids.shape)}; give a list of token ids"
    )
  bad = (ids < 0) | (ids >= config.vocab_size)
  if bad.any():
    raise ValueError(
      f"{name}: id {ids[bad][0]} is outside the vocabulary of"
      f" {config.vocab_size}; use this model's own tokenizer"
    )
  return ids
