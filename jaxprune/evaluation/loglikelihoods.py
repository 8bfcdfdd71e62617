"""How likely is a continuation after a context?

A request is the ids of a context and of a continuation. Contexts stand at the
left and padding at the right, where no prediction sees it; only the positions
that predict the continuation are given logits. The model reads all tokens of a
row but its last, and that is the length on which RoPE may depend.

Reference: lm-evaluation-harness 0.4.13, HFLM._loglikelihood_tokens and
TemplateLM._encode_pair, whose numbers these are.
Differs from the reference in: rows and continuations are padded to a few
lengths, so that few programs are compiled.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils

from jaxprune.calibration import batching, encode
from jaxprune.models import Gates, ModelConfig, final_norm, forward, unembed

if TYPE_CHECKING:
  import tokenizers

Request = tuple[Sequence[int], Sequence[int]]

_LOGITS = 1 << 24  # floats that exist at a time: 64 MiB
_SHORTEST_ROW, _SHORTEST_ANSWER = 32, 8  # least lengths that are compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLikelihoods:
  """One entry per request.

  Attributes:
    nats: log-probability, summed over the continuation, float64 [n].
    greedy: whether every token of the continuation is the likeliest one (the
      first of equals), bool [n].
    tokens: tokens of the continuation, int64 [n].
    cut: whether the context lost its beginning to fit the model, bool [n].
  """

  nats: np.ndarray
  greedy: np.ndarray
  tokens: np.ndarray
  cut: np.ndarray


def encode_pair(
  tokenizer: "tokenizers.Tokenizer",
  context: str,
  continuation: str,
  *,
  add_bos: bool | None = None,
  bos_id: int | None = None,
  empty_context: int | None = None,
) -> tuple[list[int], list[int]]:
  """Ids of a context and of what follows it.

  Both are encoded together and divided after the tokens that the context alone
  has. Spaces at the end of the context go to the continuation. A context that
  is written with the beginning of text in front gets no second one.

  Args:
    tokenizer: from `calibration.load_tokenizer`.
    context: text; may be empty.
    continuation: text, not empty.
    add_bos: whether BOS stands first; None asks the tokenizer.
    bos_id: id of BOS, needed where it is added.
    empty_context: id to condition on when the context is empty; its text in
      front of a context stands for the special tokens.

  Raises:
    ValueError: the continuation has no token, or the context is empty and
      nothing stands for it.
  """
  if not context:
    if empty_context is None:
      raise ValueError(
        "a context is empty and the model has no beginning-of-text token;"
        " give every question a context"
      )
    head, tail = [empty_context], encode(tokenizer, continuation, False)
    if tail[:1] == head:  # the tokenizer has put BOS in front already
      tail = tail[1:]
  else:
    kept = context.rstrip()
    if empty_context is not None:
      begin = tokenizer.decode([empty_context], skip_special_tokens=False)
      if begin and kept.startswith(begin):
        add_bos = False
    continuation = context[len(kept) :] + continuation
    head = encode(tokenizer, kept, add_bos, bos_id)
    tail = encode(tokenizer, kept + continuation, add_bos, bos_id)[len(head) :]
  if not tail or not head:
    raise ValueError(
      f"context {context[-40:]!r} and continuation {continuation[:40]!r}:"
      " one of them has no token; give each some text"
    )
  return head, tail


def loglikelihoods(
  config: ModelConfig,
  params: Mapping[str, Any],
  requests: Sequence[Request],
  *,
  gates: Gates | None = None,
  batch_size: int = 16,
  sharding: jax.sharding.Sharding | None = None,
) -> LogLikelihoods:
  """Score continuations, in batches of like length.

  Args:
    config: the model.
    params: its parameters.
    requests: ids of context and continuation, neither empty. A context that
      does not fit loses its beginning.
    gates: which sublayers stay; None is all.
    batch_size: rows at a time; does not change the result.
    sharding: of the batch; its first axis must divide `batch_size`.

  Raises:
    ValueError: no request; one is empty, has an id outside the vocabulary, or
      a continuation that exceeds the model's context.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}: must be at least 1")
  rows = [_row(config, index, *pair) for index, pair in enumerate(requests)]
  if not rows:
    raise ValueError("no requests: give at least one")
  if sharding is None:
    batch_size = min(batch_size, len(rows))
  answers = np.array([len(tail) for _, tail in requests])
  longest = config.max_positions
  lengths = np.array([len(row) - 1 for row in rows])
  shapes = np.stack(
    [
      _bucket(lengths, _SHORTEST_ROW, 2, longest),
      _bucket(answers, _SHORTEST_ANSWER, 4, longest),
    ],
    axis=1,
  )
  nats, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
  for shape in np.unique(shapes, axis=0):
    chosen = np.flatnonzero((shapes == shape).all(axis=1))
    for pick, count in batching.batches(len(chosen), batch_size):
      part = chosen[pick]
      nats_B, greedy_B = _batch(
        config,
        params,
        [rows[index] for index in part],
        answers[part],
        tuple(shape.tolist()),
        gates,
        sharding,
      )
      nats[part[:count]] = nats_B[:count]
      greedy[part[:count]] = greedy_B[:count]
  whole = np.array([len(head) + len(tail) for head, tail in requests])
  return LogLikelihoods(
    nats=nats, greedy=greedy, tokens=answers, cut=whole - 1 > lengths
  )


