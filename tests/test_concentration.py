"""Concentration of one distribution; divergences under jit and vmap."""

import math

import chex
import jax
import numpy as np
import pytest

from jaxprune import probes
from tests.test_divergences import NAMES, compare, concentration, draw


def test_concentration():
  shape = concentration(np.zeros(8, np.float32))
  np.testing.assert_allclose(shape.entropy, math.log(8), rtol=1e-6)
  np.testing.assert_allclose(shape.support, 8, rtol=1e-6)
  np.testing.assert_allclose(shape.participation, 8, rtol=1e-6)
  assert shape.token == 0 and shape.margin == 0
  z = np.array([1, 4, -np.inf, 4, 0], np.float32)
  shape = concentration(z, 2.0)
  assert shape.token == 1 and shape.margin == 0
  shape = concentration(np.array([1, 4, 2.5], np.float32), 2.0)
  assert shape.token == 1 and shape.margin == 1.5
  p = np.array([math.exp(0.5), math.exp(2), math.exp(1.25)])
  p /= p.sum()
  np.testing.assert_allclose(shape.entropy, -p @ np.log(p), rtol=1e-6)
  np.testing.assert_allclose(shape.participation, 1 / (p @ p), rtol=1e-6)


@pytest.mark.slow
def test_jit_is_vmap():
  z_BV = np.stack([draw(seed, 33, 2, 1, "f")[0] for seed in range(3)])
  zq_BV = np.stack([draw(seed, 33, 2, 1, "f")[1] for seed in range(3)])
  one = compare(z_BV[1], zq_BV[1], 1.0)
  over_batch = jax.jit(
    jax.vmap(chex.assert_max_traces(probes.compare_distributions, n=1))
  )
  batch = over_batch(z_BV, zq_BV)
  over_batch(zq_BV, z_BV)  # the same program
  chex.assert_tree_shape_prefix(batch, (3,))
  chex.assert_tree_all_finite(batch)
  for name in NAMES:
    np.testing.assert_allclose(
      getattr(batch, name)[1], getattr(one, name), rtol=3e-6, atol=1e-7
    )
