"""Summary, figures and page of `monitoring`.

A score between two measured fractions is interpolated on the straight line
between them: what a mixture of the two policies would give. So every signal
can be read off at the same fraction, item by item, and differences are paired.
"""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes import monitoring
from jaxprune.report import figures, page

AT = (0.03, 0.05, 0.1)  # fractions of steps at which signals are compared
CONTROL = "random"
USUAL = "margin"  # what needs no theory: is another signal better?


def summarise(table: dict[str, np.ndarray]) -> dict[str, Any]:
  """Curves, areas and comparisons per cell; intervals resample items."""
  stop = np.array([metric == "stop" for metric in table["metric"]])
  back = {name: values[~stop] for name, values in table.items()}
  stop = {name: values[stop] for name, values in table.items()}
  score = "correct"
  if not np.isfinite(back["correct"].astype(float)).all():
    score = "same"  # prompts without answers
    del back["correct"]
  cells = {}
  for cell in dict.fromkeys(back["cell"]):
    here = {name: values[back["cell"] == cell] for name, values in back.items()}
    curves = _curves(here)
    own = {name: values[stop["cell"] == cell] for name, values in stop.items()}
    cells[cell] = {
      "seeds": len(np.unique(here["seed"])),
      "items": len(np.unique(here["question"])),
      "curves": {
        name: [_point(place) for place in places]
        for name, places in curves.items()
      },
      "compared": {
        measure: _compared(curves, measure)
        for measure in ((score, "same") if score != "same" else (score,))
      },
      "stop": _stopped(own),
    }
  return {"score": score, "cells": cells}


def _curves(here):
  """Per signal, its policies in order of fraction, arrays [seeds, items]."""

  def pick(name, fraction):
    at = here["signal"] == name
    if fraction is not None:
      at &= here["fraction"] == fraction
    order = np.lexsort((here["question"][at], here["seed"][at]))
    seeds = len(np.unique(here["seed"][at]))
    return {
      field: here[field][at][order].astype(float).reshape(seeds, -1)
      for field in (
        "steps",
        "handed",
        "dense_forwards",
        "dense_alone",
        "same",
        "agreement",
        "correct",
      )
      if field in here
    }

  ends = pick("none", None), pick("dense", None)
  signals = [
    name
    for name in dict.fromkeys(here["signal"])
    if name not in ("none", "dense", "flip")
  ]
  curves = {}
  for name in signals:
    fractions = np.unique(here["fraction"][here["signal"] == name])
    middle = [pick(name, fraction) for fraction in fractions]
    curves[name] = sorted((ends[0], *middle, ends[1]), key=_fraction)
  return curves | {"flip": [pick("flip", None)]}


def _fraction(place) -> float:
  return float(place["handed"].sum() / place["steps"].sum())


def _point(place) -> dict[str, Any]:
  """One policy: what it costs and what it keeps."""
  found = {
    "fraction": _fraction(place),
    "dense_forwards": float(
      place["dense_forwards"].sum() / place["dense_alone"].sum()
    ),
  }
  return found | {
    name: _interval(place[name])
    for name in ("correct", "same", "agreement")
    if name in place
  }


def _interval(values_SN):
  found = report.mean_interval(
    values_SN.ravel(), np.tile(np.arange(values_SN.shape[1]), len(values_SN))
  )
  return {"mean": found.estimate, "low": found.low, "high": found.high}


def _at(places, fraction, measure):
  """The measure [seeds, items] at a fraction, between measured ones."""
  known = np.array([_fraction(place) for place in places])
  right = int(np.clip(np.searchsorted(known, fraction), 1, len(known) - 1))
  left = right - 1
  share = (fraction - known[left]) / max(known[right] - known[left], 1e-12)
  return (1 - share) * places[left][measure] + share * places[right][measure]


