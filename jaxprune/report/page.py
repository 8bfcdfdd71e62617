"""What does the whole run look like on one page?

One HTML file that needs nothing else: figures are inside it, there is no script
and no link to anywhere, and a content policy forbids the browser to fetch
anything. Everything that comes from outside is escaped, generated text above
all. It follows the reader's light or dark setting, prints, and fits a phone.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.report.canvas import DPI
from jaxprune.report.records import RunFolder
from jaxprune.report.stylesheet import DOCUMENT, STYLE
from jaxprune.statistics import Estimate, as_estimate, format_number

__all__ = [
  "Figure",
  "Section",
  "Table",
  "estimate_table",
  "format_number",
  "render_page",
  "write_report",
]

# A mapping is an estimate as a summary stores it, from `Estimate.to_json`.
Cell = str | int | float | bool | Estimate | Mapping[str, Any] | None
_DIGITS = 2  # significant digits of the width of an interval
_SCREEN_DPI = 96  # of a CSS inch


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
  """A figure.

  Attributes:
    png: bytes, see `figures`.
    caption: what is seen and what to look at.
    alt: what the figure shows, for those who cannot see it.
    name: of its file in figures/, without .png; '' for none.
  """

  png: bytes
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
  """

  caption: str
  columns: tuple[str, ...]
  rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """A heading with what stands under it, in this order.

  Attributes:
    title: heading.
    paragraphs: plain text.
    tables: see Table.
    figures: see Figure.
  """

  title: str
  paragraphs: Sequence[str] = ()
  tables: Sequence[Table] = ()
  figures: Sequence[Figure] = ()


def estimate_table(
  caption: str,
  heading: str,
  measures: Mapping[str, str],
  rows: Mapping[str, Mapping[str, Any]],
) -> Table:
  """A table of stored estimates: a row per thing, a column per measure.

  Args:
    caption: what is in it, with units.
    heading: what the rows are.
    measures: heading of the column by key of the entries of `rows`.
    rows: by the name of the row, the summary's entry: estimates and numbers by
      key. A key that is missing is shown as a dash.
  """
  return Table(
    caption=caption,
    columns=(heading, *measures.values()),
    rows=[
      (name, *(entry.get(key) for key in measures))
      for name, entry in rows.items()
    ],
  )


def write_report(
  run: RunFolder,
  *,
  title: str,
  verdict: str,
  sections: Sequence[Section],
  protocol: Mapping[str, Cell] | None = None,
) -> None:
  """Write report.html, and figures/NAME.png for every figure with a name.

  Args:
    run: the open run folder; the page shows its description.
    title: what was measured.
    verdict: the answer in plain words; blank lines divide paragraphs.
    sections: the evidence.
    protocol: what else a reader must know to compare or repeat the numbers.

  Raises:
    ValueError: a row has not one cell per column, or a figure is not a PNG.
  """
  text = render_page(
    title=title,
    verdict=verdict,
    sections=sections,
    run=run.description,
    protocol=protocol,
  )
  for section in sections:
    for figure in section.figures:
      if figure.name:
        run.write_figure(figure.name, figure.png)
  run.write_page(text)


def render_page(
  *,
  title: str,
  verdict: str,
  sections: Sequence[Section],
  run: Mapping[str, Any],
  protocol: Mapping[str, Cell] | None = None,
) -> str:
  """Render report.html.

  Args:
    title: what was measured.
    verdict: the answer in plain words; blank lines divide paragraphs.
    sections: the evidence.
    run: content of run.json, from `records.describe_run`.
    protocol: what else a reader must know to compare or repeat the numbers:
      context length, analysis temperature T, lens, number of prompts.

  Returns:
    An HTML document.

  Raises:
    ValueError: a row has not one cell per column, a figure is not a PNG, or
      its alternative text is missing.
  """
  body = [
    f"<h1>{_text(title)}</h1>",
    '<section class="verdict" aria-label="Verdict">',
    *_paragraphs(verdict.split("\n\n")),
    "</section>",
    *(line for section in sections for line in _section(section)),
    *_section(
      Section(
        title="How this was measured",
        tables=_protocol_tables(run, protocol or {}),
      )
    ),
  ]
  return DOCUMENT.format(title=_text(title), style=STYLE, body="\n".join(body))


