"""How do calibration tokens pass through a model that is never whole in memory?

The activations of all calibration sequences, in micro-batches, are pushed
through one layer after the other. Only that layer is on the device.

Computed in float32 whatever the dtype of the checkpoint: statistics of half
precision activations overflow, and two runs on different devices would differ
in more than the last bit.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxprune import checkpoints, devices
from jaxprune.calibration import tokens as tokens_lib
from jaxprune.models import (
  EncoderConfig,
  ModelConfig,
  decoder,
  decoder_layer,
  encoder,
)
from jaxprune.models.vocabulary import check_ids

Tree = dict[str, Any]
Config = ModelConfig | EncoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PaddedTokens:
  """Calibration sequences of unequal length, for encoders.

  Attributes:
    ids: int [sequences, T].
    valid: bool [sequences, T], False for padding, which counts in no statistic.
  """

  ids: np.ndarray
  valid: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)


Tokens = np.ndarray | PaddedTokens


@dataclasses.dataclass(kw_only=True, eq=False)
class States:
  """The calibration activations that enter a layer, in micro-batches.

  Attributes:
    batches: [b, T, D] float32 each, replaced as they pass through a layer.
    valid: bool [b, T] each, False for padding; None each where all tokens
      count.
  """

  batches: list[Any]
  valid: list[Any]

  def __iter__(self) -> Iterator[tuple[Any, Any]]:
    return iter(zip(self.batches, self.valid, strict=True))


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


def token_hash(tokens: Tokens) -> str:
  """Hash tokens, and what of them is padding.

  Args:
    tokens: int [sequences, T], or with padding.

  Returns:
    Hexadecimal sha256.
  """
  if not isinstance(tokens, PaddedTokens):
    return tokens_lib.token_hash(tokens)
  return tokens_lib.token_hash(np.stack([tokens.ids, tokens.valid]))


def check_tokens(config: Config, tokens: Tokens) -> None:
  """Refuse calibration tokens that a model cannot read.

  Args:
    config: the model.
    tokens: int [sequences, T], or with padding.

  Raises:
    ValueError: none, longer than the context, or outside the vocabulary;
      padding for a decoder, of another shape, or of a whole sequence.
  """
  padded = tokens if isinstance(tokens, PaddedTokens) else None
  tokens = tokens if padded is None else padded.ids
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
  check_ids(tokens, config.vocab_size, "calibration")
  if padded is not None:
    _check_padding(config, padded)


def _check_padding(config, tokens):
  """Refuse a mask of padding of another shape, or one that hides a sequence."""
  if not isinstance(config, EncoderConfig):
    raise ValueError(
      f"a model of family {config.family} is no encoder: give calibration"
      " sequences of one length, without padding"
    )
  ids, valid = tokens.ids, tokens.valid
  if valid.shape != ids.shape or not valid.any(axis=1).all():
    raise ValueError(
      f"valid has shape {valid.shape} for tokens {ids.shape}: give the same,"
      " with a token that counts in every sequence"
    )


def is_sliding(config: Config, index: int) -> bool:
  """Whether the attention of a layer slides; never in an encoder.

  Args:
    config: the model.
    index: of the layer.
  """
  return config.sliding_layers[index] if _decodes(config) else False


def _decodes(config) -> bool:
  return isinstance(config, ModelConfig)


def embedded(
  source: checkpoints.Source, tokens: Tokens, memory: Memory
) -> States:
  """The activations before the first layer of a checkpoint.

  Args:
    source: an opened checkpoint, of which the layers are not read.
    tokens, memory: see `embed_tokens`, which says what comes back.
  """
  return embed_tokens(
    source.config, checkpoints.read_outer(source), tokens, memory
  )


def embed_tokens(
  config: Config, outer: Tree, tokens: Tokens, memory: Memory
) -> States:
  """The activations before the first layer of a model in memory.

  Args:
    config: the model.
    outer: its parameters; those of the layers may be absent.
    tokens: int [sequences, T], or with padding; see `check_tokens`.
    memory: how they are held.

  Returns:
    Micro-batches [b, T, D] float32.

  Raises:
    ValueError: tokens that the model cannot read.
  """
  check_tokens(config, tokens)
  if _decodes(config):
    tables = {k: np.asarray(v) for k, v in outer["embed"].items()}
    embed = functools.partial(_look_up, config, tables)
  else:
    outer = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), outer)
    embed = functools.partial(_embed, config, outer)
  batches, valid = _cut(config, tokens, memory)
  return States(
    batches=[place_states(embed(ids), memory) for ids in batches], valid=valid
  )


def _cut(config, tokens, memory):
  """Micro-batches of tokens, and of what counts in them."""
  padded = isinstance(tokens, PaddedTokens)
  ids = tokens.ids if padded else tokens
  size = memory.size(len(tokens))
  starts = range(0, len(ids), size)
  batches = [ids[i : i + size] for i in starts]
  if _decodes(config):
    return batches, [None] * len(batches)
  valid = tokens.valid if padded else np.ones(ids.shape, bool)
  return batches, [valid[i : i + size] for i in starts]


def _look_up(config, embed, tokens_BT):
  """What `decoder.embed` gives, of tables that stay on the host."""
  x_BTD = embed["table"][tokens_BT].astype(np.float32)
  x_BTD *= np.float32(config.embedding_scale)
  if config.num_position_rows:
    begin, length = config.position_offset, tokens_BT.shape[1]
    x_BTD += embed["positions"][begin : begin + length].astype(np.float32)
  return x_BTD


@functools.partial(jax.jit, static_argnums=0)
def _embed(config, outer, tokens_BT):
  return encoder.embed(config, outer, tokens_BT)


def shapes_of_states(config: Config, tokens: Tokens, memory: Memory) -> States:
  """What `embedded` gives, as shapes with the placement that they have.

  Args:
    config: the model.
    tokens: int [sequences, T], or with padding.
    memory: how they are held.

  Returns:
    States of `jax.ShapeDtypeStruct`, or of empty arrays where activations are
    kept on the host.
  """
  batches, valid = _cut(config, tokens, memory)

  def shape(tokens_BT):
    shape_BTD = (*tokens_BT.shape, config.embed_dim)
    if memory.offload:
      return np.empty(shape_BTD, np.float32)
    return jax.ShapeDtypeStruct(
      shape_BTD, np.float32, sharding=devices.batch_sharding(memory.mesh)
    )

  return States(batches=[shape(ids) for ids in batches], valid=valid)


def place_layer(layer: Tree, memory: Memory) -> Tree:
  """Put a layer that was read from disk on the devices, in float32.

  Args:
    layer: of `checkpoints.read_layer`.
    memory: on which devices.
  """
  return jax.tree.map(lambda leaf: devices.place_leaf(leaf, memory.mesh), layer)


def place_states(x_BTD: Any, memory: Memory) -> Any:
  """Put one micro-batch where the memory plan wants it.

  Args:
    x_BTD: [b, T, D].
    memory: how activations are held.
  """
  if memory.offload:
    return devices.to_host(x_BTD)
  return devices.place_batch(x_BTD, memory.mesh)


def run_layer(
  config: Config,
  layer: Tree,
  x_BTD: jax.Array,
  sliding: bool | jax.Array,
  *,
  valid_BT: jax.Array | None = None,
  gates: tuple[jax.Array, jax.Array] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, Tree]:
  """One layer of a decoder or an encoder on whole sequences.

  On a mesh each part of `data` runs its own sequences, by an explicit
  shard_map, because the CPU form of attention loops over sequences; the
  kernels stay split over `model`, which XLA takes care of.

  Args:
    config: the model.
    layer: the layer, float32.
    x_BTD: what enters it, [B, T, D].
    sliding: whether its attention slides.
    valid_BT: bool [B, T], False for padding; None where all tokens count, as
      they must for a decoder.
    gates: what the outputs of attention and MLP are multiplied by; None is 1.
    mesh: the devices.

  Returns:
    The output, [B, T, D], and the tape of the layer.
  """

  def run(layer, x_BTD, sliding, gates):
    options = dict(zip(("attention_gate", "mlp_gate"), gates or ()))
    if not _decodes(config):
      return encoder.block(config, layer, x_BTD, valid_BT, **options)
    context = decoder.make_context(config, x_BTD.shape[1])
    return decoder_layer.block(
      config, layer, x_BTD, context, sliding=sliding, **options
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
def advance_batch(
  config: Config,
  mesh: jax.sharding.Mesh | None,
  layer: Tree,
  x_BTD: jax.Array,
  valid_BT: jax.Array | None,
  sliding: bool | jax.Array,
) -> jax.Array:
  """Push one micro-batch through a layer.

  Args:
    config: the model.
    mesh: the devices.
    layer: the layer, float32.
    x_BTD: [b, T, D].
    valid_BT: bool [b, T], False for padding; None where all tokens count.
    sliding: whether its attention slides.

  Returns:
    [b, T, D].
  """
  y_BTD, _ = run_layer(
    config, layer, x_BTD, sliding, valid_BT=valid_BT, mesh=mesh
  )
  return devices.constrain(y_BTD, mesh, P("data"))


def advance(
  config: Config, layer: Tree, states: States, sliding: bool, memory: Memory
) -> None:
  """Push all micro-batches through a layer, replacing them one by one.

  Args:
    config: the model.
    layer: the layer, float32.
    states: the activations that enter it, and then those that leave it.
    sliding: whether its attention slides.
    memory: how they are held.
  """
  for i, (x_BTD, valid_BT) in enumerate(states):
    y_BTD = advance_batch(
      config,
      memory.mesh,
      layer,
      devices.place_batch(x_BTD, memory.mesh),
      valid_BT,
      sliding,
    )
    states.batches[i] = place_states(y_BTD, memory)
