"""Hostile programs: none passes, none reaches anything, none goes on."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from jaxprune.evaluation import isolation, supervision
from jaxprune.evaluation.code_execution import Limits, Program, run_program

SHORT = Limits(seconds=1)
TESTS = "assert abs(add(2, 3) - 5) < 1e-6\nassert sorted([add(1, 1)]) == [2]\n"
WRONG = "\ndef add(a, b): return 0\n"
WORKING = [each for each in isolation.BACKENDS if not isolation.why_not(each)]


@pytest.fixture(params=isolation.BACKENDS, ids=lambda backend: backend.name)
def backend(request):
  reason = isolation.why_not(request.param)
  if reason:
    pytest.skip(f"{request.param.name}: {reason}")
  return request.param


def judge(code, tests=TESTS, backend=None, limits=SHORT, setup=""):
  """The outcome in one backend, else in the first that works."""
  if backend is None:
    if not WORKING:
      pytest.skip("no isolation works on this machine")
    backend = WORKING[0]
  request = {"setup": setup, "functions": ("add",), "tests": tests}
  return supervision.supervise(backend, code, request, limits)


# Each would like a wrong answer to count as right.
FORGERS = {
  "prints what it finds": """
import gc, os, re, sys
seen = [repr(sys.argv), repr(sys.orig_argv), repr(dict(os.environ))]
frame = sys._getframe()
while frame:
  seen += [repr(frame.f_locals), repr(frame.f_globals)]
  frame = frame.f_back
seen += [repr(each)[:999] for each in gc.get_objects()]
for path in ("/proc/self/cmdline", "/proc/self/environ", "/proc/1/environ"):
  if os.path.exists(path):
    seen.append(open(path).read())
for word in set(re.findall("[0-9a-f]{32}", " ".join(seen))) or {"passed"}:
  print(word, flush=True)
  for fd in range(64):
    try:
      os.write(fd, word.encode() + b"\\n")
    except OSError:
      pass
""",
  "exits": "import os; os._exit(0)",
  "exits politely": "raise SystemExit(0)",
  "exits in the function": "import os\ndef add(a, b): os._exit(0)",
  "exits late": "import atexit, os; atexit.register(os._exit, 0)" + WRONG,
  "equals everything": """
class Any(int):
  __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda *args: True
  __sub__ = __abs__ = lambda *args: Any()
  __hash__ = int.__hash__
def add(a, b): return Any()
""",
  "is any object": """
class Any:
  __eq__ = __lt__ = __sub__ = __rsub__ = __abs__ = lambda *args: True
def add(a, b): return Any()
""",
  "shadows builtins": """
import builtins, math
def abs(x): return 0
def sorted(x): return [2]
builtins.abs, builtins.sorted = abs, sorted
AssertionError = builtins.AssertionError = None
builtins.exec = builtins.compile = lambda *args: None
math.isclose = lambda *args: True
def add(a, b): return 0
""",
  "answers without being asked": """
import os
for fd in range(64):
  try:
    os.write(fd, b'{"value": 5}\\n' * 9)
  except OSError:
    pass
""",
  "closes everything": "import os; os.closerange(0, 64)" + WRONG,
  "answers endlessly": "def add(a, b): return 'a' * 10**8",
  "answers deeply": "def add(a, b):\n  for _ in range(10**6): a = [a]\n"
  "  return a",
  "answers with a text that hurts": "def add(a, b): return 10**10**5",
  "removes files": "import shutil\nfor path in '.', '/tmp', '/dev', '/etc':\n"
  "  shutil.rmtree(path, ignore_errors=True)" + WRONG,
  "leaves pipes": "import os\nfor name in 'out', 'err', 'program.py', 'own':\n"
  "  os.mkfifo(name)" + WRONG,
  "leaves links": "import os\nfor name in 'out', 'err', 'program.py', 'own':\n"
  "  os.symlink('/dev/zero', name)" + WRONG,
  "kills": "import os, signal\nfor pid in os.getppid(), 1, -1:\n"
  "  try: os.kill(pid, signal.SIGKILL)\n  except OSError: pass" + WRONG,
}


@pytest.mark.parametrize("code", FORGERS.values(), ids=FORGERS)
def test_no_wrong_answer_passes(code):
  started = time.monotonic()
  assert not judge(code).passed
  assert time.monotonic() - started < 60


# What is used too much of, and the words that say so.
GREEDY = {
  "time": ("while True: pass", "timeout", ""),
  "sleep": ("import time; time.sleep(60)", "timeout", ""),
  "time, stubbornly": (
    "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\n"
    "while True: pass",
    "",  # one limit or the other
    "",
  ),
  "memory": ("x = bytearray(2 ** 31)", "limit", "MemoryError"),
  "memory of a tree": (
    "import os, time\nfor _ in range(3):\n  if not os.fork(): break\n"
    "x = b'x' * (200 << 20)\ntime.sleep(60)",
    "limit",
    "bytes of memory",
  ),
  "output": ("while True: print('a' * 999)", "limit", "wrote more than"),
  "a file": ("open('f', 'wb').write(bytes(2**24))", "failed", "too large"),
  "a folder": (
    "for n in range(99): open(str(n), 'wb').write(bytes(2**20))",
    "failed",
    "No space left",
  ),
}


@pytest.mark.parametrize(
  "code, reason, message", GREEDY.values(), ids=list(GREEDY)
)
def test_too_much_is_stopped(code, reason, message):
  started = time.monotonic()
  patient = Limits(seconds=5)  # so that another limit is met first
  limits = SHORT if reason in ("timeout", "") else patient
  outcome = judge(code + WRONG, limits=limits)
  assert reason in outcome.reason and message in outcome.message, outcome
  assert not outcome.passed
  assert time.monotonic() - started < 60


@pytest.mark.parametrize(
  "code",
  [
    "import os\nwhile True: os.fork()",
    "for n in range(10**7): open(str(n), 'w').close()",
  ],
  ids=["processes", "files"],
)
def test_many_are_stopped(backend, code):
  outcome = judge(code + WRONG, backend=backend)
  assert outcome.reason in ("limit", "failed", "timeout")
  assert any(
    words in outcome.message
    for words in ("than 16 p", "than 256 f", "unavailable", "No space", "early")
  ), outcome
  right = judge("def add(a, b): return a + b", backend=backend)
  assert right.passed, right


# What is seen of /tmp, where a sandbox works: an interpreter that lies there.
INTERPRETER = {
  pathlib.Path(prefix).parts[2]
  for prefix in (sys.prefix, sys.base_prefix)
  if prefix.startswith("/tmp/")
}


def test_nothing_of_the_machine_is_seen_or_changed(
  backend, tmp_path, monkeypatch
):
  secret = tmp_path / "secret"
  secret.write_text("x")
  monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
  server = socket.create_server(("127.0.0.1", 0))
  port = server.getsockname()[1]
  outcome = judge(
    f"""
