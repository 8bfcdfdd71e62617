"""How is a whole checkpoint pruned, one layer in memory at a time?

Layer by layer: read it, push the calibration tokens through it to collect the
inputs of its kernels, prune every kernel from those statistics, push the same
tokens through the pruned layer, write it, go on. So the statistics of a layer
see pruned inputs, and all kernels of a layer are scored from the layer as it
was, as in the reference implementations.

On the device: one layer, its statistics, one micro-batch in work, and the
calibration activations unless they are kept on the host. On the host: one
layer above the memory map. `memory.py` counts it before.

A run that was killed goes on after the last finished layer (`resume.py`) and
ends with the same bits; of a run that was finished the log is given again.

Reference: Sun et al., Wanda, arXiv 2306.11695, and Frantar and Alistarh,
SparseGPT, arXiv 2301.00774, whose official code walks the layers this way.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, devices
from jaxprune.checkpoints import names
from jaxprune.models import EncoderConfig, ModelConfig
from jaxprune.models.families import FAMILIES
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import (
  global_magnitude,
  layer,
  resume,
  streaming,
)
from jaxprune.pruning.checkpoint.output import Output
from jaxprune.pruning.checkpoint.streaming import Config, Memory, Tokens
from jaxprune.pruning.patterns import AnyPattern, Levels, NofM, removed_count


def prune_weights(
  source: checkpoints.Source,
  out: str | os.PathLike,
  *,
  method: str,
  pattern: AnyPattern | Sequence[AnyPattern],
  tokens: Tokens | None = None,
  memory: Memory | None = None,
  output: Output | None = None,
  on_layer: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
  """Prune every kernel of a checkpoint and write the pruned folder.

  Args:
    source: an opened checkpoint.
    out: folder to write: a Hugging Face checkpoint with zeros in place, and
      `masks.safetensors` where weights were removed.
    method: a name in `registry.METHODS`.
    pattern: what is removed in each kernel, or of the hidden units of each
      MLP; one per layer (`allocation.py`), or one for all.
    tokens: calibration tokens, int [sequences, length], for an encoder also
      with padding; None only for a method that needs no data.
    memory: how activations are held, and on which devices.
    output: how the folder is written.
    on_layer: called with the log of each layer when it is finished.

  Returns:
    The log, a row per layer: layer, seconds, sparsity (fraction of zeros over
    the kernels, before MLPs are slimmed), layer_error (mean over kernels of
    |X(W-W')|^2 / |XW|^2, with the number of calibration sequences and tokens,
    the first ones, on which it was measured; absent without tokens), memory
    (peak of the host, bytes) and the method's notes.

  Raises:
    ValueError: an unknown method or a pattern that it does not take, tokens
      that are missing or that the model cannot read, weights, statistics or
      scores that are not finite, or unfinished work of another run.
  """
  memory, output = memory or Memory(), output or Output()
  config, slim = source.config, output.slim
  patterns = each_layer(config, pattern)
  check_job(config, method, patterns, tokens=tokens is not None, slim=slim)
  if tokens is not None:
    streaming.check_tokens(config, tokens)
    memory.size(len(tokens))
  if isinstance(config, EncoderConfig) and memory.mesh is not None:
    raise ValueError("an encoder is pruned on one device: give no mesh")
  chosen = registry.METHODS[method]
  job = dict(output.provenance) | {
    "method": method,
    "slim": slim,
    "pattern": _described(patterns),
  }
  if tokens is not None:
    job["tokens"] = streaming.token_hash(tokens)
  changes = _changes(config, chosen, patterns, slim)
  try:
    export = _start(out, source, job, changes, output)
  except checkpoints.FinishedError as finished:
    return resume.read_finished(finished.folder)
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
      resume.read_states(
        export, start, streaming.shapes_of_states(config, tokens, memory)
      )
      if start
      else streaming.embedded(source, tokens, memory)
    )
  for index in range(start, config.num_layers):
    began = time.monotonic()
    read = checkpoints.read_layer(source, index)
    old = streaming.place_layer(read, memory)
    if threshold is None:
      new, keep, notes = layer.prune_layer(
        config, chosen, patterns[index], old, index, states, memory
      )
    else:
      new, keep, notes = layer.cut_layer(threshold, old)
    new = layer.as_written(index, new, read)
    row = {"layer": index, "sparsity": layer.sparsity(new)} | notes
    if states is not None:
      row |= layer.layer_error(config, old, new, states, index)
      if index + 1 < config.num_layers:
        sliding = streaming.is_sliding(config, index)
        streaming.advance(config, new, states, sliding, memory)
    row["seconds"] = time.monotonic() - began
    row["memory"] = devices.peak_resident_bytes()
    log.append(row)
    if slim:
      new, keep = layer.slim_layer(devices.to_host(new), keep), {}
    resume.save_layer(export, index, new, keep, states, log)
    on_layer(row)
  resume.finish(export, job)
  return log


def encoder_methods() -> tuple[str, ...]:
  """The methods that prune encoders: those that remove single weights."""
  return registry.names(registry.ENTRIES, rounds=False)


def _described(patterns):
  """JSON values of the patterns: one where all layers have the same."""
  written = [dataclasses.asdict(pattern) for pattern in patterns]
  return written[0] if len(set(patterns)) == 1 else written


def each_layer(
  config: Config, pattern: AnyPattern | Sequence[AnyPattern]
) -> tuple[AnyPattern, ...]:
  """One pattern per layer.

  Args:
    config: the model.
    pattern: one for all layers, or one for each.

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
  config: Config,
  method: str,
  pattern: AnyPattern | Sequence[AnyPattern],
  *,
  tokens: bool,
  slim: bool = False,
) -> None:
  """Refuse, before any work, what cannot be done.

  Args:
    config: the model.
    method: a name in `registry.METHODS`.
    pattern: one for all layers, or one for each.
    tokens: whether there are calibration tokens.
    slim: whether MLPs are to be built without the units that are removed.

  Raises:
    ValueError: an unknown method, a pattern that it does not take or that does
      not divide a kernel, no tokens where they are needed, or an MLP that
      cannot be made slimmer.
  """
  chosen = registry.find(method)
  if chosen.unit == registry.SUBLAYERS:
    raise ValueError(
      f"method {method} drops sublayers, it has no pattern: use one of"
      f" {', '.join(registry.names(registry.ENTRIES, registry.HIDDEN_UNITS))}"
    )
  if chosen.statistic and not tokens:
    raise ValueError(f"method {method} looks at calibration tokens: give some")
  if slim and chosen.unit != registry.HIDDEN_UNITS:
    raise ValueError(
      f"method {method} removes single weights, so no MLP becomes slimmer:"
      f" use one of {', '.join(registry.names(registry.HIDDEN_UNITS))}"
    )
  patterns = set(each_layer(config, pattern))
  if isinstance(config, EncoderConfig):
    _check_encoder(method, patterns)
  if slim and len(patterns) > 1:
    raise ValueError(
      "slim MLPs of several widths have no config.json: use one sparsity for"
      " all layers, or do not slim"
    )
  for layer_pattern in patterns:
    _check_pattern(method, chosen, layer_pattern)
    _check_divides(config, layer_pattern)


