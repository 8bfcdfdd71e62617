"""Tiny models of stock transformers as GGUF files, as llama.cpp writes them.

Written out again instead of taken from `jaxprune.checkpoints`, so that one can
be wrong without the other.
"""

import gguf
import numpy as np

BLOCK = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
  "post_attention_layernorm": "post_attention_norm",
  "pre_feedforward_layernorm": "ffn_norm",
  "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
}
KEYS = {
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.sliding_window": "sliding_window",
}
# What is packed how: blocks of 32, and of single numbers.
KINDS = ("Q8_0", "Q5_0", "Q4_1", "F16", "BF16")


def write(path, model, arch, *, metadata=None, tokens=None, extra=None):
  """Write a stock model.

  Args:
    path: the file.
    model: of transformers, of a family that `arch` stands for.
    arch: its name in llama.cpp.
    metadata: {key: value} that are added, numbers or text.
    tokens: {key: list or value} of `tokenizer.ggml`.
    extra: {name: array} of tensors that are added in float32.
  """
  config = model.config
  writer = gguf.GGUFWriter(path, arch)
  for key, field in KEYS.items():
    value = getattr(config, field, None)
    if value is not None:
      writer.add_uint32(f"{arch}.{key}", value)
  writer.add_float32(
    f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps
  )
  theta = config.rope_parameters
  theta = theta.get("full_attention", theta)["rope_theta"]
  writer.add_float32(f"{arch}.rope.freq_base", theta)
  if getattr(config, "head_dim", None):
    writer.add_uint32(f"{arch}.attention.key_length", config.head_dim)
    writer.add_uint32(f"{arch}.attention.value_length", config.head_dim)
    if arch == "llama":
      writer.add_uint32("llama.rope.dimension_count", config.head_dim)
  for key, value in {**(metadata or {})}.items():
    _add(writer, key, value)
  tokens = tokens or {
    "model": "gpt2",
    "tokens": [f"t{index}" for index in range(config.vocab_size)],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "padding_token_id": 0,
  }
  for key, value in tokens.items():
    _add(writer, f"tokenizer.ggml.{key}", value)
  for number, (name, tensor) in enumerate(model.state_dict().items()):
    if name == "lm_head.weight" and config.tie_word_embeddings:
      continue
    array = tensor.float().numpy()
    if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
      array = _interleave(array, config, ".q_proj." in name)
    if arch.startswith("gemma") and "norm" in name:
      array = array + np.float32(1)
    kind = KINDS[number % len(KINDS)]
    if array.ndim == 1 or array.shape[-1] % 32:
      kind = "F32"
    kind = gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(array, kind)
    writer.add_tensor(_name(name, arch), packed, raw_dtype=kind)
  for name, array in {**(extra or {})}.items():
    writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _add(writer, key, value):
  if isinstance(value, str):
    writer.add_string(key, value)
  elif isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  else:
    writer.add_array(key, value)


def _interleave(array, config, is_query):
  """From (i, i + H/2) of each head to pairs (2i, 2i + 1)."""
  heads = config.num_attention_heads if is_query else config.num_key_value_heads
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _name(name, arch):
  stem, _, kind = name.rpartition(".")
  if stem in OUTER:
    return f"{OUTER[stem]}.{kind}"
  _, _, index, rest = stem.split(".", 3)
  block = BLOCK | (GEMMA if arch.startswith("gemma") else {})
  return f"blk.{index}.{block[rest]}.{kind}"
