"""Which tasks does the harness run, and how are its results stored?"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.evaluation import chat
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.statistics import Estimate

_DATA = "DATA/"  # the word that stands for the data folder in a local task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How the harness asks.

  Attributes:
    few_shot: examples before a question; None is the task's own.
    limit: items per task; None is all.
    chat: whether questions are turns of a conversation, one of `chat.CHAT`.
    seed: of every draw of the harness.
    run_code: whether its tasks that run what the model wrote may do so, in
      the harness's own way, which isolates nothing.
    model: keyword arguments of `JaxpruneLM`.
  """

  few_shot: int | None = None
  limit: int | None = None
  chat: str = "no"
  seed: int = 0
  run_code: bool = False
  model: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """What the harness asks.

  Attributes:
    names: of all tasks.
    paths: files of the local ones.
    data: folder that the local ones read from; None where they read none.
  """

  names: tuple[str, ...]
  paths: tuple[pathlib.Path, ...]
  data: str | None


def version() -> str:
  """The harness's version.

  Raises:
    ValueError: it is not installed.
  """
  try:
    return metadata.version("lm_eval")
  except metadata.PackageNotFoundError:
    raise ValueError(
      "lm-evaluation-harness is not installed: pip install jaxprune[eval]"
    ) from None


def names() -> frozenset[str]:
  """All tasks, groups and tags that the harness has itself."""
  from lm_eval.tasks import TaskManager

  return frozenset(TaskManager().all_tasks)


def find_tasks(
  tasks: Sequence[str], templates: pathlib.Path, data: str | None
) -> Tasks:
  """Find the tasks, before any work.

  Args:
    tasks: yaml files, names of files in `templates`, or names of tasks that
      the harness has itself.
    templates: folder of local tasks.
    data: folder that they read from.

  Raises:
    ValueError: a file is missing, or a local task has no data folder.
  """
  paths: list[pathlib.Path] = []
  names: list[str] = []
  for task in tasks:
    is_file = task.endswith((".yaml", ".yml"))
    path = pathlib.Path(task) if is_file else templates / f"{task}.yaml"
    if not path.is_file():
      if is_file:
        raise ValueError(f"--task={task}: no such file")
      names.append(task)  # one of the harness's own
      continue
    text = path.read_text(encoding="utf-8")
    if _DATA in text and (data is None or not pathlib.Path(data).is_dir()):
      raise ValueError(
        f"--task={task} reads files below --data, and --data={data} is no"
        " folder; give the one that holds them"
      )
    paths.append(path)
    names += [
      line.split(":", 1)[1].strip()
      for line in text.splitlines()
      if line.startswith("task:")
    ]
  return Tasks(names=tuple(names), paths=tuple(paths), data=data)


@contextlib.contextmanager
def filled_in(tasks: Tasks) -> Iterator[pathlib.Path]:
  """A folder of the task files with the data folder in its place."""
  with tempfile.TemporaryDirectory() as folder:
    for path in tasks.paths:
      text = path.read_text(encoding="utf-8")
      if tasks.data is not None:
        text = text.replace(_DATA, f"{pathlib.Path(tasks.data).resolve()}/")
      (pathlib.Path(folder) / path.name).write_text(text, encoding="utf-8")
    yield pathlib.Path(folder)


