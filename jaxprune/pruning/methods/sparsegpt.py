"""Which weights go if the others may be corrected for their loss?

With H = 2/n sum x x^T + damping and H^-1 = U^T U, U upper triangular, go
through the inputs in order. Removing weight i of an output costs
w_i^2 / U_ii^2, and what is lost is best made up by the inputs after it:

  e_i = w_i / U_ii if i leaves, else 0;   w_j -= U_ij e_i  for j > i

Inputs are handled in blocks of 128. Unstructured masks are chosen when a block
starts, n:m masks when their group starts, from weights as corrected so far.
U comes from `hessian_inverse.py`.

Reference: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be
Accurately Pruned in One-Shot" (arXiv 2301.00774), algorithm 1.

Differs from the reference in: exact counts. The official code removes, in each
block, one entry more than int(size * sparsity), and all its ties. Here,
whenever a block ends at input i, what has left is floor(i * O * sparsity)
entries ('matrix') or floor(i * sparsity) of each output ('output'): the kernel
meets its count and blocks differ by one entry at most. Corrections are applied
when a weight is reached, not whenever one is removed: the same sums in another
order.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.calibration.statistics import Gram
from jaxprune.pruning.methods.hessian_inverse import (
  InverseFactor,
  inverse_factor,
  inverse_factor_with_retry,
)
from jaxprune.pruning.patterns import (
  NofM,
  Pattern,
  check_shape,
  keep_mask,
  keep_mask_count,
  nan_unless,
  removed_count,
)

_HIGHEST = jax.lax.Precision.HIGHEST
# Most inputs of a stretch. A stretch gets the corrections for all earlier
# inputs of its block by one matrix product.
_STRETCH = 16
# The inputs of a kernel are cut into this many spans of blocks. A block gets
# its corrections from all inputs of its span, half of which are still zeros; a
# finished span corrects all inputs after it at once.
_SPANS = 8


def _prune_stretch(w_IO, upper_II, mask_IO):
  """Go through a few inputs that have all corrections from before them.

  Returns:
    Their weights as they were when reached, and their errors, [I, O] each.
  """

  def row(i, carry):
    w_IO, error_IO = carry
    past_O = jnp.einsum("I,IO->O", upper_II[:, i], error_IO, precision=_HIGHEST)
    w_O = w_IO[i] - past_O
    error_O = jnp.where(mask_IO[i], 0.0, w_O / upper_II[i, i])
    return w_IO.at[i].set(w_O), error_IO.at[i].set(error_O)

  start = (w_IO, jnp.zeros_like(w_IO))
  return jax.lax.fori_loop(0, w_IO.shape[0], row, start)


def _prune_block(w_IO, upper_II, removed, pattern):
  """Go through a block that has all corrections from before it.

  Returns:
    Weights before masking, mask and errors, [I, O] each.
  """
  size = w_IO.shape[0]
  pivot_I1 = jnp.diagonal(upper_II)[:, None]
  if isinstance(pattern, NofM):
    stretch, mask_IO = pattern.of, None
  else:
    stretch = max(c for c in range(1, _STRETCH + 1) if size % c == 0)
    # Ordered like their squares, which may overflow or vanish.
    scores_IO = jnp.abs(w_IO / pivot_I1)
    mask_IO = keep_mask_count(scores_IO, removed, pattern.group)

  def step(error_IO, start):
    panel_II = jax.lax.dynamic_slice_in_dim(upper_II, start, stretch, axis=1)
    corner_II = jax.lax.dynamic_slice_in_dim(panel_II, start, stretch)
    part_IO = jax.lax.dynamic_slice_in_dim(w_IO, start, stretch)
    # The rows of error_IO from `start` on are still zero.
    part_IO -= jnp.einsum("IJ,IO->JO", panel_II, error_IO, precision=_HIGHEST)
    if mask_IO is None:
      part_pivot_I1 = jnp.diagonal(corner_II)[:, None]
      part_mask_IO = keep_mask(jnp.abs(part_IO / part_pivot_I1), pattern)
    else:
      part_mask_IO = jax.lax.dynamic_slice_in_dim(mask_IO, start, stretch)
    part_IO, part_error_IO = _prune_stretch(part_IO, corner_II, part_mask_IO)
    error_IO = jax.lax.dynamic_update_slice_in_dim(
      error_IO, part_error_IO, start, axis=0
    )
    return error_IO, (part_IO, part_mask_IO)

  error_IO, (w_UMO, mask_UMO) = jax.lax.scan(
    step, jnp.zeros_like(w_IO), jnp.arange(0, size, stretch)
  )
  w_IO, mask_IO = (
    rearrange(stacked, "U M O -> (U M) O") for stacked in (w_UMO, mask_UMO)
  )
  return w_IO, mask_IO, error_IO


def _prune_span(w_IO, upper_II, removed_U, size, pattern):
  """Go through U blocks of one size that have all corrections from before.

  Returns:
    Weights before masking, mask and errors, [I, O] each.
  """
  span = w_IO.shape[0]

  def step(error_IO, block):
    removed, start = block
    panel_II = jax.lax.dynamic_slice_in_dim(upper_II, start, size, axis=1)
    corner_II = jax.lax.dynamic_slice_in_dim(panel_II, start, size)
    part_IO = jax.lax.dynamic_slice_in_dim(w_IO, start, size)
    part_IO -= jnp.einsum("IJ,IO->JO", panel_II, error_IO, precision=_HIGHEST)
    part_IO, part_mask_IO, part_error_IO = _prune_block(
      part_IO, corner_II, removed, pattern
    )
    error_IO = jax.lax.dynamic_update_slice_in_dim(
      error_IO, part_error_IO, start, axis=0
    )
    return error_IO, (part_IO, part_mask_IO)

  error_IO, (w_UMO, mask_UMO) = jax.lax.scan(
    step, jnp.zeros_like(w_IO), (removed_U, jnp.arange(0, span, size))
  )
  w_IO, mask_IO = (
    rearrange(stacked, "U M O -> (U M) O") for stacked in (w_UMO, mask_UMO)
  )
  return w_IO, mask_IO, error_IO


def _spans(inputs: int, size: int) -> list[tuple[int, int, int]]:
  """Cut the inputs in spans (start, stop, size of their blocks)."""
  whole = inputs - inputs % size
  step = max(math.ceil(whole / size / _SPANS), 1) * size
  spans = [(i, min(i + step, whole), size) for i in range(0, whole, step)]
  if whole < inputs:
    spans.append((whole, inputs, inputs - whole))
  return spans


def _lost(inputs: int, outputs: int, pattern: Pattern) -> int:
  """Entries a group has lost when its first `inputs` are done."""
  if isinstance(pattern, NofM):
    return 0
  group_outputs = outputs if pattern.group == "matrix" else 1
  return removed_count(inputs * group_outputs, pattern.sparsity)


def prune_with_factor(
  w_IO: jax.Array, factor: InverseFactor, pattern: Pattern, *, block: int = 128
) -> tuple[jax.Array, jax.Array]:
  """Remove weights and correct those that stay.

  Args:
    w_IO: kernel [I, O], any float dtype; computed in float32.
    factor: of the kernel's inputs.
    pattern: NofM, or Unstructured with group 'matrix' (that of the reference)
      or 'output'.
    block: inputs per block; lowered to a multiple of `of`, and to I. The
      last block may be shorter.

  Returns:
    The kernel with zeros and corrected weights, [I, O] in the dtype of w_IO,
    and the mask, bool [I, O], True = keep. Rows of dead inputs are zero. All
    weights are nan when `factor.ok` is False or a weight is inf or nan.

  Raises:
    ValueError: group 'global', inputs that n:m does not divide, a factor of
      another size, or a block below 1.
  """
  inputs, outputs = w_IO.shape
  check_shape(w_IO.shape, pattern)
  if factor.upper.shape != (inputs, inputs):
    raise ValueError(
      f"factor has shape {list(factor.upper.shape)}; the kernel"
      f" {list(w_IO.shape)} needs {[inputs, inputs]}"
    )
  if block < 1:
    raise ValueError(f"block is {block}; use at least 1, say 128")
  if isinstance(pattern, NofM):
    most = min(max(block - block % pattern.of, pattern.of), inputs)
  elif pattern.group == "global":
    raise ValueError(
      "group is 'global', but weights are corrected kernel by kernel; use"
      " 'matrix' or 'output'"
    )
  else:
    most = min(block, inputs)
  upper_II = factor.upper
  rest_IO = jnp.where(factor.dead[:, None], 0.0, w_IO.astype(jnp.float32))
  parts, masks = [], []
  for start, stop, size in _spans(inputs, most):
    ends = range(start + size, stop + 1, size)
    removed_U = jnp.array(
      [
        _lost(end, outputs, pattern) - _lost(end - size, outputs, pattern)
        for end in ends
      ],
      jnp.int32,
    )
    span_IO, mask_IO, error_IO = _prune_span(
      rest_IO[: stop - start],
      upper_II[start:stop, start:stop],
      removed_U,
      size,
      pattern,
    )
    rest_IO = rest_IO[stop - start :] - jnp.einsum(
      "IJ,IO->JO", upper_II[start:stop, stop:], error_IO, precision=_HIGHEST
    )
    parts.append(jnp.where(mask_IO, span_IO, 0.0))
    masks.append(mask_IO)
  sound = factor.ok & jnp.all(jnp.isfinite(w_IO))
  new_IO = nan_unless(sound, jnp.concatenate(parts))
  return new_IO.astype(w_IO.dtype), jnp.concatenate(masks)


def factorise(statistics: Gram) -> tuple[InverseFactor, dict[str, float]]:
  """Compute the factor that all kernels with the same inputs share.

  Returns:
    The factor, and the damping that made it exist.

  Raises:
    ValueError: statistics of no sequences or not finite, or four dampings
      that all failed.
  """
  factor, tried = inverse_factor_with_retry(statistics)
  return factor, {"damping": tried[-1]}


def sparsegpt(
  w_IO: jax.Array,
  statistics: Gram,
  pattern: Pattern,
  *,
  block: int = 128,
  damping: jax.Array | float = 0.01,
) -> tuple[jax.Array, jax.Array]:
  """Remove weights and correct those that stay, from the Gram of the inputs.

  Kernels with the same inputs can share the factor: `inverse_factor`, then
  `prune_with_factor`.

  Args:
    w_IO: kernel [I, O].
    statistics: Gram of the inputs.
    pattern: NofM, or Unstructured with group 'matrix' or 'output'.
    block: inputs per block; the last may be shorter.
    damping: share of the mean diagonal that is added to the diagonal; may be
      traced.

  Returns:
    The kernel with zeros and corrected weights, [I, O] in the dtype of w_IO,
    and the mask, bool [I, O], True = keep. All weights are nan where the
    damping was too small to factorise the Gram.

  Raises:
    ValueError: group 'global', inputs that n:m does not divide, or a block
      below 1.
  """
  factor = inverse_factor(statistics, damping)
  return prune_with_factor(w_IO, factor, pattern, block=block)
