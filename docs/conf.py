"""Sphinx: how these pages are built.

sphinx-build -W -b html docs out/docs
"""

import os
import pathlib
import re

import jaxprune

project = "jaxprune"
author = "The jaxprune authors"
copyright = "The jaxprune authors, Apache-2.0"  # noqa: A001, Sphinx's name
version = release = jaxprune.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"jaxprune {version}"

# run_notebooks.py runs them; here their outputs are shown as they were saved.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
default_role = "code"

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parent
# Pages that lie elsewhere in the checkout, where GitHub looks for them.
_ELSEWHERE = {
  "project/results": "experiments/RESULTS.md",
  "project/building": "BUILD.md",
  "project/contributing": "CONTRIBUTING.md",
  "project/changelog": "CHANGELOG.md",
  "project/pocket": "jaxprune/pocket/model/README.md",
}
_PAGES = {
  _ROOT / path: _HERE / f"{name}.md" for name, path in _ELSEWHERE.items()
}
_PAGES[_ROOT / "README.md"] = _HERE / "index.md"


def _read_page(app, name, source):
  """Put in a page from elsewhere, and let links lead to the pages here."""
  page = _HERE / f"{name}.md"
  file = _ROOT / _ELSEWHERE[name] if name in _ELSEWHERE else page
  text = file.read_text() if name in _ELSEWHERE else source[0]
  app.env.note_dependency(str(file))

  def link(found):
    target, hash_, part = found[1].partition("#")
    there = (file.parent / target).resolve()
    there = _PAGES.get(there, there)
    return f"]({os.path.relpath(there, page.parent)}{hash_}{part})"

  source[0] = re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", link, text)


def _as_restructured_text(app, what, name, obj, options, lines):
  """Docstrings are plain text: keep their stars and bars, tables and examples.

  Sphinx calls this after Napoleon, which has made fields of the sections.
  """
  if what == "module":
    lines[:] = _with_literal_blocks(lines)
  else:
    lines[:] = [_escaped(line) for line in lines]


def _with_literal_blocks(lines: list[str]) -> list[str]:
  """Paragraphs; those that are indented, or in columns, stay as they are."""
  result, literal = [], False
  for line in lines:
    before = not result or not result[-1].strip()
    if line.strip() and before:
      was, literal = literal, line[0] == " " or bool(_COLUMNS.search(line))
      if literal and not was:
        result += ["::", ""]
    result.append(f"  {line}" if literal else _escaped(line))
  return result


# Three blanks within a line.
_COLUMNS = re.compile(r"\S {3,}\S")


def _escaped(line: str) -> str:
  field = re.match(r"\s*:[^:`]+:", line)
  start = field.end() if field else 0
  parts = re.split(r"(``.*?``|`[^`]*`)", line[start:])
  return line[:start] + "".join(
    part if index % 2 else re.sub(r"(?<!\\)([*|]|_(?=\W|$))", r"\\\1", part)
    for index, part in enumerate(parts)
  )


def setup(app):
  app.connect("source-read", _read_page)
  app.connect("autodoc-process-docstring", _as_restructured_text)
