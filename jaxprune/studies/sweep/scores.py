"""From the scores of cells and seeds to rows, one table, and a page.

Items are the same in all cells. A score is the mean over seeds of the mean over
items. Its interval resamples items, each with its mean over seeds; what the
calibration does shows in the range over seeds.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import page

Score = dict[str, Any]  # as experiments.discrepancy keeps a cell


def read_cells(folder: pathlib.Path) -> dict[str, list[Score]]:
  """Scores of a run by cell, seeds in order; the dense model under `dense`.

  Raises:
    ValueError: there are no cells.
  """
  found = [
    json.loads(path.read_text())
    for path in sorted((folder / "cells").glob("*.json"))
  ]
  # job.json has no tasks.
  cells = _by_cell([score for score in found if "tasks" in score])
  if "dense" not in cells:
    raise ValueError(
      f"{folder}: no scores of a dense model in cells/; give a folder"
      " that experiments.discrepancy wrote"
    )
  return {
    name: sorted(seeds, key=lambda one: one["seed"])
    for name, seeds in cells.items()
  }


def rows(scores: list[Score]):
  """A flat row per cell, seed, task and metric: the mean over items."""
  for score in scores:
    for task, entry in score["tasks"].items():
      for metric, values in entry["columns"].items():
        name, value = _value(metric, values, entry["weights"])
        yield {
          "cell": score["cell"],
          "seed": score["seed"],
          "removed": score["removed"],
          "task": task,
          "metric": name,
          "value": value,
          "count": len(values),
        }


def summarise(scores: list[Score]) -> list[dict[str, Any]]:
  """One entry per cell, task and metric, the dense model's first."""
  by_cell = _by_cell(scores)
  dense = by_cell["dense"][0]
  table = []
  for cell, seeds in by_cell.items():
    for task, entry in dense["tasks"].items():
      for metric, base in entry["columns"].items():
        values = np.array(
          [seed["tasks"][task]["columns"][metric] for seed in seeds]
        )
        table.append(
          {
            "cell": cell,
            "task": task,
            "seeds": len(seeds),
            "removed": float(np.mean([seed["removed"] for seed in seeds])),
          }
          | _entry(metric, values, np.array(base), entry["weights"])
        )
  return table


def _entry(metric, values, base, weights) -> dict[str, Any]:
  """Mean, interval over items, range over seeds, paired change from dense."""
  item = values.mean(axis=0)
  ones = np.ones_like(item) if weights is None else np.array(weights)
  transform = np.exp if metric == "nll" else lambda ratio: ratio
  found = report.ratio_interval(item, ones, transform=transform)
  change = report.ratio_interval(item - base, ones)
  each = transform(values.sum(axis=1) / ones.sum())
  name = "perplexity" if metric == "nll" else metric
  return {
    "metric": name,
    "mean": found.estimate,
    "low": found.low,
    "high": found.high,
    "seed_low": float(each.min()),
    "seed_high": float(each.max()),
    "change": change.estimate,
    "change_low": change.low,
    "change_high": change.high,
    "items": len(item),
  }


def break_down(scores: list[Score], bins: int = 3) -> list[dict[str, Any]]:
  """One entry per cell, trait of the items and bin of it; dense first.

  The traits of a task, and for answers whose likelihood is known how surprising
  they are to the dense model, in nats per token, sort its items.
  """
  by_cell = _by_cell(scores)
  found = []
  for task, traits in _traits(by_cell["dense"][0]["tasks"]).items():
    for trait, by in traits.items():
      edges = report.quantile_edges(by, bins)
      for cell, seeds in by_cell.items():
        for metric in by_cell["dense"][0]["tasks"][task]["columns"]:
          item = np.mean(
            [seed["tasks"][task]["columns"][metric] for seed in seeds], axis=0
          )
          found += [
            {
              "cell": cell,
              "task": task,
              "metric": metric,
              "trait": trait,
              "from": one.low,
              "to": one.high,
              "mean": one.interval.estimate,
              "low": one.interval.low,
              "high": one.interval.high,
              "items": one.interval.rows,
            }
            for one in report.binned_means(
              item, by, np.arange(len(item)), edges
            )
          ]
  return found


