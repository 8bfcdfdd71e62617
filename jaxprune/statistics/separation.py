"""How well does one number tell two classes apart?

A number (the feature) is measured for every case, and a case is bad or good.
The feature is meant to be large where a case is bad. The area under the ROC
curve says how well it orders them, a threshold makes a rule of it (good if the
feature is at most the threshold), and the error of the rule is counted on cases
that it was not fitted on.

Reference: Hanley and McNeil (1982) for the area as the Mann-Whitney statistic.
"""

import dataclasses

import numpy as np
import scipy  # its parts are imported when first used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
  """A rule `good if feature <= value`, and how it did where it was fitted.

  Attributes:
    value: the threshold.
    below: the greatest feature that is not above it.
    above: the least feature that is. Anything between the two divides the
      fitted cases alike.
    balanced_error: mean of the share of bad cases called good and the share of
      good cases called bad, in [0, 1].
  """

  value: float
  below: float
  above: float
  balanced_error: float


def auc(values: np.ndarray, bad: np.ndarray) -> float:
  """Probability that a bad case has the larger feature; ties count half.

  Args:
    values: real [n].
    bad: bool [n].

  Returns:
    In [0, 1], 0.5 for a feature that says nothing; NaN if all are of one class.

  Raises:
    ValueError: shapes differ or a value is not finite.
  """
  values, bad = _checked(values, bad)
  count = int(bad.sum())
  if count in (0, len(bad)):
    return float("nan")
  ranks = scipy.stats.rankdata(values)
  above = ranks[bad].sum() - count * (count + 1) / 2
  return float(above / (count * (len(bad) - count)))


def fit_threshold(values: np.ndarray, bad: np.ndarray) -> Threshold | None:
  """The threshold with the least balanced error.

  It lies halfway between two neighbouring values. Of several that are equally
  good the lowest is taken, because it lets fewer cases pass.

  Args:
    values: real [n].
    bad: bool [n].

  Returns:
    None if all cases are of one class or have one value: nothing can be fitted.

  Raises:
    ValueError: shapes differ or a value is not finite.
  """
  values, bad = _checked(values, bad)
  distinct, place = np.unique(values, return_inverse=True)
  count = int(bad.sum())
  if len(distinct) < 2 or count in (0, len(bad)):
    return None
  passed_bad = np.cumsum(np.bincount(place, bad, len(distinct)))
  passed_good = np.cumsum(np.bincount(place, ~bad, len(distinct)))
  errors = (passed_bad / count + 1 - passed_good / (len(bad) - count)) / 2
  # Equal errors may differ in their last bits, and of these the lowest
  # threshold must win.
  best = int(np.argmin(np.round(errors[:-1], 12)))
  below, above = float(distinct[best]), float(distinct[best + 1])
  middle = below + (above - below) / 2
  return Threshold(
    value=middle if middle < above else below,
    below=below,
    above=above,
    balanced_error=float(errors[best]),
  )


def balanced_error(called_bad: np.ndarray, bad: np.ndarray) -> float:
  """Mean of the error among bad and among good cases; NaN without either.

  Args:
    called_bad: bool [n], what a rule says.
    bad: bool [n], what is true.
  """
  called_bad, bad = np.asarray(called_bad, bool), np.asarray(bad, bool)
  if bad.all() or not bad.any():
    return float("nan")
  return float((np.mean(~called_bad[bad]) + np.mean(called_bad[~bad])) / 2)


def _checked(values, bad):
  values, bad = np.asarray(values, np.float64), np.asarray(bad)
  if values.ndim != 1 or values.shape != bad.shape or bad.dtype != bool:
    raise ValueError(
      f"values {list(values.shape)}, bad {list(bad.shape)} {bad.dtype}: give"
      " one number and one bool per case"
    )
  if not np.isfinite(values).all():
    raise ValueError("values: not finite; leave such cases out and count them")
  return values, bad
