"""Which tensors does a file of each architecture hold? Data, and nothing else.

One literal table per architecture. A new one is a new table: every row gives
the tensor's name in the file, the path of the leaf, the leaf's shape, whether
the file holds it transposed, which part of the tensor it is where several
leaves share one, and the config field that decides whether the model has it.
Shapes are of the tree, kernels `[I, O]`; torch linear layers are `[O, I]` in
the file. `names` reads the tables.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune.checkpoints.rows import Part, Row, Table


def _projection(
  name: str,
  path: str,
  inputs: str,
  outputs: str,
  bias: Any = None,
  *,
  transpose: bool = True,
  part: Part | None = None,
) -> tuple[Row, Row]:
  """The rows of a kernel [inputs, outputs] and of its bias."""
  return (
    Row(
      name + ".weight",
      path + "/kernel",
      (inputs, outputs),
      transpose,
      part=part,
    ),
    Row(name + ".bias", path + "/bias", (outputs,), when=bias, part=part),
  )


def _layer_norm(name: str, path: str) -> tuple[Row, Row]:
  """The rows of a LayerNorm."""
  return (
    Row(name + ".weight", path + "/scale", ("D",)),
    Row(name + ".bias", path + "/bias", ("D",)),
  )


def _head(name: str) -> Row:
  """The row of the output head of a model that is not tied."""
  return Row(name, "head/kernel", ("D", "V"), True, ("own_head", True))


_LAYER = "model.layers.{}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_QKV_BIAS = ("qkv_bias", True)
_OUTPUT_BIAS = ("output_bias", True)
_MLP_BIAS = ("mlp_bias", True)
_QK_NORM = ("qk_norm", True)
_OUTPUTS = {"attention": "attention/output", "mlp": "mlp/down"}


def _norm(name: str, path: str, shape: str = "D", when: Any = None) -> Row:
  """The row of the scale of a norm."""
  return Row(name + ".weight", path + "/scale", (shape,), when=when)


def _fused(name: str, inputs: str, paths: Mapping[str, str]) -> tuple[Row, ...]:
  """The rows of kernels {path: outputs} that lie in one tensor."""
  sizes = tuple(paths.values())
  return tuple(
    Row(
      name + ".weight",
      path + "/kernel",
      (inputs, outputs),
      True,
      part=Part(sizes, index),
    )
    for index, (path, outputs) in enumerate(paths.items())
  )


def _thirds(
  name: str,
  size: str,
  bias: Any = None,
  *,
  groups: str = "",
  transpose: bool = True,
) -> tuple[Row, ...]:
  """The rows of query, key and value, of one size in one tensor."""
  return tuple(
    row
    for index, path in enumerate(("query", "key", "value"))
    for row in _projection(
      name,
      "attention/" + path,
      "D",
      "NH",
      bias,
      transpose=transpose,
      part=Part((size,) * 3, index, groups),
    )
  )


def _query_key_value(attention: str, key_size: str) -> tuple[Row, ...]:
  """The rows of query, key and value, each in a tensor of its own."""
  return (
    *_projection(attention + "q_proj", "attention/query", "D", "NH", _QKV_BIAS),
    *_projection(
      attention + "k_proj", "attention/key", "D", key_size, _QKV_BIAS
    ),
    *_projection(
      attention + "v_proj", "attention/value", "D", key_size, _QKV_BIAS
    ),
  )


_QUERY_KEY_VALUE = _query_key_value(_ATTENTION, "KH")
_OUTPUT = _projection(
  _ATTENTION + "o_proj", "attention/output", "NH", "D", _OUTPUT_BIAS
)
_QK_NORMS = tuple(
  _norm(_ATTENTION + name, f"attention/{path}_norm", "H", _QK_NORM)
  for name, path in (("q_norm", "query"), ("k_norm", "key"))
)
_GATED_MLP = (
  *_projection(_MLP + "gate_proj", "mlp/gate", "D", "F", _MLP_BIAS),
  *_projection(_MLP + "up_proj", "mlp/up", "D", "F", _MLP_BIAS),
  *_projection(_MLP + "down_proj", "mlp/down", "F", "D", _MLP_BIAS),
)
_PRE_NORMS = (
  _norm(_LAYER + "input_layernorm", "attention_norm"),
  _norm(_LAYER + "post_attention_layernorm", "mlp_norm"),
)


def _decoder(*layer: Row) -> Table:
  """A decoder whose layers have these rows; all else is as in Llama."""
  return Table(
    outer=(
      Row("model.embed_tokens.weight", "embed/table", ("V", "D")),
      _norm("model.norm", "final_norm"),
      _head("lm_head.weight"),
    ),
    layer=layer,
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    ignored=(
      ".rotary_emb.inv_freq",
      ".rotary_emb.cos_cached",
      ".rotary_emb.sin_cached",
      ".self_attn.bias",
      ".self_attn.masked_bias",
    ),
    sublayer_outputs=_OUTPUTS,
    prefix="model.",
  )


DECODER = _decoder(
  _PRE_NORMS[0],
  *_QUERY_KEY_VALUE,
  *_OUTPUT,
  *_QK_NORMS,
  _PRE_NORMS[1],
  *_GATED_MLP,
)

# A norm before and one after each sublayer.
SANDWICH = _decoder(
  _PRE_NORMS[0],
  *_QUERY_KEY_VALUE,
  *_OUTPUT,
  *_QK_NORMS,
  _norm(_LAYER + "post_attention_layernorm", "attention_post_norm"),
  _norm(_LAYER + "pre_feedforward_layernorm", "mlp_norm"),
  *_GATED_MLP,
  _norm(_LAYER + "post_feedforward_layernorm", "mlp_post_norm"),
)

# Norms after the sublayers only, and over all queries and all keys.
OLMO2 = _decoder(
  *_QUERY_KEY_VALUE,
  *_OUTPUT,
  _norm(_ATTENTION + "q_norm", "attention/query_norm", "NH"),
  _norm(_ATTENTION + "k_norm", "attention/key_norm", "KH"),
  _norm(_LAYER + "post_attention_layernorm", "attention_post_norm"),
  *_GATED_MLP,
  _norm(_LAYER + "post_feedforward_layernorm", "mlp_post_norm"),
)

# Query, key and value in one tensor, gate and up in another.
PHI3 = _decoder(
  _PRE_NORMS[0],
  *_fused(
    _ATTENTION + "qkv_proj",
    "D",
    {"attention/query": "NH", "attention/key": "KH", "attention/value": "KH"},
  ),
  *_OUTPUT,
  _PRE_NORMS[1],
  *_fused(_MLP + "gate_up_proj", "D", {"mlp/gate": "F", "mlp/up": "F"}),
  *_projection(_MLP + "down_proj", "mlp/down", "F", "D", _MLP_BIAS),
)

_EXPERT = _MLP + "experts.{expert}."

QWEN3_MOE = dataclasses.replace(
  _decoder(
    _PRE_NORMS[0],
    *_QUERY_KEY_VALUE,
    *_OUTPUT,
    *_QK_NORMS,
    _PRE_NORMS[1],
    Row(_MLP + "gate.weight", "mlp/router/kernel", ("D", "E"), True),
    *(
      Row(
        f"{_EXPERT}{name}_proj.weight",
        f"mlp/{name}/kernel",
        shape,
        True,
        experts=True,
      )
      for name, shape in (
        ("gate", ("D", "F")),
        ("up", ("D", "F")),
        ("down", ("F", "D")),
      )
    ),
  ),
  fused_experts={
    "gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
    "down_proj": ("down_proj.weight",),
  },
)


def _layer_norm_decoder(
  *layer: Row,
  words: str,
  final_norm: str,
  head: str,
  positions: str | None = None,
  ignored: tuple[str, ...],
) -> Table:
  """A decoder of GPT-2's kind, whose layers have these rows."""
  rows = [Row(words, "embed/table", ("V", "D"))]
  if positions:
    rows.append(Row(positions, "embed/positions", ("P", "D")))
  return Table(
    outer=(*rows, *_layer_norm(final_norm, "final_norm"), _head(head)),
    layer=layer,
    tied=(head, words),
    ignored=ignored,
    sublayer_outputs=_OUTPUTS,
    prefix=words.partition(".")[0] + ".",
  )


