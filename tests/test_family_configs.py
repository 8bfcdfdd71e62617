"""What the keys of Gemma, OLMo 2 and Phi-3 mean, beside the stock classes."""

import json
import pathlib

import hf_models
import jax
import numpy as np
import pytest
import transformers

from jaxprune import checkpoints, models
from jaxprune.checkpoints import changed_config
from jaxprune.models import ModelConfig, generation

SMALL = dict(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=4,
  num_attention_heads=4,
  max_position_embeddings=64,
  pad_token_id=0,
)
LINEAR = {"rope_type": "linear", "factor": 8.0}
LONG = {
  "type": "longrope",
  "short_factor": [1.0, 1.1, 1.2],
  "long_factor": [2.0, 3.0, 4.0],
}
PHI3 = dict(
  max_position_embeddings=256,
  original_max_position_embeddings=64,
  partial_rotary_factor=0.75,
)


def read(family, **fields):
  return ModelConfig.from_hf({"model_type": family, **SMALL, **fields})


def stock(family, **fields):
  fields = json.loads(json.dumps({**SMALL, **fields}))
  return transformers.AutoConfig.for_model(family, **fields)


@pytest.mark.parametrize(
  "family, fields",
  [
    ("gemma2", {}),
    ("gemma2", {"layer_types": ["full_attention"] * 4}),
    ("gemma3_text", {}),
    ("gemma3_text", {"sliding_window_pattern": 2}),
    ("gemma3_text", {"_sliding_window_pattern": 2}),
    (
      "gemma3_text",
      {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window_pattern": 3,
      },
    ),
  ],
)
def test_layers_slide_as_in_stock(family, fields):
  kinds = stock(family, **fields).layer_types
  assert read(family, **fields).sliding_layers == tuple(
    kind == "sliding_attention" for kind in kinds
  )


@pytest.mark.parametrize(
  "fields, ignored",
  [
    ({}, ()),
    ({"rope_theta": 5e5, "rope_local_base_freq": 700}, ()),
    ({"rope_scaling": LINEAR}, ()),
    # The default of stock has a `rope_type`, which goes before the older key.
    (
      {"rope_scaling": {"type": "linear", "factor": 8.0}},
      ("rope_parameters.full_attention.type",),
    ),
    ({"rope_parameters": {"full_attention": dict(LINEAR, rope_theta=9.0)}}, ()),
    (
      {
        "rope_theta": 8.0,
        "rope_parameters": {
          "full_attention": dict(LINEAR, rope_theta=9.0),
          "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        },
      },
      ("rope_theta",),
    ),
    (
      {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}},
      ("rope_parameters.rope_type", "rope_parameters.rope_theta"),
    ),
  ],
)
def test_two_ropes_as_in_stock(fields, ignored):
  config, theirs = read("gemma3_text", **fields), stock("gemma3_text", **fields)
  for rope, kind in (
    (config.rope, "full_attention"),
    (config.local_rope, "sliding_attention"),
  ):
    given = theirs.rope_parameters[kind]
    assert (rope.kind, rope.theta) == (given["rope_type"], given["rope_theta"])
    assert dict(rope.scaling).get("factor") == (
      given.get("factor") if rope.kind == "linear" else None
    )
  assert set(ignored) <= set(config.ignored)


