"""What would a change of the same size do that points nowhere?

The change that pruning makes of a kernel has a norm and a direction. This
control keeps the norm and draws the direction. `controls` draws other entries
and other sublayers instead.

Reference: none; a control that the reviewers of arXiv:2603.24652 asked for.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = dict[str, Any]


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
