"""The flags that say which pruned models there are."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from . import calibration_flags, model_flags
from .define import MAX_SEED

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints
  from jaxprune.studies import pruned_models as pruned_models_lib

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Seeds:
  """The flag --seeds, a list of integers."""

  seeds: flags.FlagHolder[list[str]]

  @property
  def value(self) -> list[int]:
    """The seeds; a ValueError names the flag if one is no integer."""
    try:
      seeds = [int(seed) for seed in self.seeds.value]
    except ValueError:
      seeds = []
    if not seeds or not all(0 <= seed <= MAX_SEED for seed in seeds):
      raise ValueError(
        f"--seeds={','.join(self.seeds.value)!s:.200}: give integers, divided"
        f" by commas, from 0 to {MAX_SEED}"
      )
    return seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedModels:
  """The flags of a study of one pruned folder, or of models that it prunes.

  These are --dense, --pruned, --configurations, --seeds and those of the
  calibration.
  """

  models: model_flags.Models
  configurations: flags.FlagHolder[list[str]]
  seeds: Seeds
  calibration: calibration_flags.Calibration

  def open(self) -> dict[str, "checkpoints.Source"]:
    """Open the models that are named, by `dense` and `pruned`."""
    return self.models.open()

  def read(
    self,
    sources: "Mapping[str, checkpoints.Source]",
    out: str,
    *,
    target: str,
    group_size: int | None,
    draws: bool = True,
  ) -> "tuple[list[pruned_models_lib.PrunedModel], dict[str, Any] | None]":
    """Say which pruned models there will be.

    Args:
      sources: from `open`.
      out: the run folder, in which models are pruned.
      target: what drop_random, drop_reverse and drop_iterative drop.
      group_size: weights that share a scale, for rtn and awq.
      draws: whether the study itself draws from --seeds, so that it looks at a
        folder once per seed.

    Returns:
      The pruned models, opened when their turn comes; and the description of
      the calibration for run.json, None where nothing is pruned.

    Raises:
      ValueError: a configuration that the model cannot have.
    """
    from jaxprune import staging
    from jaxprune.pruning.checkpoint import sublayers
    from jaxprune.studies import pruned_models as pruned_models_lib
    from jaxprune.studies.sweep import configurations as configurations_lib

    dense, seeds = sources["dense"], self.seeds.value
    if "pruned" in sources:
      return pruned_models_lib.of_folder(
        sources["pruned"], seeds if draws else seeds[:1]
      ), None
    wanted = configurations_lib.read_all(
      self.configurations.value,
      dense.config,
      group_size=group_size,
      target=target,
      earlier=sublayers.dropped_before(dense),
    )
    drawn, description = self.calibration.read_seeds(dense, seeds)
    models = pruned_models_lib.of_configurations(
      dense,
      wanted,
      {seed: calibration.tokens for seed, calibration in drawn.items()},
      staging.stage(out).scaffold / "work",
    )
    return models, description


def configurations(
  default: list[str],
  *,
  about: str = (
    "Ways to prune, METHOD:AMOUNT, see"
    " jaxprune/studies/sweep/configurations.py."
  ),
) -> flags.FlagHolder[list[str]]:
  """Define --configurations (also --cells).

  Args:
    default: METHOD:AMOUNT each.
    about: the help text.
  """
  holder = flags.DEFINE_list("configurations", default, about)
  flags.DEFINE_alias("cells", "configurations")
  return holder


def seeds(
  default: tuple[int, ...] = (0, 1, 2),
  *,
  about: str = "Seeds of the calibration.",
) -> Seeds:
  """Define --seeds.

  Args:
    default: the seeds where none are given.
    about: the help text.
  """
  return Seeds(flags.DEFINE_list("seeds", list(map(str, default)), about))


def pruned_models(
  default: list[str], *, about_seeds: str = "Seeds of the calibration."
) -> PrunedModels:
  """Define the flags of one pruned folder, or of models that are pruned.

  Args:
    default: configurations where none are given.
    about_seeds: the help text of --seeds.
  """
  return PrunedModels(
    models=model_flags.models(
      dense="pocket",
      pruned=None,
      about_pruned="One pruned folder, instead of --configurations.",
      alias=True,
    ),
    configurations=configurations(default),
    seeds=seeds(about=about_seeds),
    calibration=calibration_flags.calibration(),
  )
