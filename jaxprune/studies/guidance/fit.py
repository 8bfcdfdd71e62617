"""Which measurement foretells which task, and how often is it wrong?

Every task has its own rule. The feature and the threshold are chosen on the
models that are learnt from; errors are counted on the others. Beside the rule
stand baselines that are fitted on the same models, and the same choice after
the labels were shuffled, because the best of many features looks good by luck.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import separation
from jaxprune.studies.guidance import rules
from jaxprune.studies.guidance.splits import HALF, Split, splits
from jaxprune.studies.guidance.sweeps import Sweeps, Task

H_COSINE, KL = "mean_one_minus_cos_h", "mean_kl"
UNTUNED = "flipped_prompts"
CERTAIN = 0.95  # certainty above which a label is hardly noise
_FEW = 3  # models of the rarer class below which a rule hangs on single ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How rules are learnt.

  Attributes:
    features: that a rule may use.
    keep: least part of the dense score that is called survival.
    seed: of resampling and shuffling.
    resamples: of methods, for the intervals of errors.
    shuffles: of the labels, for the control.
  """

  features: tuple[str, ...] = rules.FEATURES
  keep: float = 0.9
  seed: int = 0
  resamples: int = 2000
  shuffles: int = 200


def settings(features: Sequence[str], **others: Any) -> Settings:
  """Settings with checked features.

  Args:
    features: that a rule may use; none is all.
    **others: the other fields of `Settings`.

  Raises:
    ValueError: a feature is unknown.
  """
  unknown = set(features) - set(rules.FEATURES)
  if unknown:
    raise ValueError(
      f"--features={','.join(sorted(unknown))}: unknown; take from"
      f" {', '.join(rules.FEATURES)}"
    )
  return Settings(features=tuple(features) or rules.FEATURES, **others)


def fit(sweeps: Sweeps, settings: Settings) -> dict[str, dict[str, Any]]:
  """Learn a rule for each task, and count its errors.

  Args:
    sweeps: the pruned models, without duplicates.
    settings: how.

  Returns:
    What a rule file says of each task; JSON values only.
  """
  return {
    name: _fit_task(sweeps, name, task, settings)
    for name, task in sweeps.tasks.items()
  }


def feature_rows(sweeps: Sweeps, settings: Settings) -> list[dict[str, Any]]:
  """Make a row per task and feature, with the thresholds of the half split.

  Args:
    sweeps: the pruned models, without duplicates.
    settings: how.
  """
  rows, split = [], splits(sweeps)[0]
  for name, task in sweeps.tasks.items():
    table = _columns(sweeps, name, task)
    learn, ask = (mask[task.models] for mask in split.folds[0])
    for feature, values in table.items():
      row = {
        "protocol": "feature",
        "task": name,
        "feature": feature,
        "spearman": rules.rank_correlation(values, task.kept),
        "auc": separation.auc(values, ~task.survives),
        "auc_fit": separation.auc(values[learn], ~task.survives[learn]),
        "auc_held_out": separation.auc(values[ask], ~task.survives[ask]),
        "spearman_held_out": rules.rank_correlation(
          values[ask], task.kept[ask]
        ),
      }
      fitted = separation.fit_threshold(values[learn], ~task.survives[learn])
      if fitted is not None and ask.any():
        held = rules.check_answers(
          values[ask] <= fitted.value,
          task.survives[ask],
          sweeps.methods[task.models][ask],
          seed=settings.seed,
          resamples=settings.resamples,
        )
        row |= {
          "threshold": fitted.value,
          "fit_error": fitted.balanced_error,
          "error": held["error"],
          "low": held["low"],
          "high": held["high"],
          "balanced_error": held["balanced_error"],
        }
      # Numbers that are undefined with one class only are left out of the row.
      rows.append(
        {
          key: value
          for key, value in row.items()
          if isinstance(value, str) or np.isfinite(value)
        }
      )
  return rows


def _fit_task(sweeps, name, task: Task, settings):
  survived = int(task.survives.sum())
  entry: dict[str, Any] = {
    "metric": task.metric,
    "models": len(task.models),
    "survived": survived,
    "certain": int(np.sum([s.certainty >= CERTAIN for s in task.survivals])),
    "range": {
      feature: [
        float(values[task.models].min()),
        float(values[task.models].max()),
      ]
      for feature, values in sweeps.features.items()
    },
    "feature": None,
    "held_out": None,
  }
  if survived in (0, len(task.models)):
    word = "every" if survived else "no"
    return entry | {
      "reason": f"{word} pruned model of the sweep survived, so no threshold"
      " can be learnt"
    }
  every = splits(sweeps)
  rule = _learn(sweeps, task, every[0].folds[0][0][task.models], settings)
  entry["splits"] = {
    split.name: {"description": split.description}
    | _check(sweeps, name, task, split, settings)
    for split in every
  }
  if rule is None:
    return entry | {
      "reason": "all models that are learnt from survived, or none: no"
      " threshold can be learnt from this half"
    }
  held = entry["splits"][HALF].get("rule")
  rare = min(
    rule["learnt_survived"], rule["learnt_from"] - rule["learnt_survived"]
  )
  if rare < _FEW:
    entry["warning"] = (
      f"only {rare} of the {rule['learnt_from']} models learnt from are of"
      " the rarer class: the threshold hangs on single models"
    )
  return (
    entry
    | rule
    | {"held_out": held, "shuffled": _shuffled(sweeps, task, settings)}
  )


