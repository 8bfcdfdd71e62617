"""What does a model write after a prompt, and where does it stop?

Prompts are continued until the model ends its text, a stop string appears, or
there are enough tokens. A fixed number of rows is decoded together; as soon as
one has ended, the next prompt takes its place. What a row writes depends on its
prompt, the seed and its number among the prompts, never on its neighbours.

Reference: transformers 5, `generate`, one prompt at a time.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.evaluation import packing
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping, key_of
from jaxprune.models import (
  Branches,
  Gates,
  ModelConfig,
  Sampling,
  rope,
  slots,
  unstack,
)
from jaxprune.models.generation import rereads_at
from jaxprune.models.vocabulary import check_ids

if TYPE_CHECKING:
  import tokenizers

_ENDS = 8  # ids that end a row are padded to a multiple
# Tokens of a row between two looks of the host, with stop strings and without.
_CHUNK, _LONG_CHUNK = 8, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
  """What was written after one prompt.

  Attributes:
    tokens: ids, without the one that ended the text.
    text: of these, before the first stop string, without special tokens.
    ended: 'eos', 'stop' or 'length'.
    written: all ids that came from the model, what ended the text included.
  """

  tokens: tuple[int, ...]
  text: str
  ended: str
  written: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
  """How prompts are continued.

  Attributes:
    max_new_tokens: most tokens to add.
    stop: texts that end a continuation and are not part of it; special tokens
      may be among them.
    eos_ids: tokens that end a text beside those of the sampling, such as the
      tokenizer's own (`calibration.special_tokens`).
    sampling: how the next token is chosen; greedily where it is not given.
    seed: of sampling. Two models draw alike with the same seed and prompts.
    batch_size: prompts at a time; does not change the result beyond rounding.
  """

  max_new_tokens: int
  stop: tuple[str, ...] = ()
  eos_ids: tuple[int, ...] = ()
  sampling: Sampling = Sampling()
  seed: int = 0
  batch_size: int = 16


def continue_prompts(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: "tokenizers.Tokenizer",
  prompts: Sequence[Sequence[int]],
  writing: Writing,
  *,
  gates: Gates | None = None,
  bookkeeping: Bookkeeping = NO_BOOKKEEPING,
) -> list[Continuation]:
  """Continue prompts; what they share at their beginning is read once.

  Args:
    config: the model.
    params: its parameters.
    tokenizer: the model's.
    prompts: ids of each.
    writing: how much, and greedily or not.
    gates: which sublayers stay; None is all.
    bookkeeping: keeps every finished text, and tells of it in prompts.

  Returns:
    One for each prompt.

  Raises:
    ValueError: a prompt or a stop string is empty; a prompt and its new tokens
      exceed the context of the model, or an id is outside the vocabulary.
  """
  _check(config, prompts, writing)
  own = writing.sampling.eos_ids
  ends = (config.eos_ids if own is None else own) + writing.eos_ids
  ends_row = tuple(dict.fromkeys(ends + _token_stops(tokenizer, writing.stop)))
  keys = _keys(prompts, writing, ends_row)
  texts: dict[int, list[int]] = {
    index: known[0]
    for index, key in enumerate(keys)
    if (known := bookkeeping.known([key])) is not None
  }
  total = len(prompts) - len(texts)
  rows = _Rows(config, params, prompts, writing, ends_row, gates)
  for part in rows.run(
    {index for index in range(len(prompts)) if index not in texts},
    lambda tokens: _stopped(tokenizer, tokens, writing.stop),
  ):
    texts |= part
    bookkeeping.finish(
      {keys[index]: tokens for index, tokens in part.items()},
      len(texts) + total - len(prompts),
      total,
    )
  return [
    _finish(config, tokenizer, texts[index], writing.stop, ends)
    for index in range(len(prompts))
  ]


class _Rows:
  """Rows of a cache, and the prompts that wait for one."""

  def __init__(self, config, params, prompts, writing, ends, gates):
    self._config, self._params, self._gates = config, params, gates
    self._prompts, self._writing = prompts, writing
    # A CPU decodes from separate layers and prefills from the stack, which are
    # the same memory there.
    on_cpu = jax.default_backend() == "cpu"
    self._steps = unstack(params) if on_cpu else params
    self._count = min(writing.batch_size, len(prompts))
    longest = max(map(len, prompts)) + writing.max_new_tokens
    self._size = packing.round_up(longest)
    self._choice, self._ends = _choice(writing, ends), ends
    self._rereads_at = rereads_at(config)

  def run(self, wanted, stopped) -> Iterator[dict[int, list[int]]]:
    """Write texts.

    Args:
      wanted: which prompts to continue.
      stopped: from tokens to how many there are up to the end of the first stop
        string, None without one.

    Yields:
      Tokens by prompt, of those that have ended.
    """
    waiting = self._read(wanted)
    left = len(wanted)
    state = slots.make_slots(
      self._config,
      self._steps,
      self._count,
      self._size,
      self._choice.penalty is not None,
    )
    owners: list[int | None] = [None] * self._count
    texts: dict[int, list[int]] = {}
    most = _CHUNK if self._writing.stop else _LONG_CHUNK
    most = min(most, self._writing.max_new_tokens)
    while left:
      for row, owner in enumerate(owners):
        if owner is None and (found := next(waiting, None)) is not None:
          owners[row], reading = found
          texts[owners[row]] = []
          state = self._join(state, row, owners[row], 0, reading)
      alive = sum(owner is not None for owner in owners)
      tokens_BR, lengths_B, state = slots.advance(
        self._config,
        most,
        (self._params, self._steps),
        state,
        self._choice,
        jnp.asarray(left > alive),
        self._gates,
      )
      tokens_BR, lengths_B, active_B = jax.device_get(
        (tokens_BR, lengths_B, state.active)
      )
      ended = {}
      freed_B = np.zeros(self._count, bool)
      for row, owner in enumerate(owners):
        if owner is None:
          continue
        text = texts[owner]
        text += tokens_BR[row, : lengths_B[row]].tolist()
        count = stopped(text)
        if count is None and not active_B[row] and self._outgrows(text):
          again = self._read_again(owner, text)
          state = self._join(state, row, owner, len(text), again)
        elif count is not None or not active_B[row]:
          ended[owner] = texts.pop(owner)[:count]
          owners[row], freed_B[row] = None, True
      if ended:
        state = slots.leave(state, jnp.asarray(freed_B))
        left -= len(ended)
        yield ended

  def _join(self, state, row, owner, written, reading):
    """Put a prompt, and what was written after it, into a row."""
    length = len(self._prompts[owner]) + written
    limit = self._writing.max_new_tokens
    if self._rereads_at is not None and length <= self._rereads_at:
      # The next token is read with all others again.
      limit = min(limit, written + self._rereads_at + 1 - length)
    where = row, owner, length, written, limit
    return slots.join(state, *reading, jnp.array(where, jnp.int32))

  def _outgrows(self, text) -> bool:
    """Whether a row stopped only because it has to be read again."""
    return (
      self._rereads_at is not None
      and len(text) < self._writing.max_new_tokens
      and text[-1] not in self._ends
    )

  def _read_again(self, owner, text):
    ids = (*map(int, self._prompts[owner]), *text, 0)
    (row,) = packing.plan([packing.Text(ids=ids, answer=1, group=0)])
    return next(self._read_row(row))[1]

  def _read(self, wanted):
    """(prompt, what `slots.join` needs to know of it) in turn."""
    config = self._config
    planned = packing.plan(
      [
        packing.Text(ids=(*map(int, prompt), 0), answer=1, group=index)
        for index, prompt in enumerate(self._prompts)
      ],
      apart=rope.by_length(config.rope) or rope.by_length(config.local_rope),
    )
    for row in planned:
      if wanted & set(row.requests):
        yield from (
          found for found in self._read_row(row) if found[0] in wanted
        )

  def _read_row(self, row):
    size = len(row.tokens)
    tokens_T = np.zeros(row.length, np.int32)
    positions_T = np.zeros(row.length, np.int32)
    ends_T = np.arange(1, row.length + 1, dtype=np.int32)
    tokens_T[:size], positions_T[:size] = row.tokens, row.positions
    ends_T[:size] = row.ends
    branches = Branches(positions=positions_T[None], ends=ends_T[None])
    read = slots.read_prompts(
      self._config, self._params, tokens_T[None], branches, self._gates
    )
    for index, (places, _) in zip(row.requests, row.reads):
      last = row.places[places[0]]
      path = np.flatnonzero(ends_T[: last + 1] > last)
      path_S = np.zeros(self._size, np.int32)
      path_S[: len(path)] = path
      yield index, (read, tokens_T, path_S)


def _check(config, prompts, writing) -> None:
  """Refuse what would be continued wrongly."""
  if not prompts or not all(map(len, prompts)):
    raise ValueError("prompts: give at least one, each with a token")
  if writing.batch_size < 1 or not all(writing.stop):
    raise ValueError(
      f"batch_size={writing.batch_size}, stop={writing.stop}: must be at least"
      " 1, and no empty text"
    )
  if writing.max_new_tokens < 1:
    raise ValueError(
      f"max_new_tokens={writing.max_new_tokens}: must be at least 1"
    )
  check_ids(
    [pick(map(pick, prompts)) for pick in (min, max)],
    config.vocab_size,
    "prompts",
  )
  longest = max(map(len, prompts))
  if longest + writing.max_new_tokens > config.max_positions:
    raise ValueError(
      f"prompt of {longest} tokens and max_new_tokens="
      f"{writing.max_new_tokens} exceed the model's {config.max_positions}"
      " positions"
    )


def _choice(writing, ends) -> slots.Choice:
  """How tokens are chosen, as arrays: other values compile nothing again."""
  sampling, key, options = writing.sampling, None, {}
  if sampling.temperature > 0:
    key = jax.random.key(writing.seed)
    options = dict(temperature=jnp.float32(sampling.temperature))
    if sampling.top_k > 0 or sampling.top_p < 1.0:
      options |= dict(
        top_k=jnp.int32(sampling.top_k), top_p=jnp.float32(sampling.top_p)
      )
  penalty = sampling.repetition_penalty
  # Few lengths, so that few programs are compiled; -1 is no token.
  ends = (*ends, *[-1] * (-len(ends) % _ENDS))
  return slots.Choice(
    ends=jnp.asarray(ends, jnp.int32),
    key=key,
    options=options,
    penalty=None if penalty == 1 else jnp.float32(penalty),
  )


def _keys(prompts, writing, ends) -> list[str]:
  """What a text depends on, beside the model."""
  sampling = dataclasses.replace(writing.sampling, eos_ids=ends)
  shared = repr((writing.max_new_tokens, writing.stop, sampling))
  if not sampling.temperature:
    return [key_of(prompt, shared) for prompt in prompts]
  return [
    key_of(prompt, shared, [writing.seed, index])
    for index, prompt in enumerate(prompts)
  ]


def cut_at(text: str, stop: Sequence[str]) -> str:
  """The text before the first stop string.

  Args:
    text: any.
    stop: texts that end it, none of them empty.
  """
  places = [text.find(word) for word in stop]
  return text[: min((place for place in places if place >= 0), default=None)]


def _stopped(tokenizer, tokens, stop) -> int | None:
  """Tokens up to the end of the first stop string; None without one."""

  def found(count):
    return any(
      word in tokenizer.decode(tokens[:count], skip_special_tokens=special)
      for special in (True, False)
      for word in stop
    )

  if not stop or not found(len(tokens)):
    return None
  low, high = 0, len(tokens)
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if found(middle) else (middle + 1, high)
  return low


def _token_stops(tokenizer, stop) -> tuple[int, ...]:
  """Ids of the stop strings that are one added token each."""
  added = tokenizer.get_added_tokens_decoder()
  ids = [id_ for id_, token in added.items() if token.content in stop]
  # A decoder may write a token in another way than it is spelled.
  return tuple(
    id_
    for id_ in ids
    if tokenizer.decode([id_], skip_special_tokens=False) in stop
  )


def _finish(config, tokenizer, tokens, stop, ends=None) -> Continuation:
  ends = config.eos_ids if ends is None else ends
  written, ended = tuple(tokens), "length"
  if tokens and tokens[-1] in ends:
    tokens, ended = tokens[:-1], "eos"
  text = tokenizer.decode(tokens, skip_special_tokens=True)
  kept = _before_stop(tokenizer, tokens, text, stop)
  if kept is not None:
    (tokens, text), ended = kept, "stop"
  return Continuation(
    tokens=tuple(tokens), text=text, ended=ended, written=written
  )


def _before_stop(tokenizer, tokens, text, stop):
  """Tokens and text before the first stop string; None where there is none.

  A stop string may be, begin or end with a special token, which `text` lacks:
  it is looked for in the text with special tokens too.
  """
  kept = None
  short = cut_at(text, stop)
  if len(short) < len(text):
    kept = _tokens_of(tokenizer, tokens, short), short
  full = tokenizer.decode(tokens, skip_special_tokens=False)
  before = cut_at(full, stop)
  if len(before) < len(full):
    head = _tokens_of(tokenizer, tokens, before, special=True)
    # The stop string may begin inside the last token.
    over = tokenizer.decode(head, skip_special_tokens=False)
    seen = tokenizer.decode(head, skip_special_tokens=True)
    seen = seen[: max(0, len(seen) - (len(over) - len(before)))]
    if kept is None or len(seen) < len(short):
      kept = head, seen
  return kept


def _tokens_of(tokenizer, tokens, text, special=False):
  """The fewest tokens from the beginning whose text has all of `text`."""
  low, high = 0, len(tokens)
  while low < high:
    middle = (low + high) // 2
    short = tokenizer.decode(tokens[:middle], skip_special_tokens=not special)
    low, high = (low, middle) if short.startswith(text) else (middle + 1, high)
  return tokens[:low]
