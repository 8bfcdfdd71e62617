"""What does a person read? Records, intervals, figures and one page."""

from jaxprune.report.fields import FIELDS, Field, axis_label
from jaxprune.report.records import RunFolder, describe_run
from jaxprune.report.tables import Columns, columns, read_records, write_csv
from jaxprune.statistics import (
  Bin,
  Estimate,
  bin_index,
  binned_means,
  quantile_edges,
)
from jaxprune.statistics.bootstrap import (
  Interval,
  mean_interval,
  ratio_interval,
  statistic_interval,
)

__all__ = [
  "Bin",
  "Columns",
  "Estimate",
  "FIELDS",
  "Field",
  "Interval",
  "RunFolder",
  "axis_label",
  "bin_index",
  "binned_means",
  "columns",
  "describe_run",
  "mean_interval",
  "quantile_edges",
  "ratio_interval",
  "read_records",
  "statistic_interval",
  "write_csv",
]
