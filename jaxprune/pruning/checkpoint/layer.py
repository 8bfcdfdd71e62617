"""How are the kernels of one layer pruned?

All kernels are scored from the layer as it was, with the statistics of what
enters them when the calibration activations pass through it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import devices
from jaxprune.models import KERNEL_INPUTS, KERNELS, ModelConfig
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import streaming
from jaxprune.pruning.checkpoint.global_magnitude import Threshold
from jaxprune.pruning.checkpoint.streaming import Memory, States
from jaxprune.pruning.methods import neuron
from jaxprune.pruning.registry import KernelMethod, Pattern, UnitMethod

Tree = dict[str, Any]
# Tokens on which the output error of a kernel is measured for the log.
ERROR_TOKENS = 256
_INPUTS = tuple(dict.fromkeys(KERNEL_INPUTS.values()))
_UNIT_INPUTS = (KERNEL_INPUTS["mlp", "down"],)


def prune_layer(
  config: ModelConfig,
  method: KernelMethod | UnitMethod,
  pattern: Pattern,
  layer: Tree,
  sliding: bool,
  states: States | None,
  memory: Memory,
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Prune a layer.

  Args:
    config: the model.
    method: an entry of `methods.METHODS`.
    pattern: what is removed in each kernel, or of the units.
    layer: the layer, float32.
    sliding: whether its attention slides.
    states: the calibration activations that enter it.
    memory: how they are held.

  Returns:
    The layer with zeros; masks {group: {kernel: bool [I, O]}}, {} where nothing
    was removed; and numbers for the log.
  """
  run = _prune_units if isinstance(method, UnitMethod) else _prune_kernels
  return run(config, method, pattern, layer, sliding, states, memory)


def _prune_kernels(config, method, pattern, layer, sliding, states, memory):
  statistics = dict.fromkeys(_INPUTS)
  if method.statistic:
    statistics = collect(
      config, method.statistic, layer, sliding, states, memory
    )
  prepared, notes = {}, {}
  for key in _INPUTS:
    prepared[key], said = method.prepare(statistics[key])
    # One number for the layer: the worst of its inputs.
    notes |= {
      name: max(value, notes.get(name, value)) for name, value in said.items()
    }
  new = {name: dict(leaf) for name, leaf in layer.items()}
  keep = {}
  for group, kernel in KERNELS:
    w_IO, mask_IO = _apply(
      method.apply,
      pattern,
      layer[group][kernel]["kernel"],
      prepared[KERNEL_INPUTS[group, kernel]],
    )
    new[group][kernel] = {**layer[group][kernel], "kernel": w_IO}
    if mask_IO is not None:
      keep.setdefault(group, {})[kernel] = mask_IO
  return new, keep, notes


def _prune_units(config, method, pattern, layer, sliding, states, memory):
  statistics = collect(
    config,
    method.statistic,
    layer,
    sliding,
    states,
    memory,
    inputs=_UNIT_INPUTS,
  )
  mlp, masks, bias_D = _apply_units(
    method.apply, pattern.sparsity, layer["mlp"], *statistics.values()
  )
  if bias_D is not None and (config.mlp_bias or has_place_for_bias(config)):
    mlp = _with_bias(mlp, bias_D)
  return {**layer, "mlp": mlp}, {"mlp": masks}, {}


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
  """As `prune_layer`, by one threshold for the whole model."""
  new = {name: dict(leaf) for name, leaf in layer.items()}
  keep = {}
  for group, kernel in KERNELS:
    w_IO = layer[group][kernel]["kernel"]
    mask_IO = threshold.keep(devices.to_host(w_IO))
    new[group][kernel] = {
      **layer[group][kernel],
      "kernel": jnp.where(mask_IO, w_IO, 0),
    }
    keep.setdefault(group, {})[kernel] = mask_IO
  return new, keep, {}


def narrow_layer(layer: Tree, keep: Tree) -> Tree:
  """Build the MLP of a layer without the units that a mask removes."""
  keep_F = np.asarray(keep["mlp"]["down"])[:, 0]
  mlp = neuron.narrow(layer["mlp"], keep_F, int(keep_F.sum()))
  return {**layer, "mlp": mlp}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(apply, pattern, w_IO, prepared):
  return apply(w_IO, prepared, pattern)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_units(apply, sparsity, mlp, statistics):
  return apply(mlp, statistics, sparsity)


