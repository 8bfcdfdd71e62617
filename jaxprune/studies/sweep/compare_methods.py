"""Methods against a baseline at equal amount, item by item: the numbers."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxprune import report, statistics
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


def read_run(folder: str) -> tuple[Scores, dict[str, Any]]:
  """Read a sweep: its scores by configuration, and its run.json.

  Raises:
    ValueError: the folder is not that of a sweep.
  """
  path = pathlib.Path(folder)
  scores = scores_lib.read_scores(path)
  return scores, json.loads((path / "run.json").read_text())


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
      dense_SI = scores_lib.item_scores(scores[DENSE], task, metric)
      least = survival * dense_SI.mean()
      for method, tried in amounts.items():
        last = None
        for amount, name in sorted(tried):
          score_SI = scores_lib.item_scores(scores[name], task, metric)
          if score_SI.mean() < least:
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


def _difference(seeds, others, task, metric, seed) -> dict[str, Any]:
  """Numbers of one row of `compare`."""
  mine_SI, theirs_SI = (
    scores_lib.item_scores(each, task, metric) for each in (seeds, others)
  )
  weights_I = scores_lib.item_weights(seeds[0], task)
  mine_I, theirs_I = mine_SI.mean(axis=0), theirs_SI.mean(axis=0)
  total = len(mine_I) if weights_I is None else weights_I.sum()
  change_I = mine_I - theirs_I
  change = (
    statistics.mean(change_I, seed=seed)
    if weights_I is None
    else statistics.ratio(change_I, weights_I, seed=seed)
  )
  by_seed = [
    (own_I - other_I).sum() / total
    for mine, own_I in zip(seeds, mine_SI)
    for theirs, other_I in zip(others, theirs_SI)
    if mine["seed"] == theirs["seed"]
  ]
  return change.to_json() | {
    "score": float(mine_I.sum() / total),
    "score_against": float(theirs_I.sum() / total),
    "seed_low": float(min(by_seed)) if by_seed else None,
    "seed_high": float(max(by_seed)) if by_seed else None,
  }
