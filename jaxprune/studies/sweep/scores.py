"""The scores of a sweep: what its folder holds, and how it is read back.

OUT/configurations has a file per configuration and seed, dense.json for the
dense model, and job.json, which says what all of them are scores of. Items are
the same in all configurations.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxprune import checkpoints, files

FOLDER = "configurations"
# Its name in runs of earlier versions, which are still read.
_EARLIER_FOLDER = "cells"
DENSE = "dense"
_LARGEST = 1e300  # of a number that can be averaged

# Of one configuration and seed: `configuration`, `seed`, `removed` (fraction of
# zeros), `tasks` (by name `columns`, metric to a number per item, `weights`,
# perhaps `traits` and `written`) and `measurements` (columns over positions).
Score = dict[str, Any]


def find_folder(folder: pathlib.Path) -> pathlib.Path:
  """The folder of finished configurations in the folder of a sweep."""
  folder = pathlib.Path(folder)
  if (folder / _EARLIER_FOLDER).is_dir() and not (folder / FOLDER).is_dir():
    return folder / _EARLIER_FOLDER
  return folder / FOLDER


def read_score(path: pathlib.Path) -> Score:
  """A score from its file, under whatever name its run gave.

  Raises:
    ValueError: it is not what was written.
  """
  files.read_checked(path)
  score = files.read_signed_json(path)
  if "cell" in score:
    score["configuration"] = score.pop("cell")
  fault = _job_fault(score) if path.stem == "job" else _score_fault(score)
  if fault:
    raise ValueError(
      f"{path}: {fault}, so jaxprune discrepancy has not written it; remove"
      " it to make it anew"
    )
  return score


def _job_fault(job) -> str:
  """What makes a job.json useless; "" for nothing."""
  name = job.get("checkpoint_hash")
  return "" if isinstance(name, str) else f"checkpoint_hash is {name!r:.40}"


def _score_fault(score) -> str:
  """What makes a score useless; "" for nothing."""
  kinds = {
    "configuration": str,
    "seed": int,
    "removed": int | float,
    "tasks": dict,
    "measurements": dict | None,
  }
  for name, kind in kinds.items():
    if not isinstance(score.get(name), kind):
      return f"{name} is {score.get(name)!r:.40}"
  for task, entry in score["tasks"].items():
    columns = entry.get("columns") if isinstance(entry, dict) else None
    if not isinstance(columns, dict) or not columns or "weights" not in entry:
      return f"task {task} is no scores: {entry!r:.40}"
    weights = entry["weights"]
    weighted = columns if weights is None else columns | {"weights": weights}
    fault = _columns_fault(weighted, least=1)
    if fault:
      return f"task {task}: {fault}"
  # What reads the measurements says which of them are not finite.
  measured = score.get("measurements") or {}
  return _columns_fault(measured, kinds=int | float | None)


def _columns_fault(columns, least: int = 0, kinds=int | float) -> str:
  """What makes columns useless that shall be numbers for the same items."""
  lengths = set()
  for name, values in columns.items():
    if not isinstance(values, list) or len(values) < least:
      return f"column {name} is {values!r:.40}"
    for value in values:
      if not isinstance(value, kinds) or abs(value or 0) > _LARGEST:
        return f"column {name} holds {value!r:.40}"
    lengths.add(len(values))
  return f"columns of {sorted(lengths)} numbers" if len(lengths) > 1 else ""


def read_scores(folder: pathlib.Path) -> dict[str, list[Score]]:
  """Read the scores of a sweep.

  Returns:
    By configuration, seeds in order; the dense model under `dense`.

  Raises:
    ValueError: there is no score of a dense model.
  """
  scores = [
    read_score(path) for path in sorted(find_folder(folder).glob("*.json"))
  ]
  # job.json is of no configuration.
  grouped = by_configuration(
    score for score in scores if "configuration" in score
  )
  if DENSE not in grouped:
    raise ValueError(
      f"{folder}: no scores of a dense model in {FOLDER}/; give a folder"
      " that jaxprune discrepancy wrote"
    )
  return {
    name: sorted(seeds, key=lambda score: score["seed"])
    for name, seeds in grouped.items()
  }


def read_job(folder: pathlib.Path) -> dict[str, Any]:
  """Read what the scores of a sweep are scores of.

  Raises:
    ValueError: the folder is not that of a sweep.
  """
  path = find_folder(folder) / "job.json"
  if not path.is_file():
    raise ValueError(
      f"--runs: {folder} has no {FOLDER}/job.json: give folders that"
      " jaxprune discrepancy wrote"
    )
  return read_score(path)


def job(flags: dict[str, Any], source: checkpoints.Source) -> dict[str, Any]:
  """What a score means; the list of configurations and seeds may grow.

  Args:
    flags: of the run, by name.
    source: the dense model.
  """
  return {
    name: value
    for name, value in flags.items()
    if name not in ("out", "overwrite", FOLDER, _EARLIER_FOLDER, "seeds")
  } | {"checkpoint_hash": checkpoints.checkpoint_hash(source)}


def start(
  folder: pathlib.Path, job: dict[str, Any], earlier: pathlib.Path | None
) -> None:
  """Make the folder of configurations, with what is finished.

  Args:
    folder: the folder of configurations of a run that works.
    job: what a score means; written beside the scores.
    earlier: the folder of the run whose results it adds to, if there is one.
  """
  folder.mkdir(exist_ok=True)
  finished = () if earlier is None else find_folder(earlier).glob("*.json")
  for path in sorted(finished):
    if path.name != "job.json" and not (folder / path.name).exists():
      files.atomic_write_bytes(folder / path.name, files.read_checked(path))
  files.write_signed_json(folder / "job.json", job)


def by_configuration(scores: Iterable[Score]) -> dict[str, list[Score]]:
  """The scores of each configuration, both in the order they come."""
  grouped: dict[str, list[Score]] = {}
  for score in scores:
    grouped.setdefault(score["configuration"], []).append(score)
  return grouped


def by_metric(
  rows: Iterable[dict[str, Any]],
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
  """Yields task, metric and their rows, in the order in which they come."""
  grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for row in rows:
    grouped.setdefault((row["task"], row["metric"]), []).append(row)
  for (task, metric), chosen in grouped.items():
    yield task, metric, chosen


def item_scores(seeds: list[Score], task: str, metric: str) -> np.ndarray:
  """Score of every item in every seed.

  Args:
    seeds: the scores of one configuration.
    task: name.
    metric: a column of the task.

  Returns:
    float [seeds, items]; nats for nll.
  """
  return np.array(
    [score["tasks"][task]["columns"][metric] for score in seeds], np.float64
  )


def item_weights(score: Score, task: str) -> np.ndarray | None:
  """What a mean over the items of a task divides by, [items]; None is 1.

  Args:
    score: of any configuration.
    task: name.
  """
  weights = score["tasks"][task]["weights"]
  return None if weights is None else np.array(weights, np.float64)


def mean_score(seeds: list[Score], task: str, metric: str) -> tuple[str, float]:
  """The score of a configuration over its seeds and items.

  Args:
    seeds: the scores of one configuration.
    task: name.
    metric: a column of the task.

  Returns:
    The name that the metric is shown under, `perplexity` for nll, and the mean
    over seeds and items, or its perplexity.
  """
  items = item_scores(seeds, task, metric).mean(axis=0)
  if metric != "nll":
    return metric, float(np.mean(items))
  weights = item_weights(seeds[0], task)
  return "perplexity", float(np.exp(np.sum(items) / np.sum(weights)))


def rows(scores: Iterable[Score]) -> Iterator[dict[str, Any]]:
  """A row per configuration, seed, task and metric: the mean over items."""
  for score in scores:
    for task, entry in score["tasks"].items():
      for metric, values in entry["columns"].items():
        name, value = mean_score([score], task, metric)
        yield {
          "configuration": score["configuration"],
          "seed": score["seed"],
          "removed": score["removed"],
          "task": task,
          "metric": name,
          "value": value,
          "count": len(values),
        }
