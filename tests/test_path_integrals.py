"""Quadrature along a path, on functions whose integrals are known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.probes import propagation


def integrate(slopes, nodes):
  """The integral of `slopes`, from t to a tree, over [0, 1]."""
  parts = [
    jax.tree.map(lambda leaf: leaf * weight, slopes(jnp.asarray(place)))
    for place, weight in zip(*propagation.gauss_legendre(nodes))
  ]
  return jax.tree.map(lambda *leaves: sum(leaves), *parts)


@pytest.mark.parametrize("nodes", [1, 2, 5, 16])
def test_quadrature_is_exact_to_degree_2n_minus_1(nodes):
  t, weights = propagation.gauss_legendre(nodes)
  for degree in range(2 * nodes):
    np.testing.assert_allclose(
      np.sum(weights * t**degree), 1 / (degree + 1), rtol=1e-12
    )
  # The next degree shows that this is no finer rule.
  assert abs(np.sum(weights * t ** (2 * nodes)) - 1 / (2 * nodes + 1)) > 1e-20


def test_lagrange_basis_reproduces_polynomials():
  places = np.array([0.0, 0.2, 0.7, 1.0])
  t = np.linspace(0, 1, 9)
  basis = propagation.lagrange_basis(places, t)
  np.testing.assert_allclose(
    basis @ (places**3 - 2 * places), t**3 - 2 * t, atol=1e-14
  )
  np.testing.assert_array_equal(
    propagation.lagrange_basis(places, places), np.eye(4)
  )


def test_linear_f_has_the_closed_form():
  rng = np.random.default_rng(0)
  a, directions = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
  with jax.enable_x64():
    f = lambda s: {"y": jnp.asarray(a) @ s}
    at = functools.partial(propagation.slopes_at, f, jnp.asarray(directions))
    found = propagation.path_attribution(
      lambda nodes: integrate(at, nodes),
      {"y": jnp.asarray(a @ directions.sum(0))},
      nodes=1,
    )
    np.testing.assert_allclose(
      found.contributions["y"], directions @ a.T, rtol=1e-12
    )
    np.testing.assert_allclose(at(0.0)["y"], directions @ a.T, rtol=1e-12)
  assert int(found.nodes) == 1
  assert float(found.completeness_error["y"]) < 1e-14


def test_nodes_double_until_complete():
  directions = jnp.eye(2)
  f = lambda s: jnp.tanh(6 * s[0] + s[1]) ** 2
  at = jax.jit(functools.partial(propagation.slopes_at, f, directions))
  contribute = lambda nodes: integrate(at, nodes)
  change = f(jnp.ones(2)) - f(jnp.zeros(2))
  loose = propagation.path_attribution(contribute, change, nodes=2)
  assert int(loose.nodes) > 2
  assert float(loose.completeness_error) <= 1e-3
  short = propagation.path_attribution(contribute, change, nodes=2, max_nodes=3)
  assert int(short.nodes) == 3 and float(short.completeness_error) > 1e-3
  np.testing.assert_allclose(
    loose.contributions[0], 6 * loose.contributions[1], rtol=1e-5
  )


def test_shapes_and_one_program_for_every_t():
  chex.assert_shape(propagation.sublayer_directions(3, 5), (6, 3, 2, 5))
  chex.assert_shape(propagation.step_directions(3, 5, 2, 3), (9, 3, 2, 5))
  chex.assert_shape(
    propagation.lagrange_basis(np.arange(3.0), np.ones(4)), (4, 3)
  )

  @jax.jit
  @chex.assert_max_traces(n=1)
  def slopes(t):
    f = lambda s: {"y": jnp.sin(s), "x": jnp.sum(s)}
    return propagation.slopes_at(f, jnp.eye(3)[:2], t)

  for t in (0.0, 0.5, 1.0):
    found = slopes(t)
    chex.assert_shape([found["y"], found["x"]], [(2, 3), (2,)])
    chex.assert_tree_all_finite(found)


def test_relative_error_of_nothing():
  zero, one = jnp.zeros(2), jnp.ones(2)
  assert float(propagation.relative_error(zero, zero)) == 0
  assert float(propagation.relative_error(one, zero)) == np.inf
  assert float(propagation.relative_error(zero, one)) == 1


def test_sharp_read_out_of_a_smooth_state():
  """Few nodes for the state, many for what is read, give the integral."""
  a, b = np.array([3.0, -1.0]), np.array([[4.0, 6.0], [1.0, -2.0]])
  with jax.enable_x64():
    state = lambda s: jnp.asarray(b) @ s + jnp.stack([s[0] * s[1], s[1] ** 2])
    read = lambda x: jax.nn.sigmoid(jnp.asarray(a) @ x - 15.0)
    directions = jnp.eye(2)
    places, _ = propagation.gauss_legendre(3)
    states = jnp.stack([state(t * jnp.ones(2)) for t in [0.0, *places, 1.0]])
    weights = propagation.node_gradients(
      jax.grad(read), states, nodes=3, read_nodes=96
    )
    found = sum(
      propagation.slopes_at(state, directions, t) @ weights[k]
      for k, t in enumerate(places)
    )
    whole = integrate(
      jax.jit(
        functools.partial(
          propagation.slopes_at, lambda s: read(state(s)), directions
        )
      ),
      96,
    )
    np.testing.assert_allclose(found, whole, rtol=1e-9)
    change = read(state(jnp.ones(2))) - read(state(jnp.zeros(2)))
    np.testing.assert_allclose(found.sum(), change, rtol=1e-9)


def test_interaction_of_a_bilinear_f():
  m = np.arange(6.0).reshape(2, 3)
  f = lambda s: s[:2] @ jnp.asarray(m) @ s[2:] + jnp.sum(s)
  x, y = jnp.array([1.0, 2, 0, 0, 0]), jnp.array([0.0, 0, 3, -1, 2])
  where = jnp.linspace(-1, 1, 5)
  found = propagation.interaction(f, where, x, y)
  np.testing.assert_allclose(found, np.array([1, 2]) @ m @ [3, -1, 2])
  np.testing.assert_allclose(found, propagation.interaction(f, where, y, x))
  assert float(propagation.interaction(f, where, x, x)) == 0


def test_taylor_polynomials_along_the_path():
  f = lambda s: s[0] ** 2 + 3 * s[1] + s[0] ** 3
  grid = jnp.array([0.0, 0.5, 1.0])
  line = propagation.along_path(f, jnp.array([1.0, 2.0]), grid, order=2)
  np.testing.assert_allclose(line.truth, [0, 3.375, 8])
  np.testing.assert_allclose(line.predicted[0], [0, 3, 6])
  np.testing.assert_allclose(line.predicted[1], [0, 3.25, 7])
  with pytest.raises(ValueError, match="order=3"):
    propagation.along_path(f, jnp.ones(2), grid, order=3)
  t = np.array([0.1, 0.2, 0.3, 0.4])
  assert propagation.radius(t, np.array([0.0, 0.1, 0.2, 0.0]), 0.1) == 0.2
  assert propagation.radius(t, np.full(4, 0.5), 0.1) == 0
  assert propagation.radius(t, np.zeros(4), 0.1) == 0.4
  assert propagation.radius(t, np.full(4, np.nan), 0.1) == 0
