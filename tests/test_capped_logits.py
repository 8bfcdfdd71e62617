"""Soft-capped logits are the z of the model: derivatives go through the cap."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune import models
from jaxprune.models import decoder
from jaxprune.probes import jacobian, logit_moments
from jaxprune.probes.decoder import ablation
from jaxprune.probes.decoder.propagation import along_path, interactions
from jaxprune.probes.decoder.propagation import path as decoder_path

CAP = 0.5
CONFIG = tiny_llama(
  1,
  vocab_size=20,
  logit_cap=CAP,
  post_norm=True,
  unit_offset=True,
  scale_embedding=True,
)
TOKENS = np.array([[3, 7, 11, 2]], np.int32)
EVERYWHERE = np.ones((1, 2, 4), np.float32)
# What attention does, and what the MLP does, at all positions.
LINES = np.eye(2, dtype=np.float32)[:, None, :, None] * EVERYWHERE[:, None, :1]


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(lambda: models.init(CONFIG, jax.random.key(0)))

  @jax.jit
  def draw():
    return jax.tree.map(
      lambda w: 0.4 * jax.random.normal(jax.random.key(w.size), w.shape), shapes
    )

  return draw()


@pytest.fixture(scope="module")
def path(params):
  layers = jax.tree.map(lambda leaf: leaf, params["layers"])
  for group, name in models.kernels_of(layers):
    kernel = layers[group][name]["kernel"]
    layers[group][name] = {"kernel": kernel * (jnp.abs(kernel) > 0.2)}
  pruned = {**params, "layers": layers}
  return decoder_path.make_path(
    CONFIG,
    decoder_path.add_delta(CONFIG, params, CONFIG, pruned),
    TOKENS,
    jnp.ones((1, 4), bool),
    jnp.ones((1, 2), bool),
  )


@jax.jit
def move(path, t):
  """Logits at t, and their derivative by t."""

  def logits(t):
    h_BRD = decoder_path.hidden_at(CONFIG, path, t * EVERYWHERE)
    return decoder.unembed(CONFIG, path.params, h_BRD, "raw")

  return jax.jvp(logits, (t,), (1.0,))


def test_the_cap_and_its_derivative_against_numpy(params):
  rng = np.random.default_rng(0)
  h_BD, dh_BD = rng.normal(size=(2, 3, 16)).astype(np.float32)
  z, dz = decoder.unembed_change(CONFIG, params, h_BD, dh_BD)
  table_VD = np.asarray(params["embed"]["table"], np.float64)
  tanh = np.tanh(h_BD @ table_VD.T / CAP)
  np.testing.assert_allclose(z, CAP * tanh, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    dz, (1 - tanh**2) * (dh_BD @ table_VD.T), rtol=1e-4, atol=1e-5
  )
  plain = dataclasses.replace(CONFIG, logit_cap=None)
  chex.assert_trees_all_equal(
    decoder.unembed_change(plain, params, h_BD, dh_BD)[1],
    decoder.unembed(plain, params, dh_BD, "raw"),
  )


def test_rates_and_curvature_go_through_the_cap(path):
  """Against the derivative of the logits of the whole model."""
  truth = {}
  for t in (0.0, 0.5):
    truth[t] = move(path, t)
  z, dz = truth[0.5]
  found = along_path.rates(CONFIG, path, jnp.array([0.5]))
  for step in range(2):
    expected = jax.jit(jacobian.rates)(
      truth[0.0][0][0, step], z[0, step], dz[0, step]
    )
    for name in ("z", "p"):
      np.testing.assert_allclose(
        found[name][0, 0, step], getattr(expected, name), rtol=1e-3
      )
  curvature = interactions.curvature_of_kl(CONFIG, path, LINES, batch_size=2)
  for step in range(2):
    z_V, dz_V = (each[0, step] for each in truth[0.0])
    variance = jax.jit(logit_moments.compare_moments)(z_V, z_V + dz_V).var_p
    np.testing.assert_allclose(
      np.asarray(curvature)[..., 0, step].sum(), variance, rtol=1e-3
    )


def test_predicted_damage_goes_through_the_cap(params):
  """Var_p of the derivative of the logits by a gate, halved."""

  def logits(gate):
    gates = models.Gates(attention=jnp.reshape(gate, 1), mlp=jnp.ones(1))
    x_BTD, _ = models.forward(CONFIG, params, TOKENS, gates=gates)
    return models.unembed(CONFIG, params, x_BTD)

  z, dz = jax.device_get(jax.jit(lambda: jax.jvp(logits, (1.0,), (-1.0,)))())
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  variance = (p * dz**2).sum(-1) - (p * dz).sum(-1) ** 2
  found = ablation.predict_sublayers(
    CONFIG, params, np.asarray(TOKENS), kinds=("attention",)
  )
  np.testing.assert_allclose(
    found["attention"][0, 0], variance.mean() / 2, rtol=1e-4
  )
