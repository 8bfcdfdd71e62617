"""Gates: sublayers that are left out, in a decoder."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from tests.test_decoder import logits, random_tokens, small

__all__ = ["small"]  # A fixture, not a leftover import.


@pytest.mark.parametrize(
  "drop", [dict(attention=[0]), dict(mlp=[1]), dict(attention=[1], mlp=[1])]
)
def test_a_closed_gate_is_a_zeroed_projection(small, drop):
  _, config, params = small
  tokens = random_tokens(2, 6)
  zeroed = jax.tree.map(lambda leaf: leaf, params)
  for group, name in (("attention", "output"), ("mlp", "down")):
    for index in drop.get(group, ()):
      leaf = zeroed["layers"][group][name]
      leaf["kernel"] = np.array(leaf["kernel"])
      leaf["kernel"][index] = 0
  gates = models.make_gates(config, **drop)
  got = logits(config, params, tokens, gates=gates)
  np.testing.assert_allclose(got, logits(config, zeroed, tokens), atol=1e-6)
  assert np.abs(got - logits(config, params, tokens)).max() > 0.1


def test_gates_refuse_layers_that_are_not_there(small):
  _, config, _ = small
  for index in (2, -1):
    with pytest.raises(ValueError, match=f"layer {index} to drop"):
      models.make_gates(config, attention=[index])


def test_candidates_are_vmapped_in_one_trace(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  candidates = [models.make_gates(config, attention=[i]) for i in range(2)]
  gates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def scores(gates, tokens):
    return jax.vmap(
      lambda g: models.forward(config, params, tokens, gates=g)[0]
    )(gates)

  alone = jax.jit(models.forward, static_argnums=0)
  got = scores(gates, tokens)
  scores(jax.tree.map(lambda g: 1 - g, gates), tokens + 0)
  for index, one in enumerate(candidates):
    expected, _ = alone(config, params, tokens, gates=one)
    np.testing.assert_allclose(got[index], expected, atol=2e-6)


def test_gates_and_weights_are_differentiable(small):
  """jvp, vjp and central differences agree."""
  _, config, params = small
  tokens = random_tokens(1, 5)

  def loss(gates, kernel_IO):
    layers = jax.tree.map(lambda leaf: leaf, params["layers"])
    layers["mlp"]["up"]["kernel"] = (
      layers["mlp"]["up"]["kernel"].at[1].add(kernel_IO)
    )
    out, _ = models.forward(
      config, {**params, "layers": layers}, tokens, gates=gates
    )
    return jnp.mean(jnp.square(out))

  at = (models.make_gates(config), jnp.zeros((32, 48)))
  rng = np.random.default_rng(0)
  along = jax.tree.map(
    lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), at
  )
  _, forward_mode = jax.jit(lambda: jax.jvp(loss, at, along))()
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(*at)
  reverse_mode = sum(
    np.vdot(g, a) for g, a in zip(*map(jax.tree.leaves, (gradient, along)))
  )
  step = 1e-2
  plus, minus = (
    jax.jit(loss)(*jax.tree.map(lambda a, d: a + s * d, at, along))
    for s in (step, -step)
  )
  np.testing.assert_allclose(forward_mode, reverse_mode, rtol=1e-4)
  np.testing.assert_allclose(
    forward_mode, (plus - minus) / (2 * step), rtol=2e-2
  )
  by_gates, by_kernel = gradient
  assert all(np.abs(g_L).min() > 0 for g_L in jax.tree.leaves(by_gates))
  assert np.abs(by_kernel).max() > 0