def _check_encoder(method, patterns):
  """Refuse what is there for decoders only."""
  if method not in encoder_methods():
    raise ValueError(
      f"method {method!r} is not for encoders: use one of"
      f" {', '.join(encoder_methods())}"
    )
  if any(getattr(pattern, "group", "") == "global" for pattern in patterns):
    raise ValueError(
      "group global is not there for encoders: use group output or matrix"
    )


def _check_pattern(method, chosen, pattern):
  """Refuse a pattern that the method does not take."""
  if type(pattern).__name__ not in chosen.patterns:
    raise ValueError(
      f"method {method} does not take {pattern}: use"
      f" {' or '.join(chosen.patterns)}"
    )
  group = getattr(pattern, "group", None)
  if group is None or group in chosen.groups:
    return
  if group == "global":
    able = [
      name
      for name in registry.names(registry.ENTRIES)
      if "global" in registry.METHODS[name].groups
    ]
    raise ValueError(
      f"group global compares all layers at once, but {method} scores a"
      f" layer after those before it are pruned: use {' or '.join(able)}, or"
      f" group {' or '.join(chosen.groups)}"
    )
  raise ValueError(
    f"method {method} does not take group {group}: use"
    f" {' or '.join(chosen.groups)}"
  )


def _check_divides(config, pattern):
  """Refuse a pattern that some kernel cannot have, naming the kernel."""
  if isinstance(pattern, NofM):
    size, what = pattern.of, f"pattern {pattern.keep}:{pattern.of}"
  elif isinstance(pattern, Levels) and pattern.group_size is not None:
    size, what = pattern.group_size, f"group_size {pattern.group_size}"
  else:
    return
  for kernel, shape in names.kernel_shapes(config).items():
    if shape[-2] % size:
      raise ValueError(
        f"{what} does not divide the {shape[-2]} inputs of"
        f" {'/'.join(kernel)}: use one that does, or none"
      )


def _changes(config, method, patterns, slim) -> dict[str, Any]:
  """The entries of config.json that differ in the written model."""
  changes = {}
  if slim:
    field = "intermediate_size"
    if isinstance(config, ModelConfig):
      field = FAMILIES[config.family].mlp_dim
    changes[field] = config.mlp_dim - removed_count(
      config.mlp_dim, patterns[0].sparsity
    )
  if getattr(method, "compensates", False) and not config.mlp_bias:
    if layer.has_place_for_bias(config):
      changes["mlp_bias"] = True
  return changes


def _start(out, source, job, changes, output):
  """Begin the export; where there are more processes, the writer first."""

  def start():
    return checkpoints.start_export(
      out,
      source,
      provenance=job,
      changes=changes,
      overwrite=output.overwrite,
      shard_size=output.shard_size,
    )

  export = None
  try:
    if devices.is_writer():
      export = start()
  finally:  # what the writer is refused, the others are refused next
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
