"""Which tokens stand for the options of a question?

An option may be written in several ways, whose probabilities are added. The
ids that all options begin with are read as part of the context, so that both
models are compared at the position where the options begin to differ.
"""

import dataclasses
import hashlib
import os
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune import calibration, checkpoints
from jaxprune.evaluation import multiple_choice
from jaxprune.evaluation.multiple_choice import Question, read_questions
from jaxprune.studies import inputs

if TYPE_CHECKING:
  import tokenizers

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One question in token ids.

  Attributes:
    head: what is read before the options part, with special tokens.
    spellings: of each option, one tuple of ids or more.
    answer: index of the right option.
  """

  head: Ids
  spellings: tuple[tuple[Ids, ...], ...]
  answer: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
  """X items at the same shapes: J rows, C options, U spellings, R tokens.

  Attributes:
    tokens: rows to read, int32 [X, J, T], padded at the right.
    lengths: tokens of each row, int32 [X, J]; 0 where there is none.
    start: index of the last token of the head, int32 [X].
    row: which row a spelling is read in, int32 [X, C, U].
    ids: spellings, int32 [X, C, U, R].
    live: where `ids` holds a token, bool [X, C, U, R].
    first: distinct first tokens of the spellings, int32 [X, C].
    first_live: where `first` holds one, bool [X, C].
  """

  tokens: np.ndarray
  lengths: np.ndarray
  start: np.ndarray
  row: np.ndarray
  ids: np.ndarray
  live: np.ndarray
  first: np.ndarray
  first_live: np.ndarray


def pocket_questions(limit: int | None) -> list[Question]:
  """The choose items of the pocket model's world, test split."""
  from jaxprune.pocket import documents, shipped, tasks, world

  index = documents.make_index(world.make_world(shipped.WORLD_SEED))
  items = tasks.make_tasks(index, "test").choose
  order = np.random.default_rng(0).permutation(len(items))  # mixes the kinds
  return [
    Question(
      context=items[i].prompt, options=items[i].options, answer=items[i].label
    )
    for i in order[:limit]
  ]


def open_items(
  dense: checkpoints.Source,
  tokenizer: "tokenizers.Tokenizer",
  source: str,
  *,
  limit: int | None,
  answer_as: str,
  cue: str,
) -> list[Item]:
  """Read questions and put them into the ids of a model.

  Args:
    dense: the model that reads them.
    tokenizer: the model's.
    source: a jsonl file, or 'pocket' for the questions of its world.
    limit: only the first so many questions.
    answer_as: see `read_items`.
    cue: see `read_items`.

  Raises:
    ValueError: the model does not speak the language of 'pocket', or as
      `read_questions` and `read_items`.
  """
  if source != "pocket":
    questions = read_questions(source, limit)
  elif inputs.is_pocket(dense):
    questions = pocket_questions(limit)
  else:
    raise ValueError(
      f"--items=pocket: {dense.folder} does not speak the pocket model's"
      " language; give a jsonl file of questions"
    )
  return read_items(
    questions,
    tokenizer,
    answer_as=answer_as,
    cue=cue,
    bos_id=dense.config.bos_id,
    longest=dense.config.max_positions,
    source=source,
  )


def describe(items: Sequence[Item], source: str) -> dict[str, Any]:
  """What run.json says of the questions.

  Args:
    items: the questions.
    source: where they are from.
  """
  return {"source": source, "count": len(items), "hash": items_hash(items)}


def read_items(
  questions: Sequence[Question],
  tokenizer: "tokenizers.Tokenizer",
  *,
  answer_as: str,
  cue: str,
  bos_id: int | None,
  longest: int,
  source: str | os.PathLike,
) -> list[Item]:
  """Put questions into ids.

  Args:
    questions: from `read_questions` or `pocket_questions`.
    tokenizer: the model's.
    answer_as: 'text' reads each option after the context; 'letter' lists the
      options below it and reads A, B, ... after the cue.
    cue: what follows the list of 'letter', 'Answer:' or nothing.
    bos_id: id of BOS, needed where it is added.
    longest: the model's context.
    source: where the questions are from, for the errors.

  Raises:
    ValueError: an option cannot be written after its context, two are one
      event, or a question is longer than the model's context.
  """
  items = []
  for number, question in enumerate(questions):
    place = f"{source}: question {number}"
    context, ways = _written(question, answer_as, cue, place)
    head = tuple(calibration.encode(tokenizer, context, None, bos_id))
    spellings = tuple(
      _spellings(tokenizer, context, head, texts, bos_id, place)
      for texts in ways
    )
    item = _checked(head, spellings, question.answer, place)
    size = len(item.head) + max(
      len(ids) for option in item.spellings for ids in option
    )
    if size > longest:
      raise ValueError(
        f"{place} has {size} tokens, more than the context of the model,"
        f" {longest}: remove it"
      )
    items.append(item)
  return items


