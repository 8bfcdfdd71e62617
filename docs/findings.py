"""The figure of the README, drawn from a table of experiments/RESULTS.md.

python docs/findings.py

writes docs/images/findings.svg.
"""

import pathlib
import re
import shutil
import tempfile

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page

HERE = pathlib.Path(__file__).parent
_RESULTS = HERE.parent / "experiments/RESULTS.md"
_HEAD = "| configuration | zeros | choose, accuracy |"
_COLUMNS = (2, 3, 4)
_TASKS = (
  "choose: accuracy, by chance 0.25",
  "retrieve: nDCG@10",
  "generate: exact match",
)
_VALUE = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\]")
_ALT = (
  "Scores of 42 prunings of the pocket model, in the order of what they write."
  " Choosing and retrieving stay near 1 until the last few; writing falls"
  " from 0.99 to 0."
)


def read_table(text: str) -> np.ndarray:
  """Score, low and high of three tasks: [configurations, 3, 3]; dense first.

  Raises:
    ValueError: the results have no such table.
  """
  if _HEAD not in text:
    raise ValueError(f"{_RESULTS}: has no table that begins {_HEAD}")
  lines = text[text.index(_HEAD) :].split("\n\n")[0].splitlines()[2:]
  rows = [
    [
      list(map(float, _VALUE.search(line.split("|")[1 + column]).groups()))
      for column in _COLUMNS
    ]
    for line in lines
  ]
  return np.array(rows)


def chart(scores_CTE: np.ndarray):
  """Score of each task over the prunings, in the order of generate."""
  pruned_CTE = scores_CTE[1:]
  order = np.argsort(-pruned_CTE[:, -1, 0])
  return figures.lines(
    {
      task: figures.Series(
        x=np.arange(1, 1 + len(order)),
        y=pruned_CTE[order, index, 0],
        low=pruned_CTE[order, index, 1],
        high=pruned_CTE[order, index, 2],
      )
      for index, task in enumerate(_TASKS)
    },
    x="prunings of pocket, in the order of generate",
    y="score on the task",
  )


def main() -> None:
  figure = page.Figure(
    chart=chart(read_table(_RESULTS.read_text())),
    caption=_ALT,
    alt=_ALT,
    name="findings",
  )
  about = report.describe_run(flags={}, command=["findings"], seeds={})
  with tempfile.TemporaryDirectory() as folder:
    with report.RunFolder(folder, about) as run:
      page.write_report(
        run,
        title="findings",
        verdict="",
        sections=[page.Section(title="", figures=(figure,))],
      )
    shutil.copy(f"{folder}/figures/findings.svg", HERE / "images")


if __name__ == "__main__":
  main()
