"""May this pruned model still be used for this task, judged without labels?

Both models read text that the dense one wrote, and are measured at a few
hundred positions. The features are numbers made from that; each is larger where
pruning changed more.
A rule is one feature and one threshold, learnt from pruned models whose task
scores are known: the task survives if the feature is at most the threshold. The
rule carries how often it was wrong on models it was not learnt from.

Reference: He et al., arXiv:2603.24652, section 8, asks for such thresholds and
gives none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import separation
from jaxprune.studies.guidance import shifts

QUANTITIES = (
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
  "kl",
  "sd_p",
  "relative_shift",
)
STATISTICS = {
  "mean": np.mean,
  "median": np.median,
  "p90": lambda values: np.quantile(values, 0.9),
  "max": np.max,
}
DECISIONS = ("flip_rate", "first_flip_hazard", "flipped_prompts", "reachable")
# The simple features come first: of equally good ones the first is taken.
FEATURES = (
  *DECISIONS,
  *(
    f"{statistic}_{quantity}"
    for statistic in STATISTICS
    for quantity in QUANTITIES
  ),
)
_COLUMNS = (
  "prompt",
  "step",
  "cos_h",
  "cos_z",
  "cos_z_centred",
  "cos_p",
  "kl",
  "var_p",
  "rms_dz",
  "max_abs_dz",
  "margin",
  "flip",
)
_LEAST_MARGIN = 1e-6  # logits; two equal top tokens have none


def features(measurements: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Reduce measurements at many positions to the numbers a rule may use.

  Args:
    measurements: columns of one length, a row per position and named as in
      `fields.FIELDS`: prompt, step, cos_h, cos_z, cos_z_centred, cos_p, kl,
      var_p, rms_dz, max_abs_dz, margin, flip. Others are ignored.

  Returns:
    FEATURES by name: mean, median, 90th percentile (p90) and max over
    positions of 1 - cosine in h, z, centred z and p, of the KL (nats), of
    sqrt(var_p) (sd_p, logits), of rms_dz / margin (relative_shift); and
      flip_rate: share of positions whose most likely token changed;
      first_flip_hazard: prompts with a flip over positions up to the first one,
        the inverse of the expected number of steps to the first flip;
      flipped_prompts: share of prompts with a flip. The others would be
        continued greedily by both models alike;
      reachable: share of positions where 2 max |dz| reaches the margin, so that
        a flip is not ruled out.

  Raises:
    ValueError: a column is missing, empty, of another length or not finite.
  """
  table = shifts.columns_of(measurements, _COLUMNS)
  by_quantity = {
    f"one_minus_{name}": np.maximum(1 - table[name], 0)
    for name in ("cos_h", "cos_z", "cos_z_centred", "cos_p")
  }
  by_quantity |= {
    "kl": table["kl"],
    "sd_p": np.sqrt(np.maximum(table["var_p"], 0)),
    "relative_shift": table["rms_dz"]
    / np.maximum(table["margin"], _LEAST_MARGIN),
  }
  flip = table["flip"] > 0.5
  values = {
    "flip_rate": np.mean(flip),
    "reachable": np.mean(2 * table["max_abs_dz"] >= table["margin"]),
    **_first_flips(table["prompt"], table["step"], flip),
  }
  values |= {
    f"{statistic}_{quantity}": reduce(by_quantity[quantity])
    for statistic, reduce in STATISTICS.items()
    for quantity in QUANTITIES
  }
  return {name: float(values[name]) for name in FEATURES}


def fit_rule(
  table: Mapping[str, np.ndarray], kept: np.ndarray, survives: np.ndarray
) -> dict[str, Any] | None:
  """Choose the feature that tells best which models survived.

  The least balanced error decides; equals are told apart by the area under the
  curve, then by the rank correlation with `kept`, then by the order of `table`.

  Args:
    table: feature to float [models].
    kept: share of the dense score, float [models].
    survives: bool [models].

  Returns:
    `feature`, `threshold`, `direction` ('<='), `gap` (the two values that the
    threshold lies between), `balanced_error`, `auc`, `spearman` (with kept),
    `tried` features; None if no feature can divide the models.

  Raises:
    ValueError: shapes differ or a value is not finite.
  """
  survives = np.asarray(survives, bool)
  fits = []
  for name, values in table.items():
    fitted = separation.fit_threshold(values, ~survives)
    if fitted is None:
      continue
    fits.append(
      {
        "feature": name,
        "threshold": fitted.value,
        "direction": "<=",
        "gap": [fitted.below, fitted.above],
        "balanced_error": fitted.balanced_error,
        "auc": separation.auc(values, ~survives),
        "spearman": rank_correlation(values, kept),
        "tried": len(table),
      }
    )
  if not fits:
    return None
  return min(
    fits,
    key=lambda rule: (
      round(rule["balanced_error"], 9),
      round(-rule["auc"], 9),
      round(_worst(rule["spearman"]), 9),
    ),
  )


