"""Which decoder is this? Reads a Hugging Face config.json into a frozen value.

One `ModelConfig` serves every family: what they differ in are its fields. The
JSON is read as transformers 5 reads it. `families` says which names a family
uses, `rope_config` reads the keys about RoPE, and `config_fields` decides what
happens to the keys that nothing reads.

Reference: the configuration classes of transformers 5.
Differs from the reference in: numbers that contradict each other, or that no
computation could use, raise; `attention_bias: null` is false, as in
transformers 4; a `head_dim` of null is the quotient where no class declares it;
`generation_config.json` is read here for the ids that end a text, because stock
generation stops at those.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune.models import config_fields
from jaxprune.models.config_fields import Fields
from jaxprune.models.families import FAMILIES, Decision, Family
from jaxprune.models.rope_config import RopeConfig, read_rope
from jaxprune.models.sliding_config import read_sliding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """One decoder. Hashable: the static argument of every driver.

  Attributes:
    family: a name in `families.FAMILIES`.
    num_layers: L.
    embed_dim: D.
    mlp_dim: F, of each expert where there are several.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; divides N.
    head_dim: H.
    vocab_size: V.
    norm_eps: added to the mean square, or the variance, inside every norm.
    rope: see RopeConfig; None where positions are a learned table.
    local_rope: of the layers that slide; None is `rope`.
    max_positions: positions the checkpoint was made for.
    tie_embeddings: the head is the embedding table.
    activation: of the MLP, a key of `activations.FUNCTIONS`.
    qkv_bias: query, key and value have biases.
    output_bias: the attention output has one.
    mlp_bias: gate, up and down have biases.
    norm: 'rms' for RMSNorm, 'layer' for LayerNorm with a bias.
    gated_mlp: the MLP is down(activation(gate(y)) * up(y)), not
      down(activation(up(y))).
    num_experts: E, MLPs of which each token passes through a few; 0 is one MLP
      for all tokens.
    experts_per_token: C, how many each token passes through.
    norm_expert_weights: the weights of a token's experts sum to 1.
    parallel_residual: attention and MLP read the same residual, so that the MLP
      does not read what attention adds.
    pre_norm: what a sublayer reads is the normed residual.
    post_norm: what a sublayer adds to the residual is normed before.
    unit_offset: the scales of RMSNorm are stored less 1.
    scale_embedding: embeddings are multiplied by sqrt(D).
    position_offset: the row of position 0 in the learned table of positions;
      not read with RoPE.
    qk_norm: queries and keys are normed before RoPE.
    qk_norm_whole: over all heads at once, not each head alone.
    score_scale: factor on the attention scores; None is 1 / sqrt(H).
    score_cap: attention scores s become c tanh(s / c); None leaves them.
    logit_cap: logits z become c tanh(z / c); None leaves them.
    sliding_window: keys a query of a sliding layer reads, itself included;
      None when no layer slides.
    sliding_layers: which layers slide, length L.
    bos_id: beginning of text, or None.
    eos_ids: ids that end a text; may be empty.
    pad_id: padding, or None.
    bare_names: the names in the file lack the prefix of the family, as those of
      a model that was saved without its head. config.json does not say: opening
      the checkpoint does.
    has_head: whether there is an output head, its own or a tied one; without,
      the model embeds texts and has no logits. Opening the checkpoint says it.
    ignored: keys of config.json that have no effect, here and in stock
      transformers. Configurations that differ in these only are equal.
  """

  family: str
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  vocab_size: int
  norm_eps: float
  rope: RopeConfig | None
  max_positions: int
  tie_embeddings: bool
  activation: str = "silu"
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  norm: str = "rms"
  gated_mlp: bool = True
  num_experts: int = 0
  experts_per_token: int = 0
  norm_expert_weights: bool = False
  parallel_residual: bool = False
  pre_norm: bool = True
  post_norm: bool = False
  unit_offset: bool = False
  scale_embedding: bool = False
  position_offset: int = 0
  qk_norm: bool = False
  qk_norm_whole: bool = False
  score_scale: float | None = None
  score_cap: float | None = None
  logit_cap: float | None = None
  local_rope: RopeConfig | None = None
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...]
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None
  bare_names: bool = dataclasses.field(default=False, compare=False, repr=False)
  has_head: bool = True
  ignored: tuple[str, ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )

  @property
  def own_head(self) -> bool:
    """Whether the head is a tensor of its own."""
    return self.has_head and not self.tie_embeddings

  @property
  def num_position_rows(self) -> int:
    """Rows of the learned table of positions; 0 with RoPE."""
    return 0 if self.rope else self.max_positions + self.position_offset

  @property
  def embedding_scale(self) -> float:
    """Factor on what is looked up, to be rounded to the dtype of the table."""
    return self.embed_dim**0.5 if self.scale_embedding else 1.0

  @classmethod
  def from_hf(
    cls, source: str | os.PathLike | Mapping[str, Any]
  ) -> "ModelConfig":
    """Read a Hugging Face configuration.

    Args:
      source: a checkpoint folder, or the parsed content of its config.json.

    Returns:
      The configuration. `eos_ids` and `pad_id` come from the folder's
      generation_config.json: the ends whenever there is that file, as in stock
      generation, the padding where it names it.

    Raises:
      ValueError: one line that names the file and every field that is wrong,
        with its value.
    """
    if isinstance(source, Mapping):
      return _parse(Fields("config", source), None)
    generation = pathlib.Path(source) / "generation_config.json"
    return _parse(
      config_fields.read_folder(source),
      config_fields.read_object(generation) if generation.is_file() else None,
    )


def _parse(raw: Fields, generation: Mapping[str, Any] | None) -> ModelConfig:
  """Turn the fields of one configuration into a ModelConfig."""
  family = raw.take("model_type")
  if not isinstance(family, str) or family not in FAMILIES:
    raw.problem("model_type", family, f"known are {', '.join(FAMILIES)}")
    raw.values.clear()  # what the other keys mean depends on the family
    raw.finish()
  raw.of_family(family)
  row = FAMILIES[family]
  activation = raw.take_activation(row.activation)
  norm_eps = row.norm_eps
  if isinstance(norm_eps, str):
    norm_eps = raw.take_positive(norm_eps)
  num_layers = raw.take_int("num_hidden_layers", most=config_fields.MAX_LAYERS)
  max_positions = raw.take_int("max_position_embeddings")
  vocab_size = raw.take_int("vocab_size")
  heads = _heads(raw, row)
  window, sliding = read_sliding(raw, row, num_layers, max_positions)
  rope = local_rope = None
  if row.position_offset is None:
    rope, local_rope = read_rope(raw, row, heads["head_dim"], max_positions)
  for field in row.unread:
    if raw.peek(field) is None:
      raw.take(field)
    elif raw.take_positive(field):
      raw.ignored.append(field)
  fields = dict(
    heads,
    **_decisions(raw, row),
    family=family,
    num_layers=num_layers,
    mlp_dim=_mlp_dim(raw, row, heads["embed_dim"]),
    vocab_size=vocab_size,
    norm_eps=norm_eps,
    rope=rope,
    local_rope=local_rope if any(sliding) else None,
    max_positions=max_positions,
    tie_embeddings=raw.take_bool("tie_word_embeddings"),
    activation=activation,
    norm=row.norm,
    gated_mlp=row.gated_mlp,
    position_offset=row.position_offset or 0,
    pre_norm=row.pre_norm,
    post_norm=row.post_norm,
    unit_offset=row.unit_offset,
    scale_embedding=row.scale_embedding,
    qk_norm=row.qk_norm,
    qk_norm_whole=row.qk_norm_whole,
    score_scale=_score_scale(raw, heads["head_dim"]),
    score_cap=_cap(raw, "attn_logit_softcapping"),
    logit_cap=_cap(raw, "final_logit_softcapping"),
    sliding_window=window,
    sliding_layers=sliding,
    bos_id=raw.take_id("bos_token_id"),
    eos_ids=_eos(raw, generation),
    pad_id=_pad(raw, generation, vocab_size),
  )
  if raw.declares("word_embed_proj_dim"):
    _check_projection(raw, heads["embed_dim"])
  if row.experts:
    fields |= _experts(raw)
  raw.finish(row.refused)
  return ModelConfig(**fields, ignored=tuple(raw.ignored))


def _decisions(raw: Fields, row: Family) -> dict[str, bool]:
  """What a field of bool decides, or the family."""
  names = ("qkv_bias", "output_bias", "mlp_bias", "parallel_residual")
  decided: dict[Decision, bool] = {True: True, False: False}
  for field in dict.fromkeys(getattr(row, name) for name in names):
    if isinstance(field, bool):
      continue
    # transformers 4 writes null for "no".
    if field == "attention_bias" and raw.peek(field) is None:
      raw.take(field)
      decided[field] = False
    else:
      decided[field] = raw.take_bool(field)
  return {name: decided[getattr(row, name)] for name in names}


def _experts(raw: Fields) -> dict[str, Any]:
  """The experts, which every layer must have so that layers can be stacked."""
  num_experts = raw.take_int("num_experts")
  per_token = raw.take_int("num_experts_per_tok")
  if num_experts and per_token and per_token > num_experts:
    raw.problem(
      "num_experts_per_tok", per_token, f"at most num_experts={num_experts}"
    )
  for field, neutral in (
    ("decoder_sparse_step", (1,)),
    ("mlp_only_layers", (None, [])),
  ):
    value = raw.take(field)
    if value not in neutral:
      raw.problem(
        field,
        value,
        "layers with and without experts cannot be stacked: only"
        f" {neutral[-1]} is supported",
      )
  raw.take_int("intermediate_size")  # of layers without experts
  return dict(
    num_experts=num_experts,
    experts_per_token=per_token,
    norm_expert_weights=raw.take_bool("norm_topk_prob"),
  )


def _check_projection(raw: Fields, embed_dim: int | None) -> None:
  """Refuse embeddings of another width than the residual."""
  width = raw.take("word_embed_proj_dim")
  if width is not None and width != embed_dim:
    raw.problem(
      "word_embed_proj_dim",
      width,
      f"embeddings are not projected here: only hidden_size={embed_dim}",
    )


def _score_scale(raw: Fields, head_dim: int | None) -> float | None:
  """The factor on attention scores where it is not 1 / sqrt(H)."""
  if not raw.declares("query_pre_attn_scalar"):
    return None
  scalar = raw.take_int("query_pre_attn_scalar")
  return None if scalar in (None, head_dim) else scalar**-0.5


def _cap(raw: Fields, field: str) -> float | None:
  """The bound of a soft cap, where the stock class has that field."""
  if not raw.declares(field) or field in FAMILIES[raw.family].unread:
    return None
  if raw.peek(field) is None:
    raw.take(field)
    return None
  return raw.take_positive(field)


def _mlp_dim(raw: Fields, row: Family, embed_dim: int | None) -> int | None:
  """F."""
  if raw.peek(row.mlp_dim) is None and raw.may_be_null(row.mlp_dim):
    raw.take(row.mlp_dim)
    return embed_dim and 4 * embed_dim
  return raw.take_int(row.mlp_dim)


def _heads(raw: Fields, row: Family) -> dict[str, int | None]:
  """Widths that must fit one another; None where one is wrong."""
  embed_dim = raw.take_int("hidden_size")
  num_heads = num_kv_heads = raw.take_int("num_attention_heads")
  if raw.declares("num_key_value_heads"):
    if raw.peek("num_key_value_heads") is None:
      raw.take("num_key_value_heads")
    else:
      num_kv_heads = raw.take_int("num_key_value_heads")
  if num_heads and num_kv_heads and num_heads % num_kv_heads:
    raw.problem(
      "num_key_value_heads",
      num_kv_heads,
      f"must divide num_attention_heads={num_heads}",
    )
  if row.whole_heads:
    raw.check_whole_heads(embed_dim, num_heads)
  return dict(
    embed_dim=embed_dim,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=_head_dim(raw, row, embed_dim, num_heads),
  )


def _head_dim(
  raw: Fields, row: Family, embed_dim: int | None, num_heads: int | None
) -> int | None:
  """H; None where it is wrong."""
  quotient = embed_dim // num_heads if embed_dim and num_heads else None
  given = raw.peek("head_dim")
  if row.head_dim == "quotient":
    raw.take("head_dim")
    if given is not None and given != quotient:
      raw.problem("head_dim", given, f"is always {quotient} in this family")
    head_dim, field, value = quotient, "hidden_size", embed_dim
  elif given is not None or row.head_dim == "own":
    head_dim = raw.take_int("head_dim")
    field, value = "head_dim", head_dim
  else:
    raw.take("head_dim")
    head_dim, field, value = quotient, "hidden_size", embed_dim
  if quotient == 0 and field == "hidden_size":
    raw.problem(field, value, "leaves heads without width")
  if (
    head_dim
    and head_dim % 2
    and row.position_offset is None
    and row.rotary_part is None
  ):
    raw.problem(
      field, value, f"RoPE needs an even width of heads, not {head_dim}"
    )
  return head_dim


def _eos(raw: Fields, generation: Mapping[str, Any] | None) -> tuple[int, ...]:
  """Ids that end a text; those of generation_config.json alone if it is there.

  Stock generation then does not look into config.json.
  """
  field, value = "eos_token_id", raw.take("eos_token_id")
  if generation is not None:
    field = "generation_config.json: eos_token_id"
    value = generation.get("eos_token_id")
  several = isinstance(value, (list, tuple))
  values = value if several else [value]
  if several and None in values:
    raw.problem(field, value, "must be token ids, one token id or null")
    return ()
  if not all(raw.check_id(field, id_) for id_ in values):
    return ()
  ids = (config_fields.as_id(id_) for id_ in values)
  return tuple(id_ for id_ in ids if id_ is not None)


def _pad(
  raw: Fields, generation: Mapping[str, Any] | None, vocab_size: int | None
) -> int | None:
  """The padding id; that of generation_config.json goes first."""
  pad_id = raw.take("pad_token_id")
  if not raw.check_id("pad_token_id", pad_id):
    return None
  if (
    pad_id is not None and vocab_size and not -vocab_size <= pad_id < vocab_size
  ):
    raw.problem(
      "pad_token_id", pad_id, f"must be null or below vocab_size={vocab_size}"
    )
  other = (generation or {}).get("pad_token_id")
  if other is None:
    return config_fields.as_id(pad_id)
  if not raw.check_id("generation_config.json: pad_token_id", other):
    return None
  return config_fields.as_id(other)
