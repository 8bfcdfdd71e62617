"""How sparse should each layer of a checkpoint be?

`owl` looks at the calibration tokens in one pass through the dense model;
`linear` and `uniform` look at no data. The rules themselves are array
functions: `layerwise/owl.py` and `layerwise/allocation.py`.
"""

import math
from collections.abc import Callable

import jax
import numpy as np

from jaxprune import checkpoints
from jaxprune.checkpoints import names
from jaxprune.models import KERNEL_INPUTS, kernels_of
from jaxprune.pruning.checkpoint import layer, streaming
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import allocation, owl
from jaxprune.pruning.methods import wanda

ALLOCATIONS = ("uniform", "linear", "owl")


def allocate(
  source: checkpoints.Source,
  kind: str,
  sparsity: float,
  *,
  spread: float = 0.08,
  tokens: np.ndarray | None = None,
  memory: Memory | None = None,
  on_layer: Callable[[int], None] = lambda layer: None,
) -> tuple[float, ...]:
  """Give each layer of a checkpoint a sparsity.

  Args:
    source: an opened checkpoint.
    kind: a name in `ALLOCATIONS`.
    sparsity: over all layers, in [0, 1).
    spread: half of what the highest and the lowest sparsity lie apart, unless
      clipped at 0 or 1.
    tokens: calibration tokens, int [sequences, length]; for owl.
    memory: how activations are held.
    on_layer: called with the index of each layer when it is scored.

  Returns:
    Sparsity per layer in [0, 1), their mean weighted by parameters `sparsity`.

  Raises:
    ValueError: an unknown kind, owl without tokens, sparsity out of range.
  """
  num_layers = source.config.num_layers
  if kind == "uniform":
    return allocation.uniform(num_layers, sparsity)
  if kind == "linear":
    return allocation.linear(
      num_layers, sparsity, 2 * spread / max(1, num_layers - 1)
    )
  if kind != "owl":
    raise ValueError(
      f"allocation {kind!r}: use one of {', '.join(ALLOCATIONS)}"
    )
  if tokens is None:
    raise ValueError("allocation owl looks at calibration tokens: give some")
  shapes = names.kernel_shapes(source.config).values()
  sizes = [sum(math.prod(shape[1:]) for shape in shapes)] * num_layers
  fractions = outlier_fractions(
    source, tokens, memory=memory or Memory(), on_layer=on_layer
  )
  return owl.owl(fractions, sparsity, spread=spread, sizes=sizes)


def outlier_fractions(
  source: checkpoints.Source,
  tokens: np.ndarray,
  *,
  memory: Memory,
  on_layer: Callable[[int], None] = lambda layer: None,
) -> list[float]:
  """`owl.outlier_fraction` of the Wanda scores of each dense layer.

  Args:
    source: an opened checkpoint.
    tokens: calibration tokens, int [sequences, length].
    memory: how activations are held.
    on_layer: called with the index of each layer when it is scored.

  Returns:
    A fraction in [0, 1) per layer.
  """
  config = source.config
  states = streaming.embedded(source, tokens, memory)
  fractions = []
  for index in range(config.num_layers):
    kernels = streaming.place_layer(
      checkpoints.read_layer(source, index), memory
    )
    squares = layer.collect(config, "squares", kernels, index, states, memory)
    fractions.append(float(_fraction(kernels, squares)))
    if index + 1 < config.num_layers:
      sliding = streaming.is_sliding(config, index)
      streaming.advance(config, kernels, states, sliding, memory)
    on_layer(index)
  return fractions


@jax.jit
def _fraction(kernels, squares):
  scores = []
  for group, kernel in kernels_of(kernels):
    w_IO = kernels[group][kernel]["kernel"]
    own = squares[KERNEL_INPUTS[group, kernel]]
    if w_IO.ndim == 2:
      scores.append(wanda.wanda_scores(w_IO, own))
    else:  # one matrix per expert
      scores += list(jax.vmap(wanda.wanda_scores)(w_IO, own))
  return owl.outlier_fraction(scores)
