"""How sure is a mean over prompts? Intervals by resampling whole prompts.

The steps of one prompt resemble each other, so they are kept together: a
resample draws prompts with replacement and takes all rows of each. Means and
ratios need only each prompt's sums and are vectorised; any other statistic is
recomputed on every resample.

Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993),
chapters 13 (percentile) and 14 (BCa, equations 14.10-14.15).
Differs from the reference in: the unit is the prompt; replicates equal to the
estimate count half in the bias correction, because scores of 0 and 1 tie.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable

import numpy as np

METHODS = ("bca", "percentile")
# Entries of the matrix of resampling weights held at a time.
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
  """A statistic and where it may lie.

  Attributes:
    estimate: the statistic on the data as they are.
    low: lower end; NaN when there are fewer than two prompts.
    high: upper end, likewise.
    level: intended coverage, in (0, 1).
    prompts: number of prompts, the units that were resampled.
    rows: number of rows.
    resamples: number of resamples.
    seed: of the resampling.
    method: 'bca' or 'percentile'.
  """

  estimate: float
  low: float
  high: float
  level: float
  prompts: int
  rows: int
  resamples: int
  seed: int
  method: str


def mean_interval(
  values: np.ndarray,
  prompts: np.ndarray | None = None,
  *,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
  method: str = "bca",
) -> Interval:
  """Interval of the mean over rows; of a paired difference, give differences.

  Args:
    values: real or bool [rows].
    prompts: [rows], equal for rows of one prompt; None: every row is its own.
    level: intended coverage, in (0, 1).
    resamples: at least 100.
    seed: of the resampling.
    method: 'bca' corrects bias and skew to second order; 'percentile' takes
      the quantiles as they are. With a handful of prompts both are too narrow.

  Raises:
    ValueError: shapes differ, a value is not finite, or an option is unknown.
  """
  values = _checked(values, 1)
  return ratio_interval(
    values,
    np.ones_like(values),
    prompts,
    level=level,
    resamples=resamples,
    seed=seed,
    method=method,
  )


def ratio_interval(
  numerators: np.ndarray,
  denominators: np.ndarray,
  prompts: np.ndarray | None = None,
  *,
  transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
  method: str = "bca",
) -> Interval:
  """Interval of transform(sum of numerators / sum of denominators).

  With negative log-likelihoods, token counts and `numpy.exp` this is the
  interval of a perplexity over documents.

  Args:
    numerators: real [rows].
    denominators: positive [rows].
    prompts: as in `mean_interval`.
    transform: monotone and elementwise.
    level: as in `mean_interval`.
    resamples: as in `mean_interval`.
    seed: as in `mean_interval`.
    method: as in `mean_interval`.

  Raises:
    ValueError: as `mean_interval`, or a denominator is not positive.
  """
  numerators, denominators = _checked(numerators, 1), _checked(denominators, 1)
  if denominators.shape != numerators.shape or not (denominators > 0).all():
    raise ValueError(
      f"denominators: need {numerators.size} positive numbers, one for each"
      " numerator"
    )
  groups = _groups(prompts, numerators.size)
  num = np.bincount(groups, numerators)
  den = np.bincount(groups, denominators)
  replicates = np.concatenate(
    [
      (weights @ num) / (weights @ den)
      for weights in _weights(len(num), resamples, seed)
    ]
  )
  if len(num) > 1:
    jackknife = (num.sum() - num) / (den.sum() - den)
  else:
    jackknife = np.full(1, math.nan)
  return _interval(
    transform(num.sum() / den.sum()),
    transform(replicates),
    transform(jackknife),
    numerators.size,
    level,
    seed,
    method,
  )


def statistic_interval(
  statistic: Callable[[np.ndarray], float],
  rows: np.ndarray,
  prompts: np.ndarray | None = None,
  *,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
  method: str = "bca",
) -> Interval:
  """Interval of any statistic, recomputed on every resample.

  Args:
    statistic: from resampled rows, shaped as `rows` with another number of
      rows, to a number; a median or a rank correlation of two columns, say.
    rows: real [rows] or [rows, columns].
    prompts: as in `mean_interval`.
    level: as in `mean_interval`.
    resamples: as in `mean_interval`.
    seed: as in `mean_interval`.
    method: as in `mean_interval`.

  Raises:
    ValueError: as `mean_interval`, or the statistic is not finite on a
      resample.
  """
  rows = _checked(rows, np.ndim(rows))
  groups = _groups(prompts, len(rows))
  count = groups.max() + 1
  of_group = [np.flatnonzero(groups == group) for group in range(count)]

  def value_of(drawn) -> float:
    value = float(statistic(rows[np.concatenate(drawn)]))
    if not math.isfinite(value):
      raise ValueError(
        f"the statistic is {value} on a resample; use one that every choice"
        " of prompts gives a value, or more prompts"
      )
    return value

  replicates = np.array(
    [
      value_of([of_group[group] for group in np.repeat(np.arange(count), row)])
      for weights in _weights(count, resamples, seed)
      for row in weights
    ]
  )
  jackknife = (
    np.array(
      [
        value_of(of_group[:group] + of_group[group + 1 :])
        for group in range(count)
      ]
    )
    if count > 1
    else np.full(1, math.nan)
  )
  return _interval(
    float(statistic(rows)),
    replicates,
    jackknife,
    len(rows),
    level,
    seed,
    method,
  )


def _checked(values, ndim) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != ndim or not 1 <= ndim <= 2 or not values.size:
    raise ValueError(
      f"values: shape {list(values.shape)}; need one row per measurement"
    )
  if not np.isfinite(values).all():
    where = np.argwhere(~np.isfinite(values))[0].tolist()
    raise ValueError(
      f"values: not finite at {where}; leave such rows out and say how many"
    )
  return values


def _groups(prompts, rows) -> np.ndarray:
  """Prompts as numbers from 0 in sorted order."""
  if prompts is None:
    return np.arange(rows)
  prompts = np.asarray(prompts)
  if prompts.shape != (rows,):
    raise ValueError(
      f"prompts: shape {list(prompts.shape)}; need one for each of {rows} rows"
    )
  return np.unique(prompts, return_inverse=True)[1]


def _weights(count: int, resamples: int, seed: int):
  """How often each prompt is drawn: int [resamples, prompts], in chunks."""
  if resamples < 100:
    raise ValueError(f"resamples={resamples}: need at least 100")
  rng = np.random.default_rng(seed)
  step = max(1, _CHUNK // count)
  for start in range(0, resamples, step):
    size = min(step, resamples - start)
    drawn = rng.integers(count, size=(size, count))
    drawn += count * np.arange(size)[:, None]
    yield np.bincount(drawn.ravel(), minlength=size * count).reshape(
      size, count
    )


def _interval(
  estimate, replicates, jackknife, rows, level, seed, method
) -> Interval:
  if method not in METHODS:
    raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}")
  if not 0 < level < 1:
    raise ValueError(f"level={level}: must be between 0 and 1")
  tails = np.array([(1 - level) / 2, (1 + level) / 2])
  if method == "bca":
    tails = _corrected(tails, estimate, replicates, jackknife)
  low, high = np.quantile(replicates, tails)
  if jackknife.size < 2:
    low = high = math.nan
  return Interval(
    estimate=float(estimate),
    low=float(low),
    high=float(high),
    level=level,
    prompts=jackknife.size,
    rows=rows,
    resamples=replicates.size,
    seed=seed,
    method=method,
  )


def _corrected(tails, estimate, replicates, jackknife):
  """Which quantiles to take instead, for bias and acceleration."""
  normal = statistics.NormalDist()
  # Sums in another order differ in the last bits; those replicates are ties.
  near = 1e-12 * max(abs(estimate), np.abs(replicates).max())
  gap = replicates - estimate
  below = np.mean(np.where(np.abs(gap) <= near, 0.5, gap < 0))
  spread = jackknife.mean() - jackknife
  scale = np.sum(spread**2) ** 1.5
  if not 0 < below < 1 or not scale > near**3:
    return tails
  bias = normal.inv_cdf(below)
  acceleration = np.sum(spread**3) / (6 * scale)
  shifted = bias + np.array([normal.inv_cdf(tail) for tail in tails])
  return np.array(
    [normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted]
  )
