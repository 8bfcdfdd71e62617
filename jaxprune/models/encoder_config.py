"""Which encoder is this? Reads the config.json of a BERT into a frozen value.

`config_fields` decides what happens to the keys that nothing here reads.

Reference: Devlin et al., BERT, arXiv:1810.04805; `BertConfig` of transformers
5.
Differs from the reference in: relative positions, RoPE and decoder use raise.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jaxprune.models import config_fields
from jaxprune.models.config_fields import Fields


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
    activation: of the MLP, a key of `activations.FUNCTIONS`.
    pad_id: padding, or None.
    pooler: the checkpoint holds the dense layer over the first token that BERT
      was pretrained with. No embedding here uses it; it is read and written so
      that a checkpoint stays whole. config.json does not say: opening the
      checkpoint does.
    ignored: keys of config.json without effect here and in stock transformers;
      two configurations may differ in them and be equal.
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
  ignored: tuple[str, ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )

  @property
  def head_dim(self) -> int:
    """H."""
    return self.embed_dim // self.num_heads

  @classmethod
  def from_hf(
    cls, source: str | os.PathLike | Mapping[str, Any]
  ) -> "EncoderConfig":
    """Read the config.json of BERT, given the folder or what is in it.

    Raises:
      ValueError: one line that names the file and every field that is wrong,
        with its value.
    """
    if isinstance(source, Mapping):
      return _parse(Fields("config", source))
    return _parse(config_fields.read_folder(source))


_ABSOLUTE = "only learned absolute positions are computed"
REFUSED = {
  "add_cross_attention": ((False, None), "only the encoder is computed"),
  "is_decoder": ((False, None), "only the encoder of BERT is computed"),
  "position_embedding_type": (("absolute", None), _ABSOLUTE),
  "rope_parameters": ((None,), _ABSOLUTE),
  "rope_scaling": ((None,), _ABSOLUTE),
  "rope_theta": ((None,), _ABSOLUTE),
  # BERT attends in both directions, so here the other value is the right one.
  "is_causal": ((False, None), "attention goes both ways"),
}
# These keys are read by the heads that BERT was pretrained with, and by nothing
# here.
_UNUSED = ("bos_token_id", "eos_token_id", "tie_word_embeddings")


def _parse(raw: Fields) -> EncoderConfig:
  """Turn the fields of one configuration into an EncoderConfig."""
  family = raw.take("model_type")
  if family != "bert":
    raw.problem("model_type", family, "the only encoder known is 'bert'")
    raw.values.clear()  # what the other keys mean depends on the family
    raw.finish()
  raw.of_family(family)
  activation = raw.take_activation("hidden_act")
  embed_dim = raw.take_int("hidden_size")
  num_heads = raw.take_int("num_attention_heads")
  raw.check_whole_heads(embed_dim, num_heads)
  fields = dict(
    family=family,
    num_layers=raw.take_int("num_hidden_layers", most=config_fields.MAX_LAYERS),
    embed_dim=embed_dim,
    mlp_dim=raw.take_int("intermediate_size"),
    num_heads=num_heads,
    vocab_size=raw.take_int("vocab_size"),
    num_token_types=raw.take_int("type_vocab_size"),
    max_positions=raw.take_int("max_position_embeddings"),
    norm_eps=raw.take_positive("layer_norm_eps"),
    activation=activation,
    pad_id=raw.take_id("pad_token_id"),
  )
  for field in _UNUSED:
    raw.take(field)
  raw.finish(REFUSED)
  return EncoderConfig(**fields, ignored=tuple(raw.ignored))
