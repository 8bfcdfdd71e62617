"""The page of a sweep: tables by task, metric and property of the items."""

from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate, as_estimate
from jaxprune.studies.sweep import accounts, figures, retained
from jaxprune.studies.sweep.scores import DENSE, by_metric


def content(summary: dict[str, Any]) -> dict[str, Any]:
  """What stands on the page: arguments of `report.page.render_page`.

  Args:
    summary: from `summary.summarise`.
  """
  sections = [*_kept_sections(summary), *_account_sections(summary)]
  sections += [_task_section(*each) for each in by_metric(summary["table"])]
  bins = summary["breakdown"]
  sections += [
    _bin_section(bins, *key)
    for key in dict.fromkeys(
      (entry["task"], entry["metric"], entry["trait"]) for entry in bins
    )
  ]
  names = {entry["configuration"] for entry in summary["table"]} - {DENSE}
  return {
    "title": "Tasks over pruned models",
    "finding": finding(summary),
    "verdict": f"{len(names)} ways to prune beside the dense model.",
    "sections": sections,
  }


def _task_section(task, metric, entries) -> page.Section:
  digits = page.format_number
  unit = "nll per token" if metric == "perplexity" else metric
  return page.Section(
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


def _kept_sections(summary) -> list[page.Section]:
  """A row per configuration, a column per task by name."""
  entries = summary["retained"]
  if not entries:
    return []
  columns = list(
    dict.fromkeys((entry["task"], entry["use"]) for entry in entries)
  )
  rows: dict[str, dict[Any, str]] = {}
  for entry in entries:
    low, high = (
      "?" if end is None else page.format_number(end, 2)
      for end in (entry["low"], entry["high"])
    )
    rows.setdefault(entry["configuration"], {})[entry["task"], entry["use"]] = (
      f"{entry['state']}: {page.format_number(entry['value'], 2)}"
      f" [{low}, {high}]"
    )
  figure = figures.kept_by_amount(summary["by_use"])
  return [
    page.Section(
      title="What is kept",
      paragraphs=retained.headline(entries),
      figures=[] if figure is None else [figure],
      tables=[
        page.Table(
          caption="All tasks of a use together, and what choice keeps more than"
          " the use does; 95 % intervals.",
          columns=(
            "configuration",
            "use",
            "items",
            "kept",
            "choice keeps more",
          ),
          rows=[
            (
              entry["configuration"],
              entry["use"],
              entry["count"],
              Estimate.from_json(entry),
              as_estimate(entry["less_than_choice"]),
            )
            for entry in summary["by_use"]
          ],
        ),
        page.Table(
          caption="(score - chance) / (dense - chance) with its 95 % interval;"
          " kept or lost if the whole interval is on one side of 0.9.",
          columns=("configuration", *(f"{t} ({u})" for t, u in columns)),
          rows=[
            (name, *(row.get(column, "–") for column in columns))
            for name, row in rows.items()
          ],
        ),
      ],
    )
  ]


def _account_sections(summary) -> list[page.Section]:
  """Measured beside every account, and how well each does."""
  entries, fits = summary["accounts"]["entries"], summary["accounts"]["fits"]
  if not entries:
    return []
  tables = [_account_table(entries)]
  if summary["accounts"]["references"]:
    tables.append(_reference_table(summary["accounts"]["references"]))
  if fits:
    tables.append(_fit_table(fits))
  return [
    page.Section(
      title="Why writing fails",
      paragraphs=[accounts.headline(summary["accounts"])],
      tables=tables,
    )
  ]


def _account_table(entries) -> page.Table:
  return _table_by_task(
    "Of the items that the dense model answers right: the share that stayed"
    " right, and what each account says of it; flips per token of the dense"
    " text; texts that changed, and those of them that stayed right.",
    {
      "items": "items",
      "interval": "measured",
      **{account: account for account in accounts.ACCOUNTS},
      "flip_rate": "flips",
      "sure_flip_rate": "sure flips",
      "changed": "changed",
      "forgiven_count": "stayed right",
    },
    entries,
  )


def _reference_table(entries) -> page.Table:
  return _table_by_task(
    "The published solutions, read and not written: perplexity of a token, and"
    " per token the choices that changed and those that are not the"
    " solution's; 95 % intervals resampling items.",
    {
      "perplexity": "perplexity",
      "dense_perplexity": "of dense",
      "flips": "flips",
      "misses": "misses",
      "dense_misses": "of dense",
    },
    entries,
  )


def _table_by_task(caption, measures, entries) -> page.Table:
  """A row per configuration and task; measures are headings by key."""
  return page.Table(
    caption=caption,
    columns=("configuration", "task", *measures.values()),
    rows=[
      (entry["configuration"], entry["task"], *(entry[key] for key in measures))
      for entry in entries
    ],
  )


def _fit_table(fits) -> page.Table:
  return page.Table(
    caption="Predicted less measured, over configurations and tasks: mean"
    " size, mean, and rank correlation of both.",
    columns=("account", "error", "bias", "rank correlation"),
    rows=[
      (
        account,
        Estimate.from_json(fit["error"]),
        Estimate.from_json(fit["bias"]),
        fit["spearman"],
      )
      for account, fit in fits.items()
    ],
  )


def finding(summary: dict[str, Any]) -> str:
  """How many pruned models keep each task; '' where no task can say it.

  Args:
    summary: from `summary.summarise`.
  """
  counts: dict[str, list[str]] = {}
  for entry in summary["retained"]:
    if entry["configuration"] != DENSE:
      counts.setdefault(entry["task"], []).append(entry["state"])
  said = [
    f"{task} is kept by {states.count('kept')} of {len(states)} pruned models"
    f" and lost by {states.count('lost')}"
    for task, states in counts.items()
  ]
  return "; ".join(said)


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
