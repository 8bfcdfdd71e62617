"""The page of `code_tasks`: how many programs pass, and why others do not."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate


def render(
  summary: Mapping[str, Any],
  reasons: Sequence[str],
  description: Mapping[str, Any],
) -> str:
  """Make report.html.

  Args:
    summary: from `code.summarise`.
    reasons: of every completion, how its program ended; empty where nothing
      was run.
    description: of the run.
  """
  counts = collections.Counter(reasons).most_common()
  isolation = summary.get("isolation")
  return page.render_page(
    title=f"Programs of {summary['format']}",
    finding=finding(summary),
    verdict=f"Every program ran with limits, isolated by {isolation}."
    if isolation
    else "The completions are in records.jsonl; --allow_code_execution runs"
    " them, isolated.",
    sections=[
      page.Section(
        title="How the programs ended",
        tables=[
          page.Table(
            caption="Completions by how their programs ended.",
            columns=("end", "completions"),
            rows=counts,
          )
        ],
      )
    ]
    if counts
    else [],
    run=description,
  )


def finding(summary: Mapping[str, Any]) -> str:
  """How many tasks are solved, in one line.

  Args:
    summary: from `code.summarise`.
  """
  where = f"of {summary['tasks']} tasks of {summary['format']}"
  for name, entry in summary.items():
    if name.startswith("pass@"):
      score = Estimate.from_json(entry)
      ends = " to ".join(f"{100 * end:.0f}" for end in (score.low, score.high))
      tries = name.partition("@")[2]
      within = "" if tries == "1" else f" within {tries} tries"
      return f"{100 * score.value:.0f} % [{ends}] {where} are solved{within}"
  return f"Nothing was run {where}"