def rank_correlation(values: np.ndarray, kept: np.ndarray) -> float:
  """Spearman's, of a feature and the score that is kept; NaN below two.

  Args:
    values: of the feature, [n].
    kept: share of the dense score, [n].
  """
  if len(values) < 2:
    return math.nan
  return statistics.rank_correlation(values, kept)


def check_answers(
  yes: np.ndarray,
  survives: np.ndarray,
  groups: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 2000,
) -> dict[str, Any]:
  """How often a rule is wrong on models that it was not learnt from.

  Args:
    yes: what the rule says, bool [models].
    survives: what is true, bool [models].
    groups: pruning method of each model; whole groups are resampled.
    seed: of the resampling.
    resamples: number of resamples, at least 100.

  Returns:
    `error` (share of wrong answers) with `low` and `high` (95 %),
    `balanced_error` (NaN with one class), `false_yes` (said to survive and did
    not), `false_no`, `models`, `survived`, `groups`.
  """
  yes, survives = np.asarray(yes, bool), np.asarray(survives, bool)
  error = statistics.proportion(
    yes != survives, groups, seed=seed, resamples=resamples
  )
  return {
    "error": error.value,
    "low": error.low,
    "high": error.high,
    "balanced_error": separation.balanced_error(~yes, ~survives),
    "false_yes": int(np.sum(yes & ~survives)),
    "false_no": int(np.sum(~yes & survives)),
    "models": len(survives),
    "survived": int(survives.sum()),
    "groups": error.count,
  }


def verdict(
  task: str, entry: Mapping[str, Any], measured: Mapping[str, float]
) -> dict[str, Any]:
  """Apply what was learnt about a task to one pruned model.

  Args:
    task: its name.
    entry: of a rule file: `feature`, `threshold`, `gap` and `held_out` (from
      `check_answers`), perhaps a `warning`; or `feature` None with `reason`
      and `range`: feature to the least and greatest value that was seen.
    measured: from `features`.

  Returns:
    `task`, `answer` ('yes', 'no' or 'unknown'), `text` with the evidence, and
    `feature`, `value`, `threshold` where there is a rule.
  """
  name = entry["feature"]
  if name is None:
    outside = [
      each
      for each, (_, most) in entry["range"].items()
      if measured[each] > most
    ]
    where = (
      f" Here {', '.join(outside)} lie above all that was seen."
      if outside
      else " No feature lies above what was seen."
    )
    return {
      "task": task,
      "answer": "unknown",
      "text": f"{task}: unknown ({entry['reason']}.{where})",
    }
  value, threshold, held = measured[name], entry["threshold"], entry["held_out"]
  answer = "yes" if value <= threshold else "no"
  sign = "<=" if answer == "yes" else ">"
  below, above = entry["gap"]
  between = (
    f"; no model with a value between {below:.3g} and {above:.3g} was learnt"
    " from"
    if below < value < above
    else ""
  )
  if entry.get("warning"):
    between += f"; {entry['warning']}"
  return {
    "task": task,
    "answer": answer,
    "feature": name,
    "value": value,
    "threshold": threshold,
    "text": f"{task}: {answer} ({name} {value:.3g} {sign} {threshold:.3g};"
    f" {_reliability(held)}{between})",
  }


def _reliability(held) -> str:
  if held is None:
    return "never checked on other models"
  ends = (
    "no interval"
    if held["low"] is None or math.isnan(held["low"])
    else (f"{100 * held['low']:.0f}, {100 * held['high']:.0f}")
  )
  return (
    f"held-out error {100 * held['error']:.0f} % [{ends}],"
    f" {held['models']} models of {held['groups']} methods"
    + (
      ""
      if 0 < held["survived"] < held["models"]
      else ", none of which failed: a false yes could not be seen"
      if held["survived"]
      else ", all of which failed: a false no could not be seen"
    )
  )


def _first_flips(prompt, step, flip) -> dict[str, float]:
  """Exposure ends with the first flip of a prompt, or with its text."""
  flipped, exposure, prompts = 0, 0, np.unique(prompt)
  for number in prompts:
    ordered = flip[prompt == number][np.argsort(step[prompt == number])]
    flipped += bool(ordered.any())
    exposure += int(np.argmax(ordered)) + 1 if ordered.any() else len(ordered)
  return {
    "first_flip_hazard": flipped / exposure,
    "flipped_prompts": flipped / len(prompts),
  }


def _worst(rho: float) -> float:
  return 1.0 if math.isnan(rho) else rho
