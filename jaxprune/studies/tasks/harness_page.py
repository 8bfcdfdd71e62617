"""The page of `harness`: what lm-evaluation-harness says of a model."""

from collections.abc import Mapping
from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate
from jaxprune.studies.tasks.page import list_scores


def render(summary: Mapping[str, Any], description: Mapping[str, Any]) -> str:
  """Make report.html.

  Args:
    summary: from `harness.summarise`.
    description: of the run.
  """
  rows = [
    (task, metric, entry.get("count"), _score(entry))
    for task, metrics in summary["tasks"].items()
    for metric, entry in metrics.items()
  ]
  return page.render_page(
    title="Scores of lm-evaluation-harness",
    finding=finding(summary),
    verdict="Questions, prompts, filters and metrics are the harness's own;"
    f" version {description.get('lm_eval', 'not known')}.",
    sections=[
      page.Section(
        title="Scores",
        tables=[
          page.Table(
            caption="Score of each task with its 95 % interval where it is a"
            " mean over items: Wilson's for what is right or wrong, else"
            " resampling items. The word after the comma is the filter.",
            columns=("task", "metric", "items", "score"),
            rows=rows,
          )
        ],
      )
    ],
    run=description,
  )


def finding(summary: Mapping[str, Any]) -> str:
  """The first metric of the first tasks, in one line.

  Args:
    summary: from `harness.summarise`.
  """
  scores = [
    (task, [entry], metric.partition(",")[0])
    for task, metrics in summary["tasks"].items()
    for metric, entry in list(metrics.items())[:1]
  ]
  return list_scores(scores) or "The harness gave no number"


def _score(entry) -> Estimate | float:
  return Estimate.from_json(entry) if "low" in entry else entry["value"]
