"""FLAP, beside loops over its formulas."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration import moments
from jaxprune.pruning.methods import flap, neuron
from tests.test_newer_methods import same_compiled_mapped

FLAP = jax.jit(flap.flap, static_argnums=2)
observe_moments = jax.jit(moments.observe_moments)


def an_mlp(seed, width=6, hidden=10):
  rng = np.random.default_rng(seed)
  shapes = {
    "gate": (width, hidden),
    "up": (width, hidden),
    "down": (hidden, width),
  }
  mlp = {
    k: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)}
    for k, s in shapes.items()
  }
  x = rng.normal(size=(3, 20, hidden)) * rng.uniform(0.1, 2, hidden) + (
    rng.normal(size=hidden) * 3
  )
  return mlp, jnp.asarray(x, jnp.float32)


def test_flap_against_loops():
  mlp, x = an_mlp(0)
  seen = observe_moments(x)
  x64 = np.asarray(x, np.float64).reshape(-1, 10)
  down = np.asarray(mlp["down"]["kernel"], np.float64)
  score = [x64[:, f].var(ddof=1) * (down[f] ** 2).sum() for f in range(10)]
  np.testing.assert_allclose(
    flap.fluctuation_scores(mlp["down"]["kernel"], seen), score, rtol=1e-5
  )
  kernels, masks, bias = FLAP(mlp, seen, 0.35)
  gone = np.argsort(score, kind="stable")[:3]  # floor(3.5)
  assert set(np.flatnonzero(~np.asarray(masks["gate"][0]))) == set(gone)
  expected = sum(x64[:, f].mean() * down[f] for f in gone)
  np.testing.assert_allclose(bias, expected, rtol=1e-5)
  for name, leaves in kernels.items():
    kernel = leaves["kernel"]
    chex.assert_shape(masks[name], kernel.shape)
    chex.assert_type(masks[name], bool)
    chex.assert_tree_all_finite(kernel)
    np.testing.assert_array_equal(
      kernel, np.where(masks[name], mlp[name]["kernel"], 0)
    )
    assert int((~masks[name]).sum()) == 3 * 6
  # On these tokens the mean output is that of the dense kernel.
  np.testing.assert_allclose(
    (x @ kernels["down"]["kernel"]).mean((0, 1)) + bias,
    (x @ mlp["down"]["kernel"]).mean((0, 1)),
    rtol=1e-4,
    atol=1e-4,
  )
  # And what it leaves is the fluctuation: independent of any mean.
  shifted = observe_moments(x + 100.0)
  np.testing.assert_allclose(FLAP(mlp, shifted, 0.35)[1]["down"], masks["down"])


def test_a_constant_unit_costs_nothing():
  mlp, x = an_mlp(1)
  x = x.at[..., 4].set(50.0)
  kernels, masks, bias = FLAP(mlp, observe_moments(x), 0.1)
  assert np.flatnonzero(~np.asarray(masks["up"][0])).tolist() == [4]
  np.testing.assert_allclose(
    x @ kernels["down"]["kernel"] + bias[None, None],
    x @ mlp["down"]["kernel"],
    rtol=1e-4,
    atol=1e-4,
  )


def test_flap_masks_are_a_slimmer_mlp():
  mlp, x = an_mlp(2)
  kernels, masks, bias = FLAP(mlp, observe_moments(x), 0.5)
  keep = np.asarray(masks["gate"][0])
  y = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)), jnp.float32)

  def run(mlp):
    gate, up, down = (mlp[k]["kernel"] for k in ("gate", "up", "down"))
    return (jax.nn.silu(y @ gate) * (y @ up)) @ down + bias[None]

  slim = neuron.slim(mlp, keep, 5)
  assert slim["down"]["kernel"].shape == (5, 6)
  np.testing.assert_allclose(run(kernels), run(slim), rtol=1e-5, atol=1e-5)


def test_flap_ties_dtype_and_maps():
  mlp, x = an_mlp(4)
  flat = jax.tree.map(lambda k: jnp.ones_like(k, jnp.bfloat16), mlp)
  wave = jnp.asarray([1.0, -1.0])[None, :, None] * jnp.ones((1, 2, 10))
  kernels, masks, bias = FLAP(flat, observe_moments(wave), 0.3)
  assert np.flatnonzero(~np.asarray(masks["down"][:, 0])).tolist() == [0, 1, 2]
  assert kernels["up"]["kernel"].dtype == jnp.bfloat16
  assert bias.dtype == jnp.float32
  many = [an_mlp(s) for s in range(3)]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *(m for m, _ in many))
  seen = jax.vmap(observe_moments)(jnp.stack([x for _, x in many]))
  same_compiled_mapped(lambda m, s: flap.flap(m, s, 0.5), stacked, seen)
