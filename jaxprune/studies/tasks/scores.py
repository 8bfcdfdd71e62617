"""One function per task: a model and a file in, a number per item out.

Shared by `evaluate`, which adds intervals and writes. Nothing here knows flags.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxprune.calibration import documents, encode
from jaxprune.evaluation import (
  embeddings,
  generation,
  multiple_choice,
  perplexity,
  retrieval,
)
from jaxprune.models import ModelConfig
from jaxprune.pocket import shipped
from jaxprune.studies.tasks import retrieval_data

EXTRACTIONS = {
  "final_number": generation.final_number,
  "normalised": generation.normalised,
}
# The fields that hold a prompt and an answer, in files of different origin.
_PROMPT = ("prompt", "question", "instruction", "text")
_ANSWER = ("answer", "reference", "output")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A loaded model: `name` is `dense` or `pruned`."""

  name: str
  config: ModelConfig
  params: Any
  tokenizer: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """What one model scored.

  Attributes:
    task: its name.
    item: what an item is: `question`, `prompt` or `window`.
    columns: metric to float64 [items].
    weights: what the mean of a column divides by, [items]; None is 1. Of a
      perplexity: tokens, for the column nll.
    traits: what an item is like whatever the model, name to float64 [items].
    detail: what a comparison of two models needs besides.
  """

  task: str
  item: str
  columns: dict[str, np.ndarray]
  weights: np.ndarray | None = None
  traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  detail: Any = None


def check_files(
  choice=(), retrieval_folders=(), generation_files=(), extract="none"
) -> None:
  """Read what the tasks will read, before any model is loaded.

  Raises:
    ValueError: a file is missing or broken, or answers are asked for that it
      does not hold.
  """
  for path in choice:
    multiple_choice.read_questions(path)
  for folder in retrieval_folders:
    retrieval_data.read_collection(folder)
  for path in generation_files:
    _, answers = read_pairs(path, None)
    if extract != "none" and answers is None:
      raise ValueError(
        f"{path}: has no field {' or '.join(_ANSWER)}; use --extract=none"
      )


def score_perplexity(model: Model, source: str, limit, seq_len) -> Scored:
  """Windows of a joined text, as the pruning papers do."""
  text = perplexity.read_held_out_text(source)
  found = perplexity.score_windows(
    model.config,
    model.params,
    encode(model.tokenizer, text),
    seq_len,
    max_windows=limit,
  )
  return Scored(
    task=f"perplexity {_stem(source)}",
    item="window",
    columns={"nll": found.nll},
    weights=found.tokens,
  )


def score_choice(model: Model, path: str, limit) -> Scored:
  """Multiple choice by log-likelihood."""
  questions = multiple_choice.read_questions(path, limit)
  choices = multiple_choice.score_questions(
    model.config, model.params, model.tokenizer, questions
  )
  return Scored(
    task=f"choice {_stem(path)}",
    item="question",
    columns=_columns(multiple_choice.item_rows(choices), "question"),
    detail=choices,
  )


def score_retrieval(model: Model, folder: str, limit, pooling) -> Scored:
  """Retrieval with pooled embeddings; long texts lose their end."""
  collection = retrieval_data.read_collection(folder)
  queries, documents_ = (
    [
      encode(model.tokenizer, text)[: model.config.max_positions]
      for text in texts
    ]
    for texts in (collection.queries[:limit], collection.documents)
  )
  queries_QE, documents_DE = (
    embeddings.embed_tokens(model.config, model.params, ids, pooling=pooling)
    for ids in (queries, documents_)
  )
  order_QK, _ = retrieval.search(queries_QE, documents_DE, 100)
  rows = retrieval.evaluate_order(
    order_QK, collection.qrels[:limit], cutoffs=(10, 100)
  )
  return Scored(
    task=f"retrieval {collection.name}",
    item="question",
    columns=_columns(rows, "question"),
  )


def score_generation(
  model: Model, path: str, limit, max_new_tokens, extract, dense
) -> Scored:
  """Greedy texts: right or not, and what became of them.

  Args:
    model: who writes.
    path: jsonl of prompts, and answers unless `extract` is none.
    limit: only so many prompts.
    max_new_tokens: most tokens to write.
    extract: what is compared with the answer.
    dense: texts of the dense model by task, to compare with. A task that is
      not among them is compared with itself; None compares nothing.
  """
  texts, answers = read_pairs(path, limit)
  config = model.config
  room = config.max_positions - max_new_tokens
  prompts = [encode(model.tokenizer, text) for text in texts]
  longest = max(map(len, prompts))
  if longest > room:
    raise ValueError(
      f"{path}: a prompt of {longest} tokens and --max_new_tokens="
      f"{max_new_tokens} exceed the context, {config.max_positions}:"
      " shorten one of them"
    )
  written = generation.continue_prompts(
    config,
    model.params,
    model.tokenizer,
    prompts,
    max_new_tokens=max_new_tokens,
  )
  right = None
  if extract != "none":
    right = generation.exact_match(
      [continuation.text for continuation in written],
      answers,
      EXTRACTIONS[extract],
    )
  task = f"generation {_stem(path)}"
  reference = None if dense is None else dense.get(task, written)
  rows = generation.item_rows(written, right=right, reference=reference)
  return Scored(
    task=task, item="prompt", columns=_columns(rows, "prompt"), detail=written
  )


def score_pocket(model: Model) -> list[Scored]:
  """The pocket model's own tasks, and how likely the right answers are.

  `pocket answers` is the teacher-forced side of `pocket generate`: perplexity
  of the very texts that have to be written.
  """
  metric = {"retrieve": "ndcg@10", "generate": "exact"}
  answers = shipped.read_answers(model.config, model.params)
  tokens = answers.tokens.astype(float)
  items = shipped.item_scores(model.config, model.params, answers)
  return [
    Scored(
      task=f"pocket {name}",
      item="question",
      columns={metric.get(name, "acc"): values},
      traits={"answer_tokens": tokens} if name == "generate" else {},
    )
    for name, values in items.items()
  ] + [
    Scored(
      task="pocket answers",
      item="question",
      columns={"nll": -answers.nats},
      weights=tokens,
    )
  ]


def read_pairs(path: str, limit) -> tuple[list[str], list[str] | None]:
  """Prompts, and answers where the file has them."""
  prompts = documents.read_rows(path, _PROMPT)[:limit]
  try:
    answers = documents.read_rows(path, _ANSWER)[:limit]
  except ValueError:
    return prompts, None
  return prompts, answers if len(answers) == len(prompts) else None


def _columns(rows, item) -> dict[str, np.ndarray]:
  return {
    name: np.array([row[name] for row in rows], float)
    for name in rows[0]
    if name != item
  }


def _stem(path: str) -> str:
  return path.rsplit("/", 1)[-1].split(".")[0]
