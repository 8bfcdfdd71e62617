"""How does a method of the table change a model, from settings to a folder?

A `Change` names a method and how much of it. `prune` allocates the sparsity or
chooses the sublayers, runs the method on the checkpoint and returns its log.
Scripts and sweeps prune through this file.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, report
from jaxprune.models import ModelConfig
from jaxprune.probes.decoder import ablation
from jaxprune.pruning import registry
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint import allocation as checkpoint_allocation
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.checkpoint.weights import Output
from jaxprune.pruning.layerwise import allocation, drops
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.pruning.patterns import AnyPattern, Levels, Unstructured
from jaxprune.studies import inputs

FIELDS = {
  "allocation": report.Field(
    "text", "", "how the sparsity is spread over layers"
  ),
  "spread": report.Field("float", "", "half of what the sparsities lie apart"),
  "group_size": report.Field("int", "", "inputs that share a scale"),
  "damping": report.Field(
    "float", "", "largest share of the mean diagonal added to H"
  ),
  "experts_without_tokens": report.Field(
    "int", "", "experts that no calibration token reached"
  ),
  "attention_kept": report.Field(
    "bool", "", "the attention of the layer stays"
  ),
  "mlp_kept": report.Field("bool", "", "the MLP of the layer stays"),
  "similarity_attention": report.Field(
    "float", "", "cosine over the attention"
  ),
  "similarity_mlp": report.Field("float", "", "cosine over the MLP"),
  "similarity_block": report.Field("float", "", "cosine over the whole layer"),
  "kl_attention": report.Field(
    "float", "nats", "KL without the attention alone"
  ),
  "kl_mlp": report.Field("float", "nats", "KL without the MLP alone"),
  "kl_block": report.Field("float", "nats", "KL without the layer alone"),
  "kl_alone": report.Field("float", "nats", "KL with this layer alone pruned"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What pruning gave.

  Attributes:
    log: a row per layer.
    settings: the change as flat JSON values, the same for all rows.
    summary: numbers of the whole model: asked_sparsity and layer_error, or
      dropped.
  """

  log: list[dict[str, Any]]
  settings: dict[str, Any]
  summary: dict[str, Any]


class Silent:
  """Progress that nobody watches: the interface, and its default."""

  def __init__(self, unit: str, total: int):
    del unit, total

  def step(self, index: int, **numbers: float | None) -> None:
    """Say that `index` of so many units is done, with numbers to show."""


def make_pattern(
  method: str,
  *,
  sparsity: float,
  pattern: str = "unstructured",
  group: str | None = None,
  levels: Levels | None = None,
) -> AnyPattern | None:
  """What the settings of a user mean for a method.

  Args:
    method: a name in `registry.METHODS`.
    sparsity: fraction removed, in [0, 1); not for methods that round.
    pattern: 'unstructured', or n:m with n kept out of m.
    group: what competes in an unstructured pattern; None is the default of
      the method.
    levels: for methods that round.

  Returns:
    The pattern; None for a drop.

  Raises:
    ValueError: an unknown method, a bad pattern or sparsity.
  """
  row = registry.find(method)
  if row.unit == registry.SUBLAYERS:
    return None
  if row.rounds:
    return levels or Levels(bits=4)
  if row.unit == registry.HIDDEN_UNITS:
    return Unstructured(sparsity=sparsity)
  return inputs.read_pattern(
    pattern, sparsity, group or registry.default_group(method)
  )


