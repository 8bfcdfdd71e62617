"""Does the code that a model wrote pass the tests of its task?

Code of a model is untrusted. It is never run unless the caller says
`allow_code_execution=True`, and then only in a process of its own: an isolated
interpreter without environment, in an empty folder that is removed, with limits
on processor time, memory, file size, processes and wall time, and whose whole
process group is killed at the end. Its socket module refuses to work; where the
system has namespaces, there is no network either, and nothing that it started
outlives it.

This stops accidents and simple mischief. It is no jail: the process can still
read what its user can read, and the limit on processes does not hold for root.
Run it as nobody, or in a container, where that matters.

  pass@k = 1 - C(n - c, k) / C(n, k), n samples of which c are right

Reference: Chen et al., HumanEval, arXiv:2107.03374, equation 1; Austin et al.,
MBPP, arXiv:2108.07732.
"""

import dataclasses
import functools
import math
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxprune.calibration import documents

_MEGABYTE = 1 << 20
_OUTPUT = 1 << 16  # bytes of each stream that are kept
# Read by the child before the program, so that nothing of it runs unlimited.
_RUNNER = """
import os, resource, sys
child = os.fork()
if child:  # Tells how the program ended: the first of a namespace cannot.
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  os._exit(code if code >= 0 else 128 - code)
seconds, memory, size, processes, path, token = sys.argv[1:]
for kind, limit, more in (
    (resource.RLIMIT_CPU, int(seconds), 1),
    (resource.RLIMIT_AS, int(memory), 0),
    (resource.RLIMIT_FSIZE, int(size), 0), (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_NPROC, int(processes), 0),
    (resource.RLIMIT_NOFILE, 64, 0)):
  try:
    resource.setrlimit(kind, (limit, limit + more))
  except ValueError:  # the system's own limit is lower still
    pass
import _socket, socket
def _refuse(*args, **options):
  raise OSError("no network")
for module in (socket, _socket):
  for name in ("socket", "create_connection", "getaddrinfo", "socketpair",
               "gethostbyname"):
    if hasattr(module, name):
      setattr(module, name, _refuse)
with open(path, encoding="utf-8") as file:
  code = compile(file.read(), "program", "exec")
del sys.argv[1:]
_write, _out = sys.stdout.write, sys.stdout
exec(code, {"__name__": "__main__"})
_write("\\n" + token + "\\n")
_out.flush()
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What a program may use.

  Attributes:
    seconds: processor time, and wall time plus two.
    memory: bytes of address space.
    file_size: bytes of any file it writes.
    processes: of this user while it runs.
  """

  seconds: int = 5
  memory: int = 512 * _MEGABYTE
  file_size: int = _MEGABYTE
  processes: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a program ended.

  Attributes:
    passed: it ran to its end.
    reason: 'passed', 'failed' (an exception, or it left early), 'timeout', or
      'limit' (memory, or killed by a limit).
    message: the last line of what it said on stderr.
  """

  passed: bool
  reason: str
  message: str


def humaneval_program(task: Mapping[str, str], completion: str) -> str:
  """Make one program of a HumanEval task.

  Args:
    task: with prompt, test and entry_point.
    completion: continues the prompt; cut at one of `HUMANEVAL_STOP`.
  """
  return "\n".join(
    (task["prompt"] + completion, task["test"], f"check({task['entry_point']})")
  )


def mbpp_program(task: Mapping[str, Sequence[str]], completion: str) -> str:
  """Make one program of an MBPP task.

  Args:
    task: with test_list, perhaps test_imports.
    completion: the whole function, with its own imports.
  """
  return "\n".join(
    (completion, *task.get("test_imports", ()), *task["test_list"])
  )


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
  program: Callable[[Mapping[str, Any], str], str]
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
  program: str,
  *,
  allow_code_execution: bool = False,
  limits: Limits | None = None,
) -> Outcome:
  """Run one program to its end, see the module.

  It passes when its last line is reached; leaving by `sys.exit(0)` before the
  tests is a failure.

  Args:
    program: Python source with its tests.
    allow_code_execution: must be True; say so only for code that may run here.
    limits: None is the default of `Limits`.

  Raises:
    ValueError: it was not allowed, or this system cannot limit a process.
  """
  if allow_code_execution is not True:
    raise ValueError(
      "running code that a model wrote is off: give"
      " allow_code_execution=True on a machine where it may do harm"
    )
  if os.name != "posix":
    raise ValueError(
      f"code execution needs limits that {sys.platform} does not have; use"
      " Linux"
    )
  limits = limits or Limits()
  token = secrets.token_hex(16)
  folder = pathlib.Path(tempfile.mkdtemp(prefix="program_"))
  try:
    (folder / "program.py").write_text(program, encoding="utf-8")
    return _run(folder, token, limits)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


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


@functools.cache
def namespaces() -> tuple[str, ...]:
  """The command that takes network and other processes away, if there is one.

  In a process namespace everything ends with the program, whatever it started.
  """
  unshare = shutil.which("unshare")
  if unshare is None:
    return ()
  network = (unshare, "--user", "--map-root-user", "--net")
  for command in ((*network, "--pid", "--fork", "--kill-child"), network):
    done = subprocess.run(
      [*command, sys.executable, "-I", "-S", "-c", "pass"],
      capture_output=True,
      timeout=60,
    )
    if done.returncode == 0:
      return command
  return ()


def _run(folder, token, limits) -> Outcome:
  command = [
    *namespaces(),
    sys.executable,
    "-I",
    "-c",
    _RUNNER,
    str(limits.seconds),
    str(limits.memory),
    str(limits.file_size),
    str(limits.processes),
    str(folder / "program.py"),
    token,
  ]
  with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
    process = subprocess.Popen(
      command,
      cwd=folder,
      stdin=subprocess.DEVNULL,
      stdout=out,
      stderr=err,
      env={"PATH": os.defpath},
      start_new_session=True,
    )
    try:
      status = process.wait(limits.seconds + 2)
    except subprocess.TimeoutExpired:
      status = None
    finally:
      _kill_group(process)
  ended = _tail(folder / "out").split("\n")[-2:-1] == [token]
  message = (_tail(folder / "err").strip().split("\n") or [""])[-1]
  if status == 0 and ended:
    return Outcome(passed=True, reason="passed", message="")
  if status in (None, 128 + signal.SIGXCPU):
    reason = "timeout"
  elif "MemoryError" in message or status in (
    128 + signal.SIGKILL,
    128 + signal.SIGXFSZ,
    128 + signal.SIGSEGV,
  ):
    reason = "limit"
  else:
    reason = "failed"
  return Outcome(passed=False, reason=reason, message=message)


def _kill_group(process) -> None:
  """End the program and everything it started."""
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()


def _tail(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    file.seek(max(0, path.stat().st_size - _OUTPUT))
    return file.read().decode(errors="replace")
