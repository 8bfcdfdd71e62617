"""Which MLP units hardly vary, so that a constant can replace them?

A unit whose activation x_f is nearly the same for every token can be removed
if its mean is moved into a bias of the down projection:

  score_f = Var(x_f) * sum_o W_down[f, o]^2
  bias_o += sum over removed f of mean(x_f) * W_down[f, o]

The score is the variance of the output that removing f leaves, and the bias
makes the expected output equal to that of the dense layer.

Reference: An et al., "Fluctuation-based Adaptive Structured Pruning for Large
Language Models" (FLAP, AAAI 2024, arXiv 2312.11983); its metric WIFV and its
baseline bias compensation.

Differs from the reference in: MLP units only, no attention heads; one
sparsity per layer, where FLAP ranks standardised scores over all layers (see
`allocation.py` for uneven layers); variance over tokens, not over running
means of sequences; the lowest scores go with exact counts and ties by index.

To export: the bias needs a place. A stock Llama has one with `mlp_bias` true in
its config, which also asks for biases of gate and up: zeros. Stock Qwen2 and
Mistral have none: leave the bias out there, at the price of the mean error, or
ship code with the model.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.moments import Moments
from jaxprune.pruning.methods.neuron import remove_neurons

Tree = dict[str, Any]


def fluctuation_scores(down_FD: jax.Array, statistics: Moments) -> jax.Array:
  """Score each unit by the output variance that its removal leaves behind.

  Args:
    down_FD: kernel of the down projection, [F, D].
    statistics: moments of its input, over tokens.

  Returns:
    [F] float32, nonnegative; higher is kept.
  """
  power_F = jnp.sum(jnp.square(down_FD.astype(jnp.float32)), axis=1)
  return statistics.variance * power_F


def flap(
  mlp: Tree, statistics: Moments, sparsity: float
) -> tuple[Tree, Tree, jax.Array]:
  """Remove the hidden units of one MLP that fluctuate least, by masking.

  Args:
    mlp: {'gate', 'up', 'down'} or {'up', 'down'}, each {'kernel': [I, O]} with
      a 'bias' [O] or without, as `neuron.slim` takes it.
    statistics: moments of the input of 'down', over tokens.
    sparsity: fraction of the units to remove, in [0, 1); floor(F * sparsity)
      go.

  Returns:
    The tree with zeros, all nan where a score is inf or nan; the masks of its
    kernels, bool, True = keep; and what must be added to the output of 'down'
    beside any bias it has, float32 [D].

  Raises:
    ValueError: sparsity out of range.
  """
  down_FD = mlp["down"]["kernel"]
  scores_F = fluctuation_scores(down_FD, statistics)
  new, masks = remove_neurons(mlp, scores_F, sparsity)
  keep_F = masks["down"][:, 0]
  bias_D = jnp.einsum(
    "F,FD->D",
    jnp.where(keep_F, 0.0, statistics.mean),
    down_FD.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return new, masks, bias_D
