"""Dense against pruned on the same tokens, through the layers."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune import checkpoints
from jaxprune.models import generation
from jaxprune.models.decoder import forward, init, make_gates, unembed
from jaxprune.probes import scan
from jaxprune.probes.decoder import sequences
from jaxprune.probes.position import compare_position

CONFIG = tiny_llama(3)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 13)))
ROWS = jnp.asarray([[3, 4, 8], [2, 5, 8]])
VALID = jnp.ones(TOKENS.shape, bool)


# Each lens is a program of its own.
LENSES = pytest.mark.parametrize(
  "lens", ["final_norm", pytest.param("raw", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def models():
  """Filled by NumPy: drawn by JAX, every shape would be compiled for."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: init(CONFIG, jax.random.key(0)))
  dense = jax.tree.map(
    lambda w: jnp.asarray(rng.normal(0, 0.5, w.shape), jnp.float32), shapes
  )
  pruned = jax.tree.map(
    lambda w: w * (rng.random(w.shape) < 0.8).astype(np.float32), dense
  )
  return dense, pruned


def compare(
  dense,
  pruned,
  tokens=TOKENS,
  valid=VALID,
  rows=ROWS,
  *,
  temperature=1.0,
  lens="final_norm",
  gates=None,
  pruned_gates=None,
):
  """Every argument given, so that calls of one shape are one program."""
  return sequences.compare_sequences(
    sequences.Model(config=CONFIG, params=dense, gates=gates),
    sequences.Model(config=CONFIG, params=pruned, gates=pruned_gates),
    sequences.Reading(tokens=tokens, valid=valid, rows=rows),
    temperature=temperature,
    lens=lens,
  )


@jax.jit
def measure_all(h_2LBRD, g_2LBRD, z_2LBRV, y_2LBRV):
  """The records of vectors, whatever lens the logits came through."""
  measure = lambda h, g, z, y: compare_position(h, g, z, y, 0.7)
  for _ in range(4):
    measure = jax.vmap(measure)
  return measure(h_2LBRD, g_2LBRD, z_2LBRV, y_2LBRV)


@functools.partial(jax.jit, static_argnames="lens")
def one_at_a_time(models, lens):
  """Vectors after every sublayer, and the output logits of both models."""

  def states(tape):
    return tape["residual_mid"], tape["residual_out"]

  runs = [forward(CONFIG, p, TOKENS, observe=states) for p in models]
  h_2LBRD, g_2LBRD = (
    jax.vmap(jax.vmap(lambda x: scan.pick_rows(x, ROWS)))(jnp.stack(run[1]))
    for run in runs
  )
  z_2LBRV, y_2LBRV = (
    unembed(CONFIG, p, x, lens) for p, x in zip(models, (h_2LBRD, g_2LBRD))
  )
  outputs = [
    unembed(CONFIG, p, scan.pick_rows(run[0], ROWS))
    for p, run in zip(models, runs)
  ]
  return (h_2LBRD, g_2LBRD, z_2LBRV, y_2LBRV), outputs


def fields(tree):
  return {
    f.name: np.asarray(getattr(tree, f.name)) for f in dataclasses.fields(tree)
  }


@LENSES
def test_equals_one_model_at_a_time(models, lens):
  inner, output = compare(*models, temperature=0.7, lens=lens)
  vectors, z = one_at_a_time(models, lens)
  expected, z = jax.device_get((measure_all(*vectors), z))
  for name, value in fields(expected).items():
    np.testing.assert_allclose(
      np.swapaxes(getattr(inner, name), 0, 1),
      value,
      rtol=2e-4,
      atol=2e-6,
      err_msg=name,
    )
  # The output does not depend on the lens: those are the model's own logits.
  np.testing.assert_allclose(
    output.rms_dz, np.sqrt(np.mean((z[1] - z[0]) ** 2, -1)), rtol=1e-4
  )


@LENSES
def test_dense_against_dense_is_exactly_zero(models, lens):
  dense, _ = models
  copy = jax.tree.map(jnp.array, dense)
  for tree in compare(dense, copy, lens=lens):
    for name, value in fields(tree).items():
      if name in ("cos_h", "cos_z", "cos_z_centred", "cos_p"):
        np.testing.assert_array_equal(value, 1, err_msg=name)
      elif not name.startswith(("entropy", "margin", "token")):
        np.testing.assert_array_equal(value, 0, err_msg=name)


