"""What happens to h, z and p at every sublayer of two stacked models?

Both models are run side by side through one `lax.scan` over their stacked
layers; at each sublayer the two residual streams are read out and reduced to
scalars at once, so nothing of size `[L, T, V]` ever exists.

The model is two callables, so any model with stacked layers can be measured:

  block(layer, x_BTD) -> (mid_BTD, out_BTD)   residual after attention, MLP
  measure(h_D, h_pruned_D) -> scalars         one position

Reference: He et al., "Demystifying When Pruning Works via Representation
Hierarchies", arXiv 2603.24652, section 5 and Fig 4. There, one sublayer at a
time is replaced on the dense context; here the whole pruned model runs on the
same tokens (teacher-forced), so damage adds up over the layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


def measure_rows(
  measure: Callable[..., Tree], *rows: Array, chunk: int = 64
) -> Tree:
  """Apply a one-position measurement to every row, a chunk at a time.

  Args:
    measure: takes one row of each array, `[...]`, and returns scalars.
    *rows: arrays `[B, T, ...]` with equal `B` and `T`.
    chunk: rows measured together; bounds the memory to `chunk` read-outs.

  Returns:
    The tree of `measure`, each leaf `[B, T]`.
  """
  shape = rows[0].shape[:2]
  flat = tuple(r.reshape((-1,) + r.shape[2:]) for r in rows)
  size = min(chunk, flat[0].shape[0])
  out = jax.lax.map(lambda row: measure(*row), flat, batch_size=size)
  return jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[1:]), out)


def pick_rows(h_BTD: Array, rows_BT: Array | None) -> Array:
  """Positions `rows_BT` [B, R] of every sequence; None is all of them."""
  if rows_BT is None:
    return h_BTD
  return jnp.take_along_axis(h_BTD, rows_BT[:, :, None], axis=1)


def compare_layers(
  block: Callable[[Tree, Array], tuple[Array, Array]],
  measure: Callable[[Array, Array], Tree],
  x_BTD: Array,
  layers: Tree,
  pruned_x_BTD: Array,
  pruned_layers: Tree,
  *,
  pruned_block: Callable[[Tree, Array], tuple[Array, Array]] | None = None,
  rows_BT: Array | None = None,
  chunk: int = 64,
) -> tuple[Array, Array, Tree]:
  """Run two models on the same tokens and measure after every sublayer.

  Args:
    block: one layer on a whole sequence; returns the residual stream after
      its attention and after its MLP.
    measure: `(h_D, h_pruned_D) -> scalars`; closes over the read-out and T.
    x_BTD: embeddings of the dense model.
    layers: its layers, every leaf with a leading `L`.
    pruned_x_BTD: embeddings of the pruned model.
    pruned_layers: its layers.
    pruned_block: its block where that differs from `block`.
    rows_BT: positions to measure, int `[B, R]`; None measures all of them.
    chunk: positions read out together.

  Returns:
    `(x_BTD, pruned_x_BTD, records)`: the residual streams after the last
    layer, and the tree of `measure` with leaves `[L, 2, B, R]`, where index 0
    of the second axis is attention and 1 the MLP.
  """

  pruned_block = pruned_block or block

  def step(carry, layer_pair):
    layer, pruned_layer = layer_pair
    x, y = carry
    # Without the barrier the compiler may fuse the two models differently,
    # and a model compared with itself would differ in the last bit.
    points = jax.lax.optimization_barrier(block(layer, x))
    pruned_points = jax.lax.optimization_barrier(pruned_block(pruned_layer, y))
    records = [
      measure_rows(
        measure, pick_rows(h, rows_BT), pick_rows(g, rows_BT), chunk=chunk
      )
      for h, g in zip(points, pruned_points)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    return (points[1], pruned_points[1]), stacked

  (x, y), records = jax.lax.scan(
    step, (x_BTD, pruned_x_BTD), (layers, pruned_layers)
  )
  return x, y, records
