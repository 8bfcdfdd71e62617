"""config.json files as published, each read or refused as stock would.

published_configs.json holds facts: the keys and values of the config.json of
popular checkpoints, and where each was seen. Rows marked `as remembered` were
seen nowhere while the table was made.
"""

import functools
import json
import pathlib

import hf_models
import jax
import numpy as np
import pytest
import transformers

from jaxprune.models import EncoderConfig, ModelConfig, decoder, rope
from jaxprune.models.config import FAMILIES

ROWS = json.loads(
  pathlib.Path(__file__).with_name("published_configs.json").read_text()
)
READ = [
  row
  for row in ROWS
  if row["config"]["model_type"] in FAMILIES and "refused" not in row
]
REFUSED = [row for row in ROWS if "refused" in row]
BERT = [row for row in ROWS if row["config"]["model_type"] == "bert"]
# One per way of being unusual; the rest differs in size only from these, or
# from the models of test_families.
RUN = (
  "EleutherAI/gpt-neox-20b",
  "Qwen/Qwen3-30B-A3B",
  "meta-llama/Llama-2-70b-hf",
  "meta-llama/Llama-3.2-1B-Instruct",
  "lmsys/vicuna-7b-v1.5-16k",
  "HuggingFaceTB/SmolLM2-135M-Instruct",
  "Felladrin/TinyMistral-248M-Chat-v2",
  "nvidia/Mistral-NeMo-12B-Instruct",
  "NousResearch/Yarn-Mistral-7b-64k",
  "intfloat/e5-mistral-7b-instruct",
  "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
  "Qwen/Qwen2.5-7B-Instruct-1M",
  "Qwen/Qwen3-Embedding-0.6B",
  "google/gemma-2-27b",
  "google/gemma-3-1b-it",
  "Gemma 3 1B in the layout of transformers 5",
  "microsoft/Phi-4-mini-instruct",
  "microsoft/Phi-3-mini-128k-instruct, as the language model of OmniGen",
)
EPS = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps", "opt": ""}
GEMMA = ("gemma2", "gemma3_text")
# What stock takes out of the keys of transformers 4 before it looks on, and
# what only says where a model came from or how to run it.
NOT_NAMED = {
  "_attn_implementation",
  "_name_or_path",
  "model_type",
  "num_labels",
  "output_attentions",
  "partial_rotary_factor",
  "rotary_emb_base",
  "rotary_pct",
  "rope_local_base_freq",
  "rope_scaling",
  "rope_theta",
  "sliding_window_pattern",
  "torch_dtype",
  *transformers.GenerationConfig._get_default_generation_params(),
}


def by_name(rows):
  return pytest.mark.parametrize(
    "row", rows, ids=[row["name"].split(",")[0] for row in rows]
  )


def as_stock_knows_it(fields):
  """The fields with LongRoPE under its newer name.

  transformers 5.23 fails on `su`, which is the name in the first Phi-3: it asks
  for the original context before it knows which kind this is.
  """
  fields = json.loads(json.dumps(fields))
  if (fields.get("rope_scaling") or {}).get("type") == "su":
    fields["rope_scaling"]["type"] = "longrope"
  return fields


def stock_config(fields):
  fields = as_stock_knows_it(fields)
  return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)


def stock_field(config, *names):
  """The first of some names that a stock configuration has."""
  return next(getattr(config, name) for name in names if hasattr(config, name))


def test_the_table_is_large_enough():
  names = [row["name"] for row in ROWS]
  assert len(set(names)) == len(names) and len(READ) >= 40
  assert {row["config"]["model_type"] for row in READ} == set(FAMILIES)
  assert all(row["source"] for row in ROWS)
  assert set(RUN) <= {row["name"] for row in READ}


@by_name(READ)
def test_read_as_stock_reads_it(row):
  theirs, ours = stock_config(row["config"]), ModelConfig.from_hf(row["config"])
  head_dim = getattr(theirs, "head_dim", None) or (
    theirs.hidden_size // theirs.num_attention_heads
  )
  assert (
    ours.family,
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
    ours.bos_id,
    ours.pad_id,
  ) == (
    theirs.model_type,
    theirs.num_hidden_layers,
    theirs.hidden_size,
    stock_field(
      theirs, "moe_intermediate_size", "ffn_dim", "n_inner", "intermediate_size"
    )
    or 4 * theirs.hidden_size,
    theirs.num_attention_heads,
    stock_field(theirs, "num_key_value_heads", "num_attention_heads"),
    head_dim,
    theirs.vocab_size,
    theirs.max_position_embeddings,
    # OPT has the default of LayerNorm of torch.
    getattr(theirs, EPS.get(ours.family, "rms_norm_eps"), 1e-5),
    theirs.tie_word_embeddings,
    theirs.bos_token_id,
    theirs.pad_token_id,
  )
  eos = theirs.eos_token_id
  assert ours.eos_ids == tuple(eos if isinstance(eos, list) else [eos])
  if ours.family in ("mistral", "phi3"):
    sliding = (theirs.sliding_window is not None,) * ours.num_layers
  else:
    kinds = getattr(theirs, "layer_types", [""] * ours.num_layers)
    sliding = tuple(kind == "sliding_attention" for kind in kinds)
  assert ours.sliding_layers == sliding
  assert ours.sliding_window == (
    theirs.sliding_window if any(sliding) else None
  )
  if ours.rope is None:
    return
  rotary, parameters = hf_models.stock_rotary(theirs), theirs.rope_parameters
  ropes = [(ours.rope, parameters, "")]
  if ours.local_rope:
    kinds = ("full_attention", "sliding_attention")
    ropes = [
      (one, parameters[kind], f"{kind}_")
      for one, kind in zip((ours.rope, ours.local_rope), kinds)
    ]
  for one, given, prefix in ropes:
    assert one.kind == given["rope_type"] and one.theta == given["rope_theta"]
    np.testing.assert_allclose(
      rope.inv_freq(ours, 8, one),
      getattr(rotary, f"{prefix}inv_freq").numpy(),
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      rope.attention_scale(one),
      getattr(rotary, f"{prefix}attention_scaling"),
      rtol=1e-6,
    )


