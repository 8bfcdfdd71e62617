"""What becomes of a decoder's output when a part of its change is undone?

Two models of one shape read one text. Interventions are data, so that all of a
kind are one compiled program:

  freeze  the first k layers are dense and the later ones pruned, or the
          reverse, at all positions. The last keys and values are those of
          such a model, so this is also "the dense h is given to the pruned run
          at layer k, at all positions".
  patch   one run is given the h of the other at layer k, at the position that
          is read and at no other: what earlier positions left in the keys and
          values stays its own. The control moves h as far in a random
          direction.

Interventions on the logits themselves are in `logit_interventions`.

Embeddings, last norm and LM head are those of the dense model and must be the
same in both. A dropped sublayer has a zero output projection.

A greedy text leaves the dense one at the first step whose likeliest token is
another, and up to there both are the same text. So all interventions are
compared on the text of the dense model.

Reference: that of `probes.interventions`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.models import attention, decoder, decoder_layer
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import positions_of
from jaxprune.probes import (
  divergences,
  interventions,
  log_ratio,
  logit_moments,
  scan,
  spaces,
)
from jaxprune.probes.decoder import transitions
from jaxprune.probes.decoder.propagation import path

Params = Any
METRICS = (
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
  "kl",
  "tv",
  "flips",
  "kl_at_flips",
  "rms_dz",
  "var_p",
  "margin_lost",
  "log_prob",
  "hits",
)
_CHUNK = 32  # positions whose logits exist at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """What both models read, and what comes next.

  Attributes:
    tokens: int [B, T], left-padded.
    valid: bool [B, T], False for padding.
    target: int [B, R], the next token at each of the last R positions.
    alive: bool [B, R], positions that count; the others read 0.
  """

  tokens: jax.Array
  valid: jax.Array
  target: jax.Array
  alive: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two models of one shape.

  Attributes:
    params: the dense model's.
    pruned: layers of the pruned model, a tree like `params["layers"]`.
  """

  params: Params
  pruned: Params


def make_pair(
  config: ModelConfig,
  params: Params,
  pruned_config: ModelConfig,
  pruned_params: Params,
) -> Pair:
  """Bring two models to one structure; a missing bias becomes 0.

  Args:
    config: of the dense model.
    params: of the dense model.
    pruned_config: of the pruned model.
    pruned_params: of the pruned model, of which only the layers are kept.

  Raises:
    ValueError: the models differ in shape, or outside of their layers.
  """
  path.check_outside_layers(config, params, pruned_config, pruned_params)
  dense, pruned = (
    {name: dict(leaf) for name, leaf in tree["layers"].items()}
    for tree in (params, pruned_params)
  )
  for sublayer, name in decoder.kernels_of(dense):
    for layers, other in ((dense, pruned), (pruned, dense)):
      leaf, beside = layers[sublayer][name], other[sublayer][name]
      if "bias" in beside and "bias" not in leaf:
        layers[sublayer][name] = {
          **leaf,
          "bias": jnp.zeros_like(beside["bias"]),
        }
  return Pair(params={**params, "layers": dense}, pruned=pruned)


@functools.partial(jax.jit, static_argnames="config")
def frozen(
  config: ModelConfig, pair: Pair, text: Text, dense_PL: jax.Array
) -> jax.Array:
  """What the LM head reads when some layers are dense, the others pruned.

  Args:
    config: of the dense model.
    pair: the models.
    text: what is read.
    dense_PL: bool [P, L], which layers are dense, for P runs.

  Returns:
    [P, B, R, D]. Rows of all True and of all False are the two models.
  """
  steps = text.target.shape[1]

  def run(dense_L):
    tree = interventions.mix_layers(dense_L, pair.params["layers"], pair.pruned)
    x_BTD, _ = decoder.forward(
      config, {**pair.params, "layers": tree}, text.tokens, valid_BT=text.valid
    )
    return decoder.final_norm(config, pair.params, x_BTD[:, -steps:])

  return jax.lax.map(run, dense_PL)


