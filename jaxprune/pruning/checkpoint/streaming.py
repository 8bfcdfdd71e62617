"""How do calibration tokens pass through a model that is never whole in memory?

The activations of all calibration sequences, in micro-batches, are pushed
through one layer after the other. Only the layer at hand is on the device.

Computed in float32 whatever the dtype of the checkpoint: statistics of half
precision activations overflow, and two runs on different devices would differ
in more than the last bit.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxprune import checkpoints, devices
from jaxprune.models import ModelConfig, decoder

Tree = dict[str, Any]
States = list[Any]  # one [b, T, D] array per micro-batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """How the calibration activations are held.

  Attributes:
    micro_batch: at most so many sequences are pushed through a layer at once;
      the largest number up to this that divides the sequences is used, so
      that every micro-batch has one shape.
    offload: keep the activations on the host between layers.
    mesh: devices, see `placement.make_mesh`; None is the default device.
  """

  micro_batch: int = 8
  offload: bool = False
  mesh: jax.sharding.Mesh | None = None

  def size(self, sequences: int) -> int:
    """Sequences in one micro-batch.

    Raises:
      ValueError: micro_batch below 1, or no size that the mesh can split.
    """
    if self.micro_batch < 1:
      raise ValueError(f"micro_batch is {self.micro_batch}: use 1 or more")
    ways = 1 if self.mesh is None else self.mesh.shape["data"]
    if sequences % ways:
      raise ValueError(
        f"{sequences} calibration sequences cannot be split over data:{ways}:"
        " use a multiple"
      )
    most = max(min(self.micro_batch, sequences), ways)
    return next(
      n for n in range(most, 0, -1) if sequences % n == 0 and n % ways == 0
    )


def check_tokens(config: ModelConfig, tokens: np.ndarray) -> None:
  """Refuse calibration tokens, int [sequences, T], that a model cannot read.

  Raises:
    ValueError: none, longer than the context, or outside the vocabulary.
  """
  if tokens.ndim != 2 or not tokens.size:
    raise ValueError(
      f"calibration tokens have shape {tokens.shape}: give [sequences,"
      " length], neither of them 0"
    )
  if tokens.shape[1] > config.max_positions:
    raise ValueError(
      f"calibration sequences of {tokens.shape[1]} tokens are longer than"
      f" the context of {config.max_positions}: use a smaller seq_len"
    )
  if tokens.min() < 0 or tokens.max() >= config.vocab_size:
    raise ValueError(
      f"calibration tokens go from {tokens.min()} to {tokens.max()}, outside"
      f" the vocabulary of {config.vocab_size}: use the tokenizer of this"
      " checkpoint"
    )


def embedded(
  source: checkpoints.Source, tokens: np.ndarray, memory: Memory
) -> States:
  """The activations before the first layer.

  Args:
    source: an opened checkpoint.
    tokens: int [sequences, T], see `check_tokens`.
    memory: how they are held.

  Returns:
    Micro-batches [b, T, D] float32.
  """
  check_tokens(source.config, tokens)
  table_VD = checkpoints.read_outer(source)["embed"]["table"]
  size = memory.size(len(tokens))
  return [
    place_states(table_VD[tokens[i : i + size]].astype(np.float32), memory)
    for i in range(0, len(tokens), size)
  ]


def place_layer(layer: Tree, memory: Memory) -> Tree:
  """Put a layer that was read from disk on the devices, in float32."""
  return jax.tree.map(lambda leaf: devices.place_leaf(leaf, memory.mesh), layer)


def place_states(x_BTD: Any, memory: Memory) -> Any:
  """Put one micro-batch where the memory plan wants it."""
  if memory.offload:
    return devices.to_host(x_BTD)
  return devices.place_batch(x_BTD, memory.mesh)


def run_layer(
  config: ModelConfig,
  layer: Tree,
  x_BTD: jax.Array,
  sliding: bool | jax.Array,
  gates: tuple[jax.Array, jax.Array] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, Tree]:
  """One layer on whole sequences; returns its output and its tape.

  On a mesh each part of `data` runs its own sequences, by an explicit
  shard_map, because the CPU form of attention loops over sequences; the
  kernels stay split over `model`, which XLA takes care of.
  """

  def run(layer, x_BTD, sliding, gates):
    context = decoder.make_context(config, x_BTD.shape[1])
    attention_gate, mlp_gate = gates or (None, None)
    return decoder.block(
      config,
      layer,
      x_BTD,
      context,
      sliding=sliding,
      attention_gate=attention_gate,
      mlp_gate=mlp_gate,
    )

  if mesh is not None:
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(P(), P("data"), P(), P()),
      out_specs=P("data"),
      axis_names={"data"},
      check_vma=False,
    )
  return run(layer, x_BTD, sliding, gates)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(config, mesh, layer, x_BTD, sliding):
  return run_layer(config, layer, x_BTD, sliding, mesh=mesh)[0]


def advance(
  config: ModelConfig,
  layer: Tree,
  states: States,
  sliding: bool,
  memory: Memory,
) -> None:
  """Push all micro-batches through a layer, replacing them one by one."""
  for i, x_BTD in enumerate(states):
    y_BTD = _advance(
      config,
      memory.mesh,
      layer,
      devices.place_batch(x_BTD, memory.mesh),
      sliding,
    )
    states[i] = place_states(y_BTD, memory)