def _learn(sweeps, task, learn, settings):
  """A rule from the models of the task that `learn` marks."""
  if not learn.any():
    return None
  rule = rules.fit_rule(
    {
      feature: sweeps.features[feature][task.models][learn]
      for feature in settings.features
    },
    task.kept[learn],
    task.survives[learn],
  )
  return (
    None
    if rule is None
    else rule
    | {
      "spearman": _number(rule["spearman"]),
      "learnt_from": int(learn.sum()),
      "learnt_survived": int(task.survives[learn].sum()),
    }
  )


def _check(sweeps, name, task, split: Split, settings) -> dict[str, Any]:
  """Errors of rule and baselines over the held-out models of all folds."""
  wrong: dict[str, list[np.ndarray]] = {}
  asked, answered_yes, features = [], [], []
  for learn, ask in split.folds:
    learn, ask = learn[task.models], ask[task.models]
    if not (learn.any() and ask.any()):
      continue
    answers = _answers(sweeps, name, task, learn, settings)
    for rule, (yes, _) in answers.items():
      wrong.setdefault(rule, []).append(yes[ask] != task.survives[ask])
    asked.append(np.flatnonzero(ask))
    answered_yes.append(answers["rule"][0][ask])
    features.append(answers["rule"][1])
  if not asked:
    return {}
  asked, yes = np.concatenate(asked), np.concatenate(answered_yes)
  groups = sweeps.methods[task.models][asked]
  truth = task.survives[asked]
  joined = {
    rule: np.concatenate(parts)
    for rule, parts in wrong.items()
    if len(parts) == len(features)
  }
  sure = np.array([task.survivals[i].certainty >= CERTAIN for i in asked])
  draws = {"seed": settings.seed, "resamples": settings.resamples}
  baselines = {}
  for rule, errors in joined.items():
    if rule == "rule":
      continue
    error = statistics.proportion(errors, groups, **draws)
    less = statistics.mean(
      joined["rule"].astype(float) - errors, groups, **draws
    )
    baselines[rule] = {
      "error": error.value,
      "low": _number(error.low),
      "high": _number(error.high),
      "rule_less_this": {
        name: _number(value) for name, value in less.to_json().items()
      },
    }
  checked = rules.check_answers(yes, truth, groups, **draws)
  return {
    "rule": {key: _number(value) for key, value in checked.items()}
    | {
      "error_of_certain": float(np.mean(joined["rule"][sure]))
      if sure.any()
      else None,
      "certain": int(sure.sum()),
    },
    "features": features,
    "baselines": baselines,
  }


def _answers(sweeps, name, task, learn, settings):
  """By rule: what it says of all models of the task, and its feature.

  A rule that cannot be learnt gives the answer of the majority.
  """
  majority = bool(np.mean(task.survives[learn]) >= 0.5)
  same = np.full(len(task.models), majority)
  rule = _learn(sweeps, task, learn, settings)
  answers = {
    "rule": (same, None)
    if rule is None
    else (
      sweeps.features[rule["feature"]][task.models] <= rule["threshold"],
      rule["feature"],
    )
  }
  columns = _columns(sweeps, name, task)
  for baseline in ("removed", "perplexity", H_COSINE, KL):
    if baseline not in columns:
      continue
    values = columns[baseline]
    fitted = separation.fit_threshold(values[learn], ~task.survives[learn])
    answers[baseline] = (
      same if fitted is None else values <= fitted.value,
      baseline,
    )
  answers["untuned"] = (columns[UNTUNED] <= 1 - settings.keep + 1e-9, UNTUNED)
  answers["majority"] = (same, None)
  return answers


def _columns(sweeps, name, task: Task) -> dict[str, np.ndarray]:
  """Features and baselines of the models of a task, [n] each.

  The perplexity is that of a task that every one of them has, and not of the
  task itself.
  """
  columns = {
    feature: values[task.models] for feature, values in sweeps.features.items()
  }
  columns["removed"] = np.array([sweeps.models[i].removed for i in task.models])
  for other, values in sweeps.perplexity.items():
    if other != name and np.isfinite(values[task.models]).all():
      columns["perplexity"] = values[task.models]
      break
  return columns


def _shuffled(sweeps, task, settings) -> dict[str, float]:
  """The same choice of a feature after the labels were dealt anew.

  Returns:
    Balanced errors on the models learnt from: of the true labels, and mean and
    least over the shuffles; and the share of shuffles that are as good.
  """
  learn = splits(sweeps)[0].folds[0][0][task.models]
  table = {
    feature: sweeps.features[feature][task.models][learn]
    for feature in settings.features
  }
  kept, survives = task.kept[learn], task.survives[learn]
  true = rules.fit_rule(table, kept, survives)["balanced_error"]
  draw, errors = np.random.default_rng(settings.seed), []
  for _ in range(settings.shuffles):
    order = draw.permutation(len(kept))
    errors.append(
      min(
        separation.fit_threshold(values, ~survives[order]).balanced_error
        for values in table.values()
        if np.ptp(values)
      )
    )
  errors = np.array(errors)
  return {
    "true": true,
    "mean": float(errors.mean()),
    "least": float(errors.min()),
    "as_good": float(np.mean(errors <= true + 1e-9)),
    "shuffles": settings.shuffles,
  }


def _number(value):
  return value if np.isfinite(value) else None
