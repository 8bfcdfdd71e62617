"""Which inputs should be enlarged before rounding, so that they err less?

Multiply the weights of input i by s_i, round them in groups, divide again:

  W' = Q(diag(s) W) / s,   s_i = a_i^alpha,   a_i = mean |x_i|

The weights of loud inputs then get finer levels, at the cost of the others
in their groups. alpha is searched on a grid for the least output error on
the calibration tokens. alpha = 0 is plain rounding, so the result is never
worse than that on those tokens.

Reference: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM
Compression and Acceleration" (arXiv 2306.00978), equations 4 and 5.

Differs from the reference in: the output error comes from the Gram matrix,
which gives the exact squared error of all tokens where the published code
samples some; each kernel has its own scales, because W' is returned with
them folded in (a deployed AWQ kernel shares s among query, key and value and
puts 1/s into the norm before); alpha = 1 is on the grid; a is floored at
1e-4 of the largest a, not at 1e-4; no search for clipped ranges.
"""

import jax
import jax.numpy as jnp

from jaxprune.calibration.moments import MeanAbs
from jaxprune.calibration.statistics import Gram
from jaxprune.pruning import reconstruction
from jaxprune.pruning.methods.quantize import Quantized, dequantize, quantize
from jaxprune.pruning.patterns import Levels, nan_unless


def input_scales(loudness_I: jax.Array, alpha: jax.Array) -> jax.Array:
  """Raise the loudness of each input to a power.

  Args:
    loudness_I: a, nonnegative, [I]; its unit does not matter, since a common
      factor of all scales cancels in rounding.
    alpha: [] in [0, 1].

  Returns:
    [I] float32 in (0, 1]; ones where nothing was heard at all.
  """
  loudest = jnp.max(loudness_I)
  relative_I = loudness_I / jnp.where(loudest > 0, loudest, 1.0)
  relative_I = jnp.where(loudest > 0, jnp.maximum(relative_I, 1e-4), 1.0)
  return relative_I.astype(jnp.float32) ** alpha


def awq(
  w_IO: jax.Array,
  statistics: Gram,
  *,
  mean_abs: MeanAbs | None = None,
  bits: int = 4,
  group_size: int | None = 128,
  symmetric: bool = False,
  grid: int = 20,
) -> tuple[jax.Array, Quantized]:
  """Quantise a kernel with the input scales that err least.

  Args:
    w_IO: kernel [I, O].
    statistics: Gram of the inputs, which measures the error.
    mean_abs: mean |x| of the inputs, the loudness of the paper; None takes
      the root mean square from the diagonal of the Gram.
    bits: 2 to 8.
    group_size: inputs that share a scale, a divisor of I; None for all I.
    symmetric: True for levels around zero without a zero point.
    grid: steps between alpha 0 and 1; one rounding and one product with the
      Gram each.

  Returns:
    The dequantised kernel [I, O] in the dtype of w_IO, all nan where no alpha
    has a finite error; and the codes with their input scales. Ties go to the
    smallest alpha.

  Raises:
    ValueError: bits out of range, I not a multiple of group_size, or grid
      below 1.
  """
  if grid < 1:
    raise ValueError(f"grid is {grid}; use at least 1")
  w32_IO = w_IO.astype(jnp.float32)
  gram_II = statistics.sum_outer
  if mean_abs is None:
    loudness_I = jnp.sqrt(jnp.maximum(jnp.diagonal(gram_II), 0.0))
  else:
    loudness_I = mean_abs.mean

  def rounded(alpha):
    scale_I = input_scales(loudness_I, alpha)
    quantized = quantize(
      w32_IO * scale_I[:, None],
      bits=bits,
      group_size=group_size,
      symmetric=symmetric,
    )
    return Quantized(
      codes=quantized.codes,
      scales=quantized.scales,
      zeros=quantized.zeros,
      input_scales=scale_I,
      bits=bits,
    )

  def error(alpha):
    delta_IO = dequantize(rounded(alpha)) - w32_IO
    return reconstruction.output_errors(delta_IO, gram_II).sum()

  alphas_P = jnp.linspace(0.0, 1.0, grid + 1, dtype=jnp.float32)
  # One alpha at a time: all at once would need a copy of the kernel for each.
  errors_P = jax.lax.map(error, alphas_P)
  quantized = rounded(alphas_P[jnp.argmin(errors_P)])
  new_IO = dequantize(quantized).astype(w_IO.dtype)
  return nan_unless(jnp.isfinite(jnp.min(errors_P)), new_IO), quantized


def awq_levels(
  w_IO: jax.Array, statistics: tuple[Gram, MeanAbs], levels: Levels
) -> tuple[jax.Array, None]:
  """Quantise a kernel to levels: the method of the table.

  Args:
    w_IO: kernel [I, O].
    statistics: Gram and mean |x| of the inputs.
    levels: bits and groups.

  Returns:
    The dequantised kernel, [I, O] in the dtype of w_IO; nothing is removed.

  Raises:
    ValueError: bits out of range, or I not a multiple of the group size.
  """
  gram, mean_abs = statistics
  new_IO, _ = awq(
    w_IO,
    gram,
    mean_abs=mean_abs,
    bits=levels.bits,
    group_size=levels.group_size,
    symmetric=levels.symmetric,
  )
  return new_IO, None
