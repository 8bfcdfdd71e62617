"""What does the model compute? One decoder for every family, in Flax Linen.

`Decoder` scans `Block` (`Attention`, `MLP`) over layers that are stacked on L.
Which sublayers stay (`Gates`) and which layers slide are inputs of the scan, so
that candidates can be vmapped and differentiated without a new compilation.
Every module returns its value and `out`, its intermediates by name; `observe`
reduces those of a layer inside the scan, so that nothing of their size is ever
kept for all layers.

  >>> model = Decoder(config)
  >>> params = model.init(jax.random.key(0), tokens)["params"]
  >>> x, out = model.apply(
  ...   {"params": params},
  ...   tokens,
  ...   observe=lambda out: {"mlp_in": out["mlp_in"]},
  ... )
  >>> L, D = config.num_layers, config.embed_dim
  >>> out["mlp_in"].shape == (L, *tokens.shape, D)
  True
  >>> logits = model.apply({"params": params}, x, method="unembed")
  >>> logits.shape == (*tokens.shape, config.vocab_size)
  True

The functions below the modules (`forward`, `embed`, `unembed`, ...) are the
same modules applied to parameters, for code that does not need to know Flax.

Parameters are a nested dict, kernels [I, O]:
  embed/table [V, D], and /positions [rows, D] where they are learned;
  final_norm/scale [D]; head/kernel [D, V] unless tied;
  layers/{attention_norm, mlp_norm}/scale [L, D] with pre_norm;
  layers/{attention_post_norm, mlp_post_norm}/scale [L, D] with post_norm;
  layers/attention/{query [L, D, N*H], key, value [L, D, K*H],
    output [L, N*H, D]}/kernel, and /bias [L, O] where the family has one;
  layers/attention/{query_norm, key_norm}/scale [L, H] with qk_norm, or
    [L, N*H] and [L, K*H] with qk_norm_whole;
  layers/mlp/{gate, up [L, D, F], down [L, F, D]}/kernel, and /bias; no gate
    where the MLP is not gated.
With experts gate and up are [L, E, D, F], down is [L, E, F, D], and there is
layers/mlp/router/kernel [L, D, E].
Beside the scale of a LayerNorm stands its bias.
A `layer` is the tree under layers/ without the leading L. In place of the stack
there may be a tuple of L layers, see `over_layers`. Beside a kernel may stand a
change of it, see `parts.Projection`.

Reference: Llama 2, arXiv:2307.09288; RMSNorm, arXiv:1910.07467; SwiGLU,
arXiv:2002.05202; the modelling files of transformers 5.
Differs from the reference in: norms, softmax, RoPE and logits are float32
whatever the dtype of the parameters.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprune.models import blocks, norms, parts
from jaxprune.models.blocks import KERNEL_INPUTS as KERNEL_INPUTS
from jaxprune.models.blocks import Block
from jaxprune.models.blocks import kernels_of as kernels_of
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import Branches, positions_of
from jaxprune.models.context import make_context as make_context
from jaxprune.models.parts import Gates, Intermediates, Params

KERNELS = tuple(KERNEL_INPUTS)


class Decoder(parts.Part):
  """The whole model: embedding, layers, final norm and head."""

  def setup(self) -> None:
    config = self.config
    self.embed = blocks.Embedding(config, self.dtype)
    self.layers = Block(config, self.dtype)
    self.final_norm = norms.norm(config, self.dtype)
    if config.own_head:
      self.head = nn.Dense(
        config.vocab_size,
        use_bias=False,
        param_dtype=self.dtype,
        kernel_init=parts.initial_kernel,
        dot_general=functools.partial(
          jax.lax.dot_general, preferred_element_type=jnp.float32
        ),
      )

  def __call__(
    self,
    tokens_BT: jax.Array,
    *,
    valid_BT: jax.Array | None = None,
    branches: Branches | None = None,
    gates: Gates | None = None,
    observe: Callable[[Intermediates], Any] | None = None,
    remat: bool = False,
  ) -> tuple[jax.Array, Any]:
    """Run all layers without a cache.

    Args:
      tokens_BT: int [B, T].
      valid_BT: bool [B, T], False for padding. None: every token is real.
      branches: how the texts of a row branch; None is one text per row.
      gates: which sublayers stay; None is all.
      observe: from the `out` of one `Block` to a pytree of arrays, called
        inside the scan over layers.
      remat: for a backward pass, keep only the results of matrix products and
        compute the rest again. Rows are not cut then.

    Returns:
      The residual after the last layer, BEFORE the final norm, [B, T, D], which
      `unembed` turns into logits; and `out`, what `observe` returned, stacked
      on L: {} without, every intermediate of `Block` for `lambda out: out`.

    Raises:
      ValueError: more tokens than a learned table has positions.
    """
    length, config = tokens_BT.shape[1], self.config
    if config.num_position_rows and valid_BT is None and branches is None:
      if length > config.max_positions:
        raise ValueError(
          f"{length} tokens: the model has a table of {config.max_positions}"
          " positions; give shorter texts"
        )
    context = make_context(config, length, valid_BT, branches)

    def layer(block, x_BTD, options):
      run = block if remat else functools.partial(blocks.by_rows, block)
      x_BTD, out = run(x_BTD, context, **options)
      return x_BTD, {} if observe is None else observe(out)

    def body(block, x_BTD, options, _):
      if not remat:
        return layer(block, x_BTD, options)
      again = nn.remat(
        lambda block, x_BTD: layer(block, x_BTD, options),
        policy=jax.checkpoint_policies.dots_saveable,
      )
      return again(block, x_BTD)

    x_BTD = self.embed(tokens_BT, context.positions)
    x_BTD, out = self.over_layers(x_BTD, body, gates)
    if isinstance(self.get_variable("params", "layers"), tuple):
      out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)
    if self.is_initializing():
      self.unembed(x_BTD) if self.config.has_head else self.final_norm(x_BTD)
    return x_BTD, out

  def unembed(self, x_BTD: jax.Array, lens: str = "final_norm") -> jax.Array:
    """Logits of a residual.

    Args:
      x_BTD: residual [..., D].
      lens: 'final_norm' applies the model's last norm first, 'raw' does not.

    Returns:
      float32 [..., V].

    Raises:
      ValueError: another lens, or the model has no head.
    """
    if not self.config.has_head:
      raise ValueError(
        "the model has no output head and so no logits: its checkpoint holds"
        " what embeds texts; use the causal language model it was made from"
      )
    if lens == "final_norm":
      x_BTD = self.final_norm(x_BTD)
    elif lens != "raw":
      raise ValueError(f"lens={lens!r}: must be 'final_norm' or 'raw'")
    read = self.embed.attend if self.config.tie_embeddings else self.head
    z_BTV, cap = read(x_BTD), self.config.logit_cap
    return z_BTV if cap is None else cap * jnp.tanh(z_BTV / cap)

  def over_layers(
    self,
    carry: Any,
    body: Callable[..., tuple[Any, Any]],
    gates: Gates | None = None,
    each: Any = None,
  ) -> tuple[Any, Any]:
    """Run `body` on the layers in order: a scan, or a loop over a tuple.

    Args:
      carry: what `body` takes and returns, the residual for instance.
      body: (block, carry, options, part of `each`) -> (carry, output), where
        `block` is the bound `Block` of a layer and `options` are keyword
        arguments of it: sliding and gates.
      gates: which sublayers stay; None is all.
      each: more input per layer: stacked like the layers, or a tuple like them.

    Returns:
      The last carry and the outputs stacked on L, or a tuple of them.
    """
    config = self.config
    layers = self.get_variable("params", "layers")
    if not isinstance(layers, tuple):

      def layer(block, carry, inputs):
        sliding, gate, more = inputs
        return body(block, carry, layer_options(config, sliding, gate), more)

      return parts.scan_layers(
        self.layers,
        carry,
        layer,
        (jnp.asarray(config.sliding_layers), gates, each),
        config.num_layers,
      )
    outputs = []
    for index, layer in enumerate(layers):
      gate = jax.tree.map(lambda gate_L: gate_L[index], gates)
      carry, output = body(
        Block(config, parent=None).bind({"params": layer}),
        carry,
        layer_options(config, config.sliding_layers[index], gate),
        None if each is None else each[index],
      )
      outputs.append(output)
    return carry, tuple(outputs)


# (config, key, dtype=float32) -> params, see `parts.random_params`.
init = functools.partial(parts.random_params, Decoder)


def make_gates(
  config: ModelConfig, *, attention: Sequence[int] = (), mlp: Sequence[int] = ()
) -> Gates:
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


def forward(
  config: ModelConfig, params: Params, tokens_BT: jax.Array, **options: Any
) -> tuple[jax.Array, Any]:
  """Run all layers without a cache: `Decoder` on its parameters.

  Args:
    config: the model.
    params: its parameters, layers stacked or a tuple.
    tokens_BT: int [B, T].
    **options: `valid_BT`, `branches`, `gates`, `observe` and `remat` of
      `Decoder`.

  Returns:
    The residual after the last layer, BEFORE the final norm, [B, T, D], and
    what `observe` returned, stacked on L ({} without).
  """
  return Decoder(config, parent=None).apply(
    {"params": params}, tokens_BT, **options
  )


def embed(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
  positions_BT: jax.Array | None = None,
) -> jax.Array:
  """Look tokens up, and positions where they are learned.

  Args:
    config: the model.
    params: its parameters, of which `embed` is read.
    tokens_BT: int [B, T].
    positions_BT: int [B or 1, T], `Context.positions`. None counts from 0.

  Returns:
    [B, T, D] in the dtype of the table.
  """
  if positions_BT is None:
    positions_BT = positions_of(tokens_BT.shape[1])
  return blocks.Embedding(config, parent=None).apply(
    {"params": params["embed"]}, tokens_BT, positions_BT
  )


def final_norm(
  config: ModelConfig, params: Params, x_BTD: jax.Array
) -> jax.Array:
  """The norm before the head.

  Args:
    config: the model.
    params: its parameters, of which `final_norm` is read.
    x_BTD: residual [..., D].

  Returns:
    [..., D] in the same dtype.
  """
  norm = norms.norm(config).clone(parent=None)
  return norm.apply({"params": params["final_norm"]}, x_BTD)


def unembed(
  config: ModelConfig,
  params: Params,
  x_BTD: jax.Array,
  lens: str = "final_norm",
) -> jax.Array:
  """Logits of a residual: `Decoder.unembed` on the model's parameters.

  Linear in `x_BTD` under the lens 'raw' unless the model caps its logits;
  `unembed_change` has the derivative.

  Args:
    config: the model.
    params: the model's parameters; `layers` is not read.
    x_BTD: residual [..., D].
    lens: whether the last norm comes first, 'final_norm' or 'raw'.

  Returns:
    float32 [..., V].

  Raises:
    ValueError: a lens that is neither.
  """
  return Decoder(config, parent=None).apply(
    {"params": params}, x_BTD, lens, method="unembed"
  )


def unembed_change(
  config: ModelConfig, params: Params, h_BTD: jax.Array, dh_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Logits of what the head reads, and their derivative along a change of it.

  Args:
    config: the model.
    params: the model's parameters; `layers` is not read.
    h_BTD: what the head reads, after the final norm, [..., D].
    dh_BTD: its change, [..., D].

  Returns:
    float32 [..., V] each; the second is the head applied to `dh_BTD` where
    logits are not capped.
  """
  return jax.jvp(
    lambda h_BTD: unembed(config, params, h_BTD, "raw"), (h_BTD,), (dh_BTD,)
  )


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

  def on_parameters(block, carry, options, more):
    return body(carry, (block.variables["params"], options, more))

  return Decoder(config, parent=None).apply(
    {"params": {"layers": layers}},
    carry,
    on_parameters,
    gates,
    each,
    method="over_layers",
  )


def layer_options(
  config: ModelConfig, sliding: bool | jax.Array, gate: Gates | None
) -> dict[str, Any]:
  """Keyword arguments of `block` for one layer of a scan.

  Args:
    config: the model.
    sliding: whether this layer slides; may be traced, and is made static where
      all layers are alike.
    gate: of this layer, scalars; None is open.
  """
  if not any(config.sliding_layers):
    sliding = False
  elif all(config.sliding_layers):
    sliding = True
  return dict(sliding=sliding, **parts.gate_options(gate))
