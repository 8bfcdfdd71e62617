"""The figures of the README, drawn from tables of experiments/RESULTS.md.

python docs/findings.py

writes kept.svg (a real model) and findings.svg (pocket) to docs/images.
"""

import dataclasses
import pathlib
import re
import shutil
import tempfile

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page

HERE = pathlib.Path(__file__).parent
_RESULTS = HERE.parent / "experiments/RESULTS.md"
_VALUE = re.compile(r"([\d.−]+) \[([\d.−]+), ([\d.−]+)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  """A figure of one table, a line for each of some columns.

  Attributes:
    name: of the file.
    head: how the table begins.
    columns: what is drawn, by the number of the column.
    x: what the prunings are.
    y: what is drawn.
    alt: what is seen.
  """

  name: str
  head: str
  columns: dict[int, str]
  x: str
  y: str
  alt: str


DRAWINGS = (
  Drawing(
    name="kept",
    head="| | ARC-Easy, 100 | PIQA, 100 | HumanEval, 48 |",
    columns={4: "choosing: ARC-Easy and PIQA", 5: "writing: HumanEval"},
    x="prunings of Qwen2.5-Coder-0.5B, in the order of writing",
    y="kept of the score above chance",
    alt="What prunings of Qwen2.5-Coder-0.5B keep of the score above chance."
    " Choosing falls from 0.87 to 0.52, writing from 1.00 to 0.06.",
  ),
  Drawing(
    name="findings",
    head="| configuration | zeros | choose, accuracy |",
    columns={
      2: "choose: accuracy, by chance 0.25",
      3: "retrieve: nDCG@10",
      4: "generate: exact match",
    },
    x="prunings of pocket, in the order of generate",
    y="score on the task",
    alt="Scores of 42 prunings of the pocket model, in the order of what they"
    " write. Choosing and retrieving stay near 1 until the last few; writing"
    " falls from 0.99 to 0.",
  ),
)


def read_table(drawing: Drawing, text: str) -> np.ndarray:
  """Value, low and high of each column: [prunings, columns, 3].

  The dense model, in the first row, is left out.

  Args:
    drawing: says which table.
    text: of the page.

  Raises:
    ValueError: the page has no such table.
  """
  if drawing.head not in text:
    raise ValueError(f"{_RESULTS}: has no table that begins {drawing.head}")
  table = text[text.index(drawing.head) :].split("\n\n")[0]
  return np.array(
    [
      [_estimate(line.split("|")[1 + column]) for column in drawing.columns]
      for line in table.splitlines()[3:]
    ]
  )


def _estimate(cell: str) -> list[float]:
  numbers = _VALUE.search(cell.replace("-", "−")).groups()
  return [float(number.replace("−", "-")) for number in numbers]


def chart(drawing: Drawing, scores_PCE: np.ndarray):
  """A line with its band for each column, in the order of the last one."""
  order = np.argsort(-scores_PCE[:, -1, 0])
  return figures.lines(
    {
      label: figures.Series(
        x=np.arange(1, 1 + len(order)),
        y=scores_PCE[order, index, 0],
        low=scores_PCE[order, index, 1],
        high=scores_PCE[order, index, 2],
      )
      for index, label in enumerate(drawing.columns.values())
    },
    x=drawing.x,
    y=drawing.y,
  )


def main() -> None:
  text = _RESULTS.read_text()
  drawn = [
    page.Figure(
      chart=chart(drawing, read_table(drawing, text)),
      caption=drawing.alt,
      alt=drawing.alt,
      name=drawing.name,
    )
    for drawing in DRAWINGS
  ]
  about = report.describe_run(flags={}, command=["findings"], seeds={})
  with tempfile.TemporaryDirectory() as folder:
    with report.RunFolder(folder, about) as run:
      page.write_report(
        run,
        title="findings",
        verdict="",
        sections=[page.Section(title="", figures=tuple(drawn))],
      )
    for figure in drawn:
      shutil.copy(f"{folder}/figures/{figure.name}.svg", HERE / "images")


if __name__ == "__main__":
  main()
