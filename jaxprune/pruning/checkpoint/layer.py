"""How are the kernels of one layer pruned?

All kernels are scored from the layer as it was, with the statistics of what
enters them when the calibration activations pass through it.

Each expert of a mixture is pruned by itself, with the statistics of the tokens
that the router sent to it, as a hook on its modules would see them. An expert
that no token reached is pruned as if its inputs were uncorrelated and of one
size, which leaves the magnitudes of its weights to decide; the log counts them
as `experts_without_tokens`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import devices
from jaxprune.models import KERNEL_INPUTS, ModelConfig, kernels_of
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import experts, finite, programs, streaming
from jaxprune.pruning.checkpoint.global_magnitude import Threshold
from jaxprune.pruning.checkpoint.streaming import Config, Memory, States
from jaxprune.pruning.methods import neuron
from jaxprune.pruning.patterns import AnyPattern
from jaxprune.pruning.registry import KernelMethod, UnitMethod

Tree = dict[str, Any]
# Tokens on which the output error of a kernel is measured for the log.
ERROR_TOKENS = 256
_OVERFLOW = "its scores, from finite weights and statistics, overflow float32"
_LOW_BITS = 12  # of a count of zeros
_INPUTS = tuple(dict.fromkeys(KERNEL_INPUTS.values()))
_UNIT_INPUTS = (KERNEL_INPUTS["mlp", "down"],)


def prune_layer(
  config: Config,
  method: KernelMethod | UnitMethod,
  pattern: AnyPattern,
  layer: Tree,
  index: int,
  states: States | None,
  memory: Memory,
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Prune a layer.

  Args:
    config: the model.
    method: an entry of `registry.METHODS`.
    pattern: what is removed in each kernel, or of the units.
    layer: the layer, float32.
    index: of the layer.
    states: the calibration activations that enter it.
    memory: how they are held.

  Returns:
    The layer with zeros; masks {group: {kernel: bool [I, O]}}, {} where nothing
    was removed; and numbers for the log.

  Raises:
    ValueError: a statistic, a score or a new weight is inf or nan.
  """
  units = method.unit == registry.HIDDEN_UNITS
  run = _prune_units if units else _prune_kernels
  return run(config, method, pattern, layer, index, states, memory)


def _prune_kernels(config, method, pattern, layer, index, states, memory):
  statistics = dict.fromkeys(_INPUTS)
  if method.statistic:
    statistics = collect(config, method.statistic, layer, index, states, memory)
  return prune_kernels(config, method, pattern, layer, index, statistics)


