"""Bins of a quantity: edges, ties, means and their intervals."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import report


def test_few_values_have_a_bin_each():
  edges = report.quantile_edges([3, 1, 1, 7], 3)
  assert edges.tolist() == [1, 3, 7, 7]
  assert report.bin_index([1, 3, 7, 1], edges).tolist() == [0, 1, 2, 0]
  one = report.quantile_edges([4.0, 4.0], 5)
  assert report.bin_index([4, 4], one).tolist() == [0, 0]


def test_edges_divide_the_rows_evenly():
  values = np.arange(100.0)
  edges = report.quantile_edges(values, 4)
  np.testing.assert_allclose(edges, [0, 24.75, 49.5, 74.25, 99])
  assert np.bincount(report.bin_index(values, edges)).tolist() == [25] * 4
  # Half of the rows are ties: their bin takes them all, and none is empty.
  edges = report.quantile_edges(np.r_[np.zeros(100), np.arange(1.0, 101)], 4)
  assert (np.diff(edges) > 0).all() and edges[0] == 0 and edges[-1] == 100


def test_an_edge_belongs_to_the_upper_bin_and_the_end_to_the_last():
  assert report.bin_index([0, 1, 1.5, 2], [0, 1, 2]).tolist() == [0, 1, 1, 1]


@hypothesis.settings(max_examples=50)
@hypothesis.given(
  st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 12)
)
def test_every_row_is_in_one_bin_that_holds_it(values, count):
  edges = report.quantile_edges(values, count)
  place = report.bin_index(values, edges)
  assert 1 <= len(edges) - 1 <= count
  assert (edges[place] <= values).all() and (values <= edges[place + 1]).all()
  order = np.argsort(values)
  assert (np.diff(place[order]) >= 0).all()


def test_means_by_hand():
  """Three prompts; the bins have their own means, and their own prompts."""
  values = np.array([1, 2, 3, 10, 20, 60.0])
  by = np.array([0, 0, 1, 5, 5, 9.0])
  prompts = np.array([0, 1, 1, 0, 1, 2])
  low, high = report.binned_means(values, by, prompts, [0, 5, 9])
  assert (low.low, low.high, low.centre) == (0, 5, 1 / 3)
  assert low.interval.estimate == 2 and low.interval.prompts == 2
  assert (high.low, high.high) == (5, 9) and high.interval.estimate == 30
  assert high.interval.rows == 3 and high.interval.prompts == 3
  assert 10 <= high.interval.low < 30 < high.interval.high <= 60
  whole = report.mean_interval(values[:3], prompts[:3], resamples=1000)
  assert low.interval == whole


def test_bins_without_rows_are_left_out():
  found = report.binned_means(
    np.ones(2), np.array([0.5, 2.5]), np.arange(2), [0, 1, 2, 3]
  )
  assert [one.low for one in found] == [0, 2]


def test_a_measure_that_does_not_depend_is_flat():
  """Bins of an unrelated quantity all hold the mean in their interval."""
  rng = np.random.default_rng(0)
  by, prompts = rng.random(2000), rng.integers(0, 100, 2000)
  values = rng.normal(3, 1, 2000)
  found = report.binned_means(values, by, prompts, report.quantile_edges(by, 5))
  assert len(found) == 5
  assert sum(one.interval.low < 3 < one.interval.high for one in found) >= 4


@pytest.mark.parametrize(
  "call, match",
  [
    (lambda: report.quantile_edges([], 3), "0 values"),
    (lambda: report.quantile_edges([1.0, np.nan], 3), "finite"),
    (lambda: report.quantile_edges([1.0], 0), "count=0"),
    (lambda: report.bin_index([1.0], [1.0]), "two or more"),
    (lambda: report.bin_index([1.0], [2.0, 1.0]), "ascending"),
    (lambda: report.bin_index([0.5, 3.5], [0.0, 3.0]), "3.5 is outside"),
    (lambda: report.bin_index([np.nan], [0.0, 3.0]), "nan is outside"),
  ],
)
def test_errors(call, match):
  with pytest.raises(ValueError, match=match):
    call()
