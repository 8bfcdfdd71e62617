"""What does a divided change look like? Bars, times and pairs as PNG bytes."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxprune.report import figures
from jaxprune.statistics.bootstrap import Interval

# Early to late layers, attention and MLP apart.
_BLUES = ("#0b3c5d", "#0072B2", "#56B4E9", "#a6d8f5")
_REDS = ("#7a3300", "#D55E00", "#E69F00", "#f3d08a")


def contribution_bars(
  attention: Sequence[Interval],
  mlp: Sequence[Interval],
  *,
  y: str,
  completeness: str,
) -> bytes:
  """Contribution of every sublayer with its interval; two bars per layer.

  Args:
    attention: one interval per layer.
    mlp: likewise.
    y: label of the contributions.
    completeness: how nearly they add up to the change, for the title.

  Returns:
    A PNG.
  """
  with figures._style():
    figure, (axes,) = figures._figure(figures._WIDE)
    for index, (name, bars) in enumerate(
      (("attention", attention), ("MLP", mlp))
    ):
      at = np.arange(len(bars)) + 0.4 * index - 0.2
      heights, low, high = (
        np.array([getattr(bar, field) for bar in bars], np.float64)
        for field in ("estimate", "low", "high")
      )
      colour = (figures._BLUE, figures._VERMILION)[index]
      axes.bar(
        at,
        heights,
        0.38,
        color=colour,
        label=name,
        hatch=(None, "//")[index],
        edgecolor="white",
      )
      axes.vlines(at, low, high, color=figures._INK, linewidth=1.2)
    axes.axhline(0, color="#666666", linewidth=0.8)
    axes.set_title(completeness, fontsize=8, color="#666666")
    figures._finish(axes, "layer", y)
    figures._legend(figure, axes, 2)
    return figures._png(figure)


def stacked_steps(
  attention: Mapping[str, np.ndarray],
  mlp: Mapping[str, np.ndarray],
  truth: np.ndarray,
  *,
  y: str,
) -> bytes:
  """Contributions of groups of sublayers at each step, one on the other.

  What is positive is stacked up, what is negative down, so that both together
  are the true change, which is drawn over them as dots.

  Args:
    attention: contributions [steps] by group of layers, the earliest first.
    mlp: likewise.
    truth: the change [steps].
    y: label.

  Returns:
    A PNG.
  """
  with figures._style():
    figure, (axes,) = figures._figure(figures._WIDE)
    at = np.arange(len(truth))
    up, down = np.zeros(len(truth)), np.zeros(len(truth))
    count = 1
    for kind, groups, colours, hatch in (
      ("attention", attention, _BLUES, None),
      ("MLP", mlp, _REDS, "//"),
    ):
      for index, (name, values) in enumerate(groups.items()):
        values = np.asarray(values, np.float64)
        base = np.where(values >= 0, up, down)
        axes.bar(
          at,
          values,
          0.85,
          bottom=base,
          hatch=hatch,
          color=colours[index % len(colours)],
          edgecolor="white",
          linewidth=0.3,
          label=f"{kind}, {name}",
        )
        up += np.maximum(values, 0)
        down += np.minimum(values, 0)
        count += 1
    axes.plot(at, truth, "o", color=figures._INK, markersize=3, label="true")
    axes.axhline(0, color="#666666", linewidth=0.8)
    figures._finish(axes, "step", y)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
      handles,
      labels,
      loc="outside upper left",
      ncols=4,
      handlelength=1.6,
      columnspacing=1.2,
      fontsize=7.5,
    )
    return figures._png(figure)


def time_influence(panels: Mapping[str, np.ndarray], *, value: str) -> bytes:
  """Heat maps of what each step's change did to each later output.

  Args:
    panels: by group of layers, [causes, outputs]; NaN, before a cause, is
      grey. Row 0 is the text before the first step.
    value: label of the colours, which are symmetric about 0 and the same in
      all panels.

  Returns:
    A PNG.
  """
  size = (
    max(
      float(np.nanmax(np.abs(values), initial=0)) for values in panels.values()
    )
    or 1.0
  )
  with figures._style():
    figure, row = figures._figure(
      figures._WIDE if len(panels) > 1 else figures._SQUARE, len(panels)
    )
    for axes, (title, values) in zip(row, panels.items()):
      image = _signed(
        axes,
        values,
        size,
        (-0.5, values.shape[1] - 0.5, -1.5, values.shape[0] - 1.5),
      )
      figures._finish(axes, "step", "")
      axes.set_title(title)
    row[0].set_ylabel("step changed (−1: text before)")
    _colour_bar(figure, image, row, value)
    return figures._png(figure)


def pair_table(values: np.ndarray, *, value: str) -> bytes:
  """Heat map of pairs of sublayers: attention 0, MLP 0, attention 1, ...

  Args:
    values: [P, P].
    value: label of the colours, symmetric about 0.

  Returns:
    A PNG.
  """
  values = np.asarray(values, np.float64)
  with figures._style():
    figure, (axes,) = figures._figure(figures._SQUARE)
    image = _signed(axes, values, float(np.abs(values).max()) or 1.0, None)
    names = [f"{'am'[index % 2]}{index // 2}" for index in range(len(values))]
    every = max(1, len(names) // 16)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_ticks(np.arange(len(names))[::every], names[::every], fontsize=7)
    axes.set_xlabel("sublayer: a attention, m MLP")
    _colour_bar(figure, image, [axes], value)
    return figures._png(figure)


def _signed(axes, values, size, extent):
  axes.grid(False)
  axes.set_facecolor("#bbbbbb")
  return axes.imshow(
    np.ma.masked_invalid(values),
    aspect="auto",
    origin="lower",
    cmap="RdBu_r",
    vmin=-size,
    vmax=size,
    interpolation="nearest",
    extent=extent,
  )


def _colour_bar(figure, image, row, value):
  bar = figure.colorbar(image, ax=list(row), pad=0.02)
  bar.set_label(value)
  bar.outline.set_visible(False)
