"""Every configuration is pruned, measured and scored, and kept when finished.

A finished configuration has a file in the folder of configurations and is not
computed again, so that a run that was cut off goes on. Pruned weights are not
kept.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, files, report
from jaxprune.calibration import load_tokenizer, special_tokens
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.calibration.tokens import Calibration
from jaxprune.evaluation import chat, generation
from jaxprune.evaluation.journal import Bookkeeping, Journal
from jaxprune.evaluation.tasks.table import TASKS
from jaxprune.probes.decoder import sequences
from jaxprune.studies import texts
from jaxprune.studies.comparison import measure as comparison
from jaxprune.studies.sweep import configurations, paths
from jaxprune.studies.sweep import scores as scores_lib
from jaxprune.studies.sweep.scores import Score
from jaxprune.studies.tasks import named
from jaxprune.studies.tasks import scores as task_scores

Tell = Callable[[float, float], None]  # how much is done, and of how much
NUM_PROMPTS, NEW_TOKENS = 16, 32  # that are measured on, and written after each
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or dense"),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
  """The dense model and what is asked of all that is made from it.

  Attributes:
    source: its checkpoint.
    tasks: what is scored.
    prompts: texts that h, z and p are measured on; None measures nothing.
  """

  source: checkpoints.Source
  tasks: task_scores.Tasks
  prompts: prompts_lib.Prompts | None
  _paths: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

  @functools.cached_property
  def model(self) -> task_scores.Model:
    """Loaded once, and only if a configuration has to be made."""
    folder = self.source.folder
    tokenizer = load_tokenizer(folder)
    model = task_scores.load(
      self.source, tokenizer, special_tokens(folder, tokenizer)
    )
    if not self.tasks.writes:
      return model
    template = chat.template(folder, self.tasks.chat)
    return dataclasses.replace(model, template=template)

  @functools.cached_property
  def readings(self) -> list[comparison.DenseReading]:
    """What the dense model writes after the prompts, made once."""
    return _read_dense(_bare(self.model), self.prompts, NEW_TOKENS)

  def paths(
    self, written: Mapping[str, list[generation.Continuation]]
  ) -> dict[str, dict[str, tuple[list[int], list[paths.Batch]]]]:
    """What the pruned models follow, read by the dense model once.

    Args:
      written: by task, what the dense model wrote.

    Returns:
      By named task and kind (`written`, `reference`): the items that have such
      a text, and their batches.
    """
    if not self._paths:
      for name, limit in named.names(self.tasks):
        if name not in written:
          continue
        prompts = named.prompts_of(self.model, name, limit, self.tasks)
        texts_of = {
          "written": [text.tokens for text in written[name]],
          "reference": [prompt.reference for prompt in prompts],
        }
        for kind, right in texts_of.items():
          items = [index for index, text in enumerate(right) if len(text)]
          if items:
            read = [
              paths.Path(prompt=prompts[index].ids, text=right[index])
              for index in items
            ]
            batches = paths.read(_bare(self.model), read)
            self._paths.setdefault(name, {})[kind] = items, batches
    return self._paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One configuration and calibration seed; the dense model is None."""

  configuration: configurations.Configuration | None
  seed: int

  @property
  def name(self) -> str:
    """Of its file, without the ending."""
    if self.configuration is None:
      return scores_lib.DENSE
    return f"{self.configuration.file}-seed{self.seed}"


