"""Tiny random models of stock transformers, and the same models here.

The conversion is written out again instead of taken from
`jaxprune.checkpoints`, so that one can be wrong without the other.
"""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxprune.models import ModelConfig

# Keys of SMALL that a family has no place for, or under another name.
RENAMED = {
  "gpt2": dict(
    intermediate_size="n_inner",
    max_position_embeddings="n_positions",
    rms_norm_eps="layer_norm_epsilon",
    num_key_value_heads=None,
    head_dim=None,
  ),
  "gpt_neox": dict(
    rms_norm_eps="layer_norm_eps", num_key_value_heads=None, head_dim=None
  ),
  "opt": dict(
    intermediate_size="ffn_dim",
    rms_norm_eps=None,
    num_key_value_heads=None,
    head_dim=None,
  ),
  # The width of Qwen2's heads is always the quotient.
  "qwen2": dict(head_dim=None),
}
SMALL = dict(
  vocab_size=61,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  max_position_embeddings=64,
  rms_norm_eps=1e-6,
  pad_token_id=0,
  bos_token_id=None,
  eos_token_id=None,
  attn_implementation="eager",
)
# The norms of a layer: the name here and the one of stock.
NORMS = {
  "llama": {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  },
  "olmo2": {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  },
  "gemma2": {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  },
}
NORMS["gemma3_text"] = NORMS["gemma2"]
# A head width that hidden_size / num_attention_heads does not give.
OWN = {
  "qwen3_moe": dict(
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    norm_topk_prob=True,
  ),
  "qwen3": dict(head_dim=16),
  "gpt_neox": dict(rotary_pct=0.5),
}


# A scaling of every kind, whose original context holds 16 tokens.
ROPES = {
  "linear": dict(rope_type="linear", factor=2.0),
  "dynamic": dict(rope_type="dynamic", factor=2.0),
  "yarn": dict(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=16
  ),
  "longrope": dict(
    rope_type="longrope",
    factor=4.0,
    short_factor=[1.0, 1.1, 1.3, 1.7],
    long_factor=[1.0, 2.0, 3.5, 9.0],
    original_max_position_embeddings=16,
  ),
  "llama3": dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
  ),
}


def build(family, *, seed=0, **overrides):
  """Return (stock model in eval mode, ModelConfig, params in float32).

  Every parameter is random, norms and biases too, so that a forgotten one
  shows.
  """
  fields = {**SMALL, **OWN.get(family, {})}
  for name, other in RENAMED.get(family, {}).items():
    value = fields.pop(name)
    if other:
      fields[other] = value
  fields |= {
    RENAMED.get(family, {}).get(name, name): value
    for name, value in overrides.items()
  }
  fields.pop(None, None)
  hf_config = transformers.AutoConfig.for_model(family, **fields)
  model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if name.endswith(
        ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
      ):
        # Gemma stores the scales of its norms less 1.
        parameter.copy_((not family.startswith("gemma")) + 0.2 * noise)
      elif name.endswith("bias"):
        parameter.copy_(0.2 * noise)
      else:
        parameter.copy_(noise / parameter.shape[-1] ** 0.5)
  config = ModelConfig.from_hf(json.loads(hf_config.to_json_string()))
  return model, config, convert(model, config)


