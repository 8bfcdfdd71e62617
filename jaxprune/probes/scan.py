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

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

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
  batch = rows[0].shape[0]
  flat = tuple(rearrange(row, "B T ... -> (B T) ...") for row in rows)
  size = min(chunk, flat[0].shape[0])
  results = jax.lax.map(lambda row: measure(*row), flat, batch_size=size)
  return jax.tree.map(
    lambda leaf: rearrange(leaf, "(B T) ... -> B T ...", B=batch), results
  )


def pick_rows(h_BTD: Array, rows_BT: Array | None) -> Array:
  """Picks positions of every sequence.

  Args:
    h_BTD: [B, T, D].
    rows_BT: positions, int [B, R]; None is all of them.

  Returns:
    [B, R, D].
  """
  if rows_BT is None:
    return h_BTD
  return jnp.take_along_axis(h_BTD, rows_BT[:, :, None], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
  """One model as a scan over its layers reads it.

  Attributes:
    block: one layer on a whole sequence, `(layer, x_BTD) -> (mid_BTD,
      out_BTD)`: the residual stream after its attention and after its MLP.
    x: embeddings of the tokens [B, T, D].
    layers: any pytree, every leaf with a leading L.
  """

  block: Callable[[Tree, Array], tuple[Array, Array]]
  x: Array
  layers: Tree


def compare_layers(
  dense: Stack,
  pruned: Stack,
  measure: Callable[[Array, Array], Tree],
  *,
  rows_BT: Array | None = None,
  texts: Array | None = None,
  chunk: int = 64,
) -> tuple[Array, Array, Tree]:
  """Run two models on the same tokens and measure after every sublayer.

  Args:
    dense: the dense model on the tokens.
    pruned: the pruned model on the same tokens.
    measure: `(h_D, h_pruned_D) -> scalars`; closes over the read-out and T.
    rows_BT: positions to measure, int `[B, R]`; None measures all of them.
    texts: indices of the sequences to measure, int `[C]`; None is all of them,
      C = B.
    chunk: positions read out together.

  Returns:
    `(x_BTD, pruned_x_BTD, records)`: the residual streams after the last
    layer, and the tree of `measure` with leaves `[L, 2, C, R]`, where index 0
    of the second axis is attention and 1 the MLP.
  """

  def pick(h_BTD):
    if texts is None:
      return pick_rows(h_BTD, rows_BT)
    rows_CT = None if rows_BT is None else rows_BT[texts]
    return pick_rows(h_BTD[texts], rows_CT)

  def step(carry, layer_pair):
    layer, pruned_layer = layer_pair
    x_BTD, y_BTD = carry
    # Without the barrier the compiler may fuse the two models differently,
    # and a model compared with itself would differ in the last bit.
    points = jax.lax.optimization_barrier(dense.block(layer, x_BTD))
    pruned_points = jax.lax.optimization_barrier(
      pruned.block(pruned_layer, y_BTD)
    )
    records = [
      measure_rows(measure, pick(h), pick(g), chunk=chunk)
      for h, g in zip(points, pruned_points)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    return (points[1], pruned_points[1]), stacked

  (x_BTD, y_BTD), records = jax.lax.scan(
    step, (dense.x, pruned.x), (dense.layers, pruned.layers)
  )
  return x_BTD, y_BTD, records
