"""A rule that transfers: learnt on some models, asked about another.

For each kind of task one number that needs no label (`shifts`) says how likely
at least the wanted share of the score above chance is kept: the log odds fall
in a straight line with it. A written answer is lost with its first decisive
token, so for generation the number may be that of a whole answer, the change of
a token times the length.

What a rule is worth is counted on models that it was not learnt from: every
model is left out once, and number, line and trust are chosen anew on the
others. A line learnt on few models is too sure of itself on the next one; so
its log odds are multiplied by the trust, at most 1, that suits each of the
models it was learnt from when that is left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import logistic
from jaxprune.studies.guidance import cases as cases_lib
from jaxprune.studies.guidance.cases import Case
from jaxprune.studies.guidance.shifts import SHIFTS

SURE = 0.8  # the rule says kept from here on, and lost up to 1 - SURE
PER_ANSWER = " per answer"  # ends the name of a change times the length
# What is taken where there are too few models to choose by leaving one out:
# what changes of the probabilities, of the vector that is compared, and the
# nats of a whole answer.
FIRST_CHOICE = {
  "choice": "tv",
  "retrieval": "h",
  "generation": "kl_sure" + PER_ANSWER,
}
ALONE = 0.5  # trust in what was learnt on one model
_EDGES = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
_LEAST = 2  # cases of either class that a line needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """Says for one kind of task how likely it is kept.

  Attributes:
    kind: of task.
    feature: of `candidates`, or a baseline.
    curve: log odds against the feature.
    trust: what the log odds are multiplied by, in (0, 1].
  """

  kind: str
  feature: str
  curve: logistic.FallingCurve
  trust: float

  def probability(self, x: np.ndarray) -> np.ndarray:
    """That a task is kept, at values from `amounts`."""
    return logistic.from_log_odds(self.trust * self.curve.log_odds(x))


def line_of(kind: str, entry: dict[str, Any]) -> Line:
  """The line of a kind.

  Args:
    kind: of task.
    entry: what `learn` returned of it.
  """
  curve = logistic.FallingCurve(
    intercept=entry["intercept"], slope=entry["slope"]
  )
  return Line(
    kind=kind, feature=entry["feature"], curve=curve, trust=entry["trust"]
  )


def candidates(kind: str) -> tuple[str, ...]:
  """What a line of a kind may read: where it writes, also of whole answers."""
  whole = (name + PER_ANSWER for name in SHIFTS)
  return (*SHIFTS, *whole) if kind == "generation" else tuple(SHIFTS)


def in_words(feature: str) -> str:
  """A candidate as a reader would say it."""
  name = feature.removesuffix(PER_ANSWER)
  return SHIFTS[name] + (" × length of an answer" if name != feature else "")


def amount(feature: str, shifts: Mapping[str, float], tokens: float) -> float:
  """What a line reads of one pruned model.

  Args:
    feature: of `candidates`, or a baseline.
    shifts: from `shifts.shifts`, and baselines.
    tokens: length of an answer.
  """
  name = feature.removesuffix(PER_ANSWER)
  return shifts[name] + (float(np.log(tokens)) if name != feature else 0.0)


def amounts(cases: Sequence[Case], feature: str) -> np.ndarray:
  """`amount` of every case, [n].

  Args:
    cases: of one kind.
    feature: of SHIFTS, or a baseline.
  """
  return np.array([amount(feature, c.shifts, c.tokens) for c in cases])


def fit(cases: Sequence[Case], feature: str | None = None) -> Line | None:
  """Learn the line of one kind of task.

  Args:
    cases: of one kind.
    feature: that it reads; None chooses the one that does best when each model
      is left out once, or FIRST_CHOICE where fewer than two models have both
      kept and lost enough to be asked.

  Returns:
    None where too few cases are kept, or lost, for anything to be learnt.
  """
  if not _both_classes(cases):
    return None
  kind = cases[0].kind
  if feature is None:
    feature = FIRST_CHOICE[kind]
    if len(_telling(cases)) > 1:
      losses = {name: _loss(cases, name) for name in candidates(kind)}
      feature = min(losses, key=losses.get)
  return Line(
    kind=kind,
    feature=feature,
    curve=_curve(cases, feature),
    trust=_trust(cases, feature),
  )


def leave_one_out(
  cases: Sequence[Case], feature: str | None = None
) -> tuple[np.ndarray, dict[str, str]]:
  """Ask about every model what was learnt on the others.

  Args:
    cases: of one kind.
    feature: that the lines read; None chooses one on the others each time.

  Returns:
    Probabilities [n], NaN where the others had nothing to learn from, and the
    feature by hash of the model that was left out.
  """
  probabilities, features = np.full(len(cases), np.nan), {}
  for model in _models(cases):
    line = fit([case for case in cases if case.model != model], feature)
    if line is None:
      continue
    asked = [index for index, c in enumerate(cases) if c.model == model]
    x = amounts([cases[index] for index in asked], line.feature)
    probabilities[asked] = line.probability(x)
    features[model] = line.feature
  return probabilities, features


def check(
  cases: Sequence[Case], probabilities: np.ndarray, *, seed: int = 0
) -> dict[str, Any] | None:
  """Count how good stated probabilities are.

  Args:
    cases: of one kind.
    probabilities: stated of them, [n]; cases with NaN are left out.
    seed: of the resampling of models and of configurations within them.

  Returns:
    `cases`; `auc` of those that items decide, and `auc_all` by their most
    likely label, with intervals; `brier`, `coin` (that of always stating the
    mean) and `reliability`; `error`, of the more likely answer; and for the
    answers `kept` and `lost` that the rule is sure of: `said`, and of those
    that the items decide `decided`, `wrong`, `error`, `low`, `high`. None
    where nothing was asked.
  """
  asked = np.flatnonzero(np.isfinite(probabilities))
  if not asked.size:
    return None
  stated, chosen = probabilities[asked], [cases[i] for i in asked]
  good = np.array([case.retention.probability for case in chosen])
  decided = np.array([case.retention.state != "unknown" for case in chosen])
  groups = np.array([f"{c.model} {c.configuration} {c.seed}" for c in chosen])
  error = statistics.mean((stated >= 0.5) != (good >= 0.5), groups, seed=seed)
  return {
    "cases": len(chosen),
    "models": len(_models(chosen)),
    "decided": int(decided.sum()),
    "kept": int(np.sum(decided & (good > 0.5))),
    "auc": _auc(chosen, stated, good, decided, seed),
    "auc_all": _auc(chosen, stated, good, np.ones_like(decided), seed),
    "brier": logistic.brier(stated, good),
    "coin": logistic.brier(np.full_like(good, good.mean()), good),
    "reliability": logistic.reliability(stated, good, _EDGES),
    "error": error.to_json(),
    "sure": {
      "kept": _answers(stated >= SURE, good < 0.5, decided),
      "lost": _answers(stated <= 1 - SURE, good >= 0.5, decided),
    },
  }


def by_model(
  cases: Sequence[Case], probabilities: np.ndarray
) -> dict[str, dict[str, Any]]:
  """`check` of every model by itself, by its name.

  Args:
    cases: of one kind.
    probabilities: that each is kept, [n].
  """
  found = {}
  for model in _models(cases):
    chosen = [index for index, c in enumerate(cases) if c.model == model]
    one = [cases[index] for index in chosen]
    found[one[0].name] = check(one, probabilities[chosen])
  return found


def _answers(said, wrong, decided) -> dict[str, Any]:
  """How often sure answers are wrong, of those whose truth is known."""
  known = said & decided
  entry = {"said": int(said.sum()), "decided": int(known.sum())}
  if not known.any():
    return entry | {"wrong": 0, "error": None, "low": None, "high": None}
  error = statistics.proportion(wrong[known])
  return entry | {
    "wrong": int(np.sum(wrong[known])),
    "error": error.value,
    "low": error.low,
    "high": error.high,
  }


def _auc(cases, stated, good, chosen, seed) -> dict[str, Any]:
  """Area under the curve, resampling models and configurations in them."""
  rows = np.flatnonzero(chosen)
  entry = {"value": None, "low": None, "high": None, "count": len(rows)}
  kept = good[rows] >= 0.5
  if kept.all() or not kept.any():
    return entry
  entry["value"] = statistics.auc(-stated[rows], ~kept)
  weights = _resampled(
    [cases[row] for row in rows], np.random.default_rng(seed)
  )
  areas = _areas(stated[rows], kept, weights)
  if np.isfinite(areas).mean() > 0.5:
    low, high = np.nanquantile(areas, [0.025, 0.975])
    entry |= {"low": float(low), "high": float(high)}
  return entry


def _resampled(cases, draw, resamples: int = 500) -> np.ndarray:
  """How often each case is drawn [resamples, n], all tasks of a copy alike."""
  models = _models(cases)
  model = np.array([models.index(case.model) for case in cases])
  copies, place = np.unique(
    [f"{c.model} {c.configuration} {c.seed}" for c in cases],
    return_inverse=True,
  )
  weights = np.zeros((resamples, len(copies)))
  owner = np.zeros(len(copies), int)
  owner[place] = model
  for row in weights:
    for index in draw.integers(len(models), size=len(models)):
      own = np.flatnonzero(owner == index)
      np.add.at(row, draw.choice(own, size=len(own)), 1)
  return weights[:, place]


def _areas(stated, kept, weights) -> np.ndarray:
  """Weighted areas under the curve [resamples]; NaN with one class only."""
  distinct, place = np.unique(stated, return_inverse=True)
  at = np.eye(len(distinct))[place]
  high, low = (weights * kept) @ at, (weights * ~kept) @ at
  below = np.cumsum(low, axis=1) - low / 2  # ties count half
  with np.errstate(invalid="ignore"):
    return (high * below).sum(1) / (high.sum(1) * low.sum(1))


def _loss(cases, feature) -> float:
  """Of a feature, each model that tells something being left out once."""
  odds, good = _left_out_odds(cases, feature)
  trust = _trust(cases, feature)
  return _mean_loss([trust * each for each in odds], good)


def _trust(cases, feature) -> float:
  """The multiple of the log odds that suits models which are left out."""
  odds, good = _left_out_odds(cases, feature)
  if not odds:
    return ALONE
  tried = np.linspace(0.05, 1, 39)
  losses = [
    _mean_loss([trust * each for each in odds], good) for trust in tried
  ]
  return float(tried[int(np.argmin(losses))])


def _left_out_odds(cases, feature):
  """Log odds and labels of each telling model, learnt on all others."""
  odds, good = [], []
  for model in _telling(cases):
    others = [case for case in cases if case.model != model]
    if not _both_classes(others):
      continue
    asked = [case for case in cases if case.model == model]
    odds.append(_curve(others, feature).log_odds(amounts(asked, feature)))
    good.append(np.array([case.retention.probability for case in asked]))
  return odds, good


def _mean_loss(odds, good) -> float:
  """Log loss, every model weighing the same; infinite without any."""
  losses = [
    logistic.log_loss(logistic.from_log_odds(each), labels)
    for each, labels in zip(odds, good)
  ]
  return float(np.mean(losses)) if losses else float("inf")


def _telling(cases) -> list[str]:
  """The models that both kept and lost enough to be worth asking about."""
  return [
    model
    for model in _models(cases)
    if _both_classes([case for case in cases if case.model == model])
  ]


def _curve(cases, feature) -> logistic.FallingCurve:
  """The line, every model weighing the same."""
  count = {model: 0 for model in _models(cases)}
  for case in cases:
    count[case.model] += 1
  share = len(cases) / len(count)
  return logistic.fit_falling(
    amounts(cases, feature),
    np.array([case.retention.probability for case in cases]),
    np.array([share / count[case.model] for case in cases]),
  )


def _models(cases) -> list[str]:
  return list(dict.fromkeys(case.model for case in cases))


def _both_classes(cases) -> bool:
  kept = sum(case.retention.probability >= 0.5 for case in cases)
  return kept >= _LEAST and len(cases) - kept >= _LEAST


def learn(found: cases_lib.Cases, *, seed: int = 0) -> dict[str, Any]:
  """Learn and check the lines of all kinds.

  Args:
    found: the cases.
    seed: of the resampling.

  Returns:
    By kind what the rule file says of it; JSON values only.
  """
  kinds = {}
  for kind in dict.fromkeys(cases_lib.KINDS.values()):
    chosen = [case for case in found.cases if case.kind == kind]
    if chosen:
      kinds[kind] = _learn_kind(kind, chosen, seed)
  return kinds


def _learn_kind(kind, cases, seed) -> dict[str, Any]:
  states = [case.retention.state for case in cases]
  entry: dict[str, Any] = {
    "models": sorted({case.name for case in cases}),
    "tasks": sorted({case.task for case in cases}),
    "cases": len(cases),
    **{state: states.count(state) for state in statistics.STATES},
  }
  line = fit(cases)
  if line is None:
    rare = "lost" if states.count("kept") else "kept"
    return entry | {
      "feature": None,
      "reason": f"too few pruned models {rare} it to learn from",
    }
  stated, features = leave_one_out(cases)
  x = amounts(cases, line.feature)
  names = {case.model: case.name for case in cases}
  return entry | {
    "feature": line.feature,
    "intercept": line.curve.intercept,
    "slope": line.curve.slope,
    "trust": line.trust,
    "range": [float(x.min()), float(x.max())],
    "left_out": check(cases, stated, seed=seed),
    "left_out_features": {names[m]: name for m, name in features.items()},
    "by_model": by_model(cases, stated),
    "baselines": {
      name: _check_baseline(cases, name, seed) for name in cases_lib.BASELINES
    },
    "alternatives": {name: _loss(cases, name) for name in candidates(kind)},
  }


def _check_baseline(cases, name, seed) -> dict[str, Any] | None:
  """A baseline, learnt and asked as the rule is; None where it is not known."""
  known = [case for case in cases if name in case.shifts]
  if not known:
    return None
  return check(known, leave_one_out(known, name)[0], seed=seed)
