"""Any config.json: what stock reads from it, or one line that says why not."""

import json
import pathlib

import hf_models
import hypothesis
import hypothesis.strategies as st
import numpy as np
import torch
import transformers

from jaxprune import checkpoints
from jaxprune.checkpoints import changed_config
from jaxprune.models import EncoderConfig, ModelConfig, config_keys, rope
from jaxprune.models.config import FAMILIES

TABLE = pathlib.Path(config_keys.__file__).with_name("stock_fields.json")
TINY = dict(
  hidden_size=32,
  num_attention_heads=4,
  num_key_value_heads=2,
  num_hidden_layers=3,
  intermediate_size=48,
  vocab_size=61,
  max_position_embeddings=64,
)
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
ODD = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 70),
  st.sampled_from([2**31, 10**400, -(10**400), 1e-6, 0.5, 1.0, 1e308, -1.5]),
  st.sampled_from(["", "1", "silu", "none"]),
  st.sampled_from([[], [1], ["full_attention"] * 3, [[]], {}, {"a": 1}]),
)
LAYERS = st.lists(
  st.sampled_from(
    ["full_attention", "sliding_attention", "attention", "mamba", 1]
  ),
  min_size=2,
  max_size=4,
)
LENGTH = st.sampled_from([0, 1, 16, 32, 64, 64.0, None, -1, "64"])
NUMBER = st.sampled_from([0, 0.5, 1, 1.0, 2, 4.0, 10000.0, None, -1, "2", []])
FACTORS = st.sampled_from(
  [[1.0] * 4, [1, 2.0, 3.5, 9.0], [1.0] * 3, [0.0] * 4, None, 2.0]
)
ROPE = st.fixed_dictionaries(
  {},
  optional=dict(
    rope_type=st.sampled_from(
      ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "ntk"]
    ),
    type=st.sampled_from(["default", "linear", "yarn", "llama3", None]),
    rope_theta=st.sampled_from([10000, 5e5, 1.0, 0, None, "1"]),
    factor=NUMBER,
    original_max_position_embeddings=LENGTH,
    low_freq_factor=NUMBER,
    high_freq_factor=NUMBER,
    short_factor=FACTORS,
    long_factor=FACTORS,
    attention_factor=NUMBER,
    beta_fast=NUMBER,
    beta_slow=NUMBER,
    mscale=NUMBER,
    mscale_all_dim=NUMBER,
    truncate=st.sampled_from([True, False, None, 1]),
    partial_rotary_factor=st.sampled_from([1, 1.0, 0.5, None]),
    finetuned=st.booleans(),
  ),
)
# A kind of RoPE with all that it needs, of which a few keys are then changed.
GOOD_ROPE = st.sampled_from(
  [
    dict(rope_type="default"),
    dict(type="linear", factor=2.0),
    dict(rope_type="dynamic", factor=2.0),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    dict(rope_type="yarn", factor=None, truncate=False),
    dict(
      rope_type="longrope",
      short_factor=[1.0] * 4,
      long_factor=[1, 2.0, 3.5, 9.0],
      original_max_position_embeddings=16,
    ),
    hf_models.ROPES["llama3"],
  ]
)
SCALING = st.one_of(
  ROPE, ODD, GOOD_ROPE, st.builds(lambda a, b: {**a, **b}, GOOD_ROPE, ROPE)
)
VALUES = dict(
  hidden_size=st.sampled_from([32, 33, 34, 64, 3, 0]) | ODD,
  num_attention_heads=st.sampled_from([1, 2, 4, 8, 3]) | ODD,
  num_key_value_heads=st.sampled_from([1, 2, 4, 3]) | ODD,
  num_hidden_layers=st.sampled_from([1, 3, 2**31, "3", None, 2.0, -1]),
  intermediate_size=ODD,
  vocab_size=ODD,
  max_position_embeddings=st.sampled_from([16, 64, 4096]) | ODD,
  head_dim=st.sampled_from([2, 8, 16, 7, 3]) | ODD,
  rms_norm_eps=ODD,
  hidden_act=st.sampled_from(["silu", "gelu_new", "mish"]) | ODD,
  tie_word_embeddings=ODD,
  attention_bias=ODD,
  mlp_bias=ODD,
  use_sliding_window=ODD,
  sliding_window=ODD,
  max_window_layers=ODD,
  layer_types=LAYERS | ODD,
  bos_token_id=ODD,
  eos_token_id=st.sampled_from([[2, 5], [2, None], [-1]]) | ODD,
  pad_token_id=ODD,
  use_cache=ODD,
  attention_dropout=ODD,
  pretraining_tp=ODD,
  is_encoder_decoder=ODD,
  is_causal=ODD,
  rope_theta=st.sampled_from([10000, 5e5, 1.0]) | ODD,
  rope_scaling=SCALING,
  rope_parameters=SCALING,
  partial_rotary_factor=st.sampled_from([1, 1.0, 0.5, None]),
  original_max_position_embeddings=LENGTH,
  attention_chunk_size=ODD,
  per_layer_config=ODD,
  text_config=ODD,
  quantization_config=ODD,
)
MORE = dict(
  hidden_activation=st.sampled_from(["gelu_pytorch_tanh", "relu"]) | ODD,
  query_pre_attn_scalar=st.sampled_from([1, 8, 24]) | ODD,
  attn_logit_softcapping=st.sampled_from([50.0, 1.5]) | ODD,
  final_logit_softcapping=st.sampled_from([30.0, 1.5]) | ODD,
  sliding_window_pattern=st.integers(-1, 3) | ODD,
  rope_local_base_freq=st.sampled_from([10000, 700.0]) | ODD,
  rope_parameters=SCALING
  | st.fixed_dictionaries(
    {}, optional=dict(full_attention=SCALING, sliding_attention=SCALING)
  ),
  use_bidirectional_attention=ODD,
)
# Few keys at a time: of many odd ones, one would always be refused.
BOTH = VALUES | MORE
FIELDS = st.sets(st.sampled_from(sorted(BOTH)), max_size=3).flatmap(
  lambda names: st.fixed_dictionaries({name: BOTH[name] for name in names})
)
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3)
  ),
  max_leaves=8,
)


