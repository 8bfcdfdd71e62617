"""Falling curves and stated probabilities: by hand, brute force, simulation."""

import numpy as np
import pytest

from jaxprune.statistics import logistic


def test_the_curve_that_made_the_labels_is_found():
  draw = np.random.default_rng(0)
  x = draw.uniform(-3, 3, 4000)
  truth = logistic.FallingCurve(intercept=0.5, slope=1.5)
  found = logistic.fit_falling(x, draw.random(4000) < truth.probability(x))
  assert found.intercept == pytest.approx(0.5, abs=0.15)
  assert found.slope == pytest.approx(1.5, abs=0.15)
  assert truth.probability([0.0])[0] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_no_other_curve_is_more_likely():
  draw = np.random.default_rng(1)
  x, good = draw.normal(size=30), draw.random(30)
  weights = draw.uniform(0.5, 2, 30)
  found = logistic.fit_falling(x, good, weights)

  def loss(intercept, slope):
    odds = intercept - slope * x
    surprise = good * np.log1p(np.exp(-odds))
    surprise += (1 - good) * np.log1p(np.exp(odds))
    level = intercept - slope * np.average(x, weights=weights)
    return np.sum(weights * surprise) + 0.05 * slope**2 + 1e-3 * level**2

  grid = [(a, b) for a in np.linspace(-2, 2, 81) for b in np.linspace(0, 2, 41)]
  least = min(loss(*each) for each in grid)
  assert loss(found.intercept, found.slope) <= least + 1e-9


def test_a_soft_label_is_a_share_of_two_hard_ones():
  x = np.array([-1.0, 0.0, 2.0])
  soft = logistic.fit_falling(x, np.array([0.9, 0.6, 0.2]))
  hard = logistic.fit_falling(
    np.tile(x, 2),
    np.repeat([1.0, 0.0], 3),
    np.array([0.9, 0.6, 0.2, 0.1, 0.4, 0.8]),
  )
  assert soft.intercept == pytest.approx(hard.intercept, abs=1e-4)
  assert soft.slope == pytest.approx(hard.slope, abs=1e-4)


def test_it_never_rises_and_stays_finite():
  x = np.arange(10.0)
  rising = logistic.fit_falling(x, x > 4)
  assert rising.slope == 0
  assert rising.probability(x) == pytest.approx(np.full(10, 0.5), abs=1e-4)
  parted = logistic.fit_falling(x, x < 4.5)
  assert 1 < parted.slope < 50
  sure = logistic.fit_falling(x, np.ones(10))
  assert 0.99 < sure.probability(x).min() < 1
  assert (parted.probability(x) > 0.5).tolist() == (x < 4.5).tolist()


def test_stated_probabilities_by_hand():
  stated, good = np.array([0.1, 0.3, 0.9, 1.0]), np.array([0, 1, 1, 1], bool)
  assert logistic.brier(stated, good) == pytest.approx(
    (0.01 + 0.49 + 0.01 + 0) / 4
  )
  assert logistic.log_loss(stated[:3], good[:3]) == pytest.approx(
    -(np.log(0.9) + np.log(0.3) + np.log(0.9)) / 3
  )
  assert np.isfinite(logistic.log_loss(np.array([0.0]), np.array([True])))
  table = logistic.reliability(stated, good, np.array([0, 0.5, 0.8, 1.0]))
  assert table == [
    {
      "low": 0,
      "high": 0.5,
      "stated": pytest.approx(0.2),
      "observed": 0.5,
      "count": 2,
    },
    {
      "low": 0.8,
      "high": 1,
      "stated": pytest.approx(0.95),
      "observed": 1,
      "count": 2,
    },
  ]


def test_refusals():
  one = np.array([0.5])
  for call, words in (
    (lambda: logistic.fit_falling(one, np.array([2.0])), "not all in"),
    (lambda: logistic.fit_falling(one, np.array([np.nan])), "not all in"),
    (lambda: logistic.fit_falling(one, np.ones(2)), "one of each per case"),
    (lambda: logistic.fit_falling(np.array([np.inf]), one), "finite"),
    (lambda: logistic.fit_falling(one, one, np.zeros(1)), "positive"),
    (lambda: logistic.brier(one, np.ones(2)), "one of each per case"),
    (lambda: logistic.brier(one * 3, one), "not all in"),
  ):
    with pytest.raises(ValueError, match=words):
      call()
