"""One pruning is tried: what is seen of it, and what it answers.

Damage is measured without any answer: both models read what the dense one
writes after some prompts, and damage is the KL in nats, weighted by how sure
the dense model is. Answers are those to built-in items and to tasks by name.
What was seen of a pruning is kept, and no model is made for it again.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, files, report, staging, statistics
from jaxprune.evaluation.tasks import table
from jaxprune.recovery import finetune
from jaxprune.studies import inputs
from jaxprune.studies.comparison import items, more_items
from jaxprune.studies.comparison import measure as comparison
from jaxprune.studies.guidance import shifts, shipped
from jaxprune.studies.plan import models, search
from jaxprune.studies.plan.candidates import Family
from jaxprune.studies.plan.models import Workshop
from jaxprune.studies.recovery import train

BATCH = 8  # sequences of a step of training
# What is planned has lost little; with 1e-4 SmolLM2 at 20 % got worse.
_LEARNING_RATE = 2e-5
# What a task asks of a model, by what a user calls it.
USES = {"choose": "choice", "retrieve": "retrieval", "generate": "generation"}
# First guess of -log(kept) for each nat of damage: an answer of some eight
# tokens, of whose change a third costs the answer. Measurements correct it.
_SLOPES = {"choice": 1.0, "retrieval": 1.0, "generation": 2.4}
FIELDS = {
  "candidate": report.Field("text", "", "the pruning that was tried"),
  "amount": report.Field("float", "", "fraction of the amount removed"),
  "damage": report.Field(
    "float", "nats", "mean KL, weighted by exp(-entropy) of the dense model"
  ),
  "predicted": report.Field("float", "", "part of the score expected to stay"),
  "changed": report.Field("float", "", "fraction of next tokens that changed"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is looked for.

  Attributes:
    uses: what the tasks stand for: choice, retrieval, generation.
    keep: part of the dense score above chance that must stay, in (0, 1).
    methods: that remove single weights.
    allocations: how a sparsity may be spread over layers.
    patterns: unstructured, or n:m with the letter n.
    measurements: prunings whose answers are measured at most, at least 1.
    recover_steps: of training a pruned model; 0 trains none.
    controls: whether uniform Wanda and drops by similarity are measured at the
      amount that was found.
    seed: of the intervals and of the training.
  """

  uses: tuple[str, ...]
  keep: float
  methods: tuple[str, ...] = ("wanda", "sparsegpt")
  allocations: tuple[str, ...] = ("uniform", "owl", "kl")
  patterns: tuple[str, ...] = ("unstructured",)
  measurements: int = 6
  recover_steps: int = 0
  controls: bool = False
  seed: int = 0

  @property
  def slope(self) -> float:
    """First guess of the slope of the task that suffers most."""
    return max(_SLOPES[use] for use in self.uses)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Question:
  """What both models are asked, and what the dense one has said.

  Attributes:
    readings: of what the dense model wrote, from `comparison.measure`.
    more: tasks by name beside the built-in items; None for none.
    dense: scores of the dense model by task; from `ask_dense`.
  """

  readings: Sequence[comparison.DenseReading]
  more: more_items.More | None
  dense: Mapping[str, more_items.Scores] = dataclasses.field(
    default_factory=dict
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
  """A pruning and what was seen of it.

  Attributes:
    label: its name.
    family: that of its family.
    amount: fraction removed.
    damage, kl, changed: label-free, see FIELDS; kl is the plain mean.
    rule: what the shipped rule says of each kind of task.
    answers: by task, the scores of its items; {} where none was asked.
    recovered: whether it was trained after it was pruned.
  """

  label: str
  family: str
  amount: float
  damage: float
  kl: float
  changed: float
  rule: dict[str, str]
  answers: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  recovered: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
  """Where prunings are tried.

  Attributes:
    shop: makes the models.
    question: what they are asked.
    settings: what is looked for.
    say: hears a line for each pruning.
    tried: all of them, in their order.
  """

  shop: Workshop
  question: Question
  settings: Settings
  say: Callable[[str], None]
  tried: list[Tried] = dataclasses.field(default_factory=list)


def try_level(
  bench: Bench, family: Family, level: int, *, answers: bool = False
) -> Tried:
  """Prune, and look at the model.

  Args:
    bench: where.
    family: of the pruning.
    level: of the family.
    answers: whether items are asked, too.
  """
  label, shop = family.label(level), bench.shop
  seen, said = _look(
    bench,
    label,
    lambda: models.load(shop, family, level),
    lambda: _folder(bench, family, level),
    answers=answers,
  )
  amount = models.amount_of(shop, family, level)
  return _add(bench, _tried(label, family, amount, seen, said))


def recover(bench: Bench, family: Family, level: int) -> Tried:
  """Prune, train, and look at the model, with its answers.

  Args:
    bench: where.
    family: of the pruning.
    level: of the family.
  """

  def source():
    folder = recovered_folder(bench, family, level)
    return checkpoints.open_checkpoint(folder)

  label = _recovered_label(family, level)
  seen, said = _look(
    bench, label, lambda: comparison.load_model(source()), source, answers=True
  )
  amount = models.amount_of(bench.shop, family, level)
  tried = _tried(label, family, amount, seen, said, recovered=True)
  return _add(bench, tried)


def recovered_folder(bench: Bench, family: Family, level: int) -> pathlib.Path:
  """The folder of a trained model, made where it is not there any more.

  Args:
    bench: where.
    family: of the pruning.
    level: of the family.
  """
  shop = bench.shop
  folder = models.place_of(shop, _recovered_label(family, level))
  staging.settle(staging.stage(folder))  # of a run that was killed
  if not folder.is_dir():  # a folder has its name when it is whole
    _train(bench, models.folder_of(shop, family, level), folder)
  return folder


def recovery(shop: Workshop, settings: Settings) -> finetune.Recovery | None:
  """How a pruned model is trained; None where none is.

  Args:
    shop: with the text to train on.
    settings: how many steps.
  """
  if not settings.recover_steps:
    return None
  return finetune.Recovery(
    steps=settings.recover_steps,
    batch=min(BATCH, len(shop.training.tokens)),
    learning_rate=_LEARNING_RATE,
    seed=settings.seed,
  )


def _train(bench, pruned: pathlib.Path, folder: pathlib.Path) -> None:
  """Write the trained model of a pruned one."""
  shop = bench.shop
  sources = {
    "dense": shop.source,
    "pruned": checkpoints.open_checkpoint(pruned),
  }
  how = recovery(shop, bench.settings)
  bench.say(f"training for {how.steps} steps of {how.batch} sequences")
  states = folder.with_name(f".{folder.name}.training")
  train.recover(
    folder, sources, how, shop.training, states=states, report=bench.say
  )
  files.remove_tree(states)


def kept(question: Question, tried: Tried, keep: float) -> statistics.Retention:
  """What is kept of the score above chance, of the task that suffers most.

  Args:
    question: with the answers of the dense model.
    tried: with answers.
    keep: part that must be kept.
  """
  return min(
    (
      statistics.retention(
        np.asarray(values),
        question.dense[name].values,
        question.dense[name].kind.chance,
        keep,
      )
      for name, values in tried.answers.items()
    ),
    key=lambda each: each.value,
  )


def check(
  source: checkpoints.Source, settings: Settings, more: more_items.More | None
) -> None:
  """Refuse, before any work, what no item stands for.

  Args:
    source: the dense model.
    settings: what is looked for.
    more: tasks by name; None for none.

  Raises:
    ValueError: names the task.
  """
  known = {"choice", "generation"}
  if inputs.is_pocket(source):
    known.add("retrieval")
  if more is not None:
    if more.others:
      return  # what those stand for is seen when they are asked
    known |= {table.USE[table.TASKS[name].kind] for name, _ in more.names()}
  missing = [name for name, use in USES.items() if use in settings.uses]
  missing = [name for name in missing if USES[name] not in known]
  if missing:
    raise ValueError(
      f"--task={missing[0]}: no built-in item stands for it; add --tasks, such"
      " as --tasks=cranfield"
    )


def ask_dense(
  shop: Workshop, question: Question, settings: Settings
) -> Question:
  """Ask the dense model, and refuse tasks in which it has nothing to lose.

  Args:
    shop: the workshop.
    question: without answers of the dense model.
    settings: what is looked for.

  Raises:
    ValueError: no task stands for what is looked for, or the dense model may be
      near chance in one.
  """
  stored = shop.kept.get(
    "answers/dense",
    lambda: {
      name: _as_json(scores)
      for name, scores in _ask(
        shop, shop.dense, items.DENSE, shop.source, question, settings
      ).items()
    },
  )
  scores = {name: _from_json(entry) for name, entry in stored.items()}
  if not scores:
    raise ValueError(
      f"no item that was asked stands for {', '.join(settings.uses)}: use"
      " another --task, or add --tasks"
    )
  for name, each in scores.items():
    kept = statistics.retention(
      each.values, each.values, each.kind.chance, settings.keep
    )
    if kept.near_chance:
      raise ValueError(
        f"{name}: the dense model scores {kept.dense:.3f} where guessing gets"
        f" {kept.chance:.3f}, so there is nothing to keep; use another --task,"
        " or --tasks=NAME of what it can do"
      )
  return dataclasses.replace(question, dense=scores)


def _add(bench, tried: Tried) -> Tried:
  """Remember what was tried, and say it once."""
  if tried in bench.tried:
    return tried
  bench.tried.append(tried)
  if tried.answers:
    part = kept(bench.question, tried, bench.settings.keep).value
    words = f"keeps {part:.3f}, measured"
  else:
    part = search.kept(tried.damage, bench.settings.slope)
    words = f"expected to keep {part:.3f}"
  bench.say(
    f"{tried.label}: {100 * tried.amount:.1f} % removed, damage"
    f" {tried.damage:.3g} nats, {100 * tried.changed:.1f} % of the tokens"
    f" changed, {words}"
  )
  return tried


def _recovered_label(family, level) -> str:
  return f"{family.label(level)} recovered"


def _look(bench, label, load, source, *, answers):
  """What is seen of a model and what it answers, which is kept.

  The model is loaded, and its checkpoint opened, only where something is
  missing.
  """
  kept_values = bench.shop.kept
  needed = ("predicted", "answers") if answers else ("predicted",)
  model = None
  if not all(f"{name}/{label}" in kept_values for name in needed):
    model = load()
  seen = kept_values.get(
    f"predicted/{label}", lambda: _predict(bench.shop, model, bench.question)
  )
  return seen, _answers(bench, label, model, source) if answers else {}


def _answers(bench, label, model, folder) -> dict[str, list[float]]:
  """Scores of a model by task, item by item."""

  def compute():
    asked = bench.shop, model, label, folder(), bench.question, bench.settings
    return {name: each.values.tolist() for name, each in _ask(*asked).items()}

  return dict(bench.shop.kept.get(f"answers/{label}", compute))


def _folder(bench, family, level) -> checkpoints.Source:
  """The checkpoint of a pruning, for those who read folders."""
  shop, more = bench.shop, bench.question.more
  if more is None or not more.others:
    return shop.source  # nobody reads it
  return checkpoints.open_checkpoint(models.folder_of(shop, family, level))


def _predict(shop, model, question) -> dict[str, Any]:
  """What is seen of a model without any answer."""
  table = comparison.compare_outputs(shop.dense, model, question.readings)
  finite = all(np.isfinite(table[name]).all() for name in shifts.COLUMNS)
  if not finite:
    return {"damage": None, "kl": None, "changed": float(table["flip"].mean())}
  moved = shifts.shifts(table)
  return {
    "damage": math.exp(moved["kl_sure"]),
    "kl": float(table["kl"].mean()),
    "changed": float(table["flip"].mean()),
    "rule": {kind: said.state for kind, said in shipped.judge(table).items()},
  }


def _tried(label, family, amount, seen, answers, recovered=False) -> Tried:
  damage, kl = (
    math.inf if seen[name] is None else seen[name] for name in ("damage", "kl")
  )
  return Tried(
    label=label,
    family=family.name,
    amount=amount,
    damage=damage,
    kl=kl,
    changed=seen["changed"],
    rule=dict(seen.get("rule", {})),
    answers=answers,
    recovered=recovered,
  )


def _ask(shop, model, name, source, question, settings):
  """Scores of one model by task, of those that stand for what is looked for."""
  found = items.ask_one(shop.source, model, name, shop.tell, settings.uses)
  sources = {items.DENSE: shop.source, name: source}
  named = more_items.ask(sources, name, model, shop.tell, question.more)
  return found | {
    task: scores
    for task, scores in named.items()
    if scores.kind.use in settings.uses
  }


def _as_json(scores: more_items.Scores) -> dict[str, Any]:
  kind = dataclasses.asdict(scores.kind)
  kind["chance"] = np.asarray(kind["chance"]).tolist()
  return {"kind": kind, "values": scores.values.tolist()}


def _from_json(entry) -> more_items.Scores:
  kind = dict(entry["kind"])
  if isinstance(kind["chance"], list):
    kind["chance"] = np.asarray(kind["chance"])
  return more_items.Scores(
    kind=more_items.Kind(**kind), values=np.asarray(entry["values"])
  )
