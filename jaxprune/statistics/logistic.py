"""A curve that only falls: how likely is something, given one number?

The logarithm of the odds is a straight line in the number, and the line never
rises. Labels may be soft: a case that is good with probability 0.7 counts 0.7
as good and 0.3 as bad, so that a label that was measured on few items weighs as
much as it knows.

Reference: Platt (1999), Probabilistic outputs for support vector machines, for
the curve and soft targets.
Differs from the reference in: the slope is bounded to one sign, and a weak
penalty on it keeps classes that can be divided from making it infinite.
"""

import dataclasses

import numpy as np
import scipy  # its parts are imported when first used

# On the squares of level and slope, against a log loss summed over cases.
_LEVEL_PENALTY, _SLOPE_PENALTY = 1e-3, 0.05
_STEPS, _CLOSE = 100, 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class FallingCurve:
  """probability = sigmoid(intercept - slope * x).

  Attributes:
    intercept: log odds at x = 0.
    slope: at least 0.
  """

  intercept: float
  slope: float

  def log_odds(self, x: np.ndarray) -> np.ndarray:
    """Log odds at every x."""
    return self.intercept - self.slope * np.asarray(x, np.float64)

  def probability(self, x: np.ndarray) -> np.ndarray:
    """In [0, 1], at every x."""
    return from_log_odds(self.log_odds(x))


def from_log_odds(odds: np.ndarray) -> np.ndarray:
  """Probabilities in [0, 1] of log odds of any shape."""
  return scipy.special.expit(odds)


def fit_falling(
  x: np.ndarray, good: np.ndarray, weights: np.ndarray | None = None
) -> FallingCurve:
  """The most likely falling curve.

  Args:
    x: real [n].
    good: probability that a case is good, in [0, 1], or bool [n].
    weights: of the cases, not negative [n]; None is 1 each.

  Raises:
    ValueError: shapes differ, there is no case, or a value is not finite or out
      of its range.
  """
  x, good = (np.asarray(values, np.float64) for values in (x, good))
  weights = np.ones_like(x) if weights is None else np.asarray(weights, float)
  if x.ndim != 1 or not x.shape == good.shape == weights.shape or not x.size:
    raise ValueError(
      f"x {list(x.shape)}, good {list(good.shape)}, weights"
      f" {list(weights.shape)}: give one of each per case"
    )
  _check_probabilities(good)
  if not np.isfinite(x).all() or not (weights >= 0).all() or not weights.any():
    raise ValueError("x must be finite and weights positive")
  centre = np.average(x, weights=weights)
  level, slope = _newton(np.stack([np.ones_like(x), centre - x]), good, weights)
  if slope < 0:  # the loss is convex, so the best falling line is level
    (level,), slope = _newton(np.ones_like(x)[None], good, weights), 0.0
  return FallingCurve(
    intercept=float(level + slope * centre), slope=float(slope)
  )


def _newton(design, good, weights):
  """Parameters [P] of the least penalised log loss; design is [P, n]."""
  penalty = np.array([_LEVEL_PENALTY, _SLOPE_PENALTY])[: len(design)]

  def loss(parameters):
    odds = parameters @ design
    # log(1 + e^odds) - good * odds, without overflow
    surprise = np.logaddexp(0, odds) - good * odds
    return weights @ surprise + penalty @ parameters**2

  parameters = np.zeros(len(design))
  for _ in range(_STEPS):
    stated = scipy.special.expit(parameters @ design)
    gradient = design @ (weights * (stated - good)) + 2 * penalty * parameters
    curvature = design * (weights * stated * (1 - stated)) @ design.T
    step = np.linalg.solve(curvature + np.diag(2 * penalty), gradient)
    # A whole step may overshoot where the curve is steep.
    before = loss(parameters)
    while loss(parameters - step) > before and np.abs(step).max() > _CLOSE:
      step = step / 2
    parameters = parameters - step
    if np.abs(step).max() <= _CLOSE:
      break
  return parameters


def log_loss(probability: np.ndarray, good: np.ndarray) -> float:
  """Mean surprise in nats of what is true, under stated probabilities.

  Args:
    probability: stated, in [0, 1], [n]; 0 and 1 are taken as nearly so.
    good: what is true, bool or a probability [n].
  """
  stated = np.clip(_checked(probability, good)[0], 1e-6, 1 - 1e-6)
  good = np.asarray(good, np.float64)
  return float(-np.mean(good * np.log(stated) + (1 - good) * np.log1p(-stated)))


def brier(probability: np.ndarray, good: np.ndarray) -> float:
  """Mean squared distance of stated probabilities from what is true.

  0.25 is that of a coin, and what is stated without knowledge.

  Args:
    probability: stated, in [0, 1], [n].
    good: what is true, bool or a probability [n].
  """
  stated, good = _checked(probability, good)
  return float(np.mean((stated - good) ** 2))


def reliability(
  probability: np.ndarray, good: np.ndarray, edges: np.ndarray
) -> list[dict[str, float]]:
  """Do events with a stated probability happen that often?

  Args:
    probability: stated, in [0, 1], [n].
    good: what is true, bool or a probability [n].
    edges: ascending, from 0 to 1, of the bins.

  Returns:
    For each bin that is not empty: `low` and `high` edge, `stated` (mean),
    `observed` (share that is good) and `count`.
  """
  stated, good = _checked(probability, good)
  place = np.clip(np.searchsorted(edges, stated, "right") - 1, 0, None)
  place = np.minimum(place, len(edges) - 2)
  return [
    {
      "low": float(edges[index]),
      "high": float(edges[index + 1]),
      "stated": float(stated[place == index].mean()),
      "observed": float(good[place == index].mean()),
      "count": int(np.sum(place == index)),
    }
    for index in np.unique(place)
  ]


def _checked(probability, good):
  stated, good = (np.asarray(v, np.float64) for v in (probability, good))
  if stated.ndim != 1 or stated.shape != good.shape or not stated.size:
    raise ValueError(
      f"probability {list(stated.shape)}, good {list(good.shape)}: give one of"
      " each per case"
    )
  _check_probabilities(stated)
  _check_probabilities(good)
  return stated, good


def _check_probabilities(values):
  # A NaN is not within the bounds either.
  if not ((values >= 0) & (values <= 1)).all():
    raise ValueError("probabilities: not all in [0, 1]")
