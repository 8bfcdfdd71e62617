"""Methods against a baseline at equal amount, item by item: the numbers."""

import pathlib
from collections.abc import Iterator
from typing import Any

from jaxprune import files, report, statistics
from jaxprune.statistics import Estimate
from jaxprune.studies.sweep import scores as scores_lib
from jaxprune.studies.sweep.scores import DENSE, Score

Scores = dict[str, list[Score]]
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT"),
  "against": report.Field("text", "", "the one that it is compared with"),
  "score": report.Field("float", "", "mean over seeds and items"),
  "score_against": report.Field("float", "", "the same of the other one"),
  "seed_low": report.Field("float", "", "lowest difference of one seed"),
  "seed_high": report.Field("float", "", "highest difference of one seed"),
}

# Of run.json, what the comparison says of itself.
_NEEDED = ("calibration", "checkpoint_hash", "command")


def read_run(folder: str) -> tuple[Scores, dict[str, Any]]:
  """Read a sweep: its scores by configuration, and its run.json.

  Raises:
    ValueError: the folder is not that of a sweep, or lacks a part.
  """
  path = pathlib.Path(folder)
  scores = scores_lib.read_scores(path)
  run = files.read_json(path / "run.json")
  missing = [name for name in _NEEDED if name not in run]
  if missing:
    raise ValueError(
      f"{path / 'run.json'}: has no {' and no '.join(missing)}; give a folder"
      " that jaxprune discrepancy wrote"
    )
  return scores, run


def summarise(
  scores: Scores, baseline: str, survival: float, seed: int
) -> dict[str, Any]:
  """All numbers of the comparison.

  Args:
    scores: by configuration.
    baseline: the method that the others are compared with.
    survival: part of the dense score that must be left.
    seed: of the intervals.

  Returns:
    `baseline`; `differences`, see `compare`; `survives`, see `survivals`;
    `survival`; and of the differences that are no perplexity, how many are
    `better` and how many `worse` by intervals that leave out 0.

  Raises:
    ValueError: no other configuration has an amount of the baseline.
  """
  rows = list(compare(scores, baseline, seed))
  if not rows:
    raise ValueError(
      f"--baseline={baseline}: no other configuration of the run has an amount"
      " in common with it"
    )
  plain = [row for row in rows if row["metric"] != "nll"]
  return {
    "baseline": baseline,
    "differences": rows,
    "survives": survivals(scores, survival),
    "survival": survival,
    "better": sum(row["low"] > 0 for row in plain),
    "worse": sum(row["high"] < 0 for row in plain),
  }


def compare(
  scores: Scores, baseline: str, seed: int
) -> Iterator[dict[str, Any]]:
  """One row per configuration, task and metric: it less the baseline's.

  Args:
    scores: by configuration.
    baseline: a method.
    seed: of the intervals.

  Yields:
    A record: `configuration` and what it is compared `against`; the mean
    difference over items as `value`, `low`, `high`, `count`; both means as
    `score` and `score_against`; and `seed_low` and `seed_high`, the extremes of
    the differences of one seed, None where no seed is common.
  """
  for name, seeds in scores.items():
    method, _, amount = name.partition(":")
    others = scores.get(f"{baseline}:{amount}")
    if method == baseline or others is None:
      continue
    for task, entry in seeds[0]["tasks"].items():
      for metric in entry["columns"]:
        yield {
          "configuration": name,
          "against": f"{baseline}:{amount}",
          "task": task,
          "metric": metric,
        } | _difference(seeds, others, task, metric, seed)


def survivals(scores: Scores, survival: float) -> list[dict[str, Any]]:
  """The largest amount up to which a score of a method is high enough.

  Scores that are not better when higher (nll) are left out, and amounts that
  are no numbers.

  Args:
    scores: by configuration.
    survival: part of the dense score that must be left.

  Returns:
    Per task, metric and method: the amount that it `survives`, None where not
    even the smallest, and the `largest` that was tried.
  """
  amounts: dict[str, list[tuple[float, str]]] = {}
  for name in scores:
    method, _, amount = name.partition(":")
    if amount.replace(".", "", 1).isdigit():
      amounts.setdefault(method, []).append((float(amount), name))
  entries = []
  for task, entry in scores[DENSE][0]["tasks"].items():
    for metric in entry["columns"]:
      if metric == "nll":
        continue
      dense_EX = scores_lib.item_scores(scores[DENSE], task, metric)
      least = survival * dense_EX.mean()
      for method, tried in amounts.items():
        last = None
        for amount, name in sorted(tried):
          score_EX = scores_lib.item_scores(scores[name], task, metric)
          if score_EX.mean() < least:
            break
          last = amount
        entries.append(
          {
            "method": method,
            "task": task,
            "metric": metric,
            "survives": last,
            "largest": max(tried)[0],
          }
        )
  return entries


def headline(summary: dict[str, Any]) -> str:
  """One line per difference."""
  return "\n".join(
    f"{row['configuration']:>20} less {row['against']}: {row['task']},"
    f" {row['metric']}: {format_difference(row)}"
    for row in summary["differences"]
  )


def format_difference(row: dict[str, Any]) -> str:
  """A difference with its interval, and the range over seeds."""
  text = Estimate.from_json(row).format()
  if row["seed_low"] is None:
    return text
  return f"{text}, seeds {row['seed_low']:+.3f} to {row['seed_high']:+.3f}"


def _difference(runs, baseline_runs, task, metric, seed) -> dict[str, Any]:
  """Numbers of one row of `compare`."""
  scores_EX, baseline_EX = (
    scores_lib.item_scores(some_runs, task, metric)
    for some_runs in (runs, baseline_runs)
  )
  weights_X = scores_lib.item_weights(runs[0], task)
  mean_X, baseline_X = scores_EX.mean(axis=0), baseline_EX.mean(axis=0)
  total = len(mean_X) if weights_X is None else weights_X.sum()
  change_X = mean_X - baseline_X
  change = (
    statistics.mean(change_X, seed=seed)
    if weights_X is None
    else statistics.ratio(change_X, weights_X, seed=seed)
  )
  by_seed = [
    (run_X - other_X).sum() / total
    for run, run_X in zip(runs, scores_EX)
    for other, other_X in zip(baseline_runs, baseline_EX)
    if run["seed"] == other["seed"]
  ]
  return change.to_json() | {
    "score": float(mean_X.sum() / total),
    "score_against": float(baseline_X.sum() / total),
    "seed_low": float(min(by_seed)) if by_seed else None,
    "seed_high": float(max(by_seed)) if by_seed else None,
  }
