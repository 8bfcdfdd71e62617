"""Estimates against exact cases, SciPy, published values and their coverage."""

import json
import math

import chex
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import statistics
from jaxprune.statistics import intervals


def clustered(rng, prompts, steps, spread, noise):
  """Rows whose prompts differ by `spread`; the mean is 0."""
  centre = rng.normal(0, spread, prompts)
  rows = centre[:, None] + rng.normal(0, noise, (prompts, steps))
  return rows.ravel(), np.repeat(np.arange(prompts), steps)


def ends(estimate):
  return [estimate.low, estimate.high]


def test_coverage_with_clusters():
  rng = np.random.default_rng(0)
  hits = rowwise = 0
  for trial in range(300):
    values, prompts = clustered(rng, 40, 10, 1.0, 1.0)
    options = dict(resamples=400, seed=trial)
    got = statistics.mean(values, prompts, **options)
    hits += got.low <= 0 <= got.high
    if trial < 100:
      wrong = statistics.mean(values, **options)
      rowwise += wrong.low <= 0 <= wrong.high
  # Binomial with 300 trials at 0.94: four deviations are 0.055.
  assert 0.88 < hits / 300 < 0.985
  # Rows resampled one by one pretend to 400 independent measurements; their
  # interval is 3.3 times too short and covers about half of the time.
  assert rowwise / 100 < 0.7


def test_width_is_that_of_the_normal_interval():
  values = np.random.default_rng(1).normal(3, 2, 400)
  got = statistics.mean(values, resamples=20000)
  half = 1.95996 * values.std() / 20
  np.testing.assert_allclose(
    ends(got), [values.mean() - half, values.mean() + half], atol=0.04 * half
  )


def test_is_scipys_bca_of_group_sums():
  rng = np.random.default_rng(2)
  values, groups = rng.exponential(size=60), rng.integers(0, 15, 60)
  _, index = np.unique(groups, return_inverse=True)
  num, den = np.bincount(index, values), np.bincount(index)
  result = scipy.stats.bootstrap(
    (num, den),
    lambda num, den, axis: num.sum(axis) / den.sum(axis),
    paired=True,
    n_resamples=2000,
    method="BCa",
    rng=np.random.default_rng(3),
  )
  got = statistics.mean(values, groups, seed=3)
  np.testing.assert_allclose(ends(got), result.confidence_interval, rtol=1e-9)
  assert got.value == pytest.approx(values.mean()) and got.count == len(num)
  # The correction moves the interval of a right-skewed mean to the right.
  plain = np.quantile(result.bootstrap_distribution, [0.025, 0.975])
  assert got.low > plain[0] and got.high > plain[1]


def test_ties_with_the_estimate_count_half():
  """Sums of 0.1 in another order differ in the last bits, and yet they tie."""
  values = np.random.default_rng(6).integers(0, 2, 30)
  whole = statistics.mean(values)
  tenth = statistics.mean(values * 0.1)
  np.testing.assert_allclose(ends(tenth), np.multiply(ends(whole), 0.1))


def test_ratio_and_statistic_agree_with_the_mean():
  rng = np.random.default_rng(4)
  values, prompts = clustered(rng, 12, 3, 1.0, 0.5)
  order = rng.permutation(values.size)
  mean = statistics.mean(values, prompts)
  for other in (
    statistics.mean(values[order], prompts[order]),
    statistics.ratio(2 * values, np.full(36, 2.0), prompts),
    statistics.statistic(np.mean, values, prompts),
    statistics.statistic(
      lambda rows: rows.mean(-1), values, prompts, vectorized=True
    ),
    statistics.finite_mean(
      np.append(values, np.nan), np.append(prompts, prompts[0])
    ),
  ):
    np.testing.assert_allclose(
      [other.value, *ends(other)], [mean.value, *ends(mean)], rtol=1e-9
    )
    assert other.count == 12


def test_ratio_weights_documents_by_their_length():
  nll, tokens = np.array([10.0, 300.0]), np.array([10.0, 100.0])
  got = statistics.ratio(nll, tokens, transform=np.exp)
  np.testing.assert_allclose(got.value, np.exp(310 / 110))
  assert np.exp(1) <= got.low <= got.value <= got.high <= np.exp(3) + 1e-9


