"""What does a comparison say, in one sentence and in a few more?

Where a verdict was reached, by a rule or by tasks, it is the sentence; else the
sentence says what the pruned model writes. A part of a sentence has a tone:
good, care or bad.
"""

from collections.abc import Mapping, Sequence
from typing import Any

KEPT, LOST, UNKNOWN = "kept", "lost", "unknown"
MEASURED, RULE = "measured", "rule"
# In the order of the sentence: words before the kinds of task, and their tone.
_WORDS = {
  KEPT: ("fit for", "good"),
  UNKNOWN: ("with care for", "care"),
  LOST: ("not fit for", "bad"),
}
# What a kind of task asks of a model.
_USES = {
  "choice": "choosing an answer",
  "retrieval": "retrieving",
  "generation": "writing an answer",
}


def find(summary: Mapping[str, Any]) -> dict[str, Any]:
  """The headline of a comparison.

  Args:
    summary: with `alone` and `output`, and perhaps `tasks` whose entries have a
      `retention`, or a `verdict`, by kind of task:

        state    kept, lost or unknown
        basis    measured or rule; None where it is unknown
        error    fraction of cases in which the rule is wrong, or None
        reason   why it is unknown, or ''

  Returns:
    `verdict`, as given or by the tasks, where there is one; and `finding`:
    `parts`, each with text and tone, and `lead`, the sentences below.
  """
  verdict = summary.get("verdict") or by_tasks(summary.get("tasks") or {})
  parts = (
    _verdict_parts(verdict) if verdict else _writing_parts(summary["alone"])
  )
  return ({"verdict": verdict} if verdict else {}) | {
    "finding": {
      "parts": [{"text": text, "tone": tone} for text, tone in parts],
      "lead": lead(summary),
    }
  }


def by_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """A verdict of what was measured.

  Args:
    tasks: entries, of which those with a `retention` count.
  """
  return {
    name: {
      "state": entry["retention"]["state"],
      "basis": MEASURED,
      "error": None,
      "reason": entry["retention"]["reason"],
    }
    for name, entry in tasks.items()
    if entry.get("retention")
  }


def find_verdict(
  verdict: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, str]]:
  """The sentence of a verdict, as parts with their tones.

  Args:
    verdict: by kind of task, as `find` takes it.
  """
  parts = _verdict_parts(verdict)
  return [{"text": text, "tone": tone} for text, tone in parts if text]


def lead(summary: Mapping[str, Any]) -> str:
  """How far the pruned model stays with the original, in plain words.

  Args:
    summary: with `alone` and `output`.
  """
  alone, flip = summary["alone"], summary["output"]["flip"]["value"]
  texts, same = alone["texts"], alone["same"]
  kept = (
    "all of them stay the same"
    if same == texts
    else f"{same or 'none'} of {texts} texts {'stay' if same > 1 else 'stays'}"
    " the same"
  )
  return (
    f"On its own it writes {alone['value']:.1f} tokens like the original, of"
    f" {alone['steps']:.0f} on average; {kept}. When it is shown the original"
    " text, its likeliest next token is another one at"
    f" {100 * flip:.0f} % of the positions."
  )


def _verdict_parts(verdict: Mapping[str, Mapping[str, Any]]):
  """The kinds of task by state, and what that rests on."""
  parts: list[tuple[str, str]] = []
  for state, (words, tone) in _WORDS.items():
    kinds = [
      _USES.get(kind, kind)
      for kind, entry in verdict.items()
      if entry["state"] == state
    ]
    if kinds:
      words = words if parts else words.capitalize()
      parts += [("; ", "")] * bool(parts)
      parts += [(f"{words} {_joined(kinds)}", tone)]
  return [*parts, (_basis(verdict.values()), "")]


def _basis(entries) -> str:
  bases = {entry["basis"] for entry in entries}
  errors = [entry["error"] for entry in entries if entry["error"] is not None]
  wrong = (
    f" that is wrong in {100 * max(errors):.0f} % of cases" if errors else ""
  )
  said = [
    words
    for basis, words in ((MEASURED, "measured"), (RULE, f"by a rule{wrong}"))
    if basis in bases
  ]
  return f" ({_joined(said)})" if said else ""


def _writing_parts(alone):
  texts, same = alone["texts"], alone["same"]
  if same == texts:
    words, tone = "writes what the original writes", "good"
  elif same:
    words, tone = f"writes {same} of {texts} texts like the original", "care"
  else:
    words, tone = "no longer writes what the original writes", "bad"
  return [("This pruned model ", ""), (words, tone), (".", "")]


def _joined(names: Sequence[str]) -> str:
  *others, last = names
  return f"{', '.join(others)} and {last}" if others else last
