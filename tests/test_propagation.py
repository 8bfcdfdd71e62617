"""Changes divided exactly: toys with closed forms, then the decoder."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune.models import decoder
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation import memory as decoder_memory
from jaxprune.probes.decoder.propagation import path as decoder_path
from jaxprune.probes.decoder.propagation import read_outs

CONFIG = tiny_llama(
  embed_dim=8, mlp_dim=12, num_heads=2, num_kv_heads=1, vocab_size=20
)
LENGTH, STEPS = 7, 4
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 20, (2, LENGTH)))
VALID = jnp.ones(TOKENS.shape, bool)
ALIVE = jnp.asarray([[True] * 4, [True, True, True, False]])


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


@pytest.fixture(scope="module")
def models():
  """Layer 0's MLP is unchanged, layer 1's attention is dropped."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: decoder.init(CONFIG, jax.random.key(0)))
  dense = jax.tree.map(
    lambda w: rng.normal(0, 0.5, w.shape).astype(np.float32), shapes
  )
  pruned = jax.tree.map(np.copy, dense)
  for sublayer, name in decoder.KERNELS:
    kernel = pruned["layers"][sublayer][name]["kernel"]
    kernel *= rng.random(kernel.shape) < 0.8
  for name in ("gate", "up", "down"):
    pruned["layers"]["mlp"][name]["kernel"][0] = dense["layers"]["mlp"][name][
      "kernel"
    ][0]
  pruned["layers"]["attention"]["output"]["kernel"][1] = 0
  return dense, pruned


@pytest.fixture(scope="module")
def path(models):
  dense, pruned = models
  params = decoder_path.add_delta(CONFIG, dense, CONFIG, pruned)
  return decoder_path.make_path(CONFIG, params, TOKENS, VALID, ALIVE)


@pytest.fixture(scope="module")
def quadrature(path):
  return decoder_path.find_quadrature(CONFIG, path, nodes=16, max_nodes=16)


@pytest.fixture(scope="module")
def by_sublayer(path, quadrature):
  return decoder_path.attribute(
    CONFIG, path, propagation.sublayer_directions(2, LENGTH), quadrature
  )


@pytest.fixture(scope="module")
def by_step(path, quadrature):
  return decoder_path.attribute(
    CONFIG,
    path,
    propagation.step_directions(2, LENGTH, STEPS, groups=2),
    quadrature,
  )


def oracle(dense, pruned, shares):
  """Logits [B, R, V] in float64, written from the equations."""
  old, new = (
    jax.tree.map(lambda w: np.asarray(w, np.float64), tree)
    for tree in (dense, pruned)
  )
  batch, heads, width = len(TOKENS), CONFIG.num_heads, CONFIG.head_dim
  angle = np.arange(LENGTH)[:, None] * 10000.0 ** (
    -np.arange(0, width, 2) / width
  )
  cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

  def norm(x, scale):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * scale

  def rotate(x):
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  x = old["embed"]["table"][np.asarray(TOKENS)]
  for layer in range(CONFIG.num_layers):

    def apply(sublayer, name, y, layer=layer):
      w, v = (
        tree["layers"][sublayer][name]["kernel"][layer] for tree in (old, new)
      )
      share = shares[layer, int(sublayer == "mlp")][None, :, None]
      return y @ w + share * (y @ (v - w))

    y = norm(x, old["layers"]["attention_norm"]["scale"][layer])
    q = rotate(apply("attention", "query", y).reshape(batch, LENGTH, heads, -1))
    k = rotate(apply("attention", "key", y).reshape(batch, LENGTH, 1, -1))
    v = apply("attention", "value", y)
    scores = np.einsum("btnh,bsh->bnts", q, k[:, :, 0]) / np.sqrt(width)
    scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    read = np.einsum("bnts,bsh->btnh", weights, v).reshape(batch, LENGTH, -1)
    x = x + apply("attention", "output", read)
    y = norm(x, old["layers"]["mlp_norm"]["scale"][layer])
    gate = apply("mlp", "gate", y)
    x = x + apply(
      "mlp", "down", gate / (1 + np.exp(-gate)) * apply("mlp", "up", y)
    )
  return norm(x, old["final_norm"]["scale"])[:, -STEPS:] @ (
    old["embed"]["table"].T
  )


