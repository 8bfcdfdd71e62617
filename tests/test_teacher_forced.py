"""Dense against pruned on the same tokens, through the layers."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params, tiny_llama

from jaxprune import checkpoints
from jaxprune.models import generation
from jaxprune.models.decoder import forward, make_gates, unembed
from jaxprune.probes import scan
from jaxprune.probes.decoder import sequences
from jaxprune.probes.position import compare_position

CONFIG = tiny_llama(3)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 40, (2, 13)))
ROWS = jnp.asarray([[3, 4, 8], [2, 5, 8]])
VALID = jnp.ones(TOKENS.shape, bool)


@pytest.fixture(scope="module")
def models():
  """Random weights, and the same with a fifth of them gone."""
  rng = np.random.default_rng(0)
  dense = random_params(CONFIG, rng, 0.5)
  pruned = jax.tree.map(
    lambda w: w * (rng.random(w.shape) < 0.8).astype(np.float32), dense
  )
  return dense, pruned


def vectors(h_D, g_D, z_V, y_V, temperature):
  """What is compared, instead of a comparison: a program that is soon made."""
  del temperature
  return h_D, g_D, z_V, y_V


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
  **measures,
):
  """Every argument given, so that calls of one shape are one program."""
  return sequences.compare_sequences(
    sequences.Model(config=CONFIG, params=dense, gates=gates),
    sequences.Model(config=CONFIG, params=pruned, gates=pruned_gates),
    sequences.Reading(tokens=tokens, valid=valid, rows=rows),
    temperature=temperature,
    lens=lens,
    **measures,
  )


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


@pytest.mark.parametrize("lens", ["final_norm", "raw"])
def test_equals_one_model_at_a_time(models, lens):
  inner, output = compare(*models, lens=lens, inside=vectors, measure=vectors)
  expected, z = jax.device_get(one_at_a_time(models, lens))
  for found, value in zip(inner, expected):
    np.testing.assert_allclose(
      np.swapaxes(found, 0, 1), value, rtol=1e-4, atol=1e-5
    )
  # The output does not depend on the lens: those are the model's own logits.
  for found, value in zip(output[2:], z):
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_records_are_those_of_the_vectors(models):
  """At the temperature that is given."""
  both = compare(*models, inside=vectors, measure=vectors)
  for vectors_, records in zip(both, compare(*models, temperature=0.7)):
    rows = [x.reshape(-1, x.shape[-1]) for x in vectors_]
    for name, value in fields(measure_all(*rows)).items():
      np.testing.assert_allclose(
        getattr(records, name).ravel(),
        value,
        rtol=2e-4,
        atol=2e-6,
        err_msg=name,
      )


@jax.jit
@functools.partial(jax.vmap, in_axes=0)
def measure_all(h_D, g_D, z_V, y_V):
  return compare_position(h_D, g_D, z_V, y_V, 0.7)


def test_dense_against_dense_is_exactly_zero(models):
  dense, _ = models
  copy = jax.tree.map(jnp.array, dense)
  for tree in compare(dense, copy):
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
  open_ = make_gates(CONFIG)
  by_gates, by_zeros = (
    compare(
      dense,
      pruned,
      gates=open_,
      pruned_gates=gates,
      inside=vectors,
      measure=vectors,
    )
    for pruned, gates in (
      (dense, gates),
      (jax.tree.map(jnp.asarray, zeroed), open_),
    )
  )
  for a, b in zip(jax.tree.leaves(by_gates), jax.tree.leaves(by_zeros)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  _, _, z_BRV, y_BRV = by_gates[1]
  assert float(jnp.abs(z_BRV - y_BRV).max(-1).min()) > 0


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
    *sides, reading, temperature=2.0, measure=measure, inside=measure
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
def test_official_teacher_forced_log(shared):
  golden = shared / "golden" / "qwen2_random"
  index = json.loads((golden / "index.json").read_text())
  theirs = json.loads((golden / "generation.json").read_text())[
    "teacher_forced"
  ]
  config, dense = checkpoints.load_params(golden / "dense")
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
    inside=lambda h_D, *_: h_D[0],  # the log is of the output
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
