"""How are two of this project's models compared?

Turns configs and parameter trees into the callables that `probes.scan` and
`probes.trajectories` take, and compiles them. `jaxprune.probes` does not import
this file, so that the probes load without Flax.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import decoder, decoder_layer, decoding, generation
from jaxprune.models.config import ModelConfig
from jaxprune.models.decoder import Gates
from jaxprune.probes import scan, trajectories
from jaxprune.probes.position import compare_position

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A model to compare.

  Attributes:
    config: static under jit.
    params: layers stacked.
    gates: which sublayers stay; None is all.
  """

  config: ModelConfig = dataclasses.field(metadata={"static": True})
  params: Params
  gates: Gates | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What two models read, and where they are compared.

  Attributes:
    tokens: int [B, T], left-padded.
    valid: False for padding, bool [B, T].
    rows: positions to compare, int [B, R].
  """

  tokens: jax.Array
  valid: jax.Array
  rows: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How decodings choose their tokens; static under jit.

  Attributes:
    num_steps: tokens to decode; they and the prompt may not exceed the context.
    temperature: 0 is greedy.
    eos_ids: tokens that end a text.
  """

  num_steps: int
  temperature: float = 0.0
  eos_ids: tuple[int, ...] = ()


def check_same_shape(config: ModelConfig, pruned_config: ModelConfig) -> None:
  """Refuse two models whose positions or logits cannot be compared.

  Args:
    config: of the dense model.
    pruned_config: of the pruned model.

  Raises:
    ValueError: names the first field that differs.
  """
  check_equal_fields(
    config,
    pruned_config,
    ("num_layers", "embed_dim", "vocab_size"),
    "compare checkpoints of one shape",
  )


def check_equal_fields(
  config: ModelConfig,
  pruned_config: ModelConfig,
  fields: Sequence[str],
  advice: str,
) -> None:
  """Refuse two models that differ in one of some fields.

  Args:
    config: of the dense model.
    pruned_config: of the pruned model.
    fields: of `ModelConfig`, in which they must agree.
    advice: ends the message: how they would agree.

  Raises:
    ValueError: names the first field that differs.
  """
  for field in fields:
    dense, pruned = getattr(config, field), getattr(pruned_config, field)
    if dense != pruned:
      raise ValueError(
        f"the two models differ in {field}: {dense} and {pruned}; {advice}"
      )


@functools.partial(jax.jit, static_argnames=("lens", "measure", "inside"))
def compare_sequences(
  dense: Model,
  pruned: Model,
  reading: Reading,
  *,
  temperature: float = 1.0,
  lens: str = "final_norm",
  measure: Callable[..., Any] = compare_position,
  inside: Callable[..., Any] = compare_position,
  texts: jax.Array | None = None,
) -> tuple[Any, Any]:
  """Compare two models on the same tokens (teacher-forced), in one pass.

  Args:
    dense: the dense model.
    pruned: the pruned model; its MLPs may be narrower.
    reading: what both read, and where they are compared.
    temperature: T of the softmax.
    lens: how inner layers are read out, 'final_norm' or 'raw'; h is the
      residual stream in both.
    measure: `(h_D, h_pruned_D, z_V, z_pruned_V, temperature) -> scalars` of one
      position of the output.
    inside: the same after a sublayer, where most of the time goes; what it does
      not return is not computed.
    texts: indices of the texts that are measured after every sublayer, int [C];
      None is all of them, C = B.

  Returns:
    (inner, output): `inner` is the tree of `inside` after every sublayer,
    leaves [L, 2, C, R] with attention at index 0 and MLP at 1; `output` is the
    tree of `measure` for the whole model, leaves [B, R], where h is what the LM
    head reads (after the final norm) and z the model's logits, whatever the
    lens.
  """
  context = decoder.make_context(
    dense.config, reading.tokens.shape[1], reading.valid
  )

  def stack(model):
    def block(layer, x_BTD):
      weights, sliding, gate = layer
      out_BTD, tape = decoder_layer.block(
        model.config,
        weights,
        x_BTD,
        context,
        **decoder.layer_options(model.config, sliding, gate),
      )
      return tape["residual_mid"], out_BTD

    return scan.Stack(
      block=block,
      x=decoder.embed(
        model.config, model.params, reading.tokens, context.positions
      ),
      layers=(
        model.params["layers"],
        jnp.asarray(model.config.sliding_layers),
        model.gates,
      ),
    )

  def read_both(h_D, g_D, how):
    return tuple(
      decoder.unembed(model.config, model.params, x_D, how)
      for model, x_D in ((dense, h_D), (pruned, g_D))
    )

  # Traced once for attention, MLP and output; most of the program is in them.
  inside, measure = jax.jit(inside), jax.jit(measure)
  x_BTD, y_BTD, inner = scan.compare_layers(
    stack(dense),
    stack(pruned),
    lambda h_D, g_D: inside(h_D, g_D, *read_both(h_D, g_D, lens), temperature),
    rows_BT=reading.rows,
    texts=texts,
  )
  h_BRD, g_BRD = jax.lax.optimization_barrier(
    tuple(
      decoder.final_norm(
        model.config, model.params, scan.pick_rows(x, reading.rows)
      )
      for model, x in ((dense, x_BTD), (pruned, y_BTD))
    )
  )
  output = scan.measure_rows(
    lambda h_D, g_D: measure(
      h_D, g_D, *read_both(h_D, g_D, "raw"), temperature
    ),
    h_BRD,
    g_BRD,
  )
  return inner, output


