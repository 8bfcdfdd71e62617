"""Separation of two classes: oracles that count pairs, identities, tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.statistics import separation

# Few distinct values, so that ties are common.
CASES = st.lists(
  st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30
)
MIXED = CASES.filter(lambda cases: len({bad for _, bad in cases}) == 2)


def arrays(cases):
  values, bad = zip(*cases)
  return np.array(values, float), np.array(bad)


def pairs_auc(values, bad):
  """Counts every pair of a bad and a good case."""
  gap = values[bad][:, None] - values[~bad][None]
  return np.mean((gap > 0) + 0.5 * (gap == 0))


@given(MIXED)
def test_auc_counts_pairs(cases):
  values, bad = arrays(cases)
  found = separation.auc(values, bad)
  np.testing.assert_allclose(found, pairs_auc(values, bad), atol=1e-12)
  np.testing.assert_allclose(
    separation.auc(values, ~bad), 1 - found, atol=1e-12
  )
  np.testing.assert_allclose(
    separation.auc(np.exp(values), bad), found, atol=1e-12
  )
  assert separation.auc(np.full(len(bad), 2.0), bad) == 0.5


def test_auc_by_hand():
  # Pairs of bad 2, 3 and good 1, 2: 2>1, 2=2, 3>1, 3>2.
  assert (
    separation.auc(
      np.array([1.0, 2, 2, 3]), np.array([False, False, True, True])
    )
    == 0.875
  )
  assert np.isnan(separation.auc(np.arange(3.0), np.ones(3, bool)))


@given(MIXED)
def test_threshold_is_the_best_of_all(cases):
  values, bad = arrays(cases)
  found = separation.fit_threshold(values, bad)
  distinct = np.unique(values)
  if len(distinct) == 1:
    assert found is None
    return
  middles = (distinct[1:] + distinct[:-1]) / 2
  errors = np.array(
    [separation.balanced_error(values > middle, bad) for middle in middles]
  )
  np.testing.assert_allclose(found.balanced_error, errors.min(), atol=1e-12)
  # Of equals the lowest.
  assert found.value == middles[np.flatnonzero(errors < errors.min() + 1e-9)[0]]
  assert found.below < found.value < found.above


@given(
  st.lists(st.integers(0, 5), min_size=1, max_size=9),
  st.lists(st.integers(6, 9), min_size=1, max_size=9),
)
def test_perfect_separation(good, bad):
  values = np.array([*good, *bad], float)
  truth = np.arange(len(values)) >= len(good)
  found = separation.fit_threshold(values, truth)
  assert (found.balanced_error, separation.auc(values, truth)) == (0, 1)
  assert (found.below, found.above) == (max(good), min(bad))
  assert found.value == (max(good) + min(bad)) / 2


def test_threshold_by_hand():
  values = np.array([1.0, 2, 3, 4, 5])
  bad = np.array([False, True, False, True, True])
  # 1.5: no bad passes, one of two good is refused. 3.5: one of three bad.
  found = separation.fit_threshold(values, bad)
  assert (found.value, found.below, found.above) == (3.5, 3, 4)
  assert found.balanced_error == pytest.approx(1 / 6)
  assert separation.fit_threshold(values, np.zeros(5, bool)) is None


def test_no_number_between():
  """Neighbouring floats have no middle: the lower one divides them."""
  low = 1.0
  high = np.nextafter(low, 2)
  found = separation.fit_threshold(
    np.array([low, high]), np.array([False, True])
  )
  assert low <= found.value < high


def test_balanced_error_by_hand():
  # One of one bad case called good, one of four good ones called bad.
  assert (
    separation.balanced_error(
      np.array([False, True, False, False, False]),
      np.array([True, False, False, False, False]),
    )
    == 0.625
  )
  assert np.isnan(separation.balanced_error(np.ones(2, bool), np.ones(2, bool)))


@pytest.mark.parametrize(
  "values, bad",
  [
    (np.array([1.0, np.nan]), np.array([True, False])),
    (np.array([1.0, 2]), np.array([True])),
    (np.array([1.0, 2]), np.array([1, 0])),
  ],
)
def test_refusals(values, bad):
  with pytest.raises(ValueError):
    separation.auc(values, bad)
  with pytest.raises(ValueError):
    separation.fit_threshold(values, bad)
