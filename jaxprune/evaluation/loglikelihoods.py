"""How likely is a continuation after a context?

A request is the ids of a context and of a continuation. Requests that begin
alike are read together, every token once (`packing`); only the positions that
predict a continuation are given logits. The model reads all tokens of a request
but its last, and where that is the length on which RoPE depends, every request
is read by itself.

Reference: lm-evaluation-harness 0.4.13, HFLM._loglikelihood_tokens and
TemplateLM._encode_pair, whose numbers these are.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxprune.calibration import batching, encode
from jaxprune.evaluation import packing
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping, key_of
from jaxprune.models import Branches, Gates, ModelConfig, forward, rope, unembed
from jaxprune.models.vocabulary import check_ids

if TYPE_CHECKING:
  import tokenizers

Request = tuple[Sequence[int], Sequence[int]]

_LOGITS = 1 << 24  # floats that exist at a time: 64 MiB
_TOKENS = 8192  # of a batch, where it is not a CPU that reads them
_FEWEST_TARGETS = 4


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
  batch_tokens: int | None = None,
  sharding: jax.sharding.Sharding | None = None,
  bookkeeping: Bookkeeping = NO_BOOKKEEPING,
) -> LogLikelihoods:
  """Score continuations; no token of a context that they share is read twice.

  Args:
    config: the model.
    params: its parameters.
    requests: ids of context and continuation, neither empty. A context that
      does not fit loses its beginning.
    gates: which sublayers stay; None is all.
    batch_tokens: tokens at a time, more where a request is longer. None is as
      many as run fastest. Does not change the result beyond rounding.
    sharding: of the batch, over its first axis.
    bookkeeping: keeps every finished batch, and tells of it in tokens.

  Raises:
    ValueError: no request; one is empty, has an id outside the vocabulary, or
      a continuation that exceeds the model's context.
  """
  batch_tokens = _default_tokens() if batch_tokens is None else batch_tokens
  rows, planned = _plan(config, requests, batch_tokens)
  answers = np.array([len(tail) for _, tail in requests])
  keys = [key_of(row, [answer]) for row, answer in zip(rows, answers)]
  nats, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
  waiting = []
  for row in planned:
    known = bookkeeping.known(keys[index] for index in row.requests)
    if known is None:
      waiting.append(row)
    else:
      nats[list(row.requests)], greedy[list(row.requests)] = zip(*known)
  shape = _shape(config, planned)
  total, done = sum(row.length for row in waiting), 0
  for batch, count in _batches(waiting, batch_tokens, sharding):
    found = {}
    for row, scores in zip(
      batch[:count], _read(config, params, batch, shape, gates, sharding)
    ):
      for index, answer in zip(row.requests, _sums(row, *scores)):
        nats[index], greedy[index] = found[keys[index]] = answer
    done += sum(row.length for row in batch[:count])
    bookkeeping.finish(found, done, total)
  whole = np.array([len(head) + len(tail) for head, tail in requests])
  return LogLikelihoods(
    nats=nats,
    greedy=greedy,
    tokens=answers,
    cut=whole > np.array([len(row) for row in rows]),
  )


def tokens_read(
  config: ModelConfig, requests: Sequence[Request]
) -> tuple[int, int]:
  """Count what `loglikelihoods` reads, without padding.

  Args:
    config: the model.
    requests: ids of context and continuation.

  Returns:
    Tokens that go through the layers, and positions that are given logits.
  """
  _, planned = _plan(config, requests, _default_tokens())
  return (
    sum(len(row.tokens) for row in planned),
    sum(len(row.places) for row in planned),
  )


def score_places(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  branches: Branches,
  places: tuple[jax.Array, jax.Array, jax.Array],
  *,
  at_once: int,
  gates: Gates | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Score tokens that may follow some places. Not jitted.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].
    branches: how the texts of each row branch.
    places: slots int [B, R], R a multiple of `at_once`; ids to score after
      each, int [B, R, U]; and how many of the R places count, an int scalar.
    at_once: places whose logits exist together, of each row.
    gates: which sublayers stay; None is all.

  Returns:
    Log-probabilities float32 [B, R, U], and the likeliest token of each place,
    the first of equals, int32 [B, R]; 0 at places that do not count.
  """
  x_BTD, _ = forward(config, params, tokens_BT, branches=branches, gates=gates)
  place_BR, target_BRU, count = places

  def score(step, scored):
    start = step * at_once

    def cut(a):
      return jax.lax.dynamic_slice_in_dim(a, start, at_once, axis=1)

    x_BRD = jnp.take_along_axis(x_BTD, cut(place_BR)[..., None], axis=1)
    z_BRV = unembed(config, params, x_BRD)
    z_BRU = jnp.take_along_axis(z_BRV, cut(target_BRU), axis=-1)
    new = (
      z_BRU - jax.nn.logsumexp(z_BRV, axis=-1, keepdims=True),
      jnp.argmax(z_BRV, axis=-1).astype(jnp.int32),
    )
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(old, part, start, axis=1)
      for old, part in zip(scored, new)
    )

  return jax.lax.fori_loop(
    0,
    (count + at_once - 1) // at_once,
    score,
    (
      jnp.zeros(target_BRU.shape, jnp.float32),
      jnp.zeros(place_BR.shape, jnp.int32),
    ),
  )