_LAYER = "transformer.h.{}."
_ATTENTION = _LAYER + "attn."
_MLP = _LAYER + "mlp."

# Conv1D holds kernels as they are here, [I, O].
GPT2 = _layer_norm_decoder(
  *_layer_norm(_LAYER + "ln_1", "attention_norm"),
  *_thirds(_ATTENTION + "c_attn", "NH", transpose=False),
  *_projection(
    _ATTENTION + "c_proj", "attention/output", "NH", "D", transpose=False
  ),
  *_layer_norm(_LAYER + "ln_2", "mlp_norm"),
  *_projection(_MLP + "c_fc", "mlp/up", "D", "F", transpose=False),
  *_projection(_MLP + "c_proj", "mlp/down", "F", "D", transpose=False),
  words="transformer.wte.weight",
  positions="transformer.wpe.weight",
  final_norm="transformer.ln_f",
  head="lm_head.weight",
  ignored=(".attn.bias", ".attn.masked_bias"),
)

_LAYER = "gpt_neox.layers.{}."
_ATTENTION = _LAYER + "attention."
_MLP = _LAYER + "mlp."

GPT_NEOX = _layer_norm_decoder(
  *_layer_norm(_LAYER + "input_layernorm", "attention_norm"),
  *_thirds(_ATTENTION + "query_key_value", "H", _QKV_BIAS, groups="N"),
  *_projection(
    _ATTENTION + "dense", "attention/output", "NH", "D", _OUTPUT_BIAS
  ),
  *_layer_norm(_LAYER + "post_attention_layernorm", "mlp_norm"),
  *_projection(_MLP + "dense_h_to_4h", "mlp/up", "D", "F"),
  *_projection(_MLP + "dense_4h_to_h", "mlp/down", "F", "D"),
  words="gpt_neox.embed_in.weight",
  final_norm="gpt_neox.final_layer_norm",
  head="embed_out.weight",
  ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)

