"""How much returns for how many deferred steps, and which signal is best?

A score between two measured fractions is interpolated on the straight line
between them, which is what a mixture of the two policies would give. So all
signals can be compared at the same fraction of steps, item by item.
Intervals resample items, each with all its seeds.
"""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.probes import monitoring
from jaxprune.statistics import Estimate

FRACTIONS = (
  0.03,
  0.05,
  0.1,
)  # fractions of steps at which signals are compared
CONTROL = "random"
USUAL = "margin"  # what needs no theory: is another signal better?


def summarise(table: dict[str, np.ndarray]) -> dict[str, Any]:
  """Curves, areas and comparisons of each configuration, and what they say.

  Args:
    table: columns of the records.

  Returns:
    `score`, `correct` or `same` where there are no answers, and the entries of
    each configuration.
  """
  stop = np.array([metric == "stop" for metric in table["metric"]])
  fallback = {name: values[~stop] for name, values in table.items()}
  stop = {name: values[stop] for name, values in table.items()}
  score = "correct"
  if not np.isfinite(fallback["correct"].astype(float)).all():
    score = "same"  # prompts without answers
    del fallback["correct"]
  entries = {}
  for name in dict.fromkeys(fallback["configuration"]):
    rows = _rows_of(fallback, name)
    curves = _curves(rows)
    entry = {
      "seeds": len(np.unique(rows["seed"])),
      "items": len(np.unique(rows["question"])),
      "curves": {
        signal: [_point(policy) for policy in policies]
        for signal, policies in curves.items()
      },
      "compared": {
        measure: _compared(curves, measure)
        for measure in ((score, "same") if score != "same" else (score,))
      },
      "stop": _stopped(_rows_of(stop, name)),
    }
    entries[name] = entry | {"recovered": _recovered(entry, score)}
  return {"score": score, "configurations": entries}


def _rows_of(table, name):
  """The rows of one configuration."""
  keep = table["configuration"] == name
  return {field: values[keep] for field, values in table.items()}


def _recovered(entry, score) -> dict[str, float | None]:
  """By signal: the part of the loss that one deferred step in ten brings back.

  None where the pruned model loses nothing.
  """
  first, *_, last = entry["curves"][CONTROL]
  lost = last[score]["value"] - first[score]["value"]
  return {
    signal: (compared["at 0.1"]["value"] - first[score]["value"]) / lost
    if lost > 0
    else None
    for signal, compared in entry["compared"][score].items()
  }


def _curves(rows):
  """Per signal, its policies in order of fraction, arrays [seeds, items]."""

  def pick(signal, fraction):
    keep = rows["signal"] == signal
    if fraction is not None:
      keep &= rows["fraction"] == fraction
    order = np.lexsort((rows["question"][keep], rows["seed"][keep]))
    seeds = len(np.unique(rows["seed"][keep]))
    return {
      field: rows[field][keep][order].astype(float).reshape(seeds, -1)
      for field in (
        "steps",
        "deferred",
        "dense_forwards",
        "dense_alone",
        "same",
        "agreement",
        "correct",
      )
      if field in rows
    }

  ends = pick("none", None), pick("dense", None)
  signals = [
    signal
    for signal in dict.fromkeys(rows["signal"])
    if signal not in ("none", "dense", "flip")
  ]
  curves = {}
  for signal in signals:
    fractions = np.unique(rows["fraction"][rows["signal"] == signal])
    middle = [pick(signal, fraction) for fraction in fractions]
    curves[signal] = sorted((ends[0], *middle, ends[1]), key=_fraction)
  return curves | {"flip": [pick("flip", None)]}


def _fraction(policy) -> float:
  """Fraction of the steps that the dense model decided."""
  return float(policy["deferred"].sum() / policy["steps"].sum())


def _point(policy) -> dict[str, Any]:
  """One policy: what it costs and what it keeps."""
  costs = {
    "fraction": _fraction(policy),
    "dense_forwards": float(
      policy["dense_forwards"].sum() / policy["dense_alone"].sum()
    ),
  }
  return costs | {
    name: _mean(policy[name]).to_json()
    for name in ("correct", "same", "agreement")
    if name in policy
  }


def _mean(values_EX) -> Estimate:
  """Over seeds and items; a proportion where every item was written once."""
  seeds, items = values_EX.shape
  if seeds == 1 and np.isin(values_EX, (0, 1)).all():
    return statistics.proportion(values_EX[0])
  return statistics.mean(values_EX.ravel(), np.tile(np.arange(items), seeds))


def _mean_difference(values_EX, other_EX) -> Estimate:
  """Of two measures of the same seeds and items."""
  seeds, items = values_EX.shape
  difference_EX = values_EX - other_EX
  return statistics.mean(
    difference_EX.ravel(), np.tile(np.arange(items), seeds)
  )


def _at_fraction(policies, fraction, measure):
  """The measure [seeds, items] at a fraction, between measured ones."""
  known = np.array([_fraction(policy) for policy in policies])
  right = int(np.clip(np.searchsorted(known, fraction), 1, len(known) - 1))
  left = right - 1
  weight = (fraction - known[left]) / max(known[right] - known[left], 1e-12)
  return (1 - weight) * policies[left][measure] + (
    weight * policies[right][measure]
  )


def _area(policies, measure):
  """Area under the curve of each item over fractions from 0 to 1."""
  known = np.array([_fraction(policy) for policy in policies])
  values = np.stack([policy[measure] for policy in policies])
  return np.trapezoid(values, known, axis=0)


def _compared(curves, measure):
  """Every signal at equal fractions, less the control and less the margin."""
  compared = {}
  for signal, policies in curves.items():
    if signal == "flip":
      continue
    area = _area(policies, measure)
    entry = {
      "area": _mean(area),
      "area less control": _mean_difference(
        area, _area(curves[CONTROL], measure)
      ),
    }
    for fraction in FRACTIONS:
      value = _at_fraction(policies, fraction, measure)
      entry[f"at {fraction:g}"] = _mean(value)
      for other, word in ((CONTROL, "control"), (USUAL, USUAL)):
        if other in curves:
          entry[f"at {fraction:g} less {word}"] = _mean_difference(
            value, _at_fraction(curves[other], fraction, measure)
          )
    compared[signal] = {
      name: estimate.to_json() for name, estimate in entry.items()
    }
  return compared


def _stopped(rows):
  """Risk and coverage of each signal, all seeds together."""

  def parts(signal):
    keep = rows["signal"] == signal
    return np.stack(
      [rows["value"][keep], rows["correct"][keep].astype(float)], axis=1
    ), rows["question"][keep]

  signals = list(dict.fromkeys(rows["signal"]))
  (_, correct), items = parts(signals[0])[0].T, parts(signals[0])[1]
  stopped = {
    "accuracy": statistics.mean(correct, items).to_json(),
    "best area": monitoring.coverage_area(1 - correct, correct),
    "signals": {},
  }
  for signal in signals:
    values, items = parts(signal)
    area = statistics.statistic(
      lambda drawn: monitoring.coverage_area(drawn[:, 0], drawn[:, 1]),
      values,
      items,
      resamples=1000,
    )
    coverage, kept = monitoring.risk_coverage(values[:, 0], values[:, 1])
    grid = np.linspace(0.05, 1, 20)
    stopped["signals"][signal] = {
      "area": area.to_json(),
      "coverage": grid.tolist(),
      "accuracy": np.interp(grid, coverage, kept).tolist(),
    }
  return stopped
