"""Decoders in lockstep: each protocol against a decoding done by hand."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params, tiny_llama

from jaxprune import checkpoints
from jaxprune.models import decoding
from jaxprune.models.decoder import final_norm, forward, unembed
from jaxprune.probes import trajectories
from jaxprune.probes.decoder import sequences

CONFIG = tiny_llama()
PROMPT = np.random.default_rng(1).integers(0, 40, (3, 5), np.int32)
VALID = np.arange(5)[None] >= np.array([2, 0, 0])[:, None]
STEPS = 7
ALL = (
  *trajectories.HISTORY_SPLIT,
  trajectories.FREE_RUNNING,
  trajectories.CONTROL,
  *trajectories.HANDOFF,
  trajectories.resynchronised(1),
  trajectories.resynchronised(3),
)


@functools.cache
def model(seed):
  return random_params(CONFIG, np.random.default_rng(seed), 0.5)


def dense():
  return model(0)


@functools.cache
def pruned():
  return jax.tree.map(
    lambda a, b: jnp.asarray(np.asarray(a) + 0.3 * np.asarray(b)),
    model(0),
    model(1),
  )


def side(params, config=CONFIG):
  return sequences.Model(config=config, params=params)


def run(decodings=ALL, **options):
  return sequences.compare_decodings(
    side(dense()),
    side(pruned()),
    PROMPT,
    VALID,
    tuple(decodings),
    sequences.Sampling(num_steps=STEPS, **options),
    key=jax.random.key(3),
  )


def first_divergence(records):
  """First step [B] at which another token was chosen; STEPS if none was."""
  differs = np.asarray(records.token_dense != records.token_pruned)
  return np.where(differs.any(0), differs.argmax(0), STEPS)


@pytest.fixture(scope="module")
def greedy():
  return run()


@jax.jit
def prefill(weights, tokens, valid):
  """The cache of all tokens but the last, with room for the steps."""
  return decoding.prefill(
    CONFIG,
    weights,
    tokens[:, :-1],
    capacity=tokens.shape[1] + STEPS,
    valid_BT=valid[:, :-1],
  )[2]


@jax.jit
def decode(weights, cache, token):
  """Logits after one more token, and the cache with it."""
  x, _, cache = decoding.decode_step(CONFIG, weights, cache, token[:, None])
  return unembed(CONFIG, weights, x[:, 0]), cache


def by_hand(weights_prompt, weights_decode, own, others=None):
  """Decode with an explicit cache; returns logits [T, B, V] and tokens."""
  cache = prefill(weights_prompt, PROMPT, VALID)
  token, logits, chosen = PROMPT[:, -1], [], []
  for t in range(STEPS):
    z, cache = decode(weights_decode, cache, token)
    logits.append(np.asarray(z))
    chosen.append(logits[-1].argmax(-1))
    token = jnp.asarray(chosen[-1] if own else others[t], PROMPT.dtype)
  return np.stack(logits), np.stack(chosen)


def kl(z, y):
  def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  log_p, log_q = log_softmax(z), log_softmax(y)
  return np.sum(np.exp(log_p) * (log_p - log_q), -1)


def test_each_decoding_against_one_by_hand(greedy):
  z, tokens = by_hand(dense(), dense(), own=True)
  cases = {
    "free_running": by_hand(pruned(), pruned(), own=True),
    "teacher_forced": by_hand(pruned(), pruned(), own=False, others=tokens),
    "dense_then_pruned": by_hand(dense(), pruned(), own=True),
    "pruned_then_dense": by_hand(pruned(), dense(), own=True),
  }
  for name, (y, chosen) in cases.items():
    records = greedy[name]
    np.testing.assert_array_equal(records.token_dense, tokens)
    np.testing.assert_array_equal(records.token_pruned, chosen, err_msg=name)
    np.testing.assert_allclose(
      records.position.kl, kl(z, y), rtol=1e-3, atol=1e-5, err_msg=name
    )
  # The decodings differ, or the test could not tell them apart.
  means = [float(greedy[name].position.kl.mean()) for name in cases]
  assert len({round(m, 4) for m in means}) == len(means)


def test_leaves_are_finite_and_have_a_step_and_a_text(greedy):
  assert set(greedy) == {decoding.name for decoding in ALL}
  chex.assert_tree_shape_prefix(greedy, (STEPS, len(PROMPT)))
  chex.assert_tree_all_finite(greedy)


def test_direct_and_history_error_against_whole_sequences(greedy):
  """Direct: pruned weights, dense keys and values of all earlier tokens."""
  z, tokens = by_hand(dense(), dense(), own=True)
  for name, past, now in (
    ("direct", dense(), pruned()),
    ("history", pruned(), dense()),
  ):
    for t in (0, 1, STEPS - 1):
      # Padded to one length, so that all of them are one program.
      pad = ((0, 0), (STEPS - 1 - t, 0))
      text = np.pad(np.concatenate([PROMPT, tokens[:t].T], axis=1), pad)
      valid = np.pad(np.pad(VALID, ((0, 0), (0, t)), constant_values=True), pad)
      cache = prefill(past, text, valid)
      y, _ = decode(now, cache, jnp.asarray(text[:, -1], PROMPT.dtype))
      np.testing.assert_allclose(
        greedy[name].position.kl[t],
        kl(z[t], y),
        rtol=1e-3,
        atol=1e-5,
        err_msg=f"{name} {t}",
      )


def test_resynchronised(greedy):
  every = greedy["resynchronised_1"]
  forced = greedy["teacher_forced"]
  np.testing.assert_allclose(
    every.position.kl, forced.position.kl, rtol=1e-5, atol=1e-7
  )
  assert bool(every.aligned.all())
  third = greedy["resynchronised_3"]
  for step in (0, 3, 6):  # just put back
    np.testing.assert_allclose(
      third.position.kl[step], forced.position.kl[step], rtol=1e-5, atol=1e-7
    )
  np.testing.assert_allclose(
    third.position.kl[:3],
    greedy["free_running"].position.kl[:3],
    rtol=1e-5,
    atol=1e-7,
  )


def test_greedy_control_is_the_dense_decoding(greedy):
  control = greedy["control"]
  np.testing.assert_array_equal(control.position.kl, 0)
  np.testing.assert_array_equal(control.token_pruned, control.token_dense)
  assert (first_divergence(control) == STEPS).all()


@pytest.mark.slow
def test_control_with_another_seed_leaves_the_text():
  found = run(
    (trajectories.CONTROL, trajectories.FREE_RUNNING), temperature=1.0
  )
  control = found["control"]
  assert not bool(control.aligned[-1].all())
  aligned = np.asarray(control.aligned)
  np.testing.assert_array_equal(np.asarray(control.position.kl)[aligned], 0)
  assert np.asarray(control.position.kl)[~aligned].min() > 1e-3


@pytest.mark.slow
def test_dense_against_dense_draws_the_same_tokens():
  found = sequences.compare_decodings(
    side(dense()),
    side(dense()),
    PROMPT,
    VALID,
    (trajectories.CONTROL, trajectories.FREE_RUNNING),
    sequences.Sampling(num_steps=STEPS, temperature=1.0),
    key=jax.random.key(0),
  )
  records = found["free_running"]
  assert bool(records.aligned.all())
  for name in ("kl", "rho_h", "rho_z", "tv", "max_abs_dz"):
    np.testing.assert_array_equal(getattr(records.position, name), 0)


def test_aligned_is_the_common_prefix(greedy):
  records = greedy["free_running"]
  same = np.asarray(records.token_dense == records.token_pruned)
  expected = np.vstack(
    [np.ones((1, 3), bool), np.cumprod(same, axis=0)[:-1].astype(bool)]
  )
  np.testing.assert_array_equal(records.aligned, expected)
  first = np.where(same.all(0), STEPS, np.argmin(same, axis=0))
  np.testing.assert_array_equal(first_divergence(records), first)


def test_a_decoding_needs_its_source():
  with pytest.raises(ValueError, match="add that"):
    run((trajectories.resynchronised(2),))
  with pytest.raises(ValueError, match="repeat"):
    run((trajectories.FREE_RUNNING, trajectories.FREE_RUNNING))
  with pytest.raises(ValueError, match="every 0 steps"):
    trajectories.resynchronised(0)


@pytest.mark.slow
def test_prompt_of_one_token_and_an_end_of_text():
  @jax.jit
  def last(weights):
    x = forward(CONFIG, weights, PROMPT[:, :1])[0]
    return (
      unembed(CONFIG, weights, x)[:, 0],
      final_norm(CONFIG, weights, x)[:, 0],
    )

  (z, h), (y, g) = (jax.device_get(last(p)) for p in (dense(), pruned()))
  stop = int(z[2].argmax())  # what the third dense text begins with
  found = sequences.compare_decodings(
    side(dense()),
    side(pruned()),
    PROMPT[:, :1],
    jnp.ones((3, 1), bool),
    (trajectories.FREE_RUNNING,),
    sequences.Sampling(num_steps=3, eos_ids=(stop,)),
    key=jax.random.key(0),
  )["free_running"]
  np.testing.assert_allclose(
    found.position.kl[0], kl(z, y), rtol=1e-3, atol=1e-5
  )
  cos = (
    np.sum(h * g, -1) / np.linalg.norm(h, axis=-1) / np.linalg.norm(g, axis=-1)
  )
  np.testing.assert_allclose(found.position.cos_h[0], cos, atol=1e-5)
  ends, pruned_ends = (
    np.asarray(t) == stop for t in (found.token_dense, found.token_pruned)
  )
  ended = np.cumsum(ends | pruned_ends, axis=0) > 0
  expected = np.vstack([np.ones((1, 3), bool), ~ended[:-1]])
  np.testing.assert_array_equal(found.alive, expected)
  assert found.alive[:, :2].all(0).any() and not found.alive[:, 2].all()


@pytest.mark.slow
def test_official_free_running_log(shared):
  golden = shared / "golden" / "qwen2_random"
  index = json.loads((golden / "index.json").read_text())
  theirs = json.loads((golden / "generation.json").read_text())
  config, dense = checkpoints.load_params(golden / "dense")
  _, pruned = checkpoints.load_params(golden / index["analysis_pruned_folder"])
  prompt = jnp.asarray(np.load(golden / "tokens.npz")["prompt"])
  steps = len(theirs["free_running"]["emb_cos_sim_flat"])
  found = sequences.compare_decodings(
    side(dense, config),
    side(pruned, config),
    prompt,
    jnp.ones(prompt.shape, bool),
    (trajectories.TEACHER_FORCED, trajectories.FREE_RUNNING),
    sequences.Sampling(num_steps=steps),
    key=jax.random.key(0),
  )
  for name, records in found.items():
    for field, log in {
      "cos_h": "emb_cos_sim_flat",
      "cos_z": "logits_cos_sim_flat",
      "cos_p": "prob_cos_sim_flat",
      "kl_estimate": "kl_estimates",
      "one_minus_cos_p_estimate": "cos_estimates",
    }.items():
      np.testing.assert_allclose(
        getattr(records.position, field)[:, 0],
        np.ravel(theirs[name][log]),
        atol=1e-4,
        rtol=1e-4,
        err_msg=f"{name} {field}",
      )
