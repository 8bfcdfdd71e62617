"""The documentation is true: commands, tables, links and examples.

Every command in a page is parsed by the script that it names, with the flags
that the script has today; a few are run, on a model of two layers.
"""

import ast
import importlib
import itertools
import json
import pathlib
import re
import runpy
import shlex
import tomllib
from unittest import mock

import pytest
import scripts

from experiments import command_line, console, launch

ROOT = scripts.ROOT
PAGES = sorted(
  path
  for pattern in (
    "*.md",
    "docs/**/*.md",
    "experiments/*.md",
    "jaxprune/**/*.md",
  )
  for path in ROOT.glob(pattern)
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = [name for group in console.COMMANDS.values() for name in group]
# What is written for a value that the reader chooses.
OF_THE_READER = {"I": "0", "N": "2"}


def blocks(text, *languages):
  """Fenced code of some languages, with the number of its first line."""
  for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
    if found[1] in languages:
      yield text[: found.start()].count("\n") + 2, found[2]


def commands(page):
  """Words of every command of a page, with the line it begins at."""
  text = page.read_text()
  written = [*blocks(text, "sh")]
  prose = re.sub(r"^```.*?^```", _blank, text, flags=re.M | re.S)
  # In the text, and in indented blocks.
  for found in re.finditer(r"`([^`]+)`|^ {4}(\S(?:\\\n|.)*)", prose, re.M):
    code = " ".join((found[1] or found[2]).replace("\\\n", " ").split())
    if re.match(
      r"(jaxprune|python -m experiments\.\w+|python \S+\.py) \S", code
    ):
      shortened = " ..." if found[1] else ""
      written.append((text[: found.start()].count("\n") + 1, code + shortened))
  for first, code in written:
    code = re.sub(r"\\\n", " ", code)
    for offset, line in enumerate(code.splitlines()):
      lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|>")
      lexer.whitespace_split = True
      words = []
      for word in itertools.chain(lexer, ";"):
        if word == ">":
          next(lexer)  # a file
        elif set(word) <= set("&;|"):
          if words:
            yield first + offset, words
          words = []
        else:
          words.append(word)


def _blank(found):
  return "\n" * found[0].count("\n")


ALL = [
  pytest.param(words, id=f"{page.relative_to(ROOT)}:{line}")
  for page in PAGES
  for line, words in commands(page)
]


def parse(script, *words):
  """Parse the flags of a script by itself, in place of running it."""

  def only_parse(main):
    import sys

    command_line.parse(main, sys.argv)

  with mock.patch.object(launch, "run", only_parse):
    return scripts.call(script, *words)


def script_of(words):
  """The script that a command starts, and its words; None for another one."""
  program = pathlib.Path(words[0]).name
  if program == "jaxprune":
    return words[1], words[2:]
  if program.startswith("python") and words[1] == "-m":
    package, _, name = words[2].rpartition(".")
    if package.endswith("experiments"):
      return name, words[3:]
  return None


@pytest.mark.parametrize("words", ALL)
def test_a_command_is_understood(words):
  # With three dots a command leaves words out, required ones too.
  shortened, words = "..." in words, [word for word in words if word != "..."]
  found = script_of(words)
  if found is None:
    understood_elsewhere(words)
    return
  name, rest = found
  if name in ("--help", "NAME", "COMMAND"):
    return
  assert name in COMMANDS
  if not rest or rest == ["--help"]:
    return
  rest = [
    f"{flag}={OF_THE_READER.get(value, value)}" if equals else word
    for word in rest
    for flag, equals, value in [word.partition("=")]
  ]
  done = parse(name, *rest)
  left_out = shortened and re.search(r"error: .* missing: ", done.stderr)
  assert done.returncode == 0 or left_out, done.stderr


def understood_elsewhere(words):
  """What other programs are called with exists, as far as it is ours."""
  program = pathlib.Path(words[0]).name
  options = [word.partition("=")[0] for word in words if word[:2] == "--"]
  if program.startswith("python") and words[1].endswith(".py"):
    source = (ROOT / words[1]).read_text()
    assert all(f'"{option}"' in source for option in options), words
    return
  if program.startswith("python") and words[1] == "-m":
    assert words[2] in ("venv", "pytest", "build"), words
    return
  if program == "pip":
    for word in words:
      extras = re.search(r"\[([\w,]+)\]", word)
      if extras:
        assert set(extras[1].split(",")) <= {*PROJECT["optional-dependencies"]}
    return
  known = ("apt-get", "cd", "git", "grep", "ruff", "sphinx-build", "run")
  assert program in known, words


def test_commands_were_found():
  by_script = {script_of(p.values[0])[0] for p in ALL if script_of(p.values[0])}
  assert {"quickstart", "compare", "prune", "verify"} <= by_script
  assert len(ALL) > 60


@pytest.mark.parametrize(
  "words, message",
  [
    (["prune", "A", "B", "--sparcity=0.5"], "sparsity"),
    (["prune", "A", "B", "--method=wando"], "wando"),
    (["prune", "A"], "--out missing"),
  ],
)
def test_a_wrong_command_is_not_understood(words, message):
  done = parse(*words)
  assert done.returncode == 1 and message in done.stderr


def test_tables_are_those_of_the_code():
  tables = runpy.run_path(str(ROOT / "docs/tables.py"))
  for page in tables["pages"]():
    text = page.read_text()
    assert tables["rewritten"](text) == text, "run python docs/tables.py"


def test_links_lead_to_files():
  for page in PAGES:
    text = re.sub(r"^```.*?^```", _blank, page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
      if re.match(r"https?:|#", target):
        continue
      file = page.parent / target.partition("#")[0]
      assert file.exists(), f"{page.relative_to(ROOT)}: {target}"


def examples():
  """Python of the pages and of the notebooks."""
  for page in PAGES:
    for line, code in blocks(page.read_text(), "python"):
      yield f"{page.relative_to(ROOT)}:{line}", code
  for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    yield str(path.relative_to(ROOT)), "\n".join(code)


@pytest.mark.parametrize("code", [pytest.param(c, id=n) for n, c in examples()])
def test_an_example_uses_what_is_there(code):
  """Names of jaxprune that examples import or reach exist."""
  tree, known = ast.parse(textual(code)), {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.split(".")[0] == "jaxprune":
          known[alias.asname or "jaxprune"] = importlib.import_module(
            alias.name
          )
    elif isinstance(node, ast.ImportFrom):
      if (node.module or "").split(".")[0] == "jaxprune":
        for alias in node.names:
          known[alias.asname or alias.name] = imported(node.module, alias.name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if hasattr(known.get(node.value.id), "__name__"):
        assert hasattr(known[node.value.id], node.attr), ast.unparse(node)


def textual(code):
  """A block that shows a part of a literal, as one that can be parsed."""
  return code if code[:1] != " " else "{" + code + "}"


def imported(module, name):
  package = importlib.import_module(module)
  if not hasattr(package, name):
    return importlib.import_module(f"{module}.{name}")
  return getattr(package, name)


def test_notebooks_show_what_they_gave():
  for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [c["execution_count"] for c in code] == [*range(1, len(code) + 1)]
    assert outputs and all(o["output_type"] != "error" for o in outputs)
