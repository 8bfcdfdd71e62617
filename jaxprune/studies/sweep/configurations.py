"""One cell of a grid of pruned models: a method, an amount, a seed.

A cell is named METHOD:AMOUNT, where the amount is a sparsity (wanda:0.5), n:m
(wanda:2:4), a number of bits (rtn:4) or of sublayers (drop_attention:4). A
sparsity may be spread over layers: METHOD@ALLOCATION (wanda@owl:0.6, and
linear and kl). drop_* chooses sublayers by similarity, kl_* by what dropping
them does to the output. Nothing here knows flags.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxprune.models import ModelConfig

ENTRIES = (  # single weights
  "magnitude",
  "wanda",
  "wanda_variant",
  "ria",
  "sparse_swaps",
  "sparsegpt",
)
UNITS = ("neuron", "neuron_root", "flap")  # hidden units of the MLP
ROUNDING = ("rtn", "awq")
DROPS = {  # method -> (target, selection); a target of None has to be chosen
  "drop_attention": ("attention", "similarity"),
  "drop_mlp": ("mlp", "similarity"),
  "drop_joint": ("joint", "similarity"),
  "drop_block": ("block", "similarity"),
  "drop_consecutive": ("block", "consecutive"),
  "drop_iterative": (None, "iterative"),
  "drop_random": (None, "random"),
  "drop_reverse": (None, "reverse"),
  "kl_attention": ("attention", "kl"),
  "kl_mlp": ("mlp", "kl"),
  "kl_joint": ("joint", "kl"),
  "kl_block": ("block", "kl"),
  "kl_iterative": (None, "kl_iterative"),
}
ALLOCATIONS = ("linear", "owl", "kl")
# Give the same model whatever was drawn.
DATA_FREE = ("magnitude", "rtn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """What is done to the dense model.

  Attributes:
    method: a name of the tables above, with its @ALLOCATION.
    amount: as in the module.
    drop: number of sublayers, for a drop.
    pattern: for the others.
    target: what is dropped.
    selection: how it is chosen.
    allocation: how a sparsity is spread over layers; None is evenly.
  """

  method: str
  amount: str
  drop: int | None = None
  pattern: Any = None
  target: str | None = None
  selection: str | None = None
  allocation: str | None = None

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


def read_cell(text: str, *, group_size: int | None, target: str) -> Cell:
  """Read the name of a cell.

  Args:
    text: METHOD:AMOUNT.
    group_size: inputs that share a scale, for rtn and awq.
    target: what drop_random, drop_reverse, drop_iterative and kl_iterative
      drop.

  Raises:
    ValueError: an unknown method or an amount that it does not take.
  """
  from jaxprune.pruning import patterns
  from jaxprune.pruning.methods import quantize
  from jaxprune.studies import inputs

  name, _, amount = text.partition(":")
  method, at, allocation = name.partition("@")
  try:
    if at and (
      allocation not in ALLOCATIONS
      or ":" in amount
      or method not in (*ENTRIES, *UNITS)
    ):
      raise ValueError(
        f"@{allocation} is not one of {', '.join(ALLOCATIONS)} after a method"
        " that removes weights, and a sparsity"
      )
    if method in DROPS:
      what, selection = DROPS[method]
      return Cell(
        method=method,
        amount=amount,
        drop=int(amount),
        target=what or target,
        selection=selection,
      )
    if method in ROUNDING:
      pattern = quantize.Levels(bits=int(amount), group_size=group_size)
    elif method in UNITS:
      pattern = patterns.Unstructured(sparsity=float(amount))
    elif method in ENTRIES and ":" in amount:
      pattern = inputs.read_pattern(amount, 0.0, "output")
    elif method in ENTRIES:
      group = "matrix" if method == "sparsegpt" else "output"
      pattern = patterns.Unstructured(sparsity=float(amount), group=group)
    else:
      raise ValueError("unknown method")
  except ValueError as error:
    raise ValueError(
      f"--configurations={text}: {error}; use METHOD:AMOUNT such as wanda:0.5,"
      " sparsegpt:2:4, rtn:4 or drop_attention:4"
    ) from error
  return Cell(
    method=name, amount=amount, pattern=pattern, allocation=allocation or None
  )


def read_all(
  texts: Sequence[str],
  config: ModelConfig,
  *,
  group_size: int | None,
  target: str,
) -> list[Cell]:
  """Read configurations, and refuse what the model cannot have.

  Args:
    texts: METHOD:AMOUNT each.
    config: of the dense model.
    group_size: see `read_cell`.
    target: see `read_cell`.

  Raises:
    ValueError: as `read_cell` and `check`.
  """
  read = [
    read_cell(text, group_size=group_size, target=target) for text in texts
  ]
  for one in read:
    check(config, one)
  return read


def check(config, cell: Cell) -> None:
  """Refuse, before any work, a cell that the model cannot have."""
  from jaxprune.pruning.checkpoint import weights

  if cell.pattern is not None:
    weights.check_job(config, cell.base, cell.pattern, tokens=True)
    return
  most = 2 * config.num_layers if cell.target == "joint" else config.num_layers
  if not 0 <= cell.drop <= most:
    raise ValueError(
      f"--configurations={cell.name}: the model has {most} to drop: use fewer"
    )


def prune(source, cell: Cell, tokens, seed: int, out: pathlib.Path) -> float:
  """Write the pruned folder; return the fraction of zeros in the kernels.

  Args:
    source: the dense checkpoint.
    cell: what is done to it.
    tokens: calibration tokens, int [sequences, length].
    seed: of drop_random.
    out: folder to write; the unfinished work of the same cell is taken up.
  """
  from jaxprune.pruning.checkpoint import sublayers, weights

  provenance = {"cell": cell.name, "seed": seed}
  if cell.drop is None:
    pattern = cell.pattern
    if cell.allocation:
      pattern, _ = spread_pattern(
        source, cell.base, pattern, cell.allocation, tokens=tokens
      )
    weights.prune_weights(
      source,
      out,
      method=cell.base,
      pattern=pattern,
      tokens=tokens,
      provenance=provenance,
      overwrite=True,
    )
  else:
    chosen, scores = choose_drops(
      source,
      cell.drop,
      target=cell.target,
      selection=cell.selection,
      tokens=tokens,
      seed=seed,
    )
    sublayers.prune_drops(
      source,
      out,
      chosen,
      scores,
      score_name=score_name(cell.selection),
      provenance=provenance,
      overwrite=True,
    )
  return weights.folder_sparsity(out)


def score_name(selection: str) -> str:
  """What a selection ranks: `similarity` or `kl`."""
  return "kl" if selection.startswith("kl") else "similarity"


def choose_drops(
  source,
  count,
  *,
  target,
  selection,
  tokens,
  seed,
  memory=None,
  on_layer=lambda layer: None,
):
  """Choose what is dropped, by similarity or by the damage to the output.

  Args:
    source: the dense checkpoint.
    count: sublayers, or blocks for target block.
    target: attention, mlp, joint or block.
    selection: as in the table of drops.
    tokens: calibration tokens, int [sequences, length].
    seed: of a random selection.
    memory: how activations are held.
    on_layer: called with the index of each layer, or round, when it is done.

  Returns:
    The drops, and scores of the dense model by kind, [L] each.
  """
  from jaxprune.probes.decoder import ablation
  from jaxprune.pruning.checkpoint import sublayers

  if score_name(selection) == "kl":
    return ablation.choose_drops(
      source,
      count,
      target=target,
      iterative=selection == "kl_iterative",
      tokens=tokens,
      memory=memory,
      on_round=on_layer,
    )
  return sublayers.choose_drops(
    source,
    count,
    target=target,
    selection=selection,
    tokens=tokens,
    seed=seed,
    memory=memory,
    on_layer=on_layer,
  )


def spread_pattern(
  source,
  method,
  pattern,
  allocation,
  *,
  tokens,
  spread=0.08,
  memory=None,
  on_layer=lambda layer: None,
):
  """One pattern per layer, of unequal sparsity; as many weights in all.

  Args:
    source: the dense checkpoint.
    method: what removes the weights.
    pattern: with the sparsity of the whole.
    allocation: linear, owl or kl.
    tokens: calibration tokens, int [sequences, length]; owl and kl need them.
    spread: half of what the sparsities of layers lie apart.
    memory: how activations are held.
    on_layer: called with the index of each layer when it is scored.

  Returns:
    The patterns, and for kl the KL in nats of pruning each layer alone, [L];
    else None.

  Raises:
    ValueError: kl without tokens, or as `allocation.allocate`.
  """
  from jaxprune.probes.decoder import ablation
  from jaxprune.pruning.checkpoint import allocation as allocation_lib
  from jaxprune.pruning.layerwise import allocation as layerwise_allocation

  damages = None
  if allocation == "kl":
    if tokens is None:
      raise ValueError("allocation kl looks at calibration tokens: give some")
    damages = ablation.layer_damages(
      source, method, pattern, tokens, memory=memory, on_layer=on_layer
    ).mean(axis=1, dtype=float)
    found = layerwise_allocation.by_damage(
      damages, pattern.sparsity, spread=spread
    )
  else:
    found = allocation_lib.allocate(
      source,
      allocation,
      pattern.sparsity,
      spread=spread,
      tokens=tokens,
      memory=memory,
      on_layer=on_layer,
    )
  return [
    dataclasses.replace(pattern, sparsity=share) for share in found
  ], damages
