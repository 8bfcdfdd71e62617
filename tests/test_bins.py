"""Bins of a quantity: edges, ties, means and their intervals."""

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import statistics


def test_few_values_have_a_bin_each():
  edges = statistics.quantile_edges([3, 1, 1, 7], 3)
  assert edges.tolist() == [1, 3, 7, 7]
  assert statistics.bin_index([1, 3, 7, 1], edges).tolist() == [0, 1, 2, 0]
  one = statistics.quantile_edges([4.0, 4.0], 5)
  assert statistics.bin_index([4, 4], one).tolist() == [0, 0]


def test_edges_divide_the_rows_evenly():
  values = np.arange(100.0)
  edges = statistics.quantile_edges(values, 4)
  chex.assert_shape(edges, (5,))
  np.testing.assert_allclose(edges, [0, 24.75, 49.5, 74.25, 99])
  assert np.bincount(statistics.bin_index(values, edges)).tolist() == [25] * 4
  # Half of the rows are ties: their bin takes them all, and none is empty.
  edges = statistics.quantile_edges(
    np.r_[np.zeros(100), np.arange(1.0, 101)], 4
  )
  assert (np.diff(edges) > 0).all() and edges[0] == 0 and edges[-1] == 100


def test_an_edge_belongs_to_the_upper_bin_and_the_end_to_the_last():
  assert statistics.bin_index([0, 1, 1.5, 2], [0, 1, 2]).tolist() == [
    0,
    1,
    1,
    1,
  ]


@hypothesis.settings(max_examples=50)
@hypothesis.given(
  st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 12)
)
def test_every_row_is_in_one_bin_that_holds_it(values, count):
  edges = statistics.quantile_edges(values, count)
  place = statistics.bin_index(values, edges)
  assert 1 <= len(edges) - 1 <= count
  assert (edges[place] <= values).all() and (values <= edges[place + 1]).all()
  order = np.argsort(values)
  assert (np.diff(place[order]) >= 0).all()


def test_means_by_hand():
  """Three prompts; the bins have their own means, and their own prompts."""
  values = np.array([1, 2, 3, 10, 20, 60.0])
  by = np.array([0, 0, 1, 5, 5, 9.0])
  prompts = np.array([0, 1, 1, 0, 1, 2])
  low, high = statistics.binned_means(values, by, prompts, [0, 5, 9])
  assert (low.low, low.high, low.centre) == (0, 5, 1 / 3)
  assert low.estimate.value == 2 and low.estimate.count == 2
  assert (high.low, high.high) == (5, 9) and high.estimate.value == 30
  assert high.rows == 3 and high.estimate.count == 3
  assert 10 <= high.estimate.low < 30 < high.estimate.high <= 60
  whole = statistics.mean(values[:3], prompts[:3], resamples=1000)
  assert low.estimate == whole


def test_bins_without_rows_are_left_out():
  found = statistics.binned_means(
    np.ones(2), np.array([0.5, 2.5]), np.arange(2), [0, 1, 2, 3]
  )
  assert [one.low for one in found] == [0, 2]


def test_a_measure_that_does_not_depend_is_flat():
  """Bins of an unrelated quantity all hold the mean in their interval."""
  rng = np.random.default_rng(0)
  by, prompts = rng.random(2000), rng.integers(0, 100, 2000)
  values = rng.normal(3, 1, 2000)
  found = statistics.binned_means(
    values, by, prompts, statistics.quantile_edges(by, 5)
  )
  assert len(found) == 5
  assert sum(one.estimate.low < 3 < one.estimate.high for one in found) >= 4


@pytest.mark.parametrize(
  "call, match",
  [
    (lambda: statistics.quantile_edges([], 3), "0 values"),
    (lambda: statistics.quantile_edges([1.0, np.nan], 3), "finite"),
    (lambda: statistics.quantile_edges([1.0], 0), "count=0"),
    (lambda: statistics.bin_index([1.0], [1.0]), "two or more"),
    (lambda: statistics.bin_index([1.0], [2.0, 1.0]), "ascending"),
    (lambda: statistics.bin_index([0.5, 3.5], [0.0, 3.0]), "3.5 is outside"),
    (lambda: statistics.bin_index([np.nan], [0.0, 3.0]), "nan is outside"),
  ],
)
def test_errors(call, match):
  with pytest.raises(ValueError, match=match):
    call()
