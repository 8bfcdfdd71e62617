"""What does a measurement look like? Every figure as PNG bytes.

The same numbers give the same bytes: the style is set here and not by the
user's configuration, the fonts are those that come with matplotlib, and no date
or version is written. Colours are Okabe and Ito's, which colour-blind readers
can tell apart; line styles and markers repeat the difference for print.

Reference: He et al., arXiv:2603.24652, Figs 4 (by layer), 6 (estimate and
truth) and 7 (over steps). Differs from the reference in: nothing is smoothed,
and what cannot be drawn is counted in the figure.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
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
_WIDE, _SQUARE = (7.5, 3.7), (4.6, 4.4)  # inches
_INK, _FAINT = "#222222", "#d9d9d9"
_BLUE, _VERMILION, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
_STYLES = {
  "_h": (_BLUE, "-", "o"),
  "_z": (_VERMILION, "--", "s"),
  "_z_centred": (_ORANGE, "-.", "D"),
  "_p": (_GREEN, ":", "^"),
}
_OTHERS = (
  (_BLUE, "-", "o"),
  (_VERMILION, "--", "s"),
  (_GREEN, ":", "^"),
  ("#CC79A7", "-.", "D"),
  ("#56B4E9", (0, (5, 1)), "v"),
  ("#000000", (0, (1, 1)), "x"),
  (_ORANGE, (0, (3, 1, 1, 1)), "P"),
)
_FEW = 40  # points up to which each has a marker

_RC = {
  "axes.axisbelow": True,
  "axes.edgecolor": "#666666",
  "axes.grid": True,
  "axes.labelcolor": _INK,
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
  "grid.color": _FAINT,
  "grid.linewidth": 0.6,
  "legend.fontsize": 8.5,
  "legend.frameon": False,
  "lines.linewidth": 1.6,
  "lines.markersize": 4,
  "text.color": _INK,
  "xtick.color": "#444444",
  "ytick.color": "#444444",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
  """One line.

  Attributes:
    x: [n].
    y: [n]; NaN leaves a gap.
    low: lower edge of a band [n], or None.
    high: upper edge, likewise.
  """

  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None


def mean_and_range(x: np.ndarray, values: np.ndarray) -> Series:
  """Mean, least and greatest value at each x, as in Fig 4 of the paper.

  Args:
    x: [rows], a step or a layer.
    values: [rows]; those not finite are left out.
  """
  x, values = np.asarray(x), np.asarray(values, np.float64)
  x, values = x[np.isfinite(values)], values[np.isfinite(values)]
  at = np.unique(x)
  parts = [values[x == one] for one in at]
  return Series(
    x=at,
    y=np.array([part.mean() for part in parts]),
    low=np.array([part.min() for part in parts]),
    high=np.array([part.max() for part in parts]),
  )


def lines(
  series: Mapping[str, Series],
  *,
  x: str = "step",
  y: str = "cosine",
  log_y: bool = False,
) -> bytes:
  """Lines with bands, one per entry.

  Args:
    series: by field name (`cos_h`) or by free label.
    x: field name or label of the horizontal axis.
    y: the same of the vertical one.
    log_y: logarithmic vertical axis; what is not positive leaves a gap.

  Returns:
    A PNG.
  """
  with _style():
    figure, (axes,) = _figure(_WIDE)
    _draw(axes, series, log_y)
    _finish(axes, x, y)
    _legend(figure, axes, len(series))
    return _png(figure)


def lines_by_layer(
  attention: Mapping[str, Series],
  mlp: Mapping[str, Series],
  *,
  y: str = "cosine",
  log_y: bool = False,
) -> bytes:
  """Two panels over layers: attention and MLP, with one vertical axis.

  Args:
    attention: as in `lines`, x is the layer.
    mlp: the same for the MLP sublayers.
    y: field name or label of the vertical axis.
    log_y: as in `lines`.

  Returns:
    A PNG.
  """
  with _style():
    figure, (left, right) = _figure(_WIDE, panels=2)
    for axes, series, title in (
      (left, attention, "Attention"),
      (right, mlp, "MLP"),
    ):
      _draw(axes, series, log_y)
      _finish(axes, "layer", y if axes is left else "")
      axes.set_title(title)
    _legend(figure, left if attention else right, len(attention or mlp))
    return _png(figure)


def heat_map(
  values: np.ndarray,
  *,
  value: str,
  x: str = "step",
  y: str = "layer",
  log: bool = False,
) -> bytes:
  """A number for every layer and step.

  Args:
    values: [rows of y, columns of x], both counted from 0; what is not finite,
      or not positive with `log`, is grey.
    value: field name or label of the colours.
    x: field name or label of the columns.
    y: the same of the rows; row 0 is at the bottom.
    log: logarithmic colours.

  Returns:
    A PNG.

  Raises:
    ValueError: `values` is not a matrix.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise ValueError(
      f"values: shape {list(values.shape)}; give [layers, steps]"
    )
  shown = np.isfinite(values) & ((values > 0) | (not log))
  with _style():
    figure, (axes,) = _figure(_WIDE)
    axes.grid(False)
    axes.set_facecolor("#bbbbbb")
    norm = LogNorm() if log and shown.any() else None
    image = axes.imshow(
      np.ma.masked_array(values, ~shown),
      aspect="auto",
      origin="lower",
      cmap="cividis",
      interpolation="nearest",
      norm=norm,
    )
    _finish(axes, x, y)
    axes.yaxis.set_major_locator(_whole())
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(_label(value))
    bar.outline.set_visible(False)
    _note(axes, np.sum(~shown), "grey", log)
    return _png(figure)