def continuation_scores(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  first_B: jax.Array,
  width: int,
  *,
  valid_BT: jax.Array | None = None,
  gates: Gates | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Score some consecutive tokens of each row. Not jitted.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].
    first_B: int [B], index of the first token to score, at least 1.
    width: how many to score; beyond the end of a row, what is returned has no
      meaning.
    valid_BT: bool [B, T], False for padding. None: every token is real.
    gates: which sublayers stay; None is all.

  Returns:
    Log-probabilities float32 [B, width] and whether each is the likeliest
    token, bool [B, width].
  """
  x_BTD, _ = forward(
    config,
    params,
    tokens_BT[:, :-1],
    # Of each row, the places that have a next token.
    valid_BT=None if valid_BT is None else valid_BT[:, 1:],
    gates=gates,
  )
  batch, length, _ = x_BTD.shape
  at_once = min(width, max(1, _LOGITS // (batch * config.vocab_size)))
  steps = -(-width // at_once)
  place_BT = jnp.minimum(
    first_B[:, None] - 1 + jnp.arange(steps * at_once)[None], length - 1
  )

  def score(place_BR):
    x_BRD = jnp.take_along_axis(x_BTD, place_BR[..., None], axis=1)
    z_BRV = unembed(
      config, params, final_norm(config, params, x_BRD), lens="raw"
    )
    target_BR = jnp.take_along_axis(tokens_BT, place_BR + 1, axis=1)
    z_BR = jnp.take_along_axis(z_BRV, target_BR[..., None], axis=-1)[..., 0]
    return (
      z_BR - jax.nn.logsumexp(z_BRV, axis=-1),
      jnp.argmax(z_BRV, axis=-1) == target_BR,
    )

  parts = jax.lax.map(score, rearrange(place_BT, "B (U R) -> U B R", U=steps))
  return tuple(
    rearrange(part_UBR, "U B R -> B (U R)")[:, :width] for part_UBR in parts
  )


@functools.partial(jax.jit, static_argnames=("config", "width"))
def _continuation_scores(config, params, batch, first_B, width, gates):
  tokens_BT, valid_BT = batch
  return continuation_scores(
    config, params, tokens_BT, first_B, width, valid_BT=valid_BT, gates=gates
  )


def _batch(config, params, rows, answers, shape, gates, sharding):
  """Sums and greediness of one batch, padded to its shape."""
  length, width = shape
  tokens_BT = np.zeros((len(rows), length + 1), np.int32)
  valid_BT = np.zeros(tokens_BT.shape, bool)
  first_B = np.ones(len(rows), np.int32)
  for index, row in enumerate(rows):
    tokens_BT[index, : len(row)] = row
    valid_BT[index, : len(row)] = True
    first_B[index] = len(row) - answers[index]
  batch = tokens_BT, valid_BT
  if sharding is not None:
    batch = jax.device_put(batch, sharding)
  parts = _continuation_scores(config, params, batch, first_B, width, gates)
  nats_BR, likeliest_BR = (
    np.asarray(
      part
      if part.is_fully_addressable
      else multihost_utils.process_allgather(part, tiled=True)
    )
    for part in parts
  )
  in_answer_BR = np.arange(width)[None] < answers[:, None]
  nats_B = np.where(in_answer_BR, nats_BR.astype(np.float64), 0).sum(axis=1)
  return nats_B, (likeliest_BR | ~in_answer_BR).all(axis=1)


def _row(config, index, head, tail) -> np.ndarray:
  """Context and continuation, with no more tokens in front than fit."""
  if not len(head) or not len(tail):
    raise ValueError(
      f"request {index}: context of {len(head)} and continuation of"
      f" {len(tail)} tokens; both need at least one"
    )
  if len(tail) > config.max_positions:
    raise ValueError(
      f"request {index}: a continuation of {len(tail)} tokens exceeds the"
      f" model's context, {config.max_positions}; shorten it"
    )
  ids = np.asarray([*head, *tail])[-config.max_positions - 1 :]
  if ids.min() < 0 or ids.max() >= config.vocab_size:
    raise ValueError(
      f"request {index}: ids from {ids.min()} to {ids.max()}, but the"
      f" vocabulary has {config.vocab_size}; use this model's own tokenizer"
    )
  return ids


def _bucket(lengths, least, factor, most) -> np.ndarray:
  """Lengths rounded up to least * factor**k, within limits."""
  steps = np.ceil(np.log(np.maximum(lengths / least, 1)) / np.log(factor))
  return np.minimum(least * factor ** steps.astype(int), most)
