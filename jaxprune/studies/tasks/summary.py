"""Means over items with intervals, and paired differences of two models."""

import math
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.evaluation import generation, multiple_choice
from jaxprune.statistics import Estimate
from jaxprune.studies.tasks.scores import Scored

# Scores of an item that are right or wrong.
PROPORTIONS = (
  "acc",
  "acc_norm",
  "exact",
  "passed",
  "writes",
  "same",
  "loop",
  "ended_eos",
)


def estimate(
  metric: str,
  values: np.ndarray,
  weights: np.ndarray | None = None,
  *,
  seed: int = 0,
) -> Estimate:
  """The score of a task, over its items.

  Args:
    metric: name of the score; of `nll` the perplexity is taken.
    values: score of each item, [items]; nats for nll.
    weights: what the mean divides by, [items]; None is 1.
    seed: of the resampling of items, where there is one.

  Returns:
    Where every item is right or wrong, the proportion with Wilson's interval;
    else the mean (or perplexity), with an interval that resamples items.
  """
  values = np.asarray(values, np.float64)
  if metric in PROPORTIONS and np.isin(values, (0, 1)).all():
    return statistics.proportion(values)
  return statistics.ratio(
    values,
    np.ones_like(values) if weights is None else np.asarray(weights),
    transform=np.exp if metric == "nll" else lambda mean: mean,
    seed=seed,
  )


def summarise(
  scores: dict[str, dict[str, Scored]], seed: int
) -> dict[str, Any]:
  """Estimates per task, metric and model, and paired differences.

  Args:
    scores: by model and task, from `measure`.
    seed: of the resampling.

  Returns:
    `models`, their names; `tasks`: task to metric to model to an estimate,
    where `change` stands for pruned less dense, item by item; `rules`: task to
    metric to when an item is right, in words.
  """
  tasks: dict[str, Any] = {}
  for name, by_task in scores.items():
    for task, scored in by_task.items():
      for metric, score in _estimates(scored, seed).items():
        tasks.setdefault(task, {}).setdefault(metric, {})[name] = (
          score.to_json()
        )
  if {"dense", "pruned"} <= scores.keys():
    for task, metrics in tasks.items():
      pair = scores["dense"][task], scores["pruned"][task]
      for metric, change in _changes(*pair, seed).items():
        metrics.setdefault(metric, {})["change"] = change.to_json()
  first = next(iter(scores.values()))
  rules = {task: scored.rules for task, scored in first.items() if scored.rules}
  return {"models": sorted(scores), "tasks": tasks, "rules": rules}


def headline(summary: dict[str, Any]) -> str:
  """One line per task and metric."""
  return "\n".join(
    f"{task}, {metric}: "
    + "  ".join(
      f"{name} {Estimate.from_json(entry).format()}"
      for name, entry in by_model.items()
    )
    for task, metrics in summary["tasks"].items()
    for metric, by_model in metrics.items()
  )


def _estimates(scored: Scored, seed) -> dict[str, Estimate]:
  if scored.weights is not None:
    return {
      "perplexity": estimate(
        "nll", scored.columns["nll"], scored.weights, seed=seed
      )
    }
  estimates = {
    metric: estimate(metric, values, seed=seed)
    for metric, values in scored.columns.items()
  }
  if isinstance(scored.detail, multiple_choice.Choices):
    pairs = np.stack(
      [
        multiple_choice.confidences(scored.detail),
        multiple_choice.correct(scored.detail),
      ],
      axis=1,
    )
    estimates["ece@10"] = statistics.statistic(
      lambda rows: multiple_choice.calibration_error(
        rows[:, 0], rows[:, 1] > 0.5
      ),
      pairs,
      seed=seed,
    )
  elif scored.detail is not None:
    tokens = [written.tokens for written in scored.detail]
    for n in (1, 2, 3):
      # This is a property of all texts together, so there is nothing to
      # resample.
      estimates[f"distinct@{n}"] = Estimate(
        generation.distinct(tokens, n), math.nan, math.nan, len(tokens)
      )
  return estimates


def _changes(dense: Scored, pruned: Scored, seed) -> dict[str, Estimate]:
  """Paired differences, and for choices the flips."""
  if dense.weights is not None:
    change = pruned.columns["nll"] - dense.columns["nll"]
    return {"nll per token": statistics.ratio(change, dense.weights, seed=seed)}
  changes = {
    metric: statistics.mean(pruned.columns[metric] - values, seed=seed)
    for metric, values in dense.columns.items()
  }
  if isinstance(dense.detail, multiple_choice.Choices):
    flips = multiple_choice.flips(dense.detail, pruned.detail)
    for name, changed in flips.items():
      changes[f"flip {name}"] = statistics.proportion(changed)
  return changes
