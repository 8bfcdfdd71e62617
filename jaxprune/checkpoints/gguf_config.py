"""What config.json would the metadata of a GGUF file be?

One row per architecture of llama.cpp: the family of stock transformers, and
what the file does not say because llama.cpp always does so. Metadata keys begin
with the name of the architecture, `llama.block_count`.

Reference: the key names of the GGUF specification, and the conversion of
transformers 5 (`load_gguf_checkpoint`).
Differs from the reference in: RoPE scaling is read, that of Llama 3 from its
`rope_freqs` tensor, where transformers runs such a file without any; what
cannot be read raises.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """How one architecture of llama.cpp is named in stock transformers.

  Attributes:
    model_type: the family.
    class_name: of the stock model with a head.
    permuted: whether the rows of query and key are in the order of interleaved
      RoPE.
    norm_offset: what was added to the scales of norms.
    post_norms: whether a norm follows each sublayer, so that `ffn_norm` is the
      one before the MLP.
    fixed: fields of config.json that the file does not say.
    read: {field: key} of further metadata that must be there.
  """

  model_type: str
  class_name: str
  permuted: bool = False
  norm_offset: float = 0.0
  post_norms: bool = False
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  read: Mapping[str, str] = dataclasses.field(default_factory=dict)


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES = {
  "llama": Architecture(
    model_type="llama", class_name="LlamaForCausalLM", permuted=True
  ),
  "mistral": Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    permuted=True,
    fixed={"sliding_window": None},
  ),
  "qwen2": Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    fixed={"use_sliding_window": False, "sliding_window": None},
  ),
  "qwen3": Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    fixed={
      "attention_bias": False,
      "use_sliding_window": False,
      "sliding_window": None,
    },
  ),
  "gemma2": Architecture(
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    norm_offset=1.0,
    post_norms=True,
    fixed=_GEMMA,
    read={
      "sliding_window": "attention.sliding_window",
      "attn_logit_softcapping": "attn_logit_softcapping",
      "final_logit_softcapping": "final_logit_softcapping",
    },
  ),
  "gemma3": Architecture(
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    norm_offset=1.0,
    post_norms=True,
    # llama.cpp turns the sliding layers, five of six, by this base.
    fixed=_GEMMA | {"rope_local_base_freq": 10000.0},
    read={"sliding_window": "attention.sliding_window"},
  ),
}

_NAMES = {
  "hidden_size": "embedding_length",
  "intermediate_size": "feed_forward_length",
  "num_hidden_layers": "block_count",
  "num_attention_heads": "attention.head_count",
  "max_position_embeddings": "context_length",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Layers of the models whose queries are scaled by D / N instead of the width of
# a head: gemma2 and gemma3 of 27 billion parameters.
_SCALED_BY_QUOTIENT = {"gemma2": 46, "gemma3": 62}


def read_config(
  file: str,
  metadata: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  rope_freqs: np.ndarray | None,
) -> dict[str, Any]:
  """Return the config.json of a GGUF file.

  Args:
    file: its name, for errors.
    metadata: all its keys and values.
    shapes: of its tensors by name, rows first.
    rope_freqs: the tensor of this name, what each frequency of RoPE is divided
      by, [H / 2]; None where there is none.

  Raises:
    ValueError: an architecture or a RoPE that is not known here, or a key that
      is missing.
  """
  name = metadata.get("general.architecture")
  if name not in ARCHITECTURES:
    raise ValueError(
      f"{file}: architecture {name!r} of a GGUF file; known are"
      f" {', '.join(ARCHITECTURES)}"
    )
  arch = ARCHITECTURES[name]

  def get(key: str) -> Any:
    if f"{name}.{key}" not in metadata:
      raise ValueError(
        f"{file}: metadata has no {name}.{key}; convert the model to GGUF again"
      )
    return metadata[f"{name}.{key}"]

  hf = {
    "model_type": arch.model_type,
    "architectures": [arch.class_name],
    **{field: get(key) for field, key in _NAMES.items()},
    **arch.fixed,
    **{field: get(key) for field, key in arch.read.items()},
    "vocab_size": shapes["token_embd.weight"][0],
    "tie_word_embeddings": "output.weight" not in shapes,
  }
  if not name.startswith("gemma"):
    hf["hidden_act"] = "silu"
  heads = hf["num_attention_heads"]
  hf["num_key_value_heads"] = metadata.get(
    f"{name}.attention.head_count_kv", heads
  )
  hf |= _head_dim(file, name, metadata, hf["hidden_size"] // heads)
  if name.startswith("gemma"):
    quotient = hf["num_hidden_layers"] == _SCALED_BY_QUOTIENT[name]
    hf["query_pre_attn_scalar"] = (
      hf["hidden_size"] // heads if quotient else hf["head_dim"]
    )
  if name == "llama":
    hf["attention_bias"] = "blk.0.attn_q.bias" in shapes
    hf["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
  if name == "gemma3":
    cap = metadata.get("gemma3.final_logit_softcapping")
    hf["final_logit_softcapping"] = cap
  hf |= _rope(file, name, metadata, hf, rope_freqs)
  for field, key in (
    ("bos_token_id", "bos"),
    ("eos_token_id", "eos"),
    ("pad_token_id", "padding"),
  ):
    hf[field] = metadata.get(f"tokenizer.ggml.{key}_token_id")
  return hf


def _head_dim(file, name, metadata, quotient) -> dict[str, int]:
  """The width of a head, of which keys and values have the same."""
  width = metadata.get(f"{name}.attention.key_length", quotient)
  others = {
    key: metadata.get(f"{name}.{key}", width)
    for key in ("attention.value_length", "rope.dimension_count")
  }
  for key, value in others.items():
    if value != width:
      raise ValueError(
        f"{file}: {name}.{key}={value}, but heads have {width}; only equal"
        " widths are known"
      )
  if name == "qwen2":  # its class has no such field
    if width != quotient:
      raise ValueError(
        f"{file}: heads of width {width} in qwen2, whose heads have {quotient}"
      )
    return {}
  return {"head_dim": width}


def _rope(file, name, metadata, hf, rope_freqs) -> dict[str, Any]:
  """Base and scaling of RoPE, in the fields of transformers 4 and 5."""
  theta = float(metadata.get(f"{name}.rope.freq_base", 10000.0))
  get = lambda key: metadata.get(f"{name}.rope.scaling.{key}")
  kind, factor = get("type"), get("factor")
  scaling = None
  if rope_freqs is not None:
    width = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    scaling = _llama3(file, theta, width, rope_freqs)
  elif kind == "linear" and factor not in (None, 1.0):
    scaling = {"rope_type": "linear", "factor": float(factor)}
  elif kind == "yarn":
    scaling = {"rope_type": "yarn", "factor": float(factor)}
    length = get("original_context_length")
    if length is not None:
      scaling["original_max_position_embeddings"] = length
    if get("attn_factor") not in (None, 1.0) or get("yarn_log_multiplier"):
      raise ValueError(
        f"{file}: RoPE of kind yarn with an own attention factor is not known"
      )
  elif kind not in (None, "none", "linear"):
    raise ValueError(
      f"{file}: {name}.rope.scaling.type={kind!r} is not known; use a"
      " safetensors checkpoint of the model"
    )
  return {"rope_theta": theta, "rope_scaling": scaling}


# What the converters of llama.cpp write for Llama 3.1 to 3.3: the factor is the
# only thing in which those models differ.
_LLAMA3 = {
  "rope_type": "llama3",
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


def _llama3(file, theta, head_dim, rope_freqs) -> dict[str, Any]:
  """Find the scaling whose divisors of the frequencies a file holds."""
  found = np.asarray(rope_freqs, np.float64)
  factor = float(round(found.max()))
  low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
  length = _LLAMA3["original_max_position_embeddings"]
  wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = np.clip((length / wavelength - low) / (high - low), 0, 1)
  expected = 1 / ((1 - smooth) / factor + smooth)
  if found.shape != expected.shape or not np.allclose(
    found, expected, rtol=1e-4
  ):
    raise ValueError(
      f"{file}: rope_freqs.weight is not the RoPE scaling of Llama 3; use a"
      " safetensors checkpoint of the model"
    )
  return _LLAMA3 | {"factor": factor}


def stock_names(arch: Architecture, num_layers: int) -> dict[str, str]:
  """Return the name in the GGUF file of every tensor that a model may have.

  Args:
    arch: of the file.
    num_layers: L.

  Returns:
    {name in a Hugging Face folder: name in the GGUF file}.
  """
  names = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
  }
  block = {
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
  if arch.post_norms:
    block |= {
      "post_attention_layernorm": "post_attention_norm",
      "pre_feedforward_layernorm": "ffn_norm",
      "post_feedforward_layernorm": "post_ffw_norm",
    }
  for index in range(num_layers):
    for stock, name in block.items():
      for kind in ("weight", "bias"):
        names[f"model.layers.{index}.{stock}.{kind}"] = (
          f"blk.{index}.{name}.{kind}"
        )
  return names
