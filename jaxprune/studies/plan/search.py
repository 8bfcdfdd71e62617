"""Where on a ladder of amounts does a score begin to fall? Pure functions.

A family of prunings has levels of growing amount. The damage of a level is
measured without labels and grows with the amount; the kept part of a score is
guessed from it as exp(-slope * damage) and measured at few levels only. A
measurement corrects the slope, and so says which level to measure next.
"""

import math
from collections.abc import Callable, Mapping, Sequence

# Kept parts outside of this say nothing more about the slope.
_LEAST, _MOST = 0.05, 0.999
# Few items may all be right by chance, and then say little of what is far off.
_FARTHEST = 4.0  # times the damage that passed


def largest(test: Callable[[int], bool], first: int, last: int) -> int:
  """The largest index that passes a test which fails from some index on.

  Args:
    test: of an index; asked about log2(last - first) times.
    first: the smallest index.
    last: the largest index; below `first` there is none.

  Returns:
    The index, or first - 1 where none passes.
  """
  low, high = first - 1, last + 1
  while high - low > 1:
    middle = (low + high) // 2
    if test(middle):
      low = middle
    else:
      high = middle
  return low


def limit(keep: float, slope: float) -> float:
  """The greatest damage at which a part `keep` of the score is expected.

  Args:
    keep: part of the score, in (0, 1].
    slope: of -log of what is kept over the damage.
  """
  return -math.log(keep) / slope


def kept(damage: float, slope: float) -> float:
  """The part of the score that is expected to be kept, in [0, 1].

  Args:
    damage: at least 0.
    slope: of -log of what is kept over the damage.
  """
  return math.exp(-slope * damage)


def refit(damage: float, measured: float, slope: float) -> float:
  """The slope that explains a measurement.

  Args:
    damage: of the level that was measured, at least 0.
    measured: part of the score above chance that it keeps; may lie outside of
      [0, 1].
    slope: of before, kept where there was no damage.
  """
  part = min(max(measured, _LEAST), _MOST)
  return -math.log(part) / damage if damage > 0 else slope


def next_level(
  count: int,
  damages: Mapping[int, float],
  measured: Mapping[int, float],
  keep: float,
) -> int | None:
  """Which level to measure next.

  Levels between the largest that passed and the smallest above it that failed
  are left. Where both are known, the middle of them is next; where only one
  is, the level at which the last measurement lets expect the wanted score,
  of at most four times the damage that passed, but always another one.

  Args:
    count: number of levels.
    damages: by index, of the levels whose damage is known, the measured ones
      among them.
    measured: by index, kept parts of the score, in the order in which they were
      measured; not empty.
    keep: part of the score that must be kept.

  Returns:
    An index, or None where nothing is left to be measured.
  """
  low = max((i for i, part in measured.items() if part >= keep), default=-1)
  failed = [i for i, part in measured.items() if part < keep and i > low]
  high = min(failed, default=count)
  if high - low <= 1:
    return None
  if low >= 0 and failed:
    return (low + high) // 2
  last, part = list(measured.items())[-1]
  wanted = limit(keep, refit(damages[last], part, 1.0))
  if low >= 0 and damages[low] > 0:
    wanted = min(wanted, _FARTHEST * damages[low])
  guess = math.floor(_index_of(damages, wanted))
  return min(max(guess, low + 1), high - 1)


def _index_of(damages: Mapping[int, float], wanted: float) -> float:
  """The index of a damage, by lines through its logarithm over the index."""
  points = [(i, d) for i, d in sorted(damages.items()) if 0 < d < math.inf]
  if not points:
    return -1.0 if wanted <= 0 else math.inf
  if len(points) == 1:
    return points[0][0] + (0.0 if wanted >= points[0][1] else -1.0)
  for (i, d), (j, e) in zip(points, points[1:]):
    if wanted <= e or (j, e) == points[-1]:
      slope = (math.log(e) - math.log(d)) / (j - i)
      if slope <= 0:
        return float(i)
      return i + (math.log(wanted) - math.log(d)) / slope
  return float(points[-1][0])


def first_at_least(amounts: Sequence[float], amount: float) -> int:
  """Index of the first level that removes as much; their number for none.

  Args:
    amounts: fractions that the levels remove, ascending.
    amount: the fraction that is wanted.
  """
  return next(
    (i for i, each in enumerate(amounts) if each >= amount - 1e-9), len(amounts)
  )
