"""How long do two sides take, each in turn?

Runs alternate, A B A B, so that a machine that slows down slows both sides.
Processor seconds stand beside wall seconds: they say more where other programs
use the machine.
"""

import time
from collections.abc import Callable

import numpy as np

WALL, PROCESSOR = 0, 1


def timed(function: Callable[[], object], units: int = 1) -> np.ndarray:
  """Call a function once.

  Args:
    function: what is timed; it must not return before its work is done.
    units: pieces of work that one call does; the time is divided by it.

  Returns:
    Wall and processor seconds per piece, float64 [2].
  """
  began = np.array([time.perf_counter(), time.process_time()])
  function()
  ended = np.array([time.perf_counter(), time.process_time()])
  return (ended - began) / units


def take_turns(
  sides: dict[str, Callable[[], np.ndarray]], repeats: int
) -> dict[str, np.ndarray]:
  """Time several sides in turn, after one call of each that is not counted.

  Args:
    sides: by name, a call of `timed`.
    repeats: timed runs of each side.

  Returns:
    By side, the seconds of its first call and of every run after it, float64
    [1 + repeats, 2].
  """
  first = {name: side() for name, side in sides.items()}
  runs = [
    {name: side() for name, side in sides.items()} for _ in range(repeats)
  ]
  return {
    name: np.stack([first[name], *(run[name] for run in runs)])
    for name in sides
  }
