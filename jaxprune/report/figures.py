"""What does a measurement look like? Lines, maps, points and bars as PNG bytes.

Reference: He et al., arXiv:2603.24652, Figs 4 (by layer), 6 (estimate and
truth) and 7 (over steps). Differs from the reference in: nothing is smoothed,
and what cannot be drawn is counted in the figure.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from jaxprune.report import canvas
from jaxprune.report.fields import axis_label
from jaxprune.statistics import Estimate, as_estimate

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


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
  log_y: bool = False,
) -> bytes:
  """Lines with bands, one per entry.

  Args:
    series: by field name (`cos_h`) or by free label.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
    log_y: logarithmic vertical axis; what is not positive leaves a gap.

  Returns:
    A PNG.
  """
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.WIDE)
    _draw(axes, series, log_y)
    canvas.name_axes(axes, x, y)
    canvas.legend(figure, axes, len(series))
    return canvas.to_png(figure)


def lines_by_sublayer(
  attention: Mapping[str, Series],
  mlp: Mapping[str, Series],
  *,
  x: str = "layer",
  y: str = "cosine",
  log_y: bool = False,
  intervals: tuple[Mapping[str, Series], Mapping[str, Series]] = ({}, {}),
) -> bytes:
  """Two panels, attention and MLP, over layers or steps, of one vertical axis.

  Args:
    attention: series of the attention sublayers by field name or label.
    mlp: series of the MLP sublayers, by the same names.
    x: field name or label of the horizontal axis.
    y: field name or label of the vertical axis.
    log_y: logarithmic vertical axis; what is not positive leaves a gap.
    intervals: for attention and MLP, by the same names: where the mean lies,
      `low` to `high` at each x, drawn as bars over the band. NaN draws none.

  Returns:
    A PNG.
  """
  with canvas.style():
    figure, panels = canvas.panels(canvas.WIDE, 2)
    for axes, series, bars, title in zip(
      panels, (attention, mlp), intervals, ("Attention", "MLP")
    ):
      _draw(axes, series, log_y)
      for index, (name, bar) in enumerate(bars.items()):
        axes.vlines(
          bar.x,
          bar.low,
          bar.high,
          color=canvas.style_of(name, index)[0],
          linewidth=2.4,
          alpha=0.7,
        )
      canvas.name_axes(axes, x, y if axes is panels[0] else "")
      axes.set_title(title)
    shown = panels[0] if attention else panels[1]
    canvas.legend(figure, shown, len(attention or mlp))
    return canvas.to_png(figure)


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
    y: field name or label of the rows; row 0 is at the bottom.
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
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.WIDE)
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
    canvas.name_axes(axes, x, y)
    axes.yaxis.set_major_locator(canvas.whole_numbers())
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(axis_label(value))
    bar.outline.set_visible(False)
    canvas.note_left_out(axes, np.sum(~shown), "grey", positive=log)
    return canvas.to_png(figure)


def scatter_against_truth(
  truth: np.ndarray, estimate: np.ndarray, *, x: str, y: str
) -> bytes:
  """Estimates over what they estimate, both logarithmic, with the identity.

  Args:
    truth: [n].
    estimate: [n]. Pairs that are not both finite and positive are left out and
      counted in the figure.
    x: field name or label of the truth.
    y: field name or label of the estimate.

  Returns:
    A PNG.
  """
  truth, estimate = (
    np.asarray(array, np.float64).ravel() for array in (truth, estimate)
  )
  good = np.isfinite(truth) & np.isfinite(estimate)
  good &= (truth > 0) & (estimate > 0)
  truth_shown, estimate_shown = truth[good], estimate[good]
  ends = np.array([1e-3, 1.0])
  if good.any():
    both = np.concatenate([truth_shown, estimate_shown])
    ends = np.array([both.min() / 1.6, both.max() * 1.6])
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.SQUARE)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.plot(ends, ends, color=canvas.GREY, linewidth=1, label="equal")
    axes.plot(
      truth_shown,
      estimate_shown,
      "o",
      color=canvas.BLUE,
      markeredgewidth=0,
      markersize=6 if good.sum() <= canvas.FEW else 4,
      alpha=max(0.15, min(0.8, 60 / max(good.sum(), 1))),
    )
    for axis in (axes.xaxis, axes.yaxis):
      canvas.log_ticks(axis, *ends)
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y))
    axes.legend(loc="upper left", handlelength=1.4)
    canvas.note_left_out(axes, np.sum(~good), "not shown", positive=True)
    return canvas.to_png(figure)


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
  with canvas.style():
    figure, row = canvas.panels(canvas.WIDE, len(panels), share_y=False)
    for axes, (title, labels, dense, pruned, y) in zip(row, panels):
      places = np.arange(len(labels))
      for values, shift, colour, hatch, name in (
        (dense, -0.2, canvas.BLUE, None, "dense"),
        (pruned, 0.2, canvas.VERMILION, "///", "pruned"),
      ):
        values = np.asarray(values, np.float64)
        axes.bar(
          places + shift,
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
        places,
        names,
        rotation=40 if len(places) > 5 else 0,
        ha="right" if len(places) > 5 else "center",
      )
      axes.set(ylabel=axis_label(y), title=title)
      axes.grid(False, axis="x")
    canvas.legend(figure, row[0], 2)
    return canvas.to_png(figure)


def interval_dots(
  labels: Sequence[str],
  series: Mapping[str, Sequence[Estimate | Mapping[str, Any] | None]],
  *,
  x: str,
  reference: float | None = None,
  log_x: bool = False,
) -> bytes:
  """Estimates with intervals, one row per label, the first on top.

  Args:
    labels: [n], names of the rows.
    series: by label, [n] estimates, as a summary stores them or not; None
      leaves a row empty.
    x: field name or label of the horizontal axis.
    reference: where a vertical line is drawn; None draws none.
    log_x: logarithmic; what is not positive is left out and counted in the
      figure.

  Returns:
    A PNG.

  Raises:
    ValueError: a series has not one entry per label.
  """
  left_out, count = 0, max(len(series), 1)
  with canvas.style():
    size = (canvas.WIDE[0], 1.1 + 0.26 * len(labels))  # inches
    figure, (axes,) = canvas.panels(size)
    if log_x:
      axes.set_xscale("log")
    for index, (name, entries) in enumerate(series.items()):
      if len(entries) != len(labels):
        raise ValueError(
          f"series {name!r} has {len(entries)} entries for {len(labels)}"
          " labels: give one each"
        )
      colour, _, marker = canvas.style_of(name, index)
      entries = list(map(as_estimate, entries))
      shown = [
        (row, entry)
        for row, entry in enumerate(entries)
        if entry is not None
        and np.isfinite(entry.value)
        and (entry.value > 0 or not log_x)
      ]
      left_out += sum(entry is not None for entry in entries) - len(shown)
      places = np.array([row for row, _ in shown]) + 0.5 * (
        (index + 0.5) / count - 0.5
      )
      middle, low, high = (
        np.array([getattr(entry, field) for _, entry in shown], np.float64)
        for field in ("value", "low", "high")
      )
      if log_x and len(shown):
        low = np.where(low > 0, low, middle)
      axes.hlines(places, low, high, color=colour, linewidth=1.6)
      axes.plot(middle, places, marker, color=colour, label=axis_label(name))
    if reference is not None:
      axes.axvline(reference, color=canvas.GREY, linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(axis_label(x))
    canvas.note_left_out(axes, left_out, "not shown", positive=log_x)
    canvas.legend(figure, axes, len(series))
    return canvas.to_png(figure)


def score_against_feature(
  feature: np.ndarray,
  kept: np.ndarray,
  learnt: np.ndarray,
  kinds: Mapping[str, np.ndarray],
  *,
  x: str,
  keep: float,
  threshold: float | None,
) -> bytes:
  """Share of the dense score over a feature, a point per pruned model.

  Args:
    feature: float [models], not negative; 0 is drawn left of the least value.
    kept: share of the dense score, float [models].
    learnt: whether the threshold was learnt from it, bool [models].
    kinds: label to bool [models]; each has a marker of its own.
    x: field name or label of the feature.
    keep: share that is called survival, a horizontal line.
    threshold: a vertical line, or None.

  Returns:
    A PNG. Learnt-from models are hollow, others are filled.
  """
  feature, kept = np.asarray(feature, float), np.asarray(kept, float)
  positive = feature[feature > 0]
  if threshold:
    positive = np.append(positive, threshold)
  floor = positive.min() / 2 if positive.size else 1e-3
  shown = np.maximum(feature, floor)
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.WIDE)
    axes.set_xscale("log")
    for index, (name, chosen) in enumerate(kinds.items()):
      colour = canvas.COLOURS[index % len(canvas.COLOURS)][0]
      for hollow, drawn in ((True, chosen & learnt), (False, chosen & ~learnt)):
        axes.plot(
          shown[drawn],
          kept[drawn],
          _MARKERS[index % len(_MARKERS)],
          alpha=0.8,
          color=colour,
          markerfacecolor="none" if hollow else colour,
          label=None if hollow else name,
        )
    axes.axhline(keep, color=canvas.GREY, linewidth=1)
    if threshold is not None:
      axes.axvline(
        max(threshold, floor), color=canvas.INK, linewidth=1, linestyle="--"
      )
    low, high = axes.get_xlim()
    canvas.log_ticks(axes.xaxis, low, high)
    canvas.name_axes(axes, x, "share of the dense score kept")
    zeros = int(np.sum(feature <= 0))
    if zeros:
      canvas.remark(axes, f"{zeros} at 0, drawn at the left edge")
    canvas.legend(figure, axes, len(kinds))
    return canvas.to_png(figure)


def _draw(axes: Axes, series: Mapping[str, Series], log_y: bool) -> None:
  if log_y:
    if not any((np.asarray(line.y) > 0).any() for line in series.values()):
      axes.set_ylim(1e-3, 1)  # a scale needs something to scale to
    axes.set_yscale("log", nonpositive="mask")
  for index, (name, line) in enumerate(series.items()):
    colour, style, marker = canvas.style_of(name, index)
    few = len(line.x) <= canvas.FEW
    axes.plot(
      line.x,
      line.y,
      color=colour,
      linestyle=style,
      label=axis_label(name),
      marker=marker if few else None,
    )
    if line.low is None:
      continue
    axes.fill_between(
      line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0
    )
    if len(line.x) == 1:  # a band without width
      axes.vlines(line.x, line.low, line.high, color=colour, alpha=0.4)
  x_values = {float(x) for line in series.values() for x in line.x}
  if len(x_values) == 1:
    axes.set_xlim(min(x_values) - 0.5, max(x_values) + 0.5)
  if log_y:
    low, high = axes.get_ylim()
    canvas.log_ticks(axes.yaxis, low, high)
