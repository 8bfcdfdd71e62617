"""Every family against stock transformers: one set of checks, one row each.

What a family needs beyond that is in `hf_models`; the four like Llama have
their own checks in test_decoder and its neighbours.
"""

import functools

import chex
import hf_models
import jax
import numpy as np
import pytest

from jaxprune import models
from jaxprune.models import generation

# Each family, and each way in which one differs from itself.
MODELS = {
  # Small bounds, so that a forgotten cap shows; windows shorter than a text.
  "gemma2": (
    "gemma2",
    dict(
      sliding_window=5,
      query_pre_attn_scalar=24,
      attn_logit_softcapping=1.5,
      final_logit_softcapping=2.0,
    ),
  ),
  "gemma3_text": (
    "gemma3_text",
    dict(
      head_dim=16,
      sliding_window=5,
      layer_types=["sliding_attention", "full_attention"],
      rope_theta=1e6,
      rope_scaling={"rope_type": "linear", "factor": 8.0},
      query_pre_attn_scalar=24,
    ),
  ),
  "olmo2": ("olmo2", dict(rope_theta=5e5)),
  "phi3": ("phi3", dict(partial_rotary_factor=0.75, sliding_window=6)),
  "gpt2": ("gpt2", {}),
  "gpt_neox": ("gpt_neox", {}),
  "gpt_neox, sequential": (
    "gpt_neox",
    dict(
      use_parallel_residual=False,
      attention_bias=False,
      rotary_pct=1.0,
      rotary_emb_base=100,
    ),
  ),
  "opt": ("opt", {}),
  "opt, no bias": ("opt", dict(enable_bias=False)),
}
LENGTHS = (9, 6, 2)


@functools.cache
def built(name):
  family, fields = MODELS[name]
  return hf_models.build(family, **fields)


@pytest.fixture(params=MODELS)
def model(request):
  return built(request.param)


def texts():
  """Tokens [3, 9], and what of them is no padding on the left."""
  tokens = np.random.default_rng(0).integers(1, 61, (3, 9))
  return tokens, np.arange(9)[None] >= 9 - np.asarray(LENGTHS)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, valid=None):
  x_BTD, _ = models.forward(config, params, tokens, valid_BT=valid)
  return models.unembed(config, params, x_BTD)


def test_logits_equal_stock_alone_and_in_a_padded_batch(model):
  stock, config, params = model
  tokens, valid = texts()
  ours = np.asarray(logits(config, params, tokens, valid))
  theirs = hf_models.logits(stock, tokens, valid)
  assert theirs.std() > 0.5  # or an absolute tolerance says nothing
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours[valid], theirs[valid], rtol=1e-5, atol=1e-5)
  for row, length in enumerate(LENGTHS):
    alone = hf_models.logits(stock, tokens[row : row + 1, 9 - length :])
    np.testing.assert_allclose(
      ours[row, 9 - length :], alone[0], rtol=1e-5, atol=1e-5
    )


def test_cached_greedy_texts_are_those_of_stock(model):
  stock, config, params = model
  tokens, valid = texts()
  expected = hf_models.greedy(stock, tokens, 8, valid)
  ours = generation.generate(
    config,
    params,
    tokens,
    max_new_tokens=8,
    valid_BT=valid,
    sampling=generation.Sampling(eos_ids=()),
  )
  np.testing.assert_array_equal(ours.tokens, expected)
  assert len(np.unique(expected)) > 2


def test_new_parameters_have_the_tree_of_a_checkpoint(model):
  _, config, params = model
  declared = jax.eval_shape(
    functools.partial(models.init, config), jax.random.key(0)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(declared, params)
