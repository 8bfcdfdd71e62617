"""Summary and page of `recovery_study`."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import page

OBJECTIVES = ("none", "language", "distill", "distill_variance")
MEASURES = (
  ("generate", "exact"),
  ("generate", "kl"),
  ("choose", "acc"),
  ("retrieve", "ndcg@10"),
)
# What is compared with what, item by item.
PAIRS = (
  ("language", "none"),
  ("distill", "none"),
  ("distill", "language"),
  ("distill_variance", "distill"),
)


def summarise(table: dict[str, np.ndarray]) -> dict[str, Any]:
  """Means with intervals, and paired differences, per cell.

  A score is the mean over seeds and items; its interval resamples items, each
  with all its seeds. What the seeds do shows in `seed_low` and `seed_high`.
  """

  def pick(cell, objective, weight, measure, split="test"):
    at = (table["cell"] == cell) & (table["objective"] == objective)
    at &= (table["weight"] == weight) & (table["split"] == split)
    at &= (table["task"] == measure[0]) & (table["metric"] == measure[1])
    seeds = np.unique(table["seed"][at])
    values_SN = np.array(
      [table["value"][at & (table["seed"] == seed)] for seed in seeds]
    )
    return values_SN

  first = table["seed"][0]
  dense = {
    f"{task} {metric}": _entry(pick("dense", "none", 0.0, (task, metric)))
    for task, metric in MEASURES
  }
  cells = {}
  for cell in dict.fromkeys(table["cell"][table["cell"] != "dense"]):
    here = table["cell"] == cell
    many = len(np.unique(table["seed"][here]))
    tried = np.unique(
      table["weight"][here & (table["objective"] == "distill_variance")]
    )
    seeds = {
      weight: len(
        np.unique(
          table["seed"][
            here
            & (table["weight"] == weight)
            & (table["objective"] == "distill_variance")
          ]
        )
      )
      for weight in tried
    }
    trial = [
      {"weight": float(weight)}
      | {
        f"{split} {metric}": float(
          pick(cell, "distill_variance", weight, ("generate", metric), split)[
            0
          ].mean()
        )
        for split in ("validation", "test")
        for metric in ("exact", "kl")
      }
      for weight in tried
    ]
    best = min(
      trial,
      key=lambda entry: (-entry["validation exact"], entry["validation kl"]),
    )["weight"]
    if seeds[best] != many:
      raise ValueError(
        f"{cell}: weight {best} was not trained at all {many} seeds; the"
        " records are of two runs, choose a new --out"
      )
    weight_of = dict.fromkeys(OBJECTIVES, 0.0) | {"distill_variance": best}
    cells[cell] = {
      "weight": best,
      "weights_tried": trial,
      "first_seed": int(first),
      "scores": {
        objective: {
          f"{task} {metric}": _entry(
            pick(cell, objective, weight_of[objective], (task, metric))
          )
          for task, metric in MEASURES
        }
        for objective in OBJECTIVES
      },
      "differences": {
        f"{one} - {other}": {
          f"{task} {metric}": _entry(
            pick(cell, one, weight_of[one], (task, metric))
            - pick(cell, other, weight_of[other], (task, metric))
          )
          for task, metric in MEASURES
        }
        for one, other in PAIRS
      },
    }
  return {"dense": dense, "cells": cells}


def _entry(values_SN) -> dict[str, float]:
  seeds, items = values_SN.shape
  found = report.mean_interval(
    values_SN.ravel(), np.tile(np.arange(items), seeds)
  )
  each = values_SN.mean(axis=1)
  return {
    "mean": found.estimate,
    "low": found.low,
    "high": found.high,
    "seed_low": float(each.min()),
    "seed_high": float(each.max()),
    "seeds": seeds,
    "items": items,
  }


def lines(summary: dict[str, Any]) -> list[str]:
  """One line per cell, objective and difference."""
  said = []
  for cell, entry in summary["cells"].items():
    for kind in ("scores", "differences"):
      for name, measures in entry[kind].items():
        values = "  ".join(
          f"{measure} {one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
          for measure, one in measures.items()
          if measure.startswith("generate")
        )
        said.append(f"{cell:>12} {name:>26}: {values}")
    said.append(f"{cell:>12} weight of the variance: {entry['weight']:g}")
  return said


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say of the variance term, in plain words."""
  said = []
  for cell, entry in summary["cells"].items():
    change = entry["differences"]["distill_variance - distill"]
    parts = []
    for measure, better in (("generate exact", 1), ("generate kl", -1)):
      one = change[measure]
      low, high = sorted((better * one["low"], better * one["high"]))
      word = (
        "helps"
        if low > 0
        else "harms"
        if high < 0
        else ("makes no difference that can be told")
      )
      parts.append(
        f"{word} in {measure} ({one['mean']:+.3g} [{one['low']:+.3g},"
        f" {one['high']:+.3g}])"
      )
    said.append(
      f"{cell}: the variance term beside KL distillation, at equal steps, "
      + " and ".join(parts)
      + "."
    )
  return "\n\n".join(said)


def write_page(run, description, summary, settings) -> None:
  """report.html."""
  columns = [f"{task} {metric}" for task, metric in MEASURES]

  def cell_of(entry):
    return report.Interval(
      estimate=entry["mean"],
      low=entry["low"],
      high=entry["high"],
      level=0.95,
      prompts=entry["items"],
      rows=0,
      resamples=0,
      seed=0,
      method="bca",
    )

  sections = []
  for cell, entry in summary["cells"].items():
    rows = [("dense", *(cell_of(summary["dense"][name]) for name in columns))]
    rows += [
      (name, *(cell_of(measures[column]) for column in columns))
      for name, measures in entry["scores"].items()
    ]
    changes = [
      (name, *(cell_of(measures[column]) for column in columns))
      for name, measures in entry["differences"].items()
    ]
    ranges = [
      (
        name,
        *(
          f"{measures[column]['seed_low']:.3f} to"
          f" {measures[column]['seed_high']:.3f}"
          for column in columns
        ),
      )
      for name, measures in entry["scores"].items()
    ]
    trial = list(entry["weights_tried"][0])
    sections.append(
      page.Section(
        title=cell,
        tables=[
          page.Table(
            caption="Mean over seeds and items, 95 % interval resampling"
            " items. KL in nats per token of the dense model's texts.",
            columns=("objective", *columns),
            rows=rows,
          ),
          page.Table(
            caption="Paired differences.",
            columns=("difference", *columns),
            rows=changes,
          ),
          page.Table(
            caption="Lowest and highest seed.",
            columns=("objective", *columns),
            rows=ranges,
          ),
          page.Table(
            caption="The weight was chosen on the validation split at the"
            f" first seed: {entry['weight']:g}.",
            columns=tuple(trial),
            rows=[tuple(one.values()) for one in entry["weights_tried"]],
          ),
        ],
      )
    )
  recovery = settings.recovery
  run.write_page(
    page.render_page(
      title="Recovery of pruned models",
      verdict=verdict(summary),
      sections=sections,
      run=description,
      protocol={
        "Training": f"{recovery.steps} steps of {recovery.batch} rows of"
        f" {settings.row_len} tokens, AdamW, peak rate"
        f" {recovery.learning_rate:g}",
        "Pruning": f"{settings.num_samples} sequences of"
        f" {settings.seq_len} tokens",
        "Seeds": ", ".join(map(str, settings.seeds)),
      },
    )
  )
