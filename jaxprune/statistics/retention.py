"""How much of what a model could do above chance does the pruned one still do?

A model that guesses one of four options is right on a quarter of the items, so
a score that falls from 0.55 to 0.40 has lost half of what there was to lose.
Retention is (score - chance) / (dense - chance); both models answered the same
items. It is kept or lost only if the whole interval says so, and unknown
otherwise, or where the dense model is hardly better than chance.

Reference: Fieller (1954), Some problems in interval estimation, for the
interval of a ratio; Agresti and Min (2005), Simple improved confidence
intervals for comparing matched proportions.
Differs from the reference in: half an item of each of the four outcomes is
added to the items of both models, for the interval only, so that no interval is
empty where both models answered alike; and the mean of the ratio's numerator
and denominator are less the chance level.
"""

import dataclasses
import math

import numpy as np
import scipy  # its parts are imported when first used

from jaxprune.statistics.estimate import LEVEL
from jaxprune.statistics.survival import is_enough

KEPT, LOST, UNDECIDED = "kept", "lost", "unknown"
STATES = (KEPT, LOST, UNDECIDED)
# The four outcomes of an item that is right or wrong, pruned and dense.
_OUTCOMES = np.array([[1.0, 1, 0, 0], [1, 0, 1, 0]])
_HALF = 0.5  # of an item is added of each outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
  """The part of the score above chance that a pruned model keeps.

  Attributes:
    value: (pruned - chance) / (dense - chance); 1 is no loss, below 0 is worse
      than chance. NaN where the dense model scores chance exactly.
    low, high: 95 % interval of the ratio. Infinite ends where the dense model
      may be at chance, so that any ratio is possible.
    state: of STATES: kept or lost if the interval lies on one side of the
      threshold, else unknown.
    reason: why it is unknown, in words; empty otherwise.
    near_chance: whether that is because the dense model may be near chance.
    probability: that the retention is at least the threshold, in (0, 1); 0.5
      where nothing is known.
    pruned, dense: mean score over the items.
    chance: score of a model that guesses.
    threshold: least retention that is called kept.
    count: number of items.
  """

  value: float
  low: float
  high: float
  state: str
  reason: str
  near_chance: bool
  probability: float
  pruned: float
  dense: float
  chance: float
  threshold: float
  count: int


def retention(
  pruned_items: np.ndarray,
  dense_items: np.ndarray,
  chance: float | np.ndarray,
  threshold: float = 0.9,
  *,
  least: float = 0.02,
) -> Retention:
  """Chance-corrected retention of one task, with the interval of the ratio.

  Args:
    pruned_items: score of each item, in [0, 1], [items].
    dense_items: scores of the dense model on the same items, [items].
    chance: score of a model that guesses: one number, or one for each item
      where the number of options differs.
    threshold: least retention that is called kept.
    least: the dense model counts as near chance unless its score is above
      chance by more than this, with 95 % confidence.

  Raises:
    ValueError: shapes differ, there is no item, or a score or the chance level
      is not in [0, 1].
  """
  pruned, dense, chance = _checked(pruned_items, dense_items, chance)
  above = np.stack([pruned - chance, dense - chance])
  gain, base = above.mean(axis=1)
  # Half an item of each outcome is added, with the mean chance level.
  padded = np.concatenate([above, _OUTCOMES - chance.mean()], axis=1)
  weights = np.concatenate([np.ones(pruned.size), np.full(4, _HALF)])
  moments = _moments(padded, weights)
  low, high = _fieller(*moments)
  near_chance, reason = _near_chance(*moments, least), ""
  if near_chance:
    state = UNDECIDED
    reason = "the dense model may be near chance, so there is little to lose"
  elif is_enough(low, threshold):
    state = KEPT
  elif not is_enough(high, threshold):
    state = LOST
  else:
    state = UNDECIDED
    reason = (
      f"{pruned.size} items cannot tell whether at least"
      f" {100 * threshold:.0f} % was kept"
    )
  return Retention(
    value=float(gain / base) if base else math.nan,
    low=low,
    high=high,
    state=state,
    reason=reason,
    near_chance=near_chance,
    probability=_probability(*moments, threshold),
    pruned=float(pruned.mean()),
    dense=float(dense.mean()),
    chance=float(chance.mean()),
    threshold=threshold,
    count=pruned.size,
  )


def _moments(above, weights):
  """Weighted means [2] of both rows, and the covariance [2, 2] of the means."""
  means = np.average(above, axis=1, weights=weights)
  return means, np.cov(above, aweights=weights, ddof=0) / weights.sum()


def _fieller(means, covariance) -> tuple[float, float]:
  """All ratios r whose contrast, gain - r base, may be 0."""
  (gain, base), z2 = means, _z() ** 2
  square = base**2 - z2 * covariance[1, 1]
  if square <= 0:  # the base may be 0
    return -math.inf, math.inf
  half = gain * base - z2 * covariance[0, 1]
  rest = gain**2 - z2 * covariance[0, 0]
  # The measured ratio solves the inequality, so that only rounding can make
  # the discriminant negative.
  root = math.sqrt(max(half**2 - square * rest, 0.0))
  return float((half - root) / square), float((half + root) / square)


def _near_chance(means, covariance, least) -> bool:
  """Whether the dense model may be no better than `least` above chance."""
  return bool(means[1] - _z() * math.sqrt(covariance[1, 1]) <= least)


def _probability(means, covariance, threshold) -> float:
  """Of a gain of at least `threshold` times the base."""
  contrast = np.array([1.0, -threshold])
  error = math.sqrt(contrast @ covariance @ contrast)
  return float(scipy.stats.norm.cdf(contrast @ means / error))


def _z() -> float:
  return float(scipy.stats.norm.ppf((1 + LEVEL) / 2))


def _checked(pruned, dense, chance):
  """float64 [items] each."""
  pruned, dense = (np.asarray(x, np.float64) for x in (pruned, dense))
  if pruned.ndim != 1 or pruned.shape != dense.shape or not pruned.size:
    raise ValueError(
      f"scores of {list(pruned.shape)} and {list(dense.shape)} items: give both"
      " models' scores of the same items, in one order"
    )
  if np.ndim(chance) and np.shape(chance) != pruned.shape:
    raise ValueError(
      f"chance: {np.size(chance)} levels for {pruned.size} items; give one for"
      " all, or one for each"
    )
  chance = np.broadcast_to(np.asarray(chance, np.float64), pruned.shape)
  for name, values in (
    ("pruned_items", pruned),
    ("dense_items", dense),
    ("chance", chance),
  ):
    # A NaN is not within the bounds either.
    if not ((values >= 0) & (values <= 1)).all():
      raise ValueError(f"{name}: not all in [0, 1]; scale the scores first")
  return pruned, dense, chance
