"""Which pruned model kept which task? What a transferable rule learns from.

A case is one task of one pruned model: what was measured without labels, and
what became of the score. Unlike `sweeps`, folders need not have the same tasks
or items, because dense models are compared by kind of task only.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxprune import report, statistics
from jaxprune.evaluation.tasks.table import TASKS, USE
from jaxprune.studies.guidance import shifts as shifts_lib
from jaxprune.studies.guidance import sweeps

# Kind of a task by its metric, for tasks that are not known by name.
# Perplexities are no task but a baseline.
KINDS = {
  "acc": "choice",
  "ndcg@10": "retrieval",
  "exact": "generation",
  "passed": "generation",
}
BASELINES = {
  "sparsity": "sparsity",
  "perplexity": "change of perplexity",
  "h": "1 - cosine of h",
}
NOMINAL_TOKENS = 100.0  # length of an answer where nobody says it
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT"),
  "dense": report.Field("text", "", "hash of the dense checkpoint"),
  "kind": report.Field("text", "", "choice, retrieval or generation"),
  "state": report.Field("text", "", "kept, lost or unknown, by the items"),
  "retention": report.Field("float", "", "share of the score above chance"),
  "low": report.Field("float", "", "lower end of the retention, 95 %"),
  "high": report.Field("float", "", "upper end of the retention, 95 %"),
  "answer_tokens": report.Field("float", "tokens", "mean length of an answer"),
} | {
  f"log_{name}": report.Field("float", "", f"logarithm: {words}")
  for name, words in shifts_lib.SHIFTS.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
  """One task of one pruned model.

  Attributes:
    model: hash of the dense checkpoint.
    name: of the dense model, as its run was told.
    configuration: METHOD:AMOUNT.
    seed: of the calibration.
    task: its name.
    kind: a value of KINDS.
    retention: what became of the score above chance.
    shifts: from `shifts.shifts`, and `sparsity` and, where a text was read,
      `perplexity`: logarithm of the ratio to the dense one.
    tokens: mean length of an answer of the dense model.
  """

  model: str
  name: str
  configuration: str
  seed: int
  task: str
  kind: str
  retention: statistics.Retention
  shifts: dict[str, float]
  tokens: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
  """All cases of all folders.

  Attributes:
    cases: in the order of the folders.
    left_out: what was not used and why, a line each.
    sources: where they come from, an entry per folder, for the rule file.
    hash: sha256 of all files that were read.
  """

  cases: list[Case]
  left_out: list[str]
  sources: list[dict[str, Any]]
  hash: str


def read_cases(
  folders: Sequence[str], *, keep: float, skip: Sequence[str] = ()
) -> Cases:
  """Read finished configurations of any number of sweeps.

  Args:
    folders: that `jaxprune discrepancy` wrote with --prompts; a sweep that
      still runs is read as far as it is.
    keep: least retention that is called kept.
    skip: names of tasks to leave out.

  Raises:
    ValueError: a folder has no dense model, or nothing can be learnt from.
  """
  cases, left_out, sources = [], [], []
  digest, seen = hashlib.sha256(), set()
  for folder in folders:
    job, dense, pruned = sweeps.read_folder(pathlib.Path(folder), digest)
    name = _name(folder, job, sources)
    found = []
    for score in pruned:
      place = f"{name}: {score['configuration']} seed {score['seed']}"
      try:
        shifts = shifts_lib.shifts(score.get("measurements") or {})
      except ValueError as error:
        left_out.append(f"{place}: {error}")
        continue
      shifts |= _baselines(dense, score)
      for task, entry in score["tasks"].items():
        if task in skip or _metric(entry) is None:
          continue
        mark = (job["checkpoint_hash"], score["configuration"], score["seed"])
        if (*mark, task) in seen:
          left_out.append(f"{place}: {task}: is in an earlier sweep too")
          continue
        seen.add((*mark, task))
        try:
          retention = _retention(task, entry, dense["tasks"][task], keep)
        except (KeyError, ValueError) as error:
          left_out.append(f"{place}: {task}: {error}")
          continue
        if retention.near_chance:
          line = f"{name}: {task}: {retention.reason}"
          left_out += [] if line in left_out else [line]
          continue
        found.append(
          Case(
            model=job["checkpoint_hash"],
            name=name,
            configuration=score["configuration"],
            seed=score["seed"],
            task=task,
            kind=_kind(entry),
            retention=retention,
            shifts=shifts,
            tokens=_tokens(dense["tasks"][task]),
          )
        )
    cases += found
    sources.append(_source(name, job, pruned, found))
  if not cases:
    raise ValueError(
      "--sweeps: no pruned model with measurements and a score: run"
      " jaxprune discrepancy with --prompts"
      + (f" ({left_out[0]})" if left_out else "")
    )
  return Cases(
    cases=cases, left_out=left_out, sources=sources, hash=digest.hexdigest()
  )


def _name(folder, job, sources) -> str:
  """The last part of what the model was called, told from those before it."""
  name = pathlib.PurePath(str(job.get("model") or folder)).name
  mark = job["checkpoint_hash"]
  taken = {s["model"]: s["checkpoint_hash"] for s in sources}
  return name if taken.get(name, mark) == mark else f"{name} {mark[:6]}"


def rows(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
  """Records: a row per case."""
  for case in cases:
    yield {
      "protocol": "case",
      "dense": case.model,
      "configuration": case.configuration,
      "seed": case.seed,
      "task": case.task,
      "kind": case.kind,
      "state": case.retention.state,
      "retention": case.retention.value,
      "low": case.retention.low,
      "high": case.retention.high,
      "answer_tokens": case.tokens,
    } | {f"log_{name}": case.shifts[name] for name in shifts_lib.SHIFTS}


def _metric(entry) -> str | None:
  """The column that counts; None where nothing can be kept or lost."""
  if _kind(entry) is None:
    return None
  return sweeps.metric_of(entry)


def _kind(entry) -> str | None:
  """What the task asks of a model: a value of KINDS."""
  if "named" in entry:
    use = USE[TASKS[entry["named"]].kind]
    return use if use in KINDS.values() else None
  return KINDS.get(sweeps.metric_of(entry))


def _retention(task, entry, dense, keep) -> statistics.Retention:
  metric = _metric(entry)
  return statistics.retention(
    entry["columns"][metric],
    dense["columns"][metric],
    sweeps.chance_of(task, dense),
    keep,
  )


def _tokens(dense) -> float:
  """Mean length of an answer of the dense model, in tokens."""
  lengths = dense.get("traits", {}).get("answer_tokens")
  lengths = lengths or [len(each) for each in dense.get("written", ())]
  return float(max(np.mean(lengths), 1.0)) if lengths else NOMINAL_TOKENS


def _baselines(dense, score) -> dict[str, float]:
  """Sparsity, and the change of the first perplexity that both have."""
  found = {"sparsity": float(score["removed"])}
  for task, entry in score["tasks"].items():
    before = dense["tasks"].get(task, {"columns": {}})
    if _metric(entry) is None and "nll" in before["columns"]:
      count = np.sum(entry["weights"] or np.ones(len(entry["columns"]["nll"])))
      change = np.subtract(entry["columns"]["nll"], before["columns"]["nll"])
      found["perplexity"] = float(np.sum(change) / count)
      break
  return found


def _source(name, job, pruned, found) -> dict[str, Any]:
  """Where cases come from, as the rule file keeps it."""
  return {
    "model": name,
    "checkpoint_hash": job["checkpoint_hash"],
    # Names only: where the files lay says nothing elsewhere.
    "prompts": pathlib.PurePath(str(job.get("prompts"))).name,
    "calibration": pathlib.PurePath(str(job.get("calibration"))).name,
    "configurations": sorted({score["configuration"] for score in pruned}),
    "tasks": {
      task: {
        "items": case.retention.count,
        "dense": round(case.retention.dense, 4),
        "chance": round(case.retention.chance, 4),
        "kind": case.kind,
      }
      for task, case in {case.task: case for case in found}.items()
    },
  }