def evaluate(
  model: pathlib.Path,
  tasks: Tasks,
  settings: Settings,
  bookkeeping: Bookkeeping = NO_BOOKKEEPING,
) -> dict[str, Any]:
  """Run the harness on a checkpoint; its results with samples.

  Args:
    model: folder of the checkpoint.
    tasks: from `find_tasks`.
    settings: how it asks.
    bookkeeping: keeps what the model answers, and tells of it.

  Raises:
    ValueError: a chat template is wanted and the model has none, or a task
      runs code and that is not allowed.
  """
  import lm_eval
  from lm_eval.tasks import TaskManager

  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  with_template = chat.uses_template(model, settings.chat)
  local = len(tasks.paths) == len(tasks.names)
  with filled_in(tasks) as folder:
    # Reading the 14,000 files of the harness's own tasks takes seconds.
    manager = TaskManager(
      include_path=str(folder) if tasks.paths else None,
      include_defaults=not local,
    )
    unsafe = [] if settings.run_code else code_tasks(manager, tasks.names)
    if unsafe:
      raise ValueError(
        f"--task={unsafe[0]} runs what the model wrote, and the harness does"
        " not isolate it: use code_tasks, or give --allow_code_execution and"
        " --without_isolation where the code may do harm"
      )
    return lm_eval.simple_evaluate(
      model=JaxpruneLM(model, **settings.model, bookkeeping=bookkeeping),
      tasks=list(tasks.names),
      num_fewshot=settings.few_shot,
      limit=settings.limit,
      apply_chat_template=with_template,
      task_manager=manager,
      log_samples=True,
      bootstrap_iters=0,
      random_seed=settings.seed,
      numpy_random_seed=settings.seed,
      torch_random_seed=settings.seed,
      fewshot_random_seed=settings.seed,
      confirm_run_unsafe_code=settings.run_code,
    )


def code_tasks(manager: Any, names: Sequence[str]) -> list[str]:
  """Those of some tasks, or of the groups and tags they name, that run code.

  Args:
    manager: the harness's `TaskManager`.
    names: of tasks, groups or tags; unknown ones are the harness's to refuse.
  """
  found: list[str] = []
  waiting: list[Any] = list(names)
  seen: set[str] = set()
  while waiting:
    part = waiting.pop(0)
    config = part  # within a group, a task may be written out
    if isinstance(part, str):
      entry = manager.task_index.get(part)
      if entry is None or part in seen:
        continue
      seen.add(part)
      config = entry.cfg
      if config is None:  # a tag
        waiting += sorted(entry.tags)
        continue
    name = config.get("group") or config.get("task")
    if config.get("unsafe_code"):
      found.append(name)
    if "group" in config:
      waiting += config.get("task") or ()
    if config is part:  # what it is made from
      waiting.append(name)
  return found


def rows(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """A flat row per item and metric that is a number for each item."""
  for task, samples in results["samples"].items():
    for sample in samples:
      for metric in sample["metrics"]:
        value = sample[metric]
        if isinstance(value, (bool, int, float, np.number)):
          yield {
            "task": task,
            "question": int(sample["doc_id"]),
            "metric": f"{metric},{sample.get('filter', 'none')}",
            "value": float(value),
          }


def summarise(
  results: dict[str, Any], items: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
  """The harness's numbers, with an interval where they are means of items.

  Args:
    results: from `evaluate`.
    items: from `rows`.
    seed: of the resampling of items.

  Returns:
    `tasks`: task to metric to an estimate, or to its `value` alone.
  """
  values: dict[tuple[str, str], list[float]] = {}
  for row in items:
    values.setdefault((row["task"], row["metric"]), []).append(row["value"])
  tasks: dict[str, Any] = {}
  for task, metrics in results["results"].items():
    for metric, value in metrics.items():
      if (
        "," not in metric
        or "_stderr" in metric
        or not isinstance(value, (int, float))
      ):
        continue
      entry = {"value": float(value)}
      scores = values.get((task, metric))
      if scores and np.isclose(np.mean(scores), value):
        interval = (
          statistics.proportion(scores)
          if np.isin(scores, (0, 1)).all()
          else statistics.mean(scores, seed=seed)
        )
        entry |= interval.to_json() | {"value": float(value)}
      tasks.setdefault(task, {})[metric] = entry
  return {"tasks": tasks}


def headline(summary: dict[str, Any]) -> str:
  """One line per task and metric."""
  return "\n".join(
    f"{task}, {metric}: "
    + (
      Estimate.from_json(entry).format()
      if "low" in entry
      else f"{entry['value']:.4f}"
    )
    for task, metrics in summary["tasks"].items()
    for metric, entry in metrics.items()
  )
