"""How is a model in memory pruned, layer by layer, without a folder?

The same steps as `weights.prune_weights`: the calibration tokens pass through
the layers that are pruned already.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import ModelConfig
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import layer, streaming, weights
from jaxprune.pruning.patterns import AnyPattern

Tree = dict[str, Any]


def prune_params(
  config: ModelConfig,
  params: Tree,
  tokens: np.ndarray | None,
  method: str,
  pattern: AnyPattern,
  *,
  memory: streaming.Memory | None = None,
) -> tuple[ModelConfig, Tree, Tree]:
  """Prune the layers of a decoder.

  Args:
    config: the model.
    params: its parameters, layers stacked.
    tokens: calibration tokens, int [sequences, length]; None for a method that
      needs none.
    method: a name in `registry.METHODS` that prunes kernels or hidden units.
    pattern: what is removed; not of group 'global'.
    memory: how activations are held.

  Returns:
    The config, which has a bias of the MLP where the method gave one; the
    parameters with zeros, in their dtypes; and the masks {group: {kernel: bool
    [L, I, O]}}, True = keep.

  Raises:
    ValueError: an unknown method or a pattern that it does not take, tokens
      that are missing or that the model cannot read, or numbers that are not
      finite.
  """
  weights.check_job(config, method, pattern, tokens=tokens is not None)
  if getattr(pattern, "group", "") == "global":
    raise ValueError(
      "pattern: group global is there for folders only; use output or matrix"
    )
  memory, chosen = memory or streaming.Memory(), registry.find(method)
  states = None
  if tokens is not None:
    states = streaming.embed_tokens(config, params, tokens, memory)
  layers, masks = [], []
  for index in range(config.num_layers):
    read = jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"])
    new, keep, _ = layer.prune_layer(
      config,
      chosen,
      pattern,
      streaming.place_layer(read, memory),
      index,
      states,
      memory,
    )
    new = layer.as_written(index, new, read)
    if states is not None and index + 1 < config.num_layers:
      sliding = streaming.is_sliding(config, index)
      streaming.advance(config, new, states, sliding, memory)
    layers.append(_in_dtypes(new, read))
    masks.append(keep)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  if "bias" in stacked["mlp"]["down"] and not config.mlp_bias:
    config = dataclasses.replace(config, mlp_bias=True)
  return (
    config,
    {**params, "layers": stacked},
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks),
  )


def _in_dtypes(new, read):
  """A new bias gets the dtype of its kernel."""
  return {
    name: _in_dtypes(leaf, read[name])
    if isinstance(leaf, dict)
    else leaf.astype(read.get(name, read.get("kernel")).dtype)
    for name, leaf in new.items()
  }
