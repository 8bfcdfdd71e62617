"""What does the whole run look like on one page?

One HTML file that needs nothing else: figures are inside it, and a content
policy forbids the browser to fetch anything or to run another script than the
page's own. Everything that comes from outside is escaped, generated text above
all. It follows the reader's light or dark setting, prints, and fits a phone.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.report import html
from jaxprune.report.canvas import Chart
from jaxprune.report.records import RunFolder
from jaxprune.statistics import Estimate, as_estimate, format_number

__all__ = [
  "Figure",
  "Next",
  "PAPER",
  "Part",
  "Section",
  "Table",
  "Tile",
  "as_parts",
  "estimate_table",
  "estimate_tile",
  "first_sentence",
  "format_number",
  "render_page",
  "write_report",
]

PAPER = "https://arxiv.org/abs/2603.24652"
# A mapping is an estimate as a summary stores it, from `Estimate.to_json`.
Cell = str | int | float | bool | Estimate | Mapping[str, Any] | None
_LINE = 18  # of the legend of a figure's file, pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """Some words of a headline.

  Attributes:
    text: the words.
    tone: good, care or bad, which colours them; '' for none.
  """

  text: str
  tone: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """A number of the first screen.

  Attributes:
    value: as it is shown, with its unit.
    label: what it is.
    ends: its interval, or ''.
    about: what its symbols mean, or ''.
    source: address of the paper that defines them, or ''.
  """

  value: str
  label: str
  ends: str = ""
  about: str = ""
  source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Next:
  """What the reader may want to do next.

  Attributes:
    why: a sentence that ends in a colon.
    command: a command line.
  """

  why: str
  command: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
  """A figure.

  Attributes:
    chart: see `figures`, `maps` and `attribution_figures`.
    caption: what is seen and what to look at.
    alt: what the figure shows, for those who cannot see it.
    name: of its file in figures/, without .svg; '' for none.
  """

  chart: Chart
  caption: str
  alt: str
  name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table.

  Attributes:
    caption: what is in it, with units.
    columns: headings.
    rows: one cell per column; the first names the row. Numbers and
      estimates are aligned to the right; None is shown as a dash.
    folded: what to click on to see the table; '' shows it at once.
  """

  caption: str
  columns: tuple[str, ...]
  rows: Sequence[Sequence[Cell]]
  folded: str = ""

  @property
  def numeric(self) -> list[bool]:
    """Which columns hold numbers only."""
    return [
      _is_numeric([row[index] for row in self.rows])
      for index in range(len(self.columns))
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A heading with what stands under it, in this order.

  Attributes:
    title: heading.
    paragraphs: plain text.
    figures: see Figure.
    tables: see Table.
    folded: what to click on to see it; '' shows it at once.
  """

  title: str
  paragraphs: Sequence[str] = ()
  figures: Sequence[Figure] = ()
  tables: Sequence[Table] = ()
  folded: str = ""


def as_parts(finding: str | Sequence[Part | Mapping[str, str]]) -> list[Part]:
  """A headline as its parts, whether text, parts, or parts of a summary."""
  if isinstance(finding, str):
    return [Part(text=finding)]
  return [part if isinstance(part, Part) else Part(**part) for part in finding]


def list_first(said: Sequence[str], most: int = 4) -> str:
  """The first few of what could be said, and how many more there are.

  Args:
    said: one for each thing.
    most: that are named.
  """
  more = f" and {len(said) - most} more" if len(said) > most else ""
  return ", ".join(said[:most]) + more


def first_sentence(text: str) -> tuple[str, str]:
  """The first sentence of a text, to be its headline, and the rest.

  Args:
    text: sentences; a full stop ends one where a blank and a capital follow, or
      nothing. Blank lines divide paragraphs, which end a sentence too.
  """
  paragraph, _, others = text.partition("\n\n")
  found = re.match(r"(.+?\.) +(?=[A-Z])", paragraph, re.S)
  if not found:
    return paragraph, others
  rest = paragraph[found.end() :]
  return found[1], f"{rest}\n\n{others}" if others else rest


def estimate_tile(
  estimate: Estimate | Mapping[str, Any],
  label: str,
  *,
  unit: str = "",
  scale: float = 1,
  about: str = "",
  source: str = "",
) -> Tile:
  """A tile of an estimate.

  Args:
    estimate: as a summary stores it or not.
    label: what it is.
    unit: behind the number.
    scale: by which the number and its ends are multiplied; 100 for percent.
    about: what its symbols mean.
    source: address of the paper that defines them.
  """
  estimate = as_estimate(estimate)
  scaled = Estimate(
    estimate.value * scale,
    estimate.low * scale,
    estimate.high * scale,
    estimate.count,
  )
  number, _, ends = scaled.format(2).partition(" ")
  value = f"{number} {unit}".strip()
  return Tile(value=value, label=label, ends=ends, about=about, source=source)


def estimate_table(
  caption: str,
  heading: str,
  measures: Mapping[str, str],
  rows: Mapping[str, Mapping[str, Any]],
  *,
  folded: str = "",
) -> Table:
  """A table of stored estimates: a row per thing, a column per measure.

  Args:
    caption: what is in it, with units.
    heading: what the rows are.
    measures: heading of the column by key of the entries of `rows`.
    rows: by the name of the row, the summary's entry: estimates and numbers by
      key. A key that is missing is shown as a dash.
    folded: see Table.
  """
  return Table(
    caption=caption,
    columns=(heading, *measures.values()),
    rows=[
      (name, *(entry.get(key) for key in measures))
      for name, entry in rows.items()
    ],
    folded=folded,
  )


def measure_table(
  caption: str,
  columns: tuple[str, str],
  measures: Mapping[str, str],
  entry: Mapping[str, Any],
  *,
  folded: str = "",
) -> Table:
  """A table of the measures of one thing, a row each.

  Args:
    caption: what is in it, with units.
    columns: headings of the measures and of their values.
    measures: name of the row by key of `entry`.
    entry: the summary's: estimates and numbers by key. A key that is missing
      has no row.
    folded: see Table.
  """
  return Table(
    caption=caption,
    columns=columns,
    rows=[(name, entry[key]) for key, name in measures.items() if key in entry],
    folded=folded,
  )


def write_report(
  run: RunFolder,
  *,
  finding: str | Sequence[Part | Mapping[str, str]] | None = None,
  **content: Any,
) -> None:
  """Write report.html, and figures/NAME.svg for every figure with a name.

  Args:
    run: the open run folder; the page shows its description.
    finding: see `render_page`; by default the first sentence of the verdict.
    **content: of `render_page`, but for `run`.

  Raises:
    ValueError: a row has not one cell per column, or a figure does not say
      what it shows.
  """
  text = render_page(**content, finding=finding, run=run.description)
  for section in content["sections"]:
    for figure in section.figures:
      if figure.name:
        run.write_figure(figure.name, _figure_file(figure))
  run.write_page(text)


def render_page(
  *,
  title: str,
  verdict: str,
  sections: Sequence[Section],
  run: Mapping[str, Any],
  protocol: Mapping[str, Cell] | None = None,
  finding: str | Sequence[Part | Mapping[str, str]] | None = (),
  template: str = "report.html.j2",
  **more: Any,
) -> str:
  """Render report.html.

  Args:
    title: what was measured.
    verdict: the answer in plain words; blank lines divide paragraphs.
    sections: the evidence.
    run: content of run.json, from `records.describe_run`.
    protocol: what else a reader must know to compare or repeat the numbers:
      context length, analysis temperature T, lens, number of prompts.
    finding: the answer in one sentence, the headline; None takes the first
      sentence of the verdict. Where it is empty, the title is the headline.
    template: of `templates/`.
    **more: `about`, the line above the headline; `tiles`, see Tile; `next`,
      see Next; and what the template shows beside.

  Returns:
    An HTML document.

  Raises:
    ValueError: a row has not one cell per column, or a figure does not say
      what it shows.
  """
  if finding is None:
    finding, verdict = first_sentence(verdict)
  for section in sections:
    _check(section)
  content = {
    "about": title if finding else "",
    "tiles": (),
    "next": None,
  } | more
  return html.render(
    template,
    title=title,
    finding=as_parts(finding or title),
    lead=[part.strip() for part in verdict.split("\n\n") if part.strip()],
    sections=sections,
    protocol=_protocol_tables(run, protocol or {}),
    command=run.get("command"),
    paper=PAPER,
    **content,
  )


def _check(section: Section) -> None:
  for table in section.tables:
    for row in table.rows:
      if len(row) != len(table.columns):
        raise ValueError(
          f"table {table.caption!r}: a row has {len(row)} cells and there are"
          f" {len(table.columns)} columns: {list(row)!r:.80}"
        )
  for figure in section.figures:
    if not isinstance(figure.chart, Chart):
      raise ValueError(
        f"figure {figure.caption!r}: not a chart; make one with `figures`"
      )
    if not figure.alt.strip():
      raise ValueError(
        f"figure {figure.caption!r}: alt is empty; say what it shows"
      )


def _figure_file(figure: Figure) -> str:
  """The figure as an SVG file of its own."""
  chart = figure.chart
  top = _LINE * len(chart.legend) + (6 if chart.legend else 0)
  widths = [panel.width for panel in chart.panels]
  return html.render(
    "chart.svg.j2",
    chart=chart,
    alt=figure.alt,
    width=chart.width,
    height=chart.height + top,
    top=top,
    places=list(zip(itertools.accumulate([0, *widths]), chart.panels)),
  )


def _is_numeric(cells) -> bool:
  numbers = (int, float, Estimate, Mapping)
  known = [cell for cell in cells if cell is not None]
  return bool(known) and all(
    isinstance(cell, numbers) and not isinstance(cell, bool) for cell in known
  )


def _protocol_tables(run, protocol) -> list[Table]:
  """What run.json says, first what decides whether numbers are comparable."""
  rows = list(protocol.items())
  hashes = run.get("checkpoint_hash")
  if isinstance(hashes, Mapping):
    rows += [(f"Checkpoint {name}", each) for name, each in hashes.items()]
  else:
    rows.append(("Checkpoint", hashes))
  calibration = dict(run.get("calibration") or {})
  if calibration:
    token_hash = calibration.pop("hash", None)
    rows += [
      ("Calibration", _listed(calibration)),
      ("Calibration tokens", token_hash),
    ]
  rows += [
    (name.capitalize(), _listed(run.get(name) or {}))
    for name in ("seeds", "device", "versions")
  ]
  flags = list((run.get("flags") or {}).items())
  return [
    Table(
      caption=caption,
      columns=(heading, "Value"),
      rows=[(name, _setting(value)) for name, value in chosen],
      folded=folded,
    )
    for caption, heading, chosen, folded in (
      ("What the numbers depend on.", "Setting", rows, "Protocol"),
      ("Every flag of the script.", "Flag", flags, "Flags"),
    )
    if chosen
  ]


def _setting(value) -> Cell:
  """A setting as it was typed: a seed of 12345 is no measurement."""
  kept = value is None or isinstance(value, (bool, Estimate))
  return value if kept else str(value)


def _listed(values: Mapping[str, Any]) -> str:
  return ", ".join(
    f"{name} {_setting(value)}"
    for name, value in values.items()
    if value is not None
  )