@jax.jit
def read_outputs(model: Model, reading: Reading) -> jax.Array:
  """What the LM head reads at some positions of a text.

  Args:
    model: who reads.
    reading: what it reads, and where it is looked at.

  Returns:
    h after the final norm, [B, R, D].
  """
  x_BTD, _ = decoder.forward(
    model.config,
    model.params,
    reading.tokens,
    valid_BT=reading.valid,
    gates=model.gates,
  )
  return decoder.final_norm(
    model.config, model.params, scan.pick_rows(x_BTD, reading.rows)
  )


def compare_outputs(
  dense: Model,
  pruned: Model,
  h_BRD: jax.Array,
  reading: Reading,
  *others_BR: jax.Array,
  measure: Callable[..., Any],
) -> Any:
  """Compare the outputs at some positions of a text.

  Args:
    dense: the dense model.
    pruned: the pruned model.
    h_BRD: from `read_outputs` of the dense model, [B, R, D].
    reading: what the pruned model reads too, and where it is looked at.
    *others_BR: what else `measure` is told of a position, each [B, R].
    measure: `(h_D, g_D, z_V, z_pruned_V, *others) -> scalars`.

  Returns:
    The tree of `measure`, leaves [B, R].
  """
  g_BRD = read_outputs(pruned, reading)
  return _compare_heads(
    dense, pruned, h_BRD, g_BRD, *others_BR, measure=measure
  )


@functools.partial(jax.jit, static_argnames=("measure",))
def _compare_heads(dense, pruned, h_BRD, g_BRD, *others_BR, measure):
  """What two LM heads make of what they read."""
  return scan.measure_rows(
    lambda h_D, g_D, *others: measure(
      h_D,
      g_D,
      *(
        decoder.unembed(model.config, model.params, x_D, "raw")
        for model, x_D in ((dense, h_D), (pruned, g_D))
      ),
      *others,
    ),
    h_BRD,
    g_BRD,
    *others_BR,
  )


@functools.partial(jax.jit, static_argnames=("decodings", "sampling"))
def compare_decodings(
  dense: Model,
  pruned: Model,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  decodings: tuple[trajectories.Decoding, ...],
  sampling: Sampling,
  *,
  key: jax.Array,
  temperature: float = 1.0,
) -> dict[str, trajectories.DecodingRecords]:
  """Decode in several ways at once and compare; see `trajectories`.

  Args:
    dense: the dense model, all of it.
    pruned: the pruned model, all of it; its MLPs may be narrower.
    tokens_BT: prompts, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    decodings: what is compared with the dense decoding.
    sampling: how many tokens, and how they are chosen.
    key: of the draws.
    temperature: T of the softmax that is measured.

  Returns:
    Records by name of the decoding, leaves [R, B] with R = num_steps; h is what
    the LM head reads.
  """
  config = dense.config
  capacity = tokens_BT.shape[1] + sampling.num_steps

  def with_cache(params):
    _, _, cache = decoding.prefill(
      config, params, tokens_BT, capacity=capacity, valid_BT=valid_BT
    )
    return params, decoding.step_back(cache)

  @jax.jit  # traced once for all decodings
  def decode(params, token_B, cache):
    x_BTD, _, cache = decoding.decode_step(
      config, params, cache, token_B[:, None]
    )
    h_BD = decoder.final_norm(config, params, x_BTD[:, 0])
    z_BV = decoder.unembed(config, params, h_BD, "raw")
    return *jax.lax.optimization_barrier((h_BD, z_BV)), cache

  def choose(step_key, z_BV):
    if not sampling.temperature:
      return generation.choose(z_BV)
    return generation.choose(z_BV, step_key, temperature=sampling.temperature)

  return trajectories.decode_together(
    decode,
    lambda h_D, g_D, z_V, y_V: compare_position(
      h_D, g_D, z_V, y_V, temperature
    ),
    {
      name: with_cache(model.params)
      for name, model in (("dense", dense), ("pruned", pruned))
    },
    tokens_BT[:, -1],
    decodings,
    trajectories.Steps(
      count=sampling.num_steps, choose=choose, eos_ids=sampling.eos_ids
    ),
    key=key,
  )
