"""What does a script say when it is told to end?

Ctrl-C and SIGTERM become an exception, so that every `with` block is left; then
one line says what is kept and which command goes on. The second signal ends the
process at once.
"""

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator

from . import command_line


class SignalError(BaseException):
  """The process is told to end.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


# What an interrupted script leaves for the next; None for nothing.
_kept: str | None = None


def keep(what: str | None) -> None:
  """Say what an interrupted script leaves for the next; None is nothing."""
  global _kept
  _kept = what


@contextlib.contextmanager
def as_exceptions(*, pod: bool) -> Iterator[None]:
  """Turn Ctrl-C and, outside a pod, SIGTERM into a SignalError, once.

  Args:
    pod: whether jax.distributed runs, which handles SIGTERM itself.
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
    for number in (signal.SIGINT,) if pod else (signal.SIGINT, signal.SIGTERM):
      before[number] = signal.signal(number, stop)
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def closing_line() -> str:
  """What is kept, and the command that goes on or begins anew."""
  verb = "go on with" if _kept else "begin anew with"
  command = shlex.join(command_line.command())
  return f"stopped: {_kept or 'nothing is kept'}; {verb}: {command}"
