"""From the scores of items to rows, means with intervals, and a page."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.evaluation import generation, multiple_choice
from jaxprune.report import page
from jaxprune.report.fields import Field
from jaxprune.studies.tasks.scores import Scored

FIELDS = {"window": Field("int", "", "index of the window of text, from 0")}


def item_rows(scored: Scored, name: str):
  """A flat row per item and metric."""
  for metric, values in scored.columns.items():
    for index, value in enumerate(values):
      row = {
        "model": name,
        "task": scored.task,
        scored.item: index,
        "metric": metric,
        "value": value,
      }
      if scored.weights is not None:
        row["tokens"] = int(scored.weights[index])
      yield row


def summarise(found: dict[str, dict[str, Scored]], seed: int) -> dict[str, Any]:
  """Means with intervals per task, metric and model, and paired differences.

  Args:
    found: scores by model and task.
    seed: of the resampling.
  """
  tasks: dict[str, Any] = {}
  for name, by_task in found.items():
    for task, scored in by_task.items():
      for metric, interval in _intervals(scored, seed).items():
        tasks.setdefault(task, {}).setdefault(metric, {})[name] = interval
  if {"dense", "pruned"} <= found.keys():
    for task, metrics in tasks.items():
      pair = found["dense"][task], found["pruned"][task]
      for metric, change in _changes(*pair, seed).items():
        metrics.setdefault(metric, {})["change"] = change
  return {"models": sorted(found), "tasks": tasks}


def lines(summary: dict[str, Any]) -> list[str]:
  """One line per task and metric."""
  said = []
  for task, metrics in summary["tasks"].items():
    for metric, by_model in metrics.items():
      words = "  ".join(
        f"{name} {entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
        for name, entry in by_model.items()
      )
      said.append(f"{task}, {metric}: {words}")
  return said


def render(summary: dict[str, Any], description: dict[str, Any]) -> str:
  """report.html."""
  columns = list(summary["models"])
  if len(columns) > 1:
    columns.append("change")
  sections = [
    page.Section(
      title=task,
      tables=[
        page.Table(
          caption="Mean over items, 95 % interval resampling items; change is"
          " pruned less dense, item by item.",
          columns=("metric", "items", *columns),
          rows=[
            (
              metric,
              next(iter(by_model.values()))["count"],
              *(_said(by_model.get(name)) for name in columns),
            )
            for metric, by_model in metrics.items()
          ],
        )
      ],
    )
    for task, metrics in summary["tasks"].items()
  ]
  return page.render_page(
    title="Scores on tasks",
    verdict=(
      f"{len(summary['tasks'])} tasks, models: " + ", ".join(summary["models"])
    ),
    sections=sections,
    run=description,
  )


def _intervals(scored: Scored, seed) -> dict[str, dict[str, float]]:
  if scored.weights is not None:
    return {
      "perplexity": _entry(
        report.ratio_interval(
          scored.columns["nll"], scored.weights, transform=np.exp, seed=seed
        )
      )
    }
  found = {
    metric: _entry(report.mean_interval(values, seed=seed))
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
    found["ece@10"] = _entry(
      report.statistic_interval(
        lambda rows: multiple_choice.calibration_error(
          rows[:, 0], rows[:, 1] > 0.5
        ),
        pairs,
        seed=seed,
      )
    )
  elif scored.detail is not None:
    tokens = [written.tokens for written in scored.detail]
    for n in (1, 2, 3):
      value = generation.distinct(tokens, n)
      found[f"distinct@{n}"] = {
        "mean": value,
        "low": float("nan"),
        "high": float("nan"),
        "count": len(tokens),
      }
  return found


def _changes(dense: Scored, pruned: Scored, seed):
  """Paired differences, and for choices the flips."""
  if dense.weights is not None:
    change = pruned.columns["nll"] - dense.columns["nll"]
    return {
      "nll per token": _entry(
        report.ratio_interval(change, dense.weights, seed=seed)
      )
    }
  found = {
    metric: _entry(
      report.mean_interval(pruned.columns[metric] - values, seed=seed)
    )
    for metric, values in dense.columns.items()
  }
  if isinstance(dense.detail, multiple_choice.Choices):
    for name, values in multiple_choice.flips(
      dense.detail, pruned.detail
    ).items():
      found[f"flip {name}"] = _entry(report.mean_interval(values, seed=seed))
  return found


def _entry(interval) -> dict[str, float]:
  return {
    "mean": interval.estimate,
    "low": interval.low,
    "high": interval.high,
    "count": interval.rows,
  }


def _said(entry) -> str | None:
  if entry is None:
    return None
  digits = page.format_number
  if np.isnan(entry["low"]):
    return digits(entry["mean"])
  return (
    f"{digits(entry['mean'])} [{digits(entry['low'])}, {digits(entry['high'])}]"
  )
