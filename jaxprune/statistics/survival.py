"""Did a task survive pruning, and would other items have given that answer?

A task survives if the pruned model keeps at least a given share of the dense
score. Resampling the items, which both models answered, says how often the
answer would have been the same.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxprune.statistics import intervals

_ROUNDING = 1e-9  # 0.36 / 0.4 is less than 0.9 in floating point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survival:
  """Whether a task survived pruning.

  Attributes:
    score: of the pruned model; a perplexity for nll.
    dense: score of the dense model.
    kept: score / dense; for a perplexity dense / score. 1 is no loss.
    survives: `kept` is at least what was asked for.
    certainty: fraction of the resamples of the items with the same answer, in
      [0, 1].
  """

  score: float
  dense: float
  kept: float
  survives: bool
  certainty: float


def survive(
  dense: np.ndarray,
  pruned: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  lower_is_better: bool = False,
  keep: float = 0.9,
  seed: int = 0,
  resamples: int = 1000,
) -> Survival:
  """Whether the pruned model keeps enough of the dense score.

  Args:
    dense: score of each item, [items]; nats with `lower_is_better`.
    pruned: scores of the pruned model on the same items, [items].
    weights: what a mean divides by, [items]; None is 1.
    lower_is_better: the score is exp of the mean, a perplexity.
    keep: least `kept` that is called survival.
    seed: of the resampling of items, which are paired.
    resamples: number of resamples, at least 100.

  Raises:
    ValueError: shapes differ, a score is not finite, or the dense score is 0.
  """
  dense, pruned = (np.asarray(x, np.float64) for x in (dense, pruned))
  weights = (
    np.ones_like(dense) if weights is None else np.asarray(weights, np.float64)
  )
  if (
    not dense.shape == pruned.shape == weights.shape
    or dense.ndim != 1
    or not dense.size
  ):
    raise ValueError(
      f"scores of {list(dense.shape)} and {list(pruned.shape)} items with"
      f" weights {list(weights.shape)}: give both models' scores of the same"
      " items"
    )
  if not (np.isfinite(dense).all() and np.isfinite(pruned).all()):
    raise ValueError(
      "scores: not finite; leave such a configuration out and say so"
    )
  score, base = _scores(
    dense.sum(), pruned.sum(), weights.sum(), lower_is_better
  )
  if base == 0:
    raise ValueError(
      "the dense model scores 0: no share of it can be kept; leave the task out"
    )
  kept = _share(score, base, lower_is_better)

  def kept_of(drawn):
    sums = (each[drawn].sum(-1) for each in (dense, pruned, weights))
    return _share(*_scores(*sums, lower_is_better), lower_is_better)

  replicates = intervals.replicates(kept_of, dense.size, seed, resamples)
  survives = is_enough(kept, keep)
  return Survival(
    score=float(score),
    dense=float(base),
    kept=float(kept),
    survives=bool(survives),
    certainty=float(np.mean(is_enough(replicates, keep) == survives)),
  )


def is_enough(kept: Any, keep: float) -> Any:
  """Whether `kept` is at least `keep`, whatever a division has rounded off.

  Args:
    kept: share of the dense score, a number or an array.
    keep: the least share that is called survival.
  """
  return kept >= keep - _ROUNDING


def _scores(dense, pruned, weights, lower_is_better):
  """Scores of the pruned and of the dense model from sums over items."""
  if lower_is_better:
    return np.exp(pruned / weights), np.exp(dense / weights)
  return pruned / weights, dense / weights


def _share(score, base, lower_is_better):
  if lower_is_better:
    return base / score
  # On a resample whose dense score is 0 nothing can be lost.
  return np.divide(score, base, out=np.ones_like(score), where=base != 0)
