"""The page of `evaluate`: a table per task."""

from collections.abc import Iterable, Mapping, Sequence
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
  return list_scores(
    (
      task,
      [by_model[name] for name in summary["models"] if name in by_model],
      metric,
    )
    for task, metrics in summary["tasks"].items()
    for metric, by_model in list(metrics.items())[:1]
  )


def list_scores(
  scores: Iterable[tuple[str, Sequence[Mapping[str, Any]], str]],
) -> str:
  """The first scores, in one line.

  Args:
    scores: (task, its scores as a summary stores them, of one model or of the
      dense and the pruned one, name of the metric).

  Returns:
    The line; empty where there is no score.
  """
  return page.list_first(
    [
      f"{task} "
      + " → ".join(page.format_number(entry["value"], 3) for entry in entries)
      + f" ({metric})"
      for task, entries, metric in scores
    ]
  )


def _cell(entry) -> Estimate | None:
  return None if entry is None else Estimate.from_json(entry)
