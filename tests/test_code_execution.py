"""Programs of HumanEval and MBPP; hostile ones are in test_isolation."""

import json

import pytest
import reference_code
import scripts

from jaxprune.evaluation import code_execution, isolation
from jaxprune.evaluation.code_execution import Limits, Program, run_program

SHORT = Limits(seconds=2)
TASK = {
  "prompt": 'def add(a, b):\n  """Add."""\n',
  "entry_point": "add",
  "test": "def check(candidate):\n  assert candidate(2, 3) == 5, 'sum'\n",
}
MBPP = {
  "test_imports": ["import math"],
  "test_list": ["assert area(1) == math.pi", "assert area(0) == 0"],
}


def run(program):
  """The programs of this file are harmless, so they run anywhere."""
  return run_program(
    program, allow_code_execution=True, without_isolation=True, limits=SHORT
  )


@pytest.mark.parametrize(
  "allowed", [{}, {"allow_code_execution": False}, {"allow_code_execution": 1}]
)
def test_nothing_runs_unless_allowed(tmp_path, allowed):
  code = f"open({str(tmp_path / 'x')!r}, 'w')"
  program = Program(code=code, tests="", functions=())
  with pytest.raises(ValueError, match="allow_code_execution=True"):
    run_program(program, **allowed)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "completion, passed, message",
  [
    ("  return a + b\n", True, ""),
    ("  return a - b\n", False, "AssertionError: sum"),
    ("  return a +\n", False, "SyntaxError: invalid syntax (program, line 3)"),
    ("  raise SystemExit(0)\n", False, "the program ended early"),
    ("  import os; os._exit(0)\n", False, "the program ended early"),
  ],
)
def test_humaneval(completion, passed, message):
  outcome = run(code_execution.humaneval_program(TASK, completion))
  assert outcome.passed is passed and outcome.message == message
  assert outcome.reason == ("passed" if passed else "failed")


def test_helpers_of_a_prompt_are_the_tests_own():
  task = {
    "prompt": "def twice(x):\n  return 2 * x\n\n\ndef half(x):\n",
    "entry_point": "half",
    "test": "def check(candidate):\n  assert candidate(twice(3)) == 3\n",
  }
  make = code_execution.humaneval_program
  assert run(make(task, "  return x // 2\n")).passed
  wrong = "  return x\n\n\ndef twice(x):\n  return x\n"
  assert not run(make(task, wrong)).passed


def test_mbpp():
  right = "import math\ndef area(r):\n  return math.pi * r * r"
  assert run(code_execution.mbpp_program(MBPP, right)).passed
  wrong = "def area(r):\n  return 3 * r * r"
  assert run(code_execution.mbpp_program(MBPP, wrong)).reason == "failed"


@pytest.mark.parametrize(
  "tests, reference, functions, setup",
  [
    ("assert set(f(1)) == set([1])", "", ("f",), ""),
    ("assert sum(1, 2) == 3", "def sum(a, b): pass", ("sum",), ""),
    ("assert f(1) == sys.getsizeof(1)", "", ("f",), "import sys"),
    ("x = g(1)\nassert f(x) == [y for y in x]", "", ("f", "g"), ""),
    ("def h(): pass\nassert f(h()) == math.pi", "", ("f",), "import math"),
    ("assert copy(1) == 1", "", ("copy",), ""),
    ("assert f(", "", (), ""),
  ],
)
def test_names_that_mbpp_takes_from_the_program(
  tests, reference, functions, setup
):
  task = {"test_list": tests.split("\n"), "code": reference}
  program = code_execution.mbpp_program(task, "")
  assert (program.functions, program.setup) == (functions, setup)