def make_arrays(items: Sequence[Item], *, apart: bool = False) -> Arrays:
  """Pad items to common shapes.

  Args:
    items: the questions.
    apart: no text is read as the beginning of another one, for a model whose
      RoPE depends on the length of a text.
  """
  rows = [_rows(item, apart) for item in items]
  first = [
    tuple(dict.fromkeys(ids[0] for option in item.spellings for ids in option))
    for item in items
  ]
  ways = [ids for item in items for option in item.spellings for ids in option]
  shape = (
    len(items),
    max(len(item.spellings) for item in items),
    max(len(option) for item in items for option in item.spellings),
    max(map(len, ways)),
  )
  length = max(
    len(item.head) + len(row) for item, each in zip(items, rows) for row in each
  )
  tokens = np.zeros((len(items), max(map(len, rows)), length), np.int32)
  lengths = np.zeros(tokens.shape[:2], np.int32)
  row = np.zeros(shape[:3], np.int32)
  ids, live = np.zeros(shape, np.int32), np.zeros(shape, bool)
  firsts = np.zeros((len(items), max(map(len, first))), np.int32)
  first_live = np.zeros(firsts.shape, bool)
  for n, item in enumerate(items):
    for k, tail in enumerate(rows[n]):
      whole = item.head + tail
      tokens[n, k, : len(whole)] = whole
      lengths[n, k] = len(whole)
    for c, option in enumerate(item.spellings):
      for s, way in enumerate(option):
        ids[n, c, s, : len(way)], live[n, c, s, : len(way)] = way, True
        row[n, c, s] = next(
          k
          for k, tail in enumerate(rows[n])
          if (tail if apart else tail[: len(way) - 1]) == way[:-1]
        )
    # Unused places repeat the last token; nothing reads them.
    firsts[n] = first[n][-1]
    firsts[n, : len(first[n])] = first[n]
    first_live[n, : len(first[n])] = True
  return Arrays(
    tokens=tokens,
    lengths=lengths,
    row=row,
    ids=ids,
    live=live,
    first=firsts,
    first_live=first_live,
    start=np.array([len(item.head) - 1 for item in items], np.int32),
  )


def items_hash(items: Sequence[Item]) -> str:
  """sha256 of the ids of all questions, in their order."""
  text = repr([(item.head, item.spellings, item.answer) for item in items])
  return hashlib.sha256(text.encode()).hexdigest()


def _written(question, answer_as, cue, place):
  """Context, and for each option the texts that mean it."""
  followed = [
    multiple_choice.follow(question.context, option)
    for option in question.options
  ]
  context = followed[0][0]
  if answer_as == "text":
    return context, [(text,) for _, text in followed]
  if len(question.options) > len(string.ascii_uppercase):
    raise ValueError(f"{place}: more options than letters; use fewer")
  letters = string.ascii_uppercase[: len(question.options)]
  listed = "\n".join(
    f"{letter}. {text.strip()}"
    for letter, text in zip(letters, question.options)
  )
  context = f"{context}\n{listed}" + (f"\n{cue}" if cue else "")
  return context, [
    # ' a' is left out: it is the article, too.
    (f" {letter}", letter, f" ({letter})", f"({letter})")
    for letter in letters
  ]


def _spellings(tokenizer, context, head, texts, bos_id, place):
  """Ids of each text after the context, but for those that cannot follow it."""
  spellings = []
  for text in texts:
    ids = tuple(calibration.encode(tokenizer, context + text, None, bos_id))
    # If the tokenizer merges the text with the end of the context, the model
    # never writes it at this place.
    if ids[: len(head)] == head and len(ids) > len(head):
      spellings.append(ids[len(head) :])
  if not spellings:
    raise ValueError(
      f"{place}: the tokenizer merges option {texts[0]!r} with the end of the"
      f" context, {context[-20:]!r}; end the context with a colon"
    )
  # A spelling that continues another one is already part of that event.
  spellings = sorted(set(spellings), key=lambda ids: (len(ids), ids))
  return tuple(
    ids
    for ids in spellings
    if not any(len(o) < len(ids) and ids[: len(o)] == o for o in spellings)
  )


def _checked(head, spellings, answer, place) -> Item:
  """Refuse options that overlap; move what all begin with to the head."""
  for c, option in enumerate(spellings):
    for other in spellings[:c]:
      for a in option:
        for b in other:
          size = min(len(a), len(b))
          if a[:size] == b[:size]:
            raise ValueError(
              f"{place}: one option begins with another, so that their"
              " probabilities overlap; end the options with a full stop"
            )
  ways = [ids for option in spellings for ids in option]
  shared = 0
  while len({ids[shared] for ids in ways}) == 1:
    shared += 1
  return Item(
    head=head + ways[0][:shared],
    answer=answer,
    spellings=tuple(
      tuple(ids[shared:] for ids in option) for option in spellings
    ),
  )


def _rows(item, apart) -> list[Ids]:
  """The fewest texts after the head in which every spelling can be read.

  With `apart`, every text that is read, the head alone first.
  """
  tails = {ids[:-1] for option in item.spellings for ids in option}
  if apart:
    return sorted(tails | {()}, key=lambda ids: (len(ids), ids))
  tails = sorted(tails, key=lambda ids: (-len(ids), ids))
  kept: list[Ids] = []
  for tail in tails:
    if not any(other[: len(tail)] == tail for other in kept):
      kept.append(tail)
  return kept


__all__ = [
  "Arrays",
  "Item",
  "Question",
  "describe",
  "items_hash",
  "make_arrays",
  "open_items",
  "pocket_questions",
  "read_items",
  "read_questions",
]
