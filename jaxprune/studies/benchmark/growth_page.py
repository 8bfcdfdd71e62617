"""The page of the suite `scaling`: a figure per piece of work."""

from typing import Any

import numpy as np

from jaxprune.report import RunFolder, figures, page
from jaxprune.studies.benchmark import growth


def write_page(run: RunFolder, summary: dict[str, Any]) -> None:
  """Write report.html and its figures.

  Args:
    run: the run folder.
    summary: of `growth.measure`.
  """
  sections = [
    page.Section(
      title=name, figures=(_figure(name, axes),), tables=(_table(name, axes),)
    )
    for name, axes in summary.items()
  ]
  above = [
    f"{name} by {axis} ({entry['exponent']:.2f} for {entry['expected']})"
    for name, axes in summary.items()
    for axis, entry in axes.items()
    if entry["exponent"] > entry["expected"] + growth.TOLERANCE
  ]
  page.write_report(
    run,
    title="How cost grows",
    verdict=(
      "Nothing grows faster than its arithmetic."
      if not above
      else f"Faster than the arithmetic grow: {', '.join(above)}."
    ),
    finding=None,
    sections=sections,
  )


def _figure(name, axes):
  return page.Figure(
    chart=figures.lines(
      {
        axis: figures.Series(
          x=np.asarray(entry["values"], float) / entry["values"][0],
          y=np.asarray(entry["processor_seconds"]),
        )
        for axis, entry in axes.items()
      },
      x="times the smallest size",
      y="processor seconds",
      log_x=True,
      log_y=True,
    ),
    caption="One size grows, the others stay.",
    alt=f"Processor seconds of {name} against each size, both logarithmic.",
    name=f"growth_{name}",
  )


def _table(name, axes):
  return page.Table(
    caption=f"{name}: slope between the two largest sizes",
    columns=("size", "values", "exponent", "of the arithmetic", "because"),
    rows=[
      (
        axis,
        " ".join(map(str, entry["values"])),
        entry["exponent"],
        float(entry["expected"]),
        entry["reason"],
      )
      for axis, entry in axes.items()
    ],
  )
