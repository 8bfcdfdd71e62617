"""Ablation of any model, from arrays and a callable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.probes import ablation
from tests.test_ablation import kl, variance


def test_one_position_against_numpy():
  rng = np.random.default_rng(1)
  z, dz = rng.normal(size=(2, 50)).astype(np.float32) * [[3.0], [0.7]]
  found = ablation.logit_divergence(z, z + dz, 2.0)
  np.testing.assert_allclose(found["kl"], kl(z / 2, (z + dz) / 2), rtol=1e-5)
  np.testing.assert_allclose(
    found["kl_estimate"], variance(z / 2, dz) / 8, rtol=1e-5
  )
  slope = ablation.predicted_divergence(z, dz, 2.0)["kl_first_order"]
  np.testing.assert_allclose(slope, found["kl_estimate"], rtol=1e-5)
  # Softmax does not see a constant.
  moved = ablation.logit_divergence(z, z + 4.0)
  assert max(float(abs(leaf)) for leaf in moved.values()) < 1e-10
  assert all(
    float(leaf) == 0 for leaf in ablation.logit_divergence(z, z).values()
  )
  with pytest.raises(ValueError, match="temperature"):
    ablation.logit_divergence(z, z, 0.0)


PARTS = np.random.default_rng(2).normal(size=(4, 2, 3, 5)).astype(np.float32)


def toy_hidden(gate_P):
  return jnp.tanh(jnp.einsum("P,PBTD->BTD", gate_P, PARTS))


def toy_measure(h_D, g_D):
  return ablation.logit_divergence(3 * h_D, 3 * g_D)


CANDIDATES = 1.0 - np.eye(5, 4, -1, dtype=np.float32)  # first drops nothing


def test_any_model_against_numpy():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def ablate(gates):
    return ablation.ablate(toy_hidden, toy_measure, gates, chunk=4)

  # Candidates are data: other ones take no new program.
  ablate(CANDIDATES[::-1])
  found = ablate(CANDIDATES)
  z = 3 * np.tanh(np.einsum("CP,PBTD->CBTD", CANDIDATES, PARTS))
  np.testing.assert_allclose(
    found["kl"], kl(z[:1], z).mean(-1), rtol=1e-4, atol=1e-7
  )
  np.testing.assert_allclose(
    found["kl_estimate"],
    variance(z[:1], z - z[:1]).mean(-1) / 2,
    rtol=1e-4,
    atol=1e-7,
  )
  chex.assert_shape(list(found.values()), (5, 2))
  chex.assert_tree_all_finite(found)
  assert not np.any(found["kl"][0]) and np.all(found["kl"][1:] > 0)
  eager = ablation.ablate(toy_hidden, toy_measure, CANDIDATES, chunk=4)
  for name, leaf in eager.items():
    np.testing.assert_allclose(leaf, found[name], rtol=1e-5, atol=1e-7)


def test_slopes_against_numpy():
  directions = CANDIDATES[1:] - 1
  found = ablation.predict(
    toy_hidden,
    lambda h_D, dh_D: ablation.predicted_divergence(3 * h_D, 3 * dh_D),
    jnp.ones(4),
    directions,
    chunk=4,
  )["kl_first_order"]
  h = np.tanh(PARTS.sum(0, dtype=np.float64))
  dz = 3 * (1 - h**2) * np.einsum("CP,PBTD->CBTD", directions, PARTS)
  expected = variance(np.broadcast_to(3 * h, dz.shape), dz).mean(-1) / 2
  np.testing.assert_allclose(found, expected, rtol=1e-4)