def test_unequal_prompts_stay_whole():
  # One prompt holds nine zeros, the other a single one: a resample has mean
  # 0, 0.1 or 1 and nothing else.
  values = np.array([0.0] * 9 + [1.0])
  prompts = ["a"] * 9 + ["b"]
  seen = set()

  def record(rows):
    seen.add((rows.size, float(rows.mean())))
    return rows.mean()

  got = statistics.statistic(
    record, values, prompts, vectorized=True, resamples=200
  )
  assert seen == {(18, 0.0), (10, 0.1), (2, 1.0), (1, 1.0), (9, 0.0)}
  assert ends(got) == [0.0, 1.0]


def test_replicates_are_of_whole_draws():
  rng = np.random.default_rng(8)
  values = rng.normal(size=(9, 2))

  def of_drawn(drawn):
    chex.assert_axis_dimension(drawn, -1, 9)
    return values[drawn].sum(axis=(-2, -1))

  got = intervals.replicates(of_drawn, 9, seed=4, resamples=300)
  chex.assert_shape(got, (300,))
  drawn = np.random.default_rng(4).integers(9, size=(300, 9))
  np.testing.assert_allclose(got, values[drawn].sum(axis=(1, 2)))
  alone = intervals.replicates(lambda drawn: 7.0, 1, seed=0, resamples=100)
  np.testing.assert_array_equal(alone, np.full(100, 7.0))


def test_constant_and_single_prompts():
  got = statistics.mean(np.full(7, 0.1))
  np.testing.assert_allclose(got.value, 0.1)
  assert got.low == got.high == got.value
  got = statistics.mean([1.0, 2.0], ["x", "x"])
  assert got.value == 1.5 and math.isnan(got.low) and math.isnan(got.high)
  got = statistics.statistic(np.median, [1.0, 2.0, 9.0], [0, 0, 0])
  assert got.value == 2.0 and math.isnan(got.low) and got.count == 1
  right = statistics.mean(np.ones(5, bool))
  assert ends(right) == [1.0, 1.0]
  assert statistics.finite_mean([np.nan, np.inf]) is statistics.UNKNOWN


def test_an_extreme_statistic_takes_the_percentiles():
  """No replicate is below the least row, so that BCa is undefined."""
  rows = np.arange(2.0, 30)
  got = statistics.statistic(np.min, rows, resamples=300)
  assert got.value == got.low == 2 < got.high


def test_seed_and_chunks(monkeypatch):
  values = np.random.default_rng(6).normal(size=50)
  first = statistics.mean(values, seed=1)
  assert first == statistics.mean(values, seed=1)
  assert first != statistics.mean(values, seed=2)
  monkeypatch.setattr(intervals, "_CHUNK", 50 * 7)
  assert first == statistics.mean(values, seed=1)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.integers(0, 6)), min_size=1, max_size=40
  )
)
def test_interval_lies_within_the_groups_means(rows):
  values, groups = map(np.array, zip(*rows))
  got = statistics.mean(values, groups, resamples=100)
  assert got.value == pytest.approx(values.mean(), abs=1e-9)
  assert got.count == len(set(groups))
  if got.count > 1:
    means = [values[groups == group].mean() for group in set(groups)]
    assert min(means) - 1e-9 <= got.low <= got.high <= max(means) + 1e-9


@pytest.mark.parametrize(
  "right, items, low, high",
  [
    # Wilson's bounds, (2k + z^2 -+ z sqrt(z^2 + 4k(1 - k/n))) / 2(n + z^2).
    (0, 1, 0.0, 0.7935),
    (1, 1, 0.2065, 1.0),
    (1, 2, 0.0945, 0.9055),
    (0, 3, 0.0, 0.5615),
    (1, 3, 0.0615, 0.7923),
    # Newcombe (1998), Two-sided confidence intervals for the single
    # proportion, table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
    (29, 29, 0.8830, 1.0),
  ],
)
def test_proportion_has_the_published_ends(right, items, low, high):
  got = statistics.proportion(np.arange(items) < right)
  assert (got.value, got.count) == (right / items, items)
  np.testing.assert_allclose(ends(got), [low, high], atol=5e-5)


