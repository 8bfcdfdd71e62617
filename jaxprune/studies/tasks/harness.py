"""Which tasks does the harness run, and what becomes of its results?"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from jaxprune import report

_DATA = "DATA/"  # stands for the data folder in a local task


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


def find_tasks(
  tasks: Sequence[str], templates: pathlib.Path, data: str | None
) -> tuple[list[pathlib.Path], list[str]]:
  """Files of local tasks, and names of all tasks, checked before any work.

  Raises:
    ValueError: a file is missing, or a local task has no data folder.
  """
  paths, names = [], []
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
  return paths, names


@contextlib.contextmanager
def filled_in(
  paths: Sequence[pathlib.Path], data: str | None
) -> Iterator[pathlib.Path]:
  """A folder of the task files with the data folder in its place."""
  with tempfile.TemporaryDirectory() as folder:
    for path in paths:
      text = path.read_text(encoding="utf-8")
      if data is not None:
        text = text.replace(_DATA, f"{pathlib.Path(data).resolve()}/")
      (pathlib.Path(folder) / path.name).write_text(text, encoding="utf-8")
    yield pathlib.Path(folder)


def evaluate(
  model: pathlib.Path,
  names: Sequence[str],
  paths: Sequence[pathlib.Path],
  data: str | None,
  options: dict[str, Any],
  *,
  num_fewshot: int | None,
  limit: int | None,
  chat: bool,
  seed: int,
) -> dict[str, Any]:
  """Run the harness on a checkpoint; its results with samples.

  Args:
    model: folder of the checkpoint.
    names: tasks.
    paths: files of the local ones.
    data: folder for them.
    options: of `JaxpruneLM`.
    num_fewshot: None is the task's own.
    limit: items per task; None is all.
    chat: whether to apply the chat template.
    seed: of the harness's draws.
  """
  import lm_eval
  from lm_eval.tasks import TaskManager

  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  local = len(paths) == len(names)
  with filled_in(paths, data) as folder:
    # The harness's own 14,000 files take seconds to read.
    manager = TaskManager(
      include_path=str(folder) if paths else None, include_defaults=not local
    )
    return lm_eval.simple_evaluate(
      model=JaxpruneLM(model, **options),
      tasks=list(names),
      num_fewshot=num_fewshot,
      limit=limit,
      apply_chat_template=chat,
      task_manager=manager,
      log_samples=True,
      bootstrap_iters=0,
      random_seed=seed,
      numpy_random_seed=seed,
      torch_random_seed=seed,
      fewshot_random_seed=seed,
    )


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
  results: dict[str, Any], found: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
  """The harness's numbers, with an interval where they are means of items."""
  values: dict[tuple[str, str], list[float]] = {}
  for row in found:
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
      own = values.get((task, metric))
      if own and np.isclose(np.mean(own), value):
        interval = report.mean_interval(np.asarray(own), seed=seed)
        entry |= {
          "low": interval.low,
          "high": interval.high,
          "count": interval.rows,
        }
      tasks.setdefault(task, {})[metric] = entry
  return {"tasks": tasks}
