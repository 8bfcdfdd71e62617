"""Array names end in letters that jaxprune/shapes.py explains."""

import ast
import functools
import pathlib
import re

import pytest

from jaxprune import shapes

PACKAGE = pathlib.Path(shapes.__file__).parent
# x_BTD, index_I1; not DEFAULT_SEED, which is a constant.
SUFFIX = re.compile(r"_?[a-z][A-Za-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)")
MIXED = re.compile(r"[a-z]\w*_(?=\w*[A-Z])(?=\w*[a-z])[A-Za-z0-9]+")


def listed():
  return re.findall(r"^  ([A-Z])  \S", shapes.__doc__, re.MULTILINE)


@functools.cache
def names(path):
  """Names that a file gives or uses: of values, parameters and attributes."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Name):
      found.add(node.id)
    elif isinstance(node, ast.arg | ast.keyword):
      found.add(node.arg or "")
    elif isinstance(node, ast.Attribute):
      found.add(node.attr)
  return sorted(found)


def suffixes():
  """(name, letters) of every array name in jaxprune/."""
  for path in sorted(PACKAGE.rglob("*.py")):
    for name in names(path):
      if match := SUFFIX.fullmatch(name):
        yield f"{path.relative_to(PACKAGE)}: {name}", match[1]


def test_every_letter_has_one_line():
  assert listed() == sorted(set(listed()))


def test_every_suffix_is_explained():
  known = set(listed()) | set("0123456789")
  unknown = [name for name, letters in suffixes() if not set(letters) <= known]
  assert not unknown, unknown


def test_every_letter_is_used():
  used = {letter for _, letters in suffixes() for letter in letters}
  assert set(listed()) <= used


def test_a_suffix_has_capitals_only():
  mixed = [
    f"{path.relative_to(PACKAGE)}: {name}"
    for path in sorted(PACKAGE.rglob("*.py"))
    for name in names(path)
    if MIXED.fullmatch(name)
  ]
  assert not mixed, mixed


@pytest.mark.parametrize(
  "name, letters",
  [("x_BTD", "BTD"), ("index_I1", "I1"), ("_cut_O", "O"), ("MAX_TOKENS", None)],
)
def test_suffix(name, letters):
  match = SUFFIX.fullmatch(name)
  assert (match and match[1]) == letters
