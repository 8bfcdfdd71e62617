"""What does a script say when it is told to end?

Ctrl-C and SIGTERM become an exception, so that every `with` block is left; then
one line says what is kept and which command goes on. The second signal ends the
process at once.
"""

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator

from . import command_line


class SignalError(BaseException):
  """The process is told to end.

  Attributes:
    number: of the signal.
    reason: who was told, where it is another process.
  """

  def __init__(self, number: int, reason: str | None = None):
    super().__init__(signal.Signals(number).name)
    self.number, self.reason = number, reason


# What an interrupted script leaves for the next; None for nothing.
_kept: str | None = None
_watchers: list[Callable[[str | None], None]] = []


def keep(what: str | None) -> None:
  """Say what an interrupted script leaves for the next; None is nothing."""
  global _kept
  _kept = what
  for watcher in _watchers:
    watcher(what)


def watch_kept(watcher: Callable[[str | None], None]) -> None:
  """Call a function with whatever `keep` is told from now on."""
  _watchers.append(watcher)


@contextlib.contextmanager
def as_exceptions() -> Iterator[None]:
  """Turn Ctrl-C and SIGTERM into a SignalError, once.

  In a pod SIGTERM is that of `jax.distributed`, as soon as it runs.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {}

  def stop(number, frame):
    del frame
    for each in before:
      signal.signal(each, signal.SIG_DFL)
    raise SignalError(number)

  try:
    for number in (signal.SIGINT, signal.SIGTERM):
      before[number] = signal.signal(number, stop)
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def closing_line(reason: str | None = None) -> str:
  """What is kept, and the command that goes on or begins anew.

  Args:
    reason: why the script ends, where that is not told otherwise.
  """
  verb = "go on with" if _kept else "begin anew with"
  command = shlex.join(command_line.command())
  because = f"{reason}; " if reason else ""
  return f"stopped: {because}{_kept or 'nothing is kept'}; {verb}: {command}"
