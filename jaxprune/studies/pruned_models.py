"""Which pruned models does a study look at? A folder, or some that it makes.

Either one pruned folder is given, or the dense model is pruned once per
configuration and calibration seed. A model is opened when its turn comes, so
that one pruned model is in memory at a time.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, files
from jaxprune.models.config import ModelConfig
from jaxprune.studies.sweep import configurations as configurations_lib

GIVEN = "pruned"  # name of a model that was given as a folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """A pruned model in memory.

  Attributes:
    config: of the pruned model.
    params: float32.
    removed: fraction of zeros in the kernels; None for a folder that was
      given.
  """

  config: ModelConfig
  params: Any
  removed: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedModel:
  """A pruned model that is opened when its turn comes.

  Attributes:
    name: METHOD:AMOUNT, or `pruned` for a folder that was given.
    seed: of the calibration, and of what the study draws itself.
    drawn: whether the model was made from this seed. A folder that was given
      is the same for every seed.
    open: reads the model, having pruned it first if need be.
  """

  name: str
  seed: int
  drawn: bool
  open: Callable[[], Opened]


def of_folder(
  source: checkpoints.Source, seeds: Sequence[int]
) -> list[PrunedModel]:
  """One pruned folder, once per seed; it is read once.

  Args:
    source: the pruned checkpoint.
    seeds: of what the study draws.
  """

  @functools.cache
  def read():
    config, params = checkpoints.load_params(source, jnp.float32)
    return Opened(config=config, params=params, removed=None)

  return [
    PrunedModel(name=GIVEN, seed=seed, drawn=False, open=read) for seed in seeds
  ]


def of_configurations(
  source: checkpoints.Source,
  configurations: Sequence[configurations_lib.Configuration],
  tokens: Mapping[int, np.ndarray],
  work: pathlib.Path,
) -> list[PrunedModel]:
  """Every configuration with every calibration seed.

  Args:
    source: the dense checkpoint.
    configurations: what is done to it.
    tokens: calibration tokens by seed, int [sequences, T].
    work: where a pruned folder is written; it is removed when it was read.
  """

  def prune(configuration, seed):
    folder = work / f"{configuration.file}-seed{seed}"
    removed = configurations_lib.prune(
      source, configuration, tokens[seed], seed, folder
    )
    config, params = checkpoints.load_params(
      checkpoints.open_checkpoint(folder), jnp.float32
    )
    files.remove_tree(work)
    return Opened(config=config, params=params, removed=removed)

  return [
    PrunedModel(
      name=configuration.name,
      seed=seed,
      drawn=True,
      open=functools.partial(prune, configuration, seed),
    )
    for configuration in configurations
    for seed in tokens
  ]
