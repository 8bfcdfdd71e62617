"""How do two of this project's models write one text between them?

Turns a config and two parameter trees into the callables of `monitoring`, and
compiles them. Signals and thresholds are data, so that all policies of a sweep
are one program.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune import platforms
from jaxprune.models import decoder, decoding
from jaxprune.models.config import ModelConfig
from jaxprune.probes import monitoring

Params = Any


def write(
  config: ModelConfig,
  params: Params,
  pruned_params: Params,
  tokens_BT: jax.Array,
  valid_BT: jax.Array,
  policy: monitoring.Policy,
  writing: monitoring.Writing,
  *,
  key: jax.Array,
) -> monitoring.Monitored:
  """Continue prompts greedily under a policy per row; see `monitoring`.

  Args:
    config: of both models; a slimmer MLP needs no other.
    params: of the dense model.
    pruned_params: of the pruned model.
    tokens_BT: prompts, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    policy: signal and threshold of each row.
    writing: length, ends, T and cache; T + num_steps may not exceed the
      context. With a shared cache the prompt too was read by the pruned model.
    key: of the random risk.

  Returns:
    Leaves [R, B], R = num_steps.

  Raises:
    ValueError: an unknown cache.
  """
  if writing.cache not in monitoring.CACHES:
    raise ValueError(
      f"cache={writing.cache!r}: use one of {', '.join(monitoring.CACHES)}"
    )
  if platforms.on_cpu():
    # Decoding is twice as fast with separate layers as with a stack.
    params, pruned_params = map(decoding.unstack, (params, pruned_params))
  weights = {"dense": params, "pruned": pruned_params}
  return _write(config, writing, weights, tokens_BT, valid_BT, policy, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _write(config, writing, weights, tokens_BT, valid_BT, policy, key):
  capacity = tokens_BT.shape[1] + writing.num_steps
  caches = {
    name: decoding.step_back(
      decoding.prefill(
        config, tree, tokens_BT, capacity=capacity, valid_BT=valid_BT
      )[2]
    )
    for name, tree in weights.items()
    if name == "pruned" or writing.cache == "own"
  }

  def decode(tree, token_B, cache):
    x_BTD, _, cache = decoding.decode_step(
      config, tree, cache, token_B[:, None]
    )
    return decoder.unembed(config, tree, x_BTD[:, 0]), cache

  return monitoring.write_monitored(
    decode,
    weights,
    caches,
    tokens_BT[:, -1],
    policy,
    writing,
    key=key,
    merge=None if writing.cache == "own" else _merge,
  )


def _merge(pruned, dense, deferred_B):
  """The pruned model's cache, with what the dense one wrote where it decided.

  Both caches have the same past; only the newest slot can differ.
  """
  slot = pruned.length - 1

  def newest(old, new):
    axis = old.ndim - 3  # [B, S, K, H], after L if the layers are stacked
    of_pruned, of_dense = (
      jax.lax.dynamic_slice_in_dim(leaf, slot, 1, axis) for leaf in (old, new)
    )
    # B stands beside S, K and H; a leading L is broadcast.
    deferred_BSKH = rearrange(deferred_B, "B -> B 1 1 1")
    chosen = jnp.where(deferred_BSKH, of_dense, of_pruned)
    return jax.lax.dynamic_update_slice_in_dim(old, chosen, slot, axis)

  return dataclasses.replace(
    pruned,
    key=jax.tree.map(newest, pruned.key, dense.key),
    value=jax.tree.map(newest, pruned.value, dense.value),
  )
