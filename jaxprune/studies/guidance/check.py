"""Does a rule that was learnt before hold for pruned models of another grid?"""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import page
from jaxprune.studies.guidance import rules
from jaxprune.studies.guidance.sweeps import Grids

FIELDS = {
  "cell": report.Field("text", "", "METHOD:AMOUNT"),
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


def rows(rule: dict[str, Any], grids: Grids):
  """A row per task that has a rule and pruned model: said and true.

  `value` is the feature.
  """
  for name, task in grids.tasks.items():
    entry = rule["tasks"].get(name)
    if entry is None or entry["feature"] is None:
      continue
    for index, found in zip(task.models, task.survivals):
      model = grids.models[index]
      value = float(grids.features[entry["feature"]][index])
      yield {
        "protocol": "check",
        "task": name,
        "metric": task.metric,
        "dense": model.dense,
        "cell": model.cell,
        "method": model.method,
        "seed": model.seed,
        "removed": model.removed,
        "feature": entry["feature"],
        "value": value,
        "threshold": entry["threshold"],
        "answer": bool(value <= entry["threshold"]),
        "kept": found.kept,
        "survives": found.survives,
        "certainty": found.certainty,
      }


def summarise(
  rule: dict[str, Any], grids: Grids, *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
  """By task the errors, see `guidance.check_answers`.

  Raises:
    ValueError: no task of the grids has a rule.
  """
  table = list(rows(rule, grids))
  if not table:
    raise ValueError(
      "--grids: no task has a rule in --rule ("
      + ", ".join(rule["tasks"])
      + "), or the rule was learnt from the same"
      " models: give another grid with these tasks"
    )
  learnt = {source["checkpoint_hash"] for source in rule["sources"]}
  found = {}
  for name in dict.fromkeys(row["task"] for row in table):
    chosen = [row for row in table if row["task"] == name]
    found[name] = rules.check_answers(
      np.array([row["answer"] for row in chosen]),
      np.array([row["survives"] for row in chosen]),
      np.array([row["method"] for row in chosen]),
      seed=seed,
      resamples=resamples,
    ) | {"feature": chosen[0]["feature"], "threshold": chosen[0]["threshold"]}
  dense = {model.dense for model in grids.models}
  return {
    "tasks": found,
    "same_dense_model": dense <= learnt,
    "methods": sorted(set(grids.methods.tolist())),
    "no_rule": [name for name in grids.tasks if name not in found],
    "left_out": grids.left_out,
  }


def lines(summary: dict[str, Any]) -> list[str]:
  """One line per task."""
  said = (
    []
    if summary["same_dense_model"]
    else ["these are other dense models than the rule was learnt on"]
  )
  for name, found in summary["tasks"].items():
    said.append(
      f"{name}: {found['feature']} <= {found['threshold']:.3g} is wrong for"
      f" {100 * found['error']:.0f} % [{100 * found['low']:.0f},"
      f" {100 * found['high']:.0f}] of {found['models']} models of"
      f" {found['groups']} methods ({found['survived']} survived,"
      f" {found['false_yes']} false yes, {found['false_no']} false no)"
    )
  return said + [f"{name}: has no rule" for name in summary["no_rule"]]


def render(summary, table, description) -> str:
  """report.html."""
  sections = [
    page.Section(
      title=name,
      tables=[
        page.Table(
          caption="What the rule said and what was so.",
          columns=(
            "cell",
            "seed",
            "feature",
            "said",
            "kept",
            "survived",
            "certainty",
          ),
          rows=[
            (
              row["cell"],
              str(row["seed"]),
              row["value"],
              "yes" if row["answer"] else "no",
              row["kept"],
              "yes" if row["survives"] else "no",
              row["certainty"],
            )
            for row in table
            if row["task"] == name
          ],
        )
      ],
    )
    for name in summary["tasks"]
  ]
  return page.render_page(
    title="Does the rule hold here?",
    verdict="\n\n".join(lines(summary)),
    sections=sections,
    run=description,
  )
