"""Intervals against exact cases, SciPy and their coverage."""

import math

import numpy as np
import pytest

from jaxprune.statistics import bootstrap


def clustered(rng, prompts, steps, spread, noise):
  """Rows whose prompts differ by `spread`; the mean is 0."""
  centre = rng.normal(0, spread, prompts)
  rows = centre[:, None] + rng.normal(0, noise, (prompts, steps))
  return rows.ravel(), np.repeat(np.arange(prompts), steps)


@pytest.mark.parametrize("method", bootstrap.METHODS)
def test_coverage_with_clusters(method):
  rng = np.random.default_rng(0)
  hits = rowwise = 0
  for trial in range(300):
    values, prompts = clustered(rng, 40, 10, 1.0, 1.0)
    options = dict(resamples=400, seed=trial, method=method)
    got = bootstrap.mean_interval(values, prompts, **options)
    hits += got.low <= 0 <= got.high
    wrong = bootstrap.mean_interval(values, **options)
    rowwise += wrong.low <= 0 <= wrong.high
  # Binomial with 300 trials at 0.94: four deviations are 0.055.
  assert 0.88 < hits / 300 < 0.985
  # Rows resampled one by one pretend to 400 independent measurements; their
  # interval is 3.3 times too short and covers about half of the time.
  assert rowwise / 300 < 0.7


def test_width_is_that_of_the_normal_interval():
  rng = np.random.default_rng(1)
  values = rng.normal(3, 2, 400)
  for method in bootstrap.METHODS:
    got = bootstrap.mean_interval(values, resamples=20000, method=method)
    half = 1.95996 * values.std() / 20
    np.testing.assert_allclose(
      [got.low, got.high],
      [values.mean() - half, values.mean() + half],
      atol=0.02 * half * 2,
    )


def test_bca_matches_scipy():
  stats = pytest.importorskip("scipy.stats")
  values = np.random.default_rng(2).exponential(size=25)
  got = bootstrap.mean_interval(values, resamples=50000)
  other = stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=50000,
    method="BCa",
    rng=np.random.default_rng(3),
  ).confidence_interval
  plain = bootstrap.mean_interval(values, resamples=50000, method="percentile")
  np.testing.assert_allclose([got.low, got.high], other, rtol=0.01)
  # The correction moves a right-skewed mean's interval to the right by more
  # than that tolerance.
  assert got.high > 1.02 * plain.high and got.low > plain.low


def test_ratio_and_statistic_agree_with_the_mean():
  rng = np.random.default_rng(4)
  values, prompts = clustered(rng, 12, 3, 1.0, 0.5)
  order = rng.permutation(values.size)
  mean = bootstrap.mean_interval(values, prompts)
  for other in (
    bootstrap.mean_interval(values[order], prompts[order]),
    bootstrap.ratio_interval(2 * values, np.full(36, 2.0), prompts),
    bootstrap.statistic_interval(np.mean, values, prompts),
  ):
    np.testing.assert_allclose(
      [other.estimate, other.low, other.high],
      [mean.estimate, mean.low, mean.high],
      rtol=1e-9,
    )
    assert (other.prompts, other.rows) == (12, 36)


def test_ratio_weights_documents_by_their_length():
  nll, tokens = np.array([10.0, 300.0]), np.array([10.0, 100.0])
  got = bootstrap.ratio_interval(nll, tokens, transform=np.exp)
  np.testing.assert_allclose(got.estimate, np.exp(310 / 110))
  assert np.exp(1) <= got.low <= got.estimate <= got.high <= np.exp(3) + 1e-9


def test_unequal_prompts_stay_whole():
  # One prompt holds nine zeros, the other a single one: a resample has mean
  # 0, 0.1 or 1 and nothing else.
  values = np.array([0.0] * 9 + [1.0])
  prompts = ["a"] * 9 + ["b"]
  seen = set()

  def record(rows):
    seen.add((rows.size, float(rows.mean())))
    return rows.mean()

  got = bootstrap.statistic_interval(record, values, prompts, resamples=200)
  assert seen == {(18, 0.0), (10, 0.1), (2, 1.0), (1, 1.0), (9, 0.0)}
  assert (got.low, got.high) == (0.0, 1.0)


def test_rank_correlation_of_two_columns():
  rng = np.random.default_rng(5)
  x = rng.normal(size=60)
  rows = np.stack([x, x + 0.5 * rng.normal(size=60)], axis=1)

  def correlation(rows):
    ranks = rows.argsort(0).argsort(0)
    return np.corrcoef(ranks.T)[0, 1]

  got = bootstrap.statistic_interval(
    correlation, rows, resamples=500, method="percentile"
  )
  assert got.low < got.estimate < got.high < 1
  assert got.low > 0.6


def test_constant_and_single_prompts():
  got = bootstrap.mean_interval(np.full(7, 0.1))
  np.testing.assert_allclose([got.low, got.high, got.estimate], 0.1)
  got = bootstrap.mean_interval([1.0, 2.0], ["x", "x"])
  assert got.estimate == 1.5 and math.isnan(got.low) and math.isnan(got.high)
  got = bootstrap.statistic_interval(np.median, [1.0, 2.0, 9.0], [0, 0, 0])
  assert got.estimate == 2.0 and math.isnan(got.low)
  right = bootstrap.mean_interval(np.ones(5, bool))
  assert (right.low, right.high) == (1.0, 1.0)


def test_seed_and_chunks(monkeypatch):
  values = np.random.default_rng(6).normal(size=50)
  first = bootstrap.mean_interval(values, seed=1)
  assert first == bootstrap.mean_interval(values, seed=1)
  assert first != bootstrap.mean_interval(values, seed=2)
  monkeypatch.setattr(bootstrap, "_CHUNK", 50 * 7)
  assert first == bootstrap.mean_interval(values, seed=1)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: bootstrap.mean_interval([1.0, np.nan]), r"not finite at \[1\]"),
    (lambda: bootstrap.mean_interval([]), r"shape \[0\]"),
    (lambda: bootstrap.mean_interval([[1.0]]), r"shape \[1, 1\]"),
    (lambda: bootstrap.mean_interval([1.0], [1, 2]), r"prompts: shape \[2\]"),
    (lambda: bootstrap.mean_interval([1.0], level=95), "level=95"),
    (lambda: bootstrap.mean_interval([1.0], resamples=9), "resamples=9"),
    (lambda: bootstrap.mean_interval([1.0], method="t"), "method='t'"),
    (lambda: bootstrap.ratio_interval([1.0], [0.0]), "1 positive numbers"),
    (
      lambda: bootstrap.statistic_interval(lambda rows: math.nan, [1.0, 2.0]),
      "statistic is nan",
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()
