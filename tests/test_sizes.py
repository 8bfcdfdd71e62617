"""What a reader can hold in mind: short mains, few parameters, own names."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
  path
  for folder in ("jaxprune", "experiments")
  for path in sorted((ROOT / folder).rglob("*.py"))
]
# Numbers and names here may only go down.
MOST_PRIVATE_USES = 0
MOST_WIDE_FUNCTIONS = 1


def functions(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield node


def is_private(name):
  return name.startswith("_") and not name.startswith("__")


def private_uses(path):
  """Names with an underscore that a file takes from another one."""
  tree = ast.parse(path.read_text())
  taken = set()
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      for alias in node.names:
        taken.add((alias.asname or alias.name).partition(".")[0])
        if isinstance(node, ast.ImportFrom) and is_private(alias.name):
          yield f"{path.relative_to(ROOT)}: {alias.name}"
  for node in ast.walk(tree):
    if (
      isinstance(node, ast.Attribute)
      and is_private(node.attr)
      and isinstance(node.value, ast.Name)
      and node.value.id in taken
      # The documented way to end a forked process.
      and (node.value.id, node.attr) != ("os", "_exit")
    ):
      yield f"{path.relative_to(ROOT)}: {node.value.id}.{node.attr}"


def test_private_names_stay_in_their_file():
  uses = [use for path in FILES for use in private_uses(path)]
  assert len(uses) <= MOST_PRIVATE_USES, "\n".join(uses)


def test_few_functions_have_more_than_eight_parameters():
  wide = []
  for path in FILES:
    for function in functions(path):
      arguments = function.args
      count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
      if count > 8:
        wide.append(f"{path.relative_to(ROOT)}: {function.name} has {count}")
  assert len(wide) <= MOST_WIDE_FUNCTIONS, "\n".join(wide)


def test_a_main_has_at_most_forty_lines():
  long = []
  for path in (ROOT / "experiments").glob("*.py"):
    for function in functions(path):
      lines = function.end_lineno - function.lineno + 1
      if function.name == "main" and lines > 40:
        long.append(f"{path.stem}: {lines}")
  assert not long


def test_public_functions_of_two_parameters_or_more_have_args():
  bare = []
  for path in FILES:
    for node in ast.parse(path.read_text()).body:
      if not isinstance(node, ast.FunctionDef) or is_private(node.name):
        continue
      arguments = node.args
      count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
      if count >= 2 and "Args:" not in (ast.get_docstring(node) or ""):
        bare.append(f"{path.relative_to(ROOT)}: {node.name}")
  assert not bare, "\n".join(bare)


def test_docstrings_say_it_themselves():
  vague = []
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
        text = ast.get_docstring(node) or ""
        vague += [
          f"{path.relative_to(ROOT)}: {phrase}"
          for phrase in re.findall(r"[Ll]ikewise|\b[Aa]s in `|: as `", text)
        ]
  assert not vague, "\n".join(vague)


def without_types(path):
  """Public functions, of a module or a public class, that leave a type out."""

  def visit(node, inside):
    for child in node.body:
      if isinstance(child, ast.ClassDef) and not is_private(child.name):
        yield from visit(child, True)
      if not isinstance(child, ast.FunctionDef) or is_private(child.name):
        continue
      if inside and child.name.startswith("__") and child.name != "__init__":
        continue
      given = child.args
      named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
      named += [each for each in (given.vararg, given.kwarg) if each]
      result = child.returns is not None or child.name == "__init__"
      typed = [each.annotation is not None for each in named[inside:]]
      if not (result and all(typed)):
        yield f"{path.relative_to(ROOT)}: {child.name}"

  return visit(ast.parse(path.read_text()), False)


def test_public_functions_are_typed():
  files = [path for path in FILES if path.parts[len(ROOT.parts)] == "jaxprune"]
  missing = [each for path in files for each in without_types(path)]
  assert not missing, "\n".join(missing)
