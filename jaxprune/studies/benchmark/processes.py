"""A side of a comparison in a process of its own.

So its peak memory is its own, and neither side's threads wait busily while the
other is timed.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

from jaxprune import devices


class Side:
  """Answers questions until the context ends.

  `open_side` is called in the new process with `settings` when the first
  question comes, and returns a function from a question to its answer.
  """

  def __init__(
    self,
    name: str,
    open_side: Callable[[Any], Callable[[Any], Any]],
    settings: Any,
  ):
    self.name = name
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(open_side, settings, theirs), daemon=True
    )
    self._process.start()
    theirs.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._process.terminate()
    self._process.join()

  def ask(self, question: Any) -> Any:
    """The answer to a question, which is not None.

    Raises:
      ValueError: of the other process, or it ended.
    """
    self._pipe.send(question)
    try:
      reply = self._pipe.recv()
    except EOFError:
      raise ValueError(
        f"benchmark: the process of {self.name} ended; see its message above"
      ) from None
    if isinstance(reply, Exception):
      raise reply
    return reply

  def peak_bytes(self) -> int:
    """Most bytes of memory of the process so far."""
    return self.ask(None)


def _serve(open_side, settings, pipe) -> None:
  """Answer until the pipe is closed."""
  answer = None
  while True:
    try:
      question = pipe.recv()
    except EOFError:
      return
    try:
      if question is None:
        pipe.send(devices.peak_resident_bytes())
        continue
      answer = answer or open_side(settings)
      pipe.send(answer(question))
    except ValueError as error:
      pipe.send(error)
    except Exception as error:
      traceback.print_exc()
      pipe.send(ValueError(f"benchmark: {error!r}"))
