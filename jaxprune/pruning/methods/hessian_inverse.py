"""How are the inputs of a kernel correlated, in the form that SparseGPT needs?

H = 2/n sum x x^T, n sequences, with a share of its mean diagonal added to the
diagonal, and the upper triangular U of H^-1 = U^T U.

Reference: Frantar and Alistarh, SparseGPT (arXiv 2301.00774), section 3.2;
the Cholesky formulation is GPTQ's (arXiv 2210.17323), section 3.3.

Differs from the reference in: one Cholesky factor of H with its inputs
reversed and one triangular inverse, instead of two factors and a full inverse;
on a CPU the factor is built from small ones, so that its bits do not depend on
the number of cores.
A failed factorisation is said to have failed and can be retried with more
damping; it is never replaced by another matrix.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import Gram

_HIGHEST = jax.lax.Precision.HIGHEST
# A triangular inverse is built from _PANELS rows of blocks, or from fewer if a
# block would have less than _SMALLEST rows. Nearly all work is then matrix
# products.
_PANELS = 8
_SMALLEST = 256
# The threads of LAPACK round a larger Cholesky factor in another way; measured
# to be the same for up to 192 rows.
_LEAF = 128
# The threads of a triangular solve take equal parts of its columns and round
# other parts than these in another way; measured with one and two cores.
_MULTIPLE = 64
# What damping is multiplied by when a factorisation failed, and how often.
_STRONGER = 10.0
_RETRIES = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseFactor:
  """U of H^-1 = U^T U, shared by all kernels that see the same inputs.

  Attributes:
    upper: [I, I] float32, upper triangular with a positive diagonal.
    dead: bool [I], inputs that were never other than zero.
    ok: bool [], False when H was not positive definite, not finite, or
      made from no sequences; `upper` is of no use then.
  """

  upper: jax.Array
  dead: jax.Array
  ok: jax.Array


def _leaf_factor(a_II: jax.Array) -> jax.Array:
  """Lower Cholesky factor by a loop over columns of `_LEAF`."""
  size = a_II.shape[0]
  if size <= _LEAF:
    return jax.lax.linalg.cholesky(a_II, symmetrize_input=False)
  a_II = _padded(a_II, _LEAF)
  index_I = jnp.arange(len(a_II))

  def step(k, lower_II):
    start = k * _LEAF
    rows_JI = jax.lax.dynamic_slice_in_dim(lower_II, start, _LEAF, axis=0)
    panel_IJ = jax.lax.dynamic_slice_in_dim(a_II, start, _LEAF, axis=1)
    panel_IJ -= jnp.einsum("IK,JK->IJ", lower_II, rows_JI, precision=_HIGHEST)
    corner_JJ = jax.lax.linalg.cholesky(
      jax.lax.dynamic_slice_in_dim(panel_IJ, start, _LEAF, axis=0),
      symmetrize_input=False,
    )
    # Above the corner there is what the factor has no use for.
    panel_IJ = jnp.where(index_I[:, None] < start, 0.0, panel_IJ)
    panel_IJ = _divided(panel_IJ, corner_JJ)
    panel_IJ = jax.lax.dynamic_update_slice_in_dim(
      panel_IJ, corner_JJ, start, axis=0
    )
    return jax.lax.dynamic_update_slice_in_dim(
      lower_II, panel_IJ, start, axis=1
    )

  steps = len(a_II) // _LEAF
  lower_II = jax.lax.fori_loop(0, steps, step, jnp.zeros_like(a_II))
  return lower_II[:size, :size]


def _divided(panel_IJ: jax.Array, corner_JJ: jax.Array) -> jax.Array:
  """X of X L^T = panel, L lower triangular."""
  return jax.lax.linalg.triangular_solve(
    corner_JJ, panel_IJ, left_side=False, lower=True, transpose_a=True
  )


def _panel_size(inputs: int) -> int:
  """Columns of a block; a multiple of `_MULTIPLE`."""
  size = max(math.ceil(inputs / _PANELS), _SMALLEST)
  return -(-size // _MULTIPLE) * _MULTIPLE


def _unsplit(a: jax.Array) -> jax.Array:
  return a


def _factor_by_panels(
  a_II: jax.Array, split: Callable[[jax.Array], jax.Array] = _unsplit
) -> jax.Array:
  """Lower Cholesky factor, of which only matrix products use several cores.

  Of a block of columns, what the columns before it explain is subtracted; its
  corner is factorised, and what lies below is divided by that.

  Args:
    a_II: symmetric.
    split: asks that the rows of a matrix are split over devices.
  """
  inputs = a_II.shape[0]
  size = _panel_size(inputs)
  # Each entry is one column of blocks, from its diagonal block downwards.
  columns = []
  for start in range(0, inputs, size):
    panel_IJ = a_II[start:, start : start + size]
    for j, column in enumerate(columns):
      below_IK = column[start - j * size :]
      panel_IJ -= jnp.einsum(
        "IK,JK->IJ", below_IK, below_IK[: panel_IJ.shape[1]], precision=_HIGHEST
      )
    panel_IJ = split(panel_IJ)
    corner_JJ = _leaf_factor(panel_IJ[:size])
    columns.append(
      split(jnp.concatenate([corner_JJ, _divided(panel_IJ[size:], corner_JJ)]))
    )
  return split(
    jnp.concatenate(
      [jnp.pad(c, ((inputs - len(c), 0), (0, 0))) for c in columns], axis=1
    )
  )


def _lower_factor(a_II, split=None):
  """Lower Cholesky factor, nan where there is none; reads one triangle.

  The compiler would gather a matrix that is split over devices, on each of
  them, to factorise it whole.
  """

  def whole(a_II):
    return jax.lax.linalg.cholesky(a_II, symmetrize_input=False)

  if a_II.shape[0] <= _LEAF:
    return whole(a_II)
  if split is not None:
    return _factor_by_panels(a_II, split)
  return jax.lax.platform_dependent(a_II, cpu=_factor_by_panels, default=whole)


def _lower_inverse(lower_II, split=_unsplit):
  """Invert a lower triangular matrix by rows of blocks.

  With M the inverse, M_kk = L_kk^-1 and M_kj = -M_kk (sum over j <= i < k of
  L_ki M_ij): n^3 / 3 multiplications, where a solve for the identity has n^3.
  """
  inputs = lower_II.shape[0]
  size = _panel_size(inputs)
  # Each entry is the part of one column of blocks that is known so far, from
  # its diagonal block downwards.
  columns = []
  for start in range(0, inputs, size):
    rows_II = lower_II[start : start + size]
    corner_II = rows_II[:, start : start + size]
    inverse_II = jax.lax.linalg.triangular_solve(
      corner_II,
      jnp.eye(len(corner_II), dtype=corner_II.dtype),
      left_side=True,
      lower=True,
    )
    for j, column in enumerate(columns):
      sum_II = jnp.matmul(
        rows_II[:, j * size : start], column, precision=_HIGHEST
      )
      below_II = -jnp.matmul(inverse_II, sum_II, precision=_HIGHEST)
      columns[j] = split(jnp.concatenate([column, below_II]))
    columns.append(inverse_II)
  return split(
    jnp.concatenate(
      [jnp.pad(c, ((inputs - len(c), 0), (0, 0))) for c in columns], axis=1
    )
  )


def _padded(a_II: jax.Array, multiple: int) -> jax.Array:
  """The matrix, padded with the identity, which factorises into itself."""
  size = len(a_II)
  more = -size % multiple
  if not more:
    return a_II
  index_I = jnp.arange(size + more)
  ones_I = (index_I >= size).astype(a_II.dtype)
  return jnp.pad(a_II, ((0, more), (0, more))) + jnp.diag(ones_I)


def inverse_factor(
  statistics: Gram,
  damping: jax.Array | float = 0.01,
  sharding: jax.sharding.Sharding | None = None,
) -> InverseFactor:
  """Factorise the inverse of the damped Hessian of a kernel's inputs.

  With J the reversal of the inputs and J H J = L L^T, H = (J L J)(J L J)^T is
  an upper factor times its transpose, so U = (J L J)^-1 = J L^-1 J.

  Args:
    statistics: Gram of the inputs.
    damping: share of the mean diagonal that is added to the diagonal; may be
      traced.
    sharding: how [I, I] matrices are split over devices, by their rows; None
      leaves each whole.

  Returns:
    InverseFactor; look at `ok`.
  """
  split = None
  if sharding is not None:
    split = lambda a: jax.lax.with_sharding_constraint(a, sharding)
  sequences = jnp.maximum(statistics.sequences, 1)
  h_II = statistics.sum_outer * (2.0 / sequences)
  diagonal_I = jnp.diagonal(h_II)
  dead_I = diagonal_I == 0
  lifted_I = jnp.where(dead_I, 1.0, diagonal_I)
  damped_I = lifted_I + damping * jnp.mean(lifted_I)
  index_I = jnp.arange(h_II.shape[0])
  eye_II = index_I[:, None] == index_I[None]
  h_II = jnp.where(eye_II, damped_I[None], h_II)
  # Symmetric only up to rounding: one triangle is read, the other ignored.
  lower_II = _lower_factor(_padded(h_II[::-1, ::-1], _MULTIPLE), split)
  inverse_II = _lower_inverse(lower_II, split or _unsplit)
  inverse_II = inverse_II[: len(h_II), : len(h_II)]
  upper_II = inverse_II[::-1, ::-1]
  # What a failed factor leaves behind differs between platforms.
  diagonal_I = jnp.diagonal(upper_II)
  ok = jnp.all(jnp.isfinite(upper_II)) & jnp.all(diagonal_I > 0)
  return InverseFactor(
    upper=upper_II, dead=dead_I, ok=ok & (statistics.sequences > 0)
  )


compiled_inverse_factor = jax.jit(inverse_factor, static_argnames="sharding")


def inverse_factor_with_retry(
  statistics: Gram, damping: float = 0.01
) -> tuple[InverseFactor, list[float]]:
  """Factorise, with ten times more damping whenever that fails.

  For drivers: compiles, and waits for the result.

  Args:
    statistics: Gram of the inputs.
    damping: the first to try, positive.

  Returns:
    InverseFactor, and every damping tried, the last of which worked. More
    than one means that the kernel is not pruned with the damping asked for:
    say so.

  Raises:
    ValueError: damping not positive, statistics of no sequences or not
      finite, or four failures.
  """
  if not (damping > 0 and math.isfinite(damping)):
    raise ValueError(f"damping is {damping}; use a positive share, say 0.01")
  if not int(statistics.sequences):
    raise ValueError("statistics saw 0 sequences; observe calibration tokens")
  if not bool(jnp.all(jnp.isfinite(statistics.sum_outer))):
    raise ValueError(
      "the Gram of the inputs has inf or nan; look at the activations, no"
      " damping helps"
    )
  sharding = getattr(statistics.sum_outer, "sharding", None)
  if sharding is not None and sharding.is_fully_replicated:
    sharding = None
  tried = []
  for retry in range(_RETRIES + 1):
    tried.append(damping * _STRONGER**retry)
    factor = compiled_inverse_factor(statistics, tried[-1], sharding)
    if bool(factor.ok):
      return factor, tried
  raise ValueError(
    f"the Hessian is not positive definite with damping {tried}; use more"
    " calibration tokens or more damping"
  )
