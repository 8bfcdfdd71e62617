"""What do two models answer, when both are asked the built-in items?

| task | an item is right when | guessing scores |
|---|---|---|
| choice | the likeliest of four options is the answer | 0.25 |
| exact | the first line that is written is the answer | 0 |

A perplexity is measured on the built-in text beside them. A model with the
tokenizer of the pocket model is asked the tasks of its own world instead.
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

DENSE, PRUNED = "dense", "pruned"
# Longer paragraphs are read in pieces.
_SEQ_LEN = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
  """The scores of both models on one task, item by item.

  Attributes:
    name: of the task.
    use: what it stands for: choice, generation or retrieval.
    metric: name of the score, in [0, 1].
    rule: in words, when an item is right.
    chance: score of a model that guesses.
    scores: by `dense` and `pruned`, float64 [items].
    written: what both wrote, [items] each; empty where nothing is written.
  """

  name: str
  use: str
  metric: str
  rule: str
  chance: float
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
  source: checkpoints.Source,
  dense: sequences.Model,
  pruned: sequences.Model,
  tell: Callable[[str], Callable[[float, float], None]],
) -> Answers:
  """Ask both models everything that is built in.

  Args:
    source: the checkpoint of the dense model, whose tokenizer both read with.
    dense: from `measure.load_models`.
    pruned: from `measure.load_models`.
    tell: from the name of some work to what is told (done, all) of it.
  """
  models = {DENSE: dense, PRUNED: pruned}
  if inputs.is_pocket(source):
    return Answers(tasks=_pocket(models), perplexity={})
  tokenizer = load_tokenizer(source.folder)
  specials = special_tokens(source.folder, tokenizer)
  paragraphs = [encode(tokenizer, text) for text in builtin.text()]
  return Answers(
    tasks=[
      _choice(models, tokenizer, specials, tell),
      _exact(models, tokenizer, specials, tell),
    ],
    perplexity={
      name: perplexity.score_documents(
        model.config, model.params, paragraphs, _SEQ_LEN
      )
      for name, model in models.items()
    },
  )


def _choice(models, tokenizer, specials, tell) -> Task:
  scores = {}
  for name, model in models.items():
    choices = multiple_choice.score_questions(
      model.config,
      model.params,
      tokenizer,
      builtin.questions(),
      joining=multiple_choice.Joining(prefix_id=specials.prefix_id),
      bookkeeping=Bookkeeping(progress=tell(f"{name}, questions")),
    )
    scores[name] = multiple_choice.correct(choices).astype(float)
  return Task(
    name="choice",
    use="choice",
    metric="accuracy",
    rule="the likeliest of four options is the answer",
    chance=builtin.CHOICE_CHANCE,
    scores=scores,
  )


def _exact(models, tokenizer, specials, tell) -> Task:
  items = builtin.items()
  prompts = [encode(tokenizer, item.prompt) for item in items]
  scores, written = {}, {}
  for name, model in models.items():
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
      bookkeeping=Bookkeeping(progress=tell(f"{name}, answers")),
    )
    written[name] = [text.text.strip() for text in texts]
    scores[name] = generation.exact_match(
      written[name], [item.answer for item in items], generation.normalised
    ).astype(float)
  return Task(
    name="exact",
    use="generation",
    metric="exact match",
    rule="the first line that is written is the answer, without regard to case,"
    " punctuation and articles",
    chance=builtin.EXACT_CHANCE,
    scores=scores,
    written=written,
  )


def _pocket(models) -> list[Task]:
  """The tasks of the pocket model's world in which it is above chance."""
  scores = {
    name: shipped.item_scores(model.config, model.params)
    for name, model in models.items()
  }
  return [
    Task(
      name=task,
      use=use,
      metric=metric,
      rule=rule,
      chance=chance,
      scores={
        name: np.asarray(by_task[task]) for name, by_task in scores.items()
      },
    )
    for task, use, metric, rule, chance in (
      ("choose", "choice", "accuracy", "the likeliest option is right", 0.25),
      ("retrieve", "retrieval", "nDCG@10", "how high the passage ranks", 0.0),
      ("generate", "generation", "exact match", "every step is right", 0.0),
    )
  ]