def scatter_against_truth(
  truth: np.ndarray, estimate: np.ndarray, *, x: str, y: str
) -> bytes:
  """Estimates over what they estimate, both logarithmic, with the identity.

  Args:
    truth: [n].
    estimate: [n]. Pairs that are not both finite and positive are left out and
      counted in the figure.
    x: field name or label of the truth.
    y: the same of the estimate.

  Returns:
    A PNG.
  """
  truth, estimate = (
    np.asarray(each, np.float64).ravel() for each in (truth, estimate)
  )
  good = np.isfinite(truth) & np.isfinite(estimate)
  good &= (truth > 0) & (estimate > 0)
  truth_shown, estimate_shown = truth[good], estimate[good]
  ends = np.array([1e-3, 1.0])
  if good.any():
    both = np.concatenate([truth_shown, estimate_shown])
    ends = np.array([both.min() / 1.6, both.max() * 1.6])
  with _style():
    figure, (axes,) = _figure(_SQUARE)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.plot(ends, ends, color="#666666", linewidth=1, label="equal")
    axes.plot(
      truth_shown,
      estimate_shown,
      "o",
      color=_BLUE,
      markeredgewidth=0,
      markersize=6 if good.sum() <= _FEW else 4,
      alpha=max(0.15, min(0.8, 60 / max(good.sum(), 1))),
    )
    for axis in (axes.xaxis, axes.yaxis):
      _log_ticks(axis, *ends)
    axes.set(xlabel=_label(x), ylabel=_label(y))
    axes.legend(loc="upper left", handlelength=1.4)
    _note(axes, np.sum(~good), "not shown", True)
    return _png(figure)


def histogram(
  values: Mapping[str, np.ndarray], *, x: str, bins: int = 40
) -> bytes:
  """How values are distributed; several sets as outlines over common bins.

  Args:
    values: [n] by label; those not finite are left out and counted in the
      figure.
    x: field name or label of the values.
    bins: at most this many; fewer for few values.

  Returns:
    A PNG.
  """
  sets = {
    name: np.asarray(each, np.float64).ravel() for name, each in values.items()
  }
  kept = {name: each[np.isfinite(each)] for name, each in sets.items()}
  left_out = sum(map(len, sets.values())) - sum(map(len, kept.values()))
  together = np.concatenate([*kept.values(), [] if kept else [0.0]])
  most = max(map(len, kept.values()), default=0)
  count = int(np.clip(2 * np.sqrt(most), 5, bins))
  edges = np.histogram_bin_edges(together, count)
  with _style():
    figure, (axes,) = _figure(_WIDE)
    for index, (name, each) in enumerate(kept.items()):
      colour, style, _ = _style_of(name, index)
      axes.hist(
        each,
        edges,
        histtype="stepfilled",
        color=colour,
        alpha=0.18,
        linewidth=0,
      )
      axes.hist(
        each,
        edges,
        histtype="step",
        color=colour,
        linestyle=style,
        linewidth=1.5,
        label=_label(name),
      )
    axes.set(xlabel=_label(x), ylabel="count")
    axes.yaxis.set_major_locator(_whole())
    axes.grid(False, axis="x")
    _note(axes, left_out, "not shown", False)
    _legend(figure, axes, len(kept))
    return _png(figure)