def _traits(tasks) -> dict[str, dict[str, np.ndarray]]:
  """By task, what its items are like: of texts that have to be written."""
  found = {}
  for task, entry in tasks.items():
    traits = {
      name: np.array(values) for name, values in entry.get("traits", {}).items()
    }
    answers = tasks.get("pocket answers")
    if traits and answers:
      traits["dense_nats_per_token"] = np.divide(
        answers["columns"]["nll"], answers["weights"]
      )
    if traits:
      found[task] = traits
  return found


def _by_cell(scores: list[Score]) -> dict[str, list[Score]]:
  by_cell: dict[str, list[Score]] = {}
  for score in scores:
    by_cell.setdefault(score["cell"], []).append(score)
  return by_cell


def by_metric(rows_: Iterable[dict[str, Any]]):
  """(task, metric, rows of it) in the order in which they come."""
  found: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for row in rows_:
    found.setdefault((row["task"], row["metric"]), []).append(row)
  for (task, metric), chosen in found.items():
    yield task, metric, chosen


def mean_score(seeds: list[Score], task: str, metric: str) -> tuple[str, float]:
  """The name that a metric is shown under; its mean over seeds and items."""
  entry = seeds[0]["tasks"][task]
  values_SI = [seed["tasks"][task]["columns"][metric] for seed in seeds]
  return _value(metric, np.mean(values_SI, axis=0), entry["weights"])


def _value(metric, values, weights):
  if metric == "nll":
    return "perplexity", float(np.exp(np.sum(values) / np.sum(weights)))
  return metric, float(np.mean(values))


def lines(table: list[dict[str, Any]]) -> list[str]:
  """One line per entry."""
  return [
    f"{e['cell']:>18} {e['task']}, {e['metric']}: {e['mean']:.4g}"
    f" [{e['low']:.4g}, {e['high']:.4g}], {e['seeds']} seeds"
    f" {e['seed_low']:.4g} to {e['seed_high']:.4g}"
    for e in table
  ]


def render(
  table: list[dict[str, Any]],
  bins: list[dict[str, Any]],
  description: dict[str, Any],
) -> str:
  """report.html: a table per task and metric, and per trait of the items."""
  digits = page.format_number
  sections = []
  for task, metric, chosen in by_metric(table):
    unit = "nll per token" if metric == "perplexity" else metric
    sections.append(
      page.Section(
        title=f"{task}, {metric}",
        tables=[
          page.Table(
            caption="Mean over seeds and items; 95 % interval resampling items;"
            " lowest and highest seed; paired change from the dense model in"
            f" {unit}.",
            columns=("cell", "zeros", "mean", "seeds", "change"),
            rows=[
              (
                e["cell"],
                f"{e['removed']:.3f}",
                f"{digits(e['mean'])} [{digits(e['low'])},"
                f" {digits(e['high'])}]",
                f"{digits(e['seed_low'])} to {digits(e['seed_high'])}"
                f" ({e['seeds']})",
                f"{digits(e['change'])} [{digits(e['change_low'])},"
                f" {digits(e['change_high'])}]",
              )
              for e in chosen
            ],
          )
        ],
      )
    )
  sections += [
    _bin_section(bins, *key)
    for key in dict.fromkeys((e["task"], e["metric"], e["trait"]) for e in bins)
  ]
  cells = len({e["cell"] for e in table}) - 1
  return page.render_page(
    title="Tasks over pruned models",
    verdict=f"{cells} ways to prune beside the dense model.",
    sections=sections,
    run=description,
  )


def _bin_section(bins, task, metric, trait) -> page.Section:
  """One row per cell, one column per bin."""
  chosen = [
    e
    for e in bins
    if (e["task"], e["metric"], e["trait"]) == (task, metric, trait)
  ]
  digits = page.format_number
  rows: dict[str, list[str]] = {}
  for e in chosen:
    rows.setdefault(e["cell"], []).append(
      f"{digits(e['mean'])} [{digits(e['low'])}, {digits(e['high'])}]"
    )
  first = [e for e in chosen if e["cell"] == chosen[0]["cell"]]
  return page.Section(
    title=f"{task}, {metric}, by {trait}",
    tables=[
      page.Table(
        caption="Mean over seeds and the items of a bin; 95 % interval"
        " resampling items.",
        columns=(
          "cell",
          *(
            f"{digits(e['from'])} to {digits(e['to'])} ({e['items']})"
            for e in first
          ),
        ),
        rows=[(cell, *values) for cell, values in rows.items()],
      )
    ],
  )
