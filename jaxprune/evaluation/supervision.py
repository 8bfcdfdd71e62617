"""What becomes of a program, watched from outside until there is a verdict.

`code_sides` runs twice, once with the program and once with its tests, each in
a sandbox. This side holds all pipes, counts what comes through them, looks at
the memory, processes and files of both every few hundredths of a second, and
ends both. A program has passed when the tests say the word that only their
process was given; nothing that the program prints, writes or exits with counts.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import secrets
import selectors
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from jaxprune.evaluation import code_sides
from jaxprune.evaluation.isolation import ENVIRONMENT, PYTHON, Isolation, Limits

_TICK = 0.02  # seconds between two looks at a process
_MOST_READ = 1 << 16
_TAIL = 4096  # bytes of what a process says that are kept
_WRAPPERS = 3  # processes of the isolation itself
_AFTER = 1.0  # seconds for a process to end after its last word
_LIMIT_SIGNALS = tuple(
  128 + number for number in (signal.SIGKILL, signal.SIGXFSZ, signal.SIGSEGV)
)
_SIGNALS = (128 + signal.SIGXCPU, *_LIMIT_SIGNALS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a program ended.

  Attributes:
    passed: its tests ran to their end.
    reason: 'passed', 'failed' (an exception, or it left early), 'timeout', or
      'limit' (it used too much, or was killed).
    message: the exception or the limit, one line.
  """

  passed: bool
  reason: str
  message: str


class _Side:
  """One of the two processes.

  Attributes:
    process: the outermost of its sandbox.
    said: the end of what it wrote on stdout and stderr.
    length: bytes of all that it wrote.
    idle: whether none of its processes wanted to compute at the last look.
  """

  def __init__(self, process: subprocess.Popen):
    self.process = process
    self.said = b""
    self.length = 0
    self.idle = False

  def hear(self, data: bytes) -> None:
    self.said = (self.said + data)[-_TAIL:]
    self.length += len(data)

  def status(self) -> int | None:
    """Exit status, 128 and the signal for a signal; None if it goes on."""
    try:
      code = self.process.wait(_AFTER)
    except subprocess.TimeoutExpired:
      return None
    return code if code >= 0 else 128 - code

  def last_line(self) -> str:
    lines = self.said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

  def end(self) -> None:
    """Kill it and, where it is isolated, everything it started."""
    if self.process.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    self.process.stdout.close()

  def excess(self, isolation: Isolation, limits: Limits) -> str:
    """What it uses too much of; "" if nothing."""
    if self.length > limits.output:
      return f"wrote more than {limits.output} bytes"
    processes = _tree(self.process.pid, limits.processes + _WRAPPERS)
    self.idle = not any(map(_runs, processes))
    if len(processes) > limits.processes + _WRAPPERS:
      return f"more than {limits.processes} processes"
    if sum(map(_resident, processes)) > limits.memory:
      return f"more than {limits.memory} bytes of memory"
    if isolation.folder and _files(processes[-1]) > limits.files:
      return f"more than {limits.files} files"
    return ""


def supervise(
  isolation: Isolation, program: str, request: Mapping[str, Any], limits: Limits
) -> Outcome:
  """Run a program and its tests, and end both.

  Args:
    isolation: of both, from each other and from the machine.
    program: Python source that is not trusted.
    request: for `code_sides.judge`.
    limits: for each of the two.

  Raises:
    ValueError: the tests want what cannot be judged from outside.
    OSError: a sandbox did not start.
  """
  token = secrets.token_hex(16)
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(
      tempfile.TemporaryDirectory(prefix="program_", ignore_cleanup_errors=True)
    )
    calls, replies, verdict = (_Pipe(stack) for _ in range(3))

    def start(name, content, *fds):
      inside = _command(name, limits, isolation.folder or folder, fds)
      process = _popen(
        isolation.command(inside, limits, folder), content, folder, fds
      )
      side = _Side(process)
      stack.callback(side.end)
      return side

    sides = (
      start("program", {"code": program}, calls.reading, replies.writing),
      start(
        "tests",
        {**request, "token": token},
        *(replies.reading, calls.writing, verdict.writing),
      ),
    )
    for pipe in (calls, replies):
      pipe.close_reading()
    for pipe in (calls, replies, verdict):
      pipe.close_writing()
    said, stopped = _watch(sides, verdict.reading, isolation, limits)
    if said == token:
      return Outcome(passed=True, reason="passed", message="")
    return stopped or _failure(said, *sides)


