"""The page of `evaluate`: a table per task."""

from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate


def render(summary: dict[str, Any], description: dict[str, Any]) -> str:
  """Make report.html.

  Args:
    summary: from `summary.summarise`.
    description: of the run.
  """
  columns = list(summary["models"])
  if len(columns) > 1:
    columns.append("change")
  sections = [
    page.Section(
      title=task,
      paragraphs=tuple(
        f"{metric}: an item is right where {rule}."
        for metric, rule in summary["rules"].get(task, {}).items()
      ),
      tables=[
        page.Table(
          caption="Estimate over items with its 95 % interval: Wilson's for"
          " what is right or wrong, else resampling items; change is pruned"
          " less dense, item by item.",
          columns=("metric", "items", *columns),
          rows=[
            (
              metric,
              next(iter(by_model.values()))["count"],
              *(_cell(by_model.get(name)) for name in columns),
            )
            for metric, by_model in metrics.items()
          ],
        )
      ],
    )
    for task, metrics in summary["tasks"].items()
  ]
  return page.render_page(
    title="Scores on tasks",
    finding=finding(summary),
    verdict=(
      f"{len(summary['tasks'])} tasks, models: " + ", ".join(summary["models"])
    ),
    sections=sections,
    run=description,
  )


def finding(summary: dict[str, Any]) -> str:
  """The first metric of each task, dense and pruned, in one line.

  Args:
    summary: from `summary.summarise`.
  """
  said = []
  for task, metrics in summary["tasks"].items():
    metric, by_model = next(iter(metrics.items()))
    scores = " → ".join(
      page.format_number(float(by_model[name]["value"]), 3)
      for name in summary["models"]
      if name in by_model
    )
    said.append(f"{task} {scores} ({metric})")
  return page.list_first(said)


def _cell(entry) -> Estimate | None:
  return None if entry is None else Estimate.from_json(entry)
