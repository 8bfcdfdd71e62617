"""config.json in, ModelConfig out, and nothing silently lost on the way."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxprune.models import ModelConfig, rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TINY = dict(
  hidden_size=32,
  num_attention_heads=4,
  num_key_value_heads=2,
  num_hidden_layers=3,
  intermediate_size=48,
  vocab_size=61,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
LONG = dict(
  rope_type="longrope",
  short_factor=[1.0, 1.1, 1.3, 1.7],
  long_factor=[1.0, 2.0, 3.5, 9.0],
  original_max_position_embeddings=64,
)
LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)
SCALINGS = {
  "linear": dict(rope_type="linear", factor=2.5),
  "dynamic": dict(rope_type="dynamic", factor=3.0),
  "yarn": YARN,
  "yarn_untruncated": dict(YARN, truncate=False, beta_fast=8, beta_slow=0.5),
  "yarn_mscale": dict(YARN, mscale=0.7, mscale_all_dim=1.2),
  "yarn_attention_factor": dict(YARN, attention_factor=1.75),
  "longrope": LONG,
  "longrope_factor": dict(LONG, factor=7.0),
  "longrope_attention_factor": dict(LONG, attention_factor=1.25),
  "llama3": LLAMA3,
}


def read(family="llama", **fields):
  return ModelConfig.from_hf({"model_type": family, **TINY, **fields})


def stock(family, fields):
  return AutoConfig.for_model(family, **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_class(family):
  theirs = stock(family, {})
  ours = ModelConfig.from_hf({"model_type": family})
  head_dim = getattr(theirs, "head_dim", None) or (
    theirs.hidden_size // theirs.num_attention_heads
  )
  assert (
    ours.vocab_size,
    ours.embed_dim,
    ours.mlp_dim,
    ours.num_layers,
    ours.num_heads,
    ours.num_kv_heads,
    ours.head_dim,
    ours.max_positions,
    ours.norm_eps,
    ours.tie_embeddings,
    ours.rope.theta,
    ours.rope.kind,
    ours.bos_id,
    ours.pad_id,
    ours.sliding_window,
  ) == (
    theirs.vocab_size,
    theirs.hidden_size,
    theirs.intermediate_size,
    theirs.num_hidden_layers,
    theirs.num_attention_heads,
    theirs.num_key_value_heads,
    head_dim,
    theirs.max_position_embeddings,
    theirs.rms_norm_eps,
    theirs.tie_word_embeddings,
    theirs.rope_parameters["rope_theta"],
    theirs.rope_parameters["rope_type"],
    theirs.bos_token_id,
    theirs.pad_token_id,
    getattr(theirs, "sliding_window", None),
  )
  eos = theirs.eos_token_id
  assert ours.eos_ids == (() if eos is None else (eos,))
  assert hash(ours) == hash(ModelConfig.from_hf({"model_type": family}))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stock_writes_is_read(family, tmp_path):
  fields = dict(TINY, head_dim=8, eos_token_id=[5, 7], pad_token_id=3)
  if family == "qwen2":
    del fields["head_dim"]
  stock(family, fields).save_pretrained(tmp_path)
  ours = ModelConfig.from_hf(tmp_path)
  assert ours.eos_ids == (5, 7) and ours.pad_id == 3
  assert ours == ModelConfig.from_hf(str(tmp_path))
  assert ours == ModelConfig.from_hf(
    json.loads((tmp_path / "config.json").read_text())
  )


def test_biases_and_norms_per_family():
  def parts(config):
    return (
      config.qkv_bias,
      config.output_bias,
      config.mlp_bias,
      config.qk_norm,
    )

  assert parts(read("llama")) == (False, False, False, False)
  assert parts(read("llama", attention_bias=True)) == (True, True, False, False)
  assert parts(read("llama", mlp_bias=True)) == (False, False, True, False)
  assert parts(read("mistral")) == (False, False, False, False)
  assert parts(read("qwen2")) == (True, False, False, False)
  assert parts(read("qwen3")) == (False, False, False, True)
  assert parts(read("qwen3", attention_bias=True)) == (True, True, False, True)


def test_heads():
  assert read(num_key_value_heads=None).num_kv_heads == 4
  assert read("qwen2", num_key_value_heads=None).num_kv_heads == 4
  assert read().head_dim == 8
  assert read(head_dim=None).head_dim == 8
  assert read(head_dim=6).head_dim == 6
  assert read("qwen3").head_dim == 128


def test_sliding_window():
  def window(family, **fields):
    config = read(family, **fields)
    return config.sliding_window, config.sliding_layers

  none, every = (False,) * 3, (True,) * 3
  assert window("llama") == (None, none)
  assert window("mistral") == (4096, every)
  assert window("mistral", sliding_window=None) == (None, none)
  assert window("mistral", sliding_window=7) == (7, every)
  assert window("qwen2", sliding_window=7) == (None, none)
  qwen = dict(use_sliding_window=True, sliding_window=7)
  assert window("qwen2", **qwen) == (None, none)  # max_window_layers is 28
  assert window("qwen2", **qwen, max_window_layers=1) == (
    7,
    (False, True, True),
  )
  kinds = ["sliding_attention", "full_attention", "full_attention"]
  assert window("qwen3", **qwen, layer_types=kinds) == (7, (True, False, False))
  assert window("llama", layer_types=["full_attention"] * 3) == (None, none)


def test_absent_ids():
  config = read(bos_token_id=None, eos_token_id=None, pad_token_id=-1)
  assert (config.bos_id, config.eos_ids, config.pad_id) == (None, (), None)


@pytest.mark.parametrize(
  "family, fields, words",
  [
    ("bloom", {}, "model_type='bloom'"),
    (None, {}, "model_type=None"),
    ("llama", {"hidden_act": "mish"}, "hidden_act='mish'"),
    ("llama", {"logit_softcap": 30.0}, "logit_softcap=30.0"),
    ("llama", {"quantization_config": {"bits": 4}}, "dequantize"),
    ("llama", {"is_causal": False}, "is_causal=False"),
    ("llama", {"is_causal": None}, "is_causal=None"),
    ("llama", {"is_causal": 0}, "is_causal=0"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved=True"),
    ("llama", {"attention_chunk_size": 8}, "attention_chunk_size=8"),
    ("llama", {"kv_sharing_modes": ["reuse"] * 3}, "kv_sharing_modes"),
    ("llama", {"text_config": {}}, "composite"),
    ("llama", {"to_dict": 1}, "name of a method"),
    ("llama", {"sliding_window": 0}, "sliding_window=0"),
    (
      "llama",
      {"sliding_window": 4096, "max_position_embeddings": 8192},
      "sliding_window=4096",
    ),
    ("llama", {"eos_token_id": [None]}, "eos_token_id=[None]"),
    ("llama", {"pad_token_id": 61}, "below vocab_size=61"),
    ("llama", {"eos_token_id": [2, None]}, "eos_token_id=[2, None]"),
    ("llama", {"use_cache": [1]}, "use_cache=[1]: must be bool"),
    ("llama", {"attention_dropout": "0"}, "must be int or float or None"),
    ("llama", {"rope_theta": None}, "rope_theta=None"),
    (
      "qwen2",
      {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0},
      "sliding_window=0",
    ),
    ("qwen3", {"head_dim": None}, "head_dim=None"),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=True"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"per_layer_config": {"1": {}}}, "per_layer_config"),
    ("llama", {"sliding_window": 8}, "sliding_window=8"),
    ("mistral", {"attention_bias": True}, "attention_bias=True"),
    ("mistral", {"mlp_bias": True}, "mlp_bias=True"),
    ("mistral", {"sliding_window": 0}, "sliding_window=0"),
    # Stock makes the mask also where no layer slides.
    (
      "gemma3_text",
      {"sliding_window": None, "sliding_window_pattern": 1},
      "sliding_window=None",
    ),
    (
      "gemma2",
      {"sliding_window": None, "layer_types": ["full_attention"] * 3},
      "sliding_window=None",
    ),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention"] * 2}, "must be 3 of"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "active"),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window=1"),
    ("llama", {"num_key_value_heads": 3}, "must divide"),
    ("llama", {"hidden_size": 33}, "hidden_size=33"),
    ("llama", {"head_dim": 7}, "even"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ("llama", {"vocab_size": 61.0}, "vocab_size=61.0"),
    ("llama", {"vocab_size": True}, "vocab_size=True"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps=0"),
    ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings=None"),
    ("llama", {"eos_token_id": "2"}, "eos_token_id='2'"),
    ("llama", {"rope_theta": -1.0}, "rope_theta=-1.0"),
    ("llama", {"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor=None"),
    (
      "llama",
      {"rope_scaling": {"type": "linear", "factor": "2"}},
      "factor='2'",
    ),
    ("llama", {"rope_scaling": [2.0]}, "must be an object"),
    ("llama", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor=None"),
    (
      "llama",
      {
        "rope_scaling": dict(YARN, original_max_position_embeddings=64),
        "original_max_position_embeddings": 0,
      },
      "original_max_position_embeddings=0",
    ),
    (
      "llama",
      {"rope_parameters": dict(LONG, factor=2.0)}
      | {"original_max_position_embeddings": 0},
      "original_max_position_embeddings=0",
    ),
    (
      "llama",
      {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}},
      "rope_scaling.mrope_section",
    ),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "per layer"),
    (
      "llama",
      {"rope_parameters": dict(LONG, short_factor=[1.0])},
      "short_factor",
    ),
    (
      "llama",
      {"rope_parameters": dict(LLAMA3, high_freq_factor=1.0)},
      "must exceed",
    ),
  ],
)
def test_refuses(family, fields, words):
  with pytest.raises(ValueError, match="^config: ") as caught:
    read(family, **fields)
  assert words in str(caught.value)
  assert "\n" not in str(caught.value)


def test_every_problem_is_reported_at_once():
  with pytest.raises(ValueError) as caught:
    read(
      vocab_size="61",
      hidden_act="mish",
      rope_scaling={"type": "ntk"},
      quantization_config={"bits": 4},
      is_causal=False,
      harmless=1,
    )
  text = str(caught.value)
  for field in (
    "vocab_size='61'",
    "hidden_act='mish'",
    "rope_scaling.rope_type='ntk'",
    "quantization_config=",
    "is_causal=False",
  ):
    assert field in text
  assert text.count("; ") == 4 and "\n" not in text and "harmless" not in text


HARMLESS = {
  "is_llama_config": True,
  "rope_interleaved": False,
  "transformers.js_config": {"dtype": "q4", "use_external_data_format": True},
  "_attn_implementation_autoset": True,
  "unk_token_id": 0,
  "_model_name_or_path": "a/b",
  "is_decoder": True,
  "gradient_checkpointing": False,
  "neftune_noise_alpha": 5,
  "auto_map": {"AutoModelForCausalLM": "x.Y"},
  "add_cross_attention": True,
  "logit_softcap": None,
  "a\nkey": [1, {"b": None}],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_stock_does_not_read_are_named(family):
  plain = read(family)
  config = read(family, **HARMLESS, torch_dtype="float16", temperature=0.6)
  assert config == plain and hash(config) == hash(plain)
  assert plain.ignored == ()
  *names, last = config.ignored
  assert [*names, "a\nkey"] == list(HARMLESS)
  assert last == r"'a\nkey'" and "ignored" not in repr(config)


def test_values_read_as_stock_reads_them():
  assert read(hidden_act="swish") == read()
  # transformers 4; the strict classes of 5 refuse it.
  assert read(attention_bias=None) == read()
  assert read("mistral", attention_bias=None) == read("mistral")
  assert read("qwen2", attention_bias=True) == read("qwen2")
  for family in ("qwen2", "qwen3"):
    assert read(family, sliding_window=0) == read(family)
    kinds = ["attention"] * 3
    assert read(family, layer_types=kinds) == read(family)
  assert read(sliding_window=4096) == read()  # longer than the context
  assert read(sliding_window=2048) == read()
  assert read("qwen2", head_dim=16).head_dim == 16
  assert read("mistral", hidden_size=34).head_dim == 8
  assert read(eos_token_id=[]).eos_ids == ()
  assert read(rope_scaling={"factor": 2.0}).rope == read().rope
  assert read(
    rope_scaling={"type": "linear", "rope_type": "dynamic", "factor": 2.0}
  ) == read(rope_scaling={"type": "dynamic", "factor": 2.0})


def test_contradictory_layouts_are_read_as_stock_does():
  new = dict(rope_type="default", rope_theta=3e4)
  linear = dict(type="linear", factor=2.0)
  for fields in (
    dict(rope_theta=5e5, rope_parameters=new),
    dict(rope_theta=5e5, rope_parameters=dict(rope_type="default")),
    dict(rope_theta=5e5, rope_scaling=linear, rope_parameters=new),
    dict(rope_scaling=linear, rope_parameters=new),
    dict(rope_scaling=dict(linear, rope_theta=7.0), rope_theta=5e5),
    dict(rope_scaling={}, rope_parameters=new, rope_theta=5e5),
    dict(
      rope_scaling=dict(YARN),
      original_max_position_embeddings=32,
      rope_theta=9.0,
    ),
  ):
    config = read(**fields)
    theirs = stock("llama", json.loads(json.dumps({**TINY, **fields})))
    function = ROPE_INIT_FUNCTIONS.get(config.rope.kind)
    if function is None:
      assert theirs.rope_parameters["rope_type"] == "default"
    else:
      expected, _ = function(theirs, torch.device("cpu"))
      np.testing.assert_allclose(
        rope.inv_freq(config, 8), expected.numpy(), rtol=1e-6
      )
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
  assert read(rope_theta=5e5, rope_parameters=new).ignored == ("rope_theta",)
  config = read(rope_theta=3e4, rope_scaling=linear, rope_parameters=new)
  assert config.ignored == ("rope_parameters",)
  # Both layouts with the same content, as exports have them.
  both = dict(rope_type="linear", factor=2.0, rope_theta=3e4)
  config = read(rope_theta=3e4, rope_scaling=linear, rope_parameters=both)
  assert config.ignored == () and config.rope.theta == 3e4


def test_the_callers_dict_is_left_alone():
  fields = {"model_type": "llama", **TINY, "rope_parameters": dict(LLAMA3)}
  copy = json.loads(json.dumps(fields))
  ModelConfig.from_hf(fields)
  assert fields == copy
