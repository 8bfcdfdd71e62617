"""What does a change that is divided among sublayers look like?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.report import canvas, maps
from jaxprune.report.canvas import Chart, Mark, Scale
from jaxprune.statistics import Estimate, as_estimate, format_number

_SHADES = 4  # of groups of layers, from early to late


def contribution_bars(
  attention: Sequence[Estimate | Mapping[str, Any]],
  mlp: Sequence[Estimate | Mapping[str, Any]],
  *,
  y: str,
  completeness: str,
) -> Chart:
  """Contribution of every sublayer with its interval; two bars per layer.

  Args:
    attention: one estimate per layer, as a summary stores it or not.
    mlp: one estimate per layer.
    y: label of the contributions.
    completeness: how nearly they add up to the change, for the title.
  """
  bars = [list(map(as_estimate, each)) for each in (attention, mlp)]
  ends = [0.0] + [
    end for each in bars for b in each for end in (b.value, b.low, b.high)
  ]
  y_scale, x, ticks = _axes(ends, len(bars[0]))
  marks = [_zero(x, y_scale)]
  for kind, (name, each) in enumerate(zip(("attention", "MLP"), bars)):
    for layer, bar in enumerate(each):
      left, right = layer - 0.4 + 0.4 * kind, layer + 0.4 * kind
      title = f"{name} {layer}: {bar.format()}"
      marks.append(
        _bar(x, y_scale, (left, right), (0.0, bar.value), f"s{kind}", title)
      )
      if np.isfinite(bar.low) and np.isfinite(bar.high):
        middle = x((left + right) / 2)
        marks.append(
          canvas.segment(
            middle, y_scale(bar.low), middle, y_scale(bar.high), "rule"
          )
        )
  panel = _panel(
    (y_scale, x, ticks), marks, x_label="layer", y_label=y, note=completeness
  )
  return Chart(panels=(panel,), legend=(("s0", "attention"), ("s1", "MLP")))


def stacked_steps(
  attention: Mapping[str, np.ndarray],
  mlp: Mapping[str, np.ndarray],
  truth: np.ndarray,
  *,
  y: str,
) -> Chart:
  """Contributions of groups of sublayers at each step, one on the other.

  What is positive is stacked up, what is negative down, so that both together
  are the true change, which is drawn over them as dots.

  Args:
    attention: contributions [steps] of the attention sublayers by group of
      layers, the earliest group first.
    mlp: contributions [steps] of the MLP sublayers by group of layers.
    truth: the change [steps].
    y: label.
  """
  named = [
    (f"{kind}, {name}", f"s{which} shade{index % _SHADES}", values)
    for which, (kind, groups) in enumerate(
      (("attention", attention), ("MLP", mlp))
    )
    for index, (name, values) in enumerate(groups.items())
  ]
  truth = np.asarray(truth, np.float64)
  up, down = np.zeros(len(truth)), np.zeros(len(truth))
  pieces = []
  for label, look, values in named:
    values = np.asarray(values, np.float64)
    base = np.where(values >= 0, up, down)
    pieces.append((label, look, values, base.copy()))
    up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
  y_scale, x, ticks = _axes([0.0, *up, *down, *truth], len(truth))
  marks = [_zero(x, y_scale)]
  for label, look, values, base in pieces:
    for step, value in enumerate(values.tolist()):
      if value:
        title = f"step {step}, {label}: {format_number(value, 3)}"
        ends = (float(base[step]), float(base[step]) + value)
        sides = (step - 0.42, step + 0.42)
        marks.append(_bar(x, y_scale, sides, ends, look, title))
  marks += [
    Mark(
      tag="circle",
      attributes={"class": "truth", "cx": x(s), "cy": y_scale(t), "r": 2.5},
      title=f"step {s}, true: {format_number(t, 3)}",
    )
    for s, t in enumerate(truth.tolist())
  ]
  panel = _panel((y_scale, x, ticks), marks, x_label="step", y_label=y)
  legend = [(look, label) for label, look, _, _ in pieces]
  return Chart(panels=(panel,), legend=(*legend, ("truth", "true")))


def time_influence(panels: Mapping[str, np.ndarray], *, value: str) -> Chart:
  """Heat maps of what each step's change did to each later output.

  Args:
    panels: by group of layers, [causes, outputs]; NaN, before a cause, is
      grey. Row 0 is the text before the first step.
    value: label of the colours, which are symmetric about 0 and the same in
      all panels.
  """
  size = (
    max(
      float(np.nanmax(np.abs(values), initial=0)) for values in panels.values()
    )
    or 1.0
  )
  return Chart(
    panels=tuple(
      maps.map_panel(
        np.asarray(values, np.float64),
        maps.signed_look(size),
        canvas.SQUARE,
        labels=("step", "step changed (−1: text before)"),
        value=value,
        first_row=-1,
        title=title,
        note=_scale_note(size),
      )
      for title, values in panels.items()
    ),
    legend=(("plus", f"adds to {value}"), ("minus", "takes away")),
  )


def pair_table(values: np.ndarray, *, value: str) -> Chart:
  """Heat map of pairs of sublayers: attention 0, MLP 0, attention 1, ...

  Args:
    values: [P, P].
    value: label of the colours, symmetric about 0.
  """
  values = np.asarray(values, np.float64)
  size = float(np.abs(values).max()) or 1.0
  names = [f"{'am'[index % 2]}{index // 2}" for index in range(len(values))]
  left, top, right, bottom = canvas.edges(canvas.SQUARE, [names[-1]])
  last = len(names) - 0.5
  panel = maps.map_panel(
    values,
    maps.signed_look(size),
    canvas.SQUARE,
    labels=("sublayer: a attention, m MLP", ""),
    value=value,
    x_ticks=maps.named_ticks(names, Scale(-0.5, last, left, right)),
    y_ticks=maps.named_ticks(names, Scale(-0.5, last, bottom, top)),
    note=_scale_note(size),
  )
  return Chart(
    panels=(panel,),
    legend=(("plus", f"positive {value}"), ("minus", "negative")),
  )


def _scale_note(size):
  return f"full colour: {format_number(size, 3)}"


def _axes(values, count):
  """The vertical scale of some values, that of `count` places, and ticks."""
  good = [float(value) for value in values if np.isfinite(value)]
  low, high = min(good), max(good)
  pad = 0.05 * (high - low) or 0.5
  y = Scale(low - pad * (low < 0), high + pad, canvas.WIDE[1] - 40, 24)
  ticks = canvas.ticks(y)
  left, _, right, _ = canvas.edges(canvas.WIDE, [t.label for t in ticks])
  return y, Scale(-0.5, max(count, 1) - 0.5, left, right), ticks


def _panel(axes, marks, **about) -> canvas.Panel:
  """Marks over layers or steps, between the axes of `_axes`."""
  y, x, ticks = axes
  return canvas.frame(
    x,
    y,
    canvas.WIDE,
    x_ticks=tuple(canvas.ticks(x, whole=True, most=8)),
    y_ticks=tuple(ticks),
    marks=tuple(marks),
    **about,
  )


def _bar(x, y, sides, ends, look, title) -> Mark:
  low, high = sorted(ends)
  return Mark(
    tag="rect",
    attributes={
      "class": f"fill {look}",
      "x": x(sides[0]),
      "y": y(high),
      "width": round(x(sides[1]) - x(sides[0]), 1),
      "height": round(y(low) - y(high), 1),
    },
    title=title,
  )


def _zero(x, y) -> Mark:
  return canvas.segment(x.start, y(0.0), x.end, y(0.0), "rule")
