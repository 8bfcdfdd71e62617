"""What does rounding every weight to a few bits do, with no other care?

Each output's inputs are cut into groups of `group_size` neighbours; a group
shares one scale (and zero point), and each weight goes to the nearest level.

  symmetric   scale = max|w| / (2^(b-1) - 1), zero point 0
  asymmetric  scale = (max(w, 0) - min(w, 0)) / (2^b - 1), integer zero point

Every weight inside its group's range moves by half a scale at most, and a
zero, a pruned one too, stays exactly zero.

Reference: round-to-nearest as the baseline of Frantar et al., GPTQ (arXiv
2210.17323), and Lin et al., AWQ (arXiv 2306.00978), equation 1.

Differs from the reference in: the range of an asymmetric group always holds
zero (AWQ's code clips the zero point instead, which moves all weights of a
one-signed group); codes are signed on both paths; a group of zeros gets scale
1; a last short group is refused.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.pruning.patterns import Levels, nan_unless


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
  """A kernel in few bits: (codes - zeros) * scales / input_scales.

  Attributes:
    codes: int8 [I, O], in [-2^(bits-1), 2^(bits-1) - 1].
    scales: float32 [I / group_size, O], positive.
    zeros: int8 [I / group_size, O], the code of weight 0.
    input_scales: float32 [I], positive; ones unless a method such as AWQ
      scaled the inputs of the kernel before rounding.
    bits: 2 to 8. Storage is bits per weight plus scales and zeros; codes are
      kept one per byte here.
  """

  codes: jax.Array
  scales: jax.Array
  zeros: jax.Array
  input_scales: jax.Array
  bits: int = dataclasses.field(metadata=dict(static=True))


def quantize(
  w_IO: jax.Array, *, bits: int, group_size: int | None, symmetric: bool
) -> Quantized:
  """Round each weight to the nearest level of its group.

  Args:
    w_IO: kernel [I, O], finite, any float dtype; levels are float32.
    bits: 2 to 8.
    group_size: inputs that share a scale, a divisor of I; None for all I.
    symmetric: True for levels around zero without a zero point.

  Returns:
    Quantized with input scales of one.

  Raises:
    ValueError: bits out of range, or I not a multiple of group_size.
  """
  inputs = w_IO.shape[0]
  if not 2 <= bits <= 8:
    raise ValueError(f"bits is {bits}; use 2 to 8")
  size = inputs if group_size is None else group_size
  if size < 1 or inputs % size:
    raise ValueError(
      f"group_size {size} does not divide {inputs} inputs; "
      "use a divisor, or None for one group per output"
    )
  low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  w_UMO = rearrange(w_IO.astype(jnp.float32), "(U M) O -> U M O", M=size)
  if symmetric:
    span_UO = jnp.max(jnp.abs(w_UMO), axis=1) / high
    scales_UO = jnp.where(span_UO > 0, span_UO, 1.0)
    zeros_UO = jnp.zeros_like(scales_UO)
  else:
    top_UO = jnp.maximum(jnp.max(w_UMO, axis=1), 0.0)
    bottom_UO = jnp.minimum(jnp.min(w_UMO, axis=1), 0.0)
    # Each end is divided before the subtraction, because the span itself may
    # overflow.
    span_UO = top_UO / (high - low) - bottom_UO / (high - low)
    scales_UO = jnp.where(span_UO > 0, span_UO, 1.0)
    zeros_UO = jnp.clip(jnp.round(low - bottom_UO / scales_UO), low, high)
  codes_UMO = jnp.round(w_UMO / scales_UO[:, None]) + zeros_UO[:, None]
  return Quantized(
    codes=rearrange(
      jnp.clip(codes_UMO, low, high).astype(jnp.int8), "U M O -> (U M) O"
    ),
    scales=scales_UO,
    zeros=zeros_UO.astype(jnp.int8),
    input_scales=jnp.ones((inputs,), jnp.float32),
    bits=bits,
  )


def dequantize(quantized: Quantized) -> jax.Array:
  """Give back the kernel that the codes stand for, [I, O] float32."""
  groups = quantized.scales.shape[0]
  codes_UMO = rearrange(quantized.codes, "(U M) O -> U M O", U=groups)
  steps_UMO = (
    codes_UMO.astype(jnp.float32) - quantized.zeros.astype(jnp.float32)[:, None]
  )
  w_IO = rearrange(steps_UMO * quantized.scales[:, None], "U M O -> (U M) O")
  return w_IO / quantized.input_scales[:, None]


def round_to_nearest(
  w_IO: jax.Array,
  statistics: object = None,
  *,
  bits: int = 4,
  group_size: int | None = 128,
  symmetric: bool = False,
) -> tuple[jax.Array, Quantized]:
  """Quantise a kernel without looking at any data.

  Args:
    w_IO: kernel [I, O].
    statistics: not looked at; there so that all methods are called alike.
    bits: 2 to 8.
    group_size: inputs that share a scale, a divisor of I; None for all I.
    symmetric: True for levels around zero without a zero point.

  Returns:
    The dequantised kernel [I, O] in the dtype of w_IO (bfloat16 rounds the
    levels once more), all nan where a weight is inf or nan; and the codes.

  Raises:
    ValueError: bits out of range, or I not a multiple of the group size.
  """
  del statistics
  quantized = quantize(
    w_IO, bits=bits, group_size=group_size, symmetric=symmetric
  )
  new_IO = dequantize(quantized).astype(w_IO.dtype)
  return nan_unless(jnp.all(jnp.isfinite(w_IO)), new_IO), quantized


def rtn(
  w_IO: jax.Array, statistics: object, levels: Levels
) -> tuple[jax.Array, None]:
  """Round a kernel to the nearest levels: the method of the table.

  Args:
    w_IO: kernel [I, O].
    statistics: not looked at.
    levels: bits and groups.

  Returns:
    The rounded kernel, [I, O] in the dtype of w_IO; nothing is removed.

  Raises:
    ValueError: bits out of range, or I not a multiple of the group size.
  """
  new_IO, _ = round_to_nearest(
    w_IO,
    statistics,
    bits=levels.bits,
    group_size=levels.group_size,
    symmetric=levels.symmetric,
  )
  return new_IO, None
