"""Which pruned models is a rule learnt from, and which is it asked about?

Models are never held out one by one at random: the question is whether a rule
holds for a method that it has not seen.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxprune.studies.guidance.sweeps import ORDER, Sweeps


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
  """Folds of models: learnt from, and held out.

  Attributes:
    name: of the split.
    description: what was divided, in words.
    folds: pairs of bool [models]; no model is in both of a pair.
  """

  name: str
  description: str
  folds: list[tuple[np.ndarray, np.ndarray]]


HALF = "half"


def splits(sweeps: Sweeps) -> list[Split]:
  """Ways to hold out models, never single ones at random.

  `half` is the one that rules are learnt from: every second method, in the
  order of KINDS, is held out, and so is the later half of the runs, where a run
  is a dense model and a calibration seed. A method with one run keeps it.
  `swapped` learns from the held-out methods and asks the others. The rest leave
  out one method, one kind of method or one dense model at a time, with all its
  runs.
  """
  methods = sweeps.methods
  present = [name for name in ORDER if name in methods]
  first = np.isin(methods, present[::2])
  denses = list(dict.fromkeys(model.dense for model in sweeps.models))
  run = np.array(
    [denses.index(model.dense) * 10**6 + model.seed for model in sweeps.models]
  )
  runs = np.unique(run)
  early = runs[: -(-len(runs) // 2)]
  late = runs if len(runs) == 1 else runs[len(early) :]
  single = np.array([len(set(run[methods == name])) == 1 for name in methods])
  learn, ask = np.isin(run, early) | single, np.isin(run, late) | single
  halves = tuple(", ".join(part) for part in (present[::2], present[1::2]))
  numbers = tuple(
    ", ".join(f"{denses[n // 10**6][:6]}/{n % 10**6}" for n in part)
    for part in (early, late)
  )

  def describe(learnt, asked):
    return (
      f"learnt from {halves[learnt] or 'nothing'} (runs {numbers[0]}), asked of"
      f" {halves[asked] or 'nothing'} (runs {numbers[1]}; a run is dense"
      " model/calibration seed; a method with one run keeps it)"
    )

  every = [
    Split(
      name=HALF,
      description=describe(0, 1),
      folds=[(first & learn, ~first & ask)],
    ),
    Split(
      name="swapped",
      description=describe(1, 0),
      folds=[(~first & learn, first & ask)],
    ),
  ]
  for name, labels in (
    ("leave one method out", methods),
    ("leave one kind out", np.array([m.kind for m in sweeps.models])),
    ("leave one dense model out", np.array([m.dense for m in sweeps.models])),
  ):
    distinct = np.unique(labels)
    if len(distinct) > 1:
      every.append(
        Split(
          name=name,
          description=f"{len(distinct)} folds, all runs",
          folds=[(labels != label, labels == label) for label in distinct],
        )
      )
  return every


def without_duplicates(sweeps: Sweeps, known: Iterable[str] = ()) -> Sweeps:
  """Leave out models that are there already, made by another method or seed.

  Dropping one block and dropping one consecutive block give the same model, so
  does a drop whose choice the calibration does not change. Duplicates would be
  on both sides of a split.

  Args:
    sweeps: all models.
    known: fingerprints that count as there already.
  """
  seen, keep, reasons = set(known), [], []
  for index, mark in enumerate(sweeps.fingerprints):
    if mark in seen:
      model = sweeps.models[index]
      reasons.append(
        f"{model.configuration} seed {model.seed}: the same model as an"
        " earlier one"
      )
    else:
      keep.append(index)
    seen.add(mark)
  place = {old: new for new, old in enumerate(keep)}
  tasks = {}
  for name, task in sweeps.tasks.items():
    chosen = [i for i, old in enumerate(task.models) if old in place]
    if chosen:
      tasks[name] = dataclasses.replace(
        task,
        models=np.array([place[task.models[i]] for i in chosen]),
        survivals=[task.survivals[i] for i in chosen],
        items=task.items[chosen],
      )
  return dataclasses.replace(
    sweeps,
    tasks=tasks,
    models=[sweeps.models[i] for i in keep],
    left_out=sweeps.left_out + reasons,
    features={name: values[keep] for name, values in sweeps.features.items()},
    perplexity={
      name: values[keep] for name, values in sweeps.perplexity.items()
    },
  )