def check(
  config: ModelConfig,
  change: Change,
  *,
  tokens: bool,
  slim: bool = False,
  earlier: Drops | None = None,
) -> None:
  """Refuse, before any work, what cannot be done.

  Args:
    config: the model.
    change: what is to be done to it.
    tokens: whether there are calibration tokens.
    slim: whether the model is to be built without what goes: hidden units, or
      layers of which nothing is left.
    earlier: what was dropped before, `sublayers.dropped_before`.

  Raises:
    ValueError: an unknown method, a pattern that it does not take or that does
      not divide a kernel, an allocation that this pattern cannot have, a KL
      without an output head, more drops than sublayers are left, or no tokens
      where they are needed.
  """
  by_kl = (
    change.row.score == "kl" if change.drops else (change.allocation == "kl")
  )
  if by_kl and not config.has_head:
    raise ValueError(
      f"method {change.method}, allocation {change.allocation}: the KL needs"
      " logits, and this checkpoint has no output head; choose by similarity"
      " (drop_*) or spread evenly"
    )
  if not change.drops:
    weights.check_job(
      config, change.method, change.pattern, tokens=tokens, slim=slim
    )
    if change.allocation == "uniform":
      return
    if not hasattr(change.pattern, "sparsity"):
      raise ValueError(
        f"--allocation={change.allocation} spreads a --sparsity over layers:"
        " use the unstructured pattern"
      )
    if change.allocation == "kl" and not tokens:
      raise ValueError("allocation kl looks at calibration tokens: give some")
    return
  if slim and change.drop_target in ("attention", "mlp"):
    raise ValueError(
      f"method {change.method} leaves the other half of every layer, so no"
      " layer can be left out: drop blocks (drop_block, drop_consecutive,"
      " drop_joint), or do not slim"
    )
  drops.check_count(
    config.num_layers,
    change.drop_count,
    change.drop_target,
    selection=change.row.selection,
    earlier=earlier,
  )
  if change.row.selection != "random" and not tokens:
    raise ValueError(
      f"method {change.method} looks at calibration tokens: give some"
    )


def prune(
  source: checkpoints.Source,
  out: str | os.PathLike,
  change: Change,
  tokens: np.ndarray | None,
  *,
  memory: Memory | None = None,
  output: Output | None = None,
  progress: Callable[[str, int], Any] = Silent,
) -> Result:
  """Change a model and write its folder.

  Args:
    source: the dense checkpoint.
    out: folder to write; the unfinished work of the same change is taken up.
    change: what is done to it.
    tokens: calibration tokens, int [sequences, length]; None where the method
      needs none.
    memory: how activations are held, and on which devices.
    output: how the folder is written.
    progress: from a unit and their number to what `step` tells of each.

  Returns:
    The log and numbers of the whole.

  Raises:
    ValueError: a change that `check` refuses, tokens that the model cannot
      read, weights that are not finite, or unfinished work of another run.
  """
  output = output or Output()
  run = _drop if change.drops else _prune_weights
  return run(source, out, change, tokens, memory, output, progress)


def choose_drops(
  source: checkpoints.Source,
  change: Change,
  tokens: np.ndarray | None,
  *,
  memory: Memory | None = None,
  progress: Callable[[str, int], Any] = Silent,
) -> tuple[Drops, dict[str, np.ndarray]]:
  """Which sublayers a drop method removes.

  Args:
    source: the dense checkpoint.
    change: a drop.
    tokens: calibration tokens, int [sequences, length]; None for a random
      selection.
    memory: how activations are held, and on which devices.
    progress: from a unit and their number to what `step` tells of each.

  Returns:
    The drops, and the scores of the dense model, {} for a random selection.

  Raises:
    ValueError: an unknown target or selection, more drops than sublayers are
      left, or scores that are nan.
  """
  row, layers = change.row, source.config.num_layers
  score = None
  if row.selection == "random":
    pass
  elif row.score == "kl":
    rounds = change.drop_count if row.selection == "iterative" else 1
    score = ablation.kl_score(
      source,
      tokens,
      change.drop_target,
      memory=memory,
      on_round=progress("round", rounds).step,
    )
  else:
    on_layer = progress("layer", layers).step
    window = change.drop_count if row.selection == "consecutive" else 0

    def score(gates):
      return sublayers.score_sublayers(
        source,
        tokens,
        gates=gates,
        window=window,
        memory=memory,
        on_layer=on_layer,
      )

  return drops.choose_drops(
    score,
    layers,
    change.drop_count,
    target=change.drop_target,
    selection=row.selection,
    lowest_first=row.score == "kl",
    seed=change.seed,
    earlier=sublayers.dropped_before(source),
  )


