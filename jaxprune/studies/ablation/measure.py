"""The rows of `damage`: sublayers left out alone, and sets of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
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
  """What is dropped and measured; the flags of `damage`."""

  targets: tuple[str, ...]
  max_count: int
  draws: int = 3
  analysis_temperature: float = 1.0
  micro_batch: int = 8
  seed: int = 0

  @property
  def memory(self) -> Memory:
    """How many sequences are in work at a time."""
    return Memory(micro_batch=self.micro_batch)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Single:
  """Damages of sublayers and layers left out alone.

  Attributes:
    damages: by kind (attention, mlp, block) and measure: [L, sequences] nats.
    similarities: by kind, [L].
  """

  damages: dict[str, dict[str, np.ndarray]]
  similarities: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
  """Damage over the number of dropped sublayers.

  Attributes:
    target: what could be dropped.
    selection: what chose.
    kl: [draws, counts, sequences] nats, counts from 1.
  """

  target: str
  selection: str
  kl: np.ndarray


def check(config, settings: Settings) -> None:
  """Refuse targets and counts that the model has not.

  Raises:
    ValueError: names the flag.
  """
  for target in settings.targets:
    try:
      drops.check_count(config.num_layers, settings.max_count, target)
    except ValueError as error:
      raise ValueError(f"--targets or --max_count: {error}") from error


def measure_single(
  source: checkpoints.Source,
  tokens: np.ndarray,
  settings: Settings,
  run: report.RunFolder,
) -> Single:
  """Leave out every sublayer and layer alone; writes the rows."""
  config, params = checkpoints.load_params(source, jnp.float32)
  options = {
    "temperature": settings.analysis_temperature,
    "memory": settings.memory,
  }
  found = ablation.drop_damages(config, params, tokens, **options)
  slopes = ablation.drop_slopes(config, params, tokens, **options)
  single = Single(
    damages={
      kind: found[kind] | {"kl_first_order": slopes[kind]} for kind in found
    },
    similarities=sublayers.score_sublayers(
      source, tokens, memory=settings.memory
    ),
  )
  for kind, measures in single.damages.items():
    for i in range(config.num_layers):
      run.write_all(
        {
          "protocol": "single",
          "sublayer": kind,
          "layer": i,
          "document": d,
          "similarity": single.similarities[kind][i],
          "analysis_temperature": settings.analysis_temperature,
        }
        | {name: leaf[i, d] for name, leaf in measures.items()}
        for d in range(len(tokens))
      )
  return single


def measure_selections(
  source: checkpoints.Source,
  tokens: np.ndarray,
  held_out: np.ndarray,
  single: Single,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> tuple[dict[str, dict[str, list[Drops]]], list[Curve]]:
  """Drop one after the other in every order; writes the rows.

  Args:
    source: an opened checkpoint.
    tokens: what the choices see, int [sequences, T].
    held_out: what the sets are measured on, int [sequences, T].
    single: from `measure_single` on `tokens`.
    settings: flags.
    run: where rows go.
    progress: stepped for each target.

  Returns:
    Orders by target and selection, one per draw; and their curves.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  orders, curves = {}, []
  for number, target in enumerate(settings.targets):
    orders[target] = _orders(source, tokens, single, target, settings)
    flat = [each for found in orders[target].values() for each in found]
    found = ablation.gate_damages(
      config,
      params,
      held_out,
      _prefixes(config, flat, settings.max_count),
      temperature=settings.analysis_temperature,
      memory=settings.memory,
    )
    kl_RNS = found["kl"][1:].reshape(
      len(flat), settings.max_count, len(held_out)
    )
    for selection, chosen in orders[target].items():
      part, kl_RNS = kl_RNS[: len(chosen)], kl_RNS[len(chosen) :]
      curves.append(Curve(target=target, selection=selection, kl=part))
      run.write_all(
        {
          "protocol": "selection",
          "target": target,
          "selection": selection,
          "draw": r,
          "drop_count": n + 1,
          "document": d,
          "kl": part[r, n, d],
          "analysis_temperature": settings.analysis_temperature,
        }
        for r, n, d in np.ndindex(part.shape)
      )
    progress.step(number)
  return orders, curves


def _orders(source, tokens, single, target, settings):
  """By selection, as many orders as it has."""
  layers, count = source.config.num_layers, settings.max_count
  negated = {
    kind: -each["kl"].mean(axis=1, dtype=np.float64)
    for kind, each in single.damages.items()
  }
  greedy, _ = drops.choose_drops(
    ablation.kl_score(
      source,
      tokens,
      target,
      temperature=settings.analysis_temperature,
      memory=settings.memory,
    ),
    layers,
    count,
    target=target,
    selection="iterative",
    lowest_first=True,
  )
  return {
    "similarity": [drops.select(single.similarities, count, target)],
    "kl": [drops.select(negated, count, target)],
    "kl_iterative": [greedy],
    "random": [
      drops.select_random(
        jax.random.key(settings.seed + draw), layers, count, target
      )
      for draw in range(settings.draws)
    ],
  }


def _prefixes(config, orders, count):
  """Gates of the dense model, then of the first 1, 2, ... of every order."""
  sets = [Drops(num_layers=config.num_layers)]
  for one in orders:
    each = len(one.order) // count  # a block is two sublayers
    sets += [
      dataclasses.replace(one, order=one.order[: (n + 1) * each])
      for n in range(count)
    ]
  gates = [ablation.Gates(**each.gates) for each in sets]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *gates)
