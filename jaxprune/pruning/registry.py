"""Which methods are there, what does each change, and what must it see?

`METHODS` is the one table: a row adds a method to every script, sweep and
check. A row is a `KernelMethod` (entries of one matrix, removed or rounded), a
`UnitMethod` (hidden units of one MLP) or a `DropMethod` (whole sublayers).

Rows name functions as FILE.FUNCTION of `pruning/methods/`, which are loaded
when they are first used: a script lists the methods in its --help without
loading JAX. A row of another package may hold the function itself.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

# What a method removes or changes.
ENTRIES, HIDDEN_UNITS, SUBLAYERS = "entries", "hidden_units", "sublayers"

Function = Callable[..., Any] | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelMethod:
  """A method that works on one matrix at a time.

  Attributes:
    function: the pruning function, or where it is, `MODULE.NAME`.
    statistic: name in `observers.OBSERVERS` of what it needs from calibration;
      None for a data-free method.
    preparation: what is made of the statistics once for all kernels with the
      same input; None leaves them as they are.
    patterns: names of the classes of pattern that it takes.
    groups: the comparison groups of an unstructured pattern that it takes, its
      default first.
    exact: whether every comparison group loses the exact count of a pattern.
  """

  unit: ClassVar[str] = ENTRIES

  function: Function
  statistic: str | None = None
  preparation: Function | None = None
  patterns: tuple[str, ...] = ("Unstructured", "NofM")
  groups: tuple[str, ...] = ("output", "matrix")
  exact: bool = True

  @property
  def apply(self) -> Callable[..., Any]:
    """`(w_IO, prepared, pattern) -> (w_IO, mask_IO)`, pure, on one matrix.

    The mask is bool, True = keep, and None where nothing is removed.
    """
    return _load(self.function)

  @property
  def prepare(self) -> Callable[[Any], tuple[Any, dict[str, Any]]]:
    """`statistics -> (prepared, notes)`; notes go to the layer's log.

    Runs on the host, once for all kernels that share an input, and may raise.
    """
    return _load(self.preparation or _as_they_are)

  @property
  def rounds(self) -> bool:
    """Whether it rounds weights to levels instead of removing some."""
    return "Levels" in self.patterns

  @property
  def data_free(self) -> bool:
    """Whether calibration tokens and seed make no difference."""
    return self.statistic is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitMethod:
  """A method that removes hidden units of the MLP.

  Attributes:
    function: the pruning function, or where it is, `MODULE.NAME`.
    statistic: name in `observers.OBSERVERS`, of the input of `down`.
    compensates: whether it gives a bias.
    patterns: names of the classes of pattern that it takes.
    groups: the comparison groups of a pattern that it takes.
  """

  unit: ClassVar[str] = HIDDEN_UNITS
  rounds: ClassVar[bool] = False
  data_free: ClassVar[bool] = False
  exact: ClassVar[bool] = False  # of units, not of the entries of a kernel

  function: Function
  statistic: str
  compensates: bool = False
  patterns: tuple[str, ...] = ("Unstructured",)
  groups: tuple[str, ...] = ("output", "matrix")

  @property
  def apply(self) -> Callable[..., Any]:
    """`(mlp, statistics, sparsity) -> (mlp, masks, bias_D)`, pure.

    bias_D is what has to be added to the output of `down`, or None.
    """
    return _load(self.function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropMethod:
  """A method that removes whole sublayers; `drops.choose_drops` chooses.

  Attributes:
    score: what ranks them: 'similarity' of the ends of a sublayer, or 'kl' of
      the output without it, in nats.
    selection: how the choice is made, a name in `drops.SELECTIONS`.
    target: what is dropped, a name in `drops.TARGETS`; None where the caller
      says so.
  """

  unit: ClassVar[str] = SUBLAYERS
  rounds: ClassVar[bool] = False
  data_free: ClassVar[bool] = False

  score: str = "similarity"
  selection: str = "ranked"
  target: str | None = None


Method = KernelMethod | UnitMethod | DropMethod

METHODS: dict[str, Method] = {
  "magnitude": KernelMethod(
    function="magnitude.magnitude", groups=("output", "matrix", "global")
  ),
  "wanda": KernelMethod(function="wanda.wanda", statistic="squares"),
  "wanda_variant": KernelMethod(
    function="wanda.wanda_variant",
    statistic="squares",
    patterns=("Unstructured",),
    groups=("output",),
    exact=False,
  ),
  "ria": KernelMethod(function="ria.ria", statistic="squares"),
  "sparse_swaps": KernelMethod(
    function="sparse_swaps.sparse_swaps", statistic="gram"
  ),
  "sparsegpt": KernelMethod(
    function="sparsegpt.prune_with_factor",
    preparation="sparsegpt.factorise",
    statistic="gram",
    groups=("matrix", "output"),
  ),
  "rtn": KernelMethod(function="quantize.rtn", patterns=("Levels",)),
  "awq": KernelMethod(
    function="awq.awq_levels", statistic="gram_and_size", patterns=("Levels",)
  ),
  "neuron": UnitMethod(function="neuron.neuron", statistic="squares"),
  "neuron_root": UnitMethod(function="neuron.neuron_root", statistic="squares"),
  "flap": UnitMethod(
    function="flap.flap", statistic="moments", compensates=True
  ),
  "drop_attention": DropMethod(target="attention"),
  "drop_mlp": DropMethod(target="mlp"),
  "drop_joint": DropMethod(target="joint"),
  "drop_block": DropMethod(target="block"),
  "drop_consecutive": DropMethod(target="block", selection="consecutive"),
  "drop_iterative": DropMethod(selection="iterative"),
  "drop_random": DropMethod(selection="random"),
  "drop_reverse": DropMethod(selection="reverse"),
  "kl_attention": DropMethod(score="kl", target="attention"),
  "kl_mlp": DropMethod(score="kl", target="mlp"),
  "kl_joint": DropMethod(score="kl", target="joint"),
  "kl_block": DropMethod(score="kl", target="block"),
  "kl_iterative": DropMethod(score="kl", selection="iterative"),
}


def names(*units: str, rounds: bool | None = None) -> tuple[str, ...]:
  """The methods of some units, in the order of the table.

  Args:
    units: of `ENTRIES`, `HIDDEN_UNITS` and `SUBLAYERS`; none is all.
    rounds: only those that round, or only those that do not; None is both.
  """
  return tuple(
    name
    for name, method in METHODS.items()
    if (not units or method.unit in units)
    and (rounds is None or method.rounds == rounds)
  )


def find(name: str) -> Method:
  """The row of a method.

  Raises:
    ValueError: there is none.
  """
  if name not in METHODS:
    raise ValueError(f"method {name!r}: use one of {', '.join(METHODS)}")
  return METHODS[name]


def default_group(name: str) -> str:
  """The comparison group of an unstructured pattern where none is given."""
  return getattr(find(name), "groups", ("output",))[0]


def _load(function: Function) -> Callable[..., Any]:
  if not isinstance(function, str):
    return function
  file, _, name = function.partition(".")
  return getattr(
    importlib.import_module(f"jaxprune.pruning.methods.{file}"), name
  )


def _as_they_are(statistics: Any) -> tuple[Any, dict[str, Any]]:
  return statistics, {}
