"""What the output loses without each sublayer, and without sets of them.

First every sublayer and layer is left out alone. Then they are dropped one
after the other, in the order of several scores, and every such set is measured
on tokens that no choice has seen. A row of the records is one sequence and a
sublayer (protocol `single`) or a set (protocol `selection`).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune import checkpoints, report
from jaxprune.models.config import ModelConfig
from jaxprune.probes.decoder import ablation
from jaxprune.pruning.checkpoint import sublayers
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.layerwise.drops import Drops

ESTIMATES = ("kl_estimate", "kl_first_order")
SELECTIONS = ("similarity", "kl", "kl_iterative", "random")
FIELDS = {
  "selection": report.Field("text", "", "what chose the dropped sublayers"),
  "target": report.Field("text", "", "what could be dropped"),
  "draw": report.Field("int", "", "index of the random order, from 0"),
  "kl_first_order": report.Field(
    "float", "nats", "Var_p of the derivative's dz / (2 T^2)"
  ),
  "similarity": report.Field("float", "", "cosine over the sublayer"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is dropped, and how it is measured.

  Attributes:
    targets: what can be dropped: attention, mlp, joint, block.
    max_count: sublayers, or blocks, to drop at most.
    draws: random orders, the control.
    analysis_temperature: T of the softmax.
    micro_batch: sequences processed at once.
    seed: of the random orders and of the intervals.
  """

  targets: tuple[str, ...]
  max_count: int
  draws: int = 3
  analysis_temperature: float = 1.0
  micro_batch: int = 8
  seed: int = 0

  @property
  def options(self) -> dict[str, Any]:
    """T, and the sequences processed at a time, of every measurement."""
    return {
      "temperature": self.analysis_temperature,
      "memory": Memory(micro_batch=self.micro_batch),
    }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Single:
  """Sublayers and layers left out alone.

  Attributes:
    divergences: by kind (attention, mlp, block) and measure: [L, sequences]
      nats.
    similarities: by kind, [L].
    layers: by kind, those that still have it, ascending. What was dropped
      before costs nothing, and says nothing of a score.
  """

  divergences: Mapping[str, Mapping[str, np.ndarray]]
  similarities: Mapping[str, np.ndarray]
  layers: Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
  """The loss over the number of dropped sublayers.

  Attributes:
    target: what could be dropped.
    selection: what chose.
    kl: [draws, counts, sequences] nats, counts from 1.
  """

  target: str
  selection: str
  kl: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
  """Everything that was measured.

  Attributes:
    single: see Single.
    orders: by target and selection, one per draw.
    curves: one per target and selection.
  """

  single: Single
  orders: Mapping[str, Mapping[str, Sequence[Drops]]]
  curves: Sequence[Curve]


def check(
  config: ModelConfig, settings: Settings, earlier: Drops | None = None
) -> None:
  """Refuse targets and counts that the model does not have.

  Args:
    config: of the model.
    settings: of the run.
    earlier: what was dropped before, `sublayers.dropped_before`.

  Raises:
    ValueError: names the flag.
  """
  for target in settings.targets:
    try:
      drops.check_count(
        config.num_layers, settings.max_count, target, earlier=earlier
      )
    except ValueError as error:
      raise ValueError(f"--targets or --max_count: {error}") from error


