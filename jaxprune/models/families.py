"""How do the families of decoders differ in their config.json?

One row per family: under which names it says what every decoder has, and what
it does not say because stock code of the family always does so.

Reference: the configuration and modelling files of transformers 5.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# A bool that a field of config.json decides, or that is always the same.
Decision = str | bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """What one family says under which name, and what it leaves unsaid.

  Attributes:
    activation: the field of the activation function.
    mlp_dim: the field of F; null, where stock allows it, is 4 D.
    norm: 'rms', or 'layer' for LayerNorm with a bias.
    norm_eps: the field of what is added inside the norms, or the number.
    qkv_bias: whether query, key and value have biases.
    output_bias: whether the attention output has one.
    mlp_bias: whether the kernels of the MLP have biases.
    gated_mlp: whether the MLP is gated.
    qk_norm: whether queries and keys are normed.
    qk_norm_whole: whether that is over all heads at once, not per head.
    pre_norm: whether what a sublayer reads is normed.
    post_norm: whether what a sublayer adds is normed.
    unit_offset: whether the scales of norms are stored less 1.
    scale_embedding: whether embeddings are multiplied by sqrt(D).
    parallel_residual: whether attention and MLP read the same residual.
    position_offset: the row of position 0 in a learned table of positions; None
      for RoPE.
    rope_theta: the outer field of the base of RoPE.
    rotary_part: (outer field, default) of the fraction of a head that RoPE
      turns; None where it turns all.
    local_rope: whether sliding layers have a RoPE of their own.
    rope_kinds: the kinds of RoPE that the family has; () is all.
    rope_synonyms: other names of kinds of RoPE.
    rereads: whether stock generation reads a text anew, with other keys and
      values, when it grows beyond the original context of longrope.
    whole_heads: whether D must be a multiple of N.
    head_dim: 'own' where the stock class has a default that is not D / N,
      'free' where the field is read all the same, 'quotient' where it is not.
    sliding: whether layers may slide.
    sliding_pattern: (undeclared field or None, its default): every so manyth
      layer does not slide, where `layer_types` does not say; None is all alike.
    experts: whether the MLP is a mixture of experts.
    unread: declared fields that stock code does not read.
    refused: further keys that ask for another arithmetic, with the values that
      do not, and why they are refused.
  """

  activation: str = "hidden_act"
  mlp_dim: str = "intermediate_size"
  norm: str = "rms"
  norm_eps: str | float = "rms_norm_eps"
  qkv_bias: Decision = False
  output_bias: Decision = False
  mlp_bias: Decision = False
  gated_mlp: bool = True
  qk_norm: bool = False
  qk_norm_whole: bool = False
  pre_norm: bool = True
  post_norm: bool = False
  unit_offset: bool = False
  scale_embedding: bool = False
  parallel_residual: Decision = False
  position_offset: int | None = None
  rope_theta: str = "rope_theta"
  rotary_part: tuple[str, float] | None = None
  local_rope: bool = False
  rope_kinds: tuple[str, ...] = ()
  rope_synonyms: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"su": "longrope"}
  )
  rereads: bool = False
  whole_heads: bool = False
  head_dim: str = "free"
  sliding: bool = False
  sliding_pattern: tuple[str | None, int] | None = None
  experts: bool = False
  unread: tuple[str, ...] = ()
  refused: Mapping[str, tuple[tuple[Any, ...], str]] = dataclasses.field(
    default_factory=dict
  )


_NO_BIAS = ((False, None), "this family has no such biases")
_GEMMA = dict(
  post_norm=True,
  unit_offset=True,
  scale_embedding=True,
  whole_heads=True,
  head_dim="own",
  sliding=True,
)

FAMILIES: dict[str, Family] = {
  "llama": Family(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    whole_heads=True,
  ),
  "mistral": Family(
    sliding=True, refused={"attention_bias": _NO_BIAS, "mlp_bias": _NO_BIAS}
  ),
  "qwen2": Family(qkv_bias=True, sliding=True, refused={"mlp_bias": _NO_BIAS}),
  "qwen3": Family(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    head_dim="own",
    sliding=True,
    refused={"mlp_bias": _NO_BIAS},
  ),
  "gemma2": Family(
    activation="hidden_activation",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    **_GEMMA,
    sliding_pattern=(None, 2),
    refused={"mlp_bias": _NO_BIAS},
  ),
  "gemma3_text": Family(
    activation="hidden_activation",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    **_GEMMA,
    qk_norm=True,
    local_rope=True,
    sliding_pattern=("sliding_window_pattern", 6),
    # Its attention is never told of this cap.
    unread=("attn_logit_softcapping",),
    refused={"mlp_bias": _NO_BIAS},
  ),
  "olmo2": Family(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    pre_norm=False,
    post_norm=True,
    qk_norm=True,
    qk_norm_whole=True,
    refused={"mlp_bias": _NO_BIAS},
  ),
  "phi3": Family(
    rotary_part=("partial_rotary_factor", 1.0),
    rope_kinds=("default", "longrope"),
    rope_synonyms={"su": "longrope", "yarn": "longrope"},
    rereads=True,
    sliding=True,
    refused={"attention_bias": _NO_BIAS, "mlp_bias": _NO_BIAS},
  ),
  "gpt2": Family(
    activation="activation_function",
    mlp_dim="n_inner",
    norm="layer",
    norm_eps="layer_norm_epsilon",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    gated_mlp=False,
    position_offset=0,
    whole_heads=True,
    head_dim="quotient",
  ),
  "gpt_neox": Family(
    norm="layer",
    norm_eps="layer_norm_eps",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias=True,
    gated_mlp=False,
    parallel_residual="use_parallel_residual",
    rope_theta="rotary_emb_base",
    rotary_part=("rotary_pct", 0.25),
    whole_heads=True,
    head_dim="quotient",
  ),
  "opt": Family(
    activation="activation_function",
    mlp_dim="ffn_dim",
    norm="layer",
    norm_eps=1e-5,
    qkv_bias="enable_bias",
    output_bias="enable_bias",
    mlp_bias="enable_bias",
    gated_mlp=False,
    position_offset=2,
    whole_heads=True,
    head_dim="quotient",
  ),
  "qwen3_moe": Family(
    mlp_dim="moe_intermediate_size",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    sliding=True,
    experts=True,
    refused={"mlp_bias": _NO_BIAS},
  ),
}
