"""From the cells of several dense models to a table, and their agreement."""

import itertools
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.report import page
from jaxprune.studies.guidance.sweeps import METRICS
from jaxprune.studies.sweep.scores import Score, by_metric, mean_score

Row = dict[str, Any]


def compare(runs: list[dict[str, list[Score]]], survival: float) -> list[Row]:
  """One row per cell, task and metric that all runs have.

  Args:
    runs: of `grid_report.read_cells`, one per dense model.
    survival: least share of the dense score.
  """
  rows = []
  for cell, task, metric in _common(runs):
    scores, kept = [], []
    for run in runs:
      (name, score), (_, base) = (
        mean_score(run[one], task, metric) for one in (cell, "dense")
      )
      scores.append(score)
      if metric == "nll":
        kept.append(base / score)
      else:
        kept.append(score / base if base else float("nan"))
    alive = sum(statistics.is_enough(share, survival) for share in kept)
    rows.append(
      {
        "cell": cell,
        "task": task,
        "metric": name,
        "mean": sum(scores) / len(scores),
        "low": min(scores),
        "high": max(scores),
        "scores": scores,
        "kept": sum(kept) / len(kept),
        "kept_low": min(kept),
        "kept_high": max(kept),
        "kept_each": kept,
        "survives": alive,
        "models": len(runs),
      }
    )
  return rows


def flat(rows: list[Row]):
  """A record per cell, dense model, task and metric."""
  for row in rows:
    for run, (score, kept) in enumerate(
      zip(row["scores"], row["kept_each"], strict=True)
    ):
      yield {
        "cell": row["cell"],
        "task": row["task"],
        "metric": row["metric"],
        "run": run,
        "value": score,
        "kept": kept,
      }


def _common(runs):
  """(cell, task, metric) in the order of the first run; scores only."""
  for cell, seeds in runs[0].items():
    for task, entry in seeds[0]["tasks"].items():
      for metric in filter(METRICS.__contains__, entry["columns"]):
        if all(_has(run, cell, task, metric) for run in runs):
          yield cell, task, metric


def _has(run, cell, task, metric) -> bool:
  tasks = run[cell][0]["tasks"] if cell in run else {}
  return task in tasks and metric in tasks[task]["columns"]


def orders(rows: list[Row]) -> list[Row]:
  """How alike do pairs of dense models order the pruned cells?"""
  found = []
  for task, metric, at in by_metric(r for r in rows if r["cell"] != "dense"):
    kept_CM = np.array([r["kept_each"] for r in at])
    if len(at) < 3 or not np.isfinite(kept_CM).all():
      continue
    each = [
      statistics.rank_correlation(kept_CM[:, a], kept_CM[:, b])
      for a, b in itertools.combinations(range(kept_CM.shape[1]), 2)
    ]
    found.append(
      {
        "task": task,
        "metric": metric,
        "low": min(each),
        "high": max(each),
        "pairs": len(each),
        "cells": len(at),
        "agree": sum(r["survives"] in (0, r["models"]) for r in at),
      }
    )
  return found


def said(row: Row) -> str:
  """A score with its range, and the share that is kept."""
  return (
    f"{row['mean']:.4g} ({row['low']:.4g} to {row['high']:.4g}), kept"
    f" {row['kept']:.3f} ({row['kept_low']:.3f} to {row['kept_high']:.3f}),"
    f" survives in {row['survives']} of {row['models']}"
  )


def render(rows, order, description) -> str:
  """report.html: a table per task and metric, and the agreement."""
  digits = page.format_number
  sections = []
  for task, metric, at in by_metric(rows):
    sections.append(
      page.Section(
        title=f"{task}, {metric}",
        tables=[
          page.Table(
            caption="Mean over dense models (lowest to highest), the share of"
            " the dense score that is kept, and in how many of them enough is.",
            columns=("cell", "score", "kept", "survives"),
            rows=[
              (
                r["cell"],
                f"{digits(r['mean'])} ({digits(r['low'])} to"
                f" {digits(r['high'])})",
                f"{r['kept']:.3f} ({r['kept_low']:.3f} to"
                f" {r['kept_high']:.3f})",
                f"{r['survives']} of {r['models']}",
              )
              for r in at
            ],
          )
        ],
      )
    )
  sections.append(
    page.Section(
      title="Do they agree?",
      tables=[
        page.Table(
          caption="Rank correlation of the kept shares of two dense models,"
          " lowest and highest pair; cells in which all agree on survival.",
          columns=("task", "metric", "Spearman", "agree"),
          rows=[
            (
              e["task"],
              e["metric"],
              f"{e['low']:.3f} to {e['high']:.3f}",
              f"{e['agree']} of {e['cells']}",
            )
            for e in order
          ],
        )
      ],
    )
  )
  cells = len({r["cell"] for r in rows} - {"dense"})
  return page.render_page(
    title="The same grid on several dense models",
    verdict=f"{cells} ways to prune, {rows[0]['models']} dense models.",
    sections=sections,
    run=description,
  )
