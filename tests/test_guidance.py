"""Features, survival, rules and verdicts against hand-sized tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.studies.guidance import rules
from tests.guidance_sweeps_made import measurements


def table():
  """Two prompts of three and two steps; the first flips at its second step."""
  return {
    "prompt": [0, 0, 0, 1, 1],
    "step": [0, 1, 2, 0, 1],
    "cos_h": [1.0, 0.9, 0.8, 1.0, 0.5],
    "cos_z": [1.0] * 5,
    "cos_z_centred": [0.9] * 5,
    "cos_p": [1.0, 1.0, 1.0, 1.0, 0.0],
    "kl": [0.0, 1.0, 2.0, 3.0, 4.0],
    "var_p": [0.0, 0.0, 0.0, 0.0, 4.0],
    "rms_dz": [1.0, 1.0, 1.0, 1.0, 1.0],
    "max_abs_dz": [1.0, 1, 1, 1, 3],
    "margin": [4.0, 2.0, 1.0, 8.0, 8.0],
    "flip": [False, True, True, False, False],
    "entropy": [0.0] * 5,
  }


def test_features_by_hand():
  found = rules.features(table())
  assert tuple(found) == rules.FEATURES
  expected = {
    "flip_rate": 2 / 5,
    # Two steps to the flip of the first prompt, two without of the second.
    "first_flip_hazard": 1 / 4,
    "flipped_prompts": 1 / 2,
    # 2 max |dz| = 2, 2, 2, 2, 6 against the margins.
    "reachable": 2 / 5,
    "mean_kl": 2,
    "median_kl": 2,
    "p90_kl": 3.6,
    "max_kl": 4,
    "mean_one_minus_cos_h": 0.8 / 5,
    "median_one_minus_cos_h": 0.1,
    "mean_one_minus_cos_p": 0.2,
    "max_one_minus_cos_z": 0,
    "mean_one_minus_cos_z_centred": 0.1,
    "mean_sd_p": 0.4,
    "max_sd_p": 2,
    "median_sd_p": 0,
    "max_relative_shift": 1,
    "median_relative_shift": 0.25,
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(value), name


@given(st.permutations(range(5)))
def test_features_know_no_order(order):
  moved = {name: [values[i] for i in order] for name, values in table().items()}
  found, expected = rules.features(moved), rules.features(table())
  for name in rules.FEATURES:
    assert found[name] == pytest.approx(expected[name]), name


def test_dense_against_itself_is_zero():
  found = rules.features(measurements(0.0, 0))
  assert set(found.values()) == {0.0}


def test_more_damage_is_larger():
  less, more = (
    rules.features(measurements(damage, flips))
    for damage, flips in ((0.1, 1), (1.5, 9))
  )
  assert all(more[name] > less[name] for name in rules.FEATURES)


def test_features_refuse():
  for change, words in (
    ({"kl": [0.0, np.nan, 0, 0, 0]}, "kl is not finite at 1 of 5"),
    ({"kl": [0.0]}, "one value per position"),
    ({"flip": None}, ""),
  ):
    broken = {
      name: values
      for name, values in (table() | change).items()
      if values is not None
    }
    with pytest.raises(ValueError, match=words or "lack flip"):
      rules.features(broken)


def test_the_best_feature_is_chosen():
  kept = np.array([1.0, 0.95, 0.8, 0.5])
  survives = kept >= 0.9
  rule = rules.fit_rule(
    {
      "constant": np.ones(4),
      "wrong": np.array([4.0, 3, 2, 1]),
      "coarse": np.array([0.0, 0, 1, 1]),
      "fine": np.array([1.0, 2, 4, 8]),
    },
    kept,
    survives,
  )
  assert rule["feature"] == "fine"  # As exact as coarse, and ranks better.
  assert (rule["threshold"], rule["gap"]) == (3, [2, 4])
  assert (rule["balanced_error"], rule["auc"], rule["tried"]) == (0, 1, 4)
  assert rule["spearman"] == pytest.approx(-1)
  assert (
    rules.fit_rule({"fine": np.arange(4.0)}, kept, np.ones(4, bool)) is None
  )


def test_check_answers_by_hand():
  found = rules.check_answers(
    np.array([True, True, True, False, False]),
    np.array([True, False, False, True, False]),
    np.array(["a", "a", "b", "b", "b"]),
  )
  assert (found["error"], found["false_yes"], found["false_no"]) == (0.6, 2, 1)
  assert (found["models"], found["survived"], found["groups"]) == (5, 2, 2)
  # Two of three bad ones are called good, one of two good ones bad.
  assert found["balanced_error"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def entry(**changes):
  return {
    "feature": "mean_kl",
    "threshold": 0.12,
    "gap": [0.02, 0.5],
    "held_out": {
      "error": 0.08,
      "low": 0.01,
      "high": 0.2,
      "models": 12,
      "groups": 4,
      "survived": 5,
    },
  } | changes


def test_verdicts():
  measured = dict.fromkeys(rules.FEATURES, 0.0)
  yes = rules.verdict("choose", entry(), measured | {"mean_kl": 0.01})
  assert yes["answer"] == "yes" and yes["text"] == (
    "choose: yes (mean_kl 0.01 <= 0.12; held-out error 8 % [1, 20], 12 models"
    " of 4 methods)"
  )
  assert (
    rules.verdict("choose", entry(), measured | {"mean_kl": 0.12})["answer"]
    == "yes"
  )
  no = rules.verdict("choose", entry(), measured | {"mean_kl": 0.3})
  assert no["answer"] == "no" and "0.3 > 0.12" in no["text"]
  assert "between 0.02 and 0.5" in no["text"]
  for survived, words in (
    (12, "none of which failed"),
    (0, "all of which failed"),
  ):
    one_class = entry()
    one_class["held_out"]["survived"] = survived
    assert words in rules.verdict("choose", one_class, measured)["text"]
  assert rules.verdict("choose", entry(warning="few"), measured)[
    "text"
  ].endswith("; few)")
  assert (
    "never checked"
    in rules.verdict("choose", entry(held_out=None), measured)["text"]
  )


def test_no_rule_is_no_answer():
  saturated = {
    "feature": None,
    "reason": "every pruned model survived",
    "range": {name: [0.0, 0.5] for name in rules.FEATURES},
  }
  measured = dict.fromkeys(rules.FEATURES, 0.1)
  inside = rules.verdict("choose", saturated, measured)
  assert inside["answer"] == "unknown" and "every" in inside["text"]
  assert "No feature lies above" in inside["text"]
  outside = rules.verdict("choose", saturated, measured | {"max_kl": 9.0})
  assert "max_kl lie above" in outside["text"]
