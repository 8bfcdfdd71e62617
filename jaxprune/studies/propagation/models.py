"""Which changed models does `propagation` divide? Pruned ones and controls.

Beside every pruned model stand two changes as large as its own: `random`, as
many weights of every output, or as many sublayers, taken at random; `noise`, a
normal change of every kernel with the norm of the method's.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxprune.models.config import ModelConfig
from jaxprune.probes.decoder.propagation import path
from jaxprune.pruning import controls
from jaxprune.studies.pruned_models import PrunedModel

SOURCES = ("pruned", "random", "noise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A changed model.

  Attributes:
    configuration: METHOD:AMOUNT, or `pruned` for a folder that was given.
    source: one of SOURCES.
    seed: of the calibration and of the control.
    both: parameters from `path.add_delta`.
  """

  configuration: str
  source: str
  seed: int
  both: Any


def changed_models(
  config: ModelConfig,
  params: Any,
  models: Sequence[PrunedModel],
  *,
  with_controls: bool,
) -> Iterator[Model]:
  """Open the pruned models, each followed by its controls.

  A folder that was given is the same for every seed: the pruned model comes
  once, and chance once per seed.

  Args:
    config: of the dense model.
    params: of the dense model, float32.
    models: pruned ones.
    with_controls: whether chance is measured too.
  """
  for index, model in enumerate(models):
    opened = None
    for source in _sources(index, model, with_controls):
      opened = opened or model.open()
      yield Model(
        configuration=model.name,
        source=source,
        seed=model.seed,
        both=path.add_delta(
          config,
          params,
          opened.config,
          _changed(params, opened.params, source, model.seed),
        ),
      )


def count_models(models: Sequence[PrunedModel], *, with_controls: bool) -> int:
  """How many models `changed_models` will give.

  Args:
    models: pruned ones.
    with_controls: whether chance is measured too.
  """
  return sum(
    len(_sources(index, model, with_controls))
    for index, model in enumerate(models)
  )


def _sources(index, model, with_controls):
  """Which changes are looked at for one pruned model."""
  chance = SOURCES[1:] if with_controls else ()
  return (SOURCES[:1] if model.drawn or index == 0 else ()) + chance


def _changed(params, pruned_params, source, seed):
  """The pruned parameters, or dense ones with a random change of that size."""
  if source == "pruned":
    return pruned_params
  draw = (
    controls.random_control if source == "random" else controls.random_changes
  )
  layers = draw(
    jax.random.fold_in(jax.random.key(seed), SOURCES.index(source)),
    params["layers"],
    pruned_params["layers"],
  )
  return {**params, "layers": layers}
