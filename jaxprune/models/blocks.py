"""What is in one layer of the decoder? Attention and an MLP, as Linen modules.

Every module returns its value and `out`, its intermediates by name. The same
`Block` runs a whole text, one decoding step on a cache, a few rows at a time on
a CPU, and backwards.

Reference: Llama 2, arXiv:2307.09288; RMSNorm, arXiv:1910.07467; SwiGLU,
arXiv:2002.05202; the modelling files of transformers 5.
Differs from the reference in: norms, softmax and RoPE are float32 whatever the
dtype of the parameters.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune import platforms
from jaxprune.models import activations, attention, norms, parts, rope
from jaxprune.models.context import Context
from jaxprune.models.experts import Experts
from jaxprune.models.parts import Intermediates

# Which of a block's intermediates is the input of each kernel.
KERNEL_INPUTS = {
  ("attention", "query"): "attention_in",
  ("attention", "key"): "attention_in",
  ("attention", "value"): "attention_in",
  ("attention", "output"): "output_in",
  ("mlp", "gate"): "mlp_in",
  ("mlp", "up"): "mlp_in",
  ("mlp", "down"): "down_in",
}


def kernels_of(layer: parts.Params) -> tuple[tuple[str, str], ...]:
  """The kernels that a layer, or a stack of layers, has, as (group, name).

  An encoder and an MLP without gates have fewer than `KERNEL_INPUTS` lists.
  """
  return tuple(
    (group, name) for group, name in KERNEL_INPUTS if name in layer[group]
  )


# Rows of a kernel's input that a CPU multiplies at a time.
ROWS = 512

# On a CPU a tied head meets at most this many rows from the right.
_FEW_ROWS = 32


class Embedding(parts.Part):
  """The table of tokens, which is the head of a model that has no other.

  Where positions are learned, a table of them is added to it.
  """

  def setup(self) -> None:
    config = self.config
    self.table = self._table("table", config.vocab_size)
    if config.num_position_rows:
      self.positions = self._table("positions", config.num_position_rows)

  def _table(self, name, rows):
    shape = rows, self.config.embed_dim
    return self.param(name, parts.initial_kernel, shape, self.dtype)

  def __call__(
    self, tokens_BT: jax.Array, positions_BT: jax.Array
  ) -> jax.Array:
    """Look tokens and positions up.

    Args:
      tokens_BT: int [B, T].
      positions_BT: int [B or 1, T], read where positions are learned.

    Returns:
      [B, T, D] in the dtype of the table.
    """
    x_BTD = self.table[tokens_BT]
    if self.config.scale_embedding:
      x_BTD *= jnp.asarray(self.config.embedding_scale, x_BTD.dtype)
    if self.config.num_position_rows:
      x_BTD += self.positions[positions_BT + self.config.position_offset]
    return x_BTD

  def attend(self, x_BTD: jax.Array) -> jax.Array:
    """Products with every row of the table: [..., D] to float32 [..., V]."""
    rows = math.prod(x_BTD.shape[:-1])
    if platforms.on_cpu() and 1 < rows <= _FEW_ROWS:
      # For few rows a CPU multiplies the table, as it lies in memory, by the
      # rows: up to three times as fast. The barrier keeps the compiler from
      # turning the product round.
      z_VR = jnp.einsum(
        "VD,RD->VR",
        self.table,
        rearrange(x_BTD, "... D -> (...) D"),
        preferred_element_type=jnp.float32,
      )
      z_RV = rearrange(jax.lax.optimization_barrier(z_VR), "V R -> R V")
      return z_RV.reshape(*x_BTD.shape[:-1], -1)
    return jnp.einsum(
      "...D,VD->...V", x_BTD, self.table, preferred_element_type=jnp.float32
    )


class Attention(parts.Part):
  """Causal self-attention with grouped queries and rotary positions."""

  def setup(self) -> None:
    config = self.config
    query, key = (
      heads * config.head_dim
      for heads in (config.num_heads, config.num_kv_heads)
    )
    self.query, self.key, self.value = (
      parts.Projection(features, config.qkv_bias, self.dtype)
      for features in (query, key, key)
    )
    self.output = parts.Projection(
      config.embed_dim, config.output_bias, self.dtype
    )
    if config.qk_norm:
      self.query_norm = norms.rms_norm(config, self.dtype)
      self.key_norm = norms.rms_norm(config, self.dtype)

  def __call__(
    self,
    y_BTD: jax.Array,
    context: Context,
    *,
    sliding: bool | jax.Array,
    cache: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, Intermediates]:
    """Read the sequence, or the cache.

    Args:
      y_BTD: normed residual [B, T, D].
      context: what all layers share.
      sliding: whether this layer slides; may be traced.
      cache: keys and values [B, S, K, H] of this layer; those of this pass are
        written at `context.slots`, or from `context.written_at` on.

    Returns:
      What attention adds, [B, T, D], and `out`: key and value [B, T, K, H] as
      a cache holds them, output_in [B, T, N*H]; with a cache also `cache`, the
      pair as it is now.
    """
    query_BTNH, key_BTKH, value_BTKH = self.heads(
      y_BTD, context, sliding=sliding
    )
    out = {"key": key_BTKH, "value": value_BTKH}
    if cache is None:
      key_slots_S = context.slots
    else:
      start = context.written_at
      start = context.slots[0] if start is None else start
      key_BTKH, value_BTKH = out["cache"] = tuple(
        jax.lax.dynamic_update_slice_in_dim(
          old_BSKH, new_BTKH.astype(old_BSKH.dtype), start, axis=1
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
      self.config.sliding_window,
      sliding,
      context.key_ends,
    )
    attend = _attention_form(y_BTD.shape[1], cache is not None)
    read_BTNH = attend(
      query_BTNH,
      key_BTKH,
      value_BTKH,
      mask_BTS,
      scale=self.config.score_scale,
      cap=self.config.score_cap,
    )
    out["output_in"] = rearrange(read_BTNH, "B T N H -> B T (N H)")
    return self.output(out["output_in"]), out

  def heads(
    self, y_BTD: jax.Array, context: Context, *, sliding: bool | jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H], normed and turned.

    Args:
      y_BTD: what attention reads, [B, T, D].
      context: of which the angles are read.
      sliding: whether this layer slides; may be traced.
    """
    config = self.config
    projected = [project(y_BTD) for project in (self.query, self.key)]
    if config.qk_norm and config.qk_norm_whole:
      projected = [self.query_norm(projected[0]), self.key_norm(projected[1])]
    query_BTNH, key_BTKH, value_BTKH = (
      rearrange(x, "B T (N H) -> B T N H", H=config.head_dim)
      for x in (*projected, self.value(y_BTD))
    )
    if config.qk_norm and not config.qk_norm_whole:
      query_BTNH = self.query_norm(query_BTNH)
      key_BTKH = self.key_norm(key_BTKH)
    angles = context.cos, context.sin
    if context.local is not None:
      angles = tuple(
        jnp.where(sliding, local, whole)
        for local, whole in zip(context.local, angles)
      )
    return (
      rope.rotate(query_BTNH, *angles),
      rope.rotate(key_BTKH, *angles),
      value_BTKH,
    )


