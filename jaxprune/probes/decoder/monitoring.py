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

from jaxprune.models import decoder, generation
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
  *,
  num_steps: int,
  key: jax.Array,
  cache: str = "own",
  eos_ids: tuple[int, ...] = (),
  temperature: float = 1.0,
) -> monitoring.Monitored:
  """Continue prompts greedily under a policy per row; see `monitoring`.

  Args:
    config: of both models; a narrower MLP needs no other.
    params: of the dense model.
    pruned_params: of the pruned model.
    tokens_BT: prompts, int [B, T], left-padded.
    valid_BT: False for padding, bool [B, T].
    policy: signal and threshold of each row.
    num_steps: tokens to write; T + num_steps may not exceed the context.
    key: of the random risk.
    cache: which cache the dense model reads, 'own' or 'shared'. Shared, the
      prompt too was read by the pruned model.
    eos_ids: tokens that end a text.
    temperature: T of the risks.

  Raises:
    ValueError: another cache.
  """
  if cache not in monitoring.CACHES:
    raise ValueError(
      f"cache={cache!r}: use one of {', '.join(monitoring.CACHES)}"
    )
  if jax.default_backend() == "cpu":
    # Separate layers decode there twice as fast as a stack.
    params, pruned_params = map(generation.unstack, (params, pruned_params))
  return _write(
    config,
    params,
    pruned_params,
    tokens_BT,
    valid_BT,
    policy,
    num_steps,
    key,
    cache,
    tuple(eos_ids),
    temperature,
  )


@functools.partial(jax.jit, static_argnums=(0, 6, 8, 9, 10))
def _write(
  config,
  params,
  pruned_params,
  tokens_BT,
  valid_BT,
  policy,
  num_steps,
  key,
  cache,
  eos_ids,
  temperature,
):
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
    if name == "pruned" or cache == "own"
  }

  def decode(tree, token_B, cache):
    x_BTD, _, cache = generation.decode_step(
      config, tree, cache, token_B[:, None]
    )
    return decoder.unembed(config, tree, x_BTD[:, 0]), cache

  return monitoring.write_monitored(
    decode,
    weights,
    caches,
    tokens_BT[:, -1],
    policy,
    num_steps=num_steps,
    key=key,
    eos_ids=eos_ids,
    temperature=temperature,
    merge=None if cache == "own" else _merge,
  )


def _merge(pruned, dense, handed_B):
  """The pruned model's cache, with what the dense one wrote where it decided.

  Both caches have the same past; only the newest slot can differ.
  """
  slot = pruned.length - 1

  def newest(old, new):
    axis = old.ndim - 3  # [B, S, K, H], on L if the layers are stacked
    mine, theirs = (
      jax.lax.dynamic_slice_in_dim(each, slot, 1, axis) for each in (old, new)
    )
    handed = handed_B.reshape(*(1,) * (axis - 1), -1, 1, 1, 1)
    chosen = jnp.where(handed, theirs, mine)
    return jax.lax.dynamic_update_slice_in_dim(old, chosen, slot, axis)

  return dataclasses.replace(
    pruned,
    key=jax.tree.map(newest, pruned.key, dense.key),
    value=jax.tree.map(newest, pruned.value, dense.value),
  )
