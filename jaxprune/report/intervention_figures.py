"""How large are effects, and how sure? A dot and a bar per row, as a PNG."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxprune.report import figures
from jaxprune.statistics.bootstrap import Interval


def interval_dots(
  labels: Sequence[str],
  series: Mapping[str, Sequence[Interval | None]],
  *,
  x: str,
  reference: float | None = None,
  log_x: bool = False,
) -> bytes:
  """Estimates with intervals, one row per label, the first on top.

  Args:
    labels: [n], names of the rows.
    series: by label, [n] intervals; None leaves a row empty.
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
  with figures._style():
    width, _ = figures._WIDE
    figure = Figure(
      figsize=(width, 1.1 + 0.26 * len(labels)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if log_x:
      axes.set_xscale("log")
    for index, (name, entries) in enumerate(series.items()):
      if len(entries) != len(labels):
        raise ValueError(
          f"series {name!r} has {len(entries)} entries for {len(labels)}"
          " labels: give one each"
        )
      colour, _, marker = figures._style_of(name, index)
      shown = [
        (row, entry)
        for row, entry in enumerate(entries)
        if entry is not None
        and np.isfinite(entry.estimate)
        and (entry.estimate > 0 or not log_x)
      ]
      left_out += sum(entry is not None for entry in entries) - len(shown)
      at = np.array([row for row, _ in shown]) + 0.5 * (
        (index + 0.5) / count - 0.5
      )
      middle, low, high = (
        np.array([getattr(entry, field) for _, entry in shown], np.float64)
        for field in ("estimate", "low", "high")
      )
      if log_x and len(shown):
        low = np.where(low > 0, low, middle)
      axes.hlines(at, low, high, color=colour, linewidth=1.6)
      axes.plot(middle, at, marker, color=colour, label=figures._label(name))
    if reference is not None:
      axes.axvline(reference, color="#666666", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(figures._label(x))
    figures._note(axes, left_out, "not shown", log_x)
    figures._legend(figure, axes, len(series))
    return figures._png(figure)
