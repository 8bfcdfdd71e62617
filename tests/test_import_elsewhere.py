"""The probes on models that are not this project's."""

import itertools
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import probes

VOCAB, WIDTH, DEPTH = 23, 12, 3


class Mixer(nn.Module):
  """A causal mean over tokens, then a dense layer; two sublayers."""

  @nn.compact
  def __call__(self, x_BTD):
    count_T = jnp.arange(1, x_BTD.shape[1] + 1)
    mean_BTD = jnp.cumsum(x_BTD, axis=1) / count_T[None, :, None]
    mid_BTD = x_BTD + nn.Dense(WIDTH, name="mix")(mean_BTD)
    out_BTD = mid_BTD + nn.Dense(WIDTH, name="feed")(nn.gelu(mid_BTD))
    return mid_BTD, out_BTD


class Toy(nn.Module):
  """A language model that jaxprune has never heard of."""

  @nn.compact
  def __call__(self, tokens_BT):
    x_BTD = nn.Embed(VOCAB, WIDTH, name="embed")(tokens_BT)
    for index in range(DEPTH):
      _, x_BTD = Mixer(name=f"block_{index}")(x_BTD)
    h_BTD = nn.LayerNorm(name="norm")(x_BTD)
    return h_BTD, nn.Dense(VOCAB, use_bias=False, name="head")(h_BTD)


@pytest.fixture(scope="module")
def toy():
  """Tokens, and the toy's parameters whole and with small kernels zeroed."""
  tokens_BT = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (2, 6)))
  dense = jax.jit(Toy().init)(jax.random.key(0), tokens_BT)
  pruned = jax.tree.map(
    lambda w: jnp.where(jnp.abs(w) < 0.1, 0, w) if w.ndim == 2 else w, dense
  )
  return tokens_BT, dense, pruned


def test_a_flax_model_as_a_whole(toy):
  tokens_BT, dense, pruned = toy
  run = jax.jit(Toy().apply)
  (h, z), (g, y) = run(dense, tokens_BT), run(pruned, tokens_BT)
  found = jax.jit(jax.vmap(jax.vmap(probes.compare_position)))(h, g, z, y)
  assert found.kl.shape == tokens_BT.shape
  p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (z, y))
  np.testing.assert_allclose(
    found.kl, (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-6
  )
  np.testing.assert_array_equal(found.flip, z.argmax(-1) != y.argmax(-1))


def test_one_sublayer_of_a_flax_model_at_a_time(toy):
  tokens_BT, dense, pruned = toy
  x_BTD = dense["params"]["embed"]["embedding"][tokens_BT]
  # The library scans over layers, so the blocks are stacked.
  layers = tuple(
    jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(model["params"][f"block_{index}"] for index in range(DEPTH)),
    )
    for model in (dense, pruned)
  )

  def points(layer, x_BTD):
    return Mixer().apply({"params": layer}, x_BTD)

  def sublayers(pair, x_BTD):
    whole, cut = pair
    mid_BTD, out_BTD = points(whole, x_BTD)
    return (
      out_BTD,
      (mid_BTD, out_BTD),
      (points(cut, x_BTD)[0], points(whole | {"feed": cut["feed"]}, x_BTD)[1]),
    )

  def read(h_RD):
    return h_RD @ dense["params"]["head"]["kernel"]

  def measure(h_D, g_D, z_V, y_V):
    return probes.compare_vectors(h_D, g_D), probes.compare_logits(z_V, y_V)

  last_BTD, (in_h, (in_z, _)) = probes.compare_sublayers(
    sublayers, read, measure, x_BTD, layers
  )
  assert in_h.rho.shape == in_z.rho.shape == (DEPTH, 2, 2, 6)
  assert (np.asarray(in_h.rho) > 0).all()
  # The stream is the dense model's own.
  scale = dense["params"]["norm"]
  h_BTD = nn.LayerNorm().apply({"params": scale}, last_BTD)
  np.testing.assert_allclose(
    h_BTD, jax.jit(Toy().apply)(dense, tokens_BT)[0], rtol=1e-4, atol=1e-5
  )
  _, (same, _) = probes.compare_sublayers(
    sublayers, read, measure, x_BTD, (layers[0], layers[0])
  )
  np.testing.assert_array_equal(same.cos, 1)


def test_plain_callables():
  """`forward(params, tokens) -> (h, z)` and nothing else."""

  def forward(params, tokens_T):
    h_TD = jnp.tanh(jnp.cumsum(params["table"][tokens_T], axis=0))
    return h_TD, h_TD @ params["head"]

  keys = jax.random.split(jax.random.key(1), 2)
  params = {
    "table": jax.random.normal(keys[0], (VOCAB, WIDTH)),
    "head": jax.random.normal(keys[1], (WIDTH, VOCAB)),
  }
  cut = params | {"table": params["table"].at[:, 6:].set(0)}
  tokens_T = jnp.asarray([3, 1, 4, 1, 5])
  h, z = jax.jit(forward)(params, tokens_T)
  g, y = jax.jit(forward)(cut, tokens_T)
  theorem_3 = jax.jit(jax.vmap(probes.theorem_3, (0, 0, None)))
  for temperature in (0.5, 2.0):
    exact = theorem_3(z, y, temperature)
    assert (np.asarray(exact.exact) <= np.asarray(exact.bound)).all()
  # Half of the coordinates are gone: what is left lies along h as far as the
  # rest of h was long.
  found = jax.jit(jax.vmap(probes.compare_vectors))(h, g)
  left = np.square(h[:, :6]).sum(-1) / np.square(h).sum(-1)
  np.testing.assert_allclose(found.alpha, left - 1, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.cos, np.sqrt(left), rtol=1e-5)


def test_the_example_of_the_docstring_runs():
  text = probes.__doc__
  after = text[text.index("  import jax") :].splitlines(keepends=True)
  lines = "".join(
    itertools.takewhile(lambda line: line.isspace() or line[0] == " ", after)
  )
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(lines)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  kl, loaded = done.stdout.split("\n")[:2]
  assert len(kl.split()) == 7 and loaded == "False"
