"""Does a rule that was learnt before hold for the models of another sweep?"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.studies.guidance import rules
from jaxprune.studies.guidance.sweeps import Sweeps

FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT"),
  "dense": report.Field("text", "", "hash of the dense checkpoint"),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
  "feature": report.Field("text", "", "measurement that the rule uses"),
  "threshold": report.Field("float", "", "yes up to this"),
  "answer": report.Field("bool", "", "the rule says that the task survives"),
  "kept": report.Field("float", "", "share of the dense score"),
  "survives": report.Field("bool", "", "enough of the score was kept"),
  "certainty": report.Field(
    "float", "", "share of resamples of the items with the same answer"
  ),
}


def rows(rule: dict[str, Any], sweeps: Sweeps) -> Iterator[dict[str, Any]]:
  """Make a row per task that has a rule and pruned model: said and true.

  Args:
    rule: from `apply.read_rule`.
    sweeps: the pruned models.

  Yields:
    Records whose `value` is that of the feature.
  """
  for name, task in sweeps.tasks.items():
    entry = rule["tasks"].get(name)
    if entry is None or entry["feature"] is None:
      continue
    for index, survival in zip(task.models, task.survivals):
      model = sweeps.models[index]
      value = float(sweeps.features[entry["feature"]][index])
      yield {
        "protocol": "check",
        "task": name,
        "metric": task.metric,
        "dense": model.dense,
        "configuration": model.configuration,
        "method": model.method,
        "seed": model.seed,
        "removed": model.removed,
        "feature": entry["feature"],
        "value": value,
        "threshold": entry["threshold"],
        "answer": bool(value <= entry["threshold"]),
        "kept": survival.kept,
        "survives": survival.survives,
        "certainty": survival.certainty,
      }


def summarise(
  rule: dict[str, Any], sweeps: Sweeps, *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
  """Count the errors of a rule.

  Args:
    rule: from `apply.read_rule`.
    sweeps: the pruned models.
    seed: of the resampling of methods.
    resamples: number of resamples.

  Returns:
    `tasks`, by name what `rules.check_answers` counts, `feature`, `threshold`
    and the `models`; `same_dense_model`; the `methods`; tasks with `no_rule`;
    and what was `left_out`.

  Raises:
    ValueError: no task of the sweeps has a rule.
  """
  table = list(rows(rule, sweeps))
  if not table:
    raise ValueError(
      "--sweeps: no task has a rule in --rule ("
      + ", ".join(rule["tasks"])
      + "), or the rule was learnt from the same"
      " models: give another sweep with these tasks"
    )
  learnt = {source["checkpoint_hash"] for source in rule["sources"]}
  errors = {}
  for name in dict.fromkeys(row["task"] for row in table):
    chosen = [row for row in table if row["task"] == name]
    errors[name] = rules.check_answers(
      np.array([row["answer"] for row in chosen]),
      np.array([row["survives"] for row in chosen]),
      np.array([row["method"] for row in chosen]),
      seed=seed,
      resamples=resamples,
    ) | {"feature": chosen[0]["feature"], "threshold": chosen[0]["threshold"]}
  dense = {model.dense for model in sweeps.models}
  return {
    "tasks": errors,
    "same_dense_model": dense <= learnt,
    "methods": sorted(set(sweeps.methods.tolist())),
    "no_rule": [name for name in sweeps.tasks if name not in errors],
    "left_out": sweeps.left_out,
  }


def headline(summary: dict[str, Any]) -> str:
  """One line per task."""
  lines = (
    []
    if summary["same_dense_model"]
    else ["these are other dense models than the rule was learnt on"]
  )
  for name, errors in summary["tasks"].items():
    lines.append(
      f"{name}: {errors['feature']} <= {errors['threshold']:.3g} is wrong for"
      f" {100 * errors['error']:.0f} % [{100 * errors['low']:.0f},"
      f" {100 * errors['high']:.0f}] of {errors['models']} models of"
      f" {errors['groups']} methods ({errors['survived']} survived,"
      f" {errors['false_yes']} false yes, {errors['false_no']} false no)"
    )
  lines += [f"{name}: has no rule" for name in summary["no_rule"]]
  return "\n".join(lines)