def prune_kernels(
  config: Config,
  method: KernelMethod,
  pattern: AnyPattern,
  layer: Tree,
  index: int,
  statistics: dict[str, Any],
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Prune the kernels of a layer from what enters them.

  Args:
    config: the model.
    method: an entry of `registry.METHODS`.
    pattern: what is removed in each kernel.
    layer: the layer, float32.
    index: of the layer.
    statistics: of `collect`; None for each input where the method needs none.

  Returns:
    What `prune_layer` returns.

  Raises:
    ValueError: a statistic, a score or a new weight is inf or nan.
  """
  prepared, notes = {}, {}
  routed = experts.inputs_of(config)
  for key in _INPUTS:
    try:
      if key in routed and statistics[key] is not None:
        prepared[key], numbers = experts.prepare(method, statistics[key])
      else:
        prepared[key], numbers = method.prepare(statistics[key])
    except ValueError as error:
      kernels = finite.readers(layer, key)
      raise ValueError(f"layer {index}, {kernels}: {error}") from error
    # The layer's number is the worst of those of its inputs.
    notes |= {
      name: max(value, notes.get(name, value))
      for name, value in numbers.items()
    }
  new = {name: dict(leaf) for name, leaf in layer.items()}
  keep, sound = {}, {}
  for group, kernel in kernels_of(layer):
    w_IO = layer[group][kernel]["kernel"]
    run = programs.apply_method if w_IO.ndim == 2 else _apply_to_experts
    w_IO, mask_IO, sound[group, kernel] = run(
      method.apply, pattern, w_IO, prepared[KERNEL_INPUTS[group, kernel]]
    )
    new[group][kernel] = {**layer[group][kernel], "kernel": w_IO}
    if mask_IO is not None:
      keep.setdefault(group, {})[kernel] = mask_IO
  finite.check_weights(index, sound, _OVERFLOW)
  return new, keep, notes


def _prune_units(config, method, pattern, layer, index, states, memory):
  statistics = collect(
    config, method.statistic, layer, index, states, memory, inputs=_UNIT_INPUTS
  )
  if experts.inputs_of(config):
    return _prune_expert_units(
      method, pattern, layer, index, *statistics.values()
    )
  mlp, masks, bias_D, sound = programs.apply_units(
    method.apply, pattern.sparsity, layer["mlp"], *statistics.values()
  )
  finite.check_weights(index, {("mlp", k): sound for k in mlp}, _OVERFLOW)
  if bias_D is not None and (config.mlp_bias or has_place_for_bias(config)):
    mlp = _with_bias(mlp, bias_D)
  return {**layer, "mlp": mlp}, {"mlp": masks}, {}


def _prune_expert_units(method, pattern, layer, index, statistics):
  """Every expert loses its own hidden units; none has a place for a bias."""
  statistics, unseen = experts.fill_unseen(method.statistic, statistics)
  mlp, masks, sound = _apply_expert_units(
    method.apply, pattern.sparsity, _experts_of(layer), statistics
  )
  finite.check_weights(index, {("mlp", k): sound for k in mlp}, _OVERFLOW)
  mlp = {**layer["mlp"], **mlp}
  notes = {"experts_without_tokens": unseen}
  return {**layer, "mlp": mlp}, {"mlp": masks}, notes


def _experts_of(layer):
  """The MLP without its router."""
  return {name: layer["mlp"][name] for name in ("gate", "up", "down")}


def has_place_for_bias(config: ModelConfig) -> bool:
  """Whether stock code of the family can be told to have MLP biases."""
  return config.family == "llama"


def _with_bias(mlp, bias_D):
  """Add to the bias of `down`; gate and up get one of zeros beside it."""
  mlp = {
    name: {"bias": jnp.zeros_like(part["kernel"][0]), **part}
    for name, part in mlp.items()
  }
  mlp["down"]["bias"] = mlp["down"]["bias"] + bias_D
  return mlp


def cut_layer(
  threshold: Threshold, layer: Tree
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Prune a layer by one threshold for the whole model.

  Args:
    threshold: what leaves; counts down the ties.
    layer: the layer, float32.

  Returns:
    The layer with zeros; masks {group: {kernel: bool [I, O]}}; and {}, as
    there are no numbers for the log.
  """
  new = {name: dict(leaf) for name, leaf in layer.items()}
  keep = {}
  for group, kernel in kernels_of(layer):
    w_IO = layer[group][kernel]["kernel"]
    mask_IO = threshold.keep(devices.to_host(w_IO))
    new[group][kernel] = {
      **layer[group][kernel],
      "kernel": jnp.where(mask_IO, w_IO, 0),
    }
    keep.setdefault(group, {})[kernel] = mask_IO
  return new, keep, {}


def slim_layer(layer: Tree, keep: Tree) -> Tree:
  """Build the MLP of a layer without the units that a mask removes.

  Args:
    layer: the layer with zeros.
    keep: its masks {group: {kernel: bool [I, O]}}.

  Returns:
    The layer with kernels of its MLP as narrow as the units that stay.
  """
  keep_F = np.asarray(keep["mlp"]["down"])[..., 0]
  if keep_F.ndim == 1:
    mlp = neuron.slim(layer["mlp"], keep_F, int(keep_F.sum()))
    return {**layer, "mlp": mlp}
  several = [
    neuron.slim(
      jax.tree.map(lambda leaf, i=index: leaf[i], _experts_of(layer)),
      own_F,
      int(own_F.sum()),
    )
    for index, own_F in enumerate(keep_F)
  ]
  mlp = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
  return {**layer, "mlp": {**layer["mlp"], **mlp}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_to_experts(apply, pattern, w_EIO, prepared):
  new_EIO, mask_EIO = jax.lax.map(
    lambda expert: apply(*expert, pattern), (w_EIO, prepared)
  )
  return new_EIO, mask_EIO, finite.all_finite(new_EIO)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_expert_units(apply, sparsity, mlp, statistics):
  new, masks = jax.lax.map(
    lambda expert: apply(*expert, sparsity)[:2], (mlp, statistics)
  )
  return new, masks, finite.all_finite(new)


def collect(
  config: Config,
  statistic: str,
  layer: Tree,
  index: int,
  states: States,
  memory: Memory,
  inputs: tuple[str, ...] = _INPUTS,
) -> dict[str, Any]:
  """The statistics of kernel inputs of a layer over all micro-batches.

  Args:
    config: the model.
    statistic: a name in `observers.OBSERVERS`.
    layer: the layer, float32.
    index: of the layer.
    states: the calibration activations that enter it.
    memory: how they are held.
    inputs: names on the tape.

  Returns:
    {input: statistic}; on a mesh, placed by `devices.statistic_spec`.

  Raises:
    ValueError: a statistic is inf or nan; names the calibration sequence.
  """
  sliding, sound = streaming.is_sliding(config, index), []
  total = {
    key: programs.nothing_seen(statistic, layer, key, memory) for key in inputs
  }
  for x_BTD, valid_BT in states:
    batch = devices.place_batch(x_BTD, memory.mesh), valid_BT
    total, flags = programs.add_statistics(
      config, memory.mesh, statistic, inputs, layer, batch, sliding, total
    )
    sound.append(flags)
  finite.check_statistics(config, statistic, layer, index, states, sound)
  return total


def layer_error(
  config: Config, old: Tree, new: Tree, states: States, index: int
) -> dict[str, float | int]:
  """Mean over kernels of |X(W' - W)|^2 / |XW|^2, X from the layer as it was.

  A kernel whose output was zero has error 0 if it still is, else 1.

  Args:
    config: the model.
    old: the layer as it was.
    new: the pruned layer, of the same shapes.
    states: the calibration activations; the first `ERROR_TOKENS` tokens of the
      first sequence are used, and where there is padding the valid tokens of
      the first micro-batch.
    index: of the layer.

  Returns:
    layer_error, and on how many of the first calibration sequences and how many
    of their tokens it was measured.

  Raises:
    ValueError: the output of a kernel is not finite.
  """
  x_BTD, valid_BT = devices.to_host(states.batches[0]), states.valid[0]
  if valid_BT is None:
    x_BTD = x_BTD[:1, :ERROR_TOKENS]
  sliding = streaming.is_sliding(config, index)
  error = float(
    programs.measure_error(config, old, new, x_BTD, valid_BT, sliding)
  )
  sequences, tokens = x_BTD.shape[:2]
  if valid_BT is not None:
    tokens = int(np.sum(valid_BT))
  if not np.isfinite(error):
    raise ValueError(
      f"layer {index}: the outputs of its kernels are inf or nan on the first"
      f" {sequences} calibration sequences, so it has no layer_error: their"
      " activations overflow; use other sequences, or verify the checkpoint"
    )
  return {
    "layer_error": error,
    "layer_error_sequences": sequences,
    "layer_error_tokens": tokens,
  }


def as_written(index: int, layer: Tree, read: Tree) -> Tree:
  """The layer as it will be read back: rounded to the dtypes of the file.

  Later layers are calibrated on the model that is written, not on a finer one.

  Args:
    index: of the layer.
    layer: the pruned layer, float32.
    read: the layer as it was read, in the dtypes of the file.

  Raises:
    ValueError: a new weight is too large for the dtype of the file.
  """
  new, sound = _as_written(layer, read)
  finite.check_weights(index, sound, "they are too large for the file's dtype")
  return new


@jax.jit
def _as_written(layer, read):
  def rounded(new, old):
    return {
      name: rounded(leaf, old[name])
      if isinstance(leaf, dict)
      # A new bias gets the dtype of its kernel.
      else leaf.astype(old.get(name, old.get("kernel")).dtype).astype(
        leaf.dtype
      )
      for name, leaf in new.items()
    }

  new = rounded(layer, read)
  sound = {
    (group, kernel): finite.all_finite(new[group][kernel])
    for group, kernel in kernels_of(new)
  }
  return new, sound


def sparsity(layer: Tree) -> float:
  """Fraction of zeros over the kernels of a layer, or of stacked layers."""
  kernels = [layer[group][name]["kernel"] for group, name in kernels_of(layer)]
  if isinstance(kernels[0], jax.Array):
    zeros = sum(
      (int(high) << _LOW_BITS) + int(low) for high, low in count_zeros(kernels)
    )
  else:
    zeros = sum(int((w == 0).sum()) for w in kernels)
  return zeros / sum(w.size for w in kernels)


@jax.jit
def count_zeros(
  kernels: Sequence[jax.Array],
) -> list[tuple[jax.Array, jax.Array]]:
  """How many entries of each kernel are zero, in one program for all.

  The kernels of all layers may have more entries than an int32 counts, so a
  count is two numbers, high * 2^12 + low.

  Args:
    kernels: [I, O] or [L, I, O], below 2^31 entries for one index of the first
      axis and 2^43 in all.

  Returns:
    (high, low) of each kernel, int32 [].
  """
  rows = [
    jnp.sum(w == 0, axis=range(1, w.ndim), dtype=jnp.int32) for w in kernels
  ]
  return [
    (jnp.sum(row >> _LOW_BITS), jnp.sum(row & ((1 << _LOW_BITS) - 1)))
    for row in rows
  ]
