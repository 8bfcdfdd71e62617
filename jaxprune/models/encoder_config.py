"""Which encoder is this? Reads the config.json of a BERT into a frozen value.

As for decoders (`config.py`), a field that is neither handled here nor known to
leave the hidden states alone is an error.

Reference: Devlin et al., BERT, arXiv:1810.04805; `BertConfig` of transformers
5, whose defaults for omitted keys are `_DEFAULTS`.
Differs from the reference in: relative positions, decoder use and unknown
fields raise.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune.models import config as decoder_config

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
  """One BERT encoder. Hashable: the static argument of every driver.

  Attributes:
    family: 'bert'.
    num_layers: L.
    embed_dim: D.
    mlp_dim: F.
    num_heads: N; divides D.
    vocab_size: V.
    num_token_types: kinds of segment.
    max_positions: learned positions, the longest sequence in tokens.
    norm_eps: added to the variance inside every norm.
    activation: one of ACTIVATIONS.
    pad_id: padding, or None.
    pooler: the checkpoint holds the dense layer over the first token that BERT
      was pretrained with. No embedding here uses it; it is read and written so
      that a checkpoint stays whole. config.json does not say: opening the
      checkpoint does.
  """

  family: str
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  vocab_size: int
  num_token_types: int
  max_positions: int
  norm_eps: float
  activation: str
  pad_id: int | None = None
  pooler: bool = True

  @property
  def head_dim(self) -> int:
    """H."""
    return self.embed_dim // self.num_heads

  @classmethod
  def from_hf(
    cls, source: str | os.PathLike | Mapping[str, Any]
  ) -> "EncoderConfig":
    """Read a Hugging Face configuration.

    Args:
      source: a checkpoint folder, or the parsed content of its config.json.

    Raises:
      ValueError: naming file, field and value, for another model type, an
        unknown activation or field, or inconsistent numbers.
    """
    if isinstance(source, Mapping):
      return _parse(decoder_config._Reader("config", dict(source)))
    file = pathlib.Path(source) / "config.json"
    if not file.is_file():
      raise ValueError(
        f"{source}: no config.json there; give a Hugging Face checkpoint folder"
      )
    return _parse(
      decoder_config._Reader(str(file), decoder_config._read_json(file))
    )


_DEFAULTS = dict(
  vocab_size=30522,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  hidden_act="gelu",
  max_position_embeddings=512,
  type_vocab_size=2,
  layer_norm_eps=1e-12,
  pad_token_id=0,
)

# Dropout is for training; the head over the vocabulary is not read.
_HARMLESS = decoder_config._HARMLESS | frozenset(
  """
  attention_probs_dropout_prob bos_token_id classifier_dropout eos_token_id
  gradient_checkpointing hidden_dropout_prob tie_word_embeddings
""".split()
)

_NEUTRAL = {
  "add_cross_attention": (False, None),
  "auto_map": (None,),
  "chunk_size_feed_forward": (0, None),
  "cross_attention_hidden_size": (None,),
  "is_decoder": (False, None),
  "is_encoder_decoder": (False, None),
  "position_embedding_type": ("absolute", None),
  "pruned_heads": (None, {}),
  "quantization_config": (None,),
  "tie_encoder_decoder": (False, None),
}

_WHY = {
  **decoder_config._WHY,
  "position_embedding_type": "only learned absolute positions are computed",
  "is_decoder": "only the encoder of BERT is computed",
}


def _parse(raw) -> EncoderConfig:
  """Turn the fields of one configuration into an EncoderConfig."""
  family = raw.take("model_type")
  if family != "bert":
    raw.fail("model_type", family, "the only encoder known is 'bert'")
  raw.defaults = _DEFAULTS
  activation = raw.take("hidden_act")
  if activation not in ACTIVATIONS:
    raw.fail("hidden_act", activation, f"known are {', '.join(ACTIVATIONS)}")
  eps = raw.take("layer_norm_eps")
  if not decoder_config._positive(eps):
    raw.fail("layer_norm_eps", eps, "must be a positive number")
  embed_dim, num_heads = (
    raw.take_int(key) for key in ("hidden_size", "num_attention_heads")
  )
  if embed_dim % num_heads:
    raw.fail(
      "hidden_size",
      embed_dim,
      f"must be a multiple of num_attention_heads={num_heads}",
    )
  config = EncoderConfig(
    family=family,
    num_layers=raw.take_int("num_hidden_layers"),
    embed_dim=embed_dim,
    mlp_dim=raw.take_int("intermediate_size"),
    num_heads=num_heads,
    vocab_size=raw.take_int("vocab_size"),
    num_token_types=raw.take_int("type_vocab_size"),
    max_positions=raw.take_int("max_position_embeddings"),
    norm_eps=float(eps),
    activation=activation,
    pad_id=raw.take_id("pad_token_id"),
  )
  for field, value in raw.fields.items():
    if field not in _HARMLESS and value not in _NEUTRAL.get(field, ()):
      raw.fail(
        field,
        value,
        _WHY.get(
          field, "not supported for this family: its meaning is not known here"
        ),
      )
  return config
