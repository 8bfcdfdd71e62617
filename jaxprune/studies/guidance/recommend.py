"""How hard may each method prune, for which task?

For every task and method: the strongest setting with which the task survived in
all seeds and for all dense models, if every weaker one did too; its score as
evidence, and the next stronger one that was tried. Settings of one method are
ordered by what they remove, n:m patterns by themselves.
"""

from typing import Any

import numpy as np

from jaxprune.studies.guidance.sweeps import KINDS, ORDER, Sweeps, Task
from jaxprune.studies.sweep import configurations
from jaxprune.studies.tasks import summary as task_summary


def family(configuration: str) -> str:
  """The method, and whether its pattern is n:m."""
  method, _, amount = configuration.partition(":")
  return f"{method} n:m" if ":" in amount else method


def strength(configuration: str) -> tuple[float, ...]:
  """Orders the settings of one family: greater removes more.

  Of two n:m patterns that remove as much the shorter leaves less choice.
  """
  method, _, amount = configuration.partition(":")
  if ":" in amount:
    kept, of = map(int, amount.split(":"))
    return 1 - kept / of, -of
  return (
    -float(amount) if method in configurations.ROUNDING else float(amount),
  )


def recommend(sweeps: Sweeps, *, seed: int = 0) -> list[dict[str, Any]]:
  """One entry per task and family.

  Args:
    sweeps: all pruned models, duplicates included.
    seed: of the resampling of items.

  Returns:
    `task`, `family`, `kind`, `metric`, `tried` settings; `configuration`, the
    strongest that survived everywhere as all weaker ones did, or None;
    `evidence` of it and `next`, that of the next stronger one, or None;
    `beyond`, a stronger one that survived although a weaker one did not, or
    None: luck, or no order.
  """
  entries = []
  for task_name, task in sweeps.tasks.items():
    names = np.array([sweeps.models[i].configuration for i in task.models])
    families = dict.fromkeys(map(family, names))
    for family_name in sorted(families, key=_place):
      entries.append(
        {
          "task": task_name,
          "family": family_name,
          "kind": _kind(family_name),
          "metric": task.metric,
        }
        | _advice(task, names, family_name, seed)
      )
  return entries


def _advice(task: Task, names, family_name, seed) -> dict[str, Any]:
  """How far one family goes, and on what evidence."""
  ladder = sorted(
    {name for name in names if family(name) == family_name}, key=strength
  )
  good = [bool(task.survives[names == name].all()) for name in ladder]
  after = good.index(False) if False in good else len(good)
  best = ladder[after - 1] if after else None
  following = ladder[after] if after < len(ladder) else None
  beyond = [name for name, ok in zip(ladder, good) if ok][after:]

  def evidence(name):
    return None if name is None else _evidence(task, names == name, name, seed)

  return {
    "tried": ladder,
    "configuration": best,
    "beyond": beyond[-1] if beyond else None,
    "evidence": evidence(best),
    "next": evidence(following),
  }


def _evidence(task: Task, chosen, name, seed) -> dict[str, Any]:
  """Mean score over seeds, interval over items, and the worst run."""
  score = task_summary.estimate(
    task.metric, task.items[chosen].mean(axis=0), task.weights, seed=seed
  )
  runs = [task.survivals[i] for i in np.flatnonzero(chosen)]
  return score.to_json() | {
    "configuration": name,
    "dense": float(np.mean([run.dense for run in runs])),
    "runs": len(runs),
    "survived": sum(run.survives for run in runs),
    "least_kept": min(run.kept for run in runs),
    "least_certainty": min(run.certainty for run in runs),
  }


def _kind(family_name: str) -> str:
  method = family_name.split()[0]
  return next(kind for kind, methods in KINDS.items() if method in methods)


def _place(family_name: str) -> tuple[int, bool]:
  return ORDER.index(family_name.split()[0]), family_name.endswith("n:m")
