"""What do all figures share? Scales, ticks, marks and the looks of series.

A figure is data: panels with marks at places in pixels, which a template
draws as SVG. Colours are names of classes, so that a figure follows the light
or dark setting of its reader; dashes repeat the difference for print. The same
numbers give the same figure.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.report.fields import axis_label
from jaxprune.statistics import format_number

WIDE, SQUARE = (560, 280), (400, 360)  # pixels of one panel
FEW = 40  # points up to which each has a marker
HEAT_LEVELS = 20
_SPACES = {"_z_centred": "z-centred", "_h": "h", "_z": "z", "_p": "p"}
_OTHERS = 7  # looks of series that belong to no space
_LETTER = 6.2  # width of a letter of the labels, pixels
_LINE = 16  # height of a line of labels, pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """One element of a panel.

  Attributes:
    tag: of SVG: path, rect, circle, line, or a around other marks.
    attributes: of the element; numbers are pixels.
    title: what a reader sees who points at it; '' for none.
    marks: inside the element.
  """

  tag: str
  attributes: Mapping[str, Any]
  title: str = ""
  marks: tuple["Mark", ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
  """A tick: its place in pixels and its label."""

  at: float
  label: str


@dataclasses.dataclass(frozen=True)
class Scale:
  """From numbers to pixels.

  Attributes:
    low, high: ends of the axis.
    start, end: their pixels.
    log: whether it is logarithmic; the ends are positive then.
  """

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    """The pixel of a number; what lies beyond an end is drawn at the end."""
    low, high = self._inner(self.low), self._inner(self.high)
    value = self._inner(min(max(value, self.low), self.high))
    part = (value - low) / (high - low) if high > low else 0.5
    return round(self.start + part * (self.end - self.start), 1)

  def holds(self, value: float) -> bool:
    """Whether a number is on the axis."""
    return self.low <= value <= self.high

  def _inner(self, value):
    return math.log10(value) if self.log else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One pair of axes with what is drawn in it.

  Attributes:
    width, height: of the picture, pixels.
    left, top, right, bottom: of the axes, pixels.
    title: above the axes.
    x_label, y_label: of the axes.
    x_ticks, y_ticks: see Tick.
    marks: in the order in which they are drawn.
    note: a small line above the axes at the right, or ''.
    grid: whether ticks have lines across the panel.
  """

  width: float
  height: float
  left: float
  top: float
  right: float
  bottom: float
  title: str = ""
  x_label: str = ""
  y_label: str = ""
  x_ticks: tuple[Tick, ...] = ()
  y_ticks: tuple[Tick, ...] = ()
  marks: tuple[Mark, ...] = ()
  note: str = ""
  grid: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
  """A figure: panels side by side and what names their series.

  Attributes:
    panels: see Panel.
    legend: class and label of each series; none where there is one series.
  """

  panels: tuple[Panel, ...]
  legend: tuple[tuple[str, str], ...] = ()

  @property
  def width(self) -> float:
    """Of all panels side by side, pixels."""
    return sum(panel.width for panel in self.panels)

  @property
  def height(self) -> float:
    """Of the highest panel, pixels."""
    return max((panel.height for panel in self.panels), default=0)


def look_of(name: str, index: int) -> str:
  """The class of a series, which decides its colour and dashes.

  Args:
    name: field name or label. One that ends in a space (h, z, centred z or p)
      has the look of that space in every figure.
    index: place among the series of the figure, which decides otherwise.
  """
  for ending, look in _SPACES.items():
    if name.endswith(ending):
      return look
  return f"s{index % _OTHERS}"


def name_series(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
  """The legend of some series; a single one needs none.

  Args:
    names: field names or labels, in order.
  """
  named = [
    (look_of(name, index), axis_label(name)) for index, name in enumerate(names)
  ]
  return tuple(named) if len(named) > 1 else ()


def span(values: Iterable[float], *, log: bool = False) -> tuple[float, float]:
  """The ends of an axis that shows some numbers, but no stray extremes.

  An end leaves out what lies further from the middle 96 % of the numbers than
  these are apart.

  Args:
    values: numbers; what is not finite does not count.
    log: whether the axis is logarithmic; what is not positive does not count.

  Returns:
    Low and high, low < high.
  """
  numbers = np.asarray(list(values), np.float64)
  numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (not log))]
  if not numbers.size:
    return (1e-3, 1.0) if log else (0.0, 1.0)
  inner = np.log10(numbers) if log else numbers
  low, high = np.quantile(inner, (0.02, 0.98))
  width = high - low
  low, high = max(inner.min(), low - width), min(inner.max(), high + width)
  pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
  low, high = low - pad, high + pad
  return (10**low, 10**high) if log else (float(low), float(high))


