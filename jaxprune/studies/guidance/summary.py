"""What was learnt: records, numbers, and what they say in plain words."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.studies.guidance import rules as rules_lib
from jaxprune.studies.guidance.fit import H_COSINE, KL, UNTUNED, Settings
from jaxprune.studies.guidance.splits import HALF
from jaxprune.studies.guidance.sweeps import Sweeps

FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT"),
  "dense": report.Field("text", "", "hash of the dense checkpoint"),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
  "feature": report.Field("text", "", "measurement that a rule may use"),
  "kept": report.Field("float", "", "share of the dense score"),
  "survives": report.Field("bool", "", "enough of the score was kept"),
  "certainty": report.Field(
    "float", "", "share of resamples of the items with the same answer"
  ),
  "threshold": report.Field("float", "", "yes up to this"),
  "fit_error": report.Field(
    "float", "", "balanced error on the models learnt from"
  ),
  "error": report.Field("float", "", "share of wrong held-out answers"),
  "balanced_error": report.Field(
    "float", "", "mean of the errors among both classes, held out"
  ),
  "auc": report.Field("float", "", "area under the curve, all models"),
  "auc_fit": report.Field("float", "", "of the models learnt from"),
  "auc_held_out": report.Field("float", "", "of the held-out models"),
  "spearman": report.Field("float", "", "rank correlation with kept, all"),
  "spearman_held_out": report.Field("float", "", "of the held-out models"),
} | {
  name: report.Field("float", "", "see jaxprune.studies.guidance.rules")
  for name in rules_lib.FEATURES
}
NAMES = {
  "rule": "the rule",
  "removed": "sparsity",
  "perplexity": "perplexity",
  H_COSINE: "cosine of h, mean",
  KL: "KL, mean",
  "untuned": f"{UNTUNED}, threshold not fitted",
  "majority": "majority",
}


def rows(sweeps: Sweeps) -> Iterator[dict[str, Any]]:
  """Records: per model its features, and per model and task its score."""
  for index, model in enumerate(sweeps.models):
    yield (
      _identity(model)
      | {"protocol": "features"}
      | {name: values[index] for name, values in sweeps.features.items()}
    )
  for name, task in sweeps.tasks.items():
    for index, survival in zip(task.models, task.survivals):
      yield _identity(sweeps.models[index]) | {
        "protocol": "task",
        "task": name,
        "metric": task.metric,
        "value": survival.score,
        "reference": survival.dense,
        "kept": survival.kept,
        "survives": survival.survives,
        "certainty": survival.certainty,
      }


def summarise(
  sweeps: Sweeps,
  rules: dict[str, Any],
  settings: Settings,
  recommended: list[dict[str, Any]],
) -> dict[str, Any]:
  """What summary.json holds.

  Args:
    sweeps: the pruned models, without duplicates.
    rules: from `fit.fit`.
    settings: how the rules were learnt.
    recommended: from `recommend.recommend`.
  """
  return {
    "keep": settings.keep,
    "models": len(sweeps.models),
    "methods": sorted(set(sweeps.methods.tolist())),
    "features_tried": len(settings.features),
    "tasks": rules,
    "left_out": sweeps.left_out,
    "configurations_hash": sweeps.hash,
    "settings": recommended,
  }


def headline(summary: dict[str, Any]) -> str:
  """A line per task: what was learnt; and one: how far each method goes."""
  return "\n".join(
    [
      *(describe_rule(*item) for item in summary["tasks"].items()),
      *setting_lines(summary["settings"]),
    ]
  )


def describe_rule(task: str, entry: dict[str, Any]) -> str:
  """What was learnt about a task, and how often it was wrong.

  Args:
    task: its name.
    entry: of `fit.fit`.
  """
  head = f"{task}: {entry['survived']} of {entry['models']} survived; "
  if entry["feature"] is None:
    return head + entry["reason"]
  others = ", ".join(
    f"{split} {format_error(errors.get('rule'))}"
    for split, errors in entry["splits"].items()
    if split != HALF
  )
  return (
    f"{head}{entry['feature']} <= {entry['threshold']:.3g}, held-out error"
    f" {format_error(entry['held_out'])} ({others})"
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  rules = summary["tasks"]
  parts = [describe_rule(*item) for item in rules.items()]
  for task, entry in rules.items():
    baselines = entry.get("splits", {}).get(HALF, {}).get("baselines", {})
    better = [
      NAMES[name]
      for name, other in baselines.items()
      if (other["rule_less_this"]["high"] or 0) < 0
    ]
    if entry["feature"] is not None:
      parts.append(
        f"{task}: the rule is wrong less often than "
        + (", ".join(better) if better else "none of the baselines")
        + " (95 % interval of the difference below 0, resampling methods)."
      )
    if "warning" in entry:
      parts.append(f"{task}: {entry['warning']}.")
  parts.append(
    "Intervals resample whole methods. There are few, so the intervals are"
    " rough. A rule is known to hold for the dense models of the sweeps only."
  )
  return "\n\n".join(parts)


def setting_lines(table: list[dict[str, Any]]) -> list[str]:
  """A line per task: the strongest setting of each method."""
  by_task: dict[str, list[str]] = {}
  for entry in table:
    by_task.setdefault(entry["task"], []).append(
      entry["configuration"] or f"no {entry['family']}"
    )
  return [
    f"{task} survives up to: {', '.join(names)}"
    for task, names in by_task.items()
  ]


def format_error(error: dict[str, Any] | None) -> str:
  """An error with its interval, in percent; of `rules.check_answers`."""
  if error is None:
    return "not checked"
  ends = [error["low"], error["high"]]
  shown = (
    "no interval"
    if any(end is None or not np.isfinite(end) for end in ends)
    else ", ".join(f"{100 * end:.0f}" for end in ends)
  )
  return f"{100 * error['error']:.0f} % [{shown}]"


def _identity(model) -> dict[str, Any]:
  return {
    "dense": model.dense,
    "configuration": model.configuration,
    "method": model.method,
    "seed": model.seed,
    "removed": model.removed,
  }
