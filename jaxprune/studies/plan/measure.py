"""How much may be removed from a model so that a task keeps its score?

Families of prunings (`candidates`) are searched for the largest amount whose
predicted score stays; a family that cannot beat the best one so far is left at
the first level that would. Then the answers of both models to real items
decide, level by level, in the best family (`search.next_level`).
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxprune import files
from jaxprune.studies.plan import candidates, models, search, tries
from jaxprune.studies.plan.candidates import Family
from jaxprune.studies.plan.models import Workshop
from jaxprune.studies.plan.tries import Bench, Question, Settings, Tried

# On two CPU cores, for each parameter; of a pruning also for each token that it
# looks at.
_PRUNINGS, _MINUTES_OF_PRUNING, _MINUTES_OF_DROP = 10, 2e-9, 1e-9
_MINUTES_OF_TOKEN = 1e-12
_MINUTES_OF_ANSWERS = 2.5e-9
# For each token of a step of training, too: eight operations for each weight
# (the dense forward pass, the pruned one and its way back) at 1e11 a second.
_MINUTES_OF_TRAINING = 8 / 1e11 / 60
Best = tuple[Family, int]  # a family and one of its levels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """What was found.

  Attributes:
    tried: everything, in the order in which it was tried; a pruning whose
      answers were measured comes twice.
    chosen: of `tried`, with answers; None where nothing keeps the score.
    controls: uniform Wanda and drops by similarity at that amount.
    slope: of the prediction, as the last measurement corrected it.
  """

  tried: list[Tried]
  chosen: Tried | None
  controls: list[Tried]
  slope: float


def describe(shop: Workshop, settings: Settings) -> str:
  """What will be done, and roughly how long that takes, in one line.

  Args:
    shop: where models will be made.
    settings: what is looked for.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(shop.dense.params))
  prunings = _PRUNINGS
  each = _MINUTES_OF_PRUNING + _MINUTES_OF_TOKEN * shop.tokens.size
  if shop.amount != candidates.PARAMETERS:
    prunings, each = shop.source.config.num_layers // 2, _MINUTES_OF_DROP
  trained, how = 0, tries.recovery(shop, settings)
  if how is not None:
    trained = how.steps * how.batch * shop.training.tokens.shape[1]
  minutes = size * (
    prunings * each
    + settings.measurements * _MINUTES_OF_ANSWERS
    + trained * _MINUTES_OF_TRAINING
  )
  return (
    f"looking for the largest part of the {shop.amount} without which the model"
    f" keeps {100 * settings.keep:.0f} % of its score for"
    f" {', '.join(settings.uses)}: some {prunings} prunings, at most"
    f" {settings.measurements} of them measured, about"
    f" {max(1, round(minutes))} min on two CPU cores"
  )


def plan(
  shop: Workshop,
  question: Question,
  settings: Settings,
  out: pathlib.Path,
  say: Callable[[str], None],
) -> Plan:
  """Search, measure, and write the folder of what was found.

  Args:
    shop: the workshop.
    question: from `tries.ask_dense`.
    settings: what is looked for.
    out: the folder; not written where nothing keeps the score.
    say: hears a line for each pruning that was tried.
  """
  bench = Bench(shop=shop, question=question, settings=settings, say=say)
  family, level = predicted_best(bench)
  measured = measure_around(bench, family, level)
  passed = [i for i, tried in measured.items() if _keeps(bench, tried)]
  level = max(passed, default=None)
  chosen = measured.get(level)
  if settings.recover_steps:
    level, chosen = _recover_around(bench, family, measured, level)
  controls = []
  if chosen is not None:
    if chosen.recovered:
      folder = tries.recovered_folder(bench, family, level)
    else:
      folder = models.folder_of(shop, family, level)
    shutil.rmtree(out, ignore_errors=True)
    folder.rename(out)
    if settings.controls:
      controls = _controls(bench, chosen.amount)
  files.remove_tree(shop.work)
  return Plan(
    tried=bench.tried,
    chosen=chosen,
    controls=controls,
    slope=_slope(bench, measured),
  )


def predicted_best(bench: Bench) -> Best:
  """The family and level that removes most by the prediction.

  Level 0 of the first family where no level is expected to keep the score.

  Args:
    bench: where prunings are tried.
  """
  best = None
  first = _first_families(bench)
  for family in first:
    best = _challenge(bench, best, family)
  if best is not None and not best[0].target and not best[0].group:
    for allocation in bench.settings.allocations:
      if allocation != candidates.UNIFORM:
        family = candidates.of_weights(best[0].method, allocation)
        best = _challenge(bench, best, family)
  if bench.shop.amount == candidates.PARAMETERS:
    best = _challenge(bench, best, models.drop_family(bench.shop, models.KL))
  return best or (first[0], 0)