def jobs(
  wanted: Sequence[configurations.Configuration], seeds: Sequence[int]
) -> list[Job]:
  """What is to be scored: the dense model, then configurations by seeds.

  Args:
    wanted: the configurations.
    seeds: of the calibration; a data-free method is run for the first only.
  """
  return [Job(configuration=None, seed=seeds[0])] + [
    Job(configuration=configuration, seed=seed)
    for configuration in wanted
    for seed in (seeds[:1] if configuration.is_data_free else seeds)
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """Where a sweep works.

  Attributes:
    scores: the folder of configurations, which exists.
    work: where a pruned model is, until it is scored.
  """

  scores: pathlib.Path
  work: pathlib.Path


def measure(
  dense: Dense,
  todo: Sequence[Job],
  calibrations: Mapping[int, Calibration],
  places: Places,
  on_job: Callable[[int], None],
  amount: Callable[[str], Tell] = lambda name: lambda done, total: None,
) -> list[Score]:
  """Prune, measure and score, or read what is finished.

  Args:
    dense: what is pruned, and what is asked.
    todo: from `jobs`, the dense model first.
    calibrations: what the methods look at, by seed.
    places: where finished scores are, and models in work.
    on_job: called with the index of each job that is done.
    amount: by the name of a part of a job, what is told how much of it is done,
      and of how much.

  Returns:
    The score of each job.

  Raises:
    ValueError: a finished score was changed, or is of other calibration tokens.
  """
  scores, references = [], {}
  for index, job in enumerate(todo):
    path = places.scores / f"{job.name}.json"
    calibration = calibrations[job.seed]
    if path.is_file():
      score = scores_lib.read_score(path)
      _check_tokens(path, score, calibration)
    else:
      work = places.work / job.name
      work_on = _Work(folder=work, amount=amount)
      score = _make(dense, job, calibration, work_on, references)
      files.write_signed_json(path, score)
      files.remove_tree(places.work)
    if job.configuration is None:
      references = _texts(score)
    scores.append(score)
    on_job(index)
  return scores


def _check_tokens(path, score, calibration) -> None:
  """Refuse a score that is of other tokens than are read now."""
  if score.get("calibration", calibration.hash) != calibration.hash:
    raise ValueError(
      f"{path}: is of other calibration tokens (hash"
      f" {score['calibration']:.16} then, {calibration.hash:.16} now); choose"
      " another --out, or add --overwrite"
    )


def measure_output(
  dense: task_scores.Model,
  pruned: task_scores.Model,
  prompts: prompts_lib.Prompts,
  steps: int,
) -> dict[str, np.ndarray]:
  """Compare h, z and p where both models read what the dense one writes, T = 1.

  Args:
    dense: the original model.
    pruned: of the same shape.
    prompts: to continue.
    steps: tokens to write; what comes after an end of text does not count.

  Returns:
    Columns over positions: prompt, step, and the fields of
    `probes.position.Position` at the output.
  """
  dense, pruned = _bare(dense), _bare(pruned)
  return comparison.compare_outputs(
    dense, pruned, _read_dense(dense, prompts, steps)
  )


def _bare(model: task_scores.Model) -> sequences.Model:
  return sequences.Model(config=model.config, params=model.params)


def _read_dense(model, prompts, steps) -> list[comparison.DenseReading]:
  writing = texts.Writing(max_new_tokens=steps, batch=len(prompts.tokens))
  return comparison.read_dense(model, prompts, writing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Work:
  """Where one job works, and who is told how far it is."""

  folder: pathlib.Path
  amount: Callable[[str], Tell]

  def tell(self, part: str) -> Tell:
    """Of one part of the job."""
    return self.amount(f"{self.folder.name}, {part}")


@dataclasses.dataclass(frozen=True)
class _Steps:
  """What `prune` tells of its layers or rounds."""

  tell: Tell
  number: int

  def step(self, index: int, **numbers: Any) -> None:
    """One more is done."""
    del numbers
    self.tell(index + 1, self.number)


def _make(dense, job, calibration, work, references) -> Score:
  """The score of one job, pruned and measured now."""
  score: Score = {
    "configuration": scores_lib.DENSE,
    "seed": job.seed,
    "removed": 0.0,
  }
  model = dense.model
  if job.configuration is not None:
    if not job.configuration.is_data_free:
      score["calibration"] = calibration.hash
    score["configuration"] = job.configuration.name
    score["removed"] = configurations.prune(
      dense.source,
      job.configuration,
      calibration.tokens,
      job.seed,
      work.folder,
      lambda unit, number: _Steps(work.tell(f"{unit}s"), number),
    )
    model = task_scores.load(
      checkpoints.open_checkpoint(work.folder),
      dense.model.tokenizer,
      dense.model.specials,
    )
    score["measurements"] = (
      {}
      if dense.prompts is None
      else {
        name: column.tolist()
        for name, column in comparison.compare_outputs(
          _bare(dense.model), _bare(model), dense.readings
        ).items()
      }
    )
  origin = {
    "model": checkpoints.checkpoint_hash(dense.source),
    "job": job.name,
    "calibration": score.get("calibration"),
  }
  # Beside the pruned model, and removed with it.
  kept = work.folder.with_name(f"{job.name}-answers.jsonl")
  with Journal(kept, origin) as journal:
    model = dataclasses.replace(
      model,
      template=dense.model.template,
      bookkeeping=Bookkeeping(journal=journal, progress=work.tell("tasks")),
    )
    score["tasks"] = {
      scored.task: _as_json(scored)
      for scored in task_scores.score(model, dense.tasks, references)
    }
  if job.configuration is not None:
    tell = work.tell("reading texts")
    score["paths"] = _follow(dense, model, references, tell)
  return score


def _follow(dense, pruned, references, tell) -> dict[str, Any]:
  """By task and kind of text, how far the pruned model follows it."""
  return {
    task: {
      kind: {"items": items}
      | {
        name: column.tolist()
        for name, column in paths.follow(
          _bare(dense.model), _bare(pruned), batches, tell
        ).items()
      }
      for kind, (items, batches) in kinds.items()
    }
    for task, kinds in dense.paths(references).items()
  }


def _as_json(scored: task_scores.Scored) -> dict[str, Any]:
  """One task, as the file of a configuration keeps it."""
  entry: dict[str, Any] = {
    "columns": {
      name: values.tolist() for name, values in scored.columns.items()
    },
    "weights": None
    if scored.weights is None
    else [float(weight) for weight in scored.weights],
  }
  if scored.traits:
    entry["traits"] = {
      name: values.tolist() for name, values in scored.traits.items()
    }
  if scored.named:
    entry["named"] = scored.named
    entry["chance"] = TASKS[scored.named].chance
  elif scored.chance is not None:
    entry["chance"] = scored.chance
  if isinstance(scored.detail, list):
    entry["written"] = [list(text.tokens) for text in scored.detail]
  return entry


def _texts(score: Score) -> dict[str, list[generation.Continuation]]:
  """What the dense model wrote, by task."""
  return {
    task: [
      generation.Continuation(tokens=tuple(ids), text="", ended="")
      for ids in entry["written"]
    ]
    for task, entry in score["tasks"].items()
    if "written" in entry
  }
