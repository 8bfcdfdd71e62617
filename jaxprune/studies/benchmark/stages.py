"""How long does each stage of pruning a layer take? Each is waited for."""

import time
from typing import Any

import jax

from jaxprune.models import ModelConfig
from jaxprune.pruning.checkpoint import layer, streaming
from jaxprune.pruning.patterns import AnyPattern
from jaxprune.pruning.registry import KernelMethod

STAGES = ("statistics", "masks", "second_forward")


def prune_layer(
  config: ModelConfig,
  method: KernelMethod,
  pattern: AnyPattern,
  old: dict[str, Any],
  index: int,
  states: streaming.States,
  memory: streaming.Memory,
) -> dict[str, float]:
  """Seconds of every stage of `STAGES`.

  Args:
    config: the model.
    method: of the registry.
    pattern: what is removed.
    old: the layer, float32.
    index: of the layer.
    states: activations that enter it; those that leave it afterwards.
    memory: how they are held.
  """
  seconds, began = {}, time.perf_counter()

  def lap(stage, waited):
    nonlocal began
    jax.block_until_ready(waited)
    seconds[stage] = time.perf_counter() - began
    began = time.perf_counter()

  statistics = layer.collect(
    config, method.statistic, old, index, states, memory
  )
  lap("statistics", statistics)
  new, _, _ = layer.prune_kernels(
    config, method, pattern, old, index, statistics
  )
  lap("masks", new)
  sliding = streaming.is_sliding(config, index)
  streaming.advance(config, new, states, sliding, memory)
  lap("second_forward", states.batches)
  return seconds
