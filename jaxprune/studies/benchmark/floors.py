"""What must a piece of work at least cost on this machine?

Multiplications and additions over the rate of a large product, plus bytes over
the rate of reading memory where nothing is multiplied: no schedule avoids them.
Attention scores are left out of the forward pass, so that the floor stays one.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxprune.checkpoints import names
from jaxprune.models import KERNEL_INPUTS, ModelConfig


def _kernels(config):
  """[I, O] by kernel, without the leading L."""
  return {
    kernel: shape[-2:] for kernel, shape in names.kernel_shapes(config).items()
  }


def kernel_parameters(config: ModelConfig) -> int:
  """Weights in the kernels of all layers."""
  return config.num_layers * sum(map(math.prod, _kernels(config).values()))


def forward_flops(config: ModelConfig, tokens: int) -> float:
  """Of one pass of tokens through all layers, without the head.

  Args:
    config: the model.
    tokens: that pass.
  """
  return 2.0 * tokens * kernel_parameters(config)


def weight_bytes(config: ModelConfig) -> float:
  """Of the kernels and the head in float32, which a decoding step reads."""
  return 4.0 * (
    kernel_parameters(config) + config.vocab_size * config.embed_dim
  )


def sparsegpt_flops(config: ModelConfig, tokens: int) -> dict[str, float]:
  """Of SparseGPT beside its two passes.

  Args:
    config: the model.
    tokens: of calibration.

  Returns:
    gram, 2 I^2 per token and input; factor, I^3 / 3 for the Cholesky factor and
    as much for the inverse of a triangle, times 2; update, I^2 O.
  """
  kernels = _kernels(config)
  inputs = {KERNEL_INPUTS[kernel]: i for kernel, (i, _) in kernels.items()}
  layers = config.num_layers
  return {
    "gram": layers * sum(2.0 * tokens * i**2 for i in inputs.values()),
    "factor": layers * sum(4.0 / 3.0 * i**3 for i in inputs.values()),
    "update": layers * sum(float(i) ** 2 * o for i, o in kernels.values()),
  }


def seconds(
  config: ModelConfig,
  work: Sequence[str],
  tokens: np.ndarray,
  max_new_tokens: int,
  rates: tuple[float, float],
) -> dict[str, float]:
  """Floors of pieces of work.

  Args:
    config: the model.
    work: of `cpu.WORK`.
    tokens: of calibration, [sequences, length].
    max_new_tokens: decoded per prompt.
    rates: flops and bytes per second.

  Returns:
    Seconds by piece of work.
  """
  flops, read = rates
  forward = forward_flops(config, tokens.size) / flops
  extra = sum(sparsegpt_flops(config, tokens.size).values()) / flops
  weights = weight_bytes(config) / read
  floors = {
    "load": weights,
    "forward": forward,
    "wanda": 2 * forward,
    "wanda_2of4": 2 * forward,
    "sparsegpt": 2 * forward + extra,
    "sparsegpt_2of4": 2 * forward + extra,
    "drop_scores": forward,
  }
  for batch in (1, 8):
    step = max(weights, batch * forward_flops(config, 1) / flops)
    floors[f"decode_{batch}"] = max_new_tokens * step
  return {name: floors[name] for name in work}
