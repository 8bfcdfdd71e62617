"""What do many numbers look like at once? Maps and clouds of points."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.report import canvas
from jaxprune.report.canvas import Chart, Mark, Panel, Scale, Tick
from jaxprune.report.fields import axis_label
from jaxprune.statistics import format_number

_MOST_TITLES = 3000  # cells up to which each says its number
_MOST_DOTS = 400  # points up to which each is drawn
_CELLS = 36  # of a cloud, on a side


def heat_map(
  values: np.ndarray,
  *,
  value: str,
  x: str = "step",
  y: str = "layer",
  log: bool = False,
  link: Callable[[int], str] | None = None,
) -> Chart:
  """A number for every layer and step.

  Args:
    values: [rows of y, columns of x], both counted from 0; what is not finite,
      or not positive with `log`, is grey.
    value: field name or label of the colours.
    x: field name or label of the columns.
    y: field name or label of the rows; row 0 is at the bottom.
    log: logarithmic colours.
    link: where a click on a column leads; None leads nowhere.

  Raises:
    ValueError: `values` is not a matrix.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise ValueError(
      f"values: shape {list(values.shape)}; give [layers, steps]"
    )
  shown = np.isfinite(values) & ((values > 0) | (not log))
  low, high = canvas.span(values[shown], log=log)
  inner = math.log10 if log else float

  def look(number):
    if not (math.isfinite(number) and (number > 0 or not log)):
      return "none", 1.0
    return "heat", canvas.heat_level(inner(number), inner(low), inner(high))

  note = f"light {_short(low)}, dark {_short(high)} {axis_label(value)}"
  missing = canvas.left_out(int(np.sum(~shown)), "grey", positive=log)
  size = (canvas.WIDE[0], max(220, min(420, 70 + 9 * len(values))))
  return Chart(
    panels=(
      map_panel(
        values,
        look,
        size,
        labels=(x, y),
        value=value,
        note="; ".join(filter(None, (note, missing))),
        link=link,
      ),
    )
  )


def signed_look(size: float) -> Callable[[float], tuple[str, float]]:
  """Colours symmetric about 0: the class and strength of a number.

  Args:
    size: the number with the full colour.
  """

  def look(number):
    if not math.isfinite(number):
      return "none", 1.0
    kind = "plus" if number >= 0 else "minus"
    return kind, canvas.heat_level(abs(number), 0.0, size)

  return look


def map_panel(
  values: np.ndarray,
  look: Callable[[float], tuple[str, float]],
  size: tuple[float, float],
  *,
  labels: tuple[str, str],
  value: str,
  first_row: int = 0,
  link: Callable[[int], str] | None = None,
  **about: Any,
) -> Panel:
  """A panel of cells.

  Args:
    values: [rows, columns].
    look: class and strength, 0 to 1, of a number.
    size: width and height of the picture, pixels.
    labels: field names or labels of columns and rows.
    value: field name or label of the numbers.
    first_row: what the first row is counted as.
    link: where a click on a column leads; None leads nowhere.
    **about: other fields of Panel; ticks at whole numbers where none are given.
  """
  rows, columns = values.shape
  last = first_row + rows
  left, top, right, bottom = canvas.edges(
    size, [str(last)], tall=bool(about.get("title"))
  )
  x = Scale(-0.5, columns - 0.5, left, right)
  y = Scale(first_row - 0.5, last - 0.5, bottom, top)
  width, height = (right - left) / columns, (bottom - top) / rows
  titled = values.size <= _MOST_TITLES

  def cell(row, column):
    number = float(values[row, column])
    kind, strength = look(number)
    return Mark(
      tag="rect",
      attributes={
        "class": kind,
        "fill-opacity": strength,
        "x": round(left + column * width, 2),
        "y": round(bottom - (row + 1) * height, 2),
        "width": round(width, 2),
        "height": round(height, 2),
      },
      title=(
        f"{_one(labels[0])} {column}, {_one(labels[1])} {row + first_row}:"
        f" {format_number(number, 3)}"
        if titled
        else ""
      ),
    )

  marks = []
  for column in range(columns):
    cells = tuple(
      cell(row, column)
      for row in range(rows)
      if look(float(values[row, column]))[1] > 0
    )
    if link is None:
      marks += cells
    else:
      marks.append(
        Mark(tag="a", attributes={"href": link(column)}, marks=cells)
      )
  about.setdefault("x_ticks", tuple(canvas.ticks(x, whole=True, most=8)))
  about.setdefault("y_ticks", tuple(canvas.ticks(y, whole=True, most=8)))
  return canvas.frame(
    x,
    y,
    size,
    x_label=labels[0],
    y_label=labels[1],
    marks=tuple(marks),
    grid=False,
    **about,
  )


