"""How does a mean change with another quantity?

Rows are sorted into bins by a quantity such as the entropy of the dense
distribution, and each bin has its own mean with an interval over prompts.
"""

import dataclasses

import numpy as np

from jaxprune.statistics import intervals
from jaxprune.statistics.estimate import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bin:
  """The rows with low <= quantity < high; the last bin has its high too.

  Attributes:
    low: lower edge.
    high: upper edge.
    centre: mean of the quantity over the rows.
    rows: number of rows.
    estimate: the mean of the measure over the rows; its count is of groups.
  """

  low: float
  high: float
  centre: float
  rows: int
  estimate: Estimate


def quantile_edges(values: np.ndarray, count: int) -> np.ndarray:
  """Edges of at most `count` bins that hold about as many rows each.

  Args:
    values: real [rows]. Up to `count` distinct values get a bin of their own.
    count: at least 1.

  Returns:
    Ascending edges [bins + 1]; the last two are equal where the last bin holds
    one value.

  Raises:
    ValueError: no value, one that is not finite, or count < 1.
  """
  values = np.asarray(values, np.float64)
  if count < 1 or not values.size or not np.isfinite(values).all():
    raise ValueError(
      f"count={count}, {values.size} values: need at least one bin and"
      " finite values only"
    )
  distinct = np.unique(values)
  if len(distinct) <= count:
    return np.append(distinct, distinct[-1])
  edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
  return edges if len(edges) > 1 else np.append(edges, edges)


def bin_index(by: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Returns the bin of each row, int [rows].

  Args:
    by: real [rows].
    edges: ascending [bins + 1]. A value on an inner edge is in the upper bin.

  Raises:
    ValueError: fewer than two edges, edges out of order, or a value outside.
  """
  by, edges = np.asarray(by, np.float64), np.asarray(edges, np.float64)
  if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) < 0).any():
    raise ValueError(f"edges={edges.tolist()}: give two or more, ascending")
  outside = ~((by >= edges[0]) & (by <= edges[-1]))
  if outside.any():
    raise ValueError(
      f"{by[outside][0]} is outside of the bins, {edges[0]} to {edges[-1]}"
    )
  place = np.searchsorted(edges, by, side="right") - 1
  return np.minimum(place, len(edges) - 2)


def binned_means(
  values: np.ndarray,
  by: np.ndarray,
  groups: np.ndarray,
  edges: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 1000,
) -> list[Bin]:
  """Mean of `values` in each bin of `by`, with an interval over groups.

  Args:
    values: real or bool [rows].
    by: real [rows].
    groups: [rows], equal for rows of one prompt.
    edges: ascending [bins + 1], see `bin_index`.
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Returns:
    The bins that have rows, in order.

  Raises:
    ValueError: a value of `by` is outside of the edges, shapes differ, or a
      value is not finite.
  """
  values, by, groups = map(np.asarray, (values, by, groups))
  place, bins = bin_index(by, edges), []
  for index in np.unique(place):
    keep = place == index
    bins.append(
      Bin(
        low=float(edges[index]),
        high=float(edges[index + 1]),
        centre=float(np.mean(by[keep])),
        rows=int(keep.sum()),
        estimate=intervals.mean(
          values[keep], groups[keep], seed=seed, resamples=resamples
        ),
      )
    )
  return bins
