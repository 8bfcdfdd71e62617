"""How does one pruned sublayer of this project's decoder act on dense context?

Turns a config and parameter trees into the callables of `probes.transitions`,
and compiles them. `jaxprune.probes` does not import this file, so that the
probes load without Flax.

Everything but the replaced sublayer is dense: embedding, the other sublayers,
the last norm and the LM head. A sublayer is its norm and its matrices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import attention, decoder, decoder_layer
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import Context
from jaxprune.probes import lm_head, transitions
from jaxprune.probes.decoder import sequences
from jaxprune.probes.position import compare_position

Params = Any

# Fields in which two models agree where a sublayer of one fits into the other.
_REPLACEABLE = (
  *("num_layers", "embed_dim", "vocab_size", "head_dim", "num_heads"),
  *("num_kv_heads", "norm_eps", "norm", "pre_norm", "post_norm"),
  *("unit_offset", "parallel_residual", "gated_mlp", "activation"),
  *("qk_norm", "qk_norm_whole", "score_scale", "score_cap", "logit_cap"),
  *("rope", "local_rope", "sliding_window", "sliding_layers"),
)


def _static(default):
  """A field that is part of the program and not of its input."""
  return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """How a replaced sublayer is measured.

  Attributes:
    lens: how a layer is read out, 'final_norm' or 'raw'; static under jit.
    history: whose keys and values pruned attention reads before the current
      token, of `transitions.HISTORIES`; static.
    measure: `(h_D, h_pruned_D, z_V, z_pruned_V, temperature) -> scalars`;
      static.
    chunk: most positions that are read out together; static.
    temperature: T of the softmax that is measured.
    head: spectrum of `head_kernel`, to measure the gain of the LM head as well;
      None does not.
  """

  lens: str = _static("final_norm")
  history: str = _static("dense")
  measure: Callable[..., Any] = _static(compare_position)
  chunk: int = _static(256)
  temperature: float | jax.Array = 1.0
  head: lm_head.Spectrum | None = None


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
  """The matrix of the LM head, [D, V]: z = what it reads times this.

  Where a model caps its logits, z is the cap of that product.

  Args:
    config: the model.
    params: its parameters; `layers` is not read.
  """
  if not config.has_head:
    raise ValueError("the model has no output head: it embeds texts only")
  if config.tie_embeddings:
    return params["embed"]["table"].T
  return params["head"]["kernel"]


def check_replaceable(config: ModelConfig, pruned_config: ModelConfig) -> None:
  """Refuse a model whose sublayers do not fit between those of another.

  Args:
    config: of the dense model.
    pruned_config: of the model whose sublayers replace dense ones.

  Raises:
    ValueError: names the first field that differs.
  """
  sequences.check_equal_fields(
    config,
    pruned_config,
    _REPLACEABLE,
    "a pruned sublayer must fit the dense one's place",
  )


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def compare_transitions(
  config: ModelConfig,
  params: Params,
  pruned_params: Params | None,
  tokens_BT: jax.Array,
  valid_BT: jax.Array | None = None,
  measurement: Measurement = Measurement(),
  *,
  num_steps: int,
) -> Any:
  """Replace or drop every sublayer in turn at the last positions of texts.

  RoPE of kinds dynamic and longrope takes the length of the whole text here;
  a decoder takes that of each step.

  Args:
    config: of the dense model; the pruned one differs in its MLP width at
      most (`check_replaceable`).
    params: of the dense model, layers stacked.
    pruned_params: of the pruned model, of which only `layers` is read; None
      drops each sublayer instead.
    tokens_BT: what the dense model reads, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T]. None: every token is real.
    measurement: how a layer is read out, and what is measured.
    num_steps: R, the last so many positions are measured; they may hold no
      padding.

  Returns:
    The tree of `measurement.measure`, leaves [L, 2, B, R]: attention at index
    0, MLP at 1. With `measurement.head`, a pair of that tree and of an
    `lm_head.HeadGain`, whose energies are [L, 2, B, R, P].

  Raises:
    ValueError: an unknown lens or history; more steps than tokens.
  """
  history = measurement.history
  if history not in transitions.HISTORIES:
    raise ValueError(
      f"history={history!r}: must be one of {transitions.HISTORIES}"
    )
  length = tokens_BT.shape[1]
  if not 1 <= num_steps <= length:
    raise ValueError(
      f"num_steps={num_steps}: must be 1 to {length}, the tokens of a text"
    )
  context = decoder.make_context(config, length, valid_BT)
  begin = length - num_steps
  before, measured = split_context(context, begin)
  mask_1RS = (context.slots[None] < measured.slots[:, None])[None]

  def sublayers(inputs, x_BTD):
    """One layer, dense, and both its sublayers replaced at measured rows."""
    # `block` computes the rows before the measured ones. At the measured rows
    # the dense and the pruned sublayer go through the same operations, so that
    # equal weights give equal bits.
    weights, pruned, sliding = inputs
    options = decoder.layer_options(config, sliding, None)
    x_BRD, out_BTD = x_BTD[:, begin:], x_BTD[:, :begin]
    slides = dict(sliding=options["sliding"])
    keys_values = decoder_layer.heads(
      config, weights, x_BRD, measured, **slides
    )[1:]
    if begin:
      out_BTD, tape = decoder_layer.block(
        config, weights, out_BTD, before, **options
      )
      keys_values = tuple(
        jnp.concatenate(parts, axis=1)
        for parts in zip((tape["key"], tape["value"]), keys_values)
      )
    mask_BRS = mask_1RS & attention.allowed(
      measured.slots,
      context.slots,
      measured.positions,
      context.key_positions,
      context.key_valid,
      config.sliding_window,
      options["sliding"],
    )

    def attend(layer, keys_values, mask_BRS):
      return x_BRD + attention_on_history(
        config, layer, x_BRD, measured, keys_values, mask_BRS, **slides
      )

    mid_BRD = jax.lax.optimization_barrier(
      attend(weights, keys_values, mask_BRS)
    )
    out_BRD = jax.lax.optimization_barrier(
      mid_BRD + decoder_layer.mlp_output(config, weights, x_BRD, mid_BRD)
    )
    dense = mid_BRD, out_BRD
    out_BTD = jnp.concatenate([out_BTD, out_BRD], axis=1)
    if pruned is None:
      return out_BTD, dense, (x_BRD, mid_BRD)
    if history == "pruned":
      keys_values = decoder_layer.heads(
        config, pruned, x_BTD, context, **slides
      )[1:]
    return (
      out_BTD,
      dense,
      jax.lax.optimization_barrier(
        (
          attend(pruned, keys_values, mask_BRS & (history != "none")),
          mid_BRD + decoder_layer.mlp_output(config, pruned, x_BRD, mid_BRD),
        )
      ),
    )

  def measure(h_D, g_D, z_V, y_V):
    record = measurement.measure(h_D, g_D, z_V, y_V, measurement.temperature)
    if measurement.head is None:
      return record
    if measurement.lens == "final_norm":
      h_D, g_D = (decoder.final_norm(config, params, x_D) for x_D in (h_D, g_D))
    kernel_DV = head_kernel(config, params)
    return record, lm_head.head_gain(h_D, g_D, kernel_DV, measurement.head)

  _, records = transitions.compare_sublayers(
    sublayers,
    lambda h_RD: decoder.unembed(config, params, h_RD, measurement.lens),
    measure,
    decoder.embed(config, params, tokens_BT, context.positions),
    (
      params["layers"],
      None if pruned_params is None else pruned_params["layers"],
      jnp.asarray(config.sliding_layers),
    ),
    chunk=measurement.chunk,
  )
  return records


def split_context(context: Context, begin: int) -> tuple[Context, Context]:
  """Cut the context of a text in two.

  Args:
    context: of a pass without a cache over T tokens.
    begin: tokens of the first part.

  Returns:
    The context of the tokens before `begin` among themselves, and that of the
    others, which see the keys of the whole text.
  """

  def part(rows, keys):
    return dataclasses.replace(
      context,
      positions=context.positions[:, rows],
      cos=context.cos[:, rows],
      sin=context.sin[:, rows],
      local=jax.tree.map(lambda leaf: leaf[:, rows], context.local),
      slots=context.slots[rows],
      key_positions=context.key_positions[:, keys],
      key_valid=(
        None if context.key_valid is None else context.key_valid[:, keys]
      ),
    )

  before = slice(None, begin)
  return part(before, before), part(slice(begin, None), slice(None))


def attention_on_history(
  config: ModelConfig,
  layer: Params,
  x_BRD: jax.Array,
  context: Context,
  keys_values: tuple[jax.Array, jax.Array],
  mask_BRS: jax.Array,
  *,
  sliding: bool | jax.Array,
) -> jax.Array:
  """What attention adds at R positions, given the keys of earlier ones.

  Each position reads its own key and value, and the given ones elsewhere.

  Args:
    config: the model.
    layer: parameters of the layer.
    x_BRD: residual before the layer, [B, R, D].
    context: whose angles are those of the R positions.
    keys_values: [B, S, K, H] each, as a cache holds them.
    mask_BRS: bool [B or 1, R, S], False at each position's own key.
    sliding: whether this layer slides; may be traced.

  Returns:
    [B, R, D].
  """
  query_BRNH, *own_pair = decoder_layer.heads(
    config, layer, x_BRD, context, sliding=sliding
  )
  read_BRNH = transitions.attend_to_history(
    query_BRNH,
    *keys_values,
    *own_pair,
    mask_BRS,
    scale=config.score_scale,
    cap=config.score_cap,
  )
  return decoder_layer.attention_output(config, layer, read_BRNH)
