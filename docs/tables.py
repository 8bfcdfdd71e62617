"""Tables of the documentation that are written from the code.

python docs/tables.py

writes them anew between their marks; a test compares them.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from experiments import console  # noqa: E402
from jaxprune.pruning import registry  # noqa: E402
from jaxprune.report import fields, marks  # noqa: E402

_PAGES = ("reference/records.md", "reference/commands.md")


def commands() -> str:
  """The scripts by purpose."""
  return "\n\n".join(
    _table(
      (purpose, ""), ((f"`{name}`", about) for name, about in group.items())
    )
    for purpose, group in console.COMMANDS.items()
  )


def record_fields() -> str:
  """The columns of records.jsonl."""
  return _table(
    ("field", "kind", "unit", "meaning"),
    (
      (f"`{name}`", field.kind, field.unit, field.meaning)
      for name, field in fields.FIELDS.items()
    ),
  )


def methods() -> str:
  """The pruning methods, and what each looks at."""
  rows = []
  for name, row in registry.METHODS.items():
    looks = getattr(row, "statistic", None) or getattr(row, "score", "nothing")
    if getattr(row, "selection", "") in ("random", "reverse"):
      looks = row.selection
    rows.append((f"`{name}`", row.unit.replace("_", " "), f"`{looks}`"))
  return _table(("method", "changes", "looks at"), rows)


TABLES = {"commands": commands, "fields": record_fields, "methods": methods}


def rewritten(page: str) -> str:
  """A page with its tables as the code has them."""
  for name, make in TABLES.items():
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin in page:
      page = marks.replace_between(page, begin, end, f"\n\n{make()}\n\n")
  return page


def pages() -> list[pathlib.Path]:
  """The pages that hold such tables."""
  return [HERE / name for name in _PAGES]


def _table(head, rows) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


if __name__ == "__main__":
  for page in pages():
    page.write_text(rewritten(page.read_text()))