@pytest.mark.parametrize(
  "samples, right, k, expected",
  [
    (5, 0, 1, 0),
    (5, 5, 1, 1),
    (5, 1, 1, 1 / 5),
    (5, 1, 5, 1),
    (5, 2, 2, 1 - 3 / 10),
    (4, 2, 3, 1),
    (200, 3, 10, 1 - (190 * 189 * 188) / (200 * 199 * 198)),
  ],
)
def test_pass_at_k_by_hand(samples, right, k, expected):
  found = code_execution.pass_at_k(samples, right, k)
  assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
  "arguments", [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)]
)
def test_bad_pass_at_k(arguments):
  with pytest.raises(ValueError, match="k must be"):
    code_execution.pass_at_k(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name, every", [*zip(reference_code.FILES, (16, 50))])
def test_reference_solutions_pass(shared, name, every):
  """All of them: `python tests/reference_code.py`."""
  working = [b for b in isolation.BACKENDS if not isolation.why_not(b)]
  backend = [*working, isolation.NONE][0]
  path = shared / "data" / name
  for task, outcome in reference_code.outcomes(path, backend, every):
    assert outcome.passed, (task, outcome)


def test_benchmarks_are_told_by_their_fields(tmp_path):
  path = tmp_path / "tasks.jsonl"
  named = TASK | {"task_id": "x/0"}
  path.write_text(json.dumps(named))
  kind, tasks = code_execution.read_tasks(path)
  assert kind.name == "HumanEval" and kind.prompt(tasks[0]) == TASK["prompt"]
  assert run(kind.program(tasks[0], "  return a + b")).passed
  assert not run(kind.program(tasks[0], "  return a - b")).passed
  path.write_text(json.dumps([MBPP | {"task_id": 7, "prompt": "An area."}]))
  kind, tasks = code_execution.read_tasks(path)
  assert kind.prompt(tasks[0]) == (
    "# An area.\n# It must pass:\n# assert area(1) == math.pi\n"
    "# assert area(0) == 0\n"
  )
  right = "def area(r):\n  return math.pi * r * r"
  assert run(kind.program(tasks[0], "import math\n" + right)).passed
  path.write_text(json.dumps({"task_id": 1, "prompt": "x"}))
  with pytest.raises(ValueError, match="neither HumanEval .* nor MBPP"):
    code_execution.read_tasks(path)
  path.write_text(json.dumps([named, {"task_id": 2, "prompt": "", "test": ""}]))
  with pytest.raises(ValueError, match="entry 1: has no field entry_point"):
    code_execution.read_tasks(path)
  path.write_text("[]")
  with pytest.raises(ValueError, match="no entry"):
    code_execution.read_tasks(path)


@pytest.mark.slow
def test_the_script_runs_code_only_when_told(tmp_path):
  path, out = tmp_path / "tasks.jsonl", tmp_path / "out"
  # What is written stands behind a #, so the test alone decides.
  path.write_text(
    "\n".join(
      json.dumps(
        {
          "task_id": str(answer),
          "prompt": "def f():\n  return 1  # ",
          "entry_point": "f",
          "test": f"def check(f):\n  assert f() == {answer}",
        }
      )
      for answer in (1, 2)
    )
  )
  flags = ["--model=pocket", f"--tasks={path}", "--max_new_tokens=4"]
  done = scripts.call("code_tasks", *flags, f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "nothing was run" in done.stdout
  rows = [
    json.loads(line)
    for line in (out / "records.jsonl").read_text().splitlines()
  ]
  assert len(rows) == 2 and not any("value" in row for row in rows)
  done = scripts.call(
    "code_tasks",
    *flags,
    "--allow_code_execution",
    "--without_isolation",
    "--overwrite",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  assert summary["pass@1"]["value"] == 0.5 and summary["executed"]
  assert summary["isolation"] == "none"
  assert (
    "of 2 tasks of HumanEval are solved" in (out / "report.html").read_text()
  )
  done = scripts.call("code_tasks", *flags, "--k=2", f"--out={tmp_path}/no")
  assert done.returncode == 1 and "--samples=1" in done.stderr
