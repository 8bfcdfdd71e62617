"""Survival of a task: by hand, on the line, and how often resamples agree."""

import numpy as np
import pytest

from jaxprune import statistics


def test_survival_by_hand():
  dense = np.array([1.0, 1, 1, 1, 0])
  result = statistics.survive(dense, np.array([1.0, 1, 1, 0, 0]))
  assert (result.score, result.dense) == (0.6, 0.8)
  assert result.kept == pytest.approx(0.75) and not result.survives
  assert statistics.survive(dense, dense).certainty == 1
  # Exactly on the line, which floating point puts below it.
  line = statistics.survive(np.array([0.4]), np.array([0.36]), keep=0.9)
  assert line.survives and line.certainty == 1


def test_survival_of_a_perplexity():
  nll = np.array([2.0, 6.0])
  tokens = np.array([1.0, 3.0])
  result = statistics.survive(
    nll, nll + 0.2 * tokens, weights=tokens, lower_is_better=True
  )
  assert result.dense == pytest.approx(np.exp(2))
  assert result.score == pytest.approx(np.exp(2.2))
  assert result.kept == pytest.approx(np.exp(-0.2)) and not result.survives
  # The loss per token is the same for each item, so no resample disagrees.
  assert result.certainty == 1
  assert statistics.survive(
    nll, nll + 0.1 * tokens, weights=tokens, lower_is_better=True
  ).survives


def test_certainty_counts_resamples():
  """One of two items lost: half of the draws of two have exactly that."""
  result = statistics.survive(
    np.ones(2), np.array([1.0, 0.0]), keep=0.9, resamples=4000
  )
  # Survives only if the kept item is drawn twice, with probability 1/4.
  assert not result.survives
  assert result.certainty == pytest.approx(0.75, abs=0.03)


def test_survival_refuses():
  with pytest.raises(ValueError, match="dense model scores 0"):
    statistics.survive(np.zeros(3), np.ones(3))
  with pytest.raises(ValueError, match="same items"):
    statistics.survive(np.ones(3), np.ones(2))
  with pytest.raises(ValueError, match="not finite"):
    statistics.survive(np.ones(2), np.array([1.0, np.inf]))


def test_certainty_is_the_share_of_resamples_with_the_same_answer():
  rng = np.random.default_rng(3)
  dense, pruned = rng.integers(0, 2, (2, 12)).astype(float)
  result = statistics.survive(dense, pruned, keep=0.8, seed=5, resamples=300)
  drawn = np.random.default_rng(5).integers(12, size=(300, 12))
  base, score = dense[drawn].sum(1), pruned[drawn].sum(1)
  kept = np.divide(score, base, out=np.ones(300), where=base > 0)
  same = (kept >= 0.8 - 1e-9) == result.survives
  assert result.certainty == same.mean()
