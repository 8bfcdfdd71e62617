"""The rule that comes with the package: may this model still be used, and how?

`rule.json` beside this file was learnt by `jaxprune guidance --ship` on the
sweeps of some models, and says how often it was wrong on each of them when that
one was left out. It needs no label and no sweep of one's own.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune import files, statistics
from jaxprune.studies.guidance import cases as cases_lib
from jaxprune.studies.guidance import shifts as shifts_lib
from jaxprune.studies.guidance import transfer

PATH = pathlib.Path(__file__).with_name("rule.json")
MADE_BY = "jaxprune guidance --ship"
KEPT, LOST, UNDECIDED = statistics.STATES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
  """What the rule says of one kind of task.

  Attributes:
    kind: choice, retrieval or generation.
    state: kept, lost or unknown.
    probability: that it is kept, in [0, 1]; NaN where the rule cannot tell.
    error: share of such answers that were wrong on models that were left out
      when the rule was learnt; None where that was never counted.
    sentence: all of it in words.
  """

  kind: str
  state: str
  probability: float
  error: statistics.Estimate | None
  sentence: str


def load_rule(path: pathlib.Path | str = PATH) -> dict[str, Any]:
  """Read the rule that is shipped, or another that was made like it.

  Raises:
    ValueError: the file is missing or is no such rule.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"{path}: no such file; make it with guidance --ship")
  rule = files.read_json(path)
  if rule.get("made_by") != MADE_BY:
    raise ValueError(f"{path}: not written by jaxprune guidance --ship")
  return rule


def make_rule(
  found: cases_lib.Cases, kinds: dict[str, Any], keep: float
) -> dict[str, Any]:
  """What rule.json holds, its numbers rounded to what they are worth.

  Args:
    found: the cases that it was learnt from.
    kinds: from `transfer.learn`.
    keep: least retention that is called kept.
  """
  rule = {
    "made_by": MADE_BY,
    "keep": keep,
    "sure": transfer.SURE,
    "nominal_tokens": cases_lib.NOMINAL_TOKENS,
    "sources": found.sources,
    "configurations_hash": found.hash,
    "kinds": kinds,
  }
  return _rounded(rule)


def check_place(path: pathlib.Path | str) -> None:
  """Refuse to write a rule over anything but a rule.

  Args:
    path: of the file to write.

  Raises:
    ValueError: there is a file, and it is no such rule.
  """
  if not pathlib.Path(path).exists():
    return
  try:
    load_rule(path)
  except ValueError as error:
    raise ValueError(
      f"--ship={path}: is there and is no rule, and would be lost; name another"
      " file"
    ) from error


def write_rule(path: pathlib.Path | str, rule: dict[str, Any]) -> None:
  """Write a rule.

  Args:
    path: of the file.
    rule: from `make_rule`.
  """
  files.atomic_write_json(pathlib.Path(path), rule)


def judge(
  measurements: Mapping[str, Sequence[float]],
  dense_traits: Mapping[str, float] | None = None,
  rule: Mapping[str, Any] | None = None,
) -> dict[str, Judgement]:
  """For which kinds of task may a pruned model still be used?

  Args:
    measurements: columns over positions where both models read what the dense
      one wrote after some prompts, as `sweep.measure.measure_output` and
      `comparison` make them; see `shifts.COLUMNS`.
    dense_traits: what is known of the dense model's answers: `answer_tokens`,
      their mean length, of which the rule takes a nominal one otherwise.
    rule: from `load_rule`; None is the one that is shipped.

  Returns:
    A judgement for each kind of task.

  Raises:
    ValueError: a column is missing, empty, of another length or not finite.
  """
  rule = load_rule() if rule is None else rule
  measured = shifts_lib.shifts(measurements)
  if shifts_lib.is_unchanged(measurements):
    return {kind: _unchanged(kind) for kind in rule["kinds"]}
  tokens = (dense_traits or {}).get("answer_tokens", rule["nominal_tokens"])
  return {
    kind: _judge_kind(kind, entry, measured, tokens, rule["sure"])
    for kind, entry in rule["kinds"].items()
  }


def origin(rule: Mapping[str, Any]) -> str:
  """Where a rule was learnt, in a sentence."""
  names = {s["checkpoint_hash"]: s["model"] for s in rule["sources"]}
  copies = sum(len(source["configurations"]) for source in rule["sources"])
  plural = "" if len(names) == 1 else "s"
  return (
    f"The rule was learnt on {copies} prunings of {len(names)} model{plural}"
    f" ({', '.join(names.values())}); kept means at least"
    f" {100 * rule['keep']:.0f} % of the score above chance."
  )


def _unchanged(kind) -> Judgement:
  return Judgement(
    kind=kind,
    state=KEPT,
    probability=1.0,
    error=None,
    sentence=f"{kind}: kept, because both models say the same at every"
    " position that was measured.",
  )


def _judge_kind(kind, entry, measured, tokens, sure) -> Judgement:
  if entry["feature"] is None:
    return Judgement(
      kind=kind,
      state=UNDECIDED,
      probability=math.nan,
      error=None,
      sentence=f"{kind}: unknown, because {entry['reason']}.",
    )
  x = transfer.amount(entry["feature"], measured, tokens)
  probability = float(transfer.line_of(kind, entry).probability(x))
  state = UNDECIDED
  if probability >= sure:
    state = KEPT
  elif probability <= 1 - sure:
    state = LOST
  error, words = _error(entry, state)
  return Judgement(
    kind=kind,
    state=state,
    probability=probability,
    error=error,
    sentence=f"{kind}: {state} ({100 * probability:.0f} % likely to be kept;"
    f" {words}).",
  )


def _error(entry, state) -> tuple[statistics.Estimate | None, str]:
  """How often such an answer was wrong on models that were left out."""
  checked = entry["left_out"]
  if checked is None:
    return None, "never checked on a model that it was not learnt from"
  if state == UNDECIDED:
    return None, "too close to where models have differed"
  counted = checked["sure"][state]
  if not counted["decided"]:
    return None, "no model that was left out had such an answer"
  error = statistics.Estimate.from_json(counted | {"value": counted["error"]})
  return error, (
    f"on models it had not seen, {counted['wrong']} of {counted['decided']}"
    f" such answers were wrong, {100 * error.value:.0f} %"
    f" [{100 * error.low:.0f}, {100 * error.high:.0f}]"
  )


def _rounded(value):
  """Numbers of a rule to six digits, and no NaN."""
  if isinstance(value, dict):
    return {key: _rounded(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_rounded(each) for each in value]
  if isinstance(value, float):
    return float(f"{value:.6g}") if math.isfinite(value) else None
  return value
