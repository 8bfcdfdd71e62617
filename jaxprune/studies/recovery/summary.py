"""Scores of trained models with intervals, and what the objectives change."""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import Estimate

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
  """Means with intervals, and paired differences, per configuration.

  A score is the mean over seeds and items; its interval resamples items, each
  with all its seeds. What the seeds do shows in `seed_low` and `seed_high`.

  Args:
    table: columns of all rows, from `measure.measure`.

  Returns:
    `dense`, measure to estimate; and `configurations`: by name the `weight` of
    the variance that was chosen, `weights_tried` with their means, `first_seed`
    at which they were tried, `scores` by objective and measure, and
    `differences` of `PAIRS` by measure.

  Raises:
    ValueError: a weight was chosen that was not trained at all seeds.
  """
  dense = {
    f"{task} {metric}": _entry(_pick(table, "dense", "none", 0.0, task, metric))
    for task, metric in MEASURES
  }
  names = table["configuration"][table["configuration"] != "dense"]
  return {
    "dense": dense,
    "configurations": {
      name: _configuration(table, name) for name in dict.fromkeys(names)
    },
  }


def _configuration(table, name) -> dict[str, Any]:
  """Scores and differences of one way to prune."""
  trials = _trials(table, name)
  best = min(
    trials,
    key=lambda trial: (-trial["validation exact"], trial["validation kl"]),
  )["weight"]
  here = table["configuration"] == name
  chosen = here & (table["objective"] == "distill_variance")
  chosen &= table["weight"] == best
  many = len(np.unique(table["seed"][here]))
  if len(np.unique(table["seed"][chosen])) != many:
    raise ValueError(
      f"{name}: weight {best} was not trained at all {many} seeds; the"
      " records are of two runs, choose a new --out"
    )
  weight_of = dict.fromkeys(OBJECTIVES, 0.0) | {"distill_variance": best}
  values = {
    (objective, measure): _pick(
      table, name, objective, weight_of[objective], *measure
    )
    for objective in OBJECTIVES
    for measure in MEASURES
  }
  return {
    "weight": best,
    "weights_tried": trials,
    "first_seed": int(table["seed"][0]),
    "scores": {
      objective: {
        " ".join(measure): _entry(values[objective, measure])
        for measure in MEASURES
      }
      for objective in OBJECTIVES
    },
    "differences": {
      f"{objective} - {other}": {
        " ".join(measure): _entry(
          values[objective, measure] - values[other, measure]
        )
        for measure in MEASURES
      }
      for objective, other in PAIRS
    },
  }


def _trials(table, name) -> list[dict[str, float]]:
  """Mean scores of every weight of the variance at the first seed."""
  here = table["configuration"] == name
  here &= table["objective"] == "distill_variance"
  return [
    {"weight": float(weight)}
    | {
      f"{split} {metric}": float(
        _pick(
          table, name, "distill_variance", weight, "generate", metric, split
        )[0].mean()
      )
      for split in ("validation", "test")
      for metric in ("exact", "kl")
    }
    for weight in np.unique(table["weight"][here])
  ]


def _pick(table, name, objective, weight, task, metric, split="test"):
  """Values of one measure of one kind of model, [seeds, items]."""
  chosen = (table["configuration"] == name) & (table["objective"] == objective)
  chosen &= (table["weight"] == weight) & (table["split"] == split)
  chosen &= (table["task"] == task) & (table["metric"] == metric)
  return np.array(
    [
      table["value"][chosen & (table["seed"] == seed)]
      for seed in np.unique(table["seed"][chosen])
    ]
  )


def _entry(values_EX) -> dict[str, Any]:
  seeds, items = values_EX.shape
  mean = statistics.mean(values_EX.ravel(), np.tile(np.arange(items), seeds))
  mean_E = values_EX.mean(axis=1)
  return mean.to_json() | {
    "seed_low": float(mean_E.min()),
    "seed_high": float(mean_E.max()),
    "seeds": seeds,
  }


def headline(summary: dict[str, Any]) -> str:
  """One line per configuration, objective and difference."""
  lines = []
  for configuration, entry in summary["configurations"].items():
    for kind in ("scores", "differences"):
      for name, measures in entry[kind].items():
        values = "  ".join(
          f"{measure} {Estimate.from_json(estimate).format()}"
          for measure, estimate in measures.items()
          if measure.startswith("generate")
        )
        lines.append(f"{configuration:>12} {name:>26}: {values}")
    lines.append(
      f"{configuration:>12} weight of the variance: {entry['weight']:g}"
    )
  return "\n".join(lines)


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say of the variance term, in plain words."""
  paragraphs = []
  for name, entry in summary["configurations"].items():
    change = entry["differences"]["distill_variance - distill"]
    parts = []
    for measure, better in (("generate exact", 1), ("generate kl", -1)):
      effect = change[measure]
      low, high = sorted((better * effect["low"], better * effect["high"]))
      word = (
        "helps"
        if low > 0
        else "harms"
        if high < 0
        else "makes no difference that can be told"
      )
      parts.append(
        f"{word} in {measure} ({effect['value']:+.3g} [{effect['low']:+.3g},"
        f" {effect['high']:+.3g}])"
      )
    paragraphs.append(
      f"{name}: the variance term beside KL distillation, at equal steps, "
      + " and ".join(parts)
      + "."
    )
  return "\n\n".join(paragraphs)
