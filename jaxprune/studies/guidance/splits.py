"""Which pruned models is a rule learnt from, and which is it asked about?

Never single models at random: the question is whether a rule holds for a method
that it has not seen.
"""

import dataclasses

import numpy as np

from jaxprune.studies.guidance.sweeps import ORDER, Grids


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
  """Folds of models: learnt from, and held out.

  Attributes:
    name: of the split.
    said: what was divided, in words.
    folds: pairs of bool [models]; no model is in both of a pair.
  """

  name: str
  said: str
  folds: list[tuple[np.ndarray, np.ndarray]]


HALF = "half"


def splits(grids: Grids) -> list[Split]:
  """Ways to hold out models, never single ones at random.

  `half` is the one that rules are learnt from: every second method, in the
  order of KINDS, is held out, and so is the later half of the runs, where a run
  is a dense model and a calibration seed. A method with one run keeps it.
  `swapped` learns from the held-out methods and asks the others. The rest leave
  out one method, one kind of method or one dense model at a time, with all its
  runs.
  """
  methods = grids.methods
  present = [name for name in ORDER if name in methods]
  first = np.isin(methods, present[::2])
  denses = list(dict.fromkeys(model.dense for model in grids.models))
  run = np.array(
    [denses.index(model.dense) * 10**6 + model.seed for model in grids.models]
  )
  runs = np.unique(run)
  early = runs[: -(-len(runs) // 2)]
  late = runs if len(runs) == 1 else runs[len(early) :]
  single = np.array([len(set(run[methods == name])) == 1 for name in methods])
  learn, ask = np.isin(run, early) | single, np.isin(run, late) | single
  halves = tuple(", ".join(part) for part in (present[::2], present[1::2]))
  numbers = tuple(
    ", ".join(f"{denses[one // 10**6][:6]}/{one % 10**6}" for one in part)
    for part in (early, late)
  )

  def said(a, b):
    return (
      f"learnt from {halves[a] or 'nothing'} (runs {numbers[0]}), asked of"
      f" {halves[b] or 'nothing'} (runs {numbers[1]}; a run is dense"
      " model/calibration seed; a method with one run keeps it)"
    )

  found = [
    Split(name=HALF, said=said(0, 1), folds=[(first & learn, ~first & ask)]),
    Split(
      name="swapped", said=said(1, 0), folds=[(~first & learn, first & ask)]
    ),
  ]
  for name, labels in (
    ("leave one method out", methods),
    ("leave one kind out", np.array([m.kind for m in grids.models])),
    ("leave one dense model out", np.array([m.dense for m in grids.models])),
  ):
    distinct = np.unique(labels)
    if len(distinct) > 1:
      found.append(
        Split(
          name=name,
          said=f"{len(distinct)} folds, all runs",
          folds=[(labels != one, labels == one) for one in distinct],
        )
      )
  return found


def without_twins(grids: Grids, known=()) -> Grids:
  """Leave out models that are there already, made by another method or seed.

  Dropping one block and dropping one consecutive block give the same model, so
  does a drop whose choice the calibration does not change. Twins would be on
  both sides of a split.

  Args:
    grids: all models.
    known: fingerprints that count as there already.
  """
  seen, keep, said = set(known), [], []
  for index, mark in enumerate(grids.fingerprints):
    if mark in seen:
      model = grids.models[index]
      said.append(
        f"{model.cell} seed {model.seed}: the same model as an earlier one"
      )
    else:
      keep.append(index)
    seen.add(mark)
  place = {old: new for new, old in enumerate(keep)}
  tasks = {}
  for name, task in grids.tasks.items():
    chosen = [i for i, old in enumerate(task.models) if old in place]
    if chosen:
      tasks[name] = dataclasses.replace(
        task,
        models=np.array([place[task.models[i]] for i in chosen]),
        survivals=[task.survivals[i] for i in chosen],
        items=task.items[chosen],
      )
  return dataclasses.replace(
    grids,
    tasks=tasks,
    models=[grids.models[i] for i in keep],
    left_out=grids.left_out + said,
    features={name: values[keep] for name, values in grids.features.items()},
    perplexity={
      name: values[keep] for name, values in grids.perplexity.items()
    },
  )