def measure_around(
  bench: Bench, family: Family, level: int
) -> dict[int, Tried]:
  """Ask items of levels of a family, from the predicted one on.

  Args:
    bench: where prunings are tried.
    family: that is measured.
    level: the first.

  Returns:
    By level, in the order in which they were measured.
  """
  measured: dict[int, Tried] = {}
  damages: dict[int, float] = {}
  following: int | None = level
  keep = bench.settings.keep
  while following is not None and len(measured) < bench.settings.measurements:
    tried = tries.try_level(bench, family, following, answers=True)
    measured[following] = tried
    damages |= {
      i: each.damage
      for each in bench.tried
      for i in range(len(family.amounts))
      if each.label == family.label(i)
    }
    parts = {
      i: tries.kept(bench.question, each, keep).value
      for i, each in measured.items()
    }
    following = search.next_level(len(family.amounts), damages, parts, keep)
  return measured


def rows(found: Plan) -> Iterator[dict[str, Any]]:
  """Flat rows: one per pruning that was tried, and one per answer.

  Args:
    found: from `plan`.
  """
  controls = [each for each in found.controls if each not in found.tried]
  for tried in (*found.tried, *controls):
    about = {"candidate": tried.label, "amount": tried.amount}
    yield about | {
      "damage": tried.damage,
      "kl": tried.kl,
      "changed": tried.changed,
      "predicted": search.kept(tried.damage, found.slope),
    }
    for task, values in tried.answers.items():
      for index, value in enumerate(values):
        yield about | {"task": task, "question": index, "value": value}


def _recover_around(
  bench, family, measured, passed
) -> tuple[int | None, Tried | None]:
  """Train the next greater amount, or else the one that passed.

  Returns:
    The level that keeps the score after training, and what was seen of it; the
    one that passed without training where that brought nothing.
  """
  failed = [i for i in measured if passed is None or i > passed]
  levels = [min(failed, default=None), passed]
  for level in (each for each in levels if each is not None):
    tried = tries.recover(bench, family, level)
    if _keeps(bench, tried) and (
      level != passed or tried.damage <= measured[level].damage
    ):
      return level, tried
  return passed, measured.get(passed)


def _controls(bench, amount) -> list[Tried]:
  """What is usually done, at the same amount."""
  similar = models.drop_family(bench.shop, models.SIMILARITY)
  levels = [i for i, a in enumerate(similar.amounts) if a <= amount + 1e-9]
  found = []
  if bench.shop.amount == candidates.PARAMETERS:
    wanda = dataclasses.replace(
      candidates.of_weights("wanda"), amounts=(round(amount, 4),)
    )
    found.append(tries.try_level(bench, wanda, 0, answers=True))
  if levels:
    found.append(tries.try_level(bench, similar, levels[-1], answers=True))
  return found


def _keeps(bench, tried) -> bool:
  keep = bench.settings.keep
  return tries.kept(bench.question, tried, keep).value >= keep


def _slope(bench, measured: Mapping[int, Tried]) -> float:
  """The slope of the prediction, as the last measurement says."""
  slope, keep = bench.settings.slope, bench.settings.keep
  for tried in measured.values():
    part = tries.kept(bench.question, tried, keep).value
    slope = search.refit(tried.damage, part, slope)
  return slope


def _first_families(bench) -> list[Family]:
  if bench.shop.amount == candidates.PARAMETERS:
    return [
      candidates.of_weights(method, group=candidates.group_of(pattern))
      for pattern in bench.settings.patterns
      for method in bench.settings.methods
    ]
  return [
    models.drop_family(bench.shop, name)
    for name in (models.KL, models.SIMILARITY)
  ]


def _challenge(bench, best: Best | None, family: Family) -> Best | None:
  """The better of the best so far and a family."""
  count = len(family.amounts)

  def passes(level):
    most = search.limit(bench.settings.keep, bench.settings.slope)
    return tries.try_level(bench, family, level).damage <= most

  first = 0
  if best is not None and not family.target:
    first = search.first_at_least(family.amounts, _amount(bench, best))
  if best is None and not family.target:
    level = search.largest(passes, 0, count - 1)
  else:  # a further drop needs the ones before
    level = first - 1
    while level + 1 < count and passes(level + 1):
      level += 1
  if level < first:
    return best
  return (family, level) if _beats(bench, (family, level), best) else best


def _beats(bench, one: Best, best: Best | None) -> bool:
  if best is None:
    return True
  gain = _amount(bench, one) - _amount(bench, best)
  if abs(gain) > 1e-9:
    return gain > 0
  damages = [tries.try_level(bench, *each).damage for each in (one, best)]
  return damages[0] < damages[1]


def _amount(bench, best: Best) -> float:
  return models.amount_of(bench.shop, *best)
