"""Signals, fallbacks and their cost, against NumPy and against plain runs."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.models import decoder, decoding
from jaxprune.pocket import training
from jaxprune.probes import monitoring
from jaxprune.probes.decoder import monitoring as decoder_monitoring

CONFIG = dataclasses.replace(
  training.model_config(40),
  num_layers=2,
  embed_dim=16,
  mlp_dim=24,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  sliding_layers=(False,) * 2,
  max_positions=32,
)
STEPS = 7
PROMPTS = [(3, 14, 15), (9, 26, 5, 35, 8), (7,), (2, 3, 8, 4), (6, 2, 6), (4,)]


@pytest.fixture(scope="module")
def models():
  dense = training.initial_params(CONFIG, jax.random.key(0))
  rng = np.random.default_rng(1)
  return dense, jax.tree.map(
    lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), dense
  )


def write(models, signal, threshold, *, cache="own", eos_ids=()):
  """Monitored texts of PROMPTS, leaves as NumPy arrays."""
  length = max(map(len, PROMPTS))
  tokens = np.array([(0,) * (length - len(p)) + p for p in PROMPTS], np.int32)
  valid = np.array(
    [[i >= length - len(p) for i in range(length)] for p in PROMPTS]
  )
  index = monitoring.SIGNALS.index(signal)
  policy = monitoring.Policy(
    signal=jnp.full(len(PROMPTS), index, jnp.int32),
    threshold=jnp.broadcast_to(
      jnp.asarray(threshold, jnp.float32), (len(PROMPTS),)
    ),
  )
  return jax.tree.map(
    np.asarray,
    decoder_monitoring.write(
      CONFIG,
      *models,
      jnp.asarray(tokens),
      jnp.asarray(valid),
      policy,
      monitoring.Writing(num_steps=STEPS, cache=cache, eos_ids=eos_ids),
      key=jax.random.key(5),
    ),
  )


step_risks = jax.jit(monitoring.step_risks)


def test_risks_are_scalars_and_thresholds_are_data(models):
  risks = step_risks(jnp.arange(5.0), jnp.ones(5), 0.5)
  chex.assert_shape(jax.tree.leaves(risks), ())
  chex.assert_tree_all_finite(risks)
  texts = write(models, "margin", np.inf)
  before = decoder_monitoring._write._cache_size()
  others = write(models, "kl", 0.1)
  assert decoder_monitoring._write._cache_size() == before
  chex.assert_shape(jax.tree.leaves((texts, others)), (STEPS, len(PROMPTS)))
  chex.assert_tree_all_finite((texts, others))


def logits_after(params, text):
  """Logits after every token of a text, by the plain forward pass."""
  padded = np.zeros((1, 16), np.int32)
  padded[0, : len(text)] = text
  return np.asarray(_forward(params, jnp.asarray(padded)))[0, : len(text)]


@jax.jit
def _forward(params, tokens_BT):
  return decoder.unembed(
    CONFIG, params, decoder.forward(CONFIG, params, tokens_BT)[0]
  )


def test_risks_of_one_step():
  rng = np.random.default_rng(0)
  z_V, zq_V = rng.normal(0, 2, (2, 9))
  T = 1.4
  p_V, q_V = (np.exp(each / T) / np.exp(each / T).sum() for each in (z_V, zq_V))
  found = step_risks(
    jnp.asarray(z_V, jnp.float32), jnp.asarray(zq_V, jnp.float32), 0.25, T
  )
  top = np.sort(zq_V)
  dz_V = (zq_V - z_V) / T
  expected = {
    "margin": top[-2] - top[-1],
    "entropy": -(q_V * np.log(q_V)).sum(),
    "variance": (q_V * (zq_V / T - q_V @ zq_V / T) ** 2).sum(),
    "random": 0.25,
    "var_p": (p_V * (dz_V - p_V @ dz_V) ** 2).sum(),
    "kl": (p_V * np.log(p_V / q_V)).sum(),
    "flip": float(z_V.argmax() != zq_V.argmax()),
  }
  assert tuple(expected) == monitoring.SIGNALS
  for name, value in expected.items():
    assert getattr(found, name) == pytest.approx(value, rel=1e-4), name


def test_the_ends_of_every_sweep_are_the_two_models(models):
  for threshold, params in ((np.inf, models[1]), (-np.inf, models[0])):
    found = write(models, "margin", threshold)
    assert (found.deferred == (threshold < 0)).all()
    for row, prompt in enumerate(PROMPTS):
      text = [*prompt, *found.tokens[:, row].tolist()]
      chosen = logits_after(params, text[:-1]).argmax(-1)
      np.testing.assert_array_equal(
        text[len(prompt) :], chosen[len(prompt) - 1 :]
      )


def test_a_fallback_at_every_flip_gives_the_dense_text(models):
  dense = write(models, "margin", -np.inf)
  free = write(models, "margin", np.inf)
  found = write(models, "flip", 0.5)
  np.testing.assert_array_equal(found.tokens, dense.tokens)
  np.testing.assert_array_equal(found.deferred, found.risks.flip == 1)
  assert 0 < found.deferred.mean() < 1
  assert (free.tokens != dense.tokens).any()


@pytest.mark.parametrize("signal", ["margin", "random", "kl"])
def test_each_token_is_of_the_model_that_decided(models, signal):
  """A threshold per row; texts are read again by both, without a cache."""
  risk_TB = getattr(write(models, signal, np.inf).risks, signal)
  found = write(models, signal, np.median(risk_TB, axis=0))
  risk_TB = getattr(found.risks, signal)
  assert 0.2 < found.deferred.mean() < 0.8
  for row, prompt in enumerate(PROMPTS):
    text = [*prompt, *found.tokens[:, row].tolist()]
    z_TV, zq_TV = (
      logits_after(params, text[:-1])[len(prompt) - 1 :] for params in models
    )
    deferred_T = found.deferred[:, row]
    expected_T = np.where(deferred_T, z_TV.argmax(-1), zq_TV.argmax(-1))
    np.testing.assert_array_equal(text[len(prompt) :], expected_T)
    if signal == "random":
      continue
    again = [step_risks(*each, 0.0) for each in zip(z_TV, zq_TV)]
    np.testing.assert_allclose(
      risk_TB[:, row],
      [getattr(each, signal) for each in again],
      rtol=1e-3,
      atol=1e-4,
    )


def test_random_hands_back_at_the_rate_asked_for(models):
  found = write(models, "random", 0.7)
  assert ((0 <= found.risks.random) & (found.risks.random < 1)).all()
  assert abs(found.deferred.mean() - 0.3) < 0.2  # 42 draws
  np.testing.assert_array_equal(
    found.deferred, write(models, "random", 0.7).deferred
  )


def test_shared_cache_of_two_equal_models_is_one_model(models):
  same = (models[1], models[1])
  free = write(models, "margin", np.inf)
  found = write(same, "random", 0.5, cache="shared")
  np.testing.assert_array_equal(found.tokens, free.tokens)
  assert 0 < found.deferred.mean() < 1
  assert (found.risks.kl < 1e-6).all() and (found.risks.flip == 0).all()


@jax.jit
def step(params, cache, token_BT):
  """Logits after one more token, and the cache with it."""
  x_BTD, _, cache = decoding.decode_step(CONFIG, params, cache, token_BT)
  return decoder.unembed(CONFIG, params, x_BTD[:, 0]), cache


@pytest.mark.parametrize("row", [1, 2])
def test_shared_cache_holds_what_the_deciding_model_wrote(models, row):
  """Against a run of one text that keeps the whole cache of the decider."""
  found = write(models, "random", 0.5, cache="shared")
  prompt, deferred_T = PROMPTS[row], found.deferred[:, row]
  assert deferred_T.any() and not deferred_T.all()
  tokens_BT = jnp.asarray([(0, *prompt)])
  valid_BT = jnp.asarray([[False] + [True] * len(prompt)])
  _, _, cache = jax.jit(
    lambda params, tokens_BT, valid_BT: decoding.prefill(
      CONFIG, params, tokens_BT, capacity=16, valid_BT=valid_BT
    )
  )(models[1], tokens_BT[:, :-1], valid_BT[:, :-1])
  token = prompt[-1]
  for t in range(STEPS):
    read = [step(params, cache, jnp.asarray([[token]])) for params in models]
    z_V, zq_V = (np.asarray(z_BV)[0] for z_BV, _ in read)
    # Numbers, and not only tokens, see what is in the cache.
    again = step_risks(z_V, zq_V, 0.0)
    for name in ("entropy", "kl"):
      assert getattr(found.risks, name)[t, row] == pytest.approx(
        float(getattr(again, name)), rel=1e-4
      )
    cache = read[0 if deferred_T[t] else 1][1]
    token = int((z_V if deferred_T[t] else zq_V).argmax())
    assert token == found.tokens[t, row]


def test_texts_end(models):
  free = write(models, "margin", np.inf)
  end = int(free.tokens[2, 0])
  found = write(models, "margin", np.inf, eos_ids=(end,))
  for row in range(len(PROMPTS)):
    places = np.flatnonzero(free.tokens[:, row] == end)
    length = places[0] + 1 if places.size else STEPS
    assert found.alive[:, row].tolist() == [t < length for t in range(STEPS)]


def test_cost_of_hand_backs():
  """Three texts of 4 steps: never, steps 0 and 2, only after its end."""
  deferred = np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
  alive = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]], bool)
  lengths = np.array([5, 3, 9])
  # To decide step 2 the dense model has read 3 + 2 tokens.
  assert monitoring.dense_forwards(
    deferred, alive, lengths, "own"
  ).tolist() == [0, 5, 0]
  assert monitoring.dense_forwards(
    deferred, alive, lengths, "shared"
  ).tolist() == [0, 2, 0]
  with pytest.raises(ValueError, match="cache='both'"):
    monitoring.dense_forwards(deferred, alive, lengths, "both")


def test_risk_and_coverage_by_hand():
  coverage, accuracy = monitoring.risk_coverage(
    [0.3, 0.1, 0.9, 0.5], [1, 1, 0, 0]
  )
  assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
  np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 1 / 2])
  # The two in the middle tie: each place counts half an answer.
  _, accuracy = monitoring.risk_coverage([0.3, 0.1, 0.9, 0.3], [1, 1, 0, 0])
  np.testing.assert_allclose(accuracy, [1, 3 / 4, 2 / 3, 1 / 2])


def test_area_of_nothing_known_and_of_all_known():
  correct = np.array([1, 0, 1, 1, 0])
  assert monitoring.coverage_area(np.zeros(5), correct) == pytest.approx(0.6)
  best = (1 + 1 + 1 + 3 / 4 + 3 / 5) / 5
  assert monitoring.coverage_area(1 - correct, correct) == pytest.approx(best)
  rng = np.random.default_rng(0)
  areas = [
    monitoring.coverage_area(rng.random(5), correct) for _ in range(4000)
  ]
  assert np.mean(areas) == pytest.approx(0.6, abs=0.01)
  assert max(areas) <= best + 1e-12


def test_bad_input_is_named(models):
  with pytest.raises(ValueError, match="shapes"):
    monitoring.risk_coverage([1.0], [1, 0])
  with pytest.raises(ValueError, match="NaN"):
    monitoring.risk_coverage([np.nan], [1])
  with pytest.raises(ValueError, match="cache='both'"):
    write(models, "margin", 0.0, cache="both")
