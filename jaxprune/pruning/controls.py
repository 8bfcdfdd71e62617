"""What would the same amount of pruning do, placed at random?

A control as large as a pruned model: as many sublayers dropped, in other
layers; as many weights of every output removed, at other inputs. What a method
chooses by is gone, its size is not.

Reference: none; the reviewers of arXiv:2603.24652 asked for random drops.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]
# The kernel through which all of a sublayer's output goes.
_LAST = {"attention": "output", "mlp": "down"}


def shuffle_mask(key: jax.Array, mask_IO: jax.Array) -> jax.Array:
  """Move the entries of every column of a mask to random places of it.

  Args:
    key: `jax.random.key`.
    mask_IO: bool [I, O], True = keep.

  Returns:
    bool [I, O] with the same number kept in every column.
  """
  return jax.random.permutation(key, mask_IO, axis=0, independent=True)


def random_control(key: jax.Array, dense: Tree, pruned: Tree) -> Tree:
  """Prune the dense layers at random, as much as `pruned` is pruned.

  Args:
    key: `jax.random.key`.
    dense: layers of the dense model: {'attention': {'query': {'kernel':
      [L, I, O]}, ...}, 'mlp': {...}, ...}.
    pruned: layers of the pruned model, kernels of the same shapes.

  Returns:
    Layers like `dense`. Sublayers whose last kernel is zero in `pruned` count
    as dropped: as many are dropped in random layers. Elsewhere each output
    loses as many of its inputs. Weights that a method changed without removing
    them, and what it added to a bias, are the dense ones.
  """
  layers = dict(dense)
  for number, (sublayer, last) in enumerate(_LAST.items()):
    sublayer_key = jax.random.fold_in(key, number)
    gone_L = _all_zero(pruned[sublayer][last]["kernel"]) & ~_all_zero(
      dense[sublayer][last]["kernel"]
    )
    dropped_L = jax.random.permutation(sublayer_key, gone_L)
    names = [name for name, leaf in dense[sublayer].items() if "kernel" in leaf]
    layers[sublayer] = dict(dense[sublayer])
    for index, name in enumerate(sorted(names), 1):
      leaf = dense[sublayer][name]
      w_LIO, v_LIO = leaf["kernel"], pruned[sublayer][name]["kernel"]
      kept_LIO = (v_LIO != 0) | (w_LIO == 0) | gone_L[:, None, None]
      keys_L = jax.random.split(
        jax.random.fold_in(sublayer_key, index), len(w_LIO)
      )
      kept_LIO = jax.vmap(shuffle_mask)(keys_L, kept_LIO)
      if name == last:
        kept_LIO &= ~dropped_L[:, None, None]
      layers[sublayer][name] = {**leaf, "kernel": jnp.where(kept_LIO, w_LIO, 0)}
      if name == last and "bias" in leaf:
        layers[sublayer][name]["bias"] = jnp.where(
          dropped_L[:, None], 0, leaf["bias"]
        )
  return layers


def _all_zero(kernel_LIO):
  return jnp.all(kernel_LIO == 0, axis=(1, 2))
