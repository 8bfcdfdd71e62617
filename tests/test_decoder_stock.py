"""The decoder beside stock transformers: logits of tiny models of each kind."""

import hf_models
import numpy as np
import pytest

from jaxprune import models
from tests.test_decoder import left_padded, logits, random_tokens


def assert_equals_stock(model, config, params, tokens):
  """Logits of a model from `hf_models.build`; returns those of stock."""
  expected = hf_models.logits(model, tokens)
  np.testing.assert_allclose(
    logits(config, params, tokens), expected, rtol=1e-5, atol=1e-5
  )
  return expected


@pytest.mark.parametrize(
  "family, kv_heads, tied",
  [
    # Heads are shared alike in all families: each number in one of them.
    ("llama", 1, True),
    ("mistral", 2, False),
    ("qwen2", 4, True),
    ("qwen3", 1, False),
  ],
)
def test_equals_stock(family, kv_heads, tied):
  model, config, params = hf_models.build(
    family, num_key_value_heads=kv_heads, tie_word_embeddings=tied
  )
  assert config.num_kv_heads == kv_heads and ("head" in params) != tied
  expected = assert_equals_stock(model, config, params, random_tokens(2, 9))
  assert expected.std() > 0.5  # or an absolute tolerance says nothing


def test_biases_equal_stock():
  model, config, params = hf_models.build(
    "llama", attention_bias=True, mlp_bias=True
  )
  assert "bias" in params["layers"]["attention"]["output"]
  assert "bias" in params["layers"]["mlp"]["down"]
  assert_equals_stock(model, config, params, random_tokens(2, 9))


@pytest.mark.parametrize(
  "kind, length",
  [
    *((kind, 40) for kind in hf_models.ROPES),
    # Of the others the angles do not depend on the length.
    *((kind, 12) for kind in ("dynamic", "longrope")),
  ],
)
def test_ropes_equal_stock(kind, length):
  """40 tokens are beyond every original context, 12 are within."""
  model, config, params = hf_models.build(
    "llama",
    max_position_embeddings=16 if kind == "dynamic" else 64,
    rope_parameters=dict(hf_models.ROPES[kind], rope_theta=100.0),
  )
  assert_equals_stock(model, config, params, random_tokens(2, length))


@pytest.mark.parametrize(
  "family, fields",
  [
    ("mistral", dict(sliding_window=4)),
    (
      "qwen2",
      dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    (
      "qwen3",
      dict(
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
      ),
    ),
    ("llama", {}),
  ],
)
def test_windows_and_padding_equal_stock(family, fields):
  model, config, params = hf_models.build(family, **fields)
  tokens, valid = random_tokens(3, 13), left_padded(13, 9, 1)
  ours = logits(config, params, tokens, valid)
  theirs = hf_models.logits(model, tokens, valid)
  np.testing.assert_allclose(ours[valid], theirs[valid], atol=1e-5)
  assert np.isfinite(ours).all()
  alone = logits(config, params, tokens[1:2, 4:])
  np.testing.assert_allclose(ours[1, 4:], alone[0], atol=1e-5)


def test_stories_equal_stock(shared):
  import transformers

  folder = shared / "weights" / "stories260K"
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager"
  )
  config = models.ModelConfig.from_hf(folder)
  params = hf_models.convert(model, config)
  tokens = np.random.default_rng(0).integers(3, 512, (2, 150))
  expected = hf_models.logits(model, tokens)
  np.testing.assert_allclose(
    logits(config, params, tokens), expected, atol=3e-6 * np.abs(expected).max()
  )
