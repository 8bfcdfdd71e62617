"""What does each configuration keep of what the dense model can do?

Of every task by name, (score - chance) / (dense - chance) with its interval,
and whether that is kept, lost, or not to be told from so many items.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.evaluation.tasks.table import TASKS, USE
from jaxprune.statistics.retention import STATES
from jaxprune.studies.sweep.scores import DENSE, Score, item_scores

# The task whose answers are one token, written instead of chosen.
ONE_TOKEN = "writes"
_ORDER = ("choice", "one token", "retrieval", "generation")


def retained(
  grouped: dict[str, list[Score]], threshold: float = 0.9
) -> list[dict[str, Any]]:
  """One entry per configuration and named task; choices come first.

  Args:
    grouped: scores by configuration, the dense model's among them.
    threshold: least part that is called kept.

  Returns:
    `configuration`, `removed`, `task`, `use` (choice, one token, retrieval or
    generation) and the fields of `statistics.Retention`.
  """
  dense = grouped[DENSE][0]
  entries = []
  for task, metric, use, chance in _columns(dense):
    base_X = item_scores([dense], task, metric)[0]
    for name, seeds in grouped.items():
      if name == DENSE:
        continue
      kept = statistics.retention(
        item_scores(seeds, task, metric).mean(axis=0), base_X, chance, threshold
      )
      entries.append(
        {
          "configuration": name,
          "removed": float(np.mean([score["removed"] for score in seeds])),
          "task": task,
          "use": use,
        }
        | dataclasses.asdict(kept)
      )
  return sorted(entries, key=lambda entry: _ORDER.index(entry["use"]))


def by_use(
  grouped: dict[str, list[Score]], threshold: float = 0.9
) -> list[dict[str, Any]]:
  """What each configuration keeps of all tasks of one use together.

  Every item counts once, with the chance level of its task.

  Args:
    grouped: scores by configuration, the dense model's among them.
    threshold: least part that is called kept.

  Returns:
    `configuration`, `use` (choice, one token, retrieval or generation), `tasks`
    (their number), the fields of `statistics.Retention` but `chance`, and
    `less_than_choice`, the estimate of what choice keeps less what this use
    does, None for choice itself and where nothing was chosen.
  """
  dense = grouped[DENSE][0]
  columns: dict[str, list[tuple[str, str, float]]] = {}
  for task, metric, use, chance in _columns(dense):
    columns.setdefault(use, []).append((task, metric, chance))
  entries = []
  for name, seeds in grouped.items():
    if name == DENSE:
      continue
    kept = {}
    for use in sorted(columns, key=_ORDER.index):
      kept[use] = fields = dataclasses.asdict(
        statistics.retention(
          *_concatenate(seeds, dense, columns[use]), threshold
        )
      )
      del fields["chance"]
      gap = None
      if use != "choice" and "choice" in kept:
        gap = statistics.difference(
          *map(statistics.Estimate.from_json, (kept["choice"], fields))
        ).to_json()
      entries.append(
        {"configuration": name, "use": use, "tasks": len(columns[use])}
        | fields
        | {"less_than_choice": gap}
      )
  return entries


def _concatenate(seeds, dense, columns):
  """Pruned and dense scores of all items of some tasks, and their chance."""
  pruned, base, chance = [], [], []
  for task, metric, level in columns:
    pruned.append(item_scores(seeds, task, metric).mean(axis=0))
    base.append(item_scores([dense], task, metric)[0])
    chance.append(np.full(base[-1].size, level))
  return tuple(map(np.concatenate, (pruned, base, chance)))


def headline(entries: list[dict[str, Any]]) -> list[str]:
  """A sentence per configuration: what it keeps, loses, and what is unknown."""
  sentences = []
  for name in dict.fromkeys(entry["configuration"] for entry in entries):
    own = [entry for entry in entries if entry["configuration"] == name]
    parts = []
    for state in STATES:
      tasks = [
        f"{entry['task']} {entry['value']:.2f}"
        + (" (one token)" if entry["use"] == "one token" else "")
        for entry in own
        if entry["state"] == state
      ]
      if tasks:
        parts.append(f"{state}: {', '.join(tasks)}")
    sentences.append(f"{name} {'; '.join(parts)}")
  return sentences


def _columns(dense) -> Iterator[tuple[str, str, str, float]]:
  """(task, metric, use, chance) of what can be kept or lost."""
  for task, entry in dense["tasks"].items():
    if "named" not in entry:
      continue
    row = TASKS[entry["named"]]
    if USE[row.kind] == "perplexity":
      continue
    yield task, row.metric, USE[row.kind], row.chance
    # Whether greedy decoding would write the answer: only one-token answers
    # are ever written by a model that was asked for a choice.
    if entry["named"] == "mmlu":
      yield task, ONE_TOKEN, "one token", 0.0
