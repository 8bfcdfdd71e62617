"""Rank correlation against hand-made ranks and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import statistics


def test_by_hand():
  rho = statistics.rank_correlation
  assert rho([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
  assert rho([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
  # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
  assert rho([0, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(0.9**0.5)
  # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15).
  assert rho([1, 2, 3, 4], [5, 4, 9, 7]) == pytest.approx(0.6)
  # Ranks 1, 2 against 2, 1: two rows are enough.
  assert rho([0, 1], [5, 4]) == pytest.approx(-1)


@given(
  st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=30
  )
)
def test_is_scipys_with_ties(pairs):
  x, y = np.array(pairs, float).T
  rho = statistics.rank_correlation(x, y)
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    assert math.isnan(rho)
    return
  assert rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
  assert -1 <= rho <= 1


@pytest.mark.parametrize(
  "x, y, words",
  [
    ([1], [1], "at least 2"),
    ([1, 2], [1, 2, 3], "one length"),
    ([1, np.nan], [1, 2], "not finite"),
  ],
)
def test_refuses(x, y, words):
  for call in (statistics.rank_correlation, statistics.spearman):
    with pytest.raises(ValueError, match=words):
      call(x, y)


def test_spearman_has_an_interval():
  rng = np.random.default_rng(5)
  x = rng.normal(size=60)
  y = x + 0.5 * rng.normal(size=60)
  rho = statistics.spearman(x, y, seed=1, resamples=500)
  assert rho.value == statistics.rank_correlation(x, y) and rho.count == 60
  assert 0.6 < rho.low < rho.value < rho.high < 1
  # The interval is that of SciPy from the same generator.
  ends = scipy.stats.bootstrap(
    (x, y),
    lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    paired=True,
    n_resamples=500,
    method="BCa",
    rng=np.random.default_rng(1),
  ).confidence_interval
  np.testing.assert_allclose([rho.low, rho.high], ends, rtol=1e-9)
  # Six texts with ten steps each are six units.
  grouped = statistics.spearman(x, y, np.repeat(np.arange(6), 10))
  assert grouped.count == 6


def test_a_constant_side_on_a_resample_is_an_error():
  with pytest.raises(ValueError, match="not finite on a resample"):
    statistics.spearman([1.0, 2, 3], [1.0, 2, 3])
