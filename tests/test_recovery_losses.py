"""Losses of one position: values, gradients, and where they part."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.probes import divergences, theorem_3
from jaxprune.recovery import losses


def draw(seed=0, size=7, change=0.8):
  rng = np.random.default_rng(seed)
  z_V = rng.normal(0, 2, size)
  return z_V, z_V + change * rng.normal(size=size)


def softmax(z_V):
  e_V = np.exp(z_V - z_V.max())
  return e_V / e_V.sum()


def by_differences(function, x_V, step=1e-5):
  function = jax.jit(function)
  found_V = np.zeros_like(x_V)
  for index in range(x_V.size):
    ends = []
    for sign in (1, -1):
      moved_V = x_V.copy()
      moved_V[index] += sign * step
      ends.append(float(function(jnp.asarray(moved_V))))
    found_V[index] = (ends[0] - ends[1]) / (2 * step)
  return found_V


# Outside of jit every operation is a program of its own.
logit_variance = jax.jit(losses.logit_variance)
distillation = jax.jit(losses.distillation)

LOSSES = {
  "next_token": lambda z_V, zq_V: losses.next_token(zq_V, 3),
  "distillation": lambda z_V, zq_V: losses.distillation(z_V, zq_V, 1.7),
  "logit_variance": lambda z_V, zq_V: losses.logit_variance(z_V, zq_V, 1.7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name):
  with jax.enable_x64(True):
    z_V, zq_V = draw()

    def loss(moved_V):
      return LOSSES[name](jnp.asarray(z_V), moved_V)

    found_V = jax.jit(jax.grad(loss))(jnp.asarray(zq_V))
    assert found_V.dtype == jnp.float64
    np.testing.assert_allclose(
      found_V, by_differences(loss, zq_V), rtol=1e-7, atol=1e-9
    )


def test_gradients_in_closed_form():
  """(q - onehot), (q - p) / T and p (dz - E_p dz) / T^2."""
  z_V, zq_V = (each.astype(np.float32) for each in draw(1))
  T = 1.7
  p_V, q_V = softmax(z_V / T), softmax(zq_V / T)
  dz_V = zq_V - z_V
  expected = {
    "next_token": softmax(zq_V) - np.eye(7)[3],
    "distillation": (q_V - p_V) / T,
    "logit_variance": p_V * (dz_V - p_V @ dz_V) / T**2,
  }
  for name, loss in LOSSES.items():
    found_V = jax.jit(jax.grad(loss, argnums=1))(z_V, zq_V)
    np.testing.assert_allclose(found_V, expected[name], atol=2e-6)


def test_values_by_hand():
  """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4)."""
  z_V, zq_V = (
    jnp.log(jnp.array(each)) for each in ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25))
  )
  two = np.log(2)
  assert losses.next_token(zq_V, 1) == pytest.approx(two, rel=1e-6)
  # dz = (-log 2, log 2, 0): its mean is -log 2 / 4, its square 3/4 log^2 2.
  assert losses.distillation(z_V, zq_V) == pytest.approx(two / 4, rel=1e-6)
  assert losses.logit_variance(z_V, zq_V) == pytest.approx(
    (3 / 4 - 1 / 16) * two**2 / 2, rel=1e-6
  )


def test_values_are_those_of_the_probes():
  z_V, zq_V = (jnp.asarray(each, jnp.float32) for each in draw(2))
  found = jax.jit(theorem_3)(z_V, zq_V, 1.3)
  assert logit_variance(z_V, zq_V, 1.3) == pytest.approx(
    float(found.estimate), rel=1e-5
  )
  kl = jax.jit(divergences.compare_distributions)(z_V, zq_V, 1.3).kl
  assert distillation(z_V, zq_V, 1.3) == pytest.approx(float(kl), rel=1e-5)


def test_a_constant_change_costs_nothing():
  z_V = jnp.asarray([3.0, -1.0, 0.5, 2.0])  # exact in float32, with + 4
  assert logit_variance(z_V, z_V + 4) == 0
  assert logit_variance(z_V, z_V) == 0
  np.testing.assert_array_equal(
    jax.jit(jax.grad(losses.logit_variance, argnums=1))(z_V, z_V + 4), 0
  )
  assert distillation(z_V, z_V + 4) == pytest.approx(0, abs=1e-6)


def test_the_variance_is_the_second_order_of_the_kl():
  """Their ratio goes to 1 as the change goes to 0, and not before."""
  with jax.enable_x64(True):
    z_V, zq_V = draw(3)
    ratios = [
      float(
        logit_variance(z_V, z_V + e * (zq_V - z_V))
        / distillation(z_V, z_V + e * (zq_V - z_V))
      )
      for e in (1.0, 1e-1, 1e-2, 1e-3)
    ]
  errors = np.abs(np.array(ratios) - 1)
  assert errors[0] > 0.01 and errors[-1] < 1e-3
  assert (errors[1:] < 0.2 * errors[:-1]).all()


def test_a_token_that_only_q_believes_in():
  """The KL grows with it, the variance does not see it."""
  z_V = jnp.asarray([0.0, 0.0, -60.0])
  zq_V = jnp.asarray([0.0, 0.0, 5.0])
  assert distillation(z_V, zq_V) > 4
  assert logit_variance(z_V, zq_V) < 1e-20


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="shapes"):
    losses.distillation(jnp.zeros(3), jnp.zeros(4))
  with pytest.raises(ValueError, match="temperature"):
    losses.logit_variance(jnp.zeros(3), jnp.zeros(3), 0)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_where_logits_are_far_apart(name):
  z_V = jnp.array([80.0, -80.0, 0.0, 1.0])
  loss, grad_V = jax.jit(jax.value_and_grad(LOSSES[name], argnums=1))(z_V, -z_V)
  chex.assert_shape(loss, ())
  chex.assert_equal_shape((grad_V, z_V))
  chex.assert_tree_all_finite((loss, grad_V))
