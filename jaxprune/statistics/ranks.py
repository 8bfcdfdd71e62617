"""Do two series of numbers rank things alike?

Spearman's rho is the Pearson correlation of the ranks; equal values share the
mean of their ranks. Semantic similarity tasks measure it between the cosine of
two embeddings and the judgement of people.

Reference: Spearman (1904); Cer et al., STS Benchmark, arXiv:1708.00055.
"""

import numpy as np
import scipy  # its parts are imported when first used

from jaxprune.statistics import intervals
from jaxprune.statistics.estimate import Estimate


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Spearman's rho, in [-1, 1]; NaN where one side does not vary.

  Args:
    x: real [..., n], n at least 2.
    y: real [..., n].

  Returns:
    float64 [...], the axes before the last being broadcast.

  Raises:
    ValueError: the lengths differ or are below 2, or a value is not finite.
  """
  x, y = (np.asarray(values, np.float64) for values in (x, y))
  if not x.ndim or x.shape[-1:] != y.shape[-1:] or x.shape[-1] < 2:
    raise ValueError(
      f"rank correlation of shapes {list(x.shape)} and {list(y.shape)}: give"
      " two series of one length, at least 2"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("rank correlation: a value is not finite")
  x, y = _centred_ranks(x), _centred_ranks(y)
  scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
  # Ranks are halves, so that those of equal values differ from their mean by 0.
  rho = (x * y).sum(-1) / np.where(scale > 0, scale, np.nan)
  return np.clip(rho, -1, 1)


def _centred_ranks(values):
  ranks = scipy.stats.rankdata(values, axis=-1)
  return ranks - (values.shape[-1] + 1) / 2


def spearman(
  x: np.ndarray,
  y: np.ndarray,
  groups: np.ndarray | None = None,
  *,
  seed: int = 0,
  resamples: int = intervals.RESAMPLES,
) -> Estimate:
  """Spearman's rho with an interval that resamples whole groups.

  Args:
    x: real [n], n at least 2.
    y: real [n].
    groups: [n], equal for rows of one prompt; None: every row is its own.
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Raises:
    ValueError: the lengths differ or are below 2, a value is not finite, or
      one side does not vary on a resample.
  """
  rank_correlation(x, y)  # checks the shapes
  return intervals.statistic(
    lambda rows: rank_correlation(rows[..., 0], rows[..., 1]),
    np.stack([x, y], axis=1),
    groups,
    vectorized=True,
    seed=seed,
    resamples=resamples,
  )
