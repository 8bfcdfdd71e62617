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
  removed_count,
)

_HIGHEST = jax.lax.Precision.HIGHEST
# Inputs of a block between two products with all errors of the block so far.
_STRETCH = 16
# A kernel is cut in so many spans of blocks. Blocks take corrections from the
# whole span so far, half of it zeros; spans push theirs to what is left.
_SPANS = 8


def _prune_stretch(w_CO, upper_CC, mask_CO):
  """Go through a few inputs that have all corrections from before them.

  Returns:
    Their weights as they were when reached, and their errors, [C, O] each.
  """

  def row(i, carry):
    w_CO, error_CO = carry
    past_O = jnp.einsum("C,CO->O", upper_CC[:, i], error_CO, precision=_HIGHEST)
    w_O = w_CO[i] - past_O
    error_O = jnp.where(mask_CO[i], 0.0, w_O / upper_CC[i, i])
    return w_CO.at[i].set(w_O), error_CO.at[i].set(error_O)

  start = (w_CO, jnp.zeros_like(w_CO))
  return jax.lax.fori_loop(0, w_CO.shape[0], row, start)


def _prune_block(w_BO, upper_BB, removed, pattern):
  """Go through a block that has all corrections from before it.

  Returns:
    Weights before masking, mask and errors, [B, O] each.
  """
  size = w_BO.shape[0]
  pivot_B1 = jnp.diagonal(upper_BB)[:, None]
  if isinstance(pattern, NofM):
    stretch, mask_BO = pattern.of, None
  else:
    stretch = max(c for c in range(1, _STRETCH + 1) if size % c == 0)
    scores_BO = jnp.square(w_BO / pivot_B1)
    mask_BO = keep_mask_count(scores_BO, removed, pattern.group)

  def step(error_BO, start):
    upper_BC = jax.lax.dynamic_slice_in_dim(upper_BB, start, stretch, axis=1)
    upper_CC = jax.lax.dynamic_slice_in_dim(upper_BC, start, stretch)
    w_CO = jax.lax.dynamic_slice_in_dim(w_BO, start, stretch)
    # Rows of error_BO from `start` on are zero still.
    w_CO -= jnp.einsum("BC,BO->CO", upper_BC, error_BO, precision=_HIGHEST)
    if mask_BO is None:
      pivot_C1 = jnp.diagonal(upper_CC)[:, None]
      mask_CO = keep_mask(jnp.square(w_CO / pivot_C1), pattern)
    else:
      mask_CO = jax.lax.dynamic_slice_in_dim(mask_BO, start, stretch)
    w_CO, error_CO = _prune_stretch(w_CO, upper_CC, mask_CO)
    error_BO = jax.lax.dynamic_update_slice_in_dim(
      error_BO, error_CO, start, axis=0
    )
    return error_BO, (w_CO, mask_CO)

  error_BO, (w_XCO, mask_XCO) = jax.lax.scan(
    step, jnp.zeros_like(w_BO), jnp.arange(0, size, stretch)
  )
  w_BO, mask_BO = (
    rearrange(each, "X C O -> (X C) O") for each in (w_XCO, mask_XCO)
  )
  return w_BO, mask_BO, error_BO


def _prune_span(w_SO, upper_SS, removed_X, size, pattern):
  """Go through X blocks of one size that have all corrections from before.

  Returns:
    As `_prune_block`, [S, O] each.
  """
  span = w_SO.shape[0]

  def step(error_SO, block):
    removed, start = block
    upper_SB = jax.lax.dynamic_slice_in_dim(upper_SS, start, size, axis=1)
    upper_BB = jax.lax.dynamic_slice_in_dim(upper_SB, start, size)
    w_BO = jax.lax.dynamic_slice_in_dim(w_SO, start, size)
    w_BO -= jnp.einsum("SB,SO->BO", upper_SB, error_SO, precision=_HIGHEST)
    w_BO, mask_BO, error_BO = _prune_block(w_BO, upper_BB, removed, pattern)
    error_SO = jax.lax.dynamic_update_slice_in_dim(
      error_SO, error_BO, start, axis=0
    )
    return error_SO, (w_BO, mask_BO)

  error_SO, (w_XBO, mask_XBO) = jax.lax.scan(
    step, jnp.zeros_like(w_SO), (removed_X, jnp.arange(0, span, size))
  )
  w_SO, mask_SO = (
    rearrange(each, "X B O -> (X B) O") for each in (w_XBO, mask_XBO)
  )
  return w_SO, mask_SO, error_SO


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
  each = outputs if pattern.group == "matrix" else 1
  return removed_count(inputs * each, pattern.sparsity)


def prune_with_factor(
  w_IO: jax.Array, factor: InverseFactor, pattern: Pattern, *, block: int = 128
) -> tuple[jax.Array, jax.Array]:
  """Remove weights and correct those that stay.

  Args:
    w_IO: kernel [I, O], any float dtype; computed in float32.
    factor: of the kernel's inputs.
    pattern: NofM, or Unstructured with group 'matrix' (as the reference) or
      'output'.
    block: inputs per block; lowered to a multiple of `of`, and to I. The
      last block may be shorter.

  Returns:
    The kernel with zeros and corrected weights, [I, O] in the dtype of w_IO,
    and the mask, bool [I, O], True = keep. Rows of dead inputs are zero. All
    weights are nan when `factor.ok` is False.

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
  rest_RO = jnp.where(factor.dead[:, None], 0.0, w_IO.astype(jnp.float32))
  parts, masks = [], []
  for start, stop, size in _spans(inputs, most):
    ends = range(start + size, stop + 1, size)
    removed_X = jnp.array(
      [
        _lost(end, outputs, pattern) - _lost(end - size, outputs, pattern)
        for end in ends
      ],
      jnp.int32,
    )
    w_SO, mask_SO, error_SO = _prune_span(
      rest_RO[: stop - start],
      upper_II[start:stop, start:stop],
      removed_X,
      size,
      pattern,
    )
    rest_RO = rest_RO[stop - start :] - jnp.einsum(
      "SR,SO->RO", upper_II[start:stop, stop:], error_SO, precision=_HIGHEST
    )
    parts.append(jnp.where(mask_SO, w_SO, 0.0))
    masks.append(mask_SO)
  new_IO = jnp.where(factor.ok, jnp.concatenate(parts), jnp.nan)
  return new_IO.astype(w_IO.dtype), jnp.concatenate(masks)


def factorise(statistics: Gram) -> tuple[InverseFactor, dict[str, float]]:
  """What all kernels with the same inputs share; for drivers.

  Returns:
    The factor, and the damping that made it exist.

  Raises:
    ValueError: as `inverse_factor_with_retry`.
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
    As `prune_with_factor`.

  Raises:
    ValueError: as `prune_with_factor`.
  """
  factor = inverse_factor(statistics, damping)
  return prune_with_factor(w_IO, factor, pattern, block=block)
