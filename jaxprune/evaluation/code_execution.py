"""Does the code that a model wrote pass the tests of its task?

Code of a model is untrusted. It is never run unless the caller says
`allow_code_execution=True`, and then only isolated (`isolation`), unless the
caller says `without_isolation=True` as well. The program and its tests are two
processes that cannot reach each other (`code_sides`), watched by this one
(`supervision`): what the program prints, raises, exits with or does to its own
interpreter cannot make a wrong answer right. docs/code_execution.md says what
is contained and what is not.

  pass@k = 1 - C(n - c, k) / C(n, k), n samples of which c are right

Reference: Chen et al., HumanEval, arXiv:2107.03374, equation 1; Austin et al.,
MBPP, arXiv:2108.07732.
"""

import ast
import builtins
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.calibration import documents
from jaxprune.evaluation import isolation, supervision
from jaxprune.evaluation.isolation import Limits
from jaxprune.evaluation.supervision import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A program and its tests, which run in different processes.

  Attributes:
    code: Python source that a model wrote.
    tests: trusted source; the program passes if it raises nothing.
    functions: names that the tests take from the program.
    setup: trusted source that runs before the tests, in their process.
  """

  code: str
  tests: str
  functions: tuple[str, ...]
  setup: str = ""

  def request(self) -> dict[str, Any]:
    """What `code_sides.judge` is asked."""
    return {
      "setup": self.setup,
      "functions": self.functions,
      "tests": self.tests,
    }


def humaneval_program(task: Mapping[str, str], completion: str) -> Program:
  """Make one program of a HumanEval task.

  Helpers that the prompt defines are the prompt's own for the tests, whatever
  the completion makes of them.

  Args:
    task: with prompt, test and entry_point.
    completion: continues the prompt; cut at one of `HUMANEVAL_STOP`.
  """
  return Program(
    code=task["prompt"] + completion,
    setup=_whole(task["prompt"]),
    functions=(task["entry_point"],),
    tests=f"{task['test']}\ncheck({task['entry_point']})\n",
  )


def mbpp_program(task: Mapping[str, Any], completion: str) -> Program:
  """Make one program of an MBPP task.

  Args:
    task: with test_list, perhaps test_imports and the reference's code.
    completion: the whole function, with its own imports.
  """
  tests = "\n".join(task["test_list"])
  names, modules = _free_names(tests)
  imports = [*task.get("test_imports", ()), *(f"import {m}" for m in modules)]
  setup = "\n".join(imports)
  own = _bound_names(setup) | set(dir(builtins)) - _bound_names(
    task.get("code", "")
  )
  return Program(
    code=completion,
    setup=setup,
    functions=tuple(sorted(names - own)),
    tests=tests,
  )


def _parsed(source: str) -> ast.Module:
  try:
    return ast.parse(source)
  except (SyntaxError, ValueError):
    return ast.Module(body=[], type_ignores=[])


def _whole(prompt: str) -> str:
  """A prompt as source that can run; "" if it is none."""
  for source in (prompt, prompt + "\n pass\n"):
    if _parsed(source).body:
      return source
  return ""


def _free_names(source: str) -> tuple[set[str], set[str]]:
  """Names that a source takes from elsewhere: others, and Python's modules."""
  nodes = list(ast.walk(_parsed(source)))
  names = [node for node in nodes if isinstance(node, ast.Name)]
  bound = {each.id for each in names if not isinstance(each.ctx, ast.Load)}
  bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
  dotted = {
    node.value.id
    for node in nodes
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  }
  free = {each.id for each in names} - bound - _bound_names(source)
  modules = free & dotted & sys.stdlib_module_names
  return free - modules, modules


def _bound_names(source: str) -> set[str]:
  """Names of the functions and classes that a source defines or imports."""
  names: set[str] = set()
  for node in ast.walk(_parsed(source)):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      names |= {(a.asname or a.name).split(".")[0] for a in node.names}
  return names


# Where one of these begins, the function is over, and so is the completion.
HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert")
MBPP_STOP = ("\nassert", "\nprint", "[DONE]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """How the tasks of one benchmark are asked and scored.

  Attributes:
    name: 'HumanEval' or 'MBPP'.
    fields: that tell it from others; every task has them.
    prompt: from a task to the text that the model continues.
    program: from a task and a completion to a program with tests.
    stop: texts that end a completion.
  """

  name: str
  fields: tuple[str, ...]
  prompt: Callable[[Mapping[str, Any]], str]
  program: Callable[[Mapping[str, Any], str], Program]
  stop: tuple[str, ...]


def mbpp_prompt(task: Mapping[str, Any]) -> str:
  """What is to be written and how it is tested, as a comment."""
  lines = (task["prompt"], "It must pass:", *task["test_list"])
  return "\n".join(f"# {line}" for line in lines) + "\n"


BENCHMARKS = (
  Benchmark(
    name="HumanEval",
    fields=("task_id", "prompt", "test", "entry_point"),
    prompt=lambda task: task["prompt"],
    program=humaneval_program,
    stop=HUMANEVAL_STOP,
  ),
  Benchmark(
    name="MBPP",
    fields=("task_id", "prompt", "test_list"),
    prompt=mbpp_prompt,
    program=mbpp_program,
    stop=MBPP_STOP,
  ),
)


def read_tasks(
  path: str | os.PathLike,
) -> tuple[Benchmark, list[dict[str, Any]]]:
  """Read the tasks of HumanEval or MBPP; the fields of the first tell which.

  Raises:
    ValueError: the file is missing or broken, or holds something else.
  """
  first = documents.read_entries(path, ("task_id", "prompt"))[0]
  for benchmark in BENCHMARKS:
    if all(field in first for field in benchmark.fields):
      return benchmark, documents.read_entries(path, benchmark.fields)
  raise ValueError(
    f"{path}: is neither HumanEval (prompt, test, entry_point) nor MBPP"
    " (prompt, test_list); give one of them"
  )


def run_program(
  program: Program,
  *,
  allow_code_execution: bool = False,
  without_isolation: bool = False,
  limits: Limits | None = None,
) -> Outcome:
  """Run one program and its tests to their end, see the module.

  Args:
    program: from `Benchmark.program`.
    allow_code_execution: must be True; say so only for code that may run here.
    without_isolation: run it as an ordinary process of this user.
    limits: None is the default of `Limits`.

  Raises:
    ValueError: it was not allowed, this system cannot isolate a process and
      that was not allowed either, or the tests cannot be judged from outside.
    OSError: a sandbox did not start.
  """
  if allow_code_execution is not True:
    raise ValueError(
      "running code that a model wrote is off: give"
      " allow_code_execution=True on a machine where it may do harm"
    )
  found = isolation.find(without_isolation=without_isolation)
  return supervision.supervise(
    found, program.code, program.request(), limits or Limits()
  )


def pass_at_k(samples: int, right: int, k: int) -> float:
  """Chance that at least one of k samples is right, without bias.

  Args:
    samples: n, drawn of one task.
    right: c, of these.
    k: at most n.

  Raises:
    ValueError: not 0 <= c <= n or not 1 <= k <= n.
  """
  if not 0 <= right <= samples or not 1 <= k <= samples:
    raise ValueError(
      f"{right} right of {samples} samples, k={k}: k must be from 1 to the"
      " samples, and no more can be right"
    )
  return 1 - math.comb(samples - right, k) / math.comb(samples, k)
