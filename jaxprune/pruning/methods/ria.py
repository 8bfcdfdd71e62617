"""Which weights matter, relative to their neighbours on both sides?

  score_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_i||^a

A weight counts by its share of all that enters its output and of all that
leaves its input, so that few inputs or outputs lose every weight; the norm of
the input enters with a power below one.

Reference: Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning
Method for Large Language Models" (RIA, ICLR 2024), with a = 0.5.

Differs from the reference in: exact counts and ties by index, as everywhere
here; a share of nothing is 0; no channel permutation for n:m.
"""

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import SquaredNorm, sum_rows
from jaxprune.pruning.patterns import Pattern, remove_lowest


def ria_scores(
  w_IO: jax.Array, statistics: SquaredNorm, power: float = 0.5
) -> jax.Array:
  """Score each weight; higher is kept.

  Args:
    w_IO: kernel [I, O], any float dtype.
    statistics: squared norms of the inputs.
    power: a, the exponent of the input norm; 0 looks at weights only.

  Returns:
    [I, O] float32, nonnegative; nan where a sum of weights overflows.
  """
  size_IO = jnp.abs(w_IO.astype(jnp.float32))
  # A share of an infinite sum would be 0.
  into_O, from_I = (
    jnp.where(jnp.isfinite(total), total, jnp.nan)
    for total in (sum_rows(size_IO), jnp.sum(size_IO, axis=1))
  )
  share_IO = (
    size_IO / jnp.where(into_O == 0, 1.0, into_O)[None, :]
    + size_IO / jnp.where(from_I == 0, 1.0, from_I)[:, None]
  )
  norm_I = jnp.sqrt(statistics.mean)
  return share_IO * (norm_I**power)[:, None]


def ria(
  w_IO: jax.Array,
  statistics: SquaredNorm,
  pattern: Pattern,
  *,
  power: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """Remove the weights of lowest relative importance.

  Args:
    w_IO: kernel [I, O].
    statistics: squared norms of the inputs.
    pattern: what to remove, from which comparison group.
    power: a, the exponent of the input norm; 0 looks at weights only.

  Returns:
    The kernel with zeros, [I, O], all nan where a score is inf or nan; and the
    mask, bool [I, O], True = keep.

  Raises:
    ValueError: what `patterns.remove_lowest` refuses.
  """
  return remove_lowest(w_IO, ria_scores(w_IO, statistics, power), pattern)