def whole_span(
  values: Iterable[float], *, log: bool = False
) -> tuple[float, float]:
  """The ends of an axis that shows all of some numbers, however far.

  Args:
    values: numbers; what is not finite does not count.
    log: whether the axis is logarithmic; what is not positive does not count.
  """
  good = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
  if not good:
    return (1e-3, 1.0) if log else (0.0, 1.0)
  low, high = min(good), max(good)
  if log:
    return low / 1.3, high * 1.3
  pad = 0.05 * (high - low) or 0.5
  return low - pad, high + pad


def segment(x1: float, y1: float, x2: float, y2: float, look: str) -> Mark:
  """A straight line.

  Args:
    x1, y1: where it begins, pixels.
    x2, y2: where it ends, pixels.
    look: its classes.
  """
  return Mark(
    tag="line",
    attributes={"class": look, "x1": x1, "y1": y1, "x2": x2, "y2": y2},
  )


def dot(x: float, y: float, look: str, title: str = "") -> Mark:
  """A point.

  Args:
    x, y: its centre, pixels.
    look: its classes.
    title: what a reader sees who points at it.
  """
  return Mark(
    tag="circle",
    attributes={"class": f"dot {look}", "cx": x, "cy": y, "r": 3},
    title=title,
  )


def ticks(scale: Scale, *, whole: bool = False, most: int = 6) -> list[Tick]:
  """Ticks at round numbers.

  Args:
    scale: of the axis.
    whole: at whole numbers only, as steps and layers are.
    most: number of ticks that there is room for, about.
  """
  most = min(most, max(2, int(abs(scale.end - scale.start) / 45)))
  values = (
    _log_values(scale.low, scale.high, most)
    if scale.log
    else _values(scale.low, scale.high, most, whole)
  )
  return [Tick(at=scale(v), label=format_number(v, 3)) for v in values]


def _values(low, high, most, whole):
  raw = (high - low) / max(most - 1, 1)
  power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  step = max(step, 1) if whole else step
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  values = [round(index * step, 12) for index in range(first, last + 1)]
  return [int(value) for value in values] if whole else values


def _log_values(low, high, most):
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  decades = math.log10(high / low)
  parts = (
    (1,) if decades > 2.5 else (1, 2, 5) if decades > 0.6 else range(1, 10)
  )
  values = [
    part * 10.0**power for power in range(first, last + 1) for part in parts
  ]
  values = [value for value in values if low <= value <= high]
  every = math.ceil(len(values) / (most + 1)) or 1
  return values[::every]


def frame(x: Scale, y: Scale, size: tuple[float, float], **about: Any) -> Panel:
  """An empty panel between two scales, with their pixels for its edges.

  Args:
    x: of the horizontal axis, from left to right.
    y: of the vertical axis, from bottom to top.
    size: width and height of the picture, pixels.
    **about: other fields of Panel; labels may be names of fields.
  """
  for name in ("x_label", "y_label"):
    about[name] = axis_label(about.get(name, ""))
  return Panel(
    width=size[0],
    height=size[1],
    left=x.start,
    right=x.end,
    bottom=y.start,
    top=y.end,
    **about,
  )


def edges(
  size: tuple[float, float], y_labels: Sequence[str], *, tall: bool = False
) -> tuple[float, float, float, float]:
  """Where the axes of a panel stand, so that their labels have room.

  Args:
    size: width and height of the picture, pixels.
    y_labels: labels at the vertical axis.
    tall: whether there is a title above the axes.

  Returns:
    left, top, right, bottom, pixels.
  """
  longest = max(map(len, y_labels), default=0)
  left = min(14 + _LINE + _LETTER * longest, 0.45 * size[0])
  return left, 2 * _LINE if tall else 1.5 * _LINE, size[0] - 12, size[1] - 40


def path(points: Iterable[tuple[float, float]], *, closed: bool = False) -> str:
  """The `d` of a path through points in pixels.

  Args:
    points: x and y; one that is not finite leaves a gap.
    closed: whether the last point is joined to the first.
  """
  text, pen_down = [], False
  for x, y in points:
    if not (math.isfinite(x) and math.isfinite(y)):
      pen_down = False
      continue
    text.append(f"{'L' if pen_down else 'M'}{x:g} {y:g}")
    pen_down = True
  return "".join(text) + ("Z" if closed and text else "")


def heat_level(value: float, low: float, high: float) -> float:
  """How dark a cell is, 0 to 1 in `HEAT_LEVELS` steps.

  Args:
    value: of the cell.
    low: what is lightest.
    high: what is darkest.
  """
  part = (value - low) / (high - low) if high > low else 1.0
  return round(min(max(part, 0), 1) * HEAT_LEVELS) / HEAT_LEVELS


def beyond(count: int) -> str:
  """Says how many values lie beyond an axis; '' for none."""
  return f"{count} beyond the axis, drawn at its edge" if count else ""


def left_out(count: int, what: str, *, positive: bool) -> str:
  """Says how many values are missing from a figure; '' for none.

  Args:
    count: number of values.
    what: what became of them, `not shown` for example.
    positive: whether values must be positive to be shown.
  """
  why = "not finite or positive" if positive else "not finite"
  return f"{what}: {count} ({why})" if count else ""
