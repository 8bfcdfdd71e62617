"""The pages of `compare_models` and `compare_methods`."""

from typing import Any

from jaxprune.report import page
from jaxprune.studies.sweep.compare_methods import format_difference
from jaxprune.studies.sweep.scores import DENSE, by_metric


def render_models(summary: dict[str, Any], description: dict[str, Any]) -> str:
  """Make report.html: a table per task and metric, and the agreement.

  Args:
    summary: from `compare_models.summarise`.
    description: of the run.
  """
  digits = page.format_number
  rows = summary["configurations"]
  sections = [
    _table(
      f"{task}, {metric}",
      "Mean over dense models (lowest to highest), the part of the"
      " dense score that is kept, and in how many of them enough is.",
      ("configuration", "score", "kept", "survives"),
      [
        (
          row["configuration"],
          f"{digits(row['value'])} ({digits(row['low'])} to"
          f" {digits(row['high'])})",
          f"{row['kept']:.3f} ({row['kept_low']:.3f} to"
          f" {row['kept_high']:.3f})",
          f"{row['survives']} of {row['models']}",
        )
        for row in chosen
      ],
    )
    for task, metric, chosen in by_metric(rows)
  ]
  sections.append(
    _table(
      "Do they agree?",
      "Rank correlation of what two dense models keep, lowest and"
      " highest pair; configurations in which all agree on survival.",
      ("task", "metric", "Spearman", "agree"),
      [
        (
          entry["task"],
          entry["metric"],
          f"{entry['low']:.3f} to {entry['high']:.3f}",
          f"{entry['agree']} of {entry['configurations']}",
        )
        for entry in summary["order"]
      ],
    )
  )
  names = {row["configuration"] for row in rows} - {DENSE}
  return page.render_page(
    title="The same configurations of several dense models",
    finding="; ".join(
      f"{entry['task']}: the dense models agree on {entry['agree']} of"
      f" {entry['configurations']} prunings"
      for entry in summary["order"]
    ),
    verdict=f"{len(names)} ways to prune, {rows[0]['models']} dense models.",
    sections=sections,
    run=description,
  )


def render_methods(summary: dict[str, Any], description: dict[str, Any]) -> str:
  """Make report.html: a table per task and metric, and how far methods go.

  Args:
    summary: from `compare_methods.summarise`.
    description: of the run.
  """
  sections = [
    _table(
      f"{task}, {metric}",
      "Paired difference by item of the mean over seeds, 95 %"
      " interval resampling items, lowest and highest seed.",
      ("configuration", "score", "against", "its score", "difference"),
      [
        (
          row["configuration"],
          row["score"],
          row["against"],
          row["score_against"],
          format_difference(row),
        )
        for row in chosen
      ],
    )
    for task, metric, chosen in by_metric(summary["differences"])
  ]
  sections.append(
    _table(
      "How far each method goes",
      f"Largest amount up to which {summary['survival']:.0%} of the"
      " dense score are left; none: not even at the smallest.",
      ("method", "task", "metric", "survives", "largest tried"),
      [
        (
          entry["method"],
          entry["task"],
          entry["metric"],
          "none" if entry["survives"] is None else entry["survives"],
          entry["largest"],
        )
        for entry in summary["survives"]
      ],
    )
  )
  return page.render_page(
    title="Methods against one another, item by item",
    finding=f"Against {summary['baseline']}: better in {summary['better']}"
    f" comparisons and worse in {summary['worse']}, of"
    f" {len(summary['differences'])}",
    verdict="Only intervals that leave out 0 count; there is no correction for"
    " their number, and perplexity is not counted.",
    sections=sections,
    run=description,
  )


def _table(title, caption, columns, rows) -> page.Section:
  """A section that is one table."""
  table = page.Table(caption=caption, columns=columns, rows=rows)
  return page.Section(title=title, tables=[table])