def parse(cls, fields):
  """The configuration, or None where it is refused in one line."""
  try:
    return cls.from_hf(fields)
  except ValueError as error:
    text = str(error)
    assert text.startswith("config: ") and "\n" not in text
    return None


def known_names(family):
  """Every key of config.json that means something in this family."""
  table = json.loads(TABLE.read_text())
  return {
    *TINY,
    *table["families"][family]["fields"],
    *table["families"][family]["reads"],
    *table["families"][family]["synonyms"],
    *table["attributes"],
    *table["generation"],
    *config_keys.REFUSED,
    *config_keys.KNOWN,
    "attention_bias",
    "head_dim",
    "mlp_bias",
    "model_type",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_theta",
  }


def as_strict(family, fields):
  """The same in values that the strict classes of stock accept.

  These are all the liberties that are taken with them.
  """
  fields = json.loads(json.dumps(fields))
  if family not in ("mistral", "qwen2", "phi3") and "attention_bias" in fields:
    # transformers 4 reads null as false.
    fields["attention_bias"] = bool(fields["attention_bias"])
  for name in (
    *("rms_norm_eps", "attn_logit_softcapping", "final_logit_softcapping"),
  ):
    if type(fields.get(name)) is int:
      # JSON does not tell 1 from 1.0.
      fields[name] = float(fields[name])
  if (
    family in ("mistral", "gemma2", "gemma3_text")
    and fields.get("num_key_value_heads", 0) is None
  ):
    fields["num_key_value_heads"] = fields["num_attention_heads"]
  if family in ("qwen2", "olmo2", "phi3") and (
    fields.get("head_dim", 0) is None
  ):
    del fields["head_dim"]
  return fields


def stock_reading(family, fields):
  """Stock's configuration, rotary embedding and names of a model that runs."""
  config = transformers.AutoConfig.for_model(family, **fields)
  rotary = hf_models.stock_rotary(config)
  with torch.no_grad():
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model(torch.zeros((1, 5), dtype=torch.int64), use_cache=False)
  return config, rotary, {name for name, _ in model.named_parameters()}


