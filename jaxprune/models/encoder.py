"""What does an encoder compute? BERT, in Flax Linen.

Every token reads every token that is not padding. The norm stands after the
sum (post-norm): a layer is x = norm(x + attention(x)), x = norm(x + mlp(x)),
so a sublayer that adds nothing still leaves a norm behind it. The interface is
that of `decoder.py`: `Encoder` scans `Block` over layers stacked on L, gates
are data, and every module returns its value and `out`, its intermediates.

  >>> model = Encoder(config)
  >>> params = model.init(jax.random.key(0), tokens)["params"]
  >>> x, out = model.apply({"params": params}, tokens)
  >>> x.shape == (*tokens.shape, config.embed_dim)
  True

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

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.models import activations, attention, blocks, parts
from jaxprune.models.encoder_config import EncoderConfig
from jaxprune.models.parts import Gates, Intermediates, Params

# Prunable kernels, and which of a block's intermediates is the input of each.
# Those of a decoder whose MLP has no gate.
KERNEL_INPUTS = {
  kernel: name
  for kernel, name in blocks.KERNEL_INPUTS.items()
  if kernel != ("mlp", "gate")
}
KERNELS = tuple(KERNEL_INPUTS)
POOLINGS = ("mean", "cls")


class Embedding(parts.Part):
  """The tables of tokens, positions and segments, summed and normed."""

  @nn.compact
  def __call__(
    self, tokens_BT: jax.Array, token_types_BT: jax.Array | None = None
  ) -> jax.Array:
    """Look up: int [B, T] and segments, None is 0, to [B, T, D].

    Args:
      tokens_BT: int [B, T], T at most `config.max_positions`; padding behind.
      token_types_BT: int [B, T]; None is segment 0.

    Returns:
      [B, T, D] in the dtype of the tables.

    Raises:
      ValueError: more tokens than positions.
    """
    config, length = self.config, tokens_BT.shape[1]
    if length > config.max_positions:
      raise ValueError(
        f"sequences of {length} tokens are longer than the"
        f" {config.max_positions} positions of the encoder: truncate them"
      )
    table_VD, positions_SD, type_table = (
      self.param(
        name, parts.initial_kernel, (rows, config.embed_dim), self.dtype
      )
      for name, rows in (
        ("table", config.vocab_size),
        ("positions", config.max_positions),
        ("token_types", config.num_token_types),
      )
    )
    if token_types_BT is None:
      token_types_BT = jnp.zeros((1, 1), jnp.int32)
    x_BTD = (
      table_VD[tokens_BT]
      + positions_SD[None, :length]
      + type_table[token_types_BT]
    )
    return layer_norm(config, self.dtype, name="norm")(x_BTD)


class Attention(parts.Part):
  """Self-attention over every token that is not padding."""

  def setup(self) -> None:
    self.query, self.key, self.value, self.output = (
      parts.Projection(self.config.embed_dim, True, self.dtype)
      for _ in range(4)
    )

  def __call__(
    self, x_BTD: jax.Array, valid_BT: jax.Array | None = None
  ) -> tuple[jax.Array, Intermediates]:
    """Read the sequence.

    Args:
      x_BTD: [B, T, D].
      valid_BT: bool [B, T], False for padding. None: every token is real.

    Returns:
      What attention adds, [B, T, D], and `out`: output_in [B, T, D].
    """
    query_BTNH, key_BSNH, value_BSNH = (
      rearrange(project(x_BTD), "B T (N H) -> B T N H", N=self.config.num_heads)
      for project in (self.query, self.key, self.value)
    )
    read_BTNH = _attend(query_BTNH, key_BSNH, value_BSNH, valid_BT)
    read_BTD = rearrange(read_BTNH, "B T N H -> B T (N H)")
    return self.output(read_BTD), {"output_in": read_BTD}


class MLP(parts.Part):
  """down(activation(up(x)))."""

  def setup(self) -> None:
    self.up, self.down = (
      parts.Projection(features, True, self.dtype)
      for features in (self.config.mlp_dim, self.config.embed_dim)
    )

  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, Intermediates]:
    """What the MLP adds to [B, T, D], and `out`: down_in [B, T, F]."""
    h_BTF = activations.FUNCTIONS[self.config.activation](self.up(x_BTD))
    return self.down(h_BTF), {"down_in": h_BTF}


class Block(parts.Part):
  """One layer: attention and MLP, each added to the residual and normed."""

  def setup(self) -> None:
    self.attention = Attention(self.config, self.dtype)
    self.attention_norm = layer_norm(self.config, self.dtype)
    self.mlp = MLP(self.config, self.dtype)
    self.mlp_norm = layer_norm(self.config, self.dtype)

  def __call__(
    self,
    x_BTD: jax.Array,
    valid_BT: jax.Array | None = None,
    *,
    attention_gate: jax.Array | None = None,
    mlp_gate: jax.Array | None = None,
  ) -> tuple[jax.Array, Intermediates]:
    """Run the layer.

    Args:
      x_BTD: [B, T, D].
      valid_BT: bool [B, T], False for padding. None: every token is real.
      attention_gate: scalar factor on what attention adds, its bias included;
        None is 1.
      mlp_gate: the same for the MLP.

    Returns:
      [B, T, D] and `out`: residual_in, attention_in (input of query, key,
      value; the same array), output_in, residual_mid, mlp_in (input of up; the
      same array), residual_out, each [B, T, D], and down_in [B, T, F].
      residual_* are after the norms.
    """
    out = {"residual_in": x_BTD, "attention_in": x_BTD}
    added_BTD, inner = self.attention(x_BTD, valid_BT)
    x_BTD = self.attention_norm(x_BTD + parts.gated(added_BTD, attention_gate))
    out |= inner | {"residual_mid": x_BTD, "mlp_in": x_BTD}
    added_BTD, inner = self.mlp(x_BTD)
    x_BTD = self.mlp_norm(x_BTD + parts.gated(added_BTD, mlp_gate))
    return x_BTD, out | inner | {"residual_out": x_BTD}


class Encoder(parts.Part):
  """The whole encoder: embedding and layers."""

  def setup(self) -> None:
    self.embed = Embedding(self.config, self.dtype)
    self.layers = Block(self.config, self.dtype)
    if self.config.pooler:
      self.pooler = parts.Projection(self.config.embed_dim, True, self.dtype)

  def __call__(
    self,
    tokens_BT: jax.Array,
    *,
    valid_BT: jax.Array | None = None,
    token_types_BT: jax.Array | None = None,
    gates: Gates | None = None,
    observe: Callable[[Intermediates], Any] | None = None,
  ) -> tuple[jax.Array, Any]:
    """Run all layers.

    Args:
      tokens_BT: int [B, T].
      valid_BT: bool [B, T], False for padding. None: every token is real.
      token_types_BT: int [B, T]; None is segment 0.
      gates: which sublayers stay; None is all.
      observe: from the `out` of one `Block` to a pytree of arrays, called
        inside the scan over layers.

    Returns:
      The last hidden state [B, T, D]; and `out`, what `observe` returned,
      stacked on L: {} without, every intermediate of `Block` for
      `lambda out: out`.
    """

    def layer(block, x_BTD, gate):
      x_BTD, out = block(x_BTD, valid_BT, **parts.gate_options(gate))
      return x_BTD, {} if observe is None else observe(out)

    x_BTD, out = parts.scan_layers(
      self.layers,
      self.embed(tokens_BT, token_types_BT),
      layer,
      gates,
      self.config.num_layers,
    )
    if self.is_initializing() and self.config.pooler:
      self.pooler(x_BTD[:, :1])
    return x_BTD, out


# (config, key, dtype=float32) -> params, see `parts.random_params`.
init_encoder = functools.partial(parts.random_params, Encoder)


def embed(
  config: EncoderConfig, params: Params, *tokens: jax.Array
) -> jax.Array:
  """Sum the tables and norm: `Embedding` on its parameters.

  Args:
    config: the model.
    params: its parameters; `layers` is not read.
    *tokens: ids [B, T] and, where they are not all 0, segments [B, T].

  Returns:
    [B, T, D] in the dtype of the tables.

  Raises:
    ValueError: more tokens than positions.
  """
  return Embedding(config, parent=None).apply(
    {"params": params["embed"]}, *tokens
  )


def block(
  config: EncoderConfig,
  layer: Params,
  x_BTD: jax.Array,
  valid_BT: jax.Array | None = None,
  **gates: jax.Array | None,
) -> tuple[jax.Array, Intermediates]:
  """One layer: `Block` on its parameters.

  Args:
    config: the model.
    layer: parameters of this layer, without the leading L.
    x_BTD: [B, T, D].
    valid_BT: bool [B, T], False for padding. None: every token is real.
    **gates: `attention_gate` and `mlp_gate` of `Block`.

  Returns:
    [B, T, D] and its intermediates, see `Block`.
  """
  return Block(config, parent=None).apply(
    {"params": layer}, x_BTD, valid_BT, **gates
  )


def forward(
  config: EncoderConfig, params: Params, tokens_BT: jax.Array, **options: Any
) -> tuple[jax.Array, Any]:
  """Run all layers: `Encoder` on its parameters.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].
    **options: `valid_BT`, `token_types_BT`, `gates` and `observe` of `Encoder`.

  Returns:
    The last hidden state [B, T, D], and what `observe` returned, stacked on L
    ({} without).
  """
  return Encoder(config, parent=None).apply(
    {"params": params}, tokens_BT, **options
  )


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


def layer_norm(
  config: EncoderConfig, dtype: Any = jnp.float32, **options: Any
) -> nn.LayerNorm:
  """The norm of this model, over the last axis, computed in float32.

  Args:
    config: the model.
    dtype: of new parameters.
    **options: the module's name or parent.
  """
  return nn.LayerNorm(
    config.norm_eps, param_dtype=dtype, use_fast_variance=False, **options
  )


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
  if valid_BS is None:
    valid_BS = jnp.ones((1, key_BSNH.shape[1]), bool)
  weights_BNTS = attention.softmax(scores_BNTS, valid_BS[:, None, None])
  return jnp.einsum(
    "BNTS,BSNH->BTNH", weights_BNTS.astype(value_BSNH.dtype), value_BSNH
  )
