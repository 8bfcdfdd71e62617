"""Chance-corrected retention: by hand, brute force, and coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.statistics.retention import KEPT, LOST, UNDECIDED, retention


def answers(right, count):
  return np.arange(count) < right


def test_value_by_hand():
  result = retention(answers(40, 100), answers(55, 100), 0.25)
  assert result.value == pytest.approx((0.40 - 0.25) / (0.55 - 0.25))
  assert (result.pruned, result.dense, result.count) == (0.40, 0.55, 100)
  assert result.state == LOST and not result.reason
  # Chance differs between questions: the mean counts.
  mixed = np.where(answers(50, 100), 0.5, 0.25)
  assert retention(
    answers(40, 100), answers(55, 100), mixed
  ).value == pytest.approx((0.40 - 0.375) / (0.55 - 0.375))


def test_interval_holds_the_ratios_that_are_not_refuted():
  """Brute force: every ratio is tested on the items, half of each added."""
  draw = np.random.default_rng(0)
  dense = draw.random(60) < 0.7
  pruned = np.where(draw.random(60) < 0.2, draw.random(60) < 0.25, dense)
  result = retention(pruned, dense, 0.25)
  # Twice the items and each outcome once: the same weights as once and a half.
  p = np.concatenate([pruned, pruned, [1, 1, 0, 0]]).astype(float)
  d = np.concatenate([dense, dense, [1, 0, 1, 0]]).astype(float)
  ratios = np.linspace(0, 2, 4001)
  contrasts = (p - 0.25) - ratios[:, None] * (d - 0.25)
  errors = np.sqrt(contrasts.var(axis=1) / (len(p) / 2))
  inside = ratios[np.abs(contrasts.mean(axis=1)) <= 1.959964 * errors]
  assert result.low == pytest.approx(inside.min(), abs=1e-3)
  assert result.high == pytest.approx(inside.max(), abs=1e-3)
  assert result.low < result.value < result.high


@pytest.mark.parametrize(
  ("items", "chance", "lost"), [(40, 0.0, 0.3), (150, 0.25, 0.1)]
)
def test_interval_covers_the_true_ratio(items, chance, lost):
  """Nineteen times in twenty, for few items and for many."""
  draw, truth, hits = np.random.default_rng(1), 0.7, 400
  covered = 0
  for _ in range(hits):
    dense = draw.random(items) < truth
    pruned = np.where(draw.random(items) < lost, False, dense)
    result = retention(pruned, dense, chance)
    ratio = (truth * (1 - lost) - chance) / (truth - chance)
    covered += result.low <= ratio <= result.high
  assert 0.925 <= covered / hits <= 0.985


def test_states():
  many = answers(800, 1000)
  assert retention(many, many, 0.25).state == KEPT
  assert retention(answers(400, 1000), many, 0.25).state == LOST
  close = retention(answers(72, 100), answers(80, 100), 0.0)
  assert close.state == UNDECIDED and "100 items cannot tell" in close.reason
  # The same drop is decided for another threshold.
  assert retention(answers(72, 100), answers(80, 100), 0.0, 0.5).state == KEPT


def test_a_dense_model_near_chance_has_nothing_to_lose():
  for right in (20, 25, 30):
    result = retention(answers(right, 100), answers(27, 100), 0.25)
    assert result.state == UNDECIDED and "near chance" in result.reason
  unbounded = retention(answers(20, 100), answers(25, 100), 0.25)
  assert np.isnan(unbounded.value)
  assert (unbounded.low, unbounded.high) == (-np.inf, np.inf)
  # Worse than chance is no skill either, however sure it is.
  assert retention(answers(0, 900), answers(0, 900), 0.5).state == UNDECIDED
  # A generation task that the dense model almost never solves.
  assert retention(answers(0, 150), answers(3, 150), 0.0).state == UNDECIDED


def test_equal_answers_are_not_certain_if_they_are_few():
  few, more = (retention(answers(n, n), answers(n, n), 0.0) for n in (5, 500))
  assert few.value == more.value == 1
  assert few.state == UNDECIDED and more.state == KEPT
  assert few.low < more.low < 1 < more.high < few.high
  none = retention(answers(0, 100), answers(100, 100), 0.0)
  assert none.state == LOST and none.value == 0 and none.low <= 0 < none.high


def test_probability_agrees_with_the_interval():
  dense = answers(80, 100)
  found = [retention(answers(n, 100), dense, 0.0) for n in (40, 66, 72, 80)]
  assert np.all(np.diff([each.probability for each in found]) > 0)
  assert found[0].probability < 0.025 and found[-1].probability > 0.975
  assert [each.state for each in found] == [LOST, UNDECIDED, UNDECIDED, KEPT]


@given(
  st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60),
  st.sampled_from([0.0, 0.25, 0.5]),
)
def test_items_know_no_order_and_the_interval_holds_the_value(pairs, chance):
  pruned, dense = np.array(pairs).T
  result = retention(pruned, dense, chance)
  turned = retention(pruned[::-1], dense[::-1], chance)
  assert result.low == pytest.approx(turned.low)
  assert result.state == turned.state
  if result.state != UNDECIDED:
    assert result.low <= result.value <= result.high


def test_refusals():
  right = answers(3, 4)
  for pruned, dense, chance, words in (
    (right, right[:3], 0.0, "same items"),
    ([], [], 0.0, "same items"),
    (right * 100.0, right, 0.0, r"pruned_items: not all in \[0, 1\]"),
    (right, np.array([0, 0, np.nan, 1]), 0.0, "dense_items: not all"),
    (right, right, 1.5, "chance: not all"),
    (right, right, [0.5, 0.5], "chance: 2 levels for 4 items"),
  ):
    with pytest.raises(ValueError, match=words):
      retention(pruned, dense, chance)
