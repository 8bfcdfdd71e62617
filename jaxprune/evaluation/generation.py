"""What does the model write, is it right, and does it still make sense?

Prompts are continued until the model ends its text, a stop string appears, or
there are enough tokens. Texts are then compared with answers, with the tokens
of a reference model, and with themselves.

  first divergence  tokens that two continuations share from their beginning
  repetition@n      1 - different n-grams / n-grams, of one continuation
  distinct@n        different n-grams / n-grams, over all continuations
  loop              the text ends in the same p tokens again and again

Reference: Cobbe et al., arXiv:2110.14168 (GSM8K); Rajpurkar et al.,
arXiv:1606.05250 (normalised match); Welleck et al., arXiv:1908.04319
(repetition); Li et al., arXiv:1510.03055 (distinct-n).
"""

import dataclasses
import decimal
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxprune.calibration import batching
from jaxprune.calibration.prompts import left_pad
from jaxprune.models import Gates, ModelConfig, Sampling, generate

if TYPE_CHECKING:
  import tokenizers

_STEP = 32  # prompts are padded to a multiple, so that few programs compile
_NUMBER = re.compile(
  r"-?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


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
    seed: of sampling. Two models draw alike with the same seed, prompts and
      `batch_size`; a greedy result depends on neither.
    batch_size: prompts at a time.
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
) -> list[Continuation]:
  """Continue prompts, in batches of like length.

  Args:
    config: the model.
    params: its parameters.
    tokenizer: the model's.
    prompts: ids of each.
    writing: how much, and greedily or not.
    gates: which sublayers stay; None is all.

  Returns:
    One for each prompt.

  Raises:
    ValueError: a prompt or a stop string is empty; a prompt and its new tokens
      exceed the context of the model, or an id is outside the vocabulary.
  """
  if not prompts or not all(map(len, prompts)):
    raise ValueError("prompts: give at least one, each with a token")
  batch_size, stop = writing.batch_size, writing.stop
  if batch_size < 1 or not all(stop):
    raise ValueError(
      f"batch_size={batch_size}, stop={stop}: must be at least 1, and no empty"
      " text"
    )
  own = writing.sampling.eos_ids
  ends = (config.eos_ids if own is None else own) + writing.eos_ids
  sampling = dataclasses.replace(
    writing.sampling,
    eos_ids=tuple(dict.fromkeys(ends + _token_stops(tokenizer, stop))),
  )
  lengths = np.array([len(prompt) for prompt in prompts])
  longest = config.max_positions - writing.max_new_tokens
  buckets = np.maximum(
    np.minimum(-(-lengths // _STEP) * _STEP, longest), lengths
  )
  continuations: list[Continuation | None] = [None] * len(prompts)
  for bucket in np.unique(buckets):
    chosen = np.flatnonzero(buckets == bucket)
    size = min(batch_size, len(chosen))
    for pick, count in batching.batches(len(chosen), size):
      part = chosen[pick]
      tokens_BT, valid_BT = left_pad(
        [tuple(prompts[index]) for index in part], config.pad_id or 0
      )
      spare = ((0, 0), (int(bucket) - tokens_BT.shape[1], 0))
      key = jax.random.fold_in(jax.random.key(writing.seed), int(part[0]))
      written = generate(
        config,
        params,
        np.pad(tokens_BT, spare),
        max_new_tokens=writing.max_new_tokens,
        valid_BT=np.pad(valid_BT, spare),
        sampling=sampling,
        key=key,
        gates=gates,
      )
      tokens_BR, lengths_B = map(np.asarray, (written.tokens, written.lengths))
      for row, index in enumerate(part[:count]):
        continuations[index] = _finish(
          config,
          tokenizer,
          tokens_BR[row, : lengths_B[row]].tolist(),
          stop,
          ends,
        )
  return continuations


def exact_match(
  texts: Sequence[str],
  answers: Sequence[str],
  extract: Callable[[str], str | None],
) -> np.ndarray:
  """Whether what `extract` finds in a text is what it finds in the answer.

  Args:
    texts: written by the model.
    answers: the right ones.
    extract: `final_number`, `normalised`, or any other; None is no answer.

  Returns:
    bool [n]; False where nothing is found in the text.

  Raises:
    ValueError: not one answer for each text, or nothing is found in an answer.
  """
  if len(texts) != len(answers):
    raise ValueError(
      f"{len(texts)} texts for {len(answers)} answers: give one each"
    )
  wanted = [extract(answer) for answer in answers]
  if None in wanted:
    raise ValueError(
      f"answer {wanted.index(None)}: nothing to compare with in"
      f" {answers[wanted.index(None)][:60]!r}; use another extraction"
    )
  return np.array(
    [extract(text) == right for text, right in zip(texts, wanted)], bool
  )


def final_number(text: str) -> str | None:
  """The number after the last `####`, or else the last number; None without.

  Written without thousands separators, currency sign and trailing zeros, so
  that 1,200.0 and $1200 are the same.
  """
  marked = text.rsplit("####", 1)
  numbers = _NUMBER.findall(marked[1])[:1] if len(marked) == 2 else []
  numbers = numbers or _NUMBER.findall(text)[-1:]
  if not numbers:
    return None
  plain = decimal.Decimal(numbers[0].replace(",", "").replace("$", ""))
  return format(plain.normalize(), "f") if plain else "0"


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and extra spaces."""
  kept = "".join(
    letter for letter in text.lower() if letter not in string.punctuation
  )
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def first_divergence(
  tokens: Sequence[int], reference: Sequence[int]
) -> int | None:
  """Index of the first differing token; None when both are the same.

  Args:
    tokens: ids of one text.
    reference: ids of the other.

  Returns:
    Where one is the beginning of the other, the length of the shorter.
  """
  for index, (token, other) in enumerate(zip(tokens, reference)):
    if token != other:
      return index
  shorter = min(len(tokens), len(reference))
  return None if len(tokens) == len(reference) else shorter


def repetition(tokens: Sequence[int], n: int) -> float:
  """Fraction of n-grams that stood before in the same text; 0 without any.

  Args:
    tokens: ids of the text.
    n: tokens of an n-gram, at least 1.
  """
  grams = _ngrams(tokens, n)
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
  """Different n-grams over all n-grams of all texts; 0 without any.

  Args:
    texts: ids of each.
    n: tokens of an n-gram, at least 1.
  """
  grams = [gram for tokens in texts for gram in _ngrams(tokens, n)]
  return len(set(grams)) / len(grams) if grams else 0.0


def loop_period(
  tokens: Sequence[int], *, times: int = 3, longest: int = 64
) -> int:
  """Tokens of the piece that a text repeats at its end; 0 if it does not.

  Args:
    tokens: ids.
    times: repetitions in a row that make a loop, at least 2.
    longest: period that is looked for.
  """
  if times < 2:
    raise ValueError(f"times={times}: must be at least 2")
  tokens = list(tokens)
  for period in range(1, min(longest, len(tokens) // times) + 1):
    tail = tokens[-period * times :]
    if tail[period:] == tail[:-period]:
      return period
  return 0


def item_rows(
  continuations: Sequence[Continuation],
  *,
  right: np.ndarray | None = None,
  reference: Sequence[Continuation] | None = None,
) -> list[dict[str, float]]:
  """A row per continuation.

  Args:
    continuations: of the prompts in order.
    right: bool [n], from `exact_match`; None leaves it out.
    reference: the dense model's, for `first_divergence` (the whole length
      where both are the same) and `same`.

  Returns:
    `prompt`, `length` in tokens, `ended_eos`, `repetition@1` to `@4`, `loop`;
    and `exact`, `first_divergence`, `same` where asked for.
  """
  rows = []
  for index, written in enumerate(continuations):
    row = {
      "prompt": index,
      "length": float(len(written.tokens)),
      "ended_eos": float(written.ended == "eos"),
    }
    row |= {
      f"repetition@{n}": repetition(written.tokens, n) for n in range(1, 5)
    }
    row["loop"] = float(loop_period(written.tokens) > 0)
    if right is not None:
      row["exact"] = float(right[index])
    if reference is not None:
      parted = first_divergence(written.tokens, reference[index].tokens)
      row["same"] = float(parted is None)
      row["first_divergence"] = float(
        len(written.tokens) if parted is None else parted
      )
    rows.append(row)
  return rows


def cut_at(text: str, stop: Sequence[str]) -> str:
  """The text before the first stop string.

  Args:
    text: any.
    stop: texts that end it, none of them empty.
  """
  places = [text.find(word) for word in stop]
  return text[: min((place for place in places if place >= 0), default=None)]


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


def _ngrams(tokens, n):
  if n < 1:
    raise ValueError(f"n={n}: must be at least 1")
  return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