def _area(places, measure):
  """Area under the curve of each item over fractions from 0 to 1."""
  known = np.array([_fraction(place) for place in places])
  values = np.stack([place[measure] for place in places])
  return np.trapezoid(values, known, axis=0)


def _compared(curves, measure):
  """Every signal at equal fractions, less the control and less the margin."""
  found = {}
  for name, places in curves.items():
    if name == "flip":
      continue
    entry = {
      "area": _interval(_area(places, measure)),
      "area less control": _interval(
        _area(places, measure) - _area(curves[CONTROL], measure)
      ),
    }
    for fraction in AT:
      value = _at(places, fraction, measure)
      entry[f"at {fraction:g}"] = _interval(value)
      for other, word in ((CONTROL, "control"), (USUAL, USUAL)):
        if other in curves:
          entry[f"at {fraction:g} less {word}"] = _interval(
            value - _at(curves[other], fraction, measure)
          )
    found[name] = entry
  return found


def _stopped(own):
  """Risk and coverage of each signal, all seeds together."""

  def parts(name):
    at = own["signal"] == name
    return np.stack(
      [own["value"][at], own["correct"][at].astype(float)], axis=1
    ), own["question"][at]

  names = list(dict.fromkeys(own["signal"]))
  rows, items = parts(names[0])
  accuracy = report.mean_interval(rows[:, 1], items)
  found = {
    "accuracy": {
      "mean": accuracy.estimate,
      "low": accuracy.low,
      "high": accuracy.high,
    },
    "best area": monitoring.coverage_area(1 - rows[:, 1], rows[:, 1]),
    "signals": {},
  }
  for name in names:
    rows, items = parts(name)
    area = report.statistic_interval(
      lambda drawn: monitoring.coverage_area(drawn[:, 0], drawn[:, 1]),
      rows,
      items,
      resamples=1000,
    )
    coverage, kept = monitoring.risk_coverage(rows[:, 0], rows[:, 1])
    grid = np.linspace(0.05, 1, 20)
    found["signals"][name] = {
      "area": {"mean": area.estimate, "low": area.low, "high": area.high},
      "coverage": grid.tolist(),
      "accuracy": np.interp(grid, coverage, kept).tolist(),
    }
  return found


def lines(summary: dict[str, Any]) -> list[str]:
  """A few lines per cell."""
  said, measure = [], summary["score"]
  for cell, entry in summary["cells"].items():
    flip = entry["curves"]["flip"][0]
    first, *_, last = entry["curves"][CONTROL]
    said.append(
      f"{cell}: {measure} {first[measure]['mean']:.3f} alone,"
      f" {last[measure]['mean']:.3f} dense; all flips are"
      f" {100 * flip['fraction']:.1f} % of the steps"
    )
    for name, one in entry["compared"][measure].items():
      values = "  ".join(
        f"at {100 * at:g} % {_said(one[f'at {at:g}'])}" for at in AT
      )
      stop = entry["stop"]["signals"][name]["area"]
      said.append(f"  {name:>9}: {values}; stop area {_said(stop)}")
  return said


def _said(one):
  return f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def verdict(summary: dict[str, Any]) -> str:
  """What the curves say, in plain words."""
  said, measure = [], summary["score"]
  for cell, entry in summary["cells"].items():
    compared = entry["compared"][measure]
    free = [
      name for name in compared if name not in (*monitoring.ORACLES, CONTROL)
    ]
    first, *_, last = entry["curves"][CONTROL]
    lost = last[measure]["mean"] - first[measure]["mean"]
    parts = []
    for name in (
      *free,
      *(each for each in compared if each in monitoring.ORACLES),
      CONTROL,
    ):
      share = compared[name]["at 0.1"]["mean"] - first[measure]["mean"]
      parts.append(f"{name} {100 * share / lost:.0f} %" if lost > 0 else name)
    said.append(
      f"{cell}: {measure} is {first[measure]['mean']:.3f} alone and"
      f" {last[measure]['mean']:.3f} dense. With one step in ten handed back,"
      f" this much of the loss comes back: {', '.join(parts)}."
    )
  return "\n\n".join(said)


