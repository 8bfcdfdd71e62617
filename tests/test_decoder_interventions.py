"""Freeze, patch and decode on: what must come out by construction."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params, tiny_llama

from jaxprune.models import decoder, decoder_layer, generation
from jaxprune.probes import interventions
from jaxprune.probes.decoder import interventions as driver
from jaxprune.probes.decoder import logit_interventions

LAYERS, LENGTH, STEPS = 3, 4, 5
CONFIG = tiny_llama(
  LAYERS,
  embed_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_kv_heads=1,
  vocab_size=20,
  eos_ids=(3,),
)
PROMPTS = np.random.default_rng(1).integers(4, 20, (3, LENGTH), np.int32)
VALID = np.arange(LENGTH)[None] >= np.array([0, 1, 0])[:, None]
MASKS = interventions.first_layers(LAYERS)
NAMES = ("dense", "pruned", "keep_offset", "keep_centred", "keep_top", "half")


def make_models():
  """Random weights, a fifth of them gone, one attention dropped."""
  rng = np.random.default_rng(0)
  dense = random_params(CONFIG, rng, 0.5)
  layers = jax.tree.map(
    lambda w: w * (rng.random(w.shape) < 0.8) if w.ndim == 3 else w,
    dense["layers"],
  )
  layers["attention"]["output"]["kernel"] = (
    layers["attention"]["output"]["kernel"].at[1].set(0)
  )
  return dense, {**dense, "layers": layers}


@pytest.fixture(scope="module")
def pair():
  dense, pruned = make_models()
  return driver.make_pair(CONFIG, dense, CONFIG, pruned)


@pytest.fixture(scope="module")
def text(pair):
  written = generation.generate(
    CONFIG, pair.params, PROMPTS, valid_BT=VALID, max_new_tokens=STEPS
  )
  return driver.Text(
    tokens=jnp.concatenate([PROMPTS, written.tokens[:, :-1]], axis=1),
    valid=jnp.pad(VALID, ((0, 0), (0, STEPS - 1)), constant_values=True),
    target=written.tokens,
    alive=jnp.arange(STEPS)[None] < written.lengths[:, None],
  )


@pytest.fixture(scope="module")
def frozen(pair, text):
  return driver.frozen(CONFIG, pair, text, jnp.concatenate([MASKS, ~MASKS]))


@pytest.fixture(scope="module")
def patched(pair, text):
  return driver.patched(CONFIG, pair, text, jax.random.key(0))


@jax.jit
def read(pair, layers, text):
  """What the head reads in a model with these layers, by `forward`."""
  params = {**pair.params, "layers": layers}
  x_BTD, _ = decoder.forward(CONFIG, params, text.tokens, valid_BT=text.valid)
  return decoder.final_norm(CONFIG, params, x_BTD[:, -STEPS:])


def test_frozen_layers_are_those_of_the_other_model(pair, text, frozen):
  for k in range(LAYERS + 1):
    for index, use in (
      (k, np.arange(LAYERS) < k),
      (LAYERS + 1 + k, np.arange(LAYERS) >= k),
    ):
      # Built layer by layer, without `mix_layers`.
      mixed = jax.tree.map(
        lambda a, b, use=use: np.stack(
          [a[n] if use[n] else b[n] for n in range(LAYERS)]
        ),
        jax.device_get(pair.params["layers"]),
        jax.device_get(pair.pruned),
      )
      np.testing.assert_allclose(
        frozen[index], read(pair, mixed, text), rtol=1e-4, atol=1e-5
      )


def measure(pair, text, reference, h_KBRD, **options):
  return jax.tree.map(
    np.asarray,
    driver.measure_states(CONFIG, pair, text, reference, h_KBRD, **options),
  )


def test_all_frozen_is_dense_and_none_is_pruned(pair, text, frozen):
  first, back = frozen[: LAYERS + 1], frozen[LAYERS + 1 :]
  np.testing.assert_array_equal(first[LAYERS], back[0])
  np.testing.assert_array_equal(first[0], back[LAYERS])
  found = measure(pair, text, first[LAYERS], frozen)
  for name in driver.METRICS[:-2]:
    assert not found[name][LAYERS].any(), name
    assert not found[name][LAYERS + 1].any(), name
    # Dead positions read 0, and living ones do not at k = 0.
    assert not found[name][:, ~np.asarray(text.alive)].any(), name
    if "flips" not in name:
      assert found[name][0][np.asarray(text.alive)].all(), name
  alive = np.asarray(text.alive)
  # The dense model's text is the dense model's likeliest.
  assert found["hits"][LAYERS][alive].all()
  np.testing.assert_array_equal(
    found["flips"][:, alive], 1 - found["hits"][:, alive]
  )


def test_measured_against_numpy(pair, text, frozen):
  h, g = (np.asarray(frozen[k], np.float64) for k in (LAYERS, 0))
  table = np.asarray(pair.params["embed"]["table"], np.float64)
  z, y = h @ table.T, g @ table.T
  T = 0.7

  def log_softmax(z):
    z = z / T - (z / T).max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))

  p, q = log_softmax(z), log_softmax(y)
  found = measure(pair, text, frozen[LAYERS], frozen[:1], temperature=T)
  alive = np.asarray(text.alive)

  def check(name, truth):
    np.testing.assert_allclose(
      found[name][0][alive], truth[alive], rtol=2e-4, atol=2e-6, err_msg=name
    )

  kl = (np.exp(p) * (p - q)).sum(-1)
  flips = z.argmax(-1) != y.argmax(-1)
  check("kl", kl)
  check("tv", np.abs(np.exp(p) - np.exp(q)).sum(-1) / 2)
  check("flips", flips)
  check("kl_at_flips", kl * flips)
  check("rms_dz", np.sqrt(np.mean((y - z) ** 2, -1)))
  top = z.argmax(-1)[..., None]
  lead_z, lead_y = (
    np.take_along_axis(x, top, -1)[..., 0]
    - np.where(np.arange(20) == top, -np.inf, x).max(-1)
    for x in (z, y)
  )
  check("margin_lost", lead_z - lead_y)
  check(
    "log_prob",
    np.take_along_axis(q, np.asarray(text.target)[..., None], -1)[..., 0],
  )
  check(
    "one_minus_cos_h",
    1
    - (h * g).sum(-1)
    / (np.linalg.norm(h, axis=-1) * np.linalg.norm(g, axis=-1)),
  )
  some = measure(
    pair, text, frozen[LAYERS], frozen[:1], temperature=T, metrics=("kl",)
  )
  # Another program: a compiler may sum in another order.
  np.testing.assert_allclose(some["kl"], found["kl"], rtol=1e-5, atol=1e-9)
  assert set(some) == {"kl"}


def test_patched_ends_are_the_two_models(pair, text, frozen, patched):
  for name, ends in (
    ("patch_pruned", ("pruned", "dense")),
    ("patch_dense", ("dense", "pruned")),
  ):
    for k, end in zip((0, LAYERS), ends):
      np.testing.assert_array_equal(patched[name][k], patched[end][0])
  # The same two models as by `forward`, in another order of sums.
  np.testing.assert_allclose(
    patched["dense"][0], frozen[LAYERS], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    patched["pruned"][0], frozen[0], rtol=1e-4, atol=1e-5
  )
  # Nothing is different at k = 0, so no direction is added either.
  np.testing.assert_array_equal(
    patched["patch_dense_random"][0], patched["dense"][0]
  )
  np.testing.assert_array_equal(
    patched["patch_pruned_random"][0], patched["pruned"][0]
  )
  for k in range(1, LAYERS + 1):
    assert (
      np.abs(patched["patch_dense_random"][k] - patched["dense"][0]).max()
      > 1e-2
    )


def test_a_patch_reaches_its_position_and_no_other(pair, text, patched):
  """Against the pruned model decoded step by step, h swapped at one step."""
  step, k = 2, 1
  position = LENGTH + step - 1

  @jax.jit
  def swapped(pair, text):
    x_BTD = decoder.embed(CONFIG, pair.params, text.tokens)
    layer = lambda tree, n: jax.tree.map(lambda w: w[n], tree)
    context = decoder.make_context(CONFIG, text.tokens.shape[1], text.valid)
    run = functools.partial(
      decoder_layer.block, CONFIG, sliding=False, context=context
    )
    dense_BTD, own_BTD = x_BTD, x_BTD
    for n in range(k):
      dense_BTD, _ = run(layer(pair.params["layers"], n), dense_BTD)
      own_BTD, _ = run(layer(pair.pruned, n), own_BTD)
    # What comes later reads the swapped position, but is not looked at.
    own_BTD = own_BTD.at[:, position].set(dense_BTD[:, position])
    for n in range(k, LAYERS):
      own_BTD, _ = run(layer(pair.pruned, n), own_BTD)
    return decoder.final_norm(CONFIG, pair.params, own_BTD)

  np.testing.assert_allclose(
    swapped(pair, text)[:, position],
    patched["patch_pruned"][k][:, step],
    rtol=1e-4,
    atol=1e-5,
  )
  # Freezing changes the keys and values too, and gives something else.
  frozen = driver.frozen(CONFIG, pair, text, MASKS[k : k + 1])
  assert np.abs(frozen[0] - patched["patch_pruned"][k]).max() > 1e-3


@pytest.fixture(scope="module")
def changes(pair, text, patched):
  return logit_interventions.measure_changes(
    CONFIG,
    pair,
    text,
    patched["dense"][0],
    patched["pruned"][0],
    jax.random.key(4),
    logit_interventions.Changes(
      top=3, temperatures=(0.5,), top_k=(2,), top_p=(0.8,)
    ),
  )


def test_changes_that_softmax_or_greedy_do_not_see(text, changes):
  alive = np.asarray(text.alive)
  changes = jax.tree.map(lambda leaf: np.asarray(leaf)[alive], changes)
  for name in driver.METRICS[1:-2]:
    assert not changes["dense"][name].any(), name
  assert changes["pruned"]["kl"].all() and changes["pruned"]["flips"].any()
  np.testing.assert_allclose(changes["keep_offset"]["kl"], 0, atol=1e-9)
  for name in ("keep_centred", "centred_by_p", "centred_logits"):
    for metric in ("kl", "tv", "log_prob"):
      np.testing.assert_allclose(
        changes[name][metric],
        changes["pruned"][metric],
        rtol=1e-3,
        atol=1e-6,
        err_msg=name,
      )
  for name in (
    "centred_by_p",
    "centred_logits",
    "temperature_0.5",
    "variance_of_z",
    "top_k_2",
    "top_p_0.8",
  ):
    np.testing.assert_array_equal(
      changes[name]["flips"], changes["pruned"]["flips"], err_msg=name
    )
  assert np.isinf(changes["top_k_2"]["kl"]).all()
  assert (changes["half"]["kl"] < changes["pruned"]["kl"]).mean() > 0.9


def test_changes_are_those_of_the_whole_run(pair, text, changes, patched):
  found = measure(pair, text, patched["dense"][0], patched["pruned"])
  for name in driver.METRICS[1:]:
    np.testing.assert_allclose(
      changes["pruned"][name],
      found[name][0],
      rtol=1e-5,
      atol=1e-7,
      err_msg=name,
    )


@pytest.fixture(scope="module")
def continued(pair):
  return logit_interventions.continue_changed(
    CONFIG,
    pair,
    PROMPTS,
    VALID,
    jax.random.key(5),
    logit_interventions.Changes(top=3),
    names=NAMES,
    num_steps=STEPS,
  )


def test_texts_of_both_ends_are_those_of_the_models(pair, continued):
  tokens, values = continued
  for name, layers in (
    ("dense", pair.params["layers"]),
    ("pruned", pair.pruned),
  ):
    text = generation.generate(
      CONFIG,
      {**pair.params, "layers": layers},
      PROMPTS,
      valid_BT=VALID,
      max_new_tokens=STEPS,
      sampling=generation.Sampling(eos_ids=()),
    )
    np.testing.assert_array_equal(tokens[NAMES.index(name)], text.tokens)
  for name, same in (("keep_offset", "dense"), ("keep_centred", "pruned")):
    np.testing.assert_array_equal(
      tokens[NAMES.index(name)], tokens[NAMES.index(same)]
    )
  assert not np.asarray(values["kl"][0]).any()
  assert not np.asarray(values["flips"][0]).any()


def test_a_text_parts_at_its_first_flip(text, changes, continued):
  """Greedy decoding needs no decoding: the teacher-forced flip says when."""
  tokens, _ = continued
  alive = np.asarray(text.alive)
  parted = 0
  for n, name in enumerate(NAMES):
    left = (np.asarray(tokens[n]) != np.asarray(text.target)) & alive
    flips = (np.asarray(changes[name]["flips"]) > 0) & alive
    np.testing.assert_array_equal(left.any(1), flips.any(1), err_msg=name)
    np.testing.assert_array_equal(left.argmax(1), flips.argmax(1))
    parted += left.any()
  assert parted >= 3  # the pruned text does part


def test_shapes_and_finite_numbers(frozen, patched, changes, continued):
  batch = len(PROMPTS)
  chex.assert_shape(frozen, (2 * (LAYERS + 1), batch, STEPS, CONFIG.embed_dim))
  whole = {name: patched[name] for name in ("dense", "pruned")}
  chex.assert_shape(list(whole.values()), (1, batch, STEPS, CONFIG.embed_dim))
  chex.assert_shape(
    [leaf for name, leaf in patched.items() if name not in whole],
    (LAYERS + 1, batch, STEPS, CONFIG.embed_dim),
  )
  chex.assert_shape(jax.tree.leaves(changes), (batch, STEPS))
  chex.assert_shape(jax.tree.leaves(continued), (len(NAMES), batch, STEPS))
  uncut = {
    name: leaf for name, leaf in changes.items() if not name.startswith("top_")
  }
  chex.assert_tree_all_finite((frozen, patched, uncut, continued))


def test_dense_against_dense_is_zero(pair, text):
  same = dataclasses.replace(pair, pruned=pair.params["layers"])
  states = driver.patched(CONFIG, same, text, jax.random.key(0))
  h_KBRD = driver.frozen(CONFIG, same, text, jnp.concatenate([MASKS, ~MASKS]))
  for reference, each in (
    (h_KBRD[LAYERS], h_KBRD),
    *((states["dense"][0], state) for state in states.values()),
  ):
    np.testing.assert_array_equal(each, jnp.broadcast_to(reference, each.shape))


def test_one_program_for_all_masks(pair, text):
  before = driver.frozen._cache_size()
  driver.frozen(CONFIG, pair, text, jnp.concatenate([MASKS, ~MASKS])[::-1])
  driver.frozen(CONFIG, pair, text, jnp.concatenate([~MASKS, MASKS]))
  assert driver.frozen._cache_size() <= max(before, 1)


def test_other_models_are_refused():
  dense, pruned = make_models()
  other = {**pruned, "final_norm": {"scale": dense["final_norm"]["scale"] * 2}}
  with pytest.raises(ValueError, match="final_norm differs"):
    driver.make_pair(CONFIG, dense, CONFIG, other)
  narrow = dataclasses.replace(CONFIG, mlp_dim=8)
  with pytest.raises(ValueError, match="mlp_dim: 12 and 8"):
    driver.make_pair(CONFIG, dense, narrow, pruned)


def test_a_bias_of_one_side_is_zero_on_the_other():
  dense, pruned = make_models()
  down = {**pruned["layers"]["mlp"]["down"], "bias": jnp.ones((LAYERS, 8))}
  mlp = {**pruned["layers"]["mlp"], "down": down}
  pair = driver.make_pair(
    CONFIG,
    dense,
    CONFIG,
    {**pruned, "layers": {**pruned["layers"], "mlp": mlp}},
  )
  np.testing.assert_array_equal(
    pair.params["layers"]["mlp"]["down"]["bias"], np.zeros((LAYERS, 8))
  )
  np.testing.assert_array_equal(pair.pruned["mlp"]["down"]["bias"], 1)
  assert "bias" not in dense["layers"]["mlp"]["down"]
