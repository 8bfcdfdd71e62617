"""One configuration of a sweep: what is done to the dense model.

A configuration is named METHOD:AMOUNT, where the amount is a sparsity
(wanda:0.5), n:m (wanda:2:4), a number of bits (rtn:4) or of sublayers
(drop_attention:4). A sparsity may be spread over layers: METHOD@ALLOCATION
(wanda@owl:0.6, and linear and kl). drop_* chooses sublayers by similarity, kl_*
by what dropping them does to the output.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.models import ModelConfig
from jaxprune.pruning import change as change_lib
from jaxprune.pruning import registry
from jaxprune.pruning.change import Change

if TYPE_CHECKING:
  from jaxprune.pruning.layerwise.drops import Drops

ENTRIES = registry.names(registry.ENTRIES, rounds=False)  # single weights
UNITS = registry.names(registry.HIDDEN_UNITS)  # hidden units of the MLP
ROUNDING = registry.names(rounds=True)
DROPS = registry.names(registry.SUBLAYERS)
ALLOCATIONS = tuple(a for a in change_lib.ALLOCATIONS if a != "uniform")
# Methods that give the same model whatever was drawn.
DATA_FREE = tuple(
  name for name, row in registry.METHODS.items() if row.data_free
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
  """What is done to the dense model.

  Attributes:
    method: a name of the table of methods, with its @ALLOCATION.
    amount: as in the module.
    change: what both mean.
  """

  method: str
  amount: str
  change: Change

  @property
  def is_data_free(self) -> bool:
    """Whether it gives the same model whatever was drawn."""
    return self.method in DATA_FREE

  @property
  def base(self) -> str:
    """The method without its allocation."""
    return self.method.partition("@")[0]

  @property
  def name(self) -> str:
    """METHOD:AMOUNT."""
    return f"{self.method}:{self.amount}"

  @property
  def file(self) -> str:
    """The name as part of a path."""
    return f"{self.method}_{self.amount.replace(':', 'of')}"


def read_configuration(
  text: str, *, group_size: int | None, target: str
) -> Configuration:
  """Read the name of a configuration.

  Args:
    text: METHOD:AMOUNT.
    group_size: inputs that share a scale, for rtn and awq.
    target: what drop_random, drop_reverse, drop_iterative and kl_iterative
      drop.

  Raises:
    ValueError: an unknown method or an amount that it does not take.
  """
  from jaxprune.pruning.patterns import Levels
  from jaxprune.studies.prune import make_pattern

  name, _, amount = text.partition(":")
  method, separator, allocation = name.partition("@")
  try:
    if separator and (
      allocation not in ALLOCATIONS
      or ":" in amount
      or method not in (*ENTRIES, *UNITS)
    ):
      raise ValueError(
        f"@{allocation} is not one of {', '.join(ALLOCATIONS)} after a method"
        " that removes weights, and a sparsity"
      )
    if method not in registry.METHODS:
      raise ValueError("unknown method")
    change = {"method": method, "allocation": allocation or "uniform"}
    if method in DROPS:
      change |= {"drop_count": int(amount), "target": target}
    elif method in ROUNDING:
      change["pattern"] = Levels(bits=int(amount), group_size=group_size)
    elif method in ENTRIES and ":" in amount:
      change["pattern"] = make_pattern(method, sparsity=0.0, pattern=amount)
    else:
      change["pattern"] = make_pattern(method, sparsity=float(amount))
  except ValueError as error:
    raise ValueError(
      f"--configurations={text}: {error}; use METHOD:AMOUNT such as wanda:0.5,"
      " sparsegpt:2:4, rtn:4 or drop_attention:4"
    ) from error
  return Configuration(method=name, amount=amount, change=Change(**change))


def read_all(
  texts: Sequence[str],
  config: ModelConfig,
  *,
  group_size: int | None,
  target: str,
  earlier: "Drops | None" = None,
) -> list[Configuration]:
  """Read configurations, and refuse what the model cannot have.

  Args:
    texts: METHOD:AMOUNT each.
    config: of the dense model.
    group_size: inputs that share a scale, for rtn and awq.
    target: what drop_random, drop_reverse, drop_iterative and kl_iterative
      drop.
    earlier: what was dropped before, `sublayers.dropped_before`.

  Raises:
    ValueError: a configuration that cannot be read, or an amount that its
      method does not take.
  """
  configurations = [
    read_configuration(text, group_size=group_size, target=target)
    for text in texts
  ]
  for configuration in configurations:
    check(config, configuration, earlier)
  return configurations


def check(
  config: ModelConfig,
  configuration: Configuration,
  earlier: "Drops | None" = None,
) -> None:
  """Refuse, before any work, a configuration that the model cannot have.

  Args:
    config: of the dense model.
    configuration: what would be done to it.
    earlier: what was dropped before.

  Raises:
    ValueError: names the configuration and the way out.
  """
  from jaxprune.studies import prune as prune_lib

  try:
    prune_lib.check(config, configuration.change, tokens=True, earlier=earlier)
  except ValueError as error:
    raise ValueError(
      f"--configurations={configuration.name}: {error}"
    ) from error


def prune(
  source: checkpoints.Source,
  configuration: Configuration,
  tokens: np.ndarray,
  seed: int,
  out: str | os.PathLike,
  progress: Callable[[str, int], Any] | None = None,
) -> float:
  """Write the pruned folder; return the fraction of zeros in the kernels.

  Args:
    source: the dense checkpoint.
    configuration: what is done to it.
    tokens: calibration tokens, int [sequences, length].
    seed: of drop_random.
    out: folder to write; unfinished work of the same configuration is taken up.
    progress: from a unit and their number to what `step` tells of each.
  """
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies import prune as prune_lib

  prune_lib.prune(
    source,
    out,
    dataclasses.replace(configuration.change, seed=seed),
    tokens,
    output=weights.Output(
      provenance={"configuration": configuration.name, "seed": seed},
      overwrite=True,
    ),
    progress=progress or prune_lib.Silent,
  )
  return weights.folder_sparsity(out)
