"""Programs that are right, wrong, endless, greedy or curious."""

import gzip
import json
import subprocess

import pytest
import scripts

from jaxprune.evaluation import code_execution
from jaxprune.evaluation.code_execution import Limits, run_program

SHORT = Limits(seconds=1)
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
  return run_program(program, allow_code_execution=True, limits=SHORT)


@pytest.mark.parametrize(
  "allowed", [{}, {"allow_code_execution": False}, {"allow_code_execution": 1}]
)
def test_nothing_runs_unless_allowed(tmp_path, allowed):
  program = f"open({str(tmp_path / 'x')!r}, 'w')"
  with pytest.raises(ValueError, match="allow_code_execution=True"):
    run_program(program, **allowed)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "completion, passed, message",
  [
    ("  return a + b\n", True, ""),
    ("  return a - b\n", False, "AssertionError: sum"),
    ("  return a +\n", False, "SyntaxError: invalid syntax"),
    ("  raise SystemExit(0)\n", False, ""),
    ("  import os; os._exit(0)\n", False, ""),
  ],
)
def test_humaneval(completion, passed, message):
  outcome = run(code_execution.humaneval_program(TASK, completion))
  assert outcome.passed is passed and outcome.message == message
  assert outcome.reason == ("passed" if passed else "failed")


def test_mbpp():
  right = "import math\ndef area(r):\n  return math.pi * r * r"
  assert run(code_execution.mbpp_program(MBPP, right)).passed
  wrong = "def area(r):\n  return 3 * r * r"
  assert run(code_execution.mbpp_program(MBPP, wrong)).reason == "failed"


@pytest.mark.parametrize(
  "program",
  [
    "while True: pass",
    "import time; time.sleep(60)",
    "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\n"
    "while True: pass",
  ],
)
def test_endless(program):
  assert run(program).reason in ("timeout", "limit")


@pytest.mark.parametrize(
  "program",
  ["x = bytearray(2 ** 31)", "x = []\nwhile True: x.append(bytes(10 ** 7))"],
)
def test_memory(program):
  outcome = run(program)
  assert outcome.reason == "limit" and outcome.message == "MemoryError"


def test_file_size_and_output_are_limited():
  for program in (
    "open('f', 'wb').write(bytes(2 ** 24))",
    "while True: print('a' * 999)",
  ):
    outcome = run(program)
    assert not outcome.passed and "File too large" in outcome.message


def test_no_network_no_environment_empty_folder(monkeypatch):
  monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
  refused = run("import socket; socket.create_connection(('127.0.0.1', 9))")
  assert refused.message == "OSError: no network"
  outcome = run(
    "import os, sys\n"
    "assert 'SECRET_OF_THE_CALLER' not in os.environ\n"
    "assert set(os.listdir()) == {'program.py', 'out', 'err'}\n"
    "assert sys.flags.isolated and not sys.argv[1:]\n"
    "assert not sys.stdin.read()\n"
    "open('own', 'w').write('x')"
  )
  assert outcome.passed, outcome.message


def test_nothing_outlives_the_program(tmp_path):
  if "--pid" not in code_execution.namespaces():
    pytest.skip("no process namespace here: only the process group is killed")
  mark = str(tmp_path / "mark")
  assert run(
    "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)',"
    f" {mark!r}], start_new_session=True)"
  ).passed
  found = subprocess.run(
    ["ps", "-eo", "args"], capture_output=True, text=True
  ).stdout
  assert mark not in found


def test_works_without_namespaces(monkeypatch):
  monkeypatch.setattr(code_execution, "namespaces", lambda: ())
  assert run("x = 1").passed
  assert run("while True: pass").reason == "timeout"
  assert (
    "no network"
    in run("import _socket; _socket.socket(_socket.AF_INET)").message
  )


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
def test_reference_solutions_pass(shared):
  with gzip.open(shared / "data/humaneval/HumanEval.jsonl.gz", "rt") as lines:
    tasks = [json.loads(line) for line in lines][::16]
  for task in tasks:
    program = code_execution.humaneval_program(task, task["canonical_solution"])
    assert run_program(program, allow_code_execution=True).passed, task[
      "task_id"
    ]
  path = shared / "data/mbpp/sanitized-mbpp.json"
  for task in json.loads(path.read_text())[::50]:
    program = code_execution.mbpp_program(task, task["code"])
    assert run_program(program, allow_code_execution=True).passed, task[
      "task_id"
    ]


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
  # What is written stands in a string, so the test alone decides.
  path.write_text(
    "\n".join(
      json.dumps(
        {
          "task_id": name,
          "prompt": 'x = """ ',
          "entry_point": name,
          "test": '"""\ncheck = print; one = 1',
        }
      )
      for name in ("one", "two")
    )
  )
  flags = ["--model=pocket", f"--tasks={path}", "--max_new_tokens=4"]
  done = scripts.start("code_tasks", *flags, f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "nothing was run" in done.stdout
  rows = [
    json.loads(line)
    for line in (out / "records.jsonl").read_text().splitlines()
  ]
  assert len(rows) == 2 and not any("value" in row for row in rows)
  done = scripts.start(
    "code_tasks",
    *flags,
    "--allow_code_execution",
    "--overwrite",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  assert summary["pass@1"]["value"] == 0.5 and summary["executed"]
  done = scripts.call("code_tasks", *flags, "--k=2", f"--out={tmp_path}/no")
  assert done.returncode == 1 and "--samples=1" in done.stderr
