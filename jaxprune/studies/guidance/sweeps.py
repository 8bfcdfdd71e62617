"""What was measured and scored in the sweeps that `discrepancy` wrote?

A sweep is a folder with a file per pruned model, see `studies.sweep.scores`.
Here they become columns over all pruned models.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxprune import files, statistics
from jaxprune.evaluation.tasks.table import TASKS
from jaxprune.studies.guidance import rules
from jaxprune.studies.sweep import configurations
from jaxprune.studies.sweep import scores as scores_lib

# The score of a task is the first of these that it has. Other columns only
# describe it, such as the length of a text.
METRICS = ("acc", "ndcg@10", "exact", "passed", "same", "nll")
# Score of a guess, for sweeps that do not say it of their tasks.
_CHANCE = {"pocket choose": 0.25, "pocket stories": 0.25}
KINDS = {
  "weights": configurations.ENTRIES,
  "units": configurations.UNITS,
  "rounding": configurations.ROUNDING,
  "drops": tuple(configurations.DROPS),
}
ORDER = tuple(method for methods in KINDS.values() for method in methods)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """One pruned model.

  Attributes:
    dense: hash of the checkpoint that it was made from.
    configuration: METHOD:AMOUNT.
    seed: of the calibration.
    removed: fraction of zeros in the kernels.
  """

  dense: str
  configuration: str
  seed: int
  removed: float

  @property
  def method(self) -> str:
    """The name before the amount."""
    return self.configuration.partition(":")[0]

  @property
  def kind(self) -> str:
    """A key of KINDS."""
    return next(
      kind for kind, methods in KINDS.items() if self.method in methods
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
  """One task on the models that were scored on it.

  Attributes:
    metric: of METRICS.
    models: indices into `Sweeps.models`, int [n].
    survivals: one for each of them.
    items: score of every item, [n, items]; nats for nll.
    weights: what a mean of items divides by, [items].
  """

  metric: str
  models: np.ndarray
  survivals: list[statistics.Survival]
  items: np.ndarray
  weights: np.ndarray

  @property
  def kept(self) -> np.ndarray:
    """Share of the dense score above chance, float [n]."""
    return np.array([each.kept for each in self.survivals])

  @property
  def survives(self) -> np.ndarray:
    """bool [n]."""
    return np.array([each.survives for each in self.survivals], bool)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sweeps:
  """All pruned models of all sweeps.

  Attributes:
    models: in the order of the columns.
    features: name to float [models].
    perplexity: task to (perplexity over that of the dense model), [models];
      NaN where it was not scored.
    tasks: by name.
    left_out: what was not used, and why, a line each.
    sources: a description of each sweep for the rule file.
    hash: sha256 of the files of all pruned models.
  """

  models: list[Model]
  features: dict[str, np.ndarray]
  perplexity: dict[str, np.ndarray]
  tasks: dict[str, Task]
  left_out: list[str]
  sources: list[dict[str, Any]]
  hash: str

  @property
  def dense_hashes(self) -> dict[str, str]:
    """Hash of the dense checkpoint of each sweep, for run.json."""
    return {
      f"dense {index}": source["checkpoint_hash"]
      for index, source in enumerate(self.sources)
    }

  @property
  def fingerprints(self) -> list[str]:
    """One per model; equal for two methods that made the same model."""
    return [
      hashlib.sha256(
        " ".join(
          [
            model.dense,
            *(f"{values[index]:.6g}" for values in self.features.values()),
          ]
        ).encode()
      ).hexdigest()[:16]
      for index, model in enumerate(self.models)
    ]

  @property
  def methods(self) -> np.ndarray:
    """Method of each model, [models]."""
    return np.array([model.method for model in self.models])


def read_sweeps(
  folders: Sequence[str | os.PathLike],
  *,
  keep: float,
  skip: Collection[str] = (),
  num_prompts: int | None = None,
  seed: int = 0,
  resamples: int = 1000,
) -> Sweeps:
  """Read finished configurations.

  Args:
    folders: that `jaxprune discrepancy` wrote with --prompts.
    keep: least part of the dense score that is called survival.
    skip: names of tasks to leave out.
    num_prompts: use only what was measured on the first so many prompts.
    seed: of the resampling of items.
    resamples: number of resamples of the items.

  Raises:
    ValueError: a folder holds nothing that is finished, or no measurements,
      two folders have the same pruned model, or a task has no score.
  """
  models, measured, task_scores, left_out, sources = [], [], [], [], []
  digest, seen = hashlib.sha256(), set()
  for folder in folders:
    job, dense, pruned = read_folder(pathlib.Path(folder), digest)
    taken = []
    for score in pruned:
      model = _model(job, score)
      if model in seen:
        if model.method in configurations.DATA_FREE:
          continue
        raise ValueError(
          f"--sweeps={folder}: {model.configuration} with seed {model.seed} of"
          " the same dense model is in an earlier sweep too: give each once"
        )
      columns = _first_prompts(score.get("measurements") or {}, num_prompts)
      try:
        features = rules.features(columns)
      except ValueError as error:
        left_out.append(
          f"{folder}: {model.configuration} seed {model.seed}: {error}"
        )
        continue
      seen.add(model)
      models.append(model)
      measured.append(features)
      task_scores.append((dense["tasks"], score["tasks"]))
      taken.append(columns)
    sources.append(_source(pathlib.Path(folder), job, taken))
  if not models:
    raise ValueError(
      "--sweeps: no pruned model with measurements: run"
      " jaxprune discrepancy with --prompts"
      + (f" ({left_out[0]})" if left_out else "")
    )
  names = dict.fromkeys(
    task for dense, _ in task_scores for task in dense if task not in skip
  )
  tasks = {
    name: _task(
      name,
      task_scores,
      models,
      left_out,
      keep=keep,
      seed=seed,
      resamples=resamples,
    )
    for name in names
  }
  tasks = {name: task for name, task in tasks.items() if task is not None}
  if not tasks:
    raise ValueError(
      "--sweeps: no task has a score that can be lost"
      + (f" ({left_out[0]})" if left_out else "")
    )
  return Sweeps(
    models=models,
    perplexity=_perplexity(tasks, len(models)),
    tasks=tasks,
    left_out=left_out,
    sources=sources,
    hash=digest.hexdigest(),
    features={
      name: np.array([each[name] for each in measured])
      for name in rules.FEATURES
    },
  )


def _model(job, score) -> Model:
  fields = {name: score[name] for name in ("configuration", "seed", "removed")}
  model = Model(dense=job["checkpoint_hash"], **fields)
  if model.method in configurations.DATA_FREE:
    # The method gives the same model for every seed, so once is enough.
    return dataclasses.replace(model, seed=0)
  return model


def _perplexity(tasks, count) -> dict[str, np.ndarray]:
  """Over that of the dense model, [count]; NaN where it was not scored."""
  found = {}
  for name, task in tasks.items():
    if task.metric == "nll":
      found[name] = np.full(count, np.nan)
      found[name][task.models] = 1 / task.kept
  return found


def read_folder(
  folder: str | os.PathLike, digest: Any
) -> tuple[dict[str, Any], ...]:
  """Read what is finished of one sweep.

  Args:
    folder: that `jaxprune discrepancy` wrote.
    digest: of hashlib, updated with every file that is read.

  Returns:
    job.json, the dense score and the others, in order of their names.

  Raises:
    ValueError: there is no finished dense model, or a score is no counterpart
      of its own.
  """
  paths = sorted(scores_lib.find_folder(folder).glob("*.json"))
  contents = {}
  for path in paths:
    digest.update(path.name.encode() + b"\0" + path.read_bytes())
    contents[path.stem] = scores_lib.read_score(path)
  if not {"job", scores_lib.DENSE} <= contents.keys():
    raise ValueError(
      f"--sweeps={folder}: no finished dense model"
      f" ({scores_lib.FOLDER}/dense.json): give a"
      " folder that jaxprune discrepancy wrote"
    )
  job, dense = contents.pop("job"), contents[scores_lib.DENSE]
  for stem, score in contents.items():
    fault = _unlike(score["tasks"], dense["tasks"])
    if fault:
      raise ValueError(
        f"{folder}/{scores_lib.FOLDER}/{stem}.json: {fault}; remove it and let"
        " jaxprune discrepancy make it anew"
      )
  del contents[scores_lib.DENSE]
  return job, dense, list(contents.values())


def _unlike(tasks, dense) -> str:
  """Why scores cannot be compared with the dense ones; "" if they can."""
  for name, entry in dense.items():
    for metric in {*METRICS} & entry["columns"].keys():
      values = tasks.get(name, entry | {"columns": {}})["columns"].get(metric)
      if values is None or len(values) != len(entry["columns"][metric]):
        return f"task {name} has no {metric} for each item of the dense model"
      if metric != "nll" and not all(0 <= value <= 1 for value in values):
        return f"task {name}: {metric} is not within [0, 1]"
  return ""


def _first_prompts(columns, count):
  """Measurements on the first prompts only; None is all."""
  if count is None:
    return columns
  keep = [prompt < count for prompt in columns.get("prompt", ())]
  return {
    name: [value for value, kept in zip(values, keep) if kept]
    for name, values in columns.items()
  }


def _source(folder, job, measurements) -> dict[str, Any]:
  """Where a rule comes from, as the rule file keeps it."""
  prompts = None
  if (folder / "run.json").is_file():
    prompts = files.read_json(folder / "run.json").get("prompts")
  return {
    "checkpoint_hash": job["checkpoint_hash"],
    "model": job.get("model"),
    "calibration": job.get("calibration"),
    "num_samples": job.get("num_samples"),
    "seq_len": job.get("seq_len"),
    "prompts": prompts,
    "models": len(measurements),
    "positions": max((len(each["kl"]) for each in measurements), default=0),
    "steps": max((max(each["step"]) + 1 for each in measurements), default=0),
    "num_prompts": max(
      (len(set(each["prompt"])) for each in measurements), default=0
    ),
  }


def _task(name, scores, models, left_out, *, keep, seed, resamples):
  """Survival of one task, or None with the reason in `left_out`."""
  metric, index, survivals, items, weights = None, [], [], [], None
  for place, (dense, pruned) in enumerate(scores):
    if name not in dense:
      continue
    entry, columns = dense[name], dense[name]["columns"]
    metric = metric or metric_of(entry)
    if metric not in columns:
      left_out.append(
        f"{name}: has no score among {', '.join(METRICS)}"
        if metric is None
        else f"{name}: not all sweeps have {metric}"
      )
      return None
    values = np.array(pruned[name]["columns"][metric], np.float64)
    if weights is None:
      weights = (
        np.ones(len(values))
        if entry["weights"] is None
        else np.array(entry["weights"], np.float64)
      )
    reference, chance = columns[metric], chance_of(name, entry)
    if metric != "nll" and _near_chance(reference, chance):
      line = (
        f"{name}: unknown, because the dense model {models[place].dense[:12]}"
        " may be near chance: it has nothing to lose"
      )
      if line not in left_out:
        left_out.append(line)
      continue
    try:
      if values.shape != weights.shape:
        raise ValueError("has other items than the first sweep")
      survival = (
        statistics.survive(
          np.array(reference, np.float64),
          values,
          weights=weights,
          lower_is_better=True,
          keep=keep,
          seed=seed,
          resamples=resamples,
        )
        if metric == "nll"
        else _survive(values, reference, chance, keep)
      )
    except ValueError as error:
      model = models[place]
      left_out.append(
        f"{name}: {model.configuration} seed {model.seed}: {error}"
      )
      continue
    index.append(place)
    survivals.append(survival)
    items.append(values)
  if not index:
    return None
  return Task(
    metric=metric,
    models=np.array(index),
    survivals=survivals,
    items=np.array(items),
    weights=weights,
  )


def metric_of(entry: dict[str, Any]) -> str | None:
  """The column of a task that counts, or None.

  Args:
    entry: what a configuration of a sweep says of the task.
  """
  if "named" in entry:
    return TASKS[entry["named"]].metric
  return next((name for name in METRICS if name in entry["columns"]), None)


def chance_of(task: str, entry: dict[str, Any]) -> float | np.ndarray:
  """Score of a guess at a task: one number, or one per item.

  Args:
    task: its name.
    entry: what a configuration of a sweep says of it.
  """
  chance = _CHANCE.get(task, 0.0)
  if "named" in entry:
    chance = TASKS[entry["named"]].chance
  chance = entry.get("chance", chance)
  return np.asarray(chance, np.float64) if np.ndim(chance) else float(chance)


def _near_chance(reference, chance) -> bool:
  """Whether the dense model may be no better than a guess."""
  return statistics.retention(reference, reference, chance).near_chance


def _survive(pruned, reference, chance, keep) -> statistics.Survival:
  """Survival of a score above chance."""
  kept = statistics.retention(pruned, reference, chance, keep)
  survives = bool(statistics.is_enough(kept.value, keep))
  return statistics.Survival(
    score=kept.pruned,
    dense=kept.dense,
    kept=kept.value,
    survives=survives,
    certainty=kept.probability if survives else 1 - kept.probability,
  )
