"""What does a change that is divided among sublayers look like? PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.report import canvas
from jaxprune.statistics import Estimate, as_estimate

# From early to late layers, for attention and for MLPs.
_BLUES = ("#0b3c5d", "#0072B2", "#56B4E9", "#a6d8f5")
_REDS = ("#7a3300", "#D55E00", "#E69F00", "#f3d08a")


def contribution_bars(
  attention: Sequence[Estimate | Mapping[str, Any]],
  mlp: Sequence[Estimate | Mapping[str, Any]],
  *,
  y: str,
  completeness: str,
) -> bytes:
  """Contribution of every sublayer with its interval; two bars per layer.

  Args:
    attention: one estimate per layer, as a summary stores it or not.
    mlp: one estimate per layer.
    y: label of the contributions.
    completeness: how nearly they add up to the change, for the title.

  Returns:
    A PNG.
  """
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.WIDE)
    for index, (name, bars) in enumerate(
      (("attention", attention), ("MLP", mlp))
    ):
      places = np.arange(len(bars)) + 0.4 * index - 0.2
      heights, low, high = (
        np.array([getattr(as_estimate(bar), field) for bar in bars], np.float64)
        for field in ("value", "low", "high")
      )
      colour = (canvas.BLUE, canvas.VERMILION)[index]
      axes.bar(
        places,
        heights,
        0.38,
        color=colour,
        label=name,
        hatch=(None, "//")[index],
        edgecolor="white",
      )
      axes.vlines(places, low, high, color=canvas.INK, linewidth=1.2)
    axes.axhline(0, color=canvas.GREY, linewidth=0.8)
    canvas.remark(axes, completeness)
    canvas.name_axes(axes, "layer", y)
    canvas.legend(figure, axes, 2)
    return canvas.to_png(figure)


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
    attention: contributions [steps] of the attention sublayers by group of
      layers, the earliest group first.
    mlp: contributions [steps] of the MLP sublayers by group of layers.
    truth: the change [steps].
    y: label.

  Returns:
    A PNG.
  """
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.WIDE)
    places = np.arange(len(truth))
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
          places,
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
    axes.plot(places, truth, "o", color=canvas.INK, markersize=3, label="true")
    axes.axhline(0, color=canvas.GREY, linewidth=0.8)
    canvas.name_axes(axes, "step", y)
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
    return canvas.to_png(figure)


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
  with canvas.style():
    figure, row = canvas.panels(
      canvas.WIDE if len(panels) > 1 else canvas.SQUARE, len(panels)
    )
    for axes, (title, values) in zip(row, panels.items()):
      image = _signed(
        axes,
        values,
        size,
        (-0.5, values.shape[1] - 0.5, -1.5, values.shape[0] - 1.5),
      )
      canvas.name_axes(axes, "step", "")
      axes.set_title(title)
    row[0].set_ylabel("step changed (−1: text before)")
    _colour_bar(figure, image, row, value)
    return canvas.to_png(figure)


def pair_table(values: np.ndarray, *, value: str) -> bytes:
  """Heat map of pairs of sublayers: attention 0, MLP 0, attention 1, ...

  Args:
    values: [P, P].
    value: label of the colours, symmetric about 0.

  Returns:
    A PNG.
  """
  values = np.asarray(values, np.float64)
  with canvas.style():
    figure, (axes,) = canvas.panels(canvas.SQUARE)
    image = _signed(axes, values, float(np.abs(values).max()) or 1.0, None)
    names = [f"{'am'[index % 2]}{index // 2}" for index in range(len(values))]
    every = max(1, len(names) // 16)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_ticks(np.arange(len(names))[::every], names[::every], fontsize=7)
    axes.set_xlabel("sublayer: a attention, m MLP")
    _colour_bar(figure, image, [axes], value)
    return canvas.to_png(figure)


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