_LAYER = "model.decoder.layers.{}."
_ATTENTION = _LAYER + "self_attn."

OPT = _layer_norm_decoder(
  *_layer_norm(_LAYER + "self_attn_layer_norm", "attention_norm"),
  *_query_key_value(_ATTENTION, "NH"),
  *_projection(
    _ATTENTION + "out_proj", "attention/output", "NH", "D", _OUTPUT_BIAS
  ),
  *_layer_norm(_LAYER + "final_layer_norm", "mlp_norm"),
  *_projection(_LAYER + "fc1", "mlp/up", "D", "F", _MLP_BIAS),
  *_projection(_LAYER + "fc2", "mlp/down", "F", "D", _MLP_BIAS),
  words="model.decoder.embed_tokens.weight",
  positions="model.decoder.embed_positions.weight",
  final_norm="model.decoder.final_layer_norm",
  head="lm_head.weight",
  ignored=(".decoder.version",),
)

_LAYER = "encoder.layer.{}."
_ATTENTION = _LAYER + "attention."
_POOLER = ("pooler", True)

ENCODER = Table(
  outer=(
    Row("embeddings.word_embeddings.weight", "embed/table", ("V", "D")),
    Row("embeddings.position_embeddings.weight", "embed/positions", ("S", "D")),
    Row(
      "embeddings.token_type_embeddings.weight", "embed/token_types", ("Y", "D")
    ),
    Row("embeddings.LayerNorm.weight", "embed/norm/scale", ("D",)),
    Row("embeddings.LayerNorm.bias", "embed/norm/bias", ("D",)),
    Row("pooler.dense.weight", "pooler/kernel", ("D", "D"), True, _POOLER),
    Row("pooler.dense.bias", "pooler/bias", ("D",), when=_POOLER),
  ),
  layer=(
    *_projection(_ATTENTION + "self.query", "attention/query", "D", "D"),
    *_projection(_ATTENTION + "self.key", "attention/key", "D", "D"),
    *_projection(_ATTENTION + "self.value", "attention/value", "D", "D"),
    *_projection(_ATTENTION + "output.dense", "attention/output", "D", "D"),
    Row(_ATTENTION + "output.LayerNorm.weight", "attention_norm/scale", ("D",)),
    Row(_ATTENTION + "output.LayerNorm.bias", "attention_norm/bias", ("D",)),
    *_projection(_LAYER + "intermediate.dense", "mlp/up", "D", "F"),
    *_projection(_LAYER + "output.dense", "mlp/down", "F", "D"),
    Row(_LAYER + "output.LayerNorm.weight", "mlp_norm/scale", ("D",)),
    Row(_LAYER + "output.LayerNorm.bias", "mlp_norm/bias", ("D",)),
  ),
  tied=None,
  ignored=("embeddings.position_ids", "embeddings.token_type_ids"),
  sublayer_outputs=_OUTPUTS,
  optional=("pooler", "pooler.dense.weight"),
)

TABLES = {
  "llama": DECODER,
  "mistral": DECODER,
  "qwen2": DECODER,
  "qwen3": DECODER,
  "gemma2": SANDWICH,
  "gemma3_text": SANDWICH,
  "olmo2": OLMO2,
  "phi3": PHI3,
  "gpt2": GPT2,
  "gpt_neox": GPT_NEOX,
  "opt": OPT,
  "qwen3_moe": QWEN3_MOE,
  "bert": ENCODER,
}
