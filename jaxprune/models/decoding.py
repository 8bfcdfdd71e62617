"""What does a step read? Prefill, one step, and the cache between them.

The cache keeps for every slot, the order of arrival, which position it has and
whether a token is there. Neither is read off keys or values, so that a layer
whose attention is dropped, the first one too, changes nothing for the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import decoder, decoder_layer
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import Context, context_at, positions_of
from jaxprune.models.parts import Gates, Intermediates, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """What later tokens read of earlier ones.

  Attributes:
    key: [L, B, S, K, H], or a tuple of L arrays [B, S, K, H] when the layers
      of the parameters are a tuple.
    value: of the same form.
    positions: int32 [B, S], the angle of the token in each slot.
    valid: bool [B, S], False for padding and for slots not yet written.
    length: int32 scalar, slots written.
  """

  key: Any
  value: Any
  positions: jax.Array
  valid: jax.Array
  length: jax.Array


def unstack(params: Params) -> Params:
  """Parameters whose layers are a tuple of L trees, the form to decode with.

  On a single CPU device the layers are views of the stacked arrays, so there
  is one copy of the weights; elsewhere they are copies.
  """
  layers = params["layers"]
  if isinstance(layers, tuple):
    return params
  count = len(jax.tree.leaves(layers)[0])
  views = jax.tree.map(_pieces, layers)
  return {
    **params,
    "layers": tuple(
      jax.tree.map(
        lambda pieces, index=index: pieces[index],
        views,
        is_leaf=lambda node: isinstance(node, list),
      )
      for index in range(count)
    ),
  }


def prefill(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
  *,
  capacity: int,
  valid_BT: jax.Array | None = None,
  gates: Gates | None = None,
  observe: Callable[[Intermediates], Any] | None = None,
) -> tuple[jax.Array, Any, Cache]:
  """Read the prompts and fill a cache.

  Args:
    config: the model.
    params: its parameters, layers stacked or a tuple (`unstack`).
    tokens_BT: int [B, T], padded on the left.
    capacity: S, slots of the cache; at least T.
    valid_BT: bool [B, T], False for padding. None: every token is real.
    gates: which sublayers stay; None is all.
    observe: from the intermediates of one `Block` to a pytree of arrays.

  Returns:
    The residual after the last layer, before the final norm, [B, T, D]; what
    `observe` returned, stacked on L ({} without); the cache.

  Raises:
    ValueError: the prompt is longer than the cache.
  """
  batch, length = tokens_BT.shape
  if length > capacity:
    raise ValueError(
      f"capacity={capacity}: must be at least the prompt's {length} tokens"
    )

  def both(out):
    return (out["key"], out["value"]), ({} if observe is None else observe(out))

  x_BTD, (written, observed) = decoder.forward(
    config, params, tokens_BT, valid_BT=valid_BT, gates=gates, observe=both
  )
  spare = capacity - length
  key, value = (
    jnp.pad(a, ((0, 0), (0, 0), (0, spare), (0, 0), (0, 0))) for a in written
  )
  if isinstance(params["layers"], tuple):
    key, value = tuple(key), tuple(value)
  if valid_BT is None:
    valid_BT = jnp.ones((batch, length), bool)
  positions_BT = positions_of(length, valid_BT)
  row = ((0, 0), (0, spare))
  return (
    x_BTD,
    observed,
    Cache(
      key=key,
      value=value,
      positions=jnp.pad(positions_BT, row),
      valid=jnp.pad(valid_BT, row),
      length=jnp.asarray(length, jnp.int32),
    ),
  )


def step_back(cache: Cache) -> Cache:
  """The cache before its newest slot, so that a step reads that token again.

  The keys before it keep the rotation of a pass that knew the token.
  """
  last = cache.length - 1
  return dataclasses.replace(
    cache, valid=cache.valid.at[:, last].set(False), length=last
  )


def decode_step(
  config: ModelConfig,
  params: Params,
  cache: Cache,
  tokens_BT: jax.Array,
  *,
  gates: Gates | None = None,
  observe: Callable[[Intermediates], Any] | None = None,
) -> tuple[jax.Array, Any, Cache]:
  """Read the next tokens of every row, one or several.

  Args:
    config: the model.
    params: its parameters in the form `prefill` had, stacked or a tuple.
    cache: what came before. There must be room: writing past the end is not
      noticed under jit.
    tokens_BT: int [B, T], all of them real.
    gates: which sublayers stay; None is all.
    observe: from the intermediates of one `Block` to a pytree of arrays.

  Returns:
    The residual after the last layer, before the final norm, [B, T, D]; what
    `observe` returned, stacked on L ({} without); the cache with these tokens.
  """
  batch, length = tokens_BT.shape
  slots_T = cache.length + jnp.arange(length, dtype=jnp.int32)
  seen_B = jnp.sum(cache.valid, axis=1, dtype=jnp.int32)
  positions_BT = seen_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]

  def write(old_BS, new_BT):
    return jax.lax.dynamic_update_slice_in_dim(
      old_BS, new_BT, cache.length, axis=1
    )

  positions_BS = write(cache.positions, positions_BT)
  valid_BS = write(cache.valid, jnp.ones((batch, length), bool))
  context = context_at(config, positions_BT, slots_T, positions_BS, valid_BS)

  x_BTD, observed, written = read_with_cache(
    config,
    params,
    tokens_BT,
    context,
    (cache.key, cache.value),
    gates=gates,
    observe=observe,
  )
  return (
    x_BTD,
    observed,
    Cache(
      key=written[0],
      value=written[1],
      positions=positions_BS,
      valid=valid_BS,
      length=cache.length + length,
    ),
  )


def read_with_cache(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
  context: Context,
  cache: tuple[Any, Any],
  *,
  gates: Gates | None = None,
  observe: Callable[[Intermediates], Any] | None = None,
) -> tuple[jax.Array, Any, tuple[Any, Any]]:
  """Run the layers on tokens that also read keys of before.

  Args:
    config: the model.
    params: its parameters, layers stacked or a tuple (`unstack`).
    tokens_BT: int [B, T].
    context: where the tokens stand, and which keys they may read.
    cache: keys and values, see `Cache`.
    gates: which sublayers stay; None is all.
    observe: from the intermediates of one `Block` to a pytree of arrays.

  Returns:
    The residual after the last layer, before the final norm, [B, T, D]; what
    `observe` returned, stacked on L ({} without); keys and values with those
    of these tokens.
  """

  def body(x_BTD, inputs):
    layer, options, old = inputs
    x_BTD, out = decoder_layer.block(
      config, layer, x_BTD, context, cache=old, **options
    )
    new = out.pop("cache")
    return x_BTD, (new, {} if observe is None else observe(out))

  layers = params["layers"]
  each = tuple(zip(*cache)) if isinstance(layers, tuple) else cache
  x_BTD = decoder.embed(config, params, tokens_BT, context.positions)
  x_BTD, output = decoder.over_layers(config, layers, x_BTD, body, gates, each)
  if not isinstance(layers, tuple):
    written, observed = output
    return x_BTD, observed, written
  pairs, observed = zip(*output)
  observed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *observed)
  return x_BTD, observed, tuple(zip(*pairs))


def _pieces(stacked):
  """The L parts of an array stacked on L; views of it on one CPU device."""
  device = next(iter(stacked.devices()))
  if device.platform != "cpu" or len(stacked.devices()) > 1:
    return list(stacked)
  return [jax.device_put(view, device) for view in np.asarray(stacked)]
