"""For which kinds of task is the pruned model still fit, and how sure is that?

A kind of task is kept or lost where the answers of both models say so with
their interval (`statistics.retention`), else where the shipped rule says so,
and unknown otherwise. Everything here is JSON: summary.json holds it, the page
and the last lines of `compare` show it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune import statistics
from jaxprune.probes.decoder import sequences
from jaxprune.statistics.estimate import format_number
from jaxprune.studies.comparison.asked import Asked
from jaxprune.studies.comparison.finding import (
  KEPT,
  LOST,
  MEASURED,
  RULE,
  UNKNOWN,
)
from jaxprune.studies.comparison.items import DENSE, PRUNED, Answers, Task
from jaxprune.studies.comparison.measure import Settings, Tables
from jaxprune.studies.guidance import shifts, shipped

KEEP = 0.9  # least part of the dense score above chance that is called kept
# What a kind of task asks of a model, and what its states mean for a user.
USES = {
  "choice": "choosing an answer",
  "retrieval": "retrieving",
  "generation": "writing an answer",
}
FITNESS = {"kept": "fit", "lost": "not fit", "unknown": "use with care"}
# Of `compare`, on two CPU cores: to compile, and for each parameter.
_MINUTES, _MINUTES_PER_PARAMETER = 1.0, 1.3e-8


def plan(model: sequences.Model, asked: Asked, settings: Settings) -> str:
  """What will be done, and roughly how long that takes, in one line.

  Args:
    model: the dense one.
    asked: what is continued.
    settings: how both are compared.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  minutes = _MINUTES + size * _MINUTES_PER_PARAMETER
  return (
    f"comparing on {len(asked.kinds)} prompts"
    f"{' as turns of a chat' if asked.chat else ''}, {settings.max_new_tokens}"
    " tokens each, and on questions and answers: about"
    f" {max(1, round(minutes))} min on two CPU cores"
  )


def summarise(
  asked: Asked, tables: Tables, answers: Answers, *, seed: int
) -> dict[str, Any]:
  """What `compare` adds to the summary of a comparison.

  Args:
    asked: what was continued.
    tables: from `measure.compare`.
    answers: from `items.ask`.
    seed: of the intervals.

  Returns:
    kinds, of each prompt; max_new_tokens; chat; perplexity: of the dense and
    the pruned model, and the change in nats per token, None where no text was
    read; tasks and verdict: see `judge`.
  """
  return {
    "kinds": list(asked.kinds),
    "max_new_tokens": tables.settings.max_new_tokens,
    "chat": asked.chat,
    "perplexity": _perplexity(answers, seed),
    **judge(answers, _by_rule(tables), seed=seed),
  }


def judge(
  answers: Answers, by_rule: Mapping[str, Mapping[str, Any]], *, seed: int
) -> dict[str, Any]:
  """Scores of both models, and what follows for each kind of task.

  Args:
    answers: from `items.ask`.
    by_rule: by kind of task what a rule says that looked at no answer: state,
      error (fraction of wrong answers on models it had not seen, or None) and
      reason.
    seed: of the intervals.

  Returns:
    tasks: by name, the score of the pruned model with its interval; reference,
      that of the dense one; dense with its interval; change, item by item;
      chance, rule, use, retention and examples;
    verdict: by kind of task its state (kept, lost, unknown), basis (measured,
      rule or None), error of the rule or None, and reason.
  """
  tasks = {task.name: _task(task, seed) for task in answers.tasks}
  return {
    "tasks": tasks,
    "verdict": {
      use: _judge(
        [task["retention"] for task in tasks.values() if task["use"] == use],
        by_rule.get(use),
      )
      for use in dict.fromkeys(task["use"] for task in tasks.values())
    },
  }


def headline(summary: Mapping[str, Any]) -> str:
  """What was found, in ten lines.

  Args:
    summary: of `summary.summarise_all`, with what `summarise` adds.
  """
  subject = summary["subject"]
  how = f", by {subject['method']}" if subject["method"] else ""
  lines = [
    f"{subject['model']}, {_size(subject['parameters'])} parameters, pruned"
    f"{how}: {100 * subject['zeros']:.1f} % of the kernels is zero",
    numbers(summary),
    *(_task_line(name, task) for name, task in summary["tasks"].items()),
  ]
  if summary["perplexity"]:
    entry = summary["perplexity"]
    lines.append(
      _line(
        "perplexity",
        f"{entry[DENSE]['value']:.1f} -> {_text(entry[PRUNED])}, built-in text"
        f" of {entry['tokens']} tokens",
      )
    )
  lines += [
    _line(f"for {USES[use]}", _judged(entry))
    for use, entry in summary["verdict"].items()
  ]
  return "\n".join(lines)


