"""Tiny random models of stock transformers, and the same models here.

The conversion is written out again instead of taken from
`jaxprune.checkpoints`, so that one can be wrong without the other.
"""

import json

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxprune.models import ModelConfig

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
# A head width that hidden_size / num_attention_heads does not give.
OWN = {"qwen3": dict(head_dim=16)}


def build(family, *, seed=0, **overrides):
  """Return (stock model in eval mode, ModelConfig, params in float32).

  Every parameter is random, norms and biases too, so that a forgotten one
  shows.
  """
  fields = {**SMALL, **OWN.get(family, {}), **overrides}
  if family == "qwen2":
    # Qwen2 has no such field; its width is always the quotient.
    del fields["head_dim"]
  hf_config = transformers.AutoConfig.for_model(family, **fields)
  model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if name.endswith("norm.weight"):
        parameter.copy_(1 + 0.2 * noise)
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

  attention = {
    ours: dense(f"self_attn.{theirs}_proj")
    for ours, theirs in zip(("query", "key", "value", "output"), "qkvo")
  }
  if config.qk_norm:
    attention["query_norm"] = {"scale": stacked("self_attn.q_norm.weight")}
    attention["key_norm"] = {"scale": stacked("self_attn.k_norm.weight")}
  params = {
    "embed": {"table": jnp.asarray(leaf("model.embed_tokens.weight", False))},
    "final_norm": {"scale": jnp.asarray(leaf("model.norm.weight", False))},
    "layers": {
      "attention_norm": {"scale": stacked("input_layernorm.weight")},
      "attention": attention,
      "mlp_norm": {"scale": stacked("post_attention_layernorm.weight")},
      "mlp": {
        name: dense(f"mlp.{name}_proj") for name in ("gate", "up", "down")
      },
    },
  }
  if not config.tie_embeddings:
    params["head"] = {"kernel": jnp.asarray(leaf("lm_head.weight", True))}
  return params


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