def scatter_against_truth(
  truth: np.ndarray, estimate: np.ndarray, *, x: str, y: str
) -> Chart:
  """Estimates over what they estimate, both logarithmic, with the identity.

  Args:
    truth: [n].
    estimate: [n]. Pairs that are not both finite and positive are left out and
      counted in the figure. Many are drawn as a cloud, darker where more lie.
    x: field name or label of the truth.
    y: field name or label of the estimate.
  """
  truth, estimate = (
    np.asarray(array, np.float64).ravel() for array in (truth, estimate)
  )
  good = np.isfinite(truth) & np.isfinite(estimate)
  good &= (truth > 0) & (estimate > 0)
  pairs = np.stack([truth[good], estimate[good]], axis=1)
  low, high = canvas.span(pairs.ravel(), log=True)
  size = canvas.SQUARE
  labels = canvas.ticks(Scale(low, high, size[1] - 40, 24, True))
  left, top, right, bottom = canvas.edges(size, [t.label for t in labels])
  across = Scale(low, high, left, right, True)
  up = Scale(low, high, bottom, top, True)
  draw = _dots if len(pairs) <= _MOST_DOTS else _cloud
  identity = canvas.segment(left, bottom, right, top, "rule dashed")
  missing = int(np.sum(~good))
  panel = canvas.frame(
    across,
    up,
    size,
    x_label=x,
    y_label=y,
    x_ticks=tuple(canvas.ticks(across, most=5)),
    y_ticks=tuple(canvas.ticks(up)),
    marks=(identity, *draw(pairs, across, up)),
    note=canvas.left_out(missing, "not shown", positive=True),
  )
  return Chart(panels=(panel,))


def _dots(pairs, x, y):
  return [
    canvas.dot(x(a), y(b), "s0", f"truth {_short(a)}, estimate {_short(b)}")
    for a, b in pairs.tolist()
  ]


def _cloud(pairs, x, y):
  """Cells with the number of pairs in them."""
  inner = np.log10(np.clip(pairs, x.low, x.high))
  borders = np.linspace(math.log10(x.low), math.log10(x.high), _CELLS + 1)
  counts, _, _ = np.histogram2d(*inner.T, bins=(borders, borders))
  width, height = (x.end - x.start) / _CELLS, (y.start - y.end) / _CELLS
  most = math.log1p(counts.max())
  return [
    Mark(
      tag="rect",
      attributes={
        "class": "fill s0",
        "fill-opacity": max(
          0.1, canvas.heat_level(math.log1p(counts[i, j]), 0.0, most)
        ),
        "x": round(x.start + i * width, 1),
        "y": round(y.start - (j + 1) * height, 1),
        "width": round(width, 1),
        "height": round(height, 1),
      },
      title=(
        f"{int(counts[i, j])} positions: truth about"
        f" {_short(10 ** borders[i : i + 2].mean())}, estimate about"
        f" {_short(10 ** borders[j : j + 2].mean())}"
      ),
    )
    for i, j in np.argwhere(counts).tolist()
  ]


def named_ticks(
  names: Sequence[Any], scale: Scale, most: int = 16
) -> tuple[Tick, ...]:
  """Ticks with names, thinned out where there are many.

  Args:
    names: of the places 0, 1, ...
    scale: of the axis.
    most: number of ticks that there is room for.
  """
  every = max(1, math.ceil(len(names) / most))
  return tuple(
    Tick(at=scale(index), label=names[index])
    for index in range(0, len(names), every)
  )


def _short(number) -> str:
  return format_number(float(number), 3)


def _one(label) -> str:
  return label.partition(" (")[0]