@by_name([row for row in READ if row["config"]["model_type"] in GEMMA])
def test_scales_and_caps_of_gemma(row):
  theirs, ours = stock_config(row["config"]), ModelConfig.from_hf(row["config"])
  scale = ours.score_scale or ours.head_dim**-0.5
  assert scale == theirs.query_pre_attn_scalar**-0.5
  assert ours.score_cap == theirs.attn_logit_softcapping
  assert ours.logit_cap == theirs.final_logit_softcapping
  assert ours.embedding_scale == theirs.hidden_size**0.5
  assert ours.activation == "gelu_tanh"


@by_name(READ)
def test_names_what_stock_does_not_read(row):
  declared = {*type(stock_config(row["config"])).__dataclass_fields__}
  ignored = {
    name
    for name in ModelConfig.from_hf(row["config"]).ignored
    if "." not in name or name in row["config"]
  }
  assert ignored == set(row["config"]) - declared - NOT_NAMED - (
    {"head_dim"}
    if row["config"]["model_type"] in ("qwen2", "qwen3_moe")
    else set()
  )


@by_name(REFUSED)
def test_refused_in_one_line(row):
  with pytest.raises(ValueError) as caught:
    ModelConfig.from_hf(row["config"])
  assert row["refused"] in str(caught.value)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@by_name(BERT)
def test_encoder(row):
  theirs, ours = (
    stock_config(row["config"]),
    EncoderConfig.from_hf(row["config"]),
  )
  assert (ours.num_layers, ours.embed_dim, ours.norm_eps, ours.activation) == (
    theirs.num_hidden_layers,
    theirs.hidden_size,
    theirs.layer_norm_eps,
    theirs.hidden_act,
  )


@functools.partial(jax.jit, static_argnums=0)
def run_model(config, params, tokens):
  x_BTD, _ = decoder.forward(config, params, tokens)
  return decoder.unembed(config, params, x_BTD)


@by_name([row for row in READ if row["name"] in RUN])
def test_logits_of_a_small_model_with_the_same_keys(row):
  """Largest difference 1e-5 in float32, at 12 positions."""
  fields = dict(row["config"])
  tiny = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2 if "num_key_value_heads" in fields else 4,
    vocab_size=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
  )
  if "head_dim" in fields:
    tiny["head_dim"] = 24  # not the quotient
  if "word_embed_proj_dim" in fields:
    tiny["word_embed_proj_dim"] = 64
  if "num_experts" in fields:
    tiny |= dict(num_experts=8, moe_intermediate_size=24)
  renamed = hf_models.RENAMED.get(fields["model_type"], {})
  tiny = {renamed.get(name, name): value for name, value in tiny.items()}
  tiny.pop(None, None)
  if fields.get("sliding_window") and (
    fields["model_type"] in ("mistral", *GEMMA)
  ):
    tiny["sliding_window"] = 5
  if "sliding_window_pattern" in fields:
    tiny["sliding_window_pattern"] = 2
  if "long_factor" in (fields.get("rope_scaling") or {}):
    turned = int(16 * fields.get("partial_rotary_factor", 1))
    tiny["rope_scaling"] = {
      name: value[: turned // 2] if isinstance(value, list) else value
      for name, value in fields["rope_scaling"].items()
    }
  if "layer_types" in fields:
    tiny["layer_types"] = fields["layer_types"][:2]
  fields.update(tiny)
  config = ModelConfig.from_hf(fields)
  fields = as_stock_knows_it(fields)
  family = fields.pop("model_type")
  fields.update(attn_implementation="eager", torch_dtype="float32")
  for name in ("_attn_implementation", "dtype"):
    fields.pop(name, None)
  fields.setdefault("head_dim", config.head_dim)
  model, _, params = hf_models.build(family, **fields)
  tokens = np.random.default_rng(0).integers(0, 128, (2, 12))
  np.testing.assert_allclose(
    run_model(config, params, tokens),
    hf_models.logits(model, tokens),
    atol=1e-5,
    rtol=1e-5,
  )