def numbers(summary: Mapping[str, Any]) -> str:
  """The three main numbers of a comparison, a line each.

  Args:
    summary: with output, positions, prompts and alone.
  """
  output, alone = summary["output"], summary["alone"]
  return "\n".join(
    (
      _line(
        "next tokens changed",
        f"{_text(output['flip'], 100)} % of {summary['positions']} tokens that"
        f" the dense model wrote after {summary['prompts']} prompts",
      ),
      _line(
        "tokens in common",
        f"{_text(alone)} of {alone['steps']:.0f}, when it writes alone",
      ),
      _line("mean KL", f"{_text(output['kl'])} nats per token"),
    )
  )


def _by_rule(tables: Tables) -> dict[str, dict[str, Any]]:
  """By kind of task what the shipped rule says, which saw no answer."""
  # The rule was learnt from finite changes. To leave out the infinite ones
  # would make the pruned model look better than it is.
  if not all(np.isfinite(tables.output[name]).all() for name in shifts.COLUMNS):
    return {}
  return {
    kind: {
      "state": said.state,
      "error": None if said.error is None else said.error.value,
      "reason": said.sentence,
    }
    for kind, said in shipped.judge(tables.output).items()
  }


def _task(task: Task, seed) -> dict[str, Any]:
  dense, pruned = task.scores[DENSE], task.scores[PRUNED]
  kept = statistics.retention(pruned, dense, task.chance, KEEP)
  return {
    "metric": task.metric,
    **_estimate(pruned, seed),
    "reference": float(dense.mean()),
    "dense": _estimate(dense, seed),
    "change": statistics.mean(pruned - dense, seed=seed).to_json(),
    "chance": float(np.mean(task.chance)),
    "rule": task.rule,
    "use": task.use,
    "retention": dataclasses.asdict(kept),
    "examples": _examples(task),
  }


def _examples(task) -> list[dict[str, Any]]:
  """A few items that only the dense model has right, as both wrote them."""
  if not task.written:
    return []
  lost = np.flatnonzero(task.scores[DENSE] > task.scores[PRUNED])[:3]
  return [
    {"item": int(index)}
    | {name: texts[index] for name, texts in task.written.items()}
    for index in lost
  ]


def _estimate(scores, seed) -> dict[str, Any]:
  if np.isin(scores, (0, 1)).all():
    return statistics.proportion(scores).to_json()
  return statistics.mean(scores, seed=seed).to_json()


def _perplexity(answers, seed) -> dict[str, Any] | None:
  if not answers.perplexity:
    return None
  dense, pruned = (answers.perplexity[name] for name in (DENSE, PRUNED))

  def ratio(nll, transform=lambda mean: mean):
    return statistics.ratio(
      nll, dense.tokens, transform=transform, seed=seed
    ).to_json()

  return {
    DENSE: ratio(dense.nll, np.exp),
    PRUNED: ratio(pruned.nll, np.exp),
    "change": ratio(pruned.nll - dense.nll),
    "tokens": int(dense.tokens.sum()),
  }


def _judge(retentions, ruled) -> dict[str, Any]:
  """The answers of both models come before a rule that saw none.

  Of several tasks one that is lost decides, and else one that is kept.
  """
  order = (LOST, KEPT, UNKNOWN)
  kept = min(retentions, key=lambda each: order.index(each["state"]))
  state, basis, error, reason = kept["state"], MEASURED, None, kept["reason"]
  if state == UNKNOWN:
    basis = None
    if ruled and ruled["state"] != UNKNOWN:
      state, error, reason = (ruled[k] for k in ("state", "error", "reason"))
      basis = RULE
  return {"state": state, "basis": basis, "error": error, "reason": reason}


def _judged(entry) -> str:
  text = FITNESS[entry["state"]]
  if entry["basis"] == MEASURED:
    share = "at least" if entry["state"] == "kept" else "less than"
    return f"{text}: keeps {share} {100 * KEEP:.0f} % of the score, measured"
  if entry["basis"] == RULE:
    if entry["error"] is None:
      return f"{text}: by the shipped rule, never checked for such an answer"
    wrong = f"{100 * entry['error']:.0f} % of models it had not seen"
    return f"{text}: by the shipped rule, wrong on {wrong}"
  return f"{text}: {entry['reason']}"


def _task_line(name, task) -> str:
  chance = f", chance {task['chance']:.2f}" if task["chance"] else ""
  return _line(
    f"{name}, {task['metric']}",
    f"{task['reference']:.3f} -> {_text(task)}, {task['count']} items{chance}",
  )


def _line(name: str, text: str) -> str:
  return f"{name:24s} {text}"


def _text(entry, factor=1) -> str:
  """Such as `0.52 [0.40, 0.63]`."""
  estimate = statistics.as_estimate(entry)
  ends = {
    name: factor * getattr(estimate, name) for name in ("value", "low", "high")
  }
  return dataclasses.replace(estimate, **ends).format(2)


def _size(count: int) -> str:
  for name, size in (("B", 10**9), ("M", 10**6)):
    if count >= size:
      return f"{format_number(count / size, 3)} {name}"
  return format_number(count)
