"""What is done to a model: a method of the table, and how much of it."""

import dataclasses
from typing import TYPE_CHECKING

from jaxprune.pruning import registry

if TYPE_CHECKING:  # scripts name changes in their --help without loading JAX
  from jaxprune.pruning.patterns import AnyPattern


# How a sparsity is spread over layers.
ALLOCATIONS = ("uniform", "linear", "owl", "kl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
  """What is done to the dense model.

  Attributes:
    method: a name in `registry.METHODS`.
    pattern: what is removed of each kernel or MLP, or how it is rounded; None
      for a drop.
    drop_count: sublayers that a drop method removes, blocks for target
      'block'.
    target: what is dropped, a name in `drops.TARGETS`; a method with a target
      of its own has that one.
    allocation: how a sparsity is spread over layers, a name in `ALLOCATIONS`.
    spread: half of what the sparsities of layers lie apart, unless uniform.
    seed: of a random selection.
  """

  method: str
  pattern: "AnyPattern | None" = None
  drop_count: int = 0
  target: str | None = None
  allocation: str = "uniform"
  spread: float = 0.08
  seed: int = 0

  @property
  def row(self) -> registry.Method:
    """The row of the method."""
    return registry.find(self.method)

  @property
  def drops(self) -> bool:
    """Whether whole sublayers leave."""
    return self.row.unit == registry.SUBLAYERS

  @property
  def drop_target(self) -> str | None:
    """What is dropped; None for another method."""
    return (self.row.target or self.target) if self.drops else None
