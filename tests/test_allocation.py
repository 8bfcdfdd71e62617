"""Sparsities of layers, by hand, and that they meet the budget."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.pruning.layerwise import allocation, owl


def total(sparsities, sizes):
  return np.dot(sparsities, sizes) / np.sum(sizes)


def test_uniform_is_what_was_typed():
  assert allocation.uniform(3, 0.7) == (0.7, 0.7, 0.7)
  for bad in (-0.1, 1.0, math.nan):
    with pytest.raises(ValueError, match="sparsity"):
      allocation.uniform(3, bad)
  with pytest.raises(ValueError, match="layer"):
    allocation.uniform(0, 0.5)


def test_linear_by_hand():
  assert allocation.linear(3, 0.5, 0.1) == (0.4, 0.5, 0.6)
  # Twice the weight on the last: the shift makes up for it.
  np.testing.assert_allclose(
    allocation.linear(2, 0.5, 0.3, sizes=[1, 2]), [0.3, 0.6]
  )
  # The first layer would go below zero: the others carry its share.
  np.testing.assert_allclose(
    allocation.linear(3, 0.2, 0.3), [0, 0.15, 0.45], atol=1e-12
  )
  assert allocation.linear(4, 0.5, 0.0) == (0.5,) * 4
  falling = allocation.linear(3, 0.5, -0.1)
  assert falling == (0.6, 0.5, 0.4)


@settings(max_examples=100, deadline=None)
@given(
  wishes=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
  sparsity=st.floats(0, 0.999),
  data=st.data(),
)
def test_the_budget_is_met_exactly(wishes, sparsity, data):
  sizes = data.draw(
    st.lists(st.integers(1, 10**6), min_size=len(wishes), max_size=len(wishes))
  )
  found = allocation.meet_budget(wishes, sparsity, sizes)
  assert all(isinstance(s, float) and 0 <= s < 1 for s in found)
  assert abs(total(found, sizes) - sparsity) < 2e-12
  for (a, s), (b, t) in itertools.combinations(zip(wishes, found), 2):
    assert (s <= t + 1e-11) if a <= b else (s >= t - 1e-11)
    if 0 < s < 0.99 and 0 < t < 0.99:  # inside, differences are kept
      assert abs((s - t) - (a - b)) < 1e-11


def test_equal_layers_lose_no_entry_to_rounding():
  for sparsity in (0.1, 0.3, 0.5, 0.7):
    found = allocation.meet_budget([0.37] * 7, sparsity, [3] * 7)
    assert found == (sparsity,) * 7


@pytest.mark.parametrize(
  "wishes, sizes, words",
  [
    ([], None, "wishes"),
    ([math.inf, 0], None, "wishes"),
    ([0, 0], [1, 0], "sizes"),
    ([0, 0], [1], "2 positive"),
  ],
)
def test_bad_budgets_are_named(wishes, sizes, words):
  with pytest.raises(ValueError, match=words):
    allocation.meet_budget(wishes, 0.5, sizes)


def test_outliers_by_hand():
  scores = {
    "a": jnp.asarray([[1.0, 1.0], [1.0, 21.0]]),
    "b": jnp.zeros((3, 2)).at[0, 0].set(6.0),
  }
  # The mean of ten is 3: one score above 15, two above 5.9, two at 6 or more.
  np.testing.assert_allclose(owl.outlier_fraction(scores), 0.1)
  np.testing.assert_allclose(owl.outlier_fraction(scores, 1.9), 0.2)
  np.testing.assert_allclose(owl.outlier_fraction(scores, 2.0), 0.1)
  np.testing.assert_allclose(jax.jit(owl.outlier_fraction)(scores), 0.1)
  assert float(owl.outlier_fraction(jnp.ones((4, 4)))) == 0
  assert float(owl.outlier_fraction(jnp.zeros((4, 4)))) == 0


def test_owl_spares_layers_with_outliers():
  fractions = [0.02, 0.01, 0.015, 0.011]
  found = owl.owl(fractions, 0.7, spread=0.08)
  scaled = (np.array(fractions) - 0.01) / 0.01 * 2 * 0.08
  density = scaled - scaled.mean() + 0.3  # the published code's
  np.testing.assert_allclose(found, 1 - density, atol=1e-12)
  np.testing.assert_allclose(np.ptp(found), 0.16)
  sizes = [1, 5, 2, 9]
  weighted = owl.owl(fractions, 0.7, sizes=sizes)
  np.testing.assert_allclose(total(weighted, sizes), 0.7, atol=1e-12)
  np.testing.assert_allclose(np.diff(weighted), np.diff(found), atol=1e-11)
  assert owl.owl([0.3, 0.3], 0.5) == (0.5, 0.5)
