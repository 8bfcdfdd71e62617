"""How far did one vector turn and stretch? Embeddings h and logits z.

For a dense vector x and its pruned counterpart y = x + dx, with alpha the part
of dx along x and rho the length of the part orthogonal to x, both relative to
|x|:

  dx = alpha x + dx_orth,    rho = |dx_orth| / |x|,
  cos(x, y) = (1 + alpha) / sqrt((1 + alpha)^2 + rho^2)   exactly.

Near-identical vectors are the normal case here, so 1 - cos and the angle come
from rho and never from a cosine that was already rounded.

Reference: He et al., "Demystifying When Pruning Works via Representation
Hierarchies", arXiv:2603.24652, section 3 and equations 6, 7, 37 and 44.
Differs from the reference in: the dense vector is always the base of the
projection (the official layer-drop scripts project on the pruned one), and a
centred logit cosine stands beside the plain one, because softmax ignores a
constant offset and the plain cosine does not.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
  """How a pruned vector lies to the dense one; every field is a scalar.

  Attributes:
    cos: cosine in [-1, 1]; exactly 1 for identical vectors.
    one_minus_cos: in [0, 2], accurate when tiny; exactly 0 for identical ones.
    angle: radians in [0, pi], accurate when tiny.
    alpha: <x, dx> / |x|^2, the relative change along the dense vector.
    rho: |dx_orth| / |x|, the relative orthogonal magnitude.
  """

  cos: jax.Array
  one_minus_cos: jax.Array
  angle: jax.Array
  alpha: jax.Array
  rho: jax.Array


def widen(*arrays: ArrayLike) -> list[jax.Array]:
  """Returns the arrays in one float type: float32, or float64 if any is."""
  dtype = jnp.promote_types(jnp.float32, jnp.result_type(*arrays))
  return [jnp.asarray(array, dtype) for array in arrays]


def checked_pair(dense: ArrayLike, pruned: ArrayLike) -> list[jax.Array]:
  """Returns two vectors of one position widened, or says what is wrong.

  Args:
    dense: [D] or [V].
    pruned: the same shape.

  Raises:
    ValueError: the shapes differ, are not one-dimensional, or are empty.
  """
  shape, shape_pruned = jnp.shape(dense), jnp.shape(pruned)
  if shape != shape_pruned or len(shape) != 1 or shape[0] == 0:
    raise ValueError(
      f"shapes {shape} and {shape_pruned}: give two vectors of one position"
      " with the same length and vmap over the other axes"
    )
  return widen(dense, pruned)


def checked_temperature(temperature: ArrayLike, dtype: DTypeLike) -> jax.Array:
  """Returns the softmax temperature as a scalar of the given type.

  Args:
    temperature: T, a number or a scalar array.
    dtype: of the result.

  Raises:
    ValueError: a temperature that is known at trace time is not positive.
  """
  known = isinstance(temperature, (int, float, np.ndarray, np.generic))
  if known and not (np.ndim(temperature) == 0 and 0 < temperature < math.inf):
    raise ValueError(
      f"temperature={temperature!r}: must be a positive number; analyse a"
      " greedy run at temperature 1"
    )
  return jnp.asarray(temperature, dtype)


def top_token(z: ArrayLike) -> jax.Array:
  """Returns argmax of z [V], int32: the lowest id among equals.

  A NaN is the largest, as for `jnp.argmax`, whose reduction of two arrays at
  once a CPU does not vectorise: it takes four times as long.
  """
  z_V = jnp.asarray(z)
  largest_V = (z_V == jnp.max(z_V)) | jnp.isnan(z_V)
  ids_V = jnp.arange(z_V.size, dtype=jnp.int32)
  return jnp.min(jnp.where(largest_V, ids_V, z_V.size))


def logit_change(z: ArrayLike, z_pruned: ArrayLike) -> jax.Array:
  """Returns dz = z_pruned - z [V], 0 where a token is masked on both sides.

  A token is masked when its logit is -inf. Masked on one side only, it gives
  an infinite dz: support was lost or won, and nothing below may hide that.

  Args:
    z: dense logits [V].
    z_pruned: pruned logits [V].

  Raises:
    ValueError: shapes differ or are not one-dimensional.
  """
  z_V, zq_V = checked_pair(z, z_pruned)
  masked_V = (z_V == -jnp.inf) & (zq_V == -jnp.inf)
  return _difference(jnp.where(masked_V, 0, z_V), jnp.where(masked_V, 0, zq_V))


def compare_vectors(x: ArrayLike, x_pruned: ArrayLike) -> Deviation:
  """Compares a dense and a pruned vector, [D] or [V], in h or z.

  Zero vectors: both zero are identical (cos 1, alpha = rho = 0). A zero
  against a non-zero vector has no direction and counts as orthogonal (cos 0,
  angle pi/2): a zero pruned vector has alpha -1 and rho 0, a zero dense one
  alpha 0 and rho inf. NaN or infinite entries give NaN.

  Args:
    x: dense vector.
    x_pruned: pruned vector of the same length.

  Returns:
    Cosine, 1 - cosine, angle, and the change along and across x.

  Raises:
    ValueError: shapes differ or are not one-dimensional.
  """
  x_D, y_D = checked_pair(x, x_pruned)
  return _deviation(x_D, _difference(x_D, y_D), y_D)


def compare_logits(
  z: ArrayLike, z_pruned: ArrayLike
) -> tuple[Deviation, Deviation]:
  """Compares logits [V] as they are, and centred over the vocabulary.

  Both are taken over the tokens that neither side masks with -inf. Each
  centred vector has its own mean removed, so a constant in z or in dz is
  invisible to the second result.

  Args:
    z: dense logits [V]; -inf masks a token.
    z_pruned: pruned logits [V].

  Returns:
    (plain, centred). Two vectors of zeros are identical; one of zeros
    counts as orthogonal to the other.
  """
  z_V, zq_V = checked_pair(z, z_pruned)
  common_V = (z_V != -jnp.inf) & (zq_V != -jnp.inf)
  z_V, zq_V = jnp.where(common_V, z_V, 0), jnp.where(common_V, zq_V, 0)
  dz_V = _difference(z_V, zq_V)
  return (
    _deviation(z_V, dz_V, zq_V),
    _deviation(z_V, dz_V, zq_V, common_V.astype(z_V.dtype)),
  )


def centre(x: ArrayLike, keep: ArrayLike = True) -> jax.Array:
  """Subtracts the mean of the kept entries.

  Args:
    x: [V].
    keep: bool [V], or True for all.

  Returns:
    x less its mean over the kept entries [V], 0 elsewhere.
  """
  (x_V,) = widen(x)
  keep_V = jnp.broadcast_to(keep, x_V.shape)
  count = jnp.maximum(jnp.sum(keep_V, dtype=x_V.dtype), 1)
  # The mean is subtracted twice. Rounding of the first mean leaves a constant,
  # which the second one removes, so that a constant x becomes (nearly) exact
  # zeros.
  for _ in range(2):
    mean = jnp.sum(jnp.where(keep_V, x_V, 0)) / count
    x_V = jnp.where(keep_V, x_V - mean, 0)
  return x_V


def _difference(x, y) -> jax.Array:
  """Returns y - x, and exactly 0 where they are equal.

  A compiler that fuses this with the product that made y may round that
  product only once on one side; equal numbers then differ by a rounding.
  """
  return jnp.where(x == y, 0, y - x)


def _deviation(x_D, dx_D, y_D, count_D=None) -> Deviation:
  """Compares x with y = x + dx, all in the compute type.

  Args:
    x_D, dx_D, y_D: the vectors, [D].
    count_D: where given, the mean of each vector over the entries that are 1
      here is removed first; the vectors are 0 where this is 0.
  """
  # Each vector is scaled by its own largest entry, so that products of huge
  # or tiny vectors stay in range.
  x_size, dx_size, y_size = (
    jnp.max(jnp.abs(array_D)) for array_D in (x_D, dx_D, y_D)
  )
  # dx and y have the same component orthogonal to x. It is computed from the
  # shorter of the two, which has the smaller rounding error.
  by_change = dx_size <= y_size
  v_size = jnp.where(by_change, dx_size, y_size)
  x_D = x_D / jnp.where(x_size == 0, 1, x_size)
  v_D = jnp.where(by_change, dx_D, y_D) / jnp.where(v_size == 0, 1, v_size)
  count, x_sum, v_sum = 1, 0, 0
  if count_D is not None:
    count = jnp.sum(count_D)
    count = jnp.where(count == 0, 1, count)
    x_D = x_D - count_D * (jnp.sum(x_D) / count)
    v_D = v_D - count_D * (jnp.sum(v_D) / count)
    # Rounding of the mean leaves a constant in every entry; its part in the
    # products is subtracted.
    x_sum, v_sum = jnp.sum(x_D), jnp.sum(v_D)
  square = _at_least_0(jnp.sum(x_D * x_D) - x_sum * x_sum / count)
  safe = jnp.where(square == 0, 1, square)
  along = (jnp.sum(x_D * v_D) - x_sum * v_sum / count) / safe
  rest_D = v_D - along * x_D
  rest_sum = v_sum - along * x_sum
  # The projection is subtracted once more: what rounding left along x would
  # spoil a tiny remainder.
  left = (jnp.sum(x_D * rest_D) - x_sum * rest_sum / count) / safe
  rest = _at_least_0(
    jnp.sum(rest_D * rest_D)
    - rest_sum * rest_sum / count
    - left * left * square
  )
  # In units of |x|, y has the component 1 + alpha along x and rho orthogonal to
  # it.
  zero_dense = square == 0
  zero_both = zero_dense & (rest == 0)
  unit = v_size / jnp.where(zero_dense, 1, x_size)
  along = (along + left) * unit
  alpha = jnp.where(by_change, along, along - 1)
  along = jnp.where(by_change, 1 + along, along)
  rho = jnp.sqrt(rest) * (unit / jnp.sqrt(safe))
  # For a zero dense vector alpha is 0 and rho inf, or NaN if the other vector
  # has one.
  alpha = jnp.where(zero_dense, 0 * rest, alpha)
  rho = jnp.where(zero_dense, jnp.where(zero_both, 0, rest * jnp.inf), rho)
  one_minus_cos = jnp.where(zero_both, 0, _one_minus_cos(along, rho))
  right = (along == 0) & (rho == 0) & ~zero_both
  angle = jnp.where(zero_both, 0, jnp.arctan2(rho, along))
  return Deviation(
    cos=1 - one_minus_cos,
    one_minus_cos=one_minus_cos,
    angle=jnp.where(right, jnp.pi / 2, angle),
    alpha=alpha,
    rho=rho,
  )


def _at_least_0(square) -> jax.Array:
  """Undoes a negative rounding error; NaN stays NaN."""
  return jnp.where(square < 0, 0, square)


def _one_minus_cos(along, across) -> jax.Array:
  """1 - cos of the angle at the corner of a right triangle; 1 at (0, 0)."""
  size = jnp.maximum(jnp.abs(along), across)
  # Two vectors of size 0 have no angle; rho = inf (a zero dense vector) is a
  # right angle.
  right = (size == 0) | (size == jnp.inf)
  size = jnp.where(right, 1, size)
  along, across = along / size, across / size
  length = jnp.sqrt(along * along + across * across)
  length = jnp.where(right, 1, length)
  acute = across * across / (length * (length + jnp.abs(along)))
  return jnp.where(right, 1, jnp.where(along > 0, acute, 2 - acute))


def norm_of(x: ArrayLike) -> jax.Array:
  """Returns the Euclidean norm of a vector in its own float type."""
  # Entries are divided by the largest, because squares of tiny numbers would
  # vanish. The products are summed and no dot product is used, which
  # accelerators may compute in less than float32.
  size = jnp.max(jnp.abs(x))
  x = x / jnp.where((size == 0) | (size == jnp.inf), 1, size)
  norm = size * jnp.sqrt(jnp.sum(x * x))
  return jnp.where(size == jnp.inf, size, norm)


def ratio(part: ArrayLike, whole: ArrayLike) -> jax.Array:
  """Divides two sizes, with 0 / anything = 0 and x / 0 = inf.

  Args:
    part: real >= 0, any shape.
    whole: real >= 0, of that shape.
  """
  quotient = part / jnp.where(whole == 0, 1, whole)
  quotient = jnp.where(whole == 0, jnp.inf, quotient)
  return jnp.where(part == 0, 0, quotient)
