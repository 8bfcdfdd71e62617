"""What does one layer of the decoder do, or a part of it?

`Block` of `blocks`, applied to the parameters of one layer: for code that walks
over the layers by itself, or writes a part of a layer anew.
"""

from typing import Any

import jax

from jaxprune.models.blocks import Block
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import Context
from jaxprune.models.parts import Intermediates, Params


def block(
  config: ModelConfig,
  layer: Params,
  x_BTD: jax.Array,
  context: Context,
  **options: Any,
) -> tuple[jax.Array, Intermediates]:
  """One layer: `Block` on its parameters.

  Args:
    config: the model.
    layer: parameters of this layer.
    x_BTD: residual [B, T, D].
    context: from `make_context`, or a cached pass's.
    **options: `sliding`, the two gates and `cache` of `Block`.

  Returns:
    The residual [B, T, D] and its intermediates, see `Block`.
  """
  return _apply_block(config, layer, x_BTD, context, **options)


def heads(
  config: ModelConfig,
  layer: Params,
  x_BTD: jax.Array,
  context: Context,
  *,
  sliding: bool | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What one layer's attention compares and reads, for attention written anew.

  Args:
    config: the model.
    layer: parameters of this layer.
    x_BTD: residual [B, T, D].
    context: whose angles are those of these T positions.
    sliding: whether this layer slides; may be traced.

  Returns:
    Queries [B, T, N, H], keys and values [B, T, K, H] as a cache holds them.
  """
  return _apply_block(
    config, layer, x_BTD, context, sliding=sliding, method="heads"
  )


def attention_output(
  config: ModelConfig, layer: Params, read_BTNH: jax.Array
) -> jax.Array:
  """What attention adds to the residual, given what its heads read.

  Args:
    config: the model.
    layer: parameters of this layer.
    read_BTNH: [B, T, N, H].

  Returns:
    [B, T, D].
  """
  return _apply_block(config, layer, read_BTNH, method="attention_output")


def mlp_output(
  config: ModelConfig, layer: Params, x_BTD: jax.Array, mid_BTD: jax.Array
) -> jax.Array:
  """What the MLP of one layer adds to the residual, [B, T, D].

  Args:
    config: the model.
    layer: parameters of this layer.
    x_BTD: residual before the layer, [B, T, D]; read with `parallel_residual`.
    mid_BTD: residual that attention was added to, [B, T, D]; read without.
  """
  return _apply_block(config, layer, x_BTD, mid_BTD, method="mlp_output")


def _apply_block(config, layer, *inputs, method=None, **options):
  return Block(config, parent=None).apply(
    {"params": layer}, *inputs, method=method, **options
  )
