"""A masked MLP and its slimmer copy are one function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration.statistics import SquaredNorm, observe_squares
from jaxprune.pruning.methods import neuron

D, F = 5, 8


# Outside of jit every operation is a program of its own.
neuron_scores = jax.jit(neuron.neuron_scores, static_argnames="root")
prune = jax.jit(neuron.neuron, static_argnums=2, static_argnames="root")


def make(seed=0, gated=True, bias=True):
  draw = np.random.default_rng(seed)
  shapes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
  if not gated:
    del shapes["gate"]
  return {
    name: {"kernel": jnp.asarray(draw.normal(size=s), jnp.float32)}
    | (
      {"bias": jnp.asarray(draw.normal(size=s[1]), jnp.float32)} if bias else {}
    )
    for name, s in shapes.items()
  }


@jax.jit
def run(mlp, x_BTD):
  def linear(name, x):
    bias = mlp[name].get("bias", jnp.zeros(1))
    return x @ mlp[name]["kernel"] + bias[None, None]

  up = linear("up", x_BTD)
  hidden = (
    jax.nn.silu(linear("gate", x_BTD)) * up
    if "gate" in mlp
    else jax.nn.silu(up)
  )
  return linear("down", hidden)


def norms(values):
  return SquaredNorm(
    sum_squares=jnp.asarray(values, jnp.float32) * 2,
    sequences=jnp.int32(2),
    tokens=jnp.int32(9),
  )


def test_table():
  """mean|down| = 1..4 with s = 4, 1, 1, 0.5: scores 4, 2, 3, 2."""
  down_FO = jnp.array([[1, -1], [-2, 2], [0, 6], [4, -4]], jnp.float32)
  s = norms([4, 1, 1, 0.5])
  np.testing.assert_allclose(neuron.neuron_scores(down_FO, s), [4, 2, 3, 2])
  np.testing.assert_allclose(
    neuron_scores(down_FO, s, root=True), [2, 2, 3, 4 * 0.5**0.5]
  )
  for sparsity, root, want in (
    (0.25, False, [1, 0, 1, 1]),  # Of the tie the first goes.
    (0.5, False, [1, 0, 1, 0]),
    (0.5, True, [0, 0, 1, 1]),
    (0.0, False, [1, 1, 1, 1]),
    (0.74, False, [1, 0, 1, 0]),  # floor(2.96)
  ):
    _, masks, _ = prune({"down": {"kernel": down_FO}}, s, sparsity, root=root)
    np.testing.assert_array_equal(masks["down"][:, 0], want)


def test_scores_of_the_equation():
  draw = np.random.default_rng(0)
  x_BTF, down_FO = draw.normal(size=(4, 7, F)), draw.normal(size=(F, D))
  s_F = np.square(x_BTF).sum(axis=1).mean(axis=0)
  want_F = np.abs(down_FO).mean(axis=1) * s_F
  got_F = neuron_scores(
    jnp.asarray(down_FO), observe_squares(jnp.asarray(x_BTF))
  )
  np.testing.assert_allclose(got_F, want_F, rtol=1e-5)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("gated", (True, False))
def test_masked_is_slim(gated, bias):
  """Activations that map zero to zero, and no biases, hide nothing.

  A plain MLP needs act(0) = 0 to be masked; silu and gelu have it.
  """
  mlp = make(gated=gated, bias=bias)
  x_BTD = jnp.asarray(
    np.random.default_rng(1).normal(size=(2, 3, D)), jnp.float32
  )
  keep_F = np.array([1, 0, 1, 1, 0, 0, 1, 1], bool)
  masked, masks = jax.jit(neuron.mask_neurons)(mlp, keep_F)
  small = jax.jit(neuron.slim, static_argnums=2)(mlp, keep_F, 5)
  chex.assert_shape(small["down"]["kernel"], (5, D))
  chex.assert_shape(small["up"]["kernel"], (D, 5))
  chex.assert_trees_all_equal_shapes_and_dtypes(masked, mlp)
  chex.assert_tree_all_finite((masked, small))
  np.testing.assert_allclose(run(masked, x_BTD), run(small, x_BTD), atol=1e-5)
  assert not np.allclose(run(masked, x_BTD), run(mlp, x_BTD), atol=1e-2)
  for name, leaves in mlp.items():
    np.testing.assert_array_equal(
      masked[name]["kernel"], np.where(masks[name], leaves["kernel"], 0)
    )
    axis = 0 if name == "down" else 1
    np.testing.assert_array_equal(
      small[name]["kernel"], np.compress(keep_F, leaves["kernel"], axis)
    )
    if bias and name == "down":  # Belongs to the outputs.
      np.testing.assert_array_equal(masked[name]["bias"], leaves["bias"])
    elif bias:
      np.testing.assert_array_equal(
        masked[name]["bias"], np.where(keep_F, leaves["bias"], 0)
      )


def test_counts_dtypes_and_layers():
  mlp = make()
  mlp = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp)
  s = norms(np.arange(F) + 1.0)

  def f(mlp):
    return neuron.neuron(mlp, s, 0.3)  # floor(2.4)

  new, masks, _ = jax.jit(f)(mlp)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(new))
  assert (~masks["down"]).sum() == 2 * D and (~masks["gate"]).sum() == 2 * D
  # A unit goes as a whole.
  np.testing.assert_array_equal(masks["gate"], masks["up"])
  np.testing.assert_array_equal(masks["gate"].T, masks["down"])
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), mlp)
  both, *_ = jax.jit(jax.vmap(f))(stacked)
  np.testing.assert_array_equal(both["up"]["kernel"][0], new["up"]["kernel"])
  np.testing.assert_array_equal(
    both["up"]["kernel"][1], 2 * new["up"]["kernel"]
  )
  keep_LF = jnp.stack([masks["down"][:, 0]] * 2)
  slim = jax.jit(jax.vmap(lambda m, k: neuron.slim(m, k, 6)))
  small = slim(stacked, keep_LF)
  assert small["down"]["kernel"].shape == (2, 6, D)


def test_official_oracle():
  """The lowest int(F s) of mean|W_down| s, whole units, as in the equation."""
  mlp = make(seed=3, bias=False)
  x_BTF = np.random.default_rng(4).normal(size=(3, 6, F)).astype(np.float32)
  s_F = np.mean([np.linalg.norm(x, axis=0) ** 2 for x in x_BTF], axis=0)
  for sparsity in (0.3, 0.5):
    for root in (False, True):
      score_F = np.abs(np.asarray(mlp["down"]["kernel"])).mean(1) * (
        np.sqrt(s_F) if root else s_F
      )
      gone = np.argsort(score_F)[: int(F * sparsity)]
      new, *_ = prune(mlp, observe_squares(x_BTF), sparsity, root=root)
      want = jax.tree.map(np.array, mlp)
      want["down"]["kernel"][gone] = 0
      want["up"]["kernel"][:, gone] = 0
      want["gate"]["kernel"][:, gone] = 0
      jax.tree.map(np.testing.assert_array_equal, new, want)


def test_refused():
  mlp = make()
  with pytest.raises(ValueError, match="sparsity is 1.0"):
    neuron.neuron(mlp, norms(np.ones(F)), 1.0)
  with pytest.raises(ValueError, match="width is 3, but 8 units stay"):
    neuron.slim(mlp, np.ones(F, bool), 3)
