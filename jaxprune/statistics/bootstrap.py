"""Names of an earlier interface, for studies that do not use `Estimate` yet."""

import dataclasses

from jaxprune.statistics import intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
  """An estimate with the numbers of units and of rows that it rests on."""

  estimate: float
  low: float
  high: float
  level: float
  prompts: int
  rows: int
  resamples: int
  seed: int
  method: str


def mean_interval(values, prompts=None, **options) -> Interval:
  """See `intervals.mean`."""
  return _interval(intervals.mean(values, prompts, **options), values, options)


def ratio_interval(
  numerators, denominators, prompts=None, **options
) -> Interval:
  """See `intervals.ratio`."""
  estimate = intervals.ratio(numerators, denominators, prompts, **options)
  return _interval(estimate, numerators, options)


def statistic_interval(statistic, rows, prompts=None, **options) -> Interval:
  """See `intervals.statistic`."""
  estimate = intervals.statistic(statistic, rows, prompts, **options)
  return _interval(estimate, rows, options)


def _interval(estimate, rows, options) -> Interval:
  return Interval(
    estimate=estimate.value,
    low=estimate.low,
    high=estimate.high,
    level=0.95,
    prompts=estimate.count,
    rows=len(rows),
    resamples=options.get("resamples", intervals.RESAMPLES),
    seed=options.get("seed", 0),
    method="bca",
  )
