"""What is asked of a model, and what came of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import SpecialTokens
from jaxprune.evaluation import multiple_choice
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.models import ModelConfig

NO_SPECIALS = SpecialTokens()  # the config alone says what ends a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """What is asked of a model.

  Attributes:
    perplexity: texts that are read in windows: files, wikitext2 or c4.
    documents: files whose documents are each read by themselves.
    choice: jsonl files of multiple-choice questions.
    retrieval: folders of retrieval collections.
    generation: jsonl files of prompts that are continued greedily.
    pocket: whether the tasks of the pocket model's world are asked.
    limit: only the first so many items of each task; None is all.
    seq_len: tokens of a window for perplexity.
    max_new_tokens: most tokens that are written after a prompt.
    extract: what is compared with the answer of a generation item: a key of
      `generation.EXTRACTIONS`; none; or auto, what the answers of the file are
      (`generation.choose_extraction`), and none where it has no answers.
    pooling: how tokens become the embedding of a text, one of
      `embeddings.POOLINGS`; None is what modules.json of the folder says, or
      else the mean.
    query_prompt: put in front of every query: the name of a prompt of the
      folder, or a text. None is the folder's prompt 'query', if it has one.
    chat: whether the prompts of generation are turns of a conversation, one of
      `chat.CHAT`.
    named: tasks of `evaluation.tasks`, NAME or NAME:ITEMS.
    data: folder with their files; None is the hub.
    few_shot: solved problems in front of a prompt without a chat template;
      None is what the task says.
    allow_code_execution: whether the code that a model writes is run.
    without_isolation: whether it is run as an ordinary process of this user.
  """

  perplexity: tuple[str, ...] = ()
  documents: tuple[str, ...] = ()
  choice: tuple[str, ...] = ()
  retrieval: tuple[str, ...] = ()
  generation: tuple[str, ...] = ()
  pocket: bool = False
  limit: int | None = None
  seq_len: int = 512
  max_new_tokens: int = 64
  extract: str = "auto"
  pooling: str | None = None
  query_prompt: str | None = None
  chat: str = "no"
  named: tuple[str, ...] = ()
  data: str | None = None
  few_shot: int | None = None
  allow_code_execution: bool = False
  without_isolation: bool = False

  @property
  def writes(self) -> bool:
    """Whether a model may have to write a text."""
    return bool(self.generation or self.named)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
  """A loaded model.

  Attributes:
    config: of the model.
    params: its parameters, float32.
    tokenizer: what encodes the texts; two models that are compared share that
      of the dense one.
    specials: what begins and ends a text by that tokenizer's files.
    recipe: how the folder says that texts are embedded; None where it does not.
    template: from the words of a prompt to what is read, see `chat.template`;
      None where they are the same.
    bookkeeping: keeps what the model answers, and tells of it.
  """

  config: ModelConfig
  params: Any
  tokenizer: Any
  specials: SpecialTokens = NO_SPECIALS
  recipe: checkpoints.Recipe | None = None
  template: Callable[[str], str] | None = None
  bookkeeping: Bookkeeping = NO_BOOKKEEPING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """What one model scored.

  Attributes:
    task: its name.
    item: what an item is: `question`, `prompt`, `window` or `document`.
    columns: metric to float64 [items].
    weights: what the mean of a column divides by, [items]; None is 1. Of a
      perplexity: tokens, for the column nll.
    traits: what an item is like whatever the model, name to float64 [items].
    detail: what a comparison of two models needs besides.
    named: the task of `evaluation.tasks`; empty for files of the user.
    rules: by metric, in words, when an item is right.
    chance: mean score of a guess; None where nothing is known of it.
  """

  task: str
  item: str
  columns: dict[str, np.ndarray]
  weights: np.ndarray | None = None
  traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  detail: Any = None
  named: str = ""
  rules: dict[str, str] = dataclasses.field(default_factory=dict)
  chance: float | None = None


def choose(
  model: Model, questions: Sequence[multiple_choice.Question]
) -> tuple[multiple_choice.Choices, dict[str, np.ndarray]]:
  """Let a model choose among options.

  Args:
    model: who chooses.
    questions: at least one.

  Returns:
    What it read of each option, and metric to float64 [questions].
  """
  choices = multiple_choice.score_questions(
    model.config,
    model.params,
    model.tokenizer,
    questions,
    joining=multiple_choice.Joining(prefix_id=model.specials.prefix_id),
    bookkeeping=model.bookkeeping,
  )
  return choices, columns_of(multiple_choice.item_rows(choices), "question")


def columns_of(
  rows: Sequence[Mapping[str, float]], item: str
) -> dict[str, np.ndarray]:
  """Metric to float64 [rows].

  Args:
    rows: one for each item, all of the same metrics.
    item: the key that is no metric.
  """
  return {
    name: np.array([row[name] for row in rows], float)
    for name in rows[0]
    if name != item
  }
