"""What does Rust code that fails print, and how is it kept from the person?

The package tokenizers is written in Rust. Where it has a fault it panics: it
prints to file descriptor 2, which `sys.stderr` knows nothing of, and raises
`PanicException`. Callers turn that into an error of their own, so the print is
only noise beside it.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator

_PANIC = re.compile(
  rb"\n?thread '[^\n]*' (\(\d+\) )?panicked at .*?(\nnote: [^\n]*\n|\Z)", re.S
)
# The descriptor belongs to the whole process.
_LOCK = threading.RLock()


def is_panic(error: BaseException) -> bool:
  """Whether an exception is a panic of Rust code, which is no `Exception`."""
  return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def hidden() -> Iterator[None]:
  """Keep what a panic prints from stderr, and nothing else.

  All that is written to file descriptor 2 meanwhile, by any thread, waits until
  the end and is written then, without what a panic printed. On a system
  without files in memory (other than Linux) nothing is kept back. Costs some
  microseconds.
  """
  with _LOCK:
    try:
      held = os.memfd_create("stderr")
    except (AttributeError, OSError):
      yield
      return
    try:
      shown = os.dup(2)
    except OSError:  # there is no stderr
      os.close(held)
      yield
      return
    os.dup2(held, 2)
    try:
      yield
    finally:
      os.dup2(shown, 2)
      os.close(shown)
      _show(held)
      os.close(held)


def _show(held: int) -> None:
  """Write what was held back to stderr, but for panics."""
  size = os.fstat(held).st_size
  if not size:
    return
  text = _PANIC.sub(b"", os.pread(held, size, 0))
  with contextlib.suppress(OSError):  # a closed pipe is no error of the caller
    while text:
      text = text[os.write(2, text) :]
