"""The same configurations of several dense models: numbers, and agreement.

Few dense models have no interval: the lowest and the highest of them stand
beside the mean.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune import report, statistics
from jaxprune.studies.guidance.sweeps import METRICS
from jaxprune.studies.sweep import scores as scores_lib
from jaxprune.studies.sweep.scores import DENSE, Score

Row = dict[str, Any]
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or dense"),
  "run": report.Field("int", "", "which of --runs, from 0"),
  "kept": report.Field("float", "", "score over that of the dense model"),
}


def read_runs(
  folders: Sequence[str],
) -> tuple[list[dict[str, list[Score]]], list[str]]:
  """Read the sweeps of several dense models.

  Args:
    folders: that `jaxprune discrepancy` wrote.

  Returns:
    The scores of each by configuration, and the hash of each dense model.

  Raises:
    ValueError: fewer than two folders, two of the same dense model, or one is
      not of a sweep.
  """
  if len(folders) < 2:
    raise ValueError(f"--runs={','.join(folders)}: give two or more")
  paths = [pathlib.Path(folder) for folder in folders]
  hashes = [scores_lib.read_job(path)["checkpoint_hash"] for path in paths]
  if len(set(hashes)) < len(hashes):
    raise ValueError(
      "--runs: two folders are of the same dense model; several seeds of one"
      " calibration belong into one run of jaxprune discrepancy"
    )
  return [scores_lib.read_scores(path) for path in paths], hashes


def summarise(
  runs: Sequence[dict[str, list[Score]]], survival: float
) -> dict[str, Any]:
  """All numbers of the comparison.

  Args:
    runs: of `read_runs`.
    survival: least part of the dense score that is called survival.

  Returns:
    `configurations`, see `compare`; `order`, see `orders`; `survival`.

  Raises:
    ValueError: the runs have no configuration and task in common.
  """
  rows = compare(runs, survival)
  if not rows:
    raise ValueError("--runs: no configuration and task that all folders have")
  return {"configurations": rows, "order": orders(rows), "survival": survival}


def compare(
  runs: Sequence[dict[str, list[Score]]], survival: float
) -> list[Row]:
  """One row per configuration, task and metric that all runs have.

  Args:
    runs: of `read_runs`.
    survival: least part of the dense score that is called survival.

  Returns:
    `configuration`, `task`, `metric`; `value`, the mean over runs, with `low`
    and `high`, its lowest and highest run, and `scores`, all of them; `kept`,
    the mean part of the dense score that is left (of a perplexity dense over
    pruned), with `kept_low`, `kept_high` and `kept_each`; `survives`, the
    number of runs in which enough is left, of `models`.
  """
  rows = []
  for configuration, task, metric in _common(runs):
    scores, kept = [], []
    for run in runs:
      (name, score), (_, base) = (
        scores_lib.mean_score(run[key], task, metric)
        for key in (configuration, DENSE)
      )
      scores.append(score)
      if metric == "nll":
        kept.append(base / score)
      else:
        kept.append(score / base if base else float("nan"))
    rows.append(
      {
        "configuration": configuration,
        "task": task,
        "metric": name,
        "value": sum(scores) / len(scores),
        "low": min(scores),
        "high": max(scores),
        "scores": scores,
        "kept": sum(kept) / len(kept),
        "kept_low": min(kept),
        "kept_high": max(kept),
        "kept_each": kept,
        "survives": sum(statistics.is_enough(part, survival) for part in kept),
        "models": len(runs),
      }
    )
  return rows


def records(rows: Sequence[Row]) -> Iterator[Row]:
  """A flat record per configuration, dense model, task and metric."""
  for row in rows:
    for run, (score, kept) in enumerate(
      zip(row["scores"], row["kept_each"], strict=True)
    ):
      yield {
        "configuration": row["configuration"],
        "task": row["task"],
        "metric": row["metric"],
        "run": run,
        "value": score,
        "kept": kept,
      }


def orders(rows: Sequence[Row]) -> list[Row]:
  """How alike do pairs of dense models order the pruned configurations?

  Returns:
    Per task and metric with three or more of them: `low` and `high`, the rank
    correlations of the kept parts of the least and the most alike pair; the
    number of `pairs` and `configurations`; and `agree`, in how many of them all
    dense models agree on survival.
  """
  pruned = (row for row in rows if row["configuration"] != DENSE)
  entries = []
  for task, metric, chosen in scores_lib.by_metric(pruned):
    kept = np.array([row["kept_each"] for row in chosen])
    if len(chosen) < 3 or not np.isfinite(kept).all():
      continue
    correlations = [
      statistics.rank_correlation(kept[:, a], kept[:, b])
      for a, b in itertools.combinations(range(kept.shape[1]), 2)
    ]
    entries.append(
      {
        "task": task,
        "metric": metric,
        "low": min(correlations),
        "high": max(correlations),
        "pairs": len(correlations),
        "configurations": len(chosen),
        "agree": sum(row["survives"] in (0, row["models"]) for row in chosen),
      }
    )
  return entries


def headline(summary: dict[str, Any]) -> str:
  """A line per configuration, task and metric, and one per order."""
  lines = [
    f"{row['configuration']:>20} {row['task']}, {row['metric']}:"
    f" {row['value']:.4g} ({row['low']:.4g} to {row['high']:.4g}), kept"
    f" {row['kept']:.3f} ({row['kept_low']:.3f} to {row['kept_high']:.3f}),"
    f" survives in {row['survives']} of {row['models']}"
    for row in summary["configurations"]
  ] + [
    f"order of the configurations, {entry['task']}, {entry['metric']}:"
    f" Spearman {entry['low']:.3f} to {entry['high']:.3f} over"
    f" {entry['pairs']} pairs; all models agree on survival in"
    f" {entry['agree']} of {entry['configurations']} configurations"
    for entry in summary["order"]
  ]
  return "\n".join(lines)


def _common(runs):
  """(configuration, task, metric) of scores, in the order of the first run."""
  for configuration, seeds in runs[0].items():
    for task, entry in seeds[0]["tasks"].items():
      for metric in filter(METRICS.__contains__, entry["columns"]):
        if all(_has(run, configuration, task, metric) for run in runs):
          yield configuration, task, metric


def _has(run, configuration, task, metric) -> bool:
  tasks = run[configuration][0]["tasks"] if configuration in run else {}
  return task in tasks and metric in tasks[task]["columns"]
