"""What does the model compute? One decoder for every family, as functions.

`forward` scans `block` over layers that are stacked on L. Which sublayers stay
(`Gates`) and which layers slide are inputs of the scan, so that candidates can
be vmapped and differentiated without a new compilation. Every block returns the
inputs of its kernels (the tape); `observe` reduces a tape inside the scan, so
that nothing of its size is ever kept for all layers.

Parameters are a nested dict, kernels [I, O]:
  embed/table [V, D]; final_norm/scale [D]; head/kernel [D, V] unless tied;
  layers/attention_norm/scale [L, D]; layers/mlp_norm/scale [L, D];
  layers/attention/{query [L, D, N*H], key, value [L, D, K*H],
    output [L, N*H, D]}/kernel, and /bias [L, O] where the family has one;
  layers/attention/{query_norm, key_norm}/scale [L, H] with qk_norm;
  layers/mlp/{gate, up [L, D, F], down [L, F, D]}/kernel, and /bias.
A `layer` is the tree under layers/ without the leading L.
Beside a kernel may stand a change of it, `delta` [L, I, O] and `delta_bias`
[L, O], and the `share` [L, T] or [L, 1] of it that each position applies.

Reference: Llama 2, arXiv:2307.09288; RMSNorm, arXiv:1910.07467; SwiGLU,
arXiv:2002.05202; the modelling files of transformers 5.
Differs from the reference in: norms, softmax, RoPE and logits are float32
whatever the dtype of the parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprune.models import attention, rope
from jaxprune.models.config import ModelConfig

Params = Mapping[str, Any]
Tape = dict[str, jax.Array]

KERNELS = (
  ("attention", "query"),
  ("attention", "key"),
  ("attention", "value"),
  ("attention", "output"),
  ("mlp", "gate"),
  ("mlp", "up"),
  ("mlp", "down"),
)

# Rows of a kernel's input that a CPU multiplies at a time.
_ROWS = 512

# At most so many rows meet a tied head the other way round on a CPU.
_FEW_ROWS = 32

# Where on the tape the input of each kernel is.
KERNEL_INPUTS = {
  ("attention", "query"): "attention_in",
  ("attention", "key"): "attention_in",
  ("attention", "value"): "attention_in",
  ("attention", "output"): "output_in",
  ("mlp", "gate"): "mlp_in",
  ("mlp", "up"): "mlp_in",
  ("mlp", "down"): "down_in",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
  """Which sublayers stay: 1 stays, 0 is dropped, between is between.

  Attributes:
    attention: float32 [L].
    mlp: float32 [L].
  """

  attention: jax.Array
  mlp: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
  """What all layers of one pass share.

  Attributes:
    positions: int32 [B or 1, T], the angle of each token.
    cos: float32 [B or 1, T, H/2].
    sin: float32 [B or 1, T, H/2].
    slots: int32 [T], the order of arrival of each token.
    key_positions: int32 [B or 1, S]; of the cache when there is one.
    key_valid: bool [B, S], False for padding and for slots not yet written;
      None when every key is a token.
  """

  positions: jax.Array
  cos: jax.Array
  sin: jax.Array
  slots: jax.Array
  key_positions: jax.Array
  key_valid: jax.Array | None


def make_gates(config: ModelConfig, *, attention=(), mlp=()) -> Gates:
  """Close the named sublayers, leave the others open.

  Args:
    config: the model.
    attention: indices of layers whose attention is dropped.
    mlp: indices of layers whose MLP is dropped.

  Raises:
    ValueError: an index is not a layer of the model.
  """

  def gate_L(dropped):
    for index in dropped:
      if not 0 <= index < config.num_layers:
        raise ValueError(
          f"layer {index} to drop: layers go from 0 to {config.num_layers - 1}"
        )
    return jnp.asarray(
      [float(index not in dropped) for index in range(config.num_layers)],
      jnp.float32,
    )

  return Gates(attention=gate_L(tuple(attention)), mlp=gate_L(tuple(mlp)))


def make_context(
  config: ModelConfig, length: int, valid_BT: jax.Array | None = None
) -> Context:
  """The context of a pass without a cache.

  Args:
    config: the model.
    length: T.
    valid_BT: bool [B, T], False for padding. None: every token is real.

  Returns:
    Positions count the valid tokens, so left padding does not shift them.
  """
  slots_T = jnp.arange(length, dtype=jnp.int32)
  if valid_BT is None:
    positions_BT = slots_T[None]
  else:
    positions_BT = jnp.maximum(
      jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1, 0
    )
  cos_BTH, sin_BTH = rope.angles(config, positions_BT)
  return Context(
    positions=positions_BT,
    cos=cos_BTH,
    sin=sin_BTH,
    slots=slots_T,
    key_positions=positions_BT,
    key_valid=valid_BT,
  )


def embed(
  config: ModelConfig, params: Params, tokens_BT: jax.Array
) -> jax.Array:
  """Look tokens up: int [B, T] to [B, T, D] in the dtype of the table."""
  del config
  return params["embed"]["table"][tokens_BT]


def final_norm(
  config: ModelConfig, params: Params, x_BTD: jax.Array
) -> jax.Array:
  """The norm before the head; keeps shape and dtype."""
  return _norm(x_BTD, params["final_norm"]["scale"], config.norm_eps)


def unembed(
  config: ModelConfig,
  params: Params,
  x_BTD: jax.Array,
  lens: str = "final_norm",
) -> jax.Array:
  """Logits of a residual.

  Args:
    config: the model.
    params: the model's parameters; `layers` is not read.
    x_BTD: residual [..., D].
    lens: 'final_norm' applies the model's last norm first, 'raw' does not.

  Returns:
    float32 [..., V].

  Raises:
    ValueError: another lens.
  """
  if lens == "final_norm":
    x_BTD = final_norm(config, params, x_BTD)
  elif lens != "raw":
    raise ValueError(f"lens={lens!r}: must be 'final_norm' or 'raw'")
  if config.tie_embeddings:
    return _times_table(params["embed"]["table"], x_BTD)
  return jnp.einsum(
    "...D,DV->...V",
    x_BTD,
    params["head"]["kernel"],
    preferred_element_type=jnp.float32,
  )


def _times_table(table_VD, x_BTD):
  """Products with every row of the embedding table, float32 [..., V]."""
  rows = math.prod(x_BTD.shape[:-1])
  if jax.default_backend() == "cpu" and 1 < rows <= _FEW_ROWS:
    # A CPU multiplies few rows from the right, with the table as it lies, up to
    # three times as fast; the barrier keeps the compiler from turning it round.
    z_VR = jnp.einsum(
      "VD,RD->VR",
      table_VD,
      x_BTD.reshape(rows, -1),
      preferred_element_type=jnp.float32,
    )
    return jax.lax.optimization_barrier(z_VR).T.reshape(*x_BTD.shape[:-1], -1)
  return jnp.einsum(
    "...D,VD->...V", x_BTD, table_VD, preferred_element_type=jnp.float32
  )


def block(
  config: ModelConfig,
  layer: Params,
  x_BTD: jax.Array,
  context: Context,
  *,
  sliding: bool | jax.Array,
  attention_gate: jax.Array | None = None,
  mlp_gate: jax.Array | None = None,
  cache: tuple[jax.Array, jax.Array] | None = None,
):
  """One layer: attention and MLP, each added to the residual.

  Args:
    config: the model.
    layer: parameters of this layer.
    x_BTD: residual [B, T, D].
    context: from `make_context`, or a cached pass's.
    sliding: whether this layer slides, `config.sliding_layers[index]`; may be
      traced.
    attention_gate: scalar factor on what attention adds; None is 1.
    mlp_gate: scalar factor on what the MLP adds; None is 1.
    cache: keys and values [B, S, K, H] of this layer; those of this pass are
      written at `context.slots`.

  Returns:
    The residual [B, T, D] and the tape: residual_in [B, T, D], attention_in
    [B, T, D] (input of query, key, value), output_in [B, T, N*H], residual_mid
    [B, T, D], mlp_in [B, T, D] (input of gate, up), down_in [B, T, F],
    residual_out [B, T, D], key and value [B, T, K, H] as a cache holds them.
    With a cache also the cache as it is now.
  """
  tape = {"residual_in": x_BTD}
  eps = config.norm_eps
  weights = layer["attention"]
  y_BTD = tape["attention_in"] = _norm(
    x_BTD, layer["attention_norm"]["scale"], eps
  )
  query_BTNH = _split_heads(_project(weights["query"], y_BTD), config)
  key_BTKH = _split_heads(_project(weights["key"], y_BTD), config)
  value_BTKH = _split_heads(_project(weights["value"], y_BTD), config)
  if config.qk_norm:
    query_BTNH = _norm(query_BTNH, weights["query_norm"]["scale"], eps)
    key_BTKH = _norm(key_BTKH, weights["key_norm"]["scale"], eps)
  query_BTNH = rope.rotate(query_BTNH, context.cos, context.sin)
  key_BTKH = rope.rotate(key_BTKH, context.cos, context.sin)
  tape["key"], tape["value"] = key_BTKH, value_BTKH
  if cache is None:
    key_slots_S = context.slots
  else:
    key_BTKH, value_BTKH = cache = tuple(
      jax.lax.dynamic_update_slice_in_dim(
        old_BSKH, new_BTKH.astype(old_BSKH.dtype), context.slots[0], axis=1
      )
      for old_BSKH, new_BTKH in zip(cache, (key_BTKH, value_BTKH))
    )
    key_slots_S = jnp.arange(key_BTKH.shape[1], dtype=jnp.int32)
  mask_BTS = attention.allowed(
    context.slots,
    key_slots_S,
    context.positions,
    context.key_positions,
    context.key_valid,
    config.sliding_window,
    sliding,
  )
  attend = _attention_form(x_BTD.shape[1], cache is not None)
  read_BTNH = attend(query_BTNH, key_BTKH, value_BTKH, mask_BTS)
  z_BTO = tape["output_in"] = read_BTNH.reshape(*x_BTD.shape[:2], -1)
  x_BTD = x_BTD + _gated(_project(weights["output"], z_BTO), attention_gate)
  tape["residual_mid"] = x_BTD

  weights = layer["mlp"]
  y_BTD = tape["mlp_in"] = _norm(x_BTD, layer["mlp_norm"]["scale"], eps)
  h_BTF = tape["down_in"] = nn.silu(_project(weights["gate"], y_BTD)) * (
    _project(weights["up"], y_BTD)
  )
  x_BTD = x_BTD + _gated(_project(weights["down"], h_BTF), mlp_gate)
  tape["residual_out"] = x_BTD
  return (x_BTD, tape) if cache is None else (x_BTD, tape, cache)


def forward(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
  *,
  valid_BT: jax.Array | None = None,
  gates: Gates | None = None,
  observe: Callable[[Tape], Any] | None = None,
) -> tuple[jax.Array, Any]:
  """Run all layers without a cache.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].
    valid_BT: bool [B, T], False for padding. None: every token is real.
    gates: which sublayers stay; None is all.
    observe: from the tape of one layer to a pytree of arrays, called inside the
      scan over layers.

  Returns:
    The residual after the last layer, BEFORE the final norm, [B, T, D], and
    what `observe` returned, stacked on L ({} without).
  """
  context = make_context(config, tokens_BT.shape[1], valid_BT)

  def body(x_BTD, inputs):
    layer, options, _ = inputs
    x_BTD, tape = _by_rows(
      functools.partial(block, config, layer, **options), x_BTD, context
    )
    return x_BTD, {} if observe is None else observe(tape)

  x_BTD, observed = over_layers(
    config, params["layers"], embed(config, params, tokens_BT), body, gates
  )
  if isinstance(params["layers"], tuple):
    observed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *observed)
  return x_BTD, observed


def over_layers(
  config: ModelConfig,
  layers: Params | tuple[Params, ...],
  carry: Any,
  body: Callable[[Any, Any], tuple[Any, Any]],
  gates: Gates | None = None,
  each: Any = None,
) -> tuple[Any, Any]:
  """Run `body` on the layers in order: a scan, or a loop over a tuple.

  A scan compiles one layer for all of them, and copies its weights out of the
  stack. A tuple of layers (`unstack`) compiles each in its place and copies
  nothing, which pays where little else is done with the weights: decoding.

  Args:
    config: the model.
    layers: stacked on L, or a tuple of L layers.
    carry: what `body` takes and returns, the residual for instance.
    body: (carry, (layer, options, part of `each`)) -> (carry, output), where
      `options` are keyword arguments of `block`: sliding and gates.
    gates: which sublayers stay; None is all.
    each: more input per layer: stacked like the layers, or a tuple like them.

  Returns:
    The last carry and the outputs stacked on L, or a tuple of them.
  """
  if not isinstance(layers, tuple):
    return jax.lax.scan(
      lambda carry, xs: body(
        carry, (xs[0], layer_options(config, xs[1], xs[2]), xs[3])
      ),
      carry,
      (layers, jnp.asarray(config.sliding_layers), gates, each),
    )
  outputs = []
  for index, layer in enumerate(layers):
    gate = jax.tree.map(lambda gate_L: gate_L[index], gates)
    carry, output = body(
      carry,
      (
        layer,
        layer_options(config, config.sliding_layers[index], gate),
        None if each is None else each[index],
      ),
    )
    outputs.append(output)
  return carry, tuple(outputs)


class Decoder(nn.Module):
  """The decoder as a Flax module: declares parameters, computes by `forward`.

  Attributes:
    config: the model.
    dtype: of the parameters.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens_BT, **options):
    """See `forward`."""
    params = {
      name: self.param(name, _initial, shapes, self.dtype)
      for name, shapes in _shapes(self.config).items()
    }
    return forward(self.config, params, tokens_BT, **options)


