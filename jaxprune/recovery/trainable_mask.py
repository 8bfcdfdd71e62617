"""Which weights may training change, and which must stay as they are?

Pruned weights are zero and stay zero; a dropped sublayer stays as it was
written, its norm, kernels and biases included. Everything else is trainable.
A weight that is not trainable keeps its bits, whatever the optimiser does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import kernels_of

Params = Mapping[str, Any]
Masks = Mapping[str, Mapping[str, Any]]


def masks_from_zeros(params: Params) -> dict[str, dict[str, np.ndarray]]:
  """The masks that the zeros of the kernels tell, for a model without a file.

  Args:
    params: stacked parameters of the decoder.

  Returns:
    {'attention': {'query': bool [L, I, O], ...}, 'mlp': {...}}, True = keep;
    kernels without a zero are left out.
  """
  masks: dict[str, dict[str, np.ndarray]] = {}
  for group, kernel in kernels_of(params["layers"]):
    keep_LIO = np.asarray(params["layers"][group][kernel]["kernel"]) != 0
    if not keep_LIO.all():
      masks.setdefault(group, {})[kernel] = keep_LIO
  return masks


def make_trainable_mask(
  params: Params, masks: Masks, drops: Mapping[str, Sequence[int]] | None = None
) -> Params:
  """Says of every entry whether training may change it.

  Args:
    params: stacked parameters of the pruned model.
    masks: bool [L, I, O] by group and kernel, True = keep; kernels may be
      missing.
    drops: {'attention': layers, 'mlp': layers} of dropped sublayers.

  Returns:
    The tree of `params` with bool leaves of shapes that broadcast to theirs.

  Raises:
    ValueError: a mask of another shape or of no kernel, or a weight that its
      mask removes and that is not zero.
  """
  drops = drops or {}
  layers = params["layers"]
  count = len(jax.tree.leaves(layers)[0])
  kept_L = {
    group: np.isin(np.arange(count), drops.get(group, ()), invert=True)
    for group in ("attention", "mlp")
  }

  def of_leaf(path, leaf):
    names = [entry.key for entry in path]
    if names[0] != "layers":
      return jnp.ones((1,) * leaf.ndim, bool)
    group = names[1].removesuffix("_norm").removesuffix("_post")
    kept = kept_L[group].reshape(-1, *(1,) * (leaf.ndim - 1))
    keep = masks.get(group, {}).get(names[2]) if names[-1] == "kernel" else None
    if keep is None:
      return jnp.asarray(kept)
    if np.shape(keep) != leaf.shape:
      raise ValueError(
        f"mask {group}/{names[2]} has shape {list(np.shape(keep))}, the"
        f" kernel {list(leaf.shape)}: give the masks of this model"
      )
    wrong = int(np.sum(np.asarray(leaf)[~np.asarray(keep)] != 0))
    if wrong:
      raise ValueError(
        f"{wrong} weights of {group}/{names[2]} are removed by the mask and"
        " not zero: give the masks of this model, or prune it again"
      )
    return jnp.asarray(keep & kept)

  for group, kernels in masks.items():
    for kernel in kernels:
      if (group, kernel) not in kernels_of(layers):
        raise ValueError(
          f"mask {group}/{kernel}: the decoder has no such kernel; remove it"
        )
  return jax.tree.map_with_path(of_leaf, params)


def keep_fixed(trainable: Params, new: Params, old: Params) -> Params:
  """Takes `new` where training may change an entry, elsewhere `old`.

  Args:
    trainable: from `make_trainable_mask`.
    new: the tree of parameters, or of their gradients.
    old: like `new`; its bits are kept where nothing may change.
  """
  return jax.tree.map(jnp.where, trainable, new, old)
