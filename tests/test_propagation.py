"""Changes divided exactly: toys with closed forms, then the decoder."""

import dataclasses

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
TOKENS = np.random.default_rng(1).integers(0, 20, (2, LENGTH), np.int32)
VALID = np.ones(TOKENS.shape, bool)
ALIVE = np.array([[True] * 4, [True, True, True, False]])


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
