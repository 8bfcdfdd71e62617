"""How hard may each method prune, for which task?

For every task and method: the strongest setting with which the task survived in
all seeds and for all dense models, if every weaker one did too; its score as
evidence, and the next stronger one that was tried. Settings of one method are
ordered by what they remove, n:m patterns by themselves.
"""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.studies.guidance.sweeps import KINDS, ORDER, Grids, Task
from jaxprune.studies.sweep import configurations


def family(cell: str) -> str:
  """The method, and whether its pattern is n:m."""
  method, _, amount = cell.partition(":")
  return f"{method} n:m" if ":" in amount else method


def strength(cell: str) -> tuple[float, ...]:
  """Orders the settings of one family: greater removes more.

  Of two n:m patterns that remove as much the shorter leaves less choice.
  """
  method, _, amount = cell.partition(":")
  if ":" in amount:
    kept, of = map(int, amount.split(":"))
    return 1 - kept / of, -of
  return (
    -float(amount) if method in configurations.ROUNDING else float(amount),
  )


def recommend(grids: Grids, *, seed: int = 0) -> list[dict[str, Any]]:
  """One entry per task and family.

  Returns:
    `task`, `family`, `kind`, `metric`, `tried` settings; `cell`, the strongest
    that survived everywhere as all weaker ones did, or None; `evidence` of it
    and `next`, that of the next stronger one, or None; `beyond`, a stronger one
    that survived although a weaker one did not, or None: luck, or no order.
  """
  found = []
  for name, task in grids.tasks.items():
    cells = np.array([grids.models[i].cell for i in task.models])
    families = dict.fromkeys(map(family, cells))
    for one in sorted(families, key=_place):
      ladder = sorted(
        {cell for cell in cells if family(cell) == one}, key=strength
      )
      good = [bool(task.survives[cells == cell].all()) for cell in ladder]
      after = good.index(False) if False in good else len(good)
      best = after - 1 if after else None
      beyond = [cell for cell, ok in zip(ladder, good) if ok][after:]
      found.append(
        {
          "task": name,
          "family": one,
          "kind": _kind(one),
          "metric": task.metric,
          "tried": ladder,
          "cell": None if best is None else ladder[best],
          "beyond": beyond[-1] if beyond else None,
          "evidence": None
          if best is None
          else _evidence(task, cells == ladder[best], ladder[best], seed),
          "next": None
          if after == len(ladder)
          else _evidence(task, cells == ladder[after], ladder[after], seed),
        }
      )
  return found


def _evidence(task: Task, chosen, cell, seed) -> dict[str, Any]:
  """Mean score over seeds, interval over items, and the worst run."""
  transform = np.exp if task.metric == "nll" else lambda ratio: ratio
  score = statistics.ratio(
    task.items[chosen].mean(axis=0),
    task.weights,
    transform=transform,
    seed=seed,
  )
  runs = [task.survivals[i] for i in np.flatnonzero(chosen)]
  return {
    "cell": cell,
    "score": score.value,
    "low": score.low,
    "high": score.high,
    "dense": float(np.mean([r.dense for r in runs])),
    "runs": len(runs),
    "survived": sum(run.survives for run in runs),
    "least_kept": min(run.kept for run in runs),
    "least_certainty": min(run.certainty for run in runs),
  }


def _kind(one: str) -> str:
  method = one.split()[0]
  return next(kind for kind, methods in KINDS.items() if method in methods)


def _place(one: str) -> tuple[int, bool]:
  return ORDER.index(one.split()[0]), one.endswith("n:m")
