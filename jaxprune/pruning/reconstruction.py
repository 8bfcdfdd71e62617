"""How far does a changed kernel move the output of its layer?

  error = ||X W - X W'||_F^2 / ||X W||_F^2

X holds every calibration token that entered the kernel, [tokens, I]. Only
its Gram matrix X^T X is kept, and that is enough: with D = W' - W,
||X D||_F^2 = tr(D^T X^T X D). Scaling the Gram changes nothing, so a sum, a
mean over sequences or a Hessian 2/n sum serve alike.

Reference: the layer-wise objective of Frantar and Alistarh, SparseGPT
(arXiv 2301.00774), equation 1, and Sun et al., Wanda (arXiv 2306.11695).
"""

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import sum_rows

# A Gram spans many orders of magnitude; the reduced-precision products that
# accelerators use by default would swamp the small errors compared here.
_HIGHEST = jax.lax.Precision.HIGHEST


def product(gram_II: jax.Array, x_IO: jax.Array) -> jax.Array:
  """Multiply a Gram and a kernel in float32, on every platform.

  Args:
    gram_II: [I, I].
    x_IO: [I, O].

  Returns:
    [I, O] float32.
  """
  return jnp.einsum(
    "IJ,JO->IO",
    gram_II.astype(jnp.float32),
    x_IO.astype(jnp.float32),
    precision=_HIGHEST,
  )


def output_errors(delta_IO: jax.Array, gram_II: jax.Array) -> jax.Array:
  """Sum the squared change of each output over the calibration tokens.

  Args:
    delta_IO: change of the kernel, new minus old, [I, O].
    gram_II: sum over tokens of the outer product of the input, [I, I].

  Returns:
    [O] float32, nonnegative. A Gram is positive semidefinite only up to
    rounding, so values below zero are set to zero. A true error below about
    1e-7 of |delta|^T |gram| |delta| is lost in that rounding.
  """
  delta_IO = delta_IO.astype(jnp.float32)
  energy_O = sum_rows(delta_IO * product(gram_II, delta_IO))
  return jnp.maximum(energy_O, 0.0)


def relative_energy(error: jax.Array, dense: jax.Array) -> jax.Array:
  """Divide the energy of a change by that of what was there.

  Args:
    error: sum of squares of pruned minus dense output, [].
    dense: that of the dense output, [].

  Returns:
    [] float32. Where the dense output is zero: 0 if nothing changed, else 1, as
    for an output that is lost.
  """
  relative = error / jnp.where(dense == 0, 1.0, dense)
  return jnp.where(dense == 0, jnp.where(error > 0, 1.0, error), relative)


def layer_error(
  w_IO: jax.Array, new_IO: jax.Array, gram_II: jax.Array
) -> jax.Array:
  """Compare two kernels by their outputs on the calibration tokens.

  Args:
    w_IO: the dense kernel, [I, O].
    new_IO: the pruned, quantised or otherwise changed kernel, [I, O].
    gram_II: Gram of the inputs under any positive scale, [I, I].

  Returns:
    [] float32, the squared error relative to the energy of the dense
    output: 0 for an equal kernel, 1 for a kernel of zeros. 0 when both
    energies are zero, inf when only the dense one is.
  """
  w_IO = w_IO.astype(jnp.float32)
  error = output_errors(new_IO.astype(jnp.float32) - w_IO, gram_II).sum()
  dense = output_errors(w_IO, gram_II).sum()
  relative = error / jnp.where(dense > 0, dense, 1.0)
  return jnp.where(dense > 0, relative, jnp.where(error > 0, jnp.inf, 0.0))
