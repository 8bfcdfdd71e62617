"""How fast does this machine multiply and read, at its best?

The floors of all suites are made of these two rates.
"""

import jax
import jax.numpy as jnp

from jaxprune.studies.benchmark import timing


def matmul_rate(
  inputs: int, outputs: int, rows: int = 512, dtype: jnp.dtype = jnp.float32
) -> float:
  """Flops per second of a large product, the best of eight.

  Args:
    inputs: I of the matrix.
    outputs: O.
    rows: of what is multiplied by it.
    dtype: of both.
  """
  multiply = jax.jit(jnp.dot)
  x_RI = jnp.ones((rows, inputs), dtype)
  w_IO = jnp.ones((inputs, outputs), dtype)
  seconds = [
    timing.timed(lambda: jax.block_until_ready(multiply(x_RI, w_IO)))[
      timing.WALL
    ]
    for _ in range(8)
  ]
  return 2.0 * rows * inputs * outputs / min(seconds)


def memory_rate(floats: int = 1 << 26) -> float:
  """Bytes per second that are read from memory, the best of four.

  Args:
    floats: float32 numbers that are read each time; more than a cache holds.
  """
  total = jax.jit(jnp.sum)
  values = jnp.ones(floats)
  seconds = [
    timing.timed(lambda: jax.block_until_ready(total(values)))[timing.WALL]
    for _ in range(4)
  ]
  return 4.0 * floats / min(seconds)