def log_prob(z, token):
  z = z - z.max(-1, keepdims=True)
  z = z - np.log(np.exp(z).sum(-1, keepdims=True))
  return np.take_along_axis(z, token[..., None], -1)[..., 0]


@pytest.mark.parametrize("cause", ["sublayer", "step"])
def test_slopes_equal_finite_differences_in_float64(models, request, cause):
  first, _ = request.getfixturevalue(f"by_{cause}")
  lines = np.asarray(
    propagation.sublayer_directions(2, LENGTH)
    if cause == "sublayer"
    else propagation.step_directions(2, LENGTH, STEPS, groups=2),
    np.float64,
  )
  token = oracle(*models, 0 * lines[0]).argmax(-1)
  for index, direction in enumerate(lines):
    up, down = (
      log_prob(oracle(*models, s * 1e-5 * direction), token) for s in (1, -1)
    )
    np.testing.assert_allclose(
      first["log_prob"][index],
      np.where(ALIVE, (up - down) / 2e-5, 0),
      rtol=2e-3,
      atol=2e-5,
    )


def test_ends_are_the_two_models(models, path):
  for shares, h_BRD in ((0.0, path.start), (1.0, path.end)):
    z_BRV = decoder.unembed(CONFIG, path.params, h_BRD, "raw")
    np.testing.assert_allclose(
      z_BRV,
      oracle(*models, np.full((2, 2, LENGTH), shares)),
      rtol=1e-3,
      atol=1e-4,
    )
  h_BTD, _ = decoder.forward(
    CONFIG, jax.tree.map(jnp.asarray, models[1]), TOKENS
  )
  np.testing.assert_allclose(
    decoder.final_norm(CONFIG, path.params, h_BTD[:, -STEPS:]),
    path.end,
    rtol=1e-4,
    atol=1e-5,
  )


def test_contributions_are_complete(by_sublayer, by_step):
  for first, found in (by_sublayer, by_step):
    for name, error in found.completeness_error.items():
      assert float(error) < 1e-3, name
      assert not np.asarray(found.contributions[name])[:, 1, 3].any()
    np.testing.assert_allclose(
      found.contributions["dz"].sum(0), np.asarray(ALIVE, float), atol=1e-3
    )
    assert float(jnp.abs(first["kl"]).max()) < 1e-5  # KL is flat at p
    assert float(found.change["kl"].sum()) > 0.1


def test_confident_outputs_keep_their_digits(models):
  """A hundredth of the change, at logits so far apart that p is nearly 1."""
  dense, pruned = (
    {**tree, "final_norm": {"scale": 40 * tree["final_norm"]["scale"]}}
    for tree in models
  )
  near = jax.tree.map(lambda w, v: w + 0.01 * (v - w), dense, pruned)
  path = decoder_path.make_path(
    CONFIG,
    decoder_path.add_delta(CONFIG, dense, CONFIG, near),
    TOKENS,
    VALID,
    ALIVE,
  )
  found = decoder_path.find_quadrature(CONFIG, path, nodes=16, max_nodes=16)
  small = np.abs(found.change["one_minus_cos_p"])[np.asarray(ALIVE)]
  assert np.sort(small)[2] < 1e-11
  for name, weights_KBRD in found.weights.items():
    np.testing.assert_allclose(
      np.einsum("KBRD,KBRD->BR", weights_KBRD, found.slopes),
      found.change[name],
      rtol=1e-2,
      err_msg=name,
    )


def test_an_unchanged_sublayer_contributes_exactly_nothing(by_sublayer):
  first, found = by_sublayer
  for name in read_outs.METRICS:
    for tree in (first, found.contributions):
      parts = np.asarray(tree[name])
      assert not parts[1].any(), name  # MLP of layer 0
      if tree is not first:
        assert parts[0].any() and parts[2].any() and parts[3].any()


