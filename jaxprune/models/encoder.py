"""What does an encoder compute? BERT, as functions.

Every token reads every token that is not padding. The norm stands after the
sum (post-norm): a layer is x = norm(x + attention(x)), x = norm(x + mlp(x)),
so a sublayer that adds nothing still leaves a norm behind it. The interface is
that of `decoder.py`: `forward` scans `block` over layers stacked on L, gates
are data, and a block returns the inputs of its kernels (the tape).

Parameters are a nested dict, kernels [I, O]:
  embed/table [V, D]; embed/positions [S, D]; embed/token_types [Y, D], Y kinds
  of segment; embed/norm/{scale, bias} [D]; pooler/{kernel [D, D], bias [D]}
  where the checkpoint has one (not computed here);
  layers/attention/{query, key, value, output}/{kernel [L, D, D], bias [L, D]};
  layers/mlp/{up [L, D, F], down [L, F, D]}/kernel and /bias [L, O];
  layers/{attention_norm, mlp_norm}/{scale, bias} [L, D].

Reference: Devlin et al., BERT, arXiv:1810.04805; Reimers and Gurevych,
Sentence-BERT, arXiv:1908.10084, for `pool`; BertModel of transformers 5.
Differs from the reference in: norms and softmax are float32 whatever the dtype
of the parameters; a sequence of padding alone pools to zeros.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprune.models.decoder import Gates, _gated, _initial, _project
from jaxprune.models.encoder_config import EncoderConfig

Params = Mapping[str, Any]
Tape = dict[str, jax.Array]

# Prunable kernels, and where on the tape the input of each is.
KERNEL_INPUTS = {
  ("attention", "query"): "attention_in",
  ("attention", "key"): "attention_in",
  ("attention", "value"): "attention_in",
  ("attention", "output"): "output_in",
  ("mlp", "up"): "mlp_in",
  ("mlp", "down"): "down_in",
}
KERNELS = tuple(KERNEL_INPUTS)
POOLINGS = ("mean", "cls")

# The score of padding; finite, so that a row of padding makes no NaN.
_UNREAD = -1e30
_ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": jax.nn.gelu,
  "gelu_pytorch_tanh": jax.nn.gelu,
  "relu": jax.nn.relu,
}


def embed(
  config: EncoderConfig,
  params: Params,
  tokens_BT: jax.Array,
  token_types_BT: jax.Array | None = None,
) -> jax.Array:
  """Sum the tables and norm.

  Args:
    config: the model.
    params: its parameters; `layers` is not read.
    tokens_BT: int [B, T], T at most `config.max_positions`; padding behind.
    token_types_BT: int [B, T]; None is segment 0.

  Returns:
    [B, T, D] in the dtype of the tables.

  Raises:
    ValueError: more tokens than positions.
  """
  tables = params["embed"]
  length = tokens_BT.shape[1]
  if length > config.max_positions:
    raise ValueError(
      f"sequences of {length} tokens are longer than the"
      f" {config.max_positions} positions of the encoder: truncate them"
    )
  if token_types_BT is None:
    token_types_BT = jnp.zeros((1, 1), jnp.int32)
  x_BTD = (
    tables["table"][tokens_BT]
    + tables["positions"][None, :length]
    + tables["token_types"][token_types_BT]
  )
  return _norm(config, tables["norm"], x_BTD)


def block(
  config: EncoderConfig,
  layer: Params,
  x_BTD: jax.Array,
  valid_BT: jax.Array | None = None,
  *,
  attention_gate: jax.Array | None = None,
  mlp_gate: jax.Array | None = None,
) -> tuple[jax.Array, Tape]:
  """One layer.

  Args:
    config: the model.
    layer: parameters of this layer, without the leading L.
    x_BTD: [B, T, D].
    valid_BT: bool [B, T], False for padding. None: every token is real.
    attention_gate: scalar factor on what attention adds, its bias included;
      None is 1.
    mlp_gate: the same for the MLP.

  Returns:
    [B, T, D] and the tape: residual_in, attention_in (input of query, key,
    value; the same array), output_in, residual_mid, mlp_in (input of up; the
    same array), residual_out, each [B, T, D], and down_in [B, T, F]. residual_*
    are after the norms.
  """
  tape = {"residual_in": x_BTD, "attention_in": x_BTD}
  weights = layer["attention"]
  query_BTNH, key_BSNH, value_BSNH = (
    _project(weights[name], x_BTD).reshape(
      *x_BTD.shape[:2], config.num_heads, config.head_dim
    )
    for name in ("query", "key", "value")
  )
  read_BTNH = _attend(query_BTNH, key_BSNH, value_BSNH, valid_BT)
  read_BTD = tape["output_in"] = read_BTNH.reshape(x_BTD.shape)
  x_BTD = _norm(
    config,
    layer["attention_norm"],
    x_BTD + _gated(_project(weights["output"], read_BTD), attention_gate),
  )
  tape["residual_mid"] = tape["mlp_in"] = x_BTD

  weights = layer["mlp"]
  h_BTF = tape["down_in"] = _ACTIVATIONS[config.activation](
    _project(weights["up"], x_BTD)
  )
  x_BTD = _norm(
    config,
    layer["mlp_norm"],
    x_BTD + _gated(_project(weights["down"], h_BTF), mlp_gate),
  )
  tape["residual_out"] = x_BTD
  return x_BTD, tape


def forward(
  config: EncoderConfig,
  params: Params,
  tokens_BT: jax.Array,
  *,
  valid_BT: jax.Array | None = None,
  token_types_BT: jax.Array | None = None,
  gates: Gates | None = None,
  observe: Callable[[Tape], Any] | None = None,
) -> tuple[jax.Array, Any]:
  """Run all layers.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].
    valid_BT: bool [B, T], False for padding. None: every token is real.
    token_types_BT: int [B, T]; None is segment 0.
    gates: which sublayers stay; None is all.
    observe: from the tape of one layer to a pytree of arrays, called inside the
      scan over layers.

  Returns:
    The last hidden state [B, T, D], and what `observe` returned, stacked on L
    ({} without).
  """

  def body(x_BTD, inputs):
    layer, gate = inputs
    options = (
      {}
      if gate is None
      else dict(attention_gate=gate.attention, mlp_gate=gate.mlp)
    )
    x_BTD, tape = block(config, layer, x_BTD, valid_BT, **options)
    return x_BTD, {} if observe is None else observe(tape)

  x_BTD = embed(config, params, tokens_BT, token_types_BT)
  return jax.lax.scan(body, x_BTD, (params["layers"], gates))


def pool(
  x_BTD: jax.Array,
  valid_BT: jax.Array,
  *,
  pooling: str = "mean",
  normalise: bool = True,
) -> jax.Array:
  """One vector for each sequence.

  Args:
    x_BTD: last hidden state [B, T, D].
    valid_BT: bool [B, T], False for padding.
    pooling: 'mean' over the tokens that are not padding, or 'cls', the first.
    normalise: whether to divide by the Euclidean length.

  Returns:
    float32 [B, D].

  Raises:
    ValueError: another pooling.
  """
  x_BTD = x_BTD.astype(jnp.float32)
  if pooling == "mean":
    weight_BT1 = valid_BT.astype(jnp.float32)[..., None]
    count_B1 = jnp.maximum(jnp.sum(weight_BT1, axis=1), 1)
    pooled_BD = jnp.sum(x_BTD * weight_BT1, axis=1) / count_B1
  elif pooling == "cls":
    pooled_BD = x_BTD[:, 0]
  else:
    raise ValueError(
      f"pooling={pooling!r}: must be one of {', '.join(POOLINGS)}"
    )
  if not normalise:
    return pooled_BD
  length_B1 = jnp.linalg.norm(pooled_BD, axis=-1, keepdims=True)
  return pooled_BD / jnp.maximum(length_B1, 1e-12)


class Encoder(nn.Module):
  """The encoder as a Flax module: declares parameters, computes by `forward`.

  Attributes:
    config: the model.
    dtype: of the parameters.
  """

  config: EncoderConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens_BT, **options):
    """See `forward`."""
    params = {
      name: self.param(name, _initial, shapes, self.dtype)
      for name, shapes in _shapes(self.config).items()
    }
    return forward(self.config, params, tokens_BT, **options)


def init_encoder(
  config: EncoderConfig, key: jax.Array, dtype: Any = jnp.float32
) -> Params:
  """Random parameters: normal of deviation 0.02, no bias, unit scales.

  `jax.eval_shape` of this gives the tree without the memory.
  """
  tokens_BT = jnp.zeros((1, 1), jnp.int32)
  return Encoder(config, dtype).init(key, tokens_BT)["params"]


def _attend(query_BTNH, key_BSNH, value_BSNH, valid_BS):
  """Softmax attention over every token that is not padding."""
  scores_BNTS = (
    jnp.einsum(
      "BTNH,BSNH->BNTS",
      query_BTNH,
      key_BSNH,
      preferred_element_type=jnp.float32,
    )
    * query_BTNH.shape[-1] ** -0.5
  )
  if valid_BS is not None:
    scores_BNTS = jnp.where(valid_BS[:, None, None], scores_BNTS, _UNREAD)
  weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(value_BSNH.dtype)
  return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, value_BSNH)


def _norm(config, norm, x_BTD):
  """Layer norm over the last axis, in float32."""
  x32_BTD = x_BTD.astype(jnp.float32)
  centred_BTD = x32_BTD - jnp.mean(x32_BTD, axis=-1, keepdims=True)
  variance_BT1 = jnp.mean(jnp.square(centred_BTD), axis=-1, keepdims=True)
  y_BTD = centred_BTD * jax.lax.rsqrt(variance_BT1 + config.norm_eps)
  scale_11D, bias_11D = (
    norm[name].astype(jnp.float32)[None, None] for name in ("scale", "bias")
  )
  return (y_BTD * scale_11D + bias_11D).astype(x_BTD.dtype)


def _shapes(config):
  """The tree of parameter shapes."""
  L, D, F = config.num_layers, config.embed_dim, config.mlp_dim

  def dense(inputs, outputs):
    return {"kernel": (L, inputs, outputs), "bias": (L, outputs)}

  def norm(*leading):
    return {"scale": (*leading, D), "bias": (*leading, D)}

  shapes = {
    "embed": {
      "table": (config.vocab_size, D),
      "positions": (config.max_positions, D),
      "token_types": (config.num_token_types, D),
      "norm": norm(),
    },
    "layers": {
      "attention": {
        name: dense(D, D) for name in ("query", "key", "value", "output")
      },
      "attention_norm": norm(L),
      "mlp": {"up": dense(D, F), "down": dense(F, D)},
      "mlp_norm": norm(L),
    },
  }
  if config.pooler:
    shapes["pooler"] = {"kernel": (D, D), "bias": (D,)}
  return shapes
