"""What becomes of a decoder's text when a part of its logit change is undone?

Every intervention of `interventions.replace_change` and every restoration:
on the dense model's text (`measure_changes`), and while a text of its own is
written (`continue_changed`). Each is one compiled program for all of them.

Reference: that of `probes.interventions`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.models import decoder, decoding, sampling
from jaxprune.models.config import ModelConfig
from jaxprune.probes import divergences, interventions, scan
from jaxprune.probes.decoder.interventions import (
  METRICS,
  Pair,
  Text,
  compare_logits,
)

_CHUNK = 8  # positions whose logits, and all changes of them, exist at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
  """Which changes of the logits are made, and at which T they are measured.

  Attributes:
    temperature: T of the softmax that is measured; may be traced.
    top: tokens of the part `top`.
    temperatures: T to read the pruned logits at.
    top_k: numbers of tokens to cut the pruned distribution to.
    top_p: masses to cut it to.
  """

  temperature: float | jax.Array = 1.0
  top: int = dataclasses.field(metadata=dict(static=True))
  temperatures: tuple[float, ...] = dataclasses.field(
    default=(), metadata=dict(static=True)
  )
  top_k: tuple[int, ...] = dataclasses.field(
    default=(), metadata=dict(static=True)
  )
  top_p: tuple[float, ...] = dataclasses.field(
    default=(), metadata=dict(static=True)
  )


def measure_changes(
  config: ModelConfig,
  pair: Pair,
  text: Text,
  dense_BRD: jax.Array,
  pruned_BRD: jax.Array,
  key: jax.Array,
  changes: Changes,
  *,
  metrics: tuple[str, ...] = METRICS[1:],
) -> dict[str, dict[str, jax.Array]]:
  """Change the logits in every way and compare with the dense ones.

  Args:
    config: of the dense model.
    pair: the models.
    text: what was read.
    dense_BRD: what the LM head reads in the dense model.
    pruned_BRD: what it reads in the pruned model.
    key: of the random directions.
    changes: which changes are made.
    metrics: those of `interventions.METRICS` that are wanted, without
      one_minus_cos_h.

  Returns:
    By intervention, [B, R] for each metric, 0 where the text has ended. Under
    truncation kl, kl_at_flips, rms_dz, var_p and log_prob may be infinite.
  """
  by_metric = _measure_changes(
    config, pair, text, dense_BRD, pruned_BRD, key, changes, metrics=metrics
  )
  like_V = jax.ShapeDtypeStruct((config.vocab_size,), jnp.float32)
  labels = sorted(
    jax.eval_shape(
      lambda z_V: _change(z_V, z_V, jax.random.key(0), changes), like_V
    )
  )
  return {
    label: {name: leaf[..., n] for name, leaf in by_metric.items()}
    for n, label in enumerate(labels)
  }


@functools.partial(jax.jit, static_argnames=("config", "metrics"))
def _measure_changes(
  config, pair, text, dense_BRD, pruned_BRD, key, changes, *, metrics
):
  """[B, R, P] for each metric, interventions in the order of their names."""
  keys_BR = jax.random.split(key, text.target.shape)

  def measure(h_D, g_D, target, alive, row_key):
    z_V, y_V = jax.lax.optimization_barrier(
      tuple(
        decoder.unembed(config, pair.params, x_D, "raw") for x_D in (h_D, g_D)
      )
    )
    logits = _change(z_V, y_V, row_key, changes)
    compared = jax.vmap(
      lambda y_V: compare_logits(z_V, y_V, target, changes.temperature)
    )(jnp.stack([logits[label] for label in sorted(logits)]))
    return {name: jnp.where(alive, compared[name], 0) for name in metrics}

  return scan.measure_rows(
    measure,
    dense_BRD,
    pruned_BRD,
    text.target,
    text.alive,
    keys_BR,
    chunk=_CHUNK,
  )


@jax.jit  # traced once for all that change logits in these ways
def _change(z_V, y_V, key, changes):
  """Logits of every intervention, restoration and truncation of a position."""
  temperature = changes.temperature
  logits = interventions.replace_change(
    z_V, y_V, key, top=changes.top, temperature=temperature
  )
  logits |= interventions.restorations(
    z_V, y_V, temperature=temperature, temperatures=changes.temperatures
  )
  for name in ("top_k", "top_p"):
    for cut in getattr(changes, name):
      logits[f"{name}_{cut:g}"] = (
        temperature
        * sampling.truncate((y_V / temperature)[None], **{name: cut})[0]
      )
  return logits


@functools.partial(jax.jit, static_argnames=("config", "names", "num_steps"))
def continue_changed(
  config: ModelConfig,
  pair: Pair,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  key: jax.Array,
  changes: Changes,
  *,
  names: tuple[str, ...],
  num_steps: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Decode greedily with changed logits; every intervention its own text.

  Both models read the text of an intervention, each with a cache of its own, so
  that dz is known at every step of it.

  Args:
    config: of the dense model.
    pair: the models.
    tokens_BT: prompts, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    key: of the random directions.
    changes: which changes are made.
    names: N of them; interventions of `interventions.replace_change` and
      `interventions.restorations`.
    num_steps: S; decoding goes on behind an end of text.

  Returns:
    The tokens chosen, int32 [P, B, R], and on each text's own context
    [P, B, R]: flips, 1 where the likeliest token of the changed logits is not
    that of the dense ones, and kl.
  """
  count, batch = len(names), len(tokens_BT)

  def repeat(a_BT):
    return jnp.tile(a_BT, (count, 1))

  trees = [pair.params, {**pair.params, "layers": pair.pruned}]
  caches, last = [], []
  for tree in trees:
    x_BTD, _, cache = decoding.prefill(
      config,
      tree,
      tokens_BT,
      valid_BT=valid_BT,
      capacity=tokens_BT.shape[1] + num_steps,
    )
    caches.append(
      dataclasses.replace(
        cache,
        **{
          name: jnp.tile(getattr(cache, name), (1, count, 1, 1, 1))
          for name in ("key", "value")
        },
        positions=repeat(cache.positions),
        valid=repeat(cache.valid),
      )
    )
    last.append(repeat(x_BTD[:, -1]))
  which_B = jnp.repeat(jnp.arange(count), batch)

  def choose(x_BD, y_BD, step):
    def choose_row(inputs):
      which, x_D, y_D, row_key = inputs
      z_V, zq_V = jax.lax.optimization_barrier(
        tuple(
          decoder.unembed(config, pair.params, each_D) for each_D in (x_D, y_D)
        )
      )
      logits = _change(z_V, zq_V, row_key, changes)
      y_V = jnp.stack([logits[name] for name in names])[which]
      return (
        jnp.argmax(y_V).astype(jnp.int32),
        (jnp.argmax(y_V) != jnp.argmax(z_V)).astype(jnp.float32),
        divergences.compare_distributions(z_V, y_V, changes.temperature).kl,
      )

    keys = jax.random.split(jax.random.fold_in(key, step), count * batch)
    return jax.lax.map(
      choose_row, (which_B, x_BD, y_BD, keys), batch_size=min(64, count * batch)
    )

  def advance(carry, step):
    token_B, caches = carry
    pairs = [
      decoding.decode_step(config, tree, cache, token_B[:, None])[::2]
      for tree, cache in zip(trees, caches)
    ]
    (x_BTD, dense_cache), (y_BTD, pruned_cache) = pairs
    out = choose(
      *jax.lax.optimization_barrier((x_BTD[:, 0], y_BTD[:, 0])), step
    )
    return (out[0], [dense_cache, pruned_cache]), out

  first = choose(*last, 0)
  _, rest = jax.lax.scan(advance, (first[0], caches), jnp.arange(1, num_steps))
  tokens, flips, kl = (
    rearrange(
      jnp.concatenate([first_B[None], rest_RB]), "R (P B) -> P B R", P=count
    )
    for first_B, rest_RB in zip(first, rest)
  )
  return tokens, {"flips": flips, "kl": kl}
