"""Do two series of numbers rank things alike?

Spearman's rho is the Pearson correlation of the ranks; equal values share the
mean of their ranks. Semantic similarity tasks measure it between the cosine of
two embeddings and the judgement of people.

Reference: Spearman (1904); Cer et al., STS Benchmark, arXiv:1708.00055.
"""

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
  """Ranks from 1, ascending; equal values share the mean of their ranks.

  Args:
    values: real [n].

  Returns:
    float64 [n].
  """
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Spearman's rho, in [-1, 1].

  Args:
    x: real [n], n at least 2.
    y: real [n].

  Raises:
    ValueError: the lengths differ or are below 2, a value is not finite, or
      all values of one side are equal.
  """
  x, y = (np.asarray(values, np.float64) for values in (x, y))
  if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
    raise ValueError(
      f"rank correlation of shapes {list(x.shape)} and {list(y.shape)}: give"
      " two series of one length, at least 2"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("rank correlation: a value is not finite")
  x, y = (ranks - ranks.mean() for ranks in map(average_ranks, (x, y)))
  scale = np.sqrt((x @ x) * (y @ y))
  if scale == 0:
    raise ValueError(
      "rank correlation: all values of one side are equal, so they rank nothing"
    )
  return float(x @ y / scale)