def save_llama(folder, **fields):
  """Write a random Llama of two layers as stock transformers does."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **dict(
      vocab_size=96,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=64,
      initializer_range=0.2,
    )
    | fields
  )
  model = transformers.LlamaForCausalLM(config)
  model.save_pretrained(folder)
  return model


def convert(model, config):
  """The parameter tree of a stock model."""
  tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  if config.family in OLDER:
    return convert_older(tensors, config, **OLDER[config.family])

  def leaf(name, transpose):
    tensor = tensors[name]
    return np.ascontiguousarray(tensor.T if transpose else tensor)

  def stacked(name, transpose=False):
    return jnp.asarray(
      np.stack(
        [
          leaf(f"model.layers.{index}.{name}", transpose)
          for index in range(config.num_layers)
        ]
      )
    )

  def dense(name):
    found = {"kernel": stacked(f"{name}.weight", True)}
    if f"model.layers.0.{name}.bias" in tensors:
      found["bias"] = stacked(f"{name}.bias")
    return found

  def split(name, *sizes):
    kernel = stacked(f"{name}.weight", True)
    ends = np.cumsum(sizes)
    assert kernel.shape[-1] == ends[-1]
    return [
      {"kernel": kernel[..., end - size : end]}
      for end, size in zip(ends, sizes)
    ]

  attention, mlp = {}, {}
  if config.family == "phi3":
    width = model.config.hidden_size // model.config.num_attention_heads
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    attention["query"], attention["key"], attention["value"] = split(
      "self_attn.qkv_proj", *(width * n for n in (heads[0], *heads[1:] * 2))
    )
    attention["output"] = dense("self_attn.o_proj")
    mlp["gate"], mlp["up"] = split(
      "mlp.gate_up_proj", *(model.config.intermediate_size,) * 2
    )
    mlp["down"] = dense("mlp.down_proj")
  elif config.num_experts:
    gate_up = stacked("mlp.experts.gate_up_proj").swapaxes(2, 3)
    mlp["gate"], mlp["up"] = (
      {"kernel": kernel} for kernel in jnp.split(gate_up, 2, axis=-1)
    )
    mlp["down"] = {"kernel": stacked("mlp.experts.down_proj").swapaxes(2, 3)}
    mlp["router"] = dense("mlp.gate")
  if not mlp or config.num_experts:
    for ours, theirs in zip(("query", "key", "value", "output"), "qkvo"):
      attention[ours] = dense(f"self_attn.{theirs}_proj")
  if not mlp:
    for name in ("gate", "up", "down"):
      mlp[name] = dense(f"mlp.{name}_proj")
  if config.qk_norm:
    attention["query_norm"] = {"scale": stacked("self_attn.q_norm.weight")}
    attention["key_norm"] = {"scale": stacked("self_attn.k_norm.weight")}
  params = {
    "embed": {"table": jnp.asarray(leaf("model.embed_tokens.weight", False))},
    "final_norm": {"scale": jnp.asarray(leaf("model.norm.weight", False))},
    "layers": {
      "attention": attention,
      "mlp": mlp,
      **{
        ours: {"scale": stacked(f"{theirs}.weight")}
        for ours, theirs in NORMS.get(config.family, NORMS["llama"]).items()
      },
    },
  }
  if not config.tie_embeddings:
    params["head"] = {"kernel": jnp.asarray(leaf("lm_head.weight", True))}
  return params


# The names of the families before Llama. `qkv` cuts the output axis of a fused
# tensor, [..., 3 D], into query, key and value.
OLDER = {
  "gpt2": dict(
    outer=dict(
      embed="transformer.wte",
      positions="transformer.wpe",
      norm="transformer.ln_f",
    ),
    layer="transformer.h.{}.",
    parts=dict(
      attention_norm="ln_1",
      attention="attn.c_attn",
      output="attn.c_proj",
      mlp_norm="ln_2",
      up="mlp.c_fc",
      down="mlp.c_proj",
    ),
    transpose=False,
    qkv=lambda x, heads: np.split(x, 3, axis=-1),
  ),
  "gpt_neox": dict(
    outer=dict(embed="gpt_neox.embed_in", norm="gpt_neox.final_layer_norm"),
    layer="gpt_neox.layers.{}.",
    parts=dict(
      attention_norm="input_layernorm",
      attention="attention.query_key_value",
      output="attention.dense",
      mlp_norm="post_attention_layernorm",
      up="mlp.dense_h_to_4h",
      down="mlp.dense_4h_to_h",
    ),
    transpose=True,
    qkv=lambda x, heads: [
      x.reshape(*x.shape[:-1], heads, 3, -1)[..., index, :].reshape(
        *x.shape[:-1], -1
      )
      for index in range(3)
    ],
  ),
  "opt": dict(
    outer=dict(
      embed="model.decoder.embed_tokens",
      positions="model.decoder.embed_positions",
      norm="model.decoder.final_layer_norm",
    ),
    layer="model.decoder.layers.{}.",
    parts=dict(
      attention_norm="self_attn_layer_norm",
      query="self_attn.q_proj",
      key="self_attn.k_proj",
      value="self_attn.v_proj",
      output="self_attn.out_proj",
      mlp_norm="final_layer_norm",
      up="fc1",
      down="fc2",
    ),
    transpose=True,
    qkv=None,
  ),
}


# Modules that hold several kernels, in families that are otherwise like Llama.
_FUSED = {
  "phi3": {
    "self_attn.qkv_proj": ("query", "key", "value"),
    "mlp.gate_up_proj": ("gate", "up"),
  }
}


def path_of_layers(family):
  """The path of the list of layers in a stock model."""
  if family in OLDER:
    return OLDER[family]["layer"].partition(".{}")[0]
  return "model.layers"


def modules(model, family, index):
  """The stock modules of one layer that hold its kernels, by (group, name)."""
  found = {}
  if family not in OLDER:
    layer = model.get_submodule(f"{path_of_layers(family)}.{index}")
    paths = {
      f"self_attn.{letter}_proj": (name,)
      for letter, name in zip("qkvo", ("query", "key", "value", "output"))
    } | {f"mlp.{name}_proj": (name,) for name in ("gate", "up", "down")}
    have = dict(layer.named_modules())
    for path, names in (paths | _FUSED.get(family, {})).items():
      group = "mlp" if path.startswith("mlp") else "attention"
      if path in have:
        found |= {(group, name): have[path] for name in names}
    return found
  row = OLDER[family]
  for name, path in row["parts"].items():
    if name.endswith("norm"):
      continue
    module = model.get_submodule(row["layer"].format(index) + path)
    group = "mlp" if name in ("up", "down") else "attention"
    several = ("query", "key", "value") if name == "attention" else (name,)
    found |= {(group, each): module for each in several}
  return found


def convert_older(tensors, config, *, outer, layer, parts, transpose, qkv):
  """The parameter tree of a model with LayerNorm and without gates."""

  def norm(name):
    return {"scale": tensors[name + ".weight"], "bias": tensors[name + ".bias"]}

  def dense(name):
    kernel = tensors[name + ".weight"]
    found = {"kernel": kernel.T if transpose else kernel}
    if name + ".bias" in tensors:
      found["bias"] = tensors[name + ".bias"]
    return found

  def one_layer(index):
    names = {k: layer.format(index) + name for k, name in parts.items()}
    if qkv is None:
      attention = {k: dense(names[k]) for k in ("query", "key", "value")}
    else:
      fused = {
        k: qkv(leaf, config.num_heads)
        for k, leaf in dense(names["attention"]).items()
      }
      attention = {
        name: {k: leaves[index] for k, leaves in fused.items()}
        for index, name in enumerate(("query", "key", "value"))
      }
    return {
      "attention_norm": norm(names["attention_norm"]),
      "attention": attention | {"output": dense(names["output"])},
      "mlp_norm": norm(names["mlp_norm"]),
      "mlp": {k: dense(names[k]) for k in ("up", "down")},
    }

  params = {
    "embed": {"table": tensors[outer["embed"] + ".weight"]},
    "final_norm": norm(outer["norm"]),
    "layers": jax.tree.map(
      lambda *leaves: np.stack(leaves),
      *(one_layer(index) for index in range(config.num_layers)),
    ),
  }
  if "positions" in outer:
    params["embed"]["positions"] = tensors[outer["positions"] + ".weight"]
  if not config.tie_embeddings:
    params["head"] = {"kernel": tensors["lm_head.weight"].T}
  return jax.tree.map(jnp.asarray, params)


def logits(model, tokens, valid=None):
  """Stock logits as numpy; positions count the valid tokens."""
  options = {}
  if valid is not None:
    mask = torch.tensor(np.asarray(valid), dtype=torch.long)
    options = dict(
      attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
    )
  with torch.no_grad():
    return model(torch.tensor(np.asarray(tokens)), **options).logits.numpy()


def greedy(model, tokens, max_new_tokens, valid=None, eos=None):
  """Stock greedy continuation with its cache, new tokens only."""
  tokens = torch.tensor(np.asarray(tokens))
  mask = (
    torch.ones_like(tokens)
    if valid is None
    else torch.tensor(np.asarray(valid), dtype=torch.long)
  )
  with torch.no_grad():
    whole = model.generate(
      tokens,
      attention_mask=mask,
      max_new_tokens=max_new_tokens,
      do_sample=False,
      eos_token_id=eos,
      pad_token_id=0,
      use_cache=True,
    )
  return whole[:, tokens.shape[1] :].numpy()


def stock_rotary(config):
  """The rotary embedding of the family, without the model around it."""
  module = importlib.import_module(
    type(config).__module__.replace("configuration", "modeling")
  )
  (name,) = (name for name in vars(module) if name.endswith("RotaryEmbedding"))
  return getattr(module, name)(config)