def init(
  config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32
) -> Params:
  """Random parameters: normal kernels of deviation 0.02, no bias, unit scales.

  `jax.eval_shape` of this gives the tree without the memory.
  """
  tokens_BT = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config, dtype).init(key, tokens_BT)["params"]


def layer_options(config, sliding, gate):
  """Keyword arguments of `block` for one layer of a scan."""
  if not any(config.sliding_layers):
    sliding = False
  elif all(config.sliding_layers):
    sliding = True
  if gate is None:
    return dict(sliding=sliding)
  return dict(sliding=sliding, attention_gate=gate.attention, mlp_gate=gate.mlp)


def _by_rows(run, x_BTD, context):
  """`run(x_BTD, context)`, on a CPU a few sequences after the other.

  Small intermediates stay in its cache and in memory that is already mapped.
  """
  batch, length = x_BTD.shape[:2]
  size = max(
    size
    for size in range(1, batch + 1)
    if batch % size == 0 and size <= max(1, _ROWS // length)
  )
  if size == batch or jax.default_backend() != "cpu":
    return run(x_BTD, context)

  def split(a_B):
    return a_B.reshape(batch // size, size, *a_B.shape[1:])

  def piece(inputs):
    x_BTD, rows = inputs
    return run(x_BTD, dataclasses.replace(context, **rows))

  rows = (
    {}
    if context.key_valid is None
    else {
      name: split(getattr(context, name))
      for name in ("positions", "cos", "sin", "key_positions", "key_valid")
    }
  )
  return jax.tree.map(
    lambda a: a.reshape(batch, *a.shape[2:]),
    jax.lax.map(piece, (split(x_BTD), rows)),
  )


def _attention_form(length, cached):
  """The form of attention that this platform runs fastest."""
  if jax.default_backend() != "cpu":
    return attention.plain
  if cached:
    return attention.single if length == 1 else attention.plain
  return attention.chunked


def _norm(x_BTD, scale_D, eps):
  """Divide by the root mean square over the last axis, in float32."""
  x32_BTD = x_BTD.astype(jnp.float32)
  mean_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
  y_BTD = (
    x32_BTD
    * jax.lax.rsqrt(mean_BT1 + eps)
    * jax.lax.broadcast_in_dim(
      scale_D.astype(jnp.float32), x_BTD.shape, (x_BTD.ndim - 1,)
    )
  )
  return y_BTD.astype(x_BTD.dtype)


def _project(dense, x_BTI):
  """Kernel and bias, if there is one, and a share of a change of both."""
  y_BTO = jnp.einsum("BTI,IO->BTO", x_BTI, dense["kernel"])
  if "bias" in dense:
    y_BTO = y_BTO + dense["bias"][None, None]
  if "delta" not in dense:
    return y_BTO
  change_BTO = jnp.einsum("BTI,IO->BTO", x_BTI, dense["delta"])
  if "delta_bias" in dense:
    change_BTO = change_BTO + dense["delta_bias"][None, None]
  share_1T1 = dense["share"].astype(y_BTO.dtype)[None, :, None]
  return y_BTO + share_1T1 * change_BTO


def _split_heads(x_BTO, config):
  return x_BTO.reshape(*x_BTO.shape[:2], -1, config.head_dim)


def _gated(x_BTD, gate):
  return x_BTD if gate is None else x_BTD * gate.astype(x_BTD.dtype)


def _shapes(config):
  """The tree of parameter shapes."""
  L, D, F = config.num_layers, config.embed_dim, config.mlp_dim
  query, key = (
    heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads)
  )

  def dense(inputs, outputs, bias):
    shapes = {"kernel": (L, inputs, outputs)}
    return {**shapes, "bias": (L, outputs)} if bias else shapes

  attention_shapes = {
    "query": dense(D, query, config.qkv_bias),
    "key": dense(D, key, config.qkv_bias),
    "value": dense(D, key, config.qkv_bias),
    "output": dense(query, D, config.output_bias),
  }
  if config.qk_norm:
    for name in ("query_norm", "key_norm"):
      attention_shapes[name] = {"scale": (L, config.head_dim)}
  shapes = {
    "embed": {"table": (config.vocab_size, D)},
    "final_norm": {"scale": (D,)},
    "layers": {
      "attention_norm": {"scale": (L, D)},
      "attention": attention_shapes,
      "mlp_norm": {"scale": (L, D)},
      "mlp": {
        "gate": dense(D, F, config.mlp_bias),
        "up": dense(D, F, config.mlp_bias),
        "down": dense(F, D, config.mlp_bias),
      },
    },
  }
  if not config.tie_embeddings:
    shapes["head"] = {"kernel": (D, config.vocab_size)}
  return shapes


def _initial(key, shapes, dtype):
  """Parameters for one branch of the tree of shapes."""
  leaves, tree = jax.tree.flatten_with_path(
    shapes, is_leaf=lambda node: isinstance(node, tuple)
  )
  keys = jax.random.split(key, len(leaves))
  values = []
  for leaf_key, (path, shape) in zip(keys, leaves):
    name = path[-1].key
    if name == "scale":
      values.append(jnp.ones(shape, dtype))
    elif name == "bias":
      values.append(jnp.zeros(shape, dtype))
    else:
      values.append(0.02 * jax.random.normal(leaf_key, shape, dtype))
  return jax.tree.unflatten(tree, values)
