"""How is a whole checkpoint pruned, one layer in memory at a time?

Layer by layer: read it, push the calibration tokens through it to collect the
inputs of its kernels, prune every kernel from those statistics, push the same
tokens through the pruned layer, write it, go on. So the statistics of a layer
see pruned inputs, and all kernels of a layer are scored from the layer as it
was, as in the reference implementations.

On the device: one layer, its statistics, one micro-batch in work, and the
calibration activations unless they are kept on the host. On the host: one
layer above the memory map. `estimate.py` counts it before.

A run that was killed goes on after the last finished layer (`commits.py`) and
ends with the same bits.

Reference: Sun et al., Wanda, arXiv 2306.11695, and Frantar and Alistarh,
SparseGPT, arXiv 2301.00774, whose official code walks the layers this way.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, devices
from jaxprune.checkpoints import names
from jaxprune.models import ModelConfig
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import (
  global_magnitude,
  layer,
  resume,
  streaming,
)
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, removed_count
from jaxprune.pruning.registry import Pattern, UnitMethod


def prune_weights(
  source: checkpoints.Source,
  out: str | os.PathLike,
  *,
  method: str,
  pattern: Pattern | Sequence[Pattern],
  tokens: np.ndarray | None = None,
  narrow: bool = False,
  memory: Memory | None = None,
  provenance: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  on_layer: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
  """Prune every kernel of a checkpoint and write the pruned folder.

  Args:
    source: an opened checkpoint.
    out: folder to write: a Hugging Face checkpoint with zeros in place, and
      `masks.safetensors` where weights were removed.
    method: a name in `methods.METHODS`.
    pattern: what is removed in each kernel, or of the hidden units of each
      MLP; one per layer (`allocation.py`), or one for all.
    tokens: calibration tokens, int [sequences, length]; None only for a method
      that needs no data.
    narrow: build the MLPs without the units that are removed, instead of
      zeros in place. For methods that remove units.
    memory: how activations are held, and on which devices.
    provenance: JSON values that identify the run. A resumed run must have the
      same.
    overwrite: replace an older model folder.
    on_layer: called with the log of each layer when it is finished.

  Returns:
    The log, a row per layer: layer, seconds, sparsity (fraction of zeros over
    the kernels, before narrowing), layer_error (mean over kernels of
    |X(W-W')|^2 / |XW|^2 on the first 256 calibration tokens; absent without
    tokens), memory (peak of the host, bytes) and the method's notes.

  Raises:
    ValueError: as `check_job`, tokens that the model cannot read, bad weights,
      or unfinished work of another run.
  """
  memory = memory or Memory()
  config = source.config
  patterns = each_layer(config, pattern)
  check_job(config, method, patterns, tokens=tokens is not None, narrow=narrow)
  if tokens is not None:
    streaming.check_tokens(config, tokens)
    memory.size(len(tokens))
  chosen = registry.METHODS[method]
  written = [dataclasses.asdict(one) for one in patterns]
  job = dict(provenance or {}) | {
    "method": method,
    "narrow": narrow,
    "pattern": written[0] if len(set(patterns)) == 1 else written,
  }
  export = _start(
    out, source, job, _changes(config, chosen, patterns, narrow), overwrite
  )
  log = resume.read_log(export)
  start = len(log)
  threshold = None
  if getattr(patterns[0], "group", "") == "global":
    threshold = global_magnitude.find_threshold(
      source, patterns[0].sparsity, first_layer=start
    )
  states = None
  if tokens is not None and start < config.num_layers:
    states = (
      resume.read_states(export, start, memory)
      if start
      else streaming.embedded(source, tokens, memory)
    )
  for index in range(start, config.num_layers):
    began = time.monotonic()
    read = checkpoints.read_layer(source, index)
    old = streaming.place_layer(read, memory)
    sliding = config.sliding_layers[index]
    if threshold is None:
      new, keep, notes = layer.prune_layer(
        config, chosen, patterns[index], old, sliding, states, memory
      )
    else:
      new, keep, notes = layer.cut_layer(threshold, old)
    new = layer.as_written(new, read)
    row = {"layer": index, "sparsity": layer.sparsity(new)} | notes
    if states is not None:
      row["layer_error"] = layer.layer_error(config, old, new, states, sliding)
      if index + 1 < config.num_layers:
        streaming.advance(config, new, states, sliding, memory)
    row["seconds"] = time.monotonic() - began
    row["memory"] = devices.peak_resident_bytes()
    log.append(row)
    if narrow:
      new, keep = layer.narrow_layer(devices.to_host(new), keep), {}
    resume.commit(export, index, new, keep, states, log)
    on_layer(row)
  resume.finish(export, job)
  return log


def each_layer(
  config: ModelConfig, pattern: Pattern | Sequence[Pattern]
) -> tuple[Pattern, ...]:
  """One pattern per layer.

  Raises:
    ValueError: a sequence of another length.
  """
  if not isinstance(pattern, Sequence):
    return (pattern,) * config.num_layers
  if len(pattern) != config.num_layers:
    raise ValueError(
      f"{len(pattern)} patterns for {config.num_layers} layers: give one per"
      " layer, or one for all"
    )
  return tuple(pattern)


def check_job(
  config: ModelConfig,
  method: str,
  pattern: Pattern | Sequence[Pattern],
  *,
  tokens: bool,
  narrow: bool = False,
) -> None:
  """Refuse, before any work, what cannot be done.

  Args:
    config: the model.
    method: a name.
    pattern: as in `prune_weights`.
    tokens: whether there are calibration tokens.
    narrow: as in `prune_weights`.

  Raises:
    ValueError: an unknown method, a pattern that it does not take or that does
      not divide a kernel, no tokens where they are needed, or something that
      cannot be made narrower.
  """
  if method not in registry.METHODS:
    raise ValueError(
      f"method {method!r}: use one of {', '.join(registry.METHODS)}"
    )
  chosen = registry.METHODS[method]
  if chosen.statistic and not tokens:
    raise ValueError(f"method {method} looks at calibration tokens: give some")
  if narrow and not isinstance(chosen, UnitMethod):
    raise ValueError(
      f"method {method} removes single weights, so nothing becomes narrower:"
      f" use one of {', '.join(registry.UNIT_METHODS)}"
    )
  patterns = set(each_layer(config, pattern))
  if narrow and len(patterns) > 1:
    raise ValueError(
      "narrow MLPs of several widths have no config.json: use one sparsity"
      " for all layers, or no narrowing"
    )
  for one in patterns:
    if not isinstance(one, chosen.patterns):
      raise ValueError(
        f"method {method} does not take {one}: use"
        f" {' or '.join(p.__name__ for p in chosen.patterns)}"
      )
    if getattr(one, "group", "") == "global" and method != "magnitude":
      raise ValueError(
        f"group global compares all layers at once, but {method} scores a"
        " layer after those before it are pruned: use magnitude, or group"
        " output or matrix"
      )
    _check_divides(config, one)


def _check_divides(config, pattern):
  """Refuse a pattern that some kernel cannot have, naming the kernel."""
  if isinstance(pattern, NofM):
    size, what = pattern.of, f"pattern {pattern.keep}:{pattern.of}"
  elif isinstance(pattern, Levels) and pattern.group_size is not None:
    size, what = pattern.group_size, f"group_size {pattern.group_size}"
  else:
    return
  for kernel, shape in names.kernel_shapes(config).items():
    if shape[1] % size:
      raise ValueError(
        f"{what} does not divide the {shape[1]} inputs of"
        f" {'/'.join(kernel)}: use one that does, or none"
      )


def _changes(config, method, patterns, narrow) -> dict[str, Any]:
  """What config.json of the written model says otherwise."""
  changes = {}
  if narrow:
    changes["intermediate_size"] = config.mlp_dim - removed_count(
      config.mlp_dim, patterns[0].sparsity
    )
  if getattr(method, "compensates", False) and not config.mlp_bias:
    if layer.has_place_for_bias(config):
      changes["mlp_bias"] = True
  return changes


def _start(out, source, job, changes, overwrite):
  """Begin the export; where there are more processes, the writer first."""

  def start():
    return checkpoints.start_export(
      out, source, provenance=job, changes=changes, overwrite=overwrite
    )

  export = start() if devices.is_writer() else None
  devices.wait_for_all("started")
  export = export or start()
  devices.wait_for_all("read what is there")
  return export


def folder_sparsity(folder: str | os.PathLike) -> float:
  """Fraction of zeros over the kernels of a checkpoint, layer by layer."""
  source = checkpoints.open_checkpoint(folder)
  layers = range(source.config.num_layers)
  return float(
    np.mean([layer.sparsity(checkpoints.read_layer(source, i)) for i in layers])
  )
