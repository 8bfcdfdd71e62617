"""From a family and a level to a pruned model: weights, or dropped sublayers.

What the choice of a family rests on (the loss of pruning each layer alone,
outliers, orders of sublayers) is measured once and kept. One pruned model is in
memory at a time, beside the dense one.
"""

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable

import jax
import numpy as np

from jaxprune import checkpoints, files
from jaxprune.calibration import tokens as tokens_lib
from jaxprune.checkpoints import drop_lists, names
from jaxprune.probes.decoder import ablation, sequences
from jaxprune.pruning.checkpoint import allocation as outliers
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import allocation, drops, owl
from jaxprune.pruning.patterns import AnyPattern, NofM
from jaxprune.studies import prune
from jaxprune.studies.comparison import measure as comparison
from jaxprune.studies.kept import Kept
from jaxprune.studies.plan import candidates, order
from jaxprune.studies.plan.candidates import Family

KL, SIMILARITY = "drops by KL", "drops by similarity"
# Tokens on which losses are measured: they need many passes.
_LOSS_TOKENS = 256
_LOSS_SPARSITY = 0.5  # of each layer alone, for an allocation by KL
_MICRO_BATCH = 8
_FOLDERS = 3  # pruned models that stay on the disk


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Workshop:
  """Where pruned models are made.

  Attributes:
    source: the dense checkpoint.
    dense: the same, in memory.
    calibration: tokens that methods look at.
    amount: what is counted, of `candidates.AMOUNTS`.
    spread: half of what the sparsities of layers lie apart.
    kept: what was measured before.
    work: a folder for pruned models, made here.
    tell: from the name of some work to what is told (done, all) of it.
    training: text that pruned models are trained on; None where none is.
  """

  source: checkpoints.Source
  dense: sequences.Model
  calibration: tokens_lib.Calibration
  amount: str
  spread: float
  kept: Kept
  work: pathlib.Path
  tell: Callable[[str], Callable[[float, float], None]]
  training: tokens_lib.Calibration | None = None

  @property
  def tokens(self) -> np.ndarray:
    """The calibration tokens, int [sequences, length]."""
    return self.calibration.tokens

  @property
  def loss_tokens(self) -> np.ndarray:
    """The first calibration sequences, for what needs many passes."""
    count = max(1, _LOSS_TOKENS // self.tokens.shape[1])
    return self.tokens[:count, :_LOSS_TOKENS]

  @property
  def memory(self) -> Memory:
    """How activations are held."""
    return Memory(micro_batch=_MICRO_BATCH)


def drop_family(shop: Workshop, name: str) -> Family:
  """The sublayers that leave one after the other.

  Args:
    shop: the workshop.
    name: KL or SIMILARITY.

  Returns:
    The family; orders by KL are measured when a level is asked for, and their
    amounts are those of the order that is known so far.
  """
  target = candidates.target_of(shop.amount)
  levels = len(_units(shop, target)) - 1
  return Family(
    name=name,
    method=name,
    target=target,
    amounts=tuple(
      candidates.fraction(
        shop.source.config, shop.amount, drops_of(shop, name, target, level)
      )
      for level in range(levels)
    )
    if name == SIMILARITY
    else (math.nan,) * levels,
  )


def amount_of(shop: Workshop, family: Family, level: int) -> float:
  """The fraction that a level removes, in [0, 1].

  Args:
    shop: where the models are made.
    family: the way to prune.
    level: index of the amount, or of the number of dropped sublayers.
  """
  if family.method != KL:
    return family.amounts[level]
  gone = drops_of(shop, family.method, family.target, level)
  return candidates.fraction(shop.source.config, shop.amount, gone)


def place_of(shop: Workshop, label: str) -> pathlib.Path:
  """Where a model of that name lies, or would lie.

  Args:
    shop: the workshop.
    label: the name of a pruning.
  """
  return shop.work / re.sub(r"[^\w.@-]+", "_", label)


def folder_of(shop: Workshop, family: Family, level: int) -> pathlib.Path:
  """The folder of a pruned model, made where it is not there any more.

  Args:
    shop: the workshop; the last few folders stay in its `work`.
    family: of the pruning.
    level: of the family.
  """
  folder = place_of(shop, family.label(level))
  if not folder.is_dir():  # a folder has its name when it is whole
    others = sorted(
      shop.work.glob("[!.]*"), key=lambda each: each.stat().st_mtime
    )
    for other in others[: -(_FOLDERS - 1)]:
      files.remove_tree(other)
    _write(shop, family, level, folder)
  os.utime(folder)
  return folder


def _write(shop, family, level, folder) -> None:
  output = weights.Output(
    provenance={"method": family.method, "planned": family.label(level)}
  )
  if family.target:
    gone = drops_of(shop, family.method, family.target, level)
    sublayers.prune_drops(shop.source, folder, gone, {}, output=output)
    return
  tell = shop.tell(family.label(level))
  weights.prune_weights(
    shop.source,
    folder,
    method=family.method,
    pattern=_patterns(shop, family, level),
    tokens=shop.tokens,
    memory=shop.memory,
    output=output,
    on_layer=lambda row: tell(row["layer"] + 1, shop.source.config.num_layers),
  )


def load(shop: Workshop, family: Family, level: int) -> sequences.Model:
  """The pruned model in memory.

  Args:
    shop: the workshop.
    family: of the pruning.
    level: of the family.
  """
  if family.target:
    # A dropped sublayer is one whose output projection is read as zeros.
    gone = drops_of(shop, family.method, family.target, level)
    by_kind = {kind: gone.layers(kind) for kind in ("attention", "mlp")}
    zeroed = drop_lists.zeroed(shop.source.config, by_kind)
    source = dataclasses.replace(
      shop.source, zeroed=shop.source.zeroed | zeroed
    )
  else:
    source = checkpoints.open_checkpoint(folder_of(shop, family, level))
  return comparison.load_model(source)


def drops_of(shop: Workshop, name: str, target: str, level: int) -> drops.Drops:
  """The first level + 1 units of an order.

  Args:
    shop: the workshop.
    name: KL or SIMILARITY.
    target: what is dropped, of `drops.TARGETS`.
    level: from 0.
  """
  if name == SIMILARITY:
    scores = shop.kept.get("similarities", lambda: _similarities(shop))
    earlier = sublayers.dropped_before(shop.source)
    return drops.select(
      {kind: np.asarray(values) for kind, values in scores.items()},
      level + 1,
      target,
      earlier=earlier,
    )
  units = _units(shop, target)
  chosen = _kl_order(shop, target, level + 1)[: level + 1]
  return drops.Drops(
    num_layers=shop.source.config.num_layers,
    order=tuple(pair for i in chosen for pair in units[i]),
  )


def _similarities(shop) -> dict[str, list[float]]:
  tell, layers = shop.tell("similarities"), shop.source.config.num_layers
  scores = sublayers.score_sublayers(
    shop.source,
    shop.tokens,
    memory=shop.memory,
    on_layer=lambda layer: tell(layer + 1, layers),
  )
  return {kind: values.tolist() for kind, values in scores.items()}


def _units(shop, target) -> list[order.Unit]:
  """What one step of an order removes, of what is still there."""
  config, gone = shop.source.config, sublayers.dropped_before(shop.source)
  kinds = {"joint": ("attention", "mlp"), "block": ("block",)}.get(
    target, (target,)
  )
  both = ("attention", "mlp")
  return [
    tuple((part, i) for part in (both if kind == "block" else (kind,)))
    for kind in kinds
    for i in drops.layers_left(kind, config.num_layers, gone)
  ]


def _kl_order(shop, target, count) -> list[int]:
  """Indices of the first units to go, measured as far as is needed."""
  units = _units(shop, target)
  sizes = candidates.unit_sizes(shop.source.config, shop.amount)
  savings = [sum(sizes.get(pair, 0.0) for pair in unit) for unit in units]
  state = order.State()
  for step in range(count):
    stored = shop.kept.get(
      f"order by KL/{target}/{step + 1}",
      lambda state=state: dataclasses.asdict(
        order.extend(
          state, units, savings, lambda sets: _losses(shop, units, sets)
        )
      ),
    )
    state = order.State(
      chosen=tuple(stored["chosen"]),
      losses=tuple(stored["losses"]),
      costs={int(i): cost for i, cost in stored["costs"].items()},
    )
  return list(state.chosen)


def _losses(shop, units, sets) -> list[float]:
  """KL without each set of units, in nats, one after the other."""
  config = shop.dense.config
  before = sublayers.dropped_before(shop.source)
  tell = shop.tell("measuring what each drop costs")
  losses, chunk = [], order.WIDTH  # candidates of one program
  tell(0, len(sets))
  for start in range(0, len(sets), chunk):
    part = sets[start : start + chunk]
    # The last chunk is filled up, so that one program serves all.
    filled = [*part, *itertools.repeat(part[-1], chunk - len(part))]
    gates = [
      ablation.Gates(
        **drops.Drops(
          num_layers=config.num_layers,
          order=before.order + tuple(p for i in each for p in units[i]),
        ).gates
      )
      for each in filled
    ]
    dense = ablation.Gates(**before.gates)
    measured = ablation.ablate_gates(
      config,
      shop.dense.params,
      shop.loss_tokens,
      jax.tree.map(lambda *leaves: np.stack(leaves), dense, *gates),
      memory=shop.memory,
    )
    means = measured["kl"][1 : 1 + len(part)].mean(axis=1, dtype=float)
    losses += means.tolist()
    tell(len(losses), len(sets))
  return losses


def _patterns(shop, family, level) -> AnyPattern | list[AnyPattern]:
  """What is removed in all layers, or in each."""
  if family.group:
    return NofM(keep=family.group - level - 1, of=family.group)
  sparsity = family.amounts[level]
  pattern = prune.make_pattern(family.method, sparsity=sparsity)
  if family.allocation == candidates.UNIFORM:
    return pattern
  return [
    dataclasses.replace(pattern, sparsity=each)
    for each in _sparsities(shop, family, sparsity)
  ]


def _sparsities(shop, family, sparsity) -> tuple[float, ...]:
  """How the sparsity is spread over layers."""
  layers, spread = shop.source.config.num_layers, shop.spread
  if family.allocation == "linear":
    return outliers.allocate(shop.source, "linear", sparsity, spread=spread)
  if family.allocation == "owl":
    tell = shop.tell("outliers of each layer")
    fractions = shop.kept.get(
      "outlier fractions",
      lambda: outliers.outlier_fractions(
        shop.source,
        shop.tokens,
        memory=shop.memory,
        on_layer=lambda layer: tell(layer + 1, layers),
      ),
    )
    return owl.owl(fractions, sparsity, spread=spread, sizes=_sizes(shop))
  losses = shop.kept.get(
    f"losses/{family.method}", lambda: _losses_alone(shop, family.method)
  )
  return allocation.by_loss(losses, sparsity, spread=spread)


def _sizes(shop) -> list[int]:
  shapes = names.kernel_shapes(shop.source.config).values()
  size = sum(math.prod(shape[1:]) for shape in shapes)
  return [size] * shop.source.config.num_layers


def _losses_alone(shop, method) -> list[float]:
  """KL in nats with each layer alone pruned."""
  tell = shop.tell("pruning each layer alone")
  return (
    ablation.prune_layers_alone(
      shop.source,
      method,
      prune.make_pattern(method, sparsity=_LOSS_SPARSITY),
      shop.loss_tokens,
      memory=shop.memory,
      on_layer=lambda layer: tell(layer + 1, shop.source.config.num_layers),
    )
    .mean(axis=1, dtype=float)
    .tolist()
  )