def collect(
  config: ModelConfig,
  statistic: str,
  layer: Tree,
  sliding: bool,
  states: States,
  memory: Memory,
  inputs: tuple[str, ...] = _INPUTS,
) -> dict[str, Any]:
  """The statistics of kernel inputs of a layer over all micro-batches.

  Args:
    config: the model.
    statistic: a name in `methods.OBSERVERS`.
    layer: the layer, float32.
    sliding: whether its attention slides.
    states: the calibration activations that enter it.
    memory: how they are held.
    inputs: names on the tape.

  Returns:
    {input: statistic}, whole on every device.
  """
  total = {key: _nothing_seen(statistic, layer, key, memory) for key in inputs}
  for x_BTD in states:
    total = _add_statistics(
      config,
      memory.mesh,
      statistic,
      inputs,
      layer,
      devices.place_batch(x_BTD, memory.mesh),
      sliding,
      total,
    )
  return total


def _nothing_seen(statistic, layer, key, memory):
  """The statistic of no tokens; its shape follows from the kernel's inputs."""
  group, kernel = next(k for k, name in KERNEL_INPUTS.items() if name == key)
  inputs = layer[group][kernel]["kernel"].shape[0]
  shapes = jax.eval_shape(
    registry.OBSERVERS[statistic].observe,
    jax.ShapeDtypeStruct((1, 1, inputs), np.float32),
  )
  return jax.tree.map(
    lambda s: devices.place(np.zeros(s.shape, s.dtype), memory.mesh), shapes
  )


def _observe(config, mesh, statistic, inputs, layer, x_BTD, sliding):
  _, tape = streaming.run_layer(config, layer, x_BTD, sliding, mesh=mesh)
  return {
    key: registry.OBSERVERS[statistic].observe(tape[key]) for key in inputs
  }


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def _add_statistics(
  config, mesh, statistic, inputs, layer, x_BTD, sliding, total
):
  new = _observe(config, mesh, statistic, inputs, layer, x_BTD, sliding)
  merge = registry.OBSERVERS[statistic].merge
  total = {key: merge(total[key], new[key]) for key in inputs}
  return devices.on_every_device(total, mesh)


def layer_error(
  config: ModelConfig, old: Tree, new: Tree, states: States, sliding: bool
) -> float:
  """Mean over kernels of |X(W' - W)|^2 / |XW|^2, X from the layer as it was.

  Args:
    config: the model.
    old: the layer as it was.
    new: the pruned layer, of the same shapes.
    states: the calibration activations; the first `ERROR_TOKENS` tokens of the
      first sequence are used.
    sliding: whether the attention of the layer slides.
  """
  x_BTD = devices.to_host(states[0])[:1, :ERROR_TOKENS]
  return float(_layer_error(config, old, new, x_BTD, sliding))


@functools.partial(jax.jit, static_argnums=0)
def _layer_error(config, old, new, x_BTD, sliding):
  _, tape = streaming.run_layer(config, old, x_BTD, sliding)

  def energy(x_BTI, w_IO):
    return jnp.sum(jnp.square(jnp.einsum("BTI,IO->BTO", x_BTI, w_IO)))

  errors = []
  for group, kernel in KERNELS:
    x_BTI = tape[KERNEL_INPUTS[group, kernel]]
    w_IO, new_IO = (tree[group][kernel]["kernel"] for tree in (old, new))
    errors.append(energy(x_BTI, new_IO - w_IO) / energy(x_BTI, w_IO))
  return jnp.mean(jnp.stack(errors))


@jax.jit
def as_written(layer: Tree, read: Tree) -> Tree:
  """The layer as it will be read back: rounded to the dtypes of the file.

  Later layers are calibrated on the model that is written, not on a finer one.
  """

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

  return rounded(layer, read)


def sparsity(layer: Tree) -> float:
  """Fraction of zeros over the kernels of a layer."""
  kernels = [layer[group][kernel]["kernel"] for group, kernel in KERNELS]
  zeros = sum(int((w == 0).sum()) for w in kernels)
  return zeros / sum(w.size for w in kernels)
