"""How are two of this project's models compared?

The only file of `probes` that knows the decoder: it turns a config and two
parameter trees into the callables that the protocols take, and compiles them.
`jaxprune.probes` does not import it, so that the probes load without Flax.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import decoder, generation
from jaxprune.models.config import ModelConfig
from jaxprune.models.decoder import Gates
from jaxprune.probes import scan, trajectories
from jaxprune.probes.position import Position, compare_position

Params = Any


def check_same_shape(config: ModelConfig, pruned_config: ModelConfig) -> None:
  """Refuse two models whose positions or logits cannot be compared.

  Raises:
    ValueError: names the first field that differs.
  """
  for field in ("num_layers", "embed_dim", "vocab_size"):
    dense, pruned = getattr(config, field), getattr(pruned_config, field)
    if dense != pruned:
      raise ValueError(
        f"the two models differ in {field}: {dense} and {pruned}; compare"
        " checkpoints of one shape"
      )


@functools.partial(jax.jit, static_argnames=("config", "pruned_config", "lens"))
def compare_sequences(
  config: ModelConfig,
  params: Params,
  pruned_config: ModelConfig,
  pruned_params: Params,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  rows_BR: jax.Array,
  *,
  temperature: float = 1.0,
  lens: str = "final_norm",
  gates: Gates | None = None,
  pruned_gates: Gates | None = None,
) -> tuple[Position, Position]:
  """Compare two models on the same tokens (teacher-forced), in one pass.

  Args:
    config: of the dense model.
    params: of the dense model.
    pruned_config: of the pruned model; its layers may be narrower.
    pruned_params: of the pruned model.
    tokens_BT: what both read, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    rows_BR: positions to compare, int [B, R].
    temperature: T of the softmax.
    lens: how inner layers are read out, 'final_norm' or 'raw'; h is the
      residual stream in both.
    gates: sublayers of the dense model that stay; None is all.
    pruned_gates: likewise of the pruned model.

  Returns:
    (inner, output): `inner` after every sublayer, leaves [L, 2, B, R] with
    attention at index 0 and MLP at 1; `output` of the whole model, leaves
    [B, R], where h is what the LM head reads (after the final norm) and z the
    model's logits, whatever the lens.
  """
  context = decoder.make_context(config, tokens_BT.shape[1], valid_BT)

  def block(model_config, layer, x_BTD):
    weights, sliding, gate = layer
    out, tape = decoder.block(
      model_config,
      weights,
      x_BTD,
      context,
      **decoder.layer_options(model_config, sliding, gate),
    )
    return tape["residual_mid"], out

  def stacked(model_config, model_params, model_gates):
    return (
      model_params["layers"],
      jnp.asarray(model_config.sliding_layers),
      model_gates,
    )

  def read(h_D, model_config, model_params, how):
    return decoder.unembed(model_config, model_params, h_D, how)

  def inner(h_D, g_D):
    return compare_position(
      h_D,
      g_D,
      read(h_D, config, params, lens),
      read(g_D, pruned_config, pruned_params, lens),
      temperature,
    )

  x_BTD, y_BTD, records = scan.compare_layers(
    functools.partial(block, config),
    inner,
    decoder.embed(config, params, tokens_BT),
    stacked(config, params, gates),
    decoder.embed(pruned_config, pruned_params, tokens_BT),
    stacked(pruned_config, pruned_params, pruned_gates),
    pruned_block=functools.partial(block, pruned_config),
    rows_BT=rows_BR,
  )
  h_BRD, g_BRD = jax.lax.optimization_barrier(
    tuple(
      decoder.final_norm(model_config, model_params, scan.pick_rows(x, rows_BR))
      for model_config, model_params, x in (
        (config, params, x_BTD),
        (pruned_config, pruned_params, y_BTD),
      )
    )
  )

  def output(h_D, g_D):
    return compare_position(
      h_D,
      g_D,
      read(h_D, config, params, "raw"),
      read(g_D, pruned_config, pruned_params, "raw"),
      temperature,
    )

  return records, scan.measure_rows(output, h_BRD, g_BRD)


@functools.partial(
  jax.jit,
  static_argnames=(
    "config",
    "lanes",
    "num_steps",
    "sampling_temperature",
    "eos_ids",
  ),
)
def compare_lanes(
  config: ModelConfig,
  params: Params,
  pruned_params: Params,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  lanes: tuple[trajectories.Lane, ...],
  *,
  num_steps: int,
  key: jax.Array,
  sampling_temperature: float = 0.0,
  temperature: float = 1.0,
  eos_ids: tuple[int, ...] = (),
) -> dict[str, trajectories.LaneRecords]:
  """Decode with several lanes in lockstep and compare; see `trajectories`.

  Args:
    config: of both models; a narrower MLP needs no other.
    params: of the dense model.
    pruned_params: of the pruned model.
    tokens_BT: prompts, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    lanes: compared with the dense lane.
    num_steps: tokens to decode; T + num_steps may not exceed the context.
    key: of the draws.
    sampling_temperature: 0 is greedy.
    temperature: T of the softmax that is measured.
    eos_ids: tokens that end a text.

  Returns:
    Records by lane, leaves [num_steps, B]; h is what the LM head reads.
  """
  # One column of padding, so that a prompt of one token has a cache too.
  tokens_BT = jnp.pad(tokens_BT, ((0, 0), (1, 0)))
  valid_BT = jnp.pad(valid_BT, ((0, 0), (1, 0)))
  weights = {"dense": params, "pruned": pruned_params}
  capacity = tokens_BT.shape[1] + num_steps
  caches = {
    name: generation.prefill(
      config,
      tree,
      tokens_BT[:, :-1],
      capacity=capacity,
      valid_BT=valid_BT[:, :-1],
    )[2]
    for name, tree in weights.items()
  }

  def decode(tree, token_B, cache):
    x_BTD, _, cache = generation.decode_step(
      config, tree, cache, token_B[:, None]
    )
    h_BD = decoder.final_norm(config, tree, x_BTD[:, 0])
    z_BV = decoder.unembed(config, tree, h_BD, "raw")
    return *jax.lax.optimization_barrier((h_BD, z_BV)), cache

  def measure(h_D, g_D, z_V, y_V):
    return compare_position(h_D, g_D, z_V, y_V, temperature)

  def choose(step_key, z_BV):
    if not sampling_temperature:
      return generation.choose(z_BV)
    return generation.choose(z_BV, step_key, temperature=sampling_temperature)

  return trajectories.decode_lanes(
    decode,
    measure,
    weights,
    caches,
    tokens_BT[:, -1],
    lanes,
    num_steps=num_steps,
    key=key,
    eos_ids=eos_ids,
    choose=choose,
  )
