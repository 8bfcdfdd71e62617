"""How sure is a mean, a ratio or a proportion?

The steps of one prompt resemble each other, so means and ratios resample whole
groups (prompts) with the bias-corrected and accelerated bootstrap of SciPy: a
resample draws groups with replacement and takes all rows of each. Independent
items that are right or wrong get the interval of Wilson, which is honest where
none or all are right and where there are few.

Reference: Wilson (1927), Probable inference, the law of succession, and
statistical inference; Clopper and Pearson (1934), The use of confidence or
fiducial limits illustrated in the case of the binomial; Efron and Tibshirani
(1993), An Introduction to the Bootstrap, chapter 14 (BCa).
Differs from the reference in: the unit is the group; where BCa is undefined,
because the data are constant or no replicate lies beyond the estimate, the
percentiles of the replicates are the interval.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import scipy  # its parts are imported when first used

from jaxprune.statistics.estimate import LEVEL, UNKNOWN, Estimate

RESAMPLES = 2000
# Entries of the matrix of drawn groups held at a time: 8 MiB.
_CHUNK = 1 << 20


def mean(
  values: np.ndarray,
  groups: np.ndarray | None = None,
  *,
  seed: int = 0,
  resamples: int = RESAMPLES,
) -> Estimate:
  """The mean over rows; of a paired difference, give differences.

  Args:
    values: real or bool [rows].
    groups: [rows], equal for rows of one prompt; None: every row is its own.
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Returns:
    Ends are NaN where there are fewer than two groups. With a handful of
    groups the interval is too narrow.

  Raises:
    ValueError: shapes differ, there is no row, or a value is not finite.
  """
  values = _checked(values, 1)
  return ratio(
    values, np.ones_like(values), groups, seed=seed, resamples=resamples
  )


def finite_mean(
  values: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> Estimate:
  """`mean` of the rows that are finite; `UNKNOWN` where none is.

  Args:
    values: real or bool [rows]; NaN and infinite rows are left out.
    groups, seed: see `mean`.

  Raises:
    ValueError: shapes differ.
  """
  values = np.asarray(values, np.float64)
  finite = np.isfinite(values)
  if not finite.any():
    return UNKNOWN
  if groups is not None:
    groups = np.asarray(groups)[finite]
  return mean(values[finite], groups, seed=seed)


def ratio(
  numerators: np.ndarray,
  denominators: np.ndarray,
  groups: np.ndarray | None = None,
  *,
  transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
  seed: int = 0,
  resamples: int = RESAMPLES,
) -> Estimate:
  """transform(sum of numerators / sum of denominators).

  With negative log-likelihoods, token counts and `numpy.exp` this is a
  perplexity over documents.

  Args:
    numerators: real [rows].
    denominators: positive [rows].
    groups: [rows], equal for rows of one prompt; None: every row is its own.
    transform: monotone and elementwise.
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Raises:
    ValueError: shapes differ, there is no row, a value is not finite, or a
      denominator is not positive.
  """
  numerators, denominators = _checked(numerators, 1), _checked(denominators, 1)
  if denominators.shape != numerators.shape or not (denominators > 0).all():
    raise ValueError(
      f"denominators: need {numerators.size} positive numbers, one for each"
      " numerator"
    )
  index = _group_index(groups, numerators.size)
  num_X = np.bincount(index, numerators)
  den_X = np.bincount(index, denominators)

  one_size = bool((den_X == den_X[0]).all())

  def of_drawn(drawn):
    den = den_X[0] * drawn.shape[-1] if one_size else den_X[drawn].sum(-1)
    return transform(num_X[drawn].sum(-1) / den)

  if one_size and (num_X == num_X[0]).all() and len(num_X) > 1:
    # Every resample is the data again, so there is nothing to draw.
    _check_resamples(resamples)
    value = float(of_drawn(np.arange(len(num_X))))
    if math.isfinite(value):
      return Estimate(value, value, value, len(num_X))
  return _bootstrap(of_drawn, len(num_X), seed, resamples)


def statistic(
  function: Callable[[np.ndarray], float | np.ndarray],
  rows: np.ndarray,
  groups: np.ndarray | None = None,
  *,
  vectorized: bool = False,
  seed: int = 0,
  resamples: int = RESAMPLES,
) -> Estimate:
  """Any statistic, computed anew on every resample.

  Args:
    function: from resampled rows, shaped as `rows` with another number of
      rows, to a number; a median, say.
    rows: real [rows] or [rows, columns].
    groups: [rows], equal for rows of one prompt; None: every row is its own.
    vectorized: whether `function` also takes many resamples at once, from
      [resamples, rows, columns] to [resamples].
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Raises:
    ValueError: there is no row, a value is not finite, or the statistic is
      not finite on a resample.
  """
  rows = _checked(rows, np.ndim(rows))
  index = _group_index(groups, len(rows))
  rows_of = [np.flatnonzero(index == g) for g in range(index.max() + 1)]

  if vectorized and len(set(map(len, rows_of))) == 1:
    rows_GX = np.stack(rows_of)

    def of_drawn(drawn):
      drawn = rows_GX[np.sort(drawn, axis=-1)]
      return function(rows[drawn.reshape(*drawn.shape[:-2], -1)])

  else:

    def of_drawn(drawn):
      values = [
        float(
          function(rows[np.concatenate([rows_of[g] for g in sorted(each)])])
        )
        for each in drawn.reshape(-1, drawn.shape[-1])
      ]
      return np.reshape(values, drawn.shape[:-1])

  return _bootstrap(of_drawn, len(rows_of), seed, resamples, rows.size)


def proportion(
  successes: np.ndarray,
  groups: np.ndarray | None = None,
  *,
  seed: int = 0,
  resamples: int = RESAMPLES,
) -> Estimate:
  """The share of items that are right, with an interval that is never empty.

  Independent items have the interval of Wilson. Items of one group (positions
  of one prompt, models pruned by one method) resemble each other, so whole
  groups are resampled as `mean` does; where all are right, or all wrong,
  resampling shows no spread, and the interval is that of Clopper and Pearson
  with the groups as the only independent items.

  Args:
    successes: bool, or 0 and 1, [items].
    groups: [items], equal for items of one group; None: all are independent.
    seed: of the resampling of groups.
    resamples: number of resamples, at least 100.

  Raises:
    ValueError: there is no item, one is neither 0 nor 1, or there is not one
      group for each.
  """
  successes = _checked(successes, 1)
  wrong_kind = ~np.isin(successes, (0, 1))
  if wrong_kind.any():
    where = int(np.flatnonzero(wrong_kind)[0])
    raise ValueError(
      f"successes: {successes[where]} at [{where}]; a proportion is of zeros"
      " and ones, take `mean` of other numbers"
    )
  value, method = float(successes.mean()), "wilson"
  right, count = int(successes.sum()), successes.size
  if groups is not None:
    clustered = mean(successes, groups, seed=seed, resamples=resamples)
    if 0 < value < 1:
      return clustered
    right, count, method = right and clustered.count, clustered.count, "exact"
  ends = scipy.stats.binomtest(right, count).proportion_ci(LEVEL, method)
  return Estimate(value, float(ends.low), float(ends.high), count)


def difference(first: Estimate, second: Estimate) -> Estimate:
  """Of two estimates from independent items, the first less the second.

  The interval is recovered from those of both: each end lies as far from the
  difference as the nearer ends of both, taken together, allow.

  Args:
    first: from which is subtracted.
    second: what is subtracted.

  Returns:
    Ends are infinite or NaN where those of an estimate are. `count` is the
    smaller one.

  Reference: Zou and Donner (2008), Construction of confidence limits about
  effect measures: a general approach (MOVER), equation 3.
  """
  value = first.value - second.value
  below = math.hypot(first.value - first.low, second.high - second.value)
  above = math.hypot(first.high - first.value, second.value - second.low)
  count = min(first.count, second.count)
  return Estimate(value, value - below, value + above, count)


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


def _group_index(groups, rows: int) -> np.ndarray:
  """The group of each row, numbered from 0 in sorted order."""
  if groups is None:
    return np.arange(rows)
  groups = np.asarray(groups)
  if groups.shape != (rows,):
    raise ValueError(
      f"groups: shape {list(groups.shape)}; need one for each of {rows} rows"
    )
  return np.unique(groups, return_inverse=True)[1]


def replicates(
  of_drawn: Callable[[np.ndarray], np.ndarray],
  count: int,
  seed: int,
  resamples: int = RESAMPLES,
) -> np.ndarray:
  """A statistic on resamples of whole groups.

  Args:
    of_drawn: from the groups drawn, int [..., count], to the statistic [...].
    count: number of groups.
    seed: of the draws.
    resamples: number of resamples, at least 100.

  Returns:
    [resamples].

  Raises:
    ValueError: resamples < 100.
  """
  _check_resamples(resamples)
  if count < 2:  # SciPy refuses one group, of which every draw is the data
    return np.full(resamples, of_drawn(np.zeros(count, int)))
  return _resample(of_drawn, count, seed, resamples, "percentile")[0]


def _bootstrap(
  of_drawn, count: int, seed: int, resamples: int, size: int = 0
) -> Estimate:
  """An estimate by resampling groups; the arguments of `replicates`.

  `size` is the entries that `of_drawn` holds for one resample, if above count.
  """
  _check_resamples(resamples)
  value = float(of_drawn(np.arange(count)))

  def snapped(drawn):
    """Replicates, those that tie with the estimate made equal to it.

    Sums in another order differ in their last bits, and the bias correction
    counts a replicate that is equal to the estimate half.
    """
    values = of_drawn(drawn)
    if not np.isfinite(values).all() or not math.isfinite(value):
      raise ValueError(
        "the statistic is not finite on a resample; use one that every choice"
        " of groups gives a value, or more groups"
      )
    near = 1e-12 * max(abs(value), np.max(np.abs(values)))
    return np.where(np.abs(values - value) <= near, value, values)

  if count < 2:
    return Estimate(value, math.nan, math.nan, count)
  drawn, ends = _resample(snapped, count, seed, resamples, "BCa", size)
  if not np.isfinite(ends).all():
    ends = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
  # Interpolation between equal replicates may differ from them in the last bit.
  low, high = np.clip(ends, drawn.min(), drawn.max())
  return Estimate(value, float(low), float(high), count)


def _check_resamples(resamples: int) -> None:
  if resamples < 100:
    raise ValueError(f"resamples={resamples}: need at least 100")


def _resample(of_drawn, count, seed, resamples, method, size=0):
  """Replicates [resamples] and the two ends of their interval."""
  with (
    warnings.catch_warnings(),
    np.errstate(divide="ignore", invalid="ignore"),
  ):
    warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
    result = scipy.stats.bootstrap(
      (np.arange(count),),
      lambda drawn, axis: of_drawn(drawn),  # axis is the last one
      n_resamples=resamples,
      batch=max(1, _CHUNK // max(count, size)),
      vectorized=True,
      axis=-1,
      confidence_level=LEVEL,
      method=method,
      rng=np.random.default_rng(seed),
    )
  return result.bootstrap_distribution, np.array(result.confidence_interval)
