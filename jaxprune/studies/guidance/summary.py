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

_WORDS = {
  "flip_rate": "share of changed next tokens",
  "first_flip_hazard": "hazard of a first changed token",
  "flipped_prompts": "share of prompts with a changed token",
  "reachable": "share of positions where a change is not ruled out",
  "mean": "mean",
  "median": "median",
  "p90": "90th percentile of the",
  "max": "greatest",
  "one_minus_cos_h": "1 - cosine of h",
  "one_minus_cos_z": "1 - cosine of z",
  "one_minus_cos_z_centred": "1 - cosine of centred z",
  "one_minus_cos_p": "1 - cosine of p",
  "kl": "KL",
  "sd_p": "standard deviation of the change of the logits",
  "relative_shift": "shift of the logits over the margin",
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
  """The answer in words, a line per task, and how far each method goes."""
  return "\n".join(
    [
      lead(summary),
      *(describe_rule(*item) for item in summary["tasks"].items()),
      *setting_lines(summary["settings"]),
      *(line for line in summary["left_out"] if ": unknown, " in line),
    ]
  )


def lead(summary: dict[str, Any]) -> str:
  """Which tasks survive pruning, and whether that can be told beforehand.

  Args:
    summary: from `summarise`.
  """
  rules = summary["tasks"]
  shares = {
    task: entry["survived"] / entry["models"] for task, entry in rules.items()
  }
  text = f"Of {_count(summary['models'], 'pruned model')}, " + _list(
    f"{entry['survived']} still "
    + ("does " if entry["survived"] == 1 else "do ")
    + task
    for task, entry in rules.items()
  )
  text += f" (at least {100 * summary['keep']:.0f} % of the dense score)."
  least, most = min(shares.values()), max(shares.values())
  if least < most:
    first = [task for task, share in shares.items() if share == least]
    verb = "is" if len(first) == 1 else "are"
    text += f" Lost first {verb} {_list(first)}."
  told = [task for task, entry in rules.items() if entry["feature"]]
  checked = [task for task in told if rules[task]["held_out"]]
  if not told:
    return (
      f"{text} No rule can be learnt: there are too few models, or all of those"
      " that are learnt from survived, or none."
    )
  if not checked:
    return f"{text} The rules below were not checked on other models."
  return (
    text
    + " On models that were not learnt from the rules are wrong for "
    + (
      ", ".join(
        f"{format_error(rules[task]['held_out'])} ({task})" for task in checked
      )
      + "."
    )
  )


def _count(number: int, noun: str) -> str:
  return f"{number} {noun}" + ("" if number == 1 else "s")


def _list(words) -> str:
  """Words with commas between them, and `and` before the last."""
  *some, last = words
  return f"{', '.join(some)} and {last}" if some else last


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
    f"{head}use a model while its {in_words(entry['feature'])} is at most"
    f" {entry['threshold']:.3g}: held-out error"
    f" {format_error(entry['held_out'])} ({others})"
  )


def in_words(feature: str) -> str:
  """A feature of `rules.FEATURES` as a reader would say it."""
  if feature in _WORDS:
    return _WORDS[feature]
  statistic, _, quantity = feature.partition("_")
  return f"{_WORDS[statistic]} {_WORDS[quantity]}"


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  rules = summary["tasks"]
  parts = [lead(summary), *(describe_rule(*item) for item in rules.items())]
  for task, entry in rules.items():
    baselines = entry.get("splits", {}).get(HALF, {}).get("baselines", {})
    better = [
      NAMES[name]
      for name, other in baselines.items()
      if (other["rule_less_this"]["high"] or 0) < 0
    ]
    if baselines:
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
  # With one method there is nothing to resample, and no interval.
  ends = [error.get("low"), error.get("high")]
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
