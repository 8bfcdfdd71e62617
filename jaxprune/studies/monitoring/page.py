"""The page of `monitoring`, and what the script prints."""

from typing import Any

import numpy as np

from jaxprune.probes import monitoring
from jaxprune.report import RunFolder, Summary, figures, page
from jaxprune.statistics import Estimate
from jaxprune.studies.monitoring.measure import Settings
from jaxprune.studies.monitoring.summary import CONTROL, FRACTIONS, USUAL


def headline(summary: dict[str, Any]) -> str:
  """A few lines per configuration."""
  lines, score = [], summary["score"]
  for name, entry in summary["configurations"].items():
    flip = entry["curves"]["flip"][0]
    lines.append(
      f"{_ends(name, entry, score)}; all flips are"
      f" {100 * flip['fraction']:.1f} % of the steps"
    )
    for signal, compared in entry["compared"][score].items():
      values = "  ".join(
        f"at {100 * fraction:g} % {_text(compared[f'at {fraction:g}'])}"
        for fraction in FRACTIONS
      )
      area = entry["stop"]["signals"][signal]["area"]
      lines.append(f"  {signal:>9}: {values}; stop area {_text(area)}")
  return "\n".join(lines)


def _ends(name, entry, score):
  """The score of both models alone."""
  first, *_, last = entry["curves"][CONTROL]
  return (
    f"{name}: {score} {first[score]['value']:.3f} alone,"
    f" {last[score]['value']:.3f} dense"
  )


def _text(entry) -> str:
  return Estimate.from_json(entry).format()


def verdict(summary: dict[str, Any]) -> str:
  """What the curves say, in plain words."""
  paragraphs = []
  for name, entry in summary["configurations"].items():
    recovered = entry["recovered"]
    groups = (
      [s for s in recovered if s not in (*monitoring.ORACLES, CONTROL)],
      [s for s in recovered if s in monitoring.ORACLES],
      [CONTROL],
    )
    parts = [
      signal
      if recovered[signal] is None
      else f"{signal} {100 * recovered[signal]:.0f} %"
      for group in groups
      for signal in group
    ]
    paragraphs.append(
      f"{_ends(name, entry, summary['score'])}. With one step in ten deferred"
      " to the dense model, this much of the loss comes back:"
      f" {', '.join(parts)}."
    )
  return "\n\n".join(paragraphs)


def write_page(run: RunFolder, summary: Summary, settings: Settings) -> None:
  """Write figures/ and report.html.

  Args:
    run: the run folder.
    summary: from `summary.summarise`.
    settings: of the run: cache, length and fractions to defer.
  """
  page.write_report(
    run,
    title="Monitoring: fall back or stop",
    verdict=verdict(summary),
    sections=[
      _section(name, entry, summary["score"], settings)
      for name, entry in summary["configurations"].items()
    ],
    protocol={
      "Cache of the dense model": settings.cache,
      "New tokens": settings.max_new_tokens,
      "Analysis temperature T": settings.temperature,
      "Thresholds": "quantiles of the risk on other prompts",
    },
  )


def _section(name, entry, score, settings):
  """One way to prune."""
  return page.Section(
    title=name,
    tables=[
      *(_compared_table(entry, measure) for measure in entry["compared"]),
      _points_table(entry, score, settings),
      _stop_table(entry),
    ],
    figures=_figures(name, entry, score),
  )


def _figures(name, entry, score):
  """The score over deferred steps, and the accuracy over coverage."""
  fallback = {
    signal: figures.estimated(
      [point["fraction"] for point in points],
      [point[score] for point in points],
    )
    for signal, points in entry["curves"].items()
    if signal != "flip"
  }
  stop = {
    signal: figures.Series(
      x=np.array(curve["coverage"]), y=np.array(curve["accuracy"])
    )
    for signal, curve in entry["stop"]["signals"].items()
  }
  file = name.replace(":", "_")
  return [
    page.Figure(
      name=f"fallback_{file}",
      chart=figures.lines(
        fallback, x="fraction of steps by the dense model", y=score
      ),
      alt=f"Score over the fraction of deferred steps, {name}.",
      caption="Score over the fraction of steps by the dense model;"
      " bands are 95 % intervals over items.",
    ),
    page.Figure(
      name=f"stop_{file}",
      chart=figures.lines(
        stop, x="fraction answered", y="accuracy among the answered"
      ),
      alt=f"Accuracy over coverage, {name}.",
      caption="Accuracy among the texts that are not given up.",
    ),
  ]


def _compared_table(entry, measure):
  others = ["control"] + [USUAL] * (USUAL in entry["curves"])
  columns = (
    *(f"at {fraction:g}" for fraction in FRACTIONS),
    "area",
    *(
      f"at {fraction:g} less {other}"
      for other in others
      for fraction in FRACTIONS
    ),
  )
  return page.estimate_table(
    f"{measure} at equal fractions of steps by the dense model,"
    " interpolated; area over all fractions; less what random steps"
    " give, and less what the margin gives, item by item.",
    "signal",
    {column: column for column in columns},
    entry["compared"][measure],
  )


def _points_table(entry, score, settings):
  return page.Table(
    caption="Measured points: steps by the dense model, tokens that it"
    f" must read with the {settings.cache} cache over those that it"
    " reads alone, scores.",
    columns=("signal", "steps", "tokens read", score, "agreement"),
    rows=[
      (
        signal,
        *(
          point[name]
          for name in ("fraction", "dense_forwards", score, "agreement")
        ),
      )
      for signal, points in entry["curves"].items()
      for point in points
    ],
  )


def _stop_table(entry):
  stop = entry["stop"]
  return page.estimate_table(
    "Stop: area under accuracy against coverage;"
    f" {_text(stop['accuracy'])} if all are answered,"
    f" {stop['best area']:.3f} at best.",
    "largest risk by",
    {"area": "area"},
    stop["signals"],
  )
