"""Which hidden units of an MLP can go, with all their weights?

  score_j = mean over outputs of |W_down[j, :]|, times s_j
  s_j     = mean over sequences of the sum over tokens of x_j^2

with x the input of the down kernel. A unit that goes takes its row of `down`,
its columns of `gate` and `up` and their biases along, so the MLP may either be
masked or be built slimmer: both give the same output.

Reference: `neuron_partition` of the paper's official code, which does not
take the square root of s_j; the variant that does is in a comment there.

Differs from the reference in: both variants; exact counts, ties by index; the
slimmer kernels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import SquaredNorm
from jaxprune.pruning.patterns import Unstructured, keep_mask, nan_unless

Tree = dict[str, Any]


def neuron_scores(
  down_FO: jax.Array, statistics: SquaredNorm, *, root: bool = False
) -> jax.Array:
  """Score each hidden unit; higher is kept.

  Args:
    down_FO: kernel from the hidden units, [F, O], any float dtype.
    statistics: squared norms of the inputs of that kernel.
    root: take the square root of s_j, as Wanda does.

  Returns:
    [F] float32, nonnegative.
  """
  size_F = jnp.mean(jnp.abs(down_FO.astype(jnp.float32)), axis=1)
  norm_F = jnp.sqrt(statistics.mean) if root else statistics.mean
  return size_F * norm_F


def _cut(mlp: Tree, hidden, down) -> Tree:
  """Apply `hidden` to the last axis of gate and up, `down` to down's rows.

  Keys of a kernel other than kernel and bias are kept as they are, and so is
  the bias of down, which belongs to the outputs.
  """
  cut = {}
  for name, leaves in mlp.items():
    cut[name] = dict(leaves)
    if name == "down":
      cut[name]["kernel"] = down(leaves["kernel"])
    else:
      for part in {"kernel", "bias"} & set(leaves):
        cut[name][part] = hidden(leaves[part])
  return cut


def mask_neurons(mlp: Tree, keep_F: jax.Array) -> tuple[Tree, Tree]:
  """Zero every weight of the units that go.

  Args:
    mlp: {'gate', 'up', 'down'} or {'up', 'down'}, each {'kernel': [I, O]} with
      a 'bias' [O] or without; gate and up lead into the hidden units.
    keep_F: bool [F].

  Returns:
    The same tree with zeros, and the masks {name: bool [I, O]} of the
    kernels, True = keep.
  """

  def zero(keep, leaf):
    return jnp.where(keep, leaf, 0).astype(leaf.dtype)

  new = _cut(
    mlp,
    lambda leaf: zero(jnp.expand_dims(keep_F, range(leaf.ndim - 1)), leaf),
    lambda leaf: zero(keep_F[:, None], leaf),
  )
  masks = {
    name: jnp.broadcast_to(
      keep_F[:, None] if name == "down" else keep_F[None],
      leaves["kernel"].shape,
    )
    for name, leaves in mlp.items()
  }
  return new, masks


def remove_neurons(
  mlp: Tree, scores_F: jax.Array, sparsity: float
) -> tuple[Tree, Tree]:
  """Zero the hidden units of lowest score.

  Args:
    mlp: {'gate', 'up', 'down'} or {'up', 'down'}, each {'kernel': [I, O]} with
      a 'bias' [O] or without.
    scores_F: [F]; higher stays.
    sparsity: fraction of units removed, in [0, 1).

  Returns:
    The same tree with zeros, all nan where a score is inf or nan; and the masks
    {name: bool [I, O]} of the kernels, True = keep.

  Raises:
    ValueError: sparsity out of range.
  """
  pattern = Unstructured(sparsity=sparsity)
  keep_F = keep_mask(scores_F[:, None], pattern)[:, 0]
  new, masks = mask_neurons(mlp, keep_F)
  return nan_unless(jnp.all(jnp.isfinite(scores_F)), new), masks


def slim(mlp: Tree, keep_F: jax.Array, width: int) -> Tree:
  """Build the MLP without the units that go, in their order.

  Args:
    mlp: {'gate', 'up', 'down'} or {'up', 'down'}, each {'kernel': [I, O]} with
      a 'bias' [O] or without.
    keep_F: bool [F].
    width: how many units stay; a number, since it is a shape.

  Returns:
    Kernels [I, width], [I, width] and [width, O]: the output equals that of
    the masked MLP.

  Raises:
    ValueError: outside of jit, keep_F keeps another number of units.
  """
  if not isinstance(keep_F, jax.core.Tracer) and int(keep_F.sum()) != width:
    raise ValueError(f"width is {width}, but {int(keep_F.sum())} units stay")
  index_F = jnp.nonzero(keep_F, size=width)[0]
  return _cut(mlp, lambda leaf: leaf[..., index_F], lambda leaf: leaf[index_F])


def neuron(
  mlp: Tree, statistics: SquaredNorm, sparsity: float, *, root: bool = False
) -> tuple[Tree, Tree, None]:
  """Remove the hidden units of lowest score by masking.

  Args:
    mlp: {'gate', 'up', 'down'} or {'up', 'down'}, each {'kernel': [I, O]} with
      a 'bias' [O] or without.
    statistics: squared norms of the inputs of the down kernel.
    sparsity: fraction of units removed, in [0, 1).
    root: take the square root of s_j, as Wanda does.

  Returns:
    The same tree with zeros, all nan where a score is inf or nan; the masks
    {name: bool [I, O]} of its kernels, True = keep; and None: no bias stands in
    for the units.

  Raises:
    ValueError: sparsity out of range.
  """
  scores_F = neuron_scores(mlp["down"]["kernel"], statistics, root=root)
  new, masks = remove_neurons(mlp, scores_F, sparsity)
  return new, masks, None


def neuron_root(*inputs: Any) -> tuple[Tree, Tree, None]:
  """`neuron` by the square root of s_j."""
  return neuron(*inputs, root=True)