def paired_bars(
  *panels: tuple[str, Sequence[str], np.ndarray, np.ndarray, str],
) -> bytes:
  """Dense beside pruned for a few named things, as in Fig 8 of the paper.

  Args:
    *panels: title, labels [n], dense values [n], pruned values [n], and the
      label of the vertical axis. What is not finite has no bar.

  Returns:
    A PNG.
  """
  with _style():
    figure = Figure(figsize=_WIDE, layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, labels, dense, pruned, y) in zip(row, panels):
      at = np.arange(len(labels))
      for values, shift, colour, hatch, name in (
        (dense, -0.2, _BLUE, None, "dense"),
        (pruned, 0.2, _VERMILION, "///", "pruned"),
      ):
        values = np.asarray(values, np.float64)
        axes.bar(
          at + shift,
          np.where(np.isfinite(values), values, 0),
          0.4,
          color=colour,
          hatch=hatch,
          edgecolor="white",
          label=name,
        )
      # A dollar sign would begin a formula.
      names = [label.replace("$", r"\$") for label in labels]
      axes.set_xticks(
        at,
        names,
        rotation=40 if len(at) > 5 else 0,
        ha="right" if len(at) > 5 else "center",
      )
      axes.set(ylabel=_label(y), title=title)
      axes.grid(False, axis="x")
    _legend(figure, row[0], 2)
    return _png(figure)


def _style():
  """Our style on top of matplotlib's own defaults, whatever the user has."""
  return matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC})


def _figure(size, panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
  return file.getvalue()


def _label(name: str) -> str:
  return axis_label(name)


def _style_of(name: str, index: int):
  """A space has its own look in every figure; others go by their order."""
  for ending in ("_z_centred", "_h", "_z", "_p"):
    if name.endswith(ending):
      return _STYLES[ending]
  return _OTHERS[index % len(_OTHERS)]


def _draw(axes: Axes, series: Mapping[str, Series], log_y: bool) -> None:
  if log_y:
    if not any((np.asarray(line.y) > 0).any() for line in series.values()):
      axes.set_ylim(1e-3, 1)  # a scale needs something to scale to
    axes.set_yscale("log", nonpositive="mask")
  for index, (name, line) in enumerate(series.items()):
    colour, style, marker = _style_of(name, index)
    few = len(line.x) <= _FEW
    axes.plot(
      line.x,
      line.y,
      color=colour,
      linestyle=style,
      label=_label(name),
      marker=marker if few else None,
    )
    if line.low is None:
      continue
    axes.fill_between(
      line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0
    )
    if len(line.x) == 1:  # a band without width
      axes.vlines(line.x, line.low, line.high, color=colour, alpha=0.4)
  at = {float(x) for line in series.values() for x in line.x}
  if len(at) == 1:
    axes.set_xlim(min(at) - 0.5, max(at) + 0.5)
  if log_y:
    low, high = axes.get_ylim()
    _log_ticks(axes.yaxis, low, high)


def _finish(axes: Axes, x: str, y: str) -> None:
  axes.set(xlabel=_label(x), ylabel=_label(y))
  if x in ("step", "layer"):
    axes.xaxis.set_major_locator(_whole())


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
  """One row above the panels, where it covers no data."""
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


def _note(axes: Axes, count, what: str, positive: bool) -> None:
  """Say in the figure how much is missing from it."""
  if count:
    why = "not finite or positive" if positive else "not finite"
    axes.set_title(f"{what}: {count} ({why})", fontsize=8, color="#666666")


def _whole() -> MaxNLocator:
  return MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def _log_ticks(axis, low: float, high: float) -> None:
  """Powers of ten, and plain numbers between them where there are few."""
  wide = high / low > 300
  axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
  axis.set_major_formatter(
    LogFormatterMathtext() if wide else FuncFormatter(lambda v, _: f"{v:g}")
  )
  axis.set_minor_formatter(NullFormatter())


def lines_by_sublayer(
  attention: Mapping[str, Series],
  mlp: Mapping[str, Series],
  *,
  x: str = "layer",
  y: str = "cosine",
  log_y: bool = False,
  intervals: tuple[Mapping[str, Series], Mapping[str, Series]] = ({}, {}),
) -> bytes:
  """Two panels, attention and MLP, over layers or steps, with error bars.

  Args:
    attention: as in `lines`.
    mlp: the same for the MLP sublayers.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
    log_y: as in `lines`.
    intervals: for attention and MLP, by the same names: where the mean lies,
      `low` to `high` at each x, drawn as bars over the band. NaN draws none.

  Returns:
    A PNG.
  """
  with _style():
    figure, panels = _figure(_WIDE, panels=2)
    for axes, series, bars, title in zip(
      panels, (attention, mlp), intervals, ("Attention", "MLP")
    ):
      _draw(axes, series, log_y)
      for index, (name, bar) in enumerate(bars.items()):
        axes.vlines(
          bar.x,
          bar.low,
          bar.high,
          color=_style_of(name, index)[0],
          linewidth=2.4,
          alpha=0.7,
        )
      _finish(axes, x, y if axes is panels[0] else "")
      axes.set_title(title)
    shown = panels[0] if attention else panels[1]
    _legend(figure, shown, len(attention or mlp))
    return _png(figure)