def test_nothing_comes_before_its_cause(by_step):
  """Exactly, in both groups of layers; all at or after a cause has some."""
  first, found = by_step
  for tree in (first, found.contributions):
    for name in ("log_prob", "margin", "dz_centred"):
      parts_GPR = np.asarray(tree[name])[:, 0].reshape(2, STEPS + 1, STEPS)
      for parts in parts_GPR[:, 1:]:  # [cause, output]
        assert not parts[np.tril_indices(STEPS, -1)].any(), name
        assert parts[np.triu_indices(STEPS)].all(), name


def test_dense_against_dense_is_zero(models):
  dense, _ = models
  params = decoder_path.add_delta(CONFIG, dense, CONFIG, dense)
  same = decoder_path.make_path(CONFIG, params, TOKENS, VALID, ALIVE)
  first, found = decoder_path.attribute(
    CONFIG,
    same,
    propagation.sublayer_directions(2, LENGTH),
    decoder_path.find_quadrature(CONFIG, same, nodes=16, max_nodes=16),
  )
  for tree in (
    first,
    found.contributions,
    found.change,
    found.completeness_error,
  ):
    for name, value in tree.items():
      np.testing.assert_array_equal(value, 0, err_msg=name)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_directions_cover_every_share_once(groups):
  for lines in (
    propagation.sublayer_directions(3, LENGTH),
    propagation.step_directions(3, LENGTH, STEPS, groups),
  ):
    np.testing.assert_array_equal(lines.sum(0), np.ones((3, 2, LENGTH)))


def test_directions_by_hand():
  cause = propagation.step_directions(3, LENGTH, STEPS)[:, 0, 0]
  np.testing.assert_array_equal(cause[0], [1, 1, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(cause[1], [0, 0, 0, 1, 0, 0, 0])
  assert propagation.layer_groups(7, 3) == [
    range(0, 2),
    range(2, 4),
    range(4, 7),
  ]
  late = propagation.step_directions(7, LENGTH, STEPS, groups=3)[
    2 * (STEPS + 1) + 1
  ]
  np.testing.assert_array_equal(late[:, 0, 3], [0, 0, 0, 0, 1, 1, 1])
  for wrong in (0, 8):
    with pytest.raises(ValueError, match=f"groups={wrong}: .* 7 layers"):
      propagation.layer_groups(7, wrong)


def test_changes_off_the_path_are_refused(models):
  dense, pruned = models
  other = {**pruned, "final_norm": {"scale": dense["final_norm"]["scale"] * 2}}
  with pytest.raises(ValueError, match="final_norm differs"):
    decoder_path.add_delta(CONFIG, dense, CONFIG, other)
  narrow = dataclasses.replace(CONFIG, mlp_dim=8)
  with pytest.raises(ValueError, match="mlp_dim: 12 and 8"):
    decoder_path.add_delta(CONFIG, dense, narrow, pruned)


def test_memory_decides_how_many_directions_go_together():
  few, many = (
    decoder_memory.directions_at_once(CONFIG, 2, STEPS, LENGTH, memory)
    for memory in (1 << 10, 1 << 30)
  )
  assert few == 1 and many == 8


def test_bytes_by_hand():
  """One prompt and step, one direction and node of the model above."""
  found = decoder_memory.estimate_bytes(
    CONFIG, batch=1, length=1, num_steps=1, directions=1, nodes=1
  )
  # Table 20 * 8, norms 5 * 8, per layer 8 * (8 + 4 + 4 + 8) + 3 * 8 * 12.
  assert found.weights == 3 * 4 * (160 + 40 + 2 * (192 + 288))
  assert found.nodes == 4 * 8 * (2 * 7 + 2 + 2)
  assert found.tangents == 8 * 4 * (6 * 8 + 4 * 12 + 5 * 8 + 3 * 2 + 12 * 20)
  assert found.results == 3 * 4 * 7
  assert found.total == sum(
    (found.weights, found.nodes, found.tangents, found.results)
  )