@pytest.mark.parametrize(
  "family, fields, words",
  [
    ("gemma2", {"sliding_window": None}, "makes a mask of that length"),
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping=0"),
    ("gemma2", {"final_logit_softcapping": "30"}, "softcapping='30'"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0"),
    ("gemma2", {"hidden_activation": "mish"}, "hidden_activation='mish'"),
    ("gemma2", {"hidden_size": 30}, "multiple of num_attention_heads"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "later tokens"),
    ("gemma3_text", {"attn_logit_softcapping": False}, "softcapping=False"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "pattern=0"),
    ("gemma3_text", {"rope_parameters": [1]}, "rope_parameters=[1]"),
    ("gemma3_text", {"rope_scaling": "x"}, "rope_scaling='x'"),
    (
      "gemma3_text",
      {"rope_parameters": {"sliding_attention": "x"}},
      "rope_parameters.sliding_attention='x'",
    ),
    ("phi3", {"rope_scaling": LINEAR}, "known are default, longrope"),
    ("phi3", {"partial_rotary_factor": 1.5}, "at most 1"),
    ("phi3", {"rope_scaling": dict(LONG, long_factor=[1.0])}, "4 positive"),
    ("olmo2", {"mlp_bias": True}, "no such biases"),
    ("olmo2", {"sliding_window": 8}, "no sliding layers"),
  ],
)
def test_one_line_says_what_is_wrong(family, fields, words):
  with pytest.raises(ValueError) as caught:
    read(family, **fields)
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_names_and_caps():
  config = read("gemma3_text", attn_logit_softcapping=30.0, hidden_act="silu")
  assert config.score_cap is None and config.activation == "gelu_tanh"
  assert set(config.ignored) == {"attn_logit_softcapping", "hidden_act"}
  plain = read("phi3", **PHI3, rope_scaling=LONG)
  assert plain.rope.kind == "longrope" and plain.rope.rotary_dim == 6
  for older in ("su", "yarn"):
    scaling = dict(LONG, type=older)
    assert read("phi3", **PHI3, rope_scaling=scaling) == plain


@pytest.mark.parametrize(
  "family, fields",
  [
    ("gemma3_text", {"rope_scaling": LINEAR, "rope_theta": 5e5}),
    (
      "gemma3_text",
      {
        "rope_parameters": {
          "full_attention": dict(LINEAR, rope_theta=5e5),
          "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        },
        "rope_theta": 1.0,
      },
    ),
    ("phi3", dict(PHI3, rope_scaling=LONG)),
    ("phi3", dict(PHI3, rope_scaling=dict(LONG, type="su"))),
    (
      "phi3",
      dict(
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={
          **{k: v for k, v in LONG.items() if k != "type"},
          "rope_type": "longrope",
          "rope_theta": 5e5,
          "partial_rotary_factor": 0.75,
          "original_max_position_embeddings": 64,
        },
      ),
    ),
    (
      "gemma2",
      {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}},
    ),
  ],
)
def test_an_export_is_read_as_its_source(family, fields):
  """By jaxprune, by transformers 5, and from the keys of transformers 4."""
  fields = {"model_type": family, **SMALL, **fields}
  config = ModelConfig.from_hf(fields)
  source = checkpoints.Source(
    folder=pathlib.Path("source"), config=config, hf=fields, tensors={}
  )
  written = changed_config.patched_config(source, {}, {})
  assert ModelConfig.from_hf(written) == config
  older = {k: v for k, v in written.items() if k != "rope_parameters"}
  assert ModelConfig.from_hf(older) == config
  theirs = {k: v for k, v in written.items() if k != "jaxprune"}
  theirs = stock(theirs.pop("model_type"), **theirs)
  assert ModelConfig.from_hf(json.loads(theirs.to_json_string())) == config
  if family == "phi3":
    # The class of transformers 4 refuses a fourth key.
    assert set(written["rope_scaling"]) == set(LONG)


def test_longrope_of_phi3_on_either_side_of_the_original_context():
  """A text alone, of 3 tokens and of 9 where the original context has 5."""
  fields = PHI3 | dict(original_max_position_embeddings=5, rope_scaling=LONG)
  model, config, params = hf_models.build("phi3", **fields)
  tokens = np.random.default_rng(0).integers(1, 61, (1, 9))
  run = jax.jit(
    lambda prompt: models.unembed(
      config, params, models.forward(config, params, prompt)[0]
    )
  )
  for prompt in (tokens[:, :3], tokens):
    np.testing.assert_allclose(
      run(prompt), hf_models.logits(model, prompt), atol=1e-5
    )
  sampling = generation.Sampling(eos_ids=())
  options = dict(max_new_tokens=4, sampling=sampling)
  np.testing.assert_array_equal(
    generation.generate(config, params, tokens, **options).tokens,
    hf_models.greedy(model, tokens, 4),
  )
