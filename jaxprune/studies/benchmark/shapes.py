"""The shapes of published models, and a small one for tests.

Reference: Llama 7B, arXiv:2302.13971, table 2; Llama 3, arXiv:2407.21783, table
3, with the vocabulary of the published config.json.
"""

from collections.abc import Mapping

from jaxprune.models import ModelConfig

_FIELDS = (
  "num_hidden_layers",
  "hidden_size",
  "intermediate_size",
  "num_attention_heads",
  "num_key_value_heads",
  "vocab_size",
)
_SHAPES = {
  "llama-7b": (32, 4096, 11008, 32, 32, 32000),
  "llama3-8b": (32, 4096, 14336, 32, 8, 128256),
  "llama3-70b": (80, 8192, 28672, 64, 8, 128256),
  "llama3-405b": (126, 16384, 53248, 128, 8, 128256),
  "tiny": (2, 256, 512, 8, 4, 1024),
}
NAMES = tuple(_SHAPES)


def config(name: str) -> ModelConfig:
  """The configuration of a shape in `NAMES`.

  Raises:
    ValueError: an unknown name.
  """
  if name not in _SHAPES:
    raise ValueError(f"shape {name!r}: use one of {', '.join(NAMES)}")
  sizes = dict(zip(_FIELDS, _SHAPES[name], strict=True))
  return llama(sizes, positions=8192, rope_theta=500000.0)


def llama(
  sizes: Mapping[str, int], *, positions: int, rope_theta: float
) -> ModelConfig:
  """A Llama of any sizes, without biases or ids of its own.

  Args:
    sizes: fields of config.json.
    positions: longest context, in tokens.
    rope_theta: base of the angles.
  """
  return ModelConfig.from_hf(
    dict(
      sizes,
      model_type="llama",
      max_position_embeddings=positions,
      rms_norm_eps=1e-5,
      rope_theta=rope_theta,
      hidden_act="silu",
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=None,
    )
  )