class MLP(parts.Part):
  """The MLP: down(activation(gate(y)) * up(y)), or down(activation(up(y)))."""

  def setup(self) -> None:
    config = self.config

    def project(features):
      return parts.Projection(features, config.mlp_bias, self.dtype)

    if config.gated_mlp:
      self.gate = project(config.mlp_dim)
    self.up, self.down = project(config.mlp_dim), project(config.embed_dim)

  def __call__(self, y_BTD: jax.Array) -> tuple[jax.Array, Intermediates]:
    """What the MLP adds, [B, T, D], and `out`: down_in [B, T, F].

    Args:
      y_BTD: normed residual [B, T, D].
    """
    activation = activations.FUNCTIONS[self.config.activation]
    if self.config.gated_mlp:
      h_BTF = activation(self.gate(y_BTD)) * self.up(y_BTD)
    else:
      h_BTF = activation(self.up(y_BTD))
    return self.down(h_BTF), {"down_in": h_BTF}


class Block(parts.Part):
  """One layer: attention and MLP, each added to the residual.

  The MLP reads the residual that attention was added to, or, with
  `parallel_residual`, the one that attention read. With `pre_norm` a sublayer
  reads the normed residual, with `post_norm` what it adds is normed; a sublayer
  whose output is 0 adds 0 either way.
  """

  def setup(self) -> None:
    config = self.config
    if config.pre_norm:
      self.attention_norm = norms.norm(config, self.dtype)
    self.attention = Attention(config, self.dtype)
    if config.post_norm:
      self.attention_post_norm = norms.norm(config, self.dtype)
    if config.pre_norm:
      self.mlp_norm = norms.norm(config, self.dtype)
    mlp = Experts if config.num_experts else MLP
    self.mlp = mlp(config, self.dtype)
    if config.post_norm:
      self.mlp_post_norm = norms.norm(config, self.dtype)

  def __call__(
    self,
    x_BTD: jax.Array,
    context: Context,
    *,
    sliding: bool | jax.Array,
    attention_gate: jax.Array | None = None,
    mlp_gate: jax.Array | None = None,
    cache: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, Intermediates]:
    """Run the layer.

    Args:
      x_BTD: residual [B, T, D].
      context: what all layers share, from `make_context` or of a cached pass.
      sliding: whether this layer slides, `config.sliding_layers[index]`; may
        be traced.
      attention_gate: scalar factor on what attention adds; None is 1.
      mlp_gate: scalar factor on what the MLP adds; None is 1.
      cache: keys and values [B, S, K, H] of this layer; those of this pass are
        written at `context.slots`, or from `context.written_at` on.

    Returns:
      The residual [B, T, D] and `out`: residual_in [B, T, D], attention_in
      [B, T, D] (input of query, key, value), output_in [B, T, N*H],
      residual_mid [B, T, D], mlp_in [B, T, D] (input of gate, up), down_in
      [B, T, F], residual_out [B, T, D], key and value [B, T, K, H] as a cache
      holds them. With a cache also `cache`, the pair as it is now. With experts
      down_in is [B, T, C, F], and routes [B, T, C] says of which.
      residual_mid less residual_in is what attention adds, and residual_out
      less residual_mid what the MLP adds, with `parallel_residual` too, where
      the MLP reads residual_in.
    """
    out = {"residual_in": x_BTD}
    read_BTD = x_BTD
    out["attention_in"] = self._read_by("attention", x_BTD)
    added_BTD, inner = self.attention(
      out["attention_in"], context, sliding=sliding, cache=cache
    )
    added_BTD = self._added_by("attention", added_BTD)
    x_BTD = out["residual_mid"] = x_BTD + parts.gated(added_BTD, attention_gate)
    out |= inner
    if not self.config.parallel_residual:
      read_BTD = x_BTD
    out["mlp_in"] = self._read_by("mlp", read_BTD)
    added_BTD, inner = self.mlp(out["mlp_in"])
    added_BTD = self._added_by("mlp", added_BTD)
    x_BTD = out["residual_out"] = x_BTD + parts.gated(added_BTD, mlp_gate)
    return x_BTD, out | inner

  def _read_by(self, sublayer, x_BTD):
    """What a sublayer reads of the residual."""
    if not self.config.pre_norm:
      return x_BTD
    return getattr(self, f"{sublayer}_norm")(x_BTD)

  def _added_by(self, sublayer, y_BTD):
    """What is added to the residual of what a sublayer puts out."""
    if not self.config.post_norm:
      return y_BTD
    return getattr(self, f"{sublayer}_post_norm")(y_BTD)

  def heads(
    self, x_BTD: jax.Array, context: Context, *, sliding: bool | jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`Attention.heads` of a residual [B, T, D]."""
    y_BTD = self._read_by("attention", x_BTD)
    return self.attention.heads(y_BTD, context, sliding=sliding)

  def attention_output(self, read_BTNH: jax.Array) -> jax.Array:
    """What attention adds, [B, T, D], of what its heads read, [B, T, N, H]."""
    y_BTD = self.attention.output(rearrange(read_BTNH, "B T N H -> B T (N H)"))
    return self._added_by("attention", y_BTD)

  def mlp_output(self, x_BTD: jax.Array, mid_BTD: jax.Array) -> jax.Array:
    """What the MLP adds, [B, T, D].

    Args:
      x_BTD: residual before the layer, [B, T, D].
      mid_BTD: residual that attention was added to, [B, T, D].
    """
    read_BTD = x_BTD if self.config.parallel_residual else mid_BTD
    y_BTD, _ = self.mlp(self._read_by("mlp", read_BTD))
    return self._added_by("mlp", y_BTD)


def by_rows(
  block: nn.Module, x_BTD: jax.Array, context: Context, **options: Any
) -> tuple[jax.Array, Any]:
  """`block(x_BTD, context, **options)`, on a CPU a few sequences at a time.

  Small intermediates stay in its cache and in memory that is already mapped.

  Args:
    block: bound to its parameters.
    x_BTD: residual [B, T, D].
    context: of a pass without a cache.
    **options: as for `Block`.

  Returns:
    The residual [B, T, D] and the intermediates of the block by name, as
    `block` itself returns them.
  """
  batch, length = x_BTD.shape[:2]
  size = max(
    size
    for size in range(1, batch + 1)
    if batch % size == 0 and size <= max(1, ROWS // length)
  )
  if size == batch or not platforms.on_cpu() or block.is_initializing():
    return block(x_BTD, context, **options)
  block, variables = block.unbind()

  def piece(inputs):
    x_BTD, rows = inputs
    return block.apply(
      variables, x_BTD, dataclasses.replace(context, **rows), **options
    )

  rows = (
    {}
    if context.key_valid is None and context.key_ends is None
    else {
      name: getattr(context, name)
      for name in (
        *("positions", "cos", "sin", "local"),
        *("key_positions", "key_valid", "key_ends"),
      )
    }
  )
  pieces = jax.tree.map(
    lambda a: rearrange(a, "(P B) ... -> P B ...", B=size), (x_BTD, rows)
  )
  return jax.tree.map(
    lambda a: rearrange(a, "P B ... -> (P B) ..."), jax.lax.map(piece, pieces)
  )


def _attention_form(length, cached):
  """The form of attention that this platform runs fastest."""
  if not platforms.on_cpu():
    return attention.plain
  if cached:
    return attention.single if length == 1 else attention.plain
  return attention.chunked
