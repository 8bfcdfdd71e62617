"""How sure is a number? Estimates with intervals.

estimate     a value with its ends and count
intervals    mean, ratio, proportion and any statistic, over groups; differences
bins         a mean in each bin of another quantity
ranks        rank correlations
separation   how well a threshold tells two classes apart
survival     whether a task keeps enough of the dense score
retention    the part of a score above chance that is kept, or unknown
"""

from jaxprune.statistics.bins import (
  Bin,
  bin_index,
  binned_means,
  quantile_edges,
)
from jaxprune.statistics.estimate import (
  UNKNOWN,
  Estimate,
  as_estimate,
  format_number,
)
from jaxprune.statistics.intervals import (
  difference,
  finite_mean,
  mean,
  proportion,
  ratio,
  statistic,
)
from jaxprune.statistics.ranks import rank_correlation, spearman
from jaxprune.statistics.retention import STATES, Retention, retention
from jaxprune.statistics.separation import (
  Threshold,
  auc,
  balanced_error,
  fit_threshold,
)
from jaxprune.statistics.survival import Survival, is_enough, survive

__all__ = [
  "Bin",
  "Estimate",
  "Retention",
  "STATES",
  "Survival",
  "Threshold",
  "UNKNOWN",
  "as_estimate",
  "auc",
  "balanced_error",
  "bin_index",
  "binned_means",
  "difference",
  "finite_mean",
  "fit_threshold",
  "format_number",
  "is_enough",
  "mean",
  "proportion",
  "quantile_edges",
  "rank_correlation",
  "ratio",
  "retention",
  "spearman",
  "statistic",
  "survive",
]