def spread_pattern(
  source: checkpoints.Source,
  change: Change,
  tokens: np.ndarray | None,
  *,
  memory: Memory | None = None,
  progress: Callable[[str, int], Any] = Silent,
) -> tuple[list[Unstructured], np.ndarray | None]:
  """One pattern per layer, of unequal sparsity; as many weights in all.

  Args:
    source: the dense checkpoint.
    change: with a pattern of the sparsity of the whole, and an allocation that
      is not uniform.
    tokens: calibration tokens, int [sequences, length]; owl and kl need them.
    memory: how activations are held, and on which devices.
    progress: from a unit and their number to what `step` tells of each.

  Returns:
    The patterns, and for kl the KL in nats of pruning each layer alone, [L];
    else None.

  Raises:
    ValueError: an unknown kind, sparsity out of range, or tokens that are
      missing or that the model cannot read.
  """
  sparsity, spread = change.pattern.sparsity, change.spread
  on_layer = progress("scored layer", source.config.num_layers).step
  alone_L = None
  if change.allocation == "kl":
    alone_L = ablation.prune_layers_alone(
      source,
      change.method,
      change.pattern,
      tokens,
      memory=memory,
      on_layer=on_layer,
    ).mean(axis=1, dtype=float)
    sparsities = allocation.by_loss(alone_L, sparsity, spread=spread)
  else:
    sparsities = checkpoint_allocation.allocate(
      source,
      change.allocation,
      sparsity,
      spread=spread,
      tokens=tokens,
      memory=memory,
      on_layer=on_layer,
    )
  return [
    dataclasses.replace(change.pattern, sparsity=value) for value in sparsities
  ], alone_L


def _drop(source, out, change, tokens, memory, output, progress) -> Result:
  chosen, scores = choose_drops(
    source, change, tokens, memory=memory, progress=progress
  )
  drop = {"target": change.drop_target, "drop_count": change.drop_count}
  log = sublayers.prune_drops(
    source,
    out,
    chosen,
    scores,
    score_name=change.row.score,
    output=dataclasses.replace(
      output, provenance={**output.provenance, **drop}
    ),
  )
  return Result(
    log=log,
    settings={"method": change.method, "drop_count": change.drop_count},
    summary={"dropped": [list(pair) for pair in chosen.order]},
  )


def _prune_weights(
  source, out, change, tokens, memory, output, progress
) -> Result:
  settings = {"method": change.method}
  settings |= inputs.describe_pattern(change.pattern)
  # The sparsity in a row is the one that was reached, not the one that was
  # asked for.
  asked = settings.pop("sparsity", None)
  pattern, alone_L = change.pattern, None
  if change.allocation != "uniform":
    pattern, alone_L = spread_pattern(
      source, change, tokens, memory=memory, progress=progress
    )
    settings |= {"allocation": change.allocation, "spread": change.spread}
  layers = progress("layer", source.config.num_layers)
  log = weights.prune_weights(
    source,
    out,
    method=change.method,
    pattern=pattern,
    tokens=tokens,
    memory=memory,
    output=output,
    on_layer=lambda row: layers.step(
      row["layer"], sparsity=row["sparsity"], layer_error=row.get("layer_error")
    ),
  )
  if alone_L is not None:
    log = [row | {"kl_alone": kl} for row, kl in zip(log, alone_L)]
  return Result(log=log, settings=settings, summary=_summary(log, asked))


def _summary(log: Sequence[dict[str, Any]], asked: float | None):
  """What a run over all layers reached."""
  summary = {} if asked is None else {"asked_sparsity": asked}
  for name in ("layer_error", "sparsity"):
    if name in log[0]:
      summary[name] = float(np.mean([row[name] for row in log]))
  return summary