@functools.partial(jax.jit, static_argnames="config")
def patched(
  config: ModelConfig, pair: Pair, text: Text, key: jax.Array
) -> dict[str, jax.Array]:
  """What the LM head reads when one run is given the h of the other.

  Args:
    config: of the dense model.
    pair: the models.
    text: what is read.
    key: of the random directions.

  Returns:
    [L + 1, B, R, D] each, by the layers k that h has passed when it is
    replaced: `patch_pruned`, the pruned run with the dense h, and
    `patch_dense`, the dense run with the pruned h; `patch_pruned_random` and
    `patch_dense_random`, their own h moved as far in a random direction. And
    `dense` and `pruned` themselves, [1, B, R, D], by the same operations.
  """
  trees = {"dense": pair.params["layers"], "pruned": pair.pruned}
  past = {
    name: _history(config, pair.params, tree, text)
    for name, tree in trees.items()
  }
  steps = text.target.shape[1]
  positions_BT = positions_of(text.tokens.shape[1], text.valid)
  start_BRD = decoder.embed(
    config, pair.params, text.tokens[:, -steps:], positions_BT[:, -steps:]
  )

  @jax.jit  # traced once for both models and all that they are given
  def run_model(tree, past, given_BRD, place):
    return _on_history(config, tree, past, text, start_BRD, given_BRD, place)

  def run(name, given_BRD, place):
    return run_model(trees[name], past[name], given_BRD, place)

  def norm(x_BRD):
    return decoder.final_norm(config, pair.params, x_BRD)

  whole = {name: run(name, start_BRD, jnp.int32(0)) for name in trees}
  h_PBRD, g_PBRD = jax.lax.optimization_barrier(
    tuple(states for _, states in whole.values())
  )
  flat = (g_PBRD - h_PBRD).reshape(-1, h_PBRD.shape[-1])
  random_PBRD = jax.vmap(interventions.random_like)(
    jax.random.split(key, len(flat)), flat
  ).reshape(h_PBRD.shape)
  states_by_label = {
    "patch_pruned": ("pruned", h_PBRD),
    "patch_pruned_random": ("pruned", g_PBRD - random_PBRD),
    "patch_dense": ("dense", g_PBRD),
    "patch_dense_random": ("dense", h_PBRD + random_PBRD),
  }
  places = jnp.arange(len(h_PBRD))
  norms = {
    label: jax.lax.map(
      lambda inputs, name=name: norm(run(name, *inputs)[0]), (states, places)
    )
    for label, (name, states) in states_by_label.items()
  }
  return norms | {name: norm(out)[None] for name, (out, _) in whole.items()}


@functools.partial(jax.jit, static_argnames=("config", "metrics"))
def measure_states(
  config: ModelConfig,
  pair: Pair,
  text: Text,
  dense_BRD: jax.Array,
  h_PBRD: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  metrics: tuple[str, ...] = METRICS,
) -> dict[str, jax.Array]:
  """Compare what the LM head reads with what it reads in the dense model.

  Args:
    config: of the dense model.
    pair: the models.
    text: what was read.
    dense_BRD: the dense model's, [B, R, D].
    h_PBRD: of P interventions.
    temperature: T of the softmax.
    metrics: those of `METRICS` that are wanted.

  Returns:
    [P, B, R] for each metric, 0 where the text has ended. The dense model
    itself gives 0 for all but log_prob and hits. `flips` is 1 where the
    likeliest token is not the dense model's, `kl_at_flips` the KL there and 0
    elsewhere, `margin_lost` by how many logits the dense model's likeliest
    token leads the others less than before, `log_prob` nats of the text's next
    token, `hits` 1 where that is the likeliest.
  """

  def measure_state(h_BRD):
    def measure(h_D, g_D, target, alive):
      z_V, y_V = jax.lax.optimization_barrier(
        tuple(
          decoder.unembed(config, pair.params, x_D, "raw") for x_D in (h_D, g_D)
        )
      )
      changes = compare_logits(z_V, y_V, target, temperature)
      changes["one_minus_cos_h"] = spaces.compare_vectors(
        h_D, g_D
      ).one_minus_cos
      return {name: jnp.where(alive, changes[name], 0) for name in metrics}

    return scan.measure_rows(
      measure, dense_BRD, h_BRD, text.target, text.alive, chunk=_CHUNK
    )

  return jax.lax.map(measure_state, h_PBRD)


