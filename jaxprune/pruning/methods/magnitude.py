"""Which weights go if only their size counts?

  score_ij = |W_ij|

The baseline that every method that looks at data is measured against.

Reference: Han et al. (arXiv 1506.02626); the official code of the paper
compares within a whole matrix, pattern group 'matrix' here.

Differs from the reference in: exact counts. The official threshold is the
sorted score at index int(size * sparsity), and that score goes too: one entry
too many, and all its ties with it.
"""

import jax
import jax.numpy as jnp

from jaxprune.pruning.patterns import Pattern, remove_lowest


def magnitude(
  w_IO: jax.Array, statistics: object, pattern: Pattern
) -> tuple[jax.Array, jax.Array]:
  """Remove the smallest weights.

  Args:
    w_IO: kernel [I, O], any float dtype.
    statistics: not used; None will do.
    pattern: what to remove, from which comparison group.

  Returns:
    The kernel with zeros, [I, O], all nan where a score is inf or nan; and the
    mask, bool [I, O], True = keep.

  Raises:
    ValueError: what `patterns.remove_lowest` refuses.
  """
  del statistics
  return remove_lowest(w_IO, jnp.abs(w_IO), pattern)