@pytest.mark.slow
def test_gates_of_the_pruned_side(models):
  """Dropping by gates is dropping by zeroed output projections."""
  dense, _ = models
  gates = make_gates(CONFIG, attention=(0,), mlp=(2,))
  zeroed = jax.tree.map(np.array, dense)
  for group, kernel, layer in (("attention", "output", 0), ("mlp", "down", 2)):
    zeroed["layers"][group][kernel]["kernel"][layer] = 0
  by_gates = compare(dense, dense, gates=make_gates(CONFIG), pruned_gates=gates)
  by_zeros = compare(dense, jax.tree.map(jnp.asarray, zeroed))
  for a, b in zip(by_gates, by_zeros):
    np.testing.assert_allclose(a.kl, b.kl, rtol=1e-4, atol=1e-6)
  assert float(by_gates[1].kl.min()) > 0


def test_leaves_are_finite_and_have_the_shape_of_the_rows(models):
  inner, output = compare(*models)
  chex.assert_tree_shape_prefix(inner, (CONFIG.num_layers, 2, *ROWS.shape))
  chex.assert_tree_shape_prefix(output, ROWS.shape)
  chex.assert_tree_all_finite((inner, output))


def test_the_output_is_measured_by_what_is_given(models):
  def measure(h_D, g_D, z_V, y_V, temperature):
    return {"size": jnp.linalg.norm(y_V - z_V) / temperature}

  reading = sequences.Reading(tokens=TOKENS, valid=VALID, rows=ROWS)
  sides = [sequences.Model(config=CONFIG, params=tree) for tree in models]
  _, found = sequences.compare_sequences(
    *sides, reading, temperature=2.0, measure=measure
  )
  _, output = compare(*models)
  np.testing.assert_allclose(
    found["size"], output.rms_dz * np.sqrt(CONFIG.vocab_size) / 2, rtol=1e-4
  )


def test_left_padding_changes_nothing(models):
  pad = 4  # the last tokens fall out; no row looks at them
  padded = jnp.pad(TOKENS[:, :-pad], ((0, 0), (pad, 0)))
  valid = VALID.at[:, :pad].set(False)
  _, bare = compare(*models)
  _, shifted = compare(*models, padded, valid, ROWS + pad)
  np.testing.assert_allclose(bare.kl, shifted.kl, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(bare.cos_h, shifted.cos_h, rtol=1e-5)


def test_models_of_other_shapes_are_refused():
  other = dataclasses.replace(CONFIG, vocab_size=41)
  with pytest.raises(ValueError, match="vocab_size: 40 and 41"):
    sequences.check_same_shape(CONFIG, other)


def test_one_program_per_shape(models):
  compare(*models)
  programs = sequences.compare_sequences._cache_size()
  for shift in range(3):
    compare(*models, (TOKENS + shift) % 40, temperature=1.0 + shift)
  assert sequences.compare_sequences._cache_size() == programs


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stories260K", "qwen2_random"])
def test_official_teacher_forced_log(shared, model):
  golden = shared / "golden" / model
  index = json.loads((golden / "index.json").read_text())
  theirs = json.loads((golden / "generation.json").read_text())[
    "teacher_forced"
  ]
  config, dense = checkpoints.load_params(
    golden / "dense"
    if model == "qwen2_random"
    else (shared / "weights" / model)
  )
  _, pruned = checkpoints.load_params(golden / index["analysis_pruned_folder"])
  prompt = jnp.asarray(np.load(golden / "tokens.npz")["prompt"])
  steps = len(theirs["emb_cos_sim_flat"])
  text = generation.generate(
    config,
    dense,
    prompt,
    max_new_tokens=steps,
    sampling=generation.Sampling(eos_ids=()),
  )
  tokens = jnp.concatenate([prompt, text.tokens[:, :-1]], axis=1)
  rows = jnp.arange(prompt.shape[1] - 1, tokens.shape[1])[None]
  _, ours = sequences.compare_sequences(
    sequences.Model(config=config, params=dense),
    sequences.Model(config=config, params=pruned),
    sequences.Reading(
      tokens=tokens, valid=jnp.ones(tokens.shape, bool), rows=rows
    ),
  )
  for name, field in {
    "cos_h": "emb_cos_sim_flat",
    "cos_z": "logits_cos_sim_flat",
    "cos_p": "prob_cos_sim_flat",
    "kl": "kl_divergence_flat",
    "kl_estimate": "kl_estimates",
    "one_minus_cos_p_estimate": "cos_estimates",
  }.items():
    np.testing.assert_allclose(
      getattr(ours, name)[0],
      np.ravel(theirs[field]),
      atol=1e-4,
      rtol=1e-4,
      err_msg=name,
    )
