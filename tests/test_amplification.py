"""Speeds of h, z and p: by hand, by finite differences, and the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.probes import amplification


def test_two_equal_tokens_by_hand():
  """p = (1/2, 1/2), dz = (a, -a): dp = (a, -a) / 2 for T = 1."""
  z = jnp.zeros(2)
  found = amplification.speed(z, z, jnp.array([0.3, -0.3]))
  np.testing.assert_allclose(found.p, 0.3, rtol=1e-6)
  np.testing.assert_allclose(found.turn, 0.3, rtol=1e-6)
  np.testing.assert_allclose(found.stretch, 0, atol=1e-8)
  np.testing.assert_allclose(found.entropy, np.log(2), rtol=1e-6)
  assert found.moved_p == found.moved_z_centred == 0
  moved = amplification.speed(z, jnp.array([1.0, 0.0]), z)
  q = np.exp([1.0, 0]) / (np.e + 1)
  np.testing.assert_allclose(
    moved.moved_p, np.linalg.norm(q - 0.5) / np.sqrt(0.5), rtol=1e-6
  )
  assert moved.p == moved.turn == moved.stretch == moved.z == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
def test_equals_finite_differences_and_the_identity(scale, temperature):
  rng = np.random.default_rng(0)
  start, z, dz = rng.normal(size=(3, 40)) * [[scale], [scale], [1.0]]

  def p(t):
    x = (z + t * dz) / temperature
    x = np.exp(x - x.max())
    return x / x.sum()

  step = 1e-4
  speed = (p(step) - p(-step)) / (2 * step)
  along = p(0) / np.linalg.norm(p(0))
  stretch = along @ speed
  turn = np.linalg.norm(speed - stretch * along)
  with jax.enable_x64():
    found = amplification.speed(start, z, dz, temperature)
    size = np.linalg.norm(p(0))
    np.testing.assert_allclose(found.p, np.linalg.norm(speed) / size, rtol=1e-6)
    np.testing.assert_allclose(found.turn, turn / size, rtol=1e-6)
    np.testing.assert_allclose(found.stretch, stretch / size, rtol=1e-5)
    np.testing.assert_allclose(
      found.p**2, found.turn**2 + found.stretch**2, rtol=1e-10
    )
    np.testing.assert_allclose(
      found.z, np.linalg.norm(dz) / np.linalg.norm(z), rtol=1e-12
    )
    np.testing.assert_allclose(
      found.moved_z_centred, np.std(z - start) / np.std(start), rtol=1e-12
    )


def test_the_turns_add_up_to_no_less_than_the_angle():
  """The integral of `turn` is the length of the way of p on the sphere."""
  rng = np.random.default_rng(1)
  z, end = rng.normal(size=(2, 30)) * 3
  places, weights = np.polynomial.legendre.leggauss(40)
  with jax.enable_x64():
    turns = jax.vmap(
      lambda t: amplification.speed(z, z + t * (end - z), end - z).turn
    )(jnp.asarray((places + 1) / 2))
  p, q = (np.exp(2 * x) / np.exp(2 * x).sum() for x in (z, end))
  angle = np.arccos(np.sqrt(p * q).sum())  # sqrt of p^2 is p, so r gives cos
  assert angle <= np.asarray(turns) @ weights / 2 <= 2 * angle


def test_blind_to_a_constant_and_exact_when_confident():
  z, dz = jnp.array([30.0, 1.0, 0.0]), jnp.array([1.0, 2.0, 1.5])
  found, moved = (
    amplification.speed(z, z, change) for change in (dz, dz + 1024)
  )
  np.testing.assert_allclose(moved.p, found.p, rtol=1e-6)
  np.testing.assert_allclose(moved.turn, found.turn, rtol=1e-6)
  # dp is p (dz - dz of the top) at the rest: e^-29 and half of e^-30.
  np.testing.assert_allclose(
    found.turn, np.hypot(np.exp(-29.0), np.exp(-30.0) / 2), rtol=1e-5
  )