# What HTML may not contain: control characters and halves of surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _text(value: Any) -> str:
  return html.escape(_FORBIDDEN.sub("\ufffd", str(value)))


def _paragraphs(paragraphs):
  return [
    f"<p>{_text(each.strip())}</p>" for each in paragraphs if each.strip()
  ]


def _section(section: Section) -> list[str]:
  return [
    "<section>",
    f"<h2>{_text(section.title)}</h2>",
    *_paragraphs(section.paragraphs),
    *map(_table, section.tables),
    *map(_figure, section.figures),
    "</section>",
  ]


def _figure(figure: Figure) -> str:
  if not figure.png.startswith(b"\x89PNG\r\n\x1a\n"):
    raise ValueError(
      f"figure {figure.caption!r}: not a PNG; give the bytes of one"
    )
  if not figure.alt.strip():
    raise ValueError(
      f"figure {figure.caption!r}: alt is empty; say what it shows"
    )
  # The size is read from the header of the PNG, so that the figure is sharp on
  # dense screens and the browser knows its size before it decodes it.
  width, height = (
    round(
      int.from_bytes(figure.png[offset : offset + 4], "big") * _SCREEN_DPI / DPI
    )
    for offset in (16, 20)
  )
  data = base64.b64encode(figure.png).decode("ascii")
  return (
    f'<figure>\n<img src="data:image/png;base64,{data}"'
    f' alt="{_text(figure.alt)}" width="{width}" height="{height}">\n'
    f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>"
  )


def _table(table: Table) -> str:
  for row in table.rows:
    if len(row) != len(table.columns):
      raise ValueError(
        f"table {table.caption!r}: a row has {len(row)} cells and there are"
        f" {len(table.columns)} columns: {list(row)!r:.80}"
      )
  numeric = [
    _is_numeric([row[index] for row in table.rows])
    for index in range(len(table.columns))
  ]

  def line(tags, cells):
    return (
      "<tr>"
      + "".join(
        f"<{tag}{' class=num' if right else ''}>{cell}</{tag.split()[0]}>"
        for tag, right, cell in zip(tags, numeric, cells)
      )
      + "</tr>"
    )

  tags = ['th scope="row"'] + ["td"] * (len(table.columns) - 1)
  return "\n".join(
    [
      f"<figure>\n<figcaption>{_text(table.caption)}</figcaption>",
      '<div class="scroll" tabindex="0" role="region"'
      f' aria-label="{_text(table.caption)}">',
      "<table>",
      "<thead>",
      line(['th scope="col"'] * len(table.columns), map(_text, table.columns)),
      "</thead>",
      "<tbody>",
      *(line(tags, map(_cell, row)) for row in table.rows),
      "</tbody>",
      "</table>\n</div>\n</figure>",
    ]
  )


def _is_numeric(cells) -> bool:
  numbers = (int, float, Estimate, Mapping)
  known = [cell for cell in cells if cell is not None]
  return bool(known) and all(
    isinstance(cell, numbers) and not isinstance(cell, bool) for cell in known
  )


def _cell(value: Cell) -> str:
  if value is None:
    return "–"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, (int, float)):
    return format_number(value)
  value = as_estimate(value)
  if isinstance(value, Estimate):
    number, _, ends = value.format(_DIGITS).partition(" ")
    return f'{number} <span class="ends">{ends}</span>' if ends else number
  return _text(value)


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
  rows.append(("Command", run.get("command")))
  flags = list((run.get("flags") or {}).items())
  return [
    Table(
      caption=caption,
      columns=(heading, "Value"),
      rows=[(name, _setting(value)) for name, value in chosen],
    )
    for caption, heading, chosen in (
      ("Protocol", "Setting", rows),
      ("Flags", "Flag", flags),
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
