"""What do single estimates look like? Dots with intervals, and clouds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.report import canvas
from jaxprune.report.canvas import Chart, Scale, Tick
from jaxprune.statistics import Estimate, as_estimate, format_number


def interval_dots(
  labels: Sequence[str],
  series: Mapping[str, Sequence[Estimate | Mapping[str, Any] | None]],
  *,
  x: str,
  reference: float | None = None,
  log_x: bool = False,
) -> Chart:
  """Estimates with intervals, one row per label, the first on top.

  Args:
    labels: [n], names of the rows.
    series: by label, [n] estimates, as a summary stores them or not; None
      leaves a row empty.
    x: field name or label of the horizontal axis.
    reference: where a vertical line is drawn; None draws none.
    log_x: logarithmic; what is not positive is left out and counted in the
      figure.

  Raises:
    ValueError: a series has not one entry per label.
  """
  shown, missing = _shown_dots(labels, series, log_x)
  size = (canvas.WIDE[0] + 160, 76 + 20 * max(len(labels), 3))
  ends = [
    end for _, _, _, estimate in shown for end in _ends(estimate, log_x)
  ] + ([] if reference is None else [reference])
  left, top, right, bottom = canvas.edges(size, labels)
  scale = Scale(*canvas.whole_span(ends, log=log_x), left, right, log_x)
  rows = Scale(len(labels) - 0.5, -0.5, bottom, top)
  place = lambda row: round(top + (row + 0.5) * (bottom - top) / len(labels), 1)
  marks = []
  if reference is not None:
    at = scale(reference)
    marks.append(canvas.segment(at, top, at, bottom, "rule"))
  for row, shift, look, estimate in shown:
    y = place(row + shift)
    low, high = _ends(estimate, log_x)
    marks.append(canvas.segment(scale(low), y, scale(high), y, f"line {look}"))
    title = f"{labels[row]}: {estimate.format()}"
    marks.append(canvas.dot(scale(estimate.value), y, look, title))
  panel = canvas.frame(
    scale,
    rows,
    size,
    x_label=x,
    x_ticks=tuple(canvas.ticks(scale)),
    y_ticks=tuple(
      Tick(at=place(row), label=label) for row, label in enumerate(labels)
    ),
    marks=tuple(marks),
    note=canvas.left_out(missing, "not shown", positive=log_x),
  )
  return Chart(panels=(panel,), legend=canvas.name_series(series))


def score_against_feature(
  feature: np.ndarray,
  kept: np.ndarray,
  learnt: np.ndarray,
  kinds: Mapping[str, np.ndarray],
  *,
  x: str,
  keep: float,
  threshold: float | None,
) -> Chart:
  """Share of the dense score over a feature, a point per pruned model.

  Args:
    feature: float [models], not negative; 0 is drawn left of the least value.
    kept: share of the dense score, float [models].
    learnt: whether the threshold was learnt from it, bool [models].
    kinds: label to bool [models]; each has a colour of its own.
    x: field name or label of the feature.
    keep: share that is called survival, a horizontal line.
    threshold: a vertical line, or None.

  Returns:
    Learnt-from models are hollow, others are filled.
  """
  feature, kept = np.asarray(feature, float), np.asarray(kept, float)
  positive = feature[feature > 0]
  if threshold:
    positive = np.append(positive, threshold)
  floor = positive.min() / 2 if positive.size else 1e-3
  shown = np.maximum(feature, floor)
  y = Scale(*canvas.span([*kept, keep, 0]), canvas.WIDE[1] - 40, 24)
  labels = canvas.ticks(y)
  left, _, right, _ = canvas.edges(canvas.WIDE, [t.label for t in labels])
  scale = Scale(*canvas.span([*shown, floor], log=True), left, right, True)
  marks = [canvas.segment(left, y(keep), right, y(keep), "rule")]
  if threshold is not None:
    at = scale(max(threshold, floor))
    marks.append(canvas.segment(at, y.start, at, y.end, "rule dashed"))
  for index, (name, chosen) in enumerate(kinds.items()):
    look = canvas.look_of(name, index)
    for model in np.flatnonzero(chosen):
      title = (
        f"{name}: {x} {format_number(float(feature[model]))}, kept"
        f" {format_number(float(kept[model]), 3)}"
      )
      hollow = " hollow" if learnt[model] else ""
      marks.append(
        canvas.dot(scale(shown[model]), y(kept[model]), look + hollow, title)
      )
  zeros = int(np.sum(feature <= 0))
  panel = canvas.frame(
    scale,
    y,
    canvas.WIDE,
    x_label=x,
    y_label="share of the dense score kept",
    x_ticks=tuple(canvas.ticks(scale)),
    y_ticks=tuple(labels),
    marks=tuple(marks),
    note=f"{zeros} at 0, drawn at the left edge" if zeros else "",
  )
  return Chart(panels=(panel,), legend=canvas.name_series(kinds))


def _ends(estimate, log) -> tuple[float, float]:
  """The interval as it is drawn: the value where there is no end to draw."""
  return tuple(
    end if math.isfinite(end) and (end > 0 or not log) else estimate.value
    for end in (estimate.low, estimate.high)
  )


def _shown_dots(labels, series, log_x):
  """Row, shift, look and estimate of each dot; and how many have none."""
  shown, missing = [], 0
  for index, (name, entries) in enumerate(series.items()):
    if len(entries) != len(labels):
      raise ValueError(
        f"series {name!r} has {len(entries)} entries for {len(labels)}"
        " labels: give one each"
      )
    shift = 0.6 * ((index + 0.5) / len(series) - 0.5)
    for row, estimate in enumerate(map(as_estimate, entries)):
      if estimate is None:
        continue
      if math.isfinite(estimate.value) and (estimate.value > 0 or not log_x):
        look = canvas.look_of(name, index)
        shown.append((row, shift, look, estimate))
      else:
        missing += 1
  return shown, missing