@hypothesis.settings(max_examples=150)
@hypothesis.given(
  st.sampled_from((*LLAMA_LIKE, "gemma2", "gemma3_text", "olmo2", "phi3")),
  FIELDS,
)
def test_what_is_read_is_what_stock_reads(family, changes):
  fields = {**TINY, "pad_token_id": 0, **changes}
  ours = parse(ModelConfig, {"model_type": family, **fields})
  if ours is None:
    return
  theirs, rotary, names = stock_reading(family, as_strict(family, fields))
  head_dim = getattr(theirs, "head_dim", None) or (
    theirs.hidden_size // theirs.num_attention_heads
  )
  assert (
    ours.num_layers,
    ours.embed_dim,
    ours.mlp_dim,
    ours.num_heads,
    ours.num_kv_heads,
    ours.head_dim,
    ours.vocab_size,
    ours.max_positions,
    ours.norm_eps,
    ours.tie_embeddings,
  ) == (
    theirs.num_hidden_layers,
    theirs.hidden_size,
    theirs.intermediate_size,
    theirs.num_attention_heads,
    theirs.num_key_value_heads,
    head_dim,
    theirs.vocab_size,
    theirs.max_position_embeddings,
    theirs.rms_norm_eps,
    theirs.tie_word_embeddings,
  )
  if family.startswith("gemma"):
    scale = ours.score_scale or ours.head_dim**-0.5
    assert scale == theirs.query_pre_attn_scalar**-0.5
    assert ours.logit_cap == theirs.final_logit_softcapping
    if family == "gemma2":
      assert ours.score_cap == theirs.attn_logit_softcapping
  layer = "model.layers.0"
  assert ours.qkv_bias == (f"{layer}.self_attn.q_proj.bias" in names)
  assert ours.output_bias == (f"{layer}.self_attn.o_proj.bias" in names)
  assert ours.mlp_bias == (f"{layer}.mlp.up_proj.bias" in names)
  assert ours.qk_norm == (f"{layer}.self_attn.q_norm.weight" in names)
  if family in ("mistral", "phi3"):
    sliding = (theirs.sliding_window is not None,) * ours.num_layers
  elif family in ("llama", "olmo2"):
    sliding = (False,) * ours.num_layers
  else:
    sliding = tuple(kind == "sliding_attention" for kind in theirs.layer_types)
  assert ours.sliding_layers == sliding
  if any(sliding):
    assert ours.sliding_window == theirs.sliding_window
  # Gemma 3 makes no frequencies for a kind of layer that it does not have.
  ropes = [(ours.rope, "")]
  if family == "gemma3_text":
    ropes = [(ours.rope, "full_attention_")] * (not all(sliding))
    ropes += [(ours.local_rope, "sliding_attention_")] * any(sliding)
  for one, prefix in ropes:
    np.testing.assert_allclose(
      rope.inv_freq(ours, 1, one),
      getattr(rotary, f"{prefix}inv_freq").numpy(),
      rtol=2e-6,
    )
    np.testing.assert_allclose(
      rope.attention_scale(one),
      getattr(rotary, f"{prefix}attention_scaling"),
      rtol=1e-6,
    )
  eos = theirs.eos_token_id
  eos = eos if isinstance(eos, list) else [eos]
  assert ours.eos_ids == tuple(
    id_ for id_ in eos if (id_ or 0) >= 0 and id_ is not None
  )


ROPE_NAMES = (
  "original_max_position_embeddings",
  "rope_parameters",
  "rope_scaling",
  "rope_theta",
)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
  st.fixed_dictionaries(
    {}, optional={name: VALUES[name] for name in ROPE_NAMES}
  )
)
def test_an_export_is_read_as_its_source_by_transformers_4_too(changes):
  fields = {"model_type": "llama", **TINY, **changes}
  config = parse(ModelConfig, fields)
  if config is None:
    return
  source = checkpoints.Source(
    folder=pathlib.Path("source"), config=config, hf=fields, tensors={}
  )
  written = changed_config.patched_config(source, {}, {})
  again = ModelConfig.from_hf(written)
  assert again == config
  # transformers 4 knows no `rope_parameters`, and an outer length of longrope
  # only.
  unknown = {"rope_parameters"}
  if config.rope.kind != "longrope":
    unknown.add("original_max_position_embeddings")
  older = {k: v for k, v in written.items() if k not in unknown}
  assert ModelConfig.from_hf(older) == config


@hypothesis.settings(max_examples=120)
@hypothesis.given(
  st.sampled_from(sorted(FAMILIES)),
  st.dictionaries(st.text(max_size=12), JSON, max_size=4),
)
def test_unknown_keys_never_change_what_is_read(family, unknown):
  plain = {"model_type": family, **TINY, "pad_token_id": 0}
  unknown = {k: v for k, v in unknown.items() if k not in known_names(family)}
  expected = ModelConfig.from_hf(plain)
  config = ModelConfig.from_hf({**unknown, **plain})
  assert config == expected and hash(config) == hash(expected)
  assert len(config.ignored) == len(unknown) + len(expected.ignored)
  assert all(name.isprintable() for name in config.ignored)


@hypothesis.settings(max_examples=120)
@hypothesis.given(st.sampled_from((*FAMILIES, "bert")), st.data())
def test_any_json_is_read_or_refused_in_one_line(family, data):
  names = st.sampled_from(sorted(known_names(family) - {"model_type"}))
  fields = data.draw(st.dictionaries(names, JSON, max_size=6))
  cls = EncoderConfig if family == "bert" else ModelConfig
  config = parse(cls, {"model_type": family, **fields})
  assert config is None or hash(config) == hash(config)
