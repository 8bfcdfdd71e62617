"""What do all figures share? Colours, sizes, axes and the way to PNG bytes.

The same numbers give the same bytes: the style is set here and not by the
user's configuration, the fonts are those that come with matplotlib, and no date
or version is written. Colours are Okabe and Ito's, which colour-blind readers
can tell apart; line styles and markers repeat the difference for print.
"""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
  FuncFormatter,
  LogFormatterMathtext,
  LogLocator,
  MaxNLocator,
  NullFormatter,
)

from jaxprune.report.fields import axis_label

DPI = 160
WIDE, SQUARE = (7.5, 3.7), (4.6, 4.4)  # inches
INK, GREY, FAINT = "#222222", "#666666", "#d9d9d9"
BLUE, VERMILION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
_STYLES = {
  "_h": (BLUE, "-", "o"),
  "_z": (VERMILION, "--", "s"),
  "_z_centred": (ORANGE, "-.", "D"),
  "_p": (GREEN, ":", "^"),
}
COLOURS = (
  (BLUE, "-", "o"),
  (VERMILION, "--", "s"),
  (GREEN, ":", "^"),
  ("#CC79A7", "-.", "D"),
  ("#56B4E9", (0, (5, 1)), "v"),
  ("#000000", (0, (1, 1)), "x"),
  (ORANGE, (0, (3, 1, 1, 1)), "P"),
)
FEW = 40  # points up to which each has a marker

_RC = {
  "axes.axisbelow": True,
  "axes.edgecolor": GREY,
  "axes.grid": True,
  "axes.labelcolor": INK,
  "axes.labelsize": 9.5,
  "axes.linewidth": 0.8,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 10,
  "axes.unicode_minus": True,
  "figure.facecolor": "white",
  "font.family": ["DejaVu Sans"],
  "font.size": 9,
  "grid.color": FAINT,
  "grid.linewidth": 0.6,
  "legend.fontsize": 8.5,
  "legend.frameon": False,
  "lines.linewidth": 1.6,
  "lines.markersize": 4,
  "text.color": INK,
  "xtick.color": "#444444",
  "ytick.color": "#444444",
}


def style():
  """Returns a context with our style, whatever style the user has set."""
  return matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC})


def panels(
  size: tuple[float, float], count: int = 1, *, share_y: bool = True
) -> tuple[Figure, Sequence[Axes]]:
  """A figure with panels side by side.

  Args:
    size: width and height in inches, such as `WIDE`.
    count: number of panels.
    share_y: whether the panels have one vertical scale.

  Returns:
    The figure and its axes [count].
  """
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(1, count, sharey=share_y, squeeze=False)[0]


def to_png(figure: Figure) -> bytes:
  """Returns the figure as a PNG of `DPI` dots per inch."""
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
  return file.getvalue()


def style_of(name: str, index: int):
  """The look of a series.

  Args:
    name: field name or label. One that ends in a space (h, z, centred z or p)
      has the look of that space in every figure.
    index: place among the series of the figure, which decides otherwise.

  Returns:
    Colour, line style and marker.
  """
  for ending in ("_z_centred", "_h", "_z", "_p"):
    if name.endswith(ending):
      return _STYLES[ending]
  return COLOURS[index % len(COLOURS)]


def name_axes(axes: Axes, x: str, y: str) -> None:
  """Label both axes; steps and layers get whole numbers.

  Args:
    axes: the panel.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
  """
  axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
  if x in ("step", "layer"):
    axes.xaxis.set_major_locator(whole_numbers())


def legend(figure: Figure, axes: Axes, entries: int) -> None:
  """Put a legend above the panels, where it covers no data.

  Args:
    figure: the figure.
    axes: the panel whose series are named.
    entries: number of series; a single one needs no legend.
  """
  if entries > 1:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
      handles,
      labels,
      loc="outside upper left",
      ncols=2 if entries > 3 else entries,
      handlelength=2.6,
      columnspacing=1.6,
    )


def note_left_out(axes: Axes, count: int, what: str, *, positive: bool) -> None:
  """Say in the figure how many values are missing from it.

  Args:
    axes: the panel.
    count: number of values that are missing; 0 says nothing.
    what: what became of them, `not shown` for example.
    positive: whether values must be positive to be shown.
  """
  if count:
    why = "not finite or positive" if positive else "not finite"
    remark(axes, f"{what}: {count} ({why})")


def remark(axes: Axes, text: str) -> None:
  """Write a small grey line above the panel.

  Args:
    axes: the panel.
    text: one line.
  """
  axes.set_title(text, fontsize=8, color=GREY)


def whole_numbers() -> MaxNLocator:
  """Returns a locator that puts ticks at whole numbers only."""
  return MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def log_ticks(axis, low: float, high: float) -> None:
  """Put ticks at powers of ten, and between them where there are few.

  Args:
    axis: the horizontal or vertical axis of a panel.
    low: lower end of the axis, positive.
    high: upper end of the axis.
  """
  wide = high / low > 300
  axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
  axis.set_major_formatter(
    LogFormatterMathtext() if wide else FuncFormatter(lambda v, _: f"{v:g}")
  )
  axis.set_minor_formatter(NullFormatter())
