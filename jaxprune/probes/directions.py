"""Along which lines is a change taken apart? Shares of sublayers and steps.

Shares are [L, 2, T]: layer, attention or MLP, position. A list of directions
divides the whole change when it sums to one at every share.
"""

import jax
import jax.numpy as jnp


def sublayers(num_layers: int, length: int) -> jax.Array:
  """One per sublayer, all positions: [2L, L, 2, T], attention 0, MLP 0, ..."""
  count = 2 * num_layers
  return jnp.broadcast_to(
    jnp.eye(count).reshape(count, num_layers, 2, 1),
    (count, num_layers, 2, length),
  )


def layer_groups(num_layers: int, groups: int) -> list[range]:
  """Layers in order, cut into groups of sizes that differ by one at most.

  Raises:
    ValueError: no group, or more groups than layers.
  """
  if not 1 <= groups <= num_layers:
    raise ValueError(
      f"groups={groups}: the model has {num_layers} layers; use 1 to"
      f" {num_layers}"
    )
  ends = [num_layers * index // groups for index in range(groups + 1)]
  return [range(*pair) for pair in zip(ends, ends[1:])]


def steps(
  num_layers: int, length: int, num_steps: int, groups: int = 1
) -> jax.Array:
  """One per group of layers and step: [G * (1 + R), L, 2, T].

  In each group, the first is what stands before the first step; the others are
  the positions that steps 0 to R - 1 read, the last R.
  """
  cause_T = jnp.maximum(jnp.arange(length) - (length - num_steps) + 1, 0)
  shares_PT = (jnp.arange(num_steps + 1)[:, None] == cause_T[None]).astype(
    jnp.float32
  )
  inside_GL = jnp.asarray(
    [
      [layer in group for layer in range(num_layers)]
      for group in layer_groups(num_layers, groups)
    ],
    jnp.float32,
  )
  shares_GPLT = jnp.einsum("GL,PT->GPLT", inside_GL, shares_PT)
  count = len(inside_GL) * len(shares_PT)
  return jnp.broadcast_to(
    shares_GPLT.reshape(count, num_layers, 1, length),
    (count, num_layers, 2, length),
  )