@given(st.integers(1, 60), st.integers(0, 60))
def test_proportion_is_monotone_and_within_bounds(items, right):
  right = min(right, items)
  got = statistics.proportion(np.arange(items) < right)
  assert 0 <= got.low <= got.value <= got.high <= 1
  assert got.low < got.high
  mirrored = statistics.proportion(np.arange(items) >= right)
  np.testing.assert_allclose(ends(mirrored), [1 - got.high, 1 - got.low])
  if right < items:
    more = statistics.proportion(np.arange(items) <= right)
    assert more.low > got.low and more.high > got.high


def test_proportion_of_groups_that_agree():
  """Four methods, however many models: (1 - u)^4 = 0.025."""
  groups = np.repeat(np.arange(4), 5)
  none = statistics.proportion(np.zeros(20, bool), groups)
  assert (none.value, none.low, none.count) == (0, 0, 4)
  assert (1 - none.high) ** 4 == pytest.approx(0.025)
  every = statistics.proportion(np.ones(20, bool), groups)
  assert ends(every) == [pytest.approx(1 - none.high), 1]


def test_proportion_keeps_groups_together():
  right = np.array([True] * 5 + [False] * 15)
  groups = np.repeat(np.arange(4), 5)
  together = statistics.proportion(right, groups, seed=3)
  assert together == statistics.mean(right, groups, seed=3)
  alone = statistics.proportion(right)
  assert alone.high - alone.low < together.high - together.low


def test_difference_of_independent_proportions():
  """Newcombe's hybrid score interval, which this is for Wilson ends.

  His paper's first example: 56 of 70 less 48 of 80 is 0.2 [0.0524, 0.3339].
  """
  first, second = (
    statistics.proportion(np.arange(count) < right)
    for right, count in ((56, 70), (48, 80))
  )
  found = statistics.difference(first, second)
  np.testing.assert_allclose(
    (found.value, found.low, found.high), (0.2, 0.0524, 0.3339), atol=5e-5
  )
  turned = statistics.difference(second, first)
  np.testing.assert_allclose(
    (turned.low, turned.high), (-found.high, -found.low)
  )
  open_end = statistics.Estimate(0.5, -np.inf, np.inf, 3)
  assert statistics.difference(first, open_end).high == np.inf


def test_estimate_travels_as_json():
  got = statistics.mean([1.0, 2, 4])
  entry = got.to_json()
  assert list(entry) == ["value", "low", "high", "count"]
  assert statistics.Estimate.from_json(json.loads(json.dumps(entry))) == got
  more = statistics.Estimate.from_json({"value": None, "low": None, "x": 1})
  assert more.count == 0 and math.isnan(more.value) and math.isnan(more.high)


@pytest.mark.parametrize(
  "numbers, digits, expected",
  [
    ((0.16, 0.0961, 0.2412), 3, "0.160 [0.096, 0.241]"),
    ((0.16, 0.0961, 0.2412), 2, "0.16 [0.10, 0.24]"),
    ((-12.5, -14.0, 2.25), 3, "−12.5 [−14.0, 2.2]"),
    ((0.5, math.nan, math.nan), 3, "0.5 [no interval]"),
    ((math.nan,) * 3, 3, "–"),
  ],
)
def test_format(numbers, digits, expected):
  assert statistics.Estimate(*numbers, 9).format(digits) == expected


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: statistics.mean([1.0, np.nan]), r"not finite at \[1\]"),
    (lambda: statistics.mean([]), r"shape \[0\]"),
    (lambda: statistics.mean([[1.0]]), r"shape \[1, 1\]"),
    (lambda: statistics.mean([1.0], [1, 2]), r"groups: shape \[2\]"),
    (lambda: statistics.mean([1.0], resamples=9), "resamples=9"),
    (lambda: statistics.ratio([1.0], [0.0]), "1 positive numbers"),
    (
      lambda: statistics.statistic(lambda rows: math.nan, [1.0, 2.0]),
      "not finite on a resample",
    ),
    (lambda: statistics.proportion([]), r"shape \[0\]"),
    (lambda: statistics.proportion([1, 0.5]), r"0.5 at \[1\]"),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()
