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
    qk_norm: whether queries and keys are normed per head.
    parallel_residual: whether attention and MLP read the same residual.
    position_offset: the row of position 0 in a learned table of positions; None
      for RoPE.
    rope_theta: the outer field of the base of RoPE.
    rotary_part: (outer field, default) of the fraction of a head that RoPE
      turns; None where it turns all.
    whole_heads: whether D must be a multiple of N.
    head_dim: 'own' where the stock class has a default that is not D / N,
      'free' where the field is read all the same, 'quotient' where it is not.
    sliding: whether layers may slide.
    experts: whether the MLP is a mixture of experts.
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
  parallel_residual: Decision = False
  position_offset: int | None = None
  rope_theta: str = "rope_theta"
  rotary_part: tuple[str, float] | None = None
  whole_heads: bool = False
  head_dim: str = "free"
  sliding: bool = False
  experts: bool = False
  refused: Mapping[str, tuple[tuple[Any, ...], str]] = dataclasses.field(
    default_factory=dict
  )


_NO_BIAS = ((False, None), "this family has no such biases")

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
}
