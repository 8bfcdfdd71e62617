"""A pruned model that follows texts, against every logit in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from tiny_config import random_params

from jaxprune.models import ModelConfig, forward, unembed
from jaxprune.probes.decoder import sequences
from jaxprune.studies.sweep import paths


@pytest.fixture(scope="module")
def models():
  config = ModelConfig.from_hf(
    dict(
      model_type="llama",
      vocab_size=23,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=256,
      bos_token_id=1,
      eos_token_id=2,
    )
  )
  rng = np.random.default_rng(0)
  params = random_params(config, rng)
  changed = jax.tree.map(
    lambda w: w + jnp.asarray(0.05 * rng.normal(size=w.shape), w.dtype), params
  )
  return tuple(
    sequences.Model(config=config, params=each) for each in (params, changed)
  )


@functools.partial(jax.jit, static_argnums=0)
def run_model(config, params, ids_BT):
  return unembed(config, params, forward(config, params, ids_BT)[0])


def logits(model, ids):
  """Of all lengths by one program: no position reads what comes after it."""
  padded_BT = np.pad(ids, (0, 100 - len(ids)))[None]
  z_BTV = run_model(model.config, model.params, padded_BT)
  return np.asarray(z_BTV[0, : len(ids)], np.float64)


def by_hand(dense, pruned, path):
  ids = [*path.prompt, *path.text][:-1]
  start = len(path.prompt) - 1
  z_RV, y_RV = (logits(model, ids)[start:] for model in (dense, pruned))
  p_RV, q_RV = (scipy.special.log_softmax(x, axis=1) for x in (z_RV, y_RV))
  text, steps = np.asarray(path.text), np.arange(len(path.text))
  top, top_pruned = z_RV.argmax(axis=1), y_RV.argmax(axis=1)
  flip = top != top_pruned
  ordered = np.sort(z_RV, axis=1)
  sure = ordered[:, -1] - ordered[:, -2] > 2
  return {
    "tokens": len(text),
    "flips": flip.sum(),
    "sure_flips": (flip & sure).sum(),
    "first_flip": flip.argmax() if flip.any() else len(text),
    "misses": (top_pruned != text).sum(),
    "dense_misses": (top != text).sum(),
    "kl": (np.exp(p_RV) * (p_RV - q_RV)).sum(),
    "nll": -q_RV[steps, text].sum(),
    "dense_nll": -p_RV[steps, text].sum(),
  }


def test_sums_of_every_path(models):
  rng = np.random.default_rng(1)
  # Two lengths that are read apart, and more paths than fit a batch.
  wanted = [
    paths.Path(
      prompt=rng.integers(0, 23, prompt).tolist(),
      text=rng.integers(0, 23, text).tolist(),
    )
    for prompt, text in ((5, 9), (1, 1), (60, 30), (3, 40), (70, 2))
  ]
  found = paths.follow(*models, paths.read(models[0], wanted))
  for index, path in enumerate(wanted):
    for name, value in by_hand(*models, path).items():
      np.testing.assert_allclose(
        found[name][index], value, rtol=2e-4, atol=2e-5, err_msg=name
      )


def test_a_model_follows_itself(models):
  dense, _ = models
  wanted = [paths.Path(prompt=[1, 4], text=[3, 5, 7])]
  found = paths.follow(dense, dense, paths.read(dense, wanted))
  assert found["kl"] == [0] and found["flips"] == [0]
  assert found["first_flip"] == found["tokens"] == [3]
  assert found["nll"] == found["dense_nll"]
