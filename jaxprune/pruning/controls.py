"""What would the same amount of pruning do, placed at random?

Two controls as large as a pruned model. `random_control` removes as much, at
random: as many sublayers, in other layers; as many weights of every output, at
other inputs. It removes as much as the method, without the method's choice.
`random_changes` keeps the norm of the change of every kernel and draws its
direction.

Reference: none; the reviewers of arXiv:2603.24652 asked for both.
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


def random_change(
  key: jax.Array, w_IO: jax.Array, pruned_IO: jax.Array
) -> jax.Array:
  """Add normal noise with the Frobenius norm of the method's change.

  Args:
    key: of the draw.
    w_IO: the dense kernel.
    pruned_IO: what the method made of it; only |pruned - w| is looked at.

  Returns:
    [I, O]; `w_IO` itself where the method changed nothing.
  """
  noise_IO = jax.random.normal(key, w_IO.shape, w_IO.dtype)
  size = jnp.linalg.norm(pruned_IO - w_IO) / jnp.linalg.norm(noise_IO)
  return w_IO + size * noise_IO


def random_changes(key: jax.Array, dense: Tree, pruned: Tree) -> Tree:
  """Change every kernel of the dense layers as much as `pruned` is changed.

  Args:
    key: of the draw.
    dense: layers of the dense model: {'attention': {'query': {'kernel':
      [L, I, O]}, ...}, 'mlp': {...}, ...}.
    pruned: layers of the pruned model, kernels of the same shapes.

  Returns:
    Layers like `dense`, biases as they were.
  """
  changed = dict(dense)
  for number, sublayer in enumerate(("attention", "mlp")):
    changed[sublayer] = dict(dense[sublayer])
    names = [name for name, leaf in dense[sublayer].items() if "kernel" in leaf]
    for index, name in enumerate(sorted(names)):
      w_LIO = dense[sublayer][name]["kernel"]
      keys_L = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, number), index), len(w_LIO)
      )
      changed[sublayer][name] = dense[sublayer][name] | {
        "kernel": jax.vmap(random_change)(
          keys_L, w_LIO, pruned[sublayer][name]["kernel"]
        )
      }
  return changed


def _all_zero(kernel_LIO):
  return jnp.all(kernel_LIO == 0, axis=(1, 2))
