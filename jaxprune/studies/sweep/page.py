"""The page of a sweep: tables by task, metric and property of the items."""

from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate
from jaxprune.studies.sweep.scores import DENSE, by_metric


def render(summary: dict[str, Any], description: dict[str, Any]) -> str:
  """Make report.html.

  Args:
    summary: from `summary.summarise`.
    description: of the run.
  """
  digits = page.format_number
  sections = []
  for task, metric, entries in by_metric(summary["table"]):
    unit = "nll per token" if metric == "perplexity" else metric
    sections.append(
      page.Section(
        title=f"{task}, {metric}",
        tables=[
          page.Table(
            caption="Mean over seeds and items with its 95 % interval over"
            " items; lowest and highest seed; paired change from the dense"
            f" model in {unit}.",
            columns=("configuration", "zeros", "score", "seeds", "change"),
            rows=[
              (
                entry["configuration"],
                f"{entry['removed']:.3f}",
                Estimate.from_json(entry),
                f"{digits(entry['seed_low'])} to {digits(entry['seed_high'])}"
                f" ({entry['seeds']})",
                Estimate.from_json(entry["change"]),
              )
              for entry in entries
            ],
          )
        ],
      )
    )
  bins = summary["breakdown"]
  sections += [
    _bin_section(bins, *key)
    for key in dict.fromkeys(
      (entry["task"], entry["metric"], entry["trait"]) for entry in bins
    )
  ]
  names = {entry["configuration"] for entry in summary["table"]} - {DENSE}
  return page.render_page(
    title="Tasks over pruned models",
    verdict=f"{len(names)} ways to prune beside the dense model.",
    sections=sections,
    run=description,
  )


def _bin_section(bins, task, metric, trait) -> page.Section:
  """One row per configuration, one column per bin."""
  chosen = [
    entry
    for entry in bins
    if (entry["task"], entry["metric"], entry["trait"]) == (task, metric, trait)
  ]
  digits = page.format_number
  rows: dict[str, list[Estimate]] = {}
  for entry in chosen:
    rows.setdefault(entry["configuration"], []).append(
      Estimate.from_json(entry)
    )
  first = [
    entry
    for entry in chosen
    if entry["configuration"] == chosen[0]["configuration"]
  ]
  return page.Section(
    title=f"{task}, {metric}, by {trait}",
    tables=[
      page.Table(
        caption="Mean over seeds and the items of a bin; 95 % interval"
        " resampling items.",
        columns=(
          "configuration",
          *(
            f"{digits(entry['from'])} to {digits(entry['to'])}"
            f" ({entry['count']})"
            for entry in first
          ),
        ),
        rows=[(name, *values) for name, values in rows.items()],
      )
    ],
  )
