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


_NO_BIAS = {
  name: ((False, None), "this family has no such biases")
  for name in ("attention_bias", "mlp_bias")
}
_NO_MLP_BIAS = {"mlp_bias": _NO_BIAS["mlp_bias"]}
_BIASES = ("qkv_bias", "output_bias", "mlp_bias")
# One field says whether the kernels of attention have biases.
_ATTENTION_BIAS = dict(qkv_bias="attention_bias", output_bias="attention_bias")
_GEMMA = dict(
  **_ATTENTION_BIAS,
  activation="hidden_activation",
  post_norm=True,
  unit_offset=True,
  scale_embedding=True,
  whole_heads=True,
  head_dim="own",
  sliding=True,
  refused=_NO_MLP_BIAS,
)
# The families from before LLaMA: GPT-2 and those after it.
_LAYER_NORM = dict(
  norm="layer", gated_mlp=False, whole_heads=True, head_dim="quotient"
)

FAMILIES: dict[str, Family] = {
  "llama": Family(**_ATTENTION_BIAS, mlp_bias="mlp_bias", whole_heads=True),
  "mistral": Family(sliding=True, refused=_NO_BIAS),
  "qwen2": Family(qkv_bias=True, sliding=True, refused=_NO_MLP_BIAS),
  "qwen3": Family(
    **_ATTENTION_BIAS,
    qk_norm=True,
    head_dim="own",
    sliding=True,
    refused=_NO_MLP_BIAS,
  ),
  "gemma2": Family(**_GEMMA, sliding_pattern=(None, 2)),
  "gemma3_text": Family(
    **_GEMMA,
    qk_norm=True,
    local_rope=True,
    sliding_pattern=("sliding_window_pattern", 6),
    # Its attention is never told of this cap.
    unread=("attn_logit_softcapping",),
  ),
  "olmo2": Family(
    **_ATTENTION_BIAS,
    pre_norm=False,
    post_norm=True,
    qk_norm=True,
    qk_norm_whole=True,
    refused=_NO_MLP_BIAS,
  ),
  "phi3": Family(
    rotary_part=("partial_rotary_factor", 1.0),
    rope_kinds=("default", "longrope"),
    rope_synonyms={"su": "longrope", "yarn": "longrope"},
    rereads=True,
    sliding=True,
    refused=_NO_BIAS,
  ),
  "gpt2": Family(
    activation="activation_function",
    mlp_dim="n_inner",
    **_LAYER_NORM,
    norm_eps="layer_norm_epsilon",
    **dict.fromkeys(_BIASES, True),
    position_offset=0,
  ),
  "gpt_neox": Family(
    **_LAYER_NORM,
    norm_eps="layer_norm_eps",
    **_ATTENTION_BIAS,
    mlp_bias=True,
    parallel_residual="use_parallel_residual",
    rope_theta="rotary_emb_base",
    rotary_part=("rotary_pct", 0.25),
  ),
  "opt": Family(
    activation="activation_function",
    mlp_dim="ffn_dim",
    **_LAYER_NORM,
    norm_eps=1e-5,
    **dict.fromkeys(_BIASES, "enable_bias"),
    position_offset=2,
  ),
  "qwen3_moe": Family(
    mlp_dim="moe_intermediate_size",
    **_ATTENTION_BIAS,
    qk_norm=True,
    sliding=True,
    experts=True,
    refused=_NO_MLP_BIAS,
  ),
}
