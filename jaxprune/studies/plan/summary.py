"""The numbers of a plan: all that its page shows, computed once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.calibration import tokens
from jaxprune.statistics.estimate import format_number
from jaxprune.studies.plan import search, tries
from jaxprune.studies.plan.measure import Plan
from jaxprune.studies.plan.models import Workshop
from jaxprune.studies.plan.tries import Question, Settings, Tried

AMOUNTS = {
  "parameters": "parameters of the layers",
  "kv_bytes": "bytes of keys and values",
  "layers": "layers",
}
_TASKS = {use: name for name, use in tries.USES.items()}


def summarise(
  found: Plan, shop: Workshop, question: Question, settings: Settings
) -> dict[str, Any]:
  """What was found, and what it rests on.

  Args:
    found: from `measure.plan`.
    shop: where the models were made.
    question: with the answers of the dense model.
    settings: what was looked for.

  Returns:
    model, amount, tasks, keep; calibration, the text that was looked at; dense,
    by task the score of the dense model with its chance; slope of the
    prediction as the last measurement corrected it; tried, every pruning once
    with its amount, damage, kl, changed, predicted, and where answers were
    measured kept, with its interval, and scores by task;
    chosen and controls, of the same form; finding and lead, in words.
  """
  numbers = {
    "model": shop.source.folder.name,
    "amount": shop.amount,
    "tasks": [_TASKS[use] for use in settings.uses],
    "keep": settings.keep,
    "calibration": tokens.describe(shop.calibration),
    "dense": {
      name: {
        "value": float(each.values.mean()),
        "count": len(each.values),
        "metric": each.kind.metric,
        "chance": float(np.mean(each.kind.chance)),
      }
      for name, each in question.dense.items()
    },
    "slope": found.slope,
    "tried": [
      _entry(tried, found, question, settings)
      for tried in _once([*found.tried, *found.controls])
    ],
    "chosen": found.chosen and _entry(found.chosen, found, question, settings),
    "controls": [
      _entry(tried, found, question, settings)
      for tried in _once(found.controls)
    ],
  }
  return numbers | {"finding": finding(numbers), "lead": lead(numbers)}


def finding(summary: Mapping[str, Any]) -> list[dict[str, str]]:
  """The headline, as parts with a tone.

  Args:
    summary: with `chosen`, `amount`, `keep` and `tasks`.
  """
  chosen, tasks = summary["chosen"], " and ".join(summary["tasks"])
  what, keep = AMOUNTS[summary["amount"]], f"{100 * summary['keep']:.0f} %"
  if chosen is None:
    text = f"No pruning that was measured keeps {keep} of {tasks}"
    return [{"text": text, "tone": "bad"}]
  kept = chosen["kept"]
  tones = {"kept": "good", "lost": "bad", "unknown": "care"}
  return [
    {
      "text": f"{100 * chosen['amount']:.1f} % of the {what} can go",
      "tone": tones[kept["state"]],
    },
    {
      "text": f": {chosen['label']} keeps {100 * kept['value']:.0f} % of"
      f" {tasks} (measured on {kept['count']} items)",
      "tone": "",
    },
  ]


def lead(summary: Mapping[str, Any]) -> str:
  """How sure that is, and how it compares, in sentences.

  Args:
    summary: with `chosen`, `controls`, `keep` and `tried`.
  """
  chosen = summary["chosen"]
  if chosen is None:
    least = min(summary["tried"], key=lambda each: each["amount"])
    return (
      f"{len(summary['tried'])} prunings were tried, from"
      f" {100 * least['amount']:.1f} % on. No model was written. Ask for less"
      " with --keep, or train what was pruned with --recover."
    )
  kept = chosen["kept"]
  ends = f"[{format_number(kept['low'], 2)}, {format_number(kept['high'], 2)}]"
  said = {
    "kept": "the whole interval lies above what was asked for.",
    "unknown": "the items cannot tell it from less than was asked for; more"
    " --tasks can.",
    "lost": "the whole interval lies below what was asked for.",
  }[kept["state"]]
  text = (
    f"Of what the original can do beyond guessing it keeps"
    f" {format_number(kept['value'], 2)} {ends}: {said}"
  )
  for control in summary["controls"]:
    text += (
      f" Usual: {control['label']} removes {100 * control['amount']:.1f} %"
      f" and keeps {format_number(control['kept']['value'], 2)}, with a mean KL"
      f" of {format_number(control['kl'], 2)} nats against"
      f" {format_number(chosen['kl'], 2)}."
    )
  return text


def headline(summary: Mapping[str, Any]) -> str:
  """What was found, in a few lines.

  Args:
    summary: from `summarise`.
  """
  lines = ["".join(part["text"] for part in summary["finding"])]
  entries = [summary["chosen"], *summary["controls"]]
  for entry in filter(None, entries):
    kept = entry["kept"]
    lines.append(
      f"{entry['label']:32s} {100 * entry['amount']:5.1f} % removed, KL"
      f" {entry['kl']:.3g}, {100 * entry['changed']:.1f} % of the tokens"
      f" changed, keeps {kept['value']:.2f}"
      f" [{kept['low']:.2f}, {kept['high']:.2f}]"
    )
  return "\n".join(lines)


def _once(tried: Sequence[Tried]) -> list[Tried]:
  """Each pruning once, with its answers where they were measured."""
  found: dict[tuple[str, bool], Tried] = {}
  for each in tried:
    key = each.label, each.recovered
    if key not in found or each.answers:
      found[key] = each
  return list(found.values())


def _entry(tried, found, question, settings) -> dict[str, Any]:
  entry = {
    name: getattr(tried, name)
    for name in ("label", "family", "amount", "damage", "kl", "changed", "rule")
  } | {
    "predicted": search.kept(tried.damage, found.slope),
    "recovered": tried.recovered,
    "kept": None,
    "scores": {},
  }
  if tried.answers:
    entry["kept"] = dataclasses.asdict(
      tries.kept(question, tried, settings.keep)
    )
    entry["scores"] = {
      task: statistics.mean(np.asarray(values), seed=settings.seed).to_json()
      for task, values in tried.answers.items()
    }
  return entry
