"""What may be removed, and how much is that? Families and their levels.

| amount | counts | families |
|---|---|---|
| parameters | kernels of the layers | single weights; sublayers by KL |
| kv_bytes | keys and values of the longest context | attentions |
| layers | whole layers | layers |

Single weights go by a method, evenly or as an allocation spreads them, or n:m.
Sublayers by KL go in the order of what they cost for each parameter. Attentions
and layers go by KL or by similarity.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxprune.checkpoints import names
from jaxprune.models import ModelConfig
from jaxprune.pruning import registry
from jaxprune.pruning.change import ALLOCATIONS
from jaxprune.pruning.layerwise.drops import Drops

PARAMETERS, KV_BYTES, LAYERS = AMOUNTS = ("parameters", "kv_bytes", "layers")
UNIFORM = "uniform"
# Sparsities of weight methods.
_STEP, _STEPS = 0.05, 18
_TARGETS = {PARAMETERS: "joint", KV_BYTES: "attention", LAYERS: "block"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """Prunings of one kind, weakest first.

  Attributes:
    name: as the page shows it.
    amounts: fraction removed at each level, growing.
    method: a name in the registry of methods, or kl or similarity for drops.
    group: m of an n:m pattern; 0 where any weights of an output may go.
    allocation: how a sparsity is spread over layers.
    target: what is dropped, a name in `drops.TARGETS`; '' for weights.
  """

  name: str
  amounts: tuple[float, ...]
  method: str
  group: int = 0
  allocation: str = UNIFORM
  target: str = ""

  def label(self, level: int) -> str:
    """The name of one pruning, such as wanda@kl:0.35 or drops by KL:4."""
    if self.target:
      return f"{self.name}:{level + 1}"
    if self.group:
      return f"{self.method}:{self.group - level - 1}:{self.group}"
    return f"{self.name}:{self.amounts[level]:g}"


def of_weights(
  method: str, allocation: str = UNIFORM, group: int = 0
) -> Family:
  """A method that removes single weights.

  Args:
    method: of unit `entries` in the registry.
    allocation: a name in `ALLOCATIONS`.
    group: m, for patterns n:m; else 0.
  """
  sparsities = [round(_STEP * (i + 1), 4) for i in range(_STEPS)]
  if group:
    sparsities = [(i + 1) / group for i in range(group - 1)]
  name = method if allocation == UNIFORM else f"{method}@{allocation}"
  return Family(
    name=f"{name} n:{group}" if group else name,
    amounts=tuple(sparsities),
    method=method,
    allocation=allocation,
    group=group,
  )


def check_methods(
  methods: Sequence[str], allocations: Sequence[str], patterns: Sequence[str]
) -> None:
  """Refuse what is no way to remove single weights.

  Args:
    methods: names in the registry.
    allocations: names in `ALLOCATIONS`.
    patterns: unstructured, or n:m with the letter n.

  Raises:
    ValueError: names the flag and what there is.
  """
  known = registry.names(registry.ENTRIES, rounds=False)
  for flag, given, choices in (
    ("methods", methods, known),
    ("allocations", allocations, ALLOCATIONS),
  ):
    for name in given:
      if name not in choices:
        raise ValueError(f"--{flag}={name}: use {', '.join(choices)}")
    if not given:
      raise ValueError(f"--{flag}: give at least one")
  for pattern in patterns:
    group_of(pattern)


def group_of(pattern: str) -> int:
  """m of a pattern n:m, where n is that letter; 0 for unstructured.

  Raises:
    ValueError: another pattern.
  """
  if pattern == "unstructured":
    return 0
  letter, _, of = pattern.partition(":")
  if letter != "n" or not of.isdecimal() or not 2 <= int(of) <= 64:
    raise ValueError(
      f"--patterns={pattern}: use unstructured, or n:4 for 3:4, 2:4 and 1:4"
    )
  return int(of)


def target_of(amount: str) -> str:
  """What drops remove, where an amount is counted, of `drops.TARGETS`."""
  return _TARGETS[amount]


def fraction(config: ModelConfig, amount: str, gone: Drops) -> float:
  """How much is removed with some sublayers.

  Args:
    config: of the dense model.
    amount: of `AMOUNTS`.
    gone: the sublayers.
  """
  sizes = unit_sizes(config, amount)
  removed = sum(sizes.get(unit, 0.0) for unit in gone.order)
  if amount == LAYERS:
    whole = set(gone.layers("attention")) & set(gone.layers("mlp"))
    return len(whole) / config.num_layers
  return removed / sum(sizes.values())


def unit_sizes(
  config: ModelConfig, amount: str
) -> dict[tuple[str, int], float]:
  """What is saved with each sublayer, in parameters or bytes.

  Args:
    config: of the dense model.
    amount: of `AMOUNTS`; of layers every sublayer counts alike.
  """
  units = [
    (k, i) for i in range(config.num_layers) for k in ("attention", "mlp")
  ]
  if amount == LAYERS:
    return dict.fromkeys(units, 1.0)
  if amount == KV_BYTES:
    return {
      ("attention", i): float(_cached_tokens(config, i))
      for i in range(config.num_layers)
    }
  sizes = {"attention": 0, "mlp": 0}
  for path, shape in names.kernel_shapes(config).items():
    sizes["attention" if path[0] == "attention" else "mlp"] += math.prod(
      shape[1:]
    )
  return {(kind, i): float(sizes[kind]) for kind, i in units}


def _cached_tokens(config, layer) -> int:
  """Tokens whose keys and values a layer keeps at the longest context."""
  window = getattr(config, "sliding_window", None)
  if window and config.sliding_layers[layer]:
    return min(window, config.max_positions)
  return config.max_positions
