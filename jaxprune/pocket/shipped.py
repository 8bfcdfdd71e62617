"""The pocket model that comes with the package, and what to try it on.

The world is made again from its seed, so calibration text, prompts and tasks
need no file and no network.
"""

import functools
import pathlib
from typing import Any

import numpy as np
from einops import rearrange

from jaxprune.calibration import Calibration, Prompts
from jaxprune.models import ModelConfig
from jaxprune.pocket import documents, scores, tasks, tokenizer, world

FOLDER = pathlib.Path(__file__).parent / "model"
WORLD_SEED = 0
CHANCE = {"choose": 1 / 4, "stories": 1 / 4}  # of four options; else 0


def calibration_tokens(
  num_samples: int, seq_len: int, seed: int
) -> Calibration:
  """Training documents one after the other, cut into sequences.

  Args:
    num_samples: sequences.
    seq_len: tokens of each.
    seed: of the draw.
  """
  reader = tokenizer.load_tokenizer(FOLDER)
  draw = np.random.default_rng([seed, 5])
  ids: list[int] = []
  while len(ids) < num_samples * seq_len:
    text = "".join(documents.sample_document(_index(), draw))
    ids += [tokenizer.BOS, *tokenizer.encode(reader, text), tokenizer.EOS]
  rows = np.asarray(ids[: num_samples * seq_len], np.int32)
  return Calibration(
    tokens=rearrange(rows, "(X T) -> X T", T=seq_len),
    source="pocket",
    sampling="packed",
    seed=seed,
    bos=True,
  )


def prompts(limit: int) -> Prompts:
  """The first `limit` generate items of the test split, without answers."""
  reader = tokenizer.load_tokenizer(FOLDER)
  kinds: dict[str, list[str]] = {}
  for item in _tasks().generate:
    kinds.setdefault(item.kind, []).append(item.prompt)
  # One of each kind in turn: sums, chains of facts, all facts of a person.
  turns = zip(*(texts * limit for texts in kinds.values()))
  mixed = list(dict.fromkeys(text for turn in turns for text in turn))[:limit]
  return Prompts(
    tokens=tuple(
      (tokenizer.BOS, *tokenizer.encode(reader, text)) for text in mixed
    ),
    source="pocket",
    bos=True,
  )


def item_scores(
  config: ModelConfig,
  params: Any,
  answers: Any = None,
  *,
  limit: int | None = None,
) -> dict[str, np.ndarray]:
  """Scores of the test items, in [0, 1].

  Args:
    config: the model.
    params: its parameters.
    answers: from `read_answers`, where they are known already.
    limit: of the items of each task; None is all.

  Returns:
    float64 [items] by task, see `scores.item_scores`.
  """
  reader = tokenizer.load_tokenizer(FOLDER)
  asked = _tasks().first(limit)
  return scores.item_scores(config, params, reader, asked, answers=answers)


def read_answers(
  config: ModelConfig, params: Any, *, limit: int | None = None
) -> Any:
  """Likelihoods of the right answers of generate, see `scores.read_answers`.

  Args:
    config: the model.
    params: its parameters.
    limit: of the items; None is all.
  """
  reader = tokenizer.load_tokenizer(FOLDER)
  asked = _tasks().first(limit)
  return scores.read_answers(config, params, reader, asked.generate)


def generate_requests(split: str) -> list[tuple[list[int], list[int]]]:
  """Ids of the prompt and of the answer, its end included, of generate items.

  Args:
    split: 'validation', to choose settings on, or 'test'.
  """
  reader = tokenizer.load_tokenizer(FOLDER)
  return [
    (
      [tokenizer.BOS, *tokenizer.encode(reader, item.prompt)],
      [*tokenizer.encode(reader, item.answer), tokenizer.EOS],
    )
    for item in _tasks(split).generate
  ]


def items(split: str) -> tasks.Tasks:
  """All items of a split, see `tasks.make_tasks`."""
  return _tasks(split)


def tasks_hash() -> str:
  """sha256 of the test items."""
  return tasks.tasks_hash(_tasks())


@functools.cache
def _index() -> documents.Index:
  return documents.make_index(world.make_world(WORLD_SEED))


@functools.cache
def _tasks(split: str = "test") -> tasks.Tasks:
  return tasks.make_tasks(_index(), split)
