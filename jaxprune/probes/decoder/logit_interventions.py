"""What becomes of a decoder's text when a part of its logit change is undone?

Every intervention of `interventions.replace_change` and every rescue: on the
dense model's text (`measure_changes`), and decoding on (`continue_changed`).
Each is one compiled program for all interventions.

Reference: see `interventions`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxprune.models import decoder, generation
from jaxprune.models.config import ModelConfig
from jaxprune.probes import divergences, interventions, scan
from jaxprune.probes.decoder.interventions import (
  METRICS,
  Pair,
  Text,
  compare_logits,
)

_CHUNK = 8  # positions whose logits exist at a time, for all changes of them


def measure_changes(
  config: ModelConfig,
  pair: Pair,
  text: Text,
  dense_BRD: jax.Array,
  pruned_BRD: jax.Array,
  key: jax.Array,
  temperature: jax.Array,
  *,
  top: int,
  temperatures: tuple[float, ...] = (),
  top_k: tuple[int, ...] = (),
  top_p: tuple[float, ...] = (),
  metrics: tuple[str, ...] = METRICS[1:],
) -> dict[str, dict[str, jax.Array]]:
  """Change the logits in every way and compare with the dense ones.

  Args:
    config: of the dense model.
    pair: the models.
    text: what was read.
    dense_BRD: what the LM head reads in the dense model.
    pruned_BRD: in the pruned one.
    key: of the random directions.
    temperature: T of the softmax.
    top: tokens of the part `top`.
    temperatures: T to read the pruned logits at.
    top_k: numbers of tokens to cut the pruned distribution to.
    top_p: masses to cut it to.
    metrics: those of `intervention_driver.METRICS` that are wanted, without
      one_minus_cos_h.

  Returns:
    By intervention, [B, R] for each metric, 0 where the text has ended. Under
    truncation kl, kl_at_flips, rms_dz, var_p and log_prob may be infinite.
  """
  options = dict(top=top, temperatures=temperatures, top_k=top_k, top_p=top_p)
  found = _measure_changes(
    config,
    pair,
    text,
    dense_BRD,
    pruned_BRD,
    key,
    temperature,
    metrics=metrics,
    **options,
  )
  like_V = jax.ShapeDtypeStruct((config.vocab_size,), jnp.float32)
  labels = sorted(
    jax.eval_shape(
      lambda z_V: _change(z_V, z_V, jax.random.key(0), 1.0, **options), like_V
    )
  )
  return {
    label: {name: leaf[..., n] for name, leaf in found.items()}
    for n, label in enumerate(labels)
  }


@functools.partial(
  jax.jit,
  static_argnames=(
    "config",
    "top",
    "temperatures",
    "top_k",
    "top_p",
    "metrics",
  ),
)
def _measure_changes(
  config,
  pair,
  text,
  dense_BRD,
  pruned_BRD,
  key,
  temperature,
  *,
  metrics,
  **options,
):
  """[B, R, N] for each metric, interventions in the order of their names."""
  keys_BR = jax.random.split(key, text.target.shape)

  def measure(h_D, g_D, target, alive, row_key):
    z_V, y_V = jax.lax.optimization_barrier(
      tuple(
        decoder.unembed(config, pair.params, x_D, "raw") for x_D in (h_D, g_D)
      )
    )
    changed = _change(z_V, y_V, row_key, temperature, **options)
    found = jax.vmap(lambda y_V: compare_logits(z_V, y_V, target, temperature))(
      jnp.stack([changed[label] for label in sorted(changed)])
    )
    return {name: jnp.where(alive, found[name], 0) for name in metrics}

  return scan.measure_rows(
    measure,
    dense_BRD,
    pruned_BRD,
    text.target,
    text.alive,
    keys_BR,
    chunk=_CHUNK,
  )


def _change(
  z_V, y_V, key, temperature, *, top, temperatures=(), top_k=(), top_p=()
):
  """Logits of every intervention, rescue and truncation of one position."""
  changed = interventions.replace_change(
    z_V, y_V, key, top=top, temperature=temperature
  )
  changed |= interventions.rescue(
    z_V, y_V, temperature=temperature, temperatures=temperatures
  )
  for name, cuts in (("top_k", top_k), ("top_p", top_p)):
    for cut in cuts:
      changed[f"{name}_{cut:g}"] = (
        temperature
        * generation.truncate((y_V / temperature)[None], **{name: cut})[0]
      )
  return changed


@functools.partial(
  jax.jit, static_argnames=("config", "names", "num_steps", "top")
)
def continue_changed(
  config: ModelConfig,
  pair: Pair,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  key: jax.Array,
  temperature: jax.Array,
  *,
  names: tuple[str, ...],
  num_steps: int,
  top: int,
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
    temperature: T of the softmax that is measured.
    names: interventions of `interventions.replace_change` and
      `interventions.rescue`, N.
    num_steps: S; decoding goes on behind an end of text.
    top: tokens of the part `top`.

  Returns:
    The tokens chosen, int32 [N, B, S], and on each text's own context
    [N, B, S]: flips, 1 where the likeliest token of the changed logits is not
    that of the dense ones, and kl.
  """
  count, batch = len(names), len(tokens_BT)

  def repeat(a_BT):
    return jnp.tile(a_BT, (count, 1))

  trees = [pair.params, {**pair.params, "layers": pair.pruned}]
  caches, last = [], []
  for tree in trees:
    x_BTD, _, cache = generation.prefill(
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
  which_M = jnp.repeat(jnp.arange(count), batch)

  def choose(x_MD, y_MD, step):
    def one(inputs):
      which, x_D, y_D, row_key = inputs
      z_V, zq_V = jax.lax.optimization_barrier(
        tuple(
          decoder.unembed(config, pair.params, each_D) for each_D in (x_D, y_D)
        )
      )
      changed = _change(z_V, zq_V, row_key, temperature, top=top)
      y_V = jnp.stack([changed[name] for name in names])[which]
      return (
        jnp.argmax(y_V).astype(jnp.int32),
        (jnp.argmax(y_V) != jnp.argmax(z_V)).astype(jnp.float32),
        divergences.compare_distributions(z_V, y_V, temperature).kl,
      )

    keys = jax.random.split(jax.random.fold_in(key, step), count * batch)
    return jax.lax.map(
      one, (which_M, x_MD, y_MD, keys), batch_size=min(64, count * batch)
    )

  def advance(carry, step):
    token_M, caches = carry
    pairs = [
      generation.decode_step(config, tree, cache, token_M[:, None])[::2]
      for tree, cache in zip(trees, caches)
    ]
    (x_MTD, dense_cache), (y_MTD, pruned_cache) = pairs
    out = choose(
      *jax.lax.optimization_barrier((x_MTD[:, 0], y_MTD[:, 0])), step
    )
    return (out[0], [dense_cache, pruned_cache]), out

  first = choose(*last, 0)
  _, rest = jax.lax.scan(advance, (first[0], caches), jnp.arange(1, num_steps))
  tokens, flips, kl = (
    jnp.concatenate([a_M[None], b_SM]).T.reshape(count, batch, num_steps)
    for a_M, b_SM in zip(first, rest)
  )
  return tokens, {"flips": flips, "kl": kl}
