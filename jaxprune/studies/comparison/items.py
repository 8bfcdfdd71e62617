"""What do two models answer, when both are asked the same items?

| task | an item is right when | guessing scores |
|---|---|---|
| choice | the likeliest of four options is the answer | 0.25 |
| exact | the first line that is written is the answer | 0 |

A perplexity is measured on the built-in text beside them. A model with the
tokenizer of the pocket model is asked the tasks of its own world instead.
Tasks by name come beside both, see `more_items`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import encode, load_tokenizer, special_tokens
from jaxprune.evaluation import builtin, generation, multiple_choice, perplexity
from jaxprune.evaluation.journal import Bookkeeping
from jaxprune.pocket import shipped
from jaxprune.probes.decoder import sequences
from jaxprune.studies import inputs
from jaxprune.studies.comparison import more_items
from jaxprune.studies.comparison.more_items import Kind, More, Scores

DENSE, PRUNED = "dense", "pruned"
# Longer paragraphs are read in pieces.
_SEQ_LEN = 256
_CHOICE = Kind(
  use="choice",
  metric="accuracy",
  rule="the likeliest of four options is the answer",
  chance=builtin.CHOICE_CHANCE,
)
_EXACT = Kind(
  use="generation",
  metric="exact match",
  rule="the first line that is written is the answer, without regard to case,"
  " punctuation and articles",
  chance=builtin.EXACT_CHANCE,
)
# The tasks of the pocket model's world in which it is above chance.
_POCKET = {
  "choose": Kind(
    use="choice",
    metric="accuracy",
    rule="the likeliest option is right",
    chance=0.25,
  ),
  "retrieve": Kind(
    use="retrieval",
    metric="nDCG@10",
    rule="how high the passage ranks",
    chance=0.0,
  ),
  "generate": Kind(
    use="generation",
    metric="exact match",
    rule="every step is right",
    chance=0.0,
  ),
}

# From the name of some work to what is told (done, all) of it.
Tell = Callable[[str], Callable[[float, float], None]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
  """The scores of both models on one task, item by item.

  Attributes:
    name: of the task.
    use: what it stands for: choice, generation or retrieval.
    metric: name of the score, in [0, 1].
    rule: in words, when an item is right.
    chance: score of a model that guesses; one number, or one for each item.
    scores: by `dense` and `pruned`, float64 [items].
    written: what both wrote, [items] each; empty where nothing is written.
  """

  name: str
  use: str
  metric: str
  rule: str
  chance: float | np.ndarray
  scores: dict[str, np.ndarray]
  written: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
  """All answers.

  Attributes:
    tasks: what was asked.
    perplexity: by `dense` and `pruned`, of each paragraph; {} where no text was
      read.
  """

  tasks: list[Task]
  perplexity: dict[str, perplexity.Scores]

  def rows(self) -> Iterator[dict[str, Any]]:
    """A flat row per model, task and item, for the records."""
    for task in self.tasks:
      for model, values in task.scores.items():
        for index, value in enumerate(values):
          yield {
            "model": model,
            "task": task.name,
            "question": index,
            "metric": task.metric,
            "value": float(value),
          }


def ask(
  sources: dict[str, checkpoints.Source],
  models: dict[str, sequences.Model],
  tell: Tell,
  more: More | None = None,
) -> Answers:
  """Ask both models everything that is built in, and some tasks by name.

  Args:
    sources: their checkpoints, by `dense` and `pruned`; both read with the
      tokenizer of the dense one.
    models: the same, loaded by `measure.load_models`.
    tell: what hears how far the work is.
    more: tasks by name; None for none.
  """
  scores = {
    name: ask_one(sources[DENSE], model, name, tell)
    | more_items.ask(sources, name, model, tell, more)
    for name, model in models.items()
  }
  return Answers(
    tasks=pair(scores[DENSE], scores[PRUNED]),
    perplexity={
      name: read
      for name, model in models.items()
      if (read := read_text(sources[DENSE], model)) is not None
    },
  )


def pair(dense: dict[str, Scores], pruned: dict[str, Scores]) -> list[Task]:
  """What two models scored on the same tasks, task by task.

  Args:
    dense: by task, from `ask_one` or `more_items.ask`.
    pruned: the same of the pruned model.
  """
  return [
    Task(
      name=name,
      **dataclasses.asdict(of_dense.kind),
      scores={DENSE: of_dense.values, PRUNED: pruned[name].values},
      written={DENSE: of_dense.written, PRUNED: pruned[name].written}
      if of_dense.written
      else {},
    )
    for name, of_dense in dense.items()
  ]


def ask_one(
  source: checkpoints.Source,
  model: sequences.Model,
  name: str,
  tell: Tell,
  uses: tuple[str, ...] | None = None,
) -> dict[str, Scores]:
  """Ask one model the built-in items.

  Args:
    source: the checkpoint of the dense model, whose tokenizer is read with.
    model: who answers.
    name: of the model, for `tell`.
    tell: what hears how far the work is.
    uses: only tasks that stand for one of these; None is all.

  Returns:
    By task, in the order of the table.
  """
  if inputs.is_pocket(source):
    by_task = shipped.item_scores(model.config, model.params)
    return {
      task: Scores(kind=kind, values=np.asarray(by_task[task]))
      for task, kind in _POCKET.items()
      if uses is None or kind.use in uses
    }
  tokenizer = load_tokenizer(source.folder)
  specials = special_tokens(source.folder, tokenizer)
  asked = {"choice": (_CHOICE, _choice), "exact": (_EXACT, _exact)}
  return {
    task: score(
      model, tokenizer, specials, lambda work: tell(f"{name}, {work}")
    )
    for task, (kind, score) in asked.items()
    if uses is None or kind.use in uses
  }


def read_text(
  source: checkpoints.Source, model: sequences.Model
) -> perplexity.Scores | None:
  """How well a model predicts the built-in text, paragraph by paragraph.

  Args:
    source: the checkpoint whose tokenizer is read with.
    model: who reads.

  Returns:
    None for the pocket model, which knows another language.
  """
  if inputs.is_pocket(source):
    return None
  tokenizer = load_tokenizer(source.folder)
  paragraphs = [encode(tokenizer, text) for text in builtin.text()]
  return perplexity.score_documents(
    model.config, model.params, paragraphs, _SEQ_LEN
  )


def _choice(model, tokenizer, specials, tell) -> Scores:
  choices = multiple_choice.score_questions(
    model.config,
    model.params,
    tokenizer,
    builtin.questions(),
    joining=multiple_choice.Joining(prefix_id=specials.prefix_id),
    bookkeeping=Bookkeeping(progress=tell("questions")),
  )
  return Scores(
    kind=_CHOICE, values=multiple_choice.correct(choices).astype(float)
  )


def _exact(model, tokenizer, specials, tell) -> Scores:
  items = builtin.items()
  prompts = [encode(tokenizer, item.prompt) for item in items]
  texts = generation.continue_prompts(
    model.config,
    model.params,
    tokenizer,
    prompts,
    generation.Writing(
      max_new_tokens=builtin.MAX_NEW_TOKENS,
      stop=(builtin.STOP,),
      eos_ids=specials.end_ids,
      batch_size=len(prompts),
    ),
    bookkeeping=Bookkeeping(progress=tell("answers")),
  )
  written = [text.text.strip() for text in texts]
  right = generation.exact_match(
    written, [item.answer for item in items], generation.normalised
  )
  return Scores(kind=_EXACT, values=right.astype(float), written=written)