class _Pipe:
  """Two file descriptors that are closed at the end, or before."""

  def __init__(self, stack: contextlib.ExitStack):
    self.reading, self.writing = os.pipe()
    self._reading = stack.enter_context(os.fdopen(self.reading, "rb", 0))
    self._writing = stack.enter_context(os.fdopen(self.writing, "wb", 0))

  def close_reading(self) -> None:
    self._reading.close()

  def close_writing(self) -> None:
    self._writing.close()


@functools.cache
def _source() -> str:
  return pathlib.Path(code_sides.__file__).read_text(encoding="utf-8")


def _command(name, limits, folder, fds) -> list[str]:
  packages = sysconfig.get_path("purelib")
  options = json.dumps(dataclasses.asdict(limits))
  python = [*PYTHON, _source()]
  return [*python, name, options, folder, packages, *map(str, fds)]


def _popen(command, content, folder, fds) -> subprocess.Popen:
  """Start one process; what it is to do lies in a file without a name."""
  with tempfile.TemporaryFile() as file:
    file.write(json.dumps(content).encode())
    file.seek(0)
    return subprocess.Popen(
      command,
      cwd=folder,
      env=ENVIRONMENT,
      stdin=file,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      pass_fds=fds,
      start_new_session=True,
    )


def _watch(sides, verdict, isolation, limits) -> tuple[str, Outcome | None]:
  """Wait for a verdict, the end of the time, or too much of something.

  Returns:
    What the tests said, and how they were stopped; None if they were not.
  """
  said, idle = b"", 0.0
  started = looked = time.monotonic()
  with selectors.DefaultSelector() as selector:
    selector.register(verdict, selectors.EVENT_READ)
    for side in sides:
      selector.register(side.process.stdout, selectors.EVENT_READ, side)
    while True:
      for key, _ in selector.select(_TICK):
        data = os.read(key.fd, _MOST_READ)
        if key.data is not None:
          key.data.hear(data)
          if not data:
            selector.unregister(key.fileobj)
        elif not data:
          return said.decode(), None
        else:
          said += data
      now = time.monotonic()
      if now < looked + _TICK:
        continue
      for side in sides:
        excess = side.excess(isolation, limits)
        if excess:
          return "", Outcome(passed=False, reason="limit", message=excess)
      if all(side.idle for side in sides):
        idle += now - looked
      looked = now
      if idle > limits.idle_seconds or now > started + limits.wall_seconds:
        return "", Outcome(passed=False, reason="timeout", message="")


def _failure(said: str, program: _Side, tests: _Side) -> Outcome:
  """Why a program did not pass that nothing had to stop."""
  verdict = json.loads(said) if said else {"message": ""}
  message = verdict["message"]
  if verdict.get("unsupported"):
    raise ValueError(f"{message}: such tests cannot be judged from outside")
  side = program if verdict.get("gone") else tests
  status = side.status()
  if verdict.get("absent") or (not said and status not in _SIGNALS):
    raise OSError(
      f"no sandbox for a program: exit status {status}; {side.last_line()}"
    )
  reason = "failed"
  if status == 128 + signal.SIGXCPU:
    reason = "timeout"
  elif status in _LIMIT_SIGNALS or message.startswith("MemoryError"):
    reason = "limit"
  return Outcome(passed=False, reason=reason, message=message)


def _tree(root: int, most: int) -> list[int]:
  """A process and what it started, as far as `most` and one more."""
  found = [root]
  for process in found:
    if len(found) > most:
      break
    with contextlib.suppress(OSError):
      for thread in os.listdir(f"/proc/{process}/task"):
        path = f"/proc/{process}/task/{thread}/children"
        found += map(int, pathlib.Path(path).read_text().split())
  return found


def _runs(process: int) -> bool:
  """Whether a process computes, waits for its turn, or for a disk."""
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return False
  return text.rpartition(") ")[2][:1] in ("R", "D")


def _resident(process: int) -> int:
  """Bytes of memory of a process; 0 if it is gone."""
  try:
    text = pathlib.Path(f"/proc/{process}/statm").read_text()
  except OSError:
    return 0
  return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _files(process: int) -> int:
  """Files in the folder of an isolated process; 0 if it is gone."""
  folder = f"/proc/{process}/root/tmp"
  try:
    if os.stat(folder).st_dev == os.stat("/tmp").st_dev:
      return 0  # It has not left our file system yet.
    state = os.statvfs(folder)
  except OSError:
    return 0
  return state.f_files - state.f_ffree - 1