@functools.partial(jax.jit, static_argnames=("config", "at_once"))
def _score_places(config, params, batch, at_once, gates):
  tokens_BT, positions_BT, ends_BT, place_BR, target_BRU, count = batch
  return score_places(
    config,
    params,
    tokens_BT,
    Branches(positions=positions_BT, ends=ends_BT),
    (place_BR, target_BRU, count),
    at_once=at_once,
    gates=gates,
  )


def _default_tokens() -> int:
  on_cpu = jax.default_backend() == "cpu"
  return packing.ROW_TOKENS if on_cpu else _TOKENS


def _plan(config, requests, batch_tokens):
  """Requests as they are read, and the rows in which they are."""
  if batch_tokens < 1:
    raise ValueError(f"batch_tokens={batch_tokens}: must be at least 1")
  rows = [_row(config, index, *pair) for index, pair in enumerate(requests)]
  if not rows:
    raise ValueError("no requests: give at least one")
  groups: dict[bytes, int] = {}
  texts = []
  for row, (_, tail) in zip(rows, requests):
    head = row[: -len(tail)].tobytes()
    texts.append(
      packing.Text(
        ids=tuple(row.tolist()),
        answer=len(tail),
        group=groups.setdefault(head, len(groups)),
      )
    )
  planned = packing.plan(
    texts,
    min(batch_tokens, packing.ROW_TOKENS),
    apart=rope.by_length(config.rope) or rope.by_length(config.local_rope),
  )
  return rows, planned


def _shape(config, rows) -> tuple[int, int]:
  """(places whose logits exist together, targets of a place) of a plan."""
  most = max(1, _LOGITS // config.vocab_size)
  places = max(len(row.places) for row in rows)
  at_once = packing.round_up(-(-places // -(-places // most)))
  targets = max(row.targets.shape[1] for row in rows)
  width = _FEWEST_TARGETS
  while width < targets:
    width *= 2
  return min(at_once, most), width


def _batches(
  rows, batch_tokens, sharding
) -> Iterator[tuple[list[packing.Row], int]]:
  """Rows of one length together, the last one repeated to fill a batch."""
  parts = 1 if sharding is None else len(sharding.device_set)
  for length in sorted({row.length for row in rows}, reverse=True):
    alike = [row for row in rows if row.length == length]
    size = max(1, batch_tokens // length)
    size = -(-min(size, len(alike)) // parts) * parts
    for pick, count in batching.batches(len(alike), size):
      yield [alike[index] for index in pick], count


def _read(config, params, batch, shape, gates, sharding):
  """Scores of every row of a batch, see `score_places`."""
  at_once, width = shape
  length = batch[0].length
  limit = -(-length // at_once) * at_once
  arrays = tokens_BT, positions_BT, ends_BT = np.zeros(
    (3, len(batch), length), np.int32
  )
  ends_BT += np.arange(1, length + 1, dtype=np.int32)[None]
  place_BR = np.zeros((len(batch), limit), np.int32)
  target_BRU = np.zeros((len(batch), limit, width), np.int32)
  for index, row in enumerate(batch):
    size, places = len(row.tokens), len(row.places)
    tokens_BT[index, :size] = row.tokens
    positions_BT[index, :size] = row.positions
    ends_BT[index, :size] = row.ends
    place_BR[index, :places] = row.places
    # -1 stands for no target; any token will do.
    target_BRU[index, :places, : row.targets.shape[1]] = np.maximum(
      row.targets, 0
    )
  inputs = *arrays, place_BR, target_BRU
  if sharding is not None:
    inputs = jax.device_put(inputs, sharding)
  count = jnp.int32(max(len(row.places) for row in batch))
  parts = _score_places(config, params, (*inputs, count), at_once, gates)
  nats_BRU, likeliest_BR = (
    np.asarray(
      part
      if part.is_fully_addressable
      else multihost_utils.process_allgather(part, tiled=True)
    )
    for part in parts
  )
  return zip(nats_BRU, likeliest_BR)


def _sums(row, nats_RU, likeliest_R) -> Iterator[tuple[float, bool]]:
  """(nats, greedy) of every request of a row."""
  for place_T, target_T in row.reads:
    nats_T = nats_RU[place_T, target_T].astype(np.float64)
    greedy_T = likeliest_R[place_T] == row.targets[place_T, target_T]
    yield float(nats_T.sum()), bool(greedy_T.all())


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
  check_ids(ids, config.vocab_size, f"request {index}")
  return ids