import os, socket, sys
assert 'SECRET_OF_THE_CALLER' not in os.environ
assert not os.path.exists({str(secret)!r}), 'the files of the caller'
assert not os.path.exists({str(pathlib.Path.home() / ".ssh")!r})
assert set(os.listdir()) <= {INTERPRETER!r}, os.listdir()
assert not os.path.exists('/proc/self') and not os.path.exists('/sys/kernel')
assert os.getuid() == os.geteuid() and not sys.stdin.read()
for path in ('/own', '/usr/own', {str(pathlib.Path(sys.prefix, "own"))!r}):
  try:
    open(path, 'w')
  except OSError:
    continue
  raise AssertionError(path)
for address in ('127.0.0.1', '192.0.2.1'):
  try:
    socket.create_connection((address, {port}), timeout=1)
  except OSError as error:
    assert error.errno in (101, 111), error
  else:
    raise AssertionError('a network')
open('own', 'w').write('x')
def add(a, b): return a + b
""",
    backend=backend,
  )
  server.close()
  assert outcome.passed, outcome


def running(mark):
  """Whether a process has the mark among its arguments."""
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
      if mark.encode() in path.read_bytes().split(b"\0"):
        return True
  return False


def ends(mark):
  deadline = time.monotonic() + 60
  while running(mark) and time.monotonic() < deadline:
    time.sleep(0.1)
  return not running(mark)


def test_nothing_outlives_the_program(backend, tmp_path):
  mark = str(tmp_path / "mark")
  assert judge(
    "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)',"
    f" {mark!r}], start_new_session=True)\ndef add(a, b): return a + b",
    backend=backend,
  ).passed
  assert ends(mark)


@pytest.mark.parametrize("name", ["exits", "equals everything", "leaves pipes"])
def test_nothing_is_forged_without_isolation_either(name):
  outcome = judge(FORGERS[name], backend=isolation.NONE)
  assert not outcome.passed and outcome.reason == "failed"


def test_without_isolation_only_when_told(monkeypatch, request):
  isolation.why_not.cache_clear()
  request.addfinalizer(isolation.why_not.cache_clear)
  monkeypatch.setattr(isolation, "_PATH", "/nowhere")
  code = "def add(a, b): return a + b"
  program = Program(code=code, tests=TESTS, functions=("add",))
  with pytest.raises(ValueError, match="bwrap is not ins.*--without_isol") as e:
    run_program(program, allow_code_execution=True)
  assert "\n" not in str(e.value)
  with pytest.raises(ValueError, match="allow_code_execution=True"):
    run_program(program, without_isolation=True)
  assert run_program(
    program, allow_code_execution=True, without_isolation=True
  ).passed


def test_a_backend_that_isolates_nothing_is_not_believed(monkeypatch):
  monkeypatch.setitem(isolation._NEEDS, "feigned", ())
  feigned = isolation.Isolation(
    name="feigned", folder="/tmp", command=lambda inside, *rest: inside
  )
  assert isolation.why_not(feigned) == "AssertionError: /proc/1 is there"


def test_a_sandbox_that_does_not_start_is_no_failure_of_the_program():
  broken = isolation.Isolation(
    name="broken", folder=None, command=lambda *rest: ["false"]
  )
  with pytest.raises(OSError, match="no sandbox for a program"):
    judge("", backend=broken)


def test_tests_that_cannot_be_judged_stop_the_run():
  with pytest.raises(ValueError, match="hand a function to the program"):
    judge("def add(a): return 5", "add(lambda: 1)", isolation.NONE)


def test_a_killed_caller_leaves_nothing(backend, tmp_path):
  mark = str(tmp_path / "mark")
  inside = [*isolation.PYTHON, "print(flush=True); input()", mark]
  command = backend.command(inside, Limits(), str(tmp_path))
  caller = subprocess.Popen(
    [
      *(sys.executable, "-c"),
      "import subprocess, sys; subprocess.run(sys.argv[1:])",
      *command,
    ],
    env=isolation.ENVIRONMENT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  with caller:
    assert caller.stdout.readline() == b"\n" and running(mark)
    caller.kill()
    caller.wait()
    assert ends(mark)
