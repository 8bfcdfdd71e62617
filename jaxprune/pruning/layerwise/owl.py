"""Which layers hold the outliers, and should keep more weights for it?

A weight is an outlier when its Wanda score |W_ij| ||X_i|| exceeds M times
the mean score of its layer. Layers with a larger share of outliers get a
lower sparsity, within a band around the global one.

Reference: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)" (ICML 2024,
arXiv 2310.05175), section 3.2; M = 5, lambda = 0.08.

Differs from the reference in: layers of different size count by their
parameters, so the budget holds; equal layers get the uniform sparsity instead
of nan; a layer is one transformer block with all its kernels, as in the
published code (the paper's text also speaks of single matrices).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning.layerwise.allocation import meet_budget


def outlier_fraction(scores: object, multiple: float = 5.0) -> jax.Array:
  """Count the scores of one layer above a multiple of their common mean.

  Args:
    scores: pytree of nonnegative arrays, the scores of all kernels of one
      layer.
    multiple: M.

  Returns:
    [] float32 in [0, 1); nan where the mean of the scores overflows.
  """
  leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(scores)]
  size = sum(leaf.size for leaf in leaves)
  # The mean over kernels of the mean of each: one float32 sum over a whole
  # layer would lose digits.
  mean = sum(jnp.mean(leaf) * (leaf.size / size) for leaf in leaves)
  above = sum(jnp.sum(leaf > multiple * mean) for leaf in leaves)
  return jnp.where(
    jnp.isfinite(mean), above.astype(jnp.float32) / size, jnp.nan
  )


def owl(
  fractions: Sequence[float],
  sparsity: float,
  *,
  spread: float = 0.08,
  sizes: Sequence[int] | None = None,
) -> tuple[float, ...]:
  """Turn outlier fractions into sparsities around a global one.

  Args:
    fractions: `outlier_fraction` per layer.
    sparsity: over all layers, in [0, 1).
    spread: lambda; the highest and lowest sparsity lie 2 lambda apart,
      unless clipped at 0 or 1.
    sizes: prunable parameters per layer; None for equal layers.

  Returns:
    Sparsity per layer in [0, 1); sizes-weighted mean equals `sparsity`.

  Raises:
    ValueError: sparsity out of range, scores that are not finite, or sizes
      that are not positive or of another length.
  """
  fraction_L = np.asarray(fractions, np.float64)
  if not np.isfinite(fraction_L).all():
    raise ValueError(
      f"outlier fractions are {list(fractions)}: the scores of layers"
      f" {np.flatnonzero(~np.isfinite(fraction_L)).tolist()} overflow float32"
    )
  width = np.ptp(fraction_L)
  scaled_L = fraction_L / width if width > 0 else np.zeros_like(fraction_L)
  return meet_budget(-2 * spread * scaled_L, sparsity, sizes)
