"""Random changes of equal size: norms are exact, directions are drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.pruning import controls

W_IO = jax.random.normal(jax.random.key(1), (12, 5))
PRUNED_IO = jnp.where(jnp.abs(W_IO) < 0.6, 0, W_IO)


def test_the_norm_and_no_direction():
  changes = [
    np.asarray(controls.random_change(jax.random.key(seed), W_IO, PRUNED_IO))
    - np.asarray(W_IO)
    for seed in range(2)
  ]
  target = np.asarray(PRUNED_IO - W_IO)
  for change in changes:
    np.testing.assert_allclose(
      np.linalg.norm(change), np.linalg.norm(target), rtol=1e-5
    )
    # 60 dimensions: a cosine is about 0.13.
    assert abs(np.vdot(change, target)) < 0.6 * np.linalg.norm(target) ** 2
  assert abs(np.vdot(*changes)) < 0.6 * np.linalg.norm(target) ** 2


def test_every_kernel_of_a_tree_by_itself():
  """Unchanged layers stay bit for bit; equal kernels get other noise."""
  stack_LIO = jnp.stack([W_IO, W_IO, W_IO])
  dense = {
    "attention_norm": {"scale": jnp.ones((3, 12))},
    "attention": {
      name: {"kernel": stack_LIO, "bias": jnp.ones((3, 5))}
      for name in ("query", "key")
    },
    "mlp": {"up": {"kernel": stack_LIO}},
  }
  pruned = {
    **dense,
    "attention": {
      name: {"kernel": jnp.stack([W_IO, PRUNED_IO, 0 * W_IO])}
      for name in ("query", "key")
    },
  }
  found = controls.random_changes(jax.random.key(0), dense, pruned)
  chex.assert_trees_all_equal_shapes_and_dtypes(found, dense)
  chex.assert_tree_all_finite(found)
  np.testing.assert_array_equal(found["mlp"]["up"]["kernel"], stack_LIO)
  query, key = (
    np.asarray(found["attention"][name]["kernel"] - stack_LIO)
    for name in ("query", "key")
  )
  assert not query[0].any()
  for index, other in ((1, PRUNED_IO), (2, 0 * W_IO)):
    np.testing.assert_allclose(
      np.linalg.norm(query[index]), np.linalg.norm(other - W_IO), rtol=1e-5
    )
  assert (query[1:] != key[1:]).all()
  np.testing.assert_array_equal(found["attention"]["key"]["bias"], 1)