def measure(
  source: checkpoints.Source,
  seen: np.ndarray,
  held_out: np.ndarray,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> Measured:
  """Leave out every sublayer alone and in sets, and write the rows.

  Args:
    source: the checkpoint.
    seen: tokens that choices look at, int [sequences, T].
    held_out: tokens that sets are measured on, int [sequences, T].
    settings: of the run.
    run: where rows go.
    progress: stepped for each target.
  """
  model = checkpoints.load_params(source, jnp.float32)
  single = _measure_single(source, model, seen, settings)
  run.write_all(_single_rows(single, settings))
  orders, curves = {}, []
  for index, target in enumerate(settings.targets):
    orders[target] = _orders(source, model, seen, single, target, settings)
    of_target = _measure_sets(model, held_out, orders[target], target, settings)
    for curve in of_target:
      run.write_all(_curve_rows(curve, settings))
    curves += of_target
    progress.step(index)
  return Measured(single=single, orders=orders, curves=curves)


def _measure_single(source, model, tokens, settings) -> Single:
  """Every sublayer and layer left out alone, and cheaper scores."""
  exact = ablation.ablate_sublayers(*model, tokens, **settings.options)
  predicted = ablation.predict_sublayers(*model, tokens, **settings.options)
  return Single(
    divergences={
      kind: exact[kind] | {"kl_first_order": predicted[kind]} for kind in exact
    },
    similarities=sublayers.score_sublayers(
      source, tokens, memory=settings.options["memory"]
    ),
    layers={
      kind: drops.layers_left(
        kind, source.config.num_layers, sublayers.dropped_before(source)
      )
      for kind in exact
    },
  )


def _measure_sets(model, tokens, orders, target, settings):
  """The loss of the first 1, 2, ... of every order."""
  flat = [order for draws in orders.values() for order in draws]
  divergences = ablation.ablate_gates(
    *model,
    tokens,
    _prefixes(model[0], flat, settings.max_count),
    **settings.options,
  )
  # The first set is the dense model, which drops nothing.
  kl_PLX = rearrange(
    divergences["kl"][1:], "(P L) X -> P L X", L=settings.max_count
  )
  curves = []
  for selection, draws in orders.items():
    part, kl_PLX = kl_PLX[: len(draws)], kl_PLX[len(draws) :]
    curves.append(Curve(target=target, selection=selection, kl=part))
  return curves


def _single_rows(single, settings):
  for kind, measures in single.divergences.items():
    sequences = range(measures["kl"].shape[1])
    for layer, document in itertools.product(single.layers[kind], sequences):
      yield {
        "protocol": "single",
        "sublayer": kind,
        "layer": layer,
        "document": document,
        "similarity": single.similarities[kind][layer],
        "analysis_temperature": settings.analysis_temperature,
      } | {name: leaf[layer, document] for name, leaf in measures.items()}


def _curve_rows(curve, settings):
  for draw, index, document in np.ndindex(curve.kl.shape):
    yield {
      "protocol": "selection",
      "target": curve.target,
      "selection": curve.selection,
      "draw": draw,
      "drop_count": index + 1,
      "document": document,
      "kl": curve.kl[draw, index, document],
      "analysis_temperature": settings.analysis_temperature,
    }


def _orders(source, model, tokens, single, target, settings):
  """By selection, as many orders as it has."""
  layers, count = source.config.num_layers, settings.max_count
  earlier = sublayers.dropped_before(source)
  # The highest score leaves first.
  negated = {
    kind: -measures["kl"].mean(axis=1, dtype=np.float64)
    for kind, measures in single.divergences.items()
  }
  greedy, _ = drops.choose_drops(
    ablation.kl_score(source, tokens, target, loaded=model, **settings.options),
    layers,
    count,
    target=target,
    selection="iterative",
    lowest_first=True,
    earlier=earlier,
  )
  return {
    "similarity": [
      drops.select(single.similarities, count, target, earlier=earlier)
    ],
    "kl": [drops.select(negated, count, target, earlier=earlier)],
    "kl_iterative": [greedy],
    "random": [
      drops.select_random(
        jax.random.key(settings.seed + draw),
        layers,
        count,
        target,
        earlier=earlier,
      )
      for draw in range(settings.draws)
    ],
  }


def _prefixes(config, orders, count):
  """Gates of the dense model, then of the first 1, 2, ... of every order."""
  sets = [Drops(num_layers=config.num_layers)]
  for order in orders:
    size = len(order.order) // count  # a block is two sublayers
    sets += [
      dataclasses.replace(order, order=order.order[: (n + 1) * size])
      for n in range(count)
    ]
  gates = [ablation.Gates(**each.gates) for each in sets]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *gates)
