"""Tasks by name, asked beside the built-in items of a comparison.

A name is one of `evaluation.tasks`, which need their data, or else one of
lm-evaluation-harness, which is then asked for it and loads the folder itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer, special_tokens
from jaxprune.evaluation import chat, generation, multiple_choice
from jaxprune.evaluation.journal import Bookkeeping
from jaxprune.evaluation.tasks import table
from jaxprune.probes.decoder import sequences
from jaxprune.studies.tasks import asked, harness, named, scores

# Metrics of the harness that are a score in [0, 1], the first that is there.
_METRICS = ("acc_norm", "acc", "exact_match", "em", "pass@1", "f1")
_RULES = {
  "acc": multiple_choice.RULES["acc"],
  "acc_norm": multiple_choice.RULES["acc_norm"],
  "exact": generation.RULES["final_number"],
  "passed": "the tests of the program pass",
  "ndcg@10": "how high the right documents rank",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """What is asked in a task.

  Attributes:
    use: what it stands for: choice, generation or retrieval.
    metric: name of the score, in [0, 1].
    rule: in words, when an item is right.
    chance: score of a model that guesses; one number, or one for each item.
  """

  use: str
  metric: str
  rule: str
  chance: float | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
  """What one model scored on one task.

  Attributes:
    kind: what was asked.
    values: score of each item, float64 [items].
    written: what the model wrote, [items]; empty where nothing is written.
  """

  kind: Kind
  values: np.ndarray
  written: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class More:
  """Tasks by name, from `read`.

  Attributes:
    own: tasks of `evaluation.tasks`, and how they are asked.
    others: (name, items) of tasks of lm-evaluation-harness; None is all items.
  """

  own: asked.Tasks
  others: tuple[tuple[str, int | None], ...] = ()

  def names(self) -> list[tuple[str, int | None]]:
    """(name, items) of the tasks of `evaluation.tasks`."""
    return named.names(self.own)


def read(
  tasks: asked.Tasks, source: checkpoints.Source | None = None
) -> More | None:
  """Which tasks are asked, and by whom, before any work.

  Args:
    tasks: of which `named` says NAME or NAME:ITEMS.
    source: a model that will be asked, for what fits its context.

  Returns:
    None where none is named.

  Raises:
    ValueError: a name that nobody knows or that has no score per item, data
      that is missing, or code that may not be run.
  """
  if not tasks.named:
    return None
  own, others = [], []
  for text in tasks.named:
    name, _, count = text.partition(":")
    if name in table.TASKS:
      if table.TASKS[name].kind == table.PERPLEXITY:
        raise ValueError(
          f"--tasks={name}: a perplexity has no score per item, and one is"
          " measured anyway; use evaluate, or leave it out"
        )
      own.append(text)
    else:
      if count and not (count.isdecimal() and int(count)):
        raise ValueError(
          f"--tasks={text}: {count!r} is no number of items; write {name}:200"
        )
      others.append((name, int(count) if count else tasks.limit))
  if others:
    _check_others([name for name, _ in others])
  tasks = dataclasses.replace(tasks, named=tuple(own))
  if own:
    scores.check(tasks, [source] if source else [])
  return More(own=tasks, others=tuple(others))


def ask(
  sources: dict[str, checkpoints.Source],
  name: str,
  model: sequences.Model,
  tell: Callable[[str], Callable[[float, float], None]],
  more: More | None,
) -> dict[str, Scores]:
  """Ask one model the tasks by name.

  Args:
    sources: the checkpoints by name of the model, the dense one first, whose
      tokenizer reads.
    name: of the model.
    model: the same, loaded.
    tell: from the name of some work to what is told (done, all) of it.
    more: the tasks; None for none.

  Returns:
    By task.

  Raises:
    ValueError: a prompt that does not fit the context, or a task of the
      harness without a score per item.
  """
  if more is None:
    return {}
  found = {}
  own = more.names()
  if own:
    reader = _reader(next(iter(sources.values())), model, more.own)
  for task, limit in own:
    heard = Bookkeeping(progress=tell(f"{name}, {task}"))
    scored = scores.score_named(
      dataclasses.replace(reader, bookkeeping=heard), task, limit, more.own
    )
    found[task] = _of_own(task, scored)
  for task, limit in more.others:
    results = harness.evaluate(
      sources[name].folder,
      harness.Tasks(names=(task,), paths=(), data=None),
      harness.Settings(
        limit=limit, few_shot=more.own.few_shot, chat=more.own.chat
      ),
      Bookkeeping(progress=tell(f"{name}, {task}")),
    )
    found |= {
      part: of_samples(part, samples)
      for part, samples in results["samples"].items()
    }
  return found


def of_samples(task: str, samples: list[dict[str, Any]]) -> Scores:
  """What the harness scored, item by item.

  Args:
    task: its name.
    samples: of the task, as `lm_eval.simple_evaluate` logs them.

  Raises:
    ValueError: none of its metrics is a score in [0, 1] of each item.
  """
  for metric in _METRICS:
    rows = [sample for sample in samples if metric in sample["metrics"]]
    # A task may be scored under several filters; the last is the strictest.
    rows = [r for r in rows if r.get("filter") == rows[-1].get("filter")]
    values = np.array([row[metric] for row in rows], float)
    if values.size and ((values >= 0) & (values <= 1)).all():
      break
  else:
    raise ValueError(
      f"--tasks={task}: lm-evaluation-harness gives it no score per item in"
      f" [0, 1] ({', '.join(_METRICS)}); leave it out, or use harness"
    )
  choice = metric in ("acc", "acc_norm")
  return Scores(
    kind=Kind(
      use="choice" if choice else "generation",
      metric=metric,
      rule="as lm-evaluation-harness scores it",
      chance=np.array([1 / max(2, len(r["arguments"])) for r in rows])
      if choice
      else 0.0,
    ),
    values=values,
  )


def _reader(source, model, tasks) -> asked.Model:
  tokenizer = load_tokenizer(source.folder)
  return asked.Model(
    config=model.config,
    params=model.params,
    tokenizer=tokenizer,
    specials=special_tokens(source.folder, tokenizer),
    recipe=checkpoints.read_recipe(source.folder),
    template=chat.template(source.folder, tasks.chat),
  )


def _of_own(task: str, scored: scores.Scored) -> Scores:
  row = table.TASKS[task]
  written = []
  if row.kind in named.WRITTEN:
    written = [text.text.strip() for text in scored.detail]
  return Scores(
    kind=Kind(
      use=table.USE[row.kind],
      metric=row.metric,
      rule=_RULES[row.metric],
      chance=row.chance,
    ),
    values=scored.columns[row.metric],
    written=written,
  )


def _check_others(names) -> None:
  """Refuse names that the harness does not know either."""
  try:
    harness.version()
  except ValueError as error:
    raise ValueError(
      f"--tasks={names[0]}: not one of {', '.join(table.TASKS)}, and {error}"
    ) from None
  known = harness.names()
  for name in names:
    if name not in known:
      raise ValueError(
        f"--tasks={name}: neither one of {', '.join(table.TASKS)}, nor a task"
        " of lm-evaluation-harness; lm-eval ls tasks lists those"
      )
