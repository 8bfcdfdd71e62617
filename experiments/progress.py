"""Lines on stderr for the person who waits: how much is done, the time left."""

import math
import sys
import time
from collections.abc import Callable

from . import pods


def is_quiet() -> bool:
  """Whether another process of the pod speaks."""
  return pods.index() != 0


def say(text: str) -> None:
  """Print a line for the person who waits, once for a whole pod."""
  if not is_quiet():
    print(text, file=sys.stderr, flush=True)


class Progress:
  """A line per finished unit with the time left; a bar on a terminal."""

  def __init__(self, unit: str, total: int):
    self._unit, self._total, self._done = unit, total, 0
    self._began = time.monotonic()
    self._bar = None
    if sys.stderr.isatty() and not is_quiet():
      import tqdm

      self._bar = tqdm.tqdm(total=total, unit=unit, leave=False)

  def step(self, index: int, **numbers: float | None) -> None:
    """Tell that unit `index` is finished, with what was measured there.

    A pod of which a process was told to end does so here.
    """
    pods.leave_if_told()
    if is_quiet():
      return
    self._done += 1  # not index + 1, because a resumed run begins in the middle
    shown = {k: f"{v:.4g}" for k, v in numbers.items() if v is not None}
    if self._bar is not None:
      self._bar.update(index + 1 - self._bar.n)
      self._bar.set_postfix(shown)
      return
    spent = time.monotonic() - self._began
    left = spent / self._done * (self._total - 1 - index)
    words = " ".join(f"{k}={v}" for k, v in shown.items())
    say(
      f"{self._unit} {index + 1}/{self._total} {words} "
      f"{spent:.1f} s, {max(left, 0):.0f} s left"
    )


def tell_amount(name: str) -> Callable[[float, float], None]:
  """What to call with how much of some work is done, see `Amount.tell`.

  Args:
    name: of the work.
  """
  return Amount(name).tell


class Amount:
  """Lines with how much of some work is done, and the time left.

  The first batch compiles, so the time left is reckoned without it.
  """

  SECONDS = 5.0  # between two lines

  def __init__(self, name: str):
    """Name the work.

    Args:
      name: with which each line begins.
    """
    self._name = name
    self._first: tuple[float, float] | None = None
    self._told = (-math.inf, 0.0)

  def tell(self, done: float, total: float) -> None:
    """Tell that a batch is finished.

    Args:
      done: how much of the work is done; less than before is other work.
      total: of how much.
    """
    now = time.monotonic()
    if self._first is None or done <= self._told[1]:
      self._first, self._told = (now, done), (-math.inf, 0.0)
    since, before = self._first
    if now - self._told[0] < self.SECONDS and done < total:
      self._told = self._told[0], done
      return
    self._told = now, done
    left = ""
    if done > before:
      seconds = (now - since) / (done - before) * (total - done)
      left = f", {seconds:.0f} s left"
    say(f"{self._name} {done / total:.0%}{left}")