def write_page(run, description, summary, settings) -> None:
  """Figures and report.html."""
  measure, sections = summary["score"], []
  for cell, entry in summary["cells"].items():
    file = cell.replace(":", "_")
    others = ["control"] + [USUAL] * (USUAL in entry["curves"])
    png = figures.lines(
      {
        name: figures.Series(
          x=np.array([point["fraction"] for point in points]),
          y=np.array([point[measure]["mean"] for point in points]),
          low=np.array([point[measure]["low"] for point in points]),
          high=np.array([point[measure]["high"] for point in points]),
        )
        for name, points in entry["curves"].items()
        if name != "flip"
      },
      x="fraction of steps by the dense model",
      y=measure,
    )
    stop = figures.lines(
      {
        name: figures.Series(
          x=np.array(one["coverage"]), y=np.array(one["accuracy"])
        )
        for name, one in entry["stop"]["signals"].items()
      },
      x="fraction answered",
      y="accuracy among the answered",
    )
    run.write_figure(f"hand_back_{file}", png)
    run.write_figure(f"stop_{file}", stop)
    sections.append(
      page.Section(
        title=cell,
        tables=[
          page.Table(
            caption=f"{each} at equal fractions of steps by the dense model,"
            " interpolated; area over all fractions; less what random steps"
            " give, and less what the margin gives, item by item.",
            columns=(
              "signal",
              *(f"at {at:g}" for at in AT),
              "area",
              *(f"at {at:g} less {other}" for other in others for at in AT),
            ),
            rows=[
              (
                name,
                *(_cell(one[f"at {at:g}"]) for at in AT),
                _cell(one["area"]),
                *(
                  _cell(one[f"at {at:g} less {other}"])
                  for other in others
                  for at in AT
                ),
              )
              for name, one in entry["compared"][each].items()
            ],
          )
          for each in entry["compared"]
        ]
        + [
          page.Table(
            caption="Measured points: steps by the dense model, tokens that it"
            f" must read with the {settings.cache} cache over those that it"
            " reads alone, scores.",
            columns=("signal", "steps", "tokens read", measure, "agreement"),
            rows=[
              (
                name,
                point["fraction"],
                point["dense_forwards"],
                _cell(point[measure]),
                _cell(point["agreement"]),
              )
              for name, points in entry["curves"].items()
              for point in points
            ],
          ),
          page.Table(
            caption="Stop: area under accuracy against coverage;"
            f" {_said(entry['stop']['accuracy'])} if all are answered,"
            f" {entry['stop']['best area']:.3f} at best.",
            columns=("largest risk by", "area"),
            rows=[
              (name, _cell(one["area"]))
              for name, one in entry["stop"]["signals"].items()
            ],
          ),
        ],
        figures=[
          page.Figure(
            png=png,
            alt=f"Score over fraction handed back, {cell}.",
            caption="Score over the fraction of steps by the dense model;"
            " bands are 95 % intervals over items.",
          ),
          page.Figure(
            png=stop,
            alt=f"Accuracy over coverage, {cell}.",
            caption="Accuracy among the texts that are not given up.",
          ),
        ],
      )
    )
  run.write_page(
    page.render_page(
      title="Monitoring: hand back or stop",
      verdict=verdict(summary),
      sections=sections,
      run=description,
      protocol={
        "Cache of the dense model": settings.cache,
        "New tokens": settings.max_new_tokens,
        "Analysis temperature T": settings.temperature,
        "Thresholds": "quantiles of the risk on other prompts",
      },
    )
  )


def _cell(one):
  return report.Interval(
    estimate=one["mean"],
    low=one["low"],
    high=one["high"],
    level=0.95,
    prompts=0,
    rows=0,
    resamples=0,
    seed=0,
    method="bca",
  )
