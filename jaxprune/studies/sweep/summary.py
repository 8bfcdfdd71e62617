"""From the scores of configurations and seeds to the numbers of a sweep.

A score is the mean over seeds of the mean over items. Its interval is over
items, each with its mean over seeds; what the calibration does shows in the
range over seeds.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import Estimate
from jaxprune.studies.sweep import accounts as accounts_lib
from jaxprune.studies.sweep import retained as retained_lib
from jaxprune.studies.sweep import scores as scores_lib
from jaxprune.studies.sweep.scores import Score
from jaxprune.studies.tasks import summary as task_summary


def summarise(scores: Iterable[Score], bins: int = 3) -> dict[str, Any]:
  """All numbers of a sweep.

  Args:
    scores: of all configurations and seeds, the dense model among them.
    bins: of the items of a task, by each of their traits.

  Returns:
    `table`, see `tabulate`, `breakdown`, see `break_down`, and of tasks by name
    `retained` and `accounts`, see the modules of these names, and `by_use`, see
    `retained.by_use`.
  """
  grouped = scores_lib.by_configuration(scores)
  return {
    "table": tabulate(grouped),
    "breakdown": break_down(grouped, bins),
    "retained": retained_lib.retained(grouped),
    "by_use": retained_lib.by_use(grouped),
    "accounts": accounts_lib.accounts(grouped),
  }


def tabulate(grouped: dict[str, list[Score]]) -> list[dict[str, Any]]:
  """One entry per configuration, task and metric, the dense model's first.

  Args:
    grouped: scores by configuration.

  Returns:
    `configuration`, `task`, `metric`, `seeds` (their number), `removed`; the
    score as `value`, `low`, `high` and `count`; `seed_low` and `seed_high`, the
    lowest and highest seed; and `change`, the estimate of the paired difference
    from the dense model, in nats per token for a perplexity.
  """
  dense = grouped[scores_lib.DENSE][0]
  table = []
  for name, seeds in grouped.items():
    for task, entry in dense["tasks"].items():
      for metric in entry["columns"]:
        table.append(
          {
            "configuration": name,
            "task": task,
            "seeds": len(seeds),
            "removed": float(np.mean([score["removed"] for score in seeds])),
          }
          | _entry(seeds, dense, task, metric)
        )
  return table


def break_down(
  grouped: dict[str, list[Score]], bins: int = 3
) -> list[dict[str, Any]]:
  """One entry per configuration, trait of the items and bin; dense first.

  The traits of a task, and for answers whose likelihood is known how surprising
  they are to the dense model, in nats per token, sort its items.

  Args:
    grouped: scores by configuration.
    bins: most bins of a trait.

  Returns:
    `configuration`, `task`, `metric`, `trait`, the edges `from` and `to`, and
    the mean over the items of the bin as `value`, `low`, `high`, `count`.
  """
  entries = []
  tasks = grouped[scores_lib.DENSE][0]["tasks"]
  for task, traits in _traits(tasks).items():
    for trait, by in traits.items():
      edges = statistics.quantile_edges(by, bins)
      for name, seeds in grouped.items():
        for metric in tasks[task]["columns"]:
          items = scores_lib.item_scores(seeds, task, metric).mean(axis=0)
          entries += [
            {
              "configuration": name,
              "task": task,
              "metric": metric,
              "trait": trait,
              "from": bin_.low,
              "to": bin_.high,
            }
            | bin_.estimate.to_json()
            for bin_ in statistics.binned_means(
              items, by, np.arange(len(items)), edges
            )
          ]
  return entries


def headline(summary: dict[str, Any]) -> str:
  """What is kept in words, then one line per entry of the table."""
  words = retained_lib.headline(summary["retained"])
  words += [accounts_lib.headline(summary["accounts"])]
  return "\n".join(
    [line for line in words if line]
    + [
      f"{entry['configuration']:>18} {entry['task']}, {entry['metric']}:"
      f" {Estimate.from_json(entry).format()}, {entry['seeds']} seeds"
      f" {entry['seed_low']:.4g} to {entry['seed_high']:.4g}"
      for entry in summary["table"]
    ]
  )


def _entry(seeds, dense, task, metric) -> dict[str, Any]:
  """Score over items, range over seeds, paired change from dense."""
  values_EX = scores_lib.item_scores(seeds, task, metric)
  base_X = scores_lib.item_scores([dense], task, metric)[0]
  weights_X = scores_lib.item_weights(dense, task)
  divisor_X = np.ones_like(base_X) if weights_X is None else weights_X
  score = task_summary.estimate(metric, values_EX.mean(axis=0), weights_X)
  change = statistics.ratio(values_EX.mean(axis=0) - base_X, divisor_X)
  each_E = values_EX.sum(axis=1) / divisor_X.sum()
  if metric == "nll":
    each_E = np.exp(each_E)
  return {
    "metric": "perplexity" if metric == "nll" else metric,
    **score.to_json(),
    "seed_low": float(each_E.min()),
    "seed_high": float(each_E.max()),
    "change": change.to_json(),
  }


def _traits(tasks) -> dict[str, dict[str, np.ndarray]]:
  """By task, what its items are like: of texts that have to be written."""
  by_task = {}
  for task, entry in tasks.items():
    traits = {
      name: np.array(values) for name, values in entry.get("traits", {}).items()
    }
    answers = tasks.get("pocket answers")
    if traits and answers:
      traits["dense_nats_per_token"] = np.divide(
        answers["columns"]["nll"], answers["weights"]
      )
    if traits:
      by_task[task] = traits
  return by_task