def compare_logits(
  z_V: ArrayLike, y_V: ArrayLike, target: ArrayLike, temperature: ArrayLike
) -> dict[str, jax.Array]:
  """`METRICS` of one position that need no h; see `measure_states`.

  Args:
    z_V: dense logits.
    y_V: changed logits.
    target: id of the text's next token.
    temperature: T of the softmax.

  Returns:
    A scalar for each metric but one_minus_cos_h.
  """
  plain, centred = spaces.compare_logits(z_V, y_V)
  changes = divergences.compare_distributions(z_V, y_V, temperature)
  dz_V = spaces.logit_change(z_V, y_V)
  top = jnp.argmax(z_V)
  flips = (top != jnp.argmax(y_V)).astype(jnp.float32)
  weight_V = log_ratio.softmax(z_V, temperature)
  return {
    "one_minus_cos_z": plain.one_minus_cos,
    "one_minus_cos_z_centred": centred.one_minus_cos,
    "one_minus_cos_p": changes.one_minus_cos_p,
    "kl": changes.kl,
    "tv": changes.tv,
    "flips": flips,
    "kl_at_flips": jnp.where(flips == 1, changes.kl, 0),
    "rms_dz": jnp.sqrt(jnp.mean(dz_V * dz_V)),
    "var_p": logit_moments.variance(weight_V, dz_V),
    "margin_lost": _lead(z_V, top) - _lead(y_V, top),
    "log_prob": jax.nn.log_softmax(y_V / temperature)[target],
    "hits": (jnp.argmax(y_V) == target).astype(jnp.float32),
  }


def _lead(z_V, token):
  """The logit of a token less the largest of the others."""
  others_V = jnp.where(jnp.arange(z_V.size) == token, -jnp.inf, z_V)
  return z_V[token] - jnp.max(others_V)


def _history(config, params, tree, text):
  """Keys and values [L, B, T, K, H] that one model leaves of the text."""
  _, kept = decoder.forward(
    config,
    {**params, "layers": tree},
    text.tokens,
    valid_BT=text.valid,
    observe=lambda tape: (tape["key"], tape["value"]),
  )
  return kept


def _on_history(config, tree, past, text, x_BRD, given_BRD, place):
  """Run the last R positions, each on the past that one model left.

  A position reads the past before it and its own key and value, so none sees
  what was given to another.

  Returns:
    The residual after the last layer, before the final norm, [B, R, D], and
    the residual after k layers for k from 0 to L, [L + 1, B, R, D].
  """
  length, steps = text.tokens.shape[1], text.target.shape[1]
  context = decoder.make_context(config, length, text.valid)
  begin = length - steps
  _, measured = transitions.split_context(context, begin)
  before_RT = context.slots[None] < context.slots[begin:, None]

  def swap(x_BRD, index):
    return jnp.where(index == place, given_BRD, x_BRD)

  def body(x_BRD, inputs):
    layer, options, (index, key_BTKH, value_BTKH) = inputs
    x_BRD = swap(x_BRD, index)
    mask_BRT = (
      attention.allowed(
        context.slots[begin:],
        context.slots,
        context.positions[:, begin:],
        context.key_positions,
        context.key_valid,
        config.sliding_window,
        options["sliding"],
      )
      & before_RT[None]
    )
    mid_BRD = x_BRD + transitions.attention_on_history(
      config,
      layer,
      x_BRD,
      measured,
      (key_BTKH, value_BTKH),
      mask_BRT,
      sliding=options["sliding"],
    )
    added_BRD = decoder_layer.mlp_output(config, layer, x_BRD, mid_BRD)
    return mid_BRD + added_BRD, x_BRD

  x_BRD, states = decoder.over_layers(
    config, tree, x_BRD, body, each=(jnp.arange(config.num_layers), *past)
  )
  x_BRD = swap(x_BRD, config.num_layers)
  return x_BRD, jnp.concatenate([states, x_BRD[None]])
