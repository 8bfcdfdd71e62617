"""What does a sweep look like? The score that is kept against the amount."""

from typing import Any

import numpy as np

from jaxprune.report import figures, page
from jaxprune.report.canvas import Chart
from jaxprune.statistics import Estimate

_DENSE = Estimate(1.0, 1.0, 1.0, 1)  # nothing is removed, everything is kept
_CEILING = 1.5  # of the bands: a few items allow any ratio


def kept_by_amount(entries: list[dict[str, Any]]) -> page.Figure | None:
  """Choice, retrieval and generation in one panel per method.

  Args:
    entries: from `retained.by_use`.

  Returns:
    None where no method has two amounts that are numbers and remove more the
    larger they are: n:m patterns and bits are in the tables only.
  """
  methods: dict[str, dict[str, dict[float, Estimate]]] = {}
  for entry in entries:
    method, _, text = entry["configuration"].partition(":")
    if ":" in text or method.partition("@")[0] in ("rtn", "awq"):
      continue
    line = methods.setdefault(method, {}).setdefault(entry["use"], {})
    line[float(text)] = Estimate.from_json(entry)
  panels = {
    method: {use: _line(points) for use, points in lines.items()}
    for method, lines in methods.items()
    if max(map(len, lines.values())) > 1
  }
  if not panels:
    return None
  return page.Figure(
    chart=_chart(panels),
    caption="Kept of the score above chance, all tasks of a use together, with"
    " 95 % intervals over items, against what is removed: sublayers of a drop,"
    " else the fraction of the weights.",
    alt="Lines that fall from 1 as more is removed, one panel per method.",
    name="kept",
  )


def _chart(panels) -> Chart:
  return figures.small_multiples(panels, x="removed", y="kept")


def _line(points: dict[float, Estimate]) -> figures.Series:
  points = {0.0: _DENSE} | points
  xs = sorted(points)
  line = figures.estimated(np.array(xs), [points[x] for x in xs])
  return figures.Series(
    x=line.x,
    y=line.y,
    low=np.clip(line.low, -_CEILING, _CEILING),
    high=np.clip(line.high, -_CEILING, _CEILING),
  )
