"""Which programs does the pruning of a layer run on the devices?

`layer.py` calls them one after the other; each is compiled once for all layers
of a kind. They stand apart so that they can also be compiled ahead of time, for
devices that are not there (`studies.benchmark.pods`).

On a mesh the kernels are split over `model` by their outputs. A Gram matrix is
split by its rows over all devices, because one of 53,248 inputs has 11 GB.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import devices
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.models import KERNEL_INPUTS, kernels_of
from jaxprune.pruning import reconstruction
from jaxprune.pruning.checkpoint import experts, finite, streaming
from jaxprune.pruning.checkpoint.streaming import Config, Memory
from jaxprune.pruning.patterns import AnyPattern

Tree = dict[str, Any]


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_method(
  apply: Callable[..., Any], pattern: AnyPattern, w_IO: jax.Array, prepared: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
  """Prune one kernel.

  Args:
    apply: of a `registry.KernelMethod`.
    pattern: what is removed.
    w_IO: kernel [I, O], float32.
    prepared: what the method needs of the statistics.

  Returns:
    The new kernel [I, O]; its mask, bool [I, O], or None where nothing is
    removed; and whether the kernel is finite, bool [].
  """
  new_IO, mask_IO = apply(w_IO, prepared, pattern)
  return new_IO, mask_IO, finite.all_finite(new_IO)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_units(
  apply: Callable[..., Any], sparsity: float, mlp: Tree, statistics: Any
) -> tuple[Tree, Tree, jax.Array | None, jax.Array]:
  """Remove hidden units of one MLP.

  Args:
    apply: of a `registry.UnitMethod`.
    sparsity: fraction of the units that leave.
    mlp: its kernels, float32.
    statistics: of the input of `down`.

  Returns:
    The MLP with zeros; its masks; what has to be added to the output of `down`,
    [D], or None; and whether all of it is finite, bool [].
  """
  new = apply(mlp, statistics, sparsity)
  return *new, finite.all_finite((new[0], new[2]))


def statistic_shapes(statistic: str, inputs: int) -> Any:
  """Shapes and dtypes of a statistic of one kernel's inputs.

  Args:
    statistic: a name in `observers.OBSERVERS`.
    inputs: I of the kernel.
  """
  return jax.eval_shape(
    OBSERVERS[statistic].observe,
    jax.ShapeDtypeStruct((1, 1, inputs), np.float32),
  )


def nothing_seen(statistic: str, layer: Tree, key: str, memory: Memory) -> Any:
  """The statistic of no tokens, placed; its shape follows from the kernel.

  Args:
    statistic: a name in `observers.OBSERVERS`.
    layer: the layer.
    key: name of the input on the tape.
    memory: on which devices.
  """
  group, kernel = next(k for k in kernels_of(layer) if KERNEL_INPUTS[k] == key)
  *several, inputs, _ = layer[group][kernel]["kernel"].shape
  return jax.tree.map(
    lambda s: devices.place(
      np.zeros((*several, *s.shape), s.dtype),
      memory.mesh,
      devices.statistic_spec((*several, *s.shape), memory.mesh),
    ),
    statistic_shapes(statistic, inputs),
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def add_statistics(
  config: Config,
  mesh: jax.sharding.Mesh | None,
  statistic: str,
  inputs: tuple[str, ...],
  layer: Tree,
  batch: tuple[jax.Array, jax.Array | None],
  sliding: bool | jax.Array,
  total: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
  """Add the statistics of kernel inputs of one micro-batch.

  Args:
    config: the model.
    mesh: the devices.
    statistic: a name in `observers.OBSERVERS`.
    inputs: names on the tape.
    layer: the layer, float32.
    batch: activations [b, T, D], and bool [b, T] or None where all count.
    sliding: whether its attention slides.
    total: statistics so far by input; given up.

  Returns:
    The statistics by input, and whether each is finite, bool [].
  """
  x_BTD, valid_BT = batch
  _, tape = streaming.run_layer(
    config, layer, x_BTD, sliding, valid_BT=valid_BT, mesh=mesh
  )
  observer = OBSERVERS[statistic]
  routed = experts.inputs_of(config)
  total = {
    key: experts.add(observer, total[key], tape, key, valid_BT)
    if key in routed
    else observer.merge(total[key], observer.observe(tape[key], valid_BT))
    for key in inputs
  }
  total = jax.tree.map(
    lambda leaf: devices.constrain(
      leaf, mesh, devices.statistic_spec(leaf.shape, mesh)
    ),
    total,
  )
  flags = {key: finite.all_finite(total[key]) for key in inputs}
  return total, devices.on_every_device(flags, mesh)


@functools.partial(jax.jit, static_argnums=0)
def measure_error(
  config: Config,
  old: Tree,
  new: Tree,
  x_BTD: jax.Array,
  valid_BT: jax.Array | None,
  sliding: bool | jax.Array,
) -> jax.Array:
  """Mean over kernels of |X(W' - W)|^2 / |XW|^2, float32 [].

  Args:
    config: the model.
    old: the layer as it was, float32.
    new: the pruned layer, of the same shapes.
    x_BTD: activations that enter it.
    valid_BT: bool [b, T], False for padding; None where all tokens count.
    sliding: whether its attention slides.
  """
  _, tape = streaming.run_layer(config, old, x_BTD, sliding, valid_BT=valid_BT)

  def energy(x_BTI, w_IO):
    square_BTO = jnp.square(jnp.einsum("BTI,IO->BTO", x_BTI, w_IO))
    if valid_BT is not None:
      square_BTO = jnp.where(valid_BT[..., None], square_BTO, 0.0)
    return jnp.sum(square_BTO)

  errors = []
  for group, kernel in kernels_of(old):
    key = KERNEL_INPUTS[group, kernel]
    w_IO, new_IO = (tree[group][kernel]["kernel"] for tree in (old, new))
    measure = energy
    if w_IO.ndim == 3:
      measure = lambda _, w_EIO, key=key: experts.energy(tape, key, w_EIO)
    errors.append(
      reconstruction.relative_energy(
        measure(tape[key], new_IO - w_IO), measure(tape[key], w_IO)
      )
    )
  return jnp.mean(jnp.stack(errors))
