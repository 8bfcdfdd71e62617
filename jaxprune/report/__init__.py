"""What does a person read? Records, figures and one page.

records, tables, fields                  rows of numbers, and what each means
canvas, figures, maps, points            figures, as data
attribution_figures                      figures of divided changes
page, html, templates/                   report.html, and figures as SVG"""

from jaxprune.report.fields import FIELDS, Field, axis_label
from jaxprune.report.records import RunFolder, Summary, describe_run
from jaxprune.report.tables import Columns, columns, read_records, write_csv

__all__ = [
  "Columns",
  "FIELDS",
  "Field",
  "RunFolder",
  "Summary",
  "axis_label",
  "columns",
  "describe_run",
  "read_records",
  "write_csv",
]
