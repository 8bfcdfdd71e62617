"""What does a measurement look like? Lines, points and bars.

Reference: He et al., arXiv:2603.24652, Figs 4 (by layer), 6 (estimate and
truth) and 7 (over steps). Differs from the reference in: nothing is smoothed,
and what cannot be drawn is counted in the figure.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.report import canvas
from jaxprune.report.canvas import Chart, Mark, Scale, Tick
from jaxprune.report.fields import axis_label
from jaxprune.statistics import Estimate, as_estimate, format_number

_WHOLE = ("step", "layer")  # axes that count
_MOST_HITS = 80  # places of a line at which its values are shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
  """One line.

  Attributes:
    x: [n].
    y: [n]; NaN leaves a gap.
    low: lower edge of a band [n]; None draws no band.
    high: upper edge of the band [n], or None.
  """

  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None


def estimated(
  x: np.ndarray, estimates: Sequence[Estimate | Mapping[str, Any]]
) -> Series:
  """A line of estimates with their intervals as its band.

  Args:
    x: [n].
    estimates: [n], as a summary stores them or not. NaN ends leave a gap in
      the band.
  """
  estimates = list(map(as_estimate, estimates))
  return Series(
    x=np.asarray(x),
    y=np.array([estimate.value for estimate in estimates], np.float64),
    low=np.array([estimate.low for estimate in estimates], np.float64),
    high=np.array([estimate.high for estimate in estimates], np.float64),
  )


def lines(
  series: Mapping[str, Series],
  *,
  x: str = "step",
  y: str = "cosine",
  log_x: bool = False,
  log_y: bool = False,
  identity: bool = False,
  size: tuple[float, float] = canvas.WIDE,
) -> Chart:
  """Lines with bands, one per entry.

  Args:
    series: by field name (`cos_h`) or by free label.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
    log_x: logarithmic horizontal axis; positive numbers only.
    log_y: logarithmic vertical axis; what is not positive leaves a gap.
    identity: whether the line y = x is drawn.
    size: width and height, pixels.
  """
  y_range = _y_range([series], log_y)
  axes = _Axes(x=x, y=y, log_x=log_x, log_y=log_y, y_range=y_range, size=size)
  return Chart(
    panels=(_panel(series, axes, identity=identity),),
    legend=canvas.name_series(series),
  )


def lines_by_sublayer(
  attention: Mapping[str, Series],
  mlp: Mapping[str, Series],
  *,
  x: str = "layer",
  y: str = "cosine",
  log_y: bool = False,
  intervals: tuple[Mapping[str, Series], Mapping[str, Series]] = ({}, {}),
) -> Chart:
  """Two panels, attention and MLP, over layers or steps, of one vertical axis.

  Args:
    attention: series of the attention sublayers by field name or label.
    mlp: series of the MLP sublayers, by the same names.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
    log_y: logarithmic vertical axis; what is not positive leaves a gap.
    intervals: for attention and MLP, by the same names: where the mean lies,
      `low` to `high` at each x, drawn as bars over the band. NaN draws none.
  """
  axes = _Axes(x=x, y=y, log_y=log_y, y_range=_y_range([attention, mlp], log_y))
  panels = zip((attention, mlp), intervals, ("Attention", "MLP"))
  return Chart(
    panels=tuple(
      _panel(series, axes, title=title, intervals=bars)
      for series, bars, title in panels
    ),
    legend=canvas.name_series(attention or mlp),
  )


def small_multiples(
  panels: Mapping[str, Mapping[str, Series]],
  *,
  x: str,
  y: str,
  size: tuple[float, float] = (320, 250),
) -> Chart:
  """One panel per entry, all with the same vertical axis.

  Args:
    panels: by title, the series of a panel by field name or label. The panel
      with most series names them all.
    x: field name or label of the horizontal axes.
    y: field name or label of the vertical axis.
    size: width and height of a panel, pixels.
  """
  y_range = _y_range(panels.values(), False)
  axes = _Axes(x=x, y=y, y_range=y_range, size=size)
  return Chart(
    panels=tuple(
      _panel(series, axes, title=title) for title, series in panels.items()
    ),
    legend=canvas.name_series(max(panels.values(), key=len)),
  )


def paired_bars(
  *panels: tuple[str, Sequence[str], np.ndarray, np.ndarray, str],
) -> Chart:
  """Dense beside pruned for a few named things, as in Fig 8 of the paper.

  Args:
    *panels: title, labels [n], dense values [n], pruned values [n], and the
      label of the values. What is not finite has no bar.
  """
  return Chart(
    panels=tuple(_bar_panel(*panel) for panel in panels),
    legend=(("s0", "dense"), ("s1", "pruned")),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axes:
  """Names and kinds of the axes of a panel of lines."""

  x: str
  y: str
  y_range: tuple[float, float]
  log_x: bool = False
  log_y: bool = False
  size: tuple[float, float] = canvas.WIDE


def _y_range(panels, log):
  return canvas.span(
    (
      number
      for series in panels
      for line in series.values()
      for values in (line.y, line.low, line.high)
      if values is not None
      for number in np.asarray(values, np.float64)
    ),
    log=log,
  )


def _panel(series, axes, *, title="", intervals=None, identity=False):
  """A panel of lines with their bands and what a pointer shows."""
  size = axes.size
  y = Scale(*axes.y_range, size[1] - 40, 32 if title else 24, axes.log_y)
  y_ticks = canvas.ticks(y)
  left, _, right, _ = canvas.edges(size, [tick.label for tick in y_ticks])
  xs = sorted({float(x) for line in series.values() for x in line.x})
  if axes.log_x:
    x_range = canvas.whole_span(xs, log=True)
  else:
    pad = 0.5 if len(xs) == 1 or axes.x in _WHOLE else 0.0
    x_range = (xs[0] - pad, xs[-1] + pad) if xs else (0, 1)
  x = Scale(*x_range, left, right, axes.log_x)
  looks = {name: canvas.look_of(name, i) for i, name in enumerate(series)}
  marks, hidden = [], 0
  if identity:
    ends = [max(x.low, y.low), min(x.high, y.high)]
    if ends[0] < ends[1]:
      a, b = ends
      marks.append(canvas.segment(x(a), y(a), x(b), y(b), "rule dashed"))
  for name, line in series.items():
    marks += _band(line, x, y, looks[name])
  for name, line in series.items():
    drawn, off = _line(line, x, y, looks[name])
    marks, hidden = marks + drawn, hidden + off
  for name, bar in (intervals or {}).items():
    marks += _bars(bar, x, y, looks.get(name, "s0"))
  marks += _hits(series, xs, x, y, axes)
  return canvas.frame(
    x,
    y,
    size,
    title=title,
    x_label=axes.x,
    y_label=axes.y,
    x_ticks=tuple(canvas.ticks(x, whole=axes.x in _WHOLE, most=8)),
    y_ticks=tuple(y_ticks),
    marks=tuple(marks),
    note=canvas.beyond(hidden),
  )


def _usable(value, scale) -> bool:
  return math.isfinite(value) and (value > 0 or not scale.log)


def _point(x, y, at, value):
  value = float(value)
  return (x(float(at)), y(value) if _usable(value, y) else math.nan)


def _band(line, x, y, look) -> list[Mark]:
  if line.low is None or line.high is None:
    return []
  good = [
    (at, max(low, y.low) if y.log else low, high)
    for at, low, high in zip(line.x, line.low, line.high)
    if math.isfinite(low) and _usable(high, y)
  ]
  if len(good) == 1:  # a band without width
    at, low, high = good[0]
    return [canvas.segment(x(at), y(low), x(at), y(high), f"line faint {look}")]
  upper = [_point(x, y, at, high) for at, _, high in good]
  lower = [_point(x, y, at, low) for at, low, _ in reversed(good)]
  d = canvas.path(upper + lower, closed=True)
  band = Mark(tag="path", attributes={"class": f"band {look}", "d": d})
  return [band] if d else []


def _line(line, x, y, look) -> tuple[list[Mark], int]:
  """The line with its markers, and how many values lie beyond the axis."""
  points = [_point(x, y, at, value) for at, value in zip(line.x, line.y)]
  marks = [
    Mark(
      tag="path", attributes={"class": f"line {look}", "d": canvas.path(points)}
    )
  ]
  if len(line.x) <= canvas.FEW:
    marks += [
      canvas.dot(*point, look) for point in points if math.isfinite(point[1])
    ]
  hidden = sum(
    _usable(value, y) and not y.holds(value) for value in map(float, line.y)
  )
  return marks, hidden


def _bars(bar, x, y, look) -> list[Mark]:
  return [
    canvas.segment(x(at), y(low), x(at), y(high), f"bar {look}")
    for at, low, high in zip(bar.x, bar.low, bar.high)
    if math.isfinite(low) and math.isfinite(high) and (low > 0 or not y.log)
  ]


def _hits(series, xs, x, y, axes) -> list[Mark]:
  """Columns without colour that say the values of all lines at a place."""
  values: dict[float, list[str]] = {}
  for name, line in series.items():
    for index, at in enumerate(line.x):
      text = f"{axis_label(name)}: {format_number(float(line.y[index]), 3)}"
      if line.low is not None and line.high is not None:
        low, high = (float(v[index]) for v in (line.low, line.high))
        text += f" ({format_number(low, 3)} to {format_number(high, 3)})"
      values.setdefault(float(at), []).append(text)
  every = max(1, math.ceil(len(xs) / _MOST_HITS))
  places = xs[::every]
  pixels = [x(place) for place in places]
  middles = [(a + b) / 2 for a, b in zip(pixels, pixels[1:])]
  return [
    Mark(
      tag="rect",
      attributes={
        "class": "hit",
        "x": f"{left:g}",
        "y": y.end,
        "width": f"{max(right - left, 1):g}",
        "height": y.start - y.end,
      },
      title="\n".join(
        [f"{axis_label(axes.x)} {format_number(place, 3)}", *values[place]]
      ),
    )
    for place, left, right in zip(
      places, [x.start, *middles], [*middles, x.end]
    )
  ]


def _bar_panel(title, labels, dense, pruned, y):
  """Horizontal bars: labels of any length can be read."""
  size = (canvas.WIDE[0], 84 + 26 * max(len(labels), 2))
  left, top, right, bottom = canvas.edges(size, labels, tall=True)
  values = [np.asarray(each, np.float64) for each in (dense, pruned)]
  low, high = canvas.whole_span([0.0, *values[0], *values[1]])
  has_negative = any((each < 0).any() for each in values)
  scale = Scale(low if has_negative else 0.0, high, left, right)
  row = (bottom - top) / max(len(labels), 1)
  marks = []
  for index, label in enumerate(labels):
    for which, (name, each) in enumerate(zip(("dense", "pruned"), values)):
      if not math.isfinite(each[index]):
        continue
      ends = sorted((scale(0.0), scale(float(each[index]))))
      marks.append(
        Mark(
          tag="rect",
          attributes={
            "class": f"fill s{which}",
            "x": ends[0],
            "y": round(top + index * row + 4 + which * (row - 8) / 2, 1),
            "width": round(ends[1] - ends[0], 1),
            "height": round((row - 8) / 2, 1),
          },
          title=f"{label}, {name}: {format_number(float(each[index]))}",
        )
      )
  return canvas.frame(
    scale,
    Scale(0, 1, bottom, top),
    size,
    title=title,
    x_label=y,
    x_ticks=tuple(canvas.ticks(scale)),
    y_ticks=tuple(
      Tick(at=round(top + (index + 0.5) * row, 1), label=label)
      for index, label in enumerate(labels)
    ),
    marks=tuple(marks),
  )
