"""How do templates become a page that is safe and needs nothing else?

Everything that a template shows is escaped. The style sheet and the script are
in the page, and a content policy lets the browser use these two, by their
hashes, and fetch nothing.
"""

import base64
import csv
import functools
import hashlib
import io
import pathlib
import re
import urllib.parse
from typing import Any

import jinja2

from jaxprune.statistics import Estimate, as_estimate, format_number

FOLDER = pathlib.Path(__file__).parent / "templates"
_DIGITS = 2  # significant digits of the width of an interval
# What a page may not contain: control characters, halves of surrogate pairs,
# and marks that reverse the direction of the text behind them.
FORBIDDEN = re.compile(
  "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKS = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})


def render(template: str, **content: Any) -> str:
  """Fill a template of `templates/`.

  Args:
    template: name of the file.
    **content: what it shows; text is escaped.
  """
  return _environment().get_template(template).render(**content)


def read_asset(name: str) -> str:
  """The style sheet or the script, as the page has it.

  Args:
    name: page.css or page.js.
  """
  return (FOLDER / name).read_text(encoding="utf-8")


def csp_hash(text: str) -> str:
  """The hash by which a content policy knows a style sheet or a script.

  Args:
    text: between the tags, to the letter.
  """
  digest = hashlib.sha256(text.encode("utf-8")).digest()
  return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def show_cell(value: Any) -> tuple[str, str]:
  """A cell of a table as text, and the interval behind it or ''."""
  if value is None:
    return "–", ""
  if isinstance(value, bool):
    return ("yes" if value else "no"), ""
  if isinstance(value, (int, float)):
    return format_number(value), ""
  value = as_estimate(value)
  if isinstance(value, Estimate):
    number, _, ends = value.format(_DIGITS).partition(" ")
    return number, ends
  return str(value), ""


def to_csv(table: Any) -> str:
  """The rows of a `page.Table` as an address that holds them as CSV.

  Numbers keep all their digits, and an estimate has three columns. Text that a
  spreadsheet would take for a formula is kept from that by an apostrophe.
  """
  wide = [
    any(isinstance(as_estimate(row[i]), Estimate) for row in table.rows)
    for i in range(len(table.columns))
  ]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  head = zip(table.columns, wide)
  writer.writerow(
    _safe(name)
    for column, three in head
    for name in ((column, f"{column}, low", f"{column}, high")[: 1 + 2 * three])
  )
  for row in table.rows:
    writer.writerow(
      part for cell, three in zip(row, wide) for part in _parts(cell, three)
    )
  plain = FORBIDDEN.sub("\ufffd", text.getvalue())
  return "data:text/csv;charset=utf-8," + urllib.parse.quote(plain)


def _parts(cell, three):
  estimate = as_estimate(cell) if cell is not None else None
  if isinstance(estimate, Estimate):
    parts = [estimate.value, estimate.low, estimate.high]
  else:
    parts = [_safe(cell) if isinstance(cell, str) else cell]
  return parts + [""] * ((3 if three else 1) - len(parts))


def _safe(text):
  return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def show_token(piece: str) -> str:
  """A piece of generated text on one line, with marks for line ends."""
  return piece.translate(_MARKS) or "▫"


def _number(value: float | None) -> str:
  return "–" if value is None else format_number(value, 3)


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=_finalize,
  )
  environment.filters |= {
    "cell": show_cell,
    "csv": to_csv,
    "token": show_token,
    "number": _number,
  }
  style, script = read_asset("page.css"), read_asset("page.js")
  environment.globals |= {
    "style": style,
    "script": script,
    "style_hash": csp_hash(style),
    "script_hash": csp_hash(script),
  }
  return environment


def _finalize(value: Any) -> Any:
  """What a template shows, without what a page may not contain."""
  if isinstance(value, str) and not hasattr(value, "__html__"):
    return FORBIDDEN.sub("\ufffd", value)
  return value  # a number, or the result of a macro, which is clean
