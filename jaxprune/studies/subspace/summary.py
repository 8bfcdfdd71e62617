"""What changes in the options of many questions: every number of the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.evaluation import multiple_choice
from jaxprune.studies.subspace.measure import SETS, Settings, Tables

MEASURES = (
  "cos_p",
  "one_minus_cos_p",
  "kl",
  "kl_share",
  "tv",
  "flip",
  "certified",
  "mass",
  "mass_pruned",
  "score_margin",
  "score_change",
)
# When a question is right, in words.
RULES = {
  "text": multiple_choice.RULES["acc"],
  "letter": "the letter of the answer has the highest probability, all its"
  " spellings together, below the list of the options",
}
# A random set counts as one of the same probability up to this factor.
MASS_FACTOR = 2.0
_BINS = 5


def summarise(tables: Tables, settings: Settings) -> dict[str, Any]:
  """Means over questions, with intervals over questions.

  Args:
    tables: from `measure.compare_items`.
    settings: how it was measured, and the seed of the intervals.

  Returns:
    By token set the means of its measures; accuracy, what was kept, and the
    differences; against_random, by_mass, and which question is typical.
  """
  options, whole = tables["options"], tables["vocabulary"]
  seed = settings.seed
  kept, kept_whole = ~options["flip"], ~whole["flip"]
  pairs = options["count"] * (options["count"] - 1) / 2
  log_change = tables["option"]["score_pruned"] - tables["option"]["score"]

  def mean(values, questions=options["question"]):
    return _entry(values, questions, seed)

  return {
    "questions": len(options["question"]),
    "answer_as": settings.answer_as,
    "rule": RULES[settings.answer_as],
    "analysis_temperature": settings.analysis_temperature,
    "sets": {
      name: {
        measure: _entry(table[measure], table["question"], seed)
        for measure in MEASURES
        if measure in table
      }
      for name, table in ((name, tables[name]) for name in SETS)
    },
    "accuracy": mean(options["correct"]),
    "accuracy_pruned": mean(options["correct_pruned"]),
    "kept_among_options": mean(kept),
    "kept_in_vocabulary": mean(kept_whole),
    "kept_difference": mean(kept.astype(float) - kept_whole),
    "kl_difference": mean(options["kl"] - whole["kl"]),
    "discordant_pairs": mean(options["discordant"] / pairs),
    "order_kept": mean(options["discordant"] == 0),
    "abs_score_change": mean(np.abs(log_change), tables["option"]["question"]),
    "against_random": _against_random(tables, seed),
    "by_mass": _by_mass(tables, seed),
    "typical_question": _typical(whole),
  }


def _entry(values, questions, seed) -> dict[str, Any]:
  """Mean with its interval; rows that are not finite are counted apart."""
  values = np.asarray(values, np.float64)
  good = np.isfinite(values)
  mean = statistics.finite_mean(values, questions, seed=seed)
  return mean.to_json() | {
    "median": float(np.median(values[good])) if good.any() else None,
    "not_finite": int((~good).sum()),
  }


def _typical(whole) -> int:
  """The question whose KL of the vocabulary is the median one."""
  order = np.argsort(whole["kl"], kind="stable")
  return int(whole["question"][order[len(order) // 2]])


def _paired(tables):
  """Means over the random sets of a question, and which are of equal mass."""
  options, random = tables["option_tokens"], tables["random"]
  option_of = np.searchsorted(options["question"], random["question"])
  with np.errstate(divide="ignore", invalid="ignore"):
    ratio = np.abs(np.log(random["mass"] / options["mass"][option_of]))
  matched = ratio <= np.log(MASS_FACTOR) * (1 + 1e-6)
  count = np.bincount(option_of[matched], minlength=len(options["question"]))

  def mean_of(measure):
    values = np.where(matched, random[measure], 0)
    total = np.bincount(option_of, values, minlength=len(count))
    return total / np.maximum(count, 1)

  # Questions whose options begin with one token have nothing to compare.
  return options, mean_of, (count > 0) & (options["count"] > 1)


def _against_random(tables, seed) -> dict[str, Any]:
  """First tokens of the options less random sets of the same mass, paired."""
  options, mean_of, usable = _paired(tables)
  result = {"mass_factor": MASS_FACTOR, "questions": int(usable.sum())}
  if usable.any():
    for measure in ("kl", "kl_share", "one_minus_cos_p", "flip"):
      result[measure] = _entry(
        (options[measure] - mean_of(measure))[usable],
        options["question"][usable],
        seed,
      )
  return result


def _by_mass(tables, seed) -> list[dict[str, Any]]:
  """The change, by the probability that the dense model gives the options."""
  options, whole = tables["options"], tables["vocabulary"]
  # Probabilities of whole answers span many powers of ten.
  log_mass = np.log10(np.maximum(options["mass"], np.finfo(np.float32).tiny))
  edges = statistics.quantile_edges(log_mass, _BINS)
  place = statistics.bin_index(log_mass, edges)
  return [
    {
      "low": 10 ** edges[index],
      "high": 10 ** edges[index + 1],
      "centre": float(10 ** log_mass[place == index].mean()),
      "questions": int((place == index).sum()),
    }
    | {
      f"{name}_{measure}": _entry(
        table[measure][place == index], table["question"][place == index], seed
      )
      for name, table in (("options", options), ("vocabulary", whole))
      for measure in ("kl", "one_minus_cos_p", "flip")
    }
    for index in np.unique(place)
  ]


def headline(summary: Mapping[str, Any]) -> str:
  """The comparison in one line."""

  def text(entry):
    if np.isnan(entry["value"]):
      return "-"
    return f"{entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"

  sets = summary["sets"]
  return (
    f"{summary['questions']} questions, mean [95 %]: KL of the options"
    f" {text(sets['options']['kl'])}, of the vocabulary"
    f" {text(sets['vocabulary']['kl'])} nats; argmax kept among options"
    f" {text(summary['kept_among_options'])}, in the vocabulary"
    f" {text(summary['kept_in_vocabulary'])}; accuracy dense"
    f" {text(summary['accuracy'])}, pruned"
    f" {text(summary['accuracy_pruned'])}"
  )
