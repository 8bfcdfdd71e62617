"""Which decoder is this? Reads a Hugging Face config.json into a frozen value.

One `ModelConfig` serves llama, mistral, qwen2 and qwen3. The JSON is read as
transformers 5 reads it. `rope_config` reads the keys about RoPE, and
`config_fields` decides what happens to the keys that nothing reads.

Reference: the configuration classes of transformers 5.
Differs from the reference in: numbers that contradict each other, or that no
computation could use, raise; `attention_bias: null` is false, as in
transformers 4; a `head_dim` of null is the quotient for Qwen2 too;
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
from jaxprune.models.rope_config import RopeConfig, read_rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """One llama-like decoder. Hashable: the static argument of every driver.

  Attributes:
    family: 'llama', 'mistral', 'qwen2' or 'qwen3'.
    num_layers: L.
    embed_dim: D.
    mlp_dim: F.
    num_heads: N, query heads.
    num_kv_heads: K, key and value heads; divides N.
    head_dim: H, even.
    vocab_size: V.
    norm_eps: added to the mean square inside every norm.
    rope: see RopeConfig.
    max_positions: positions the checkpoint was made for.
    tie_embeddings: the head is the embedding table.
    activation: of the MLP, a key of `activations.FUNCTIONS`.
    qkv_bias: query, key and value have biases.
    output_bias: the attention output has one.
    mlp_bias: gate, up and down have biases.
    qk_norm: queries and keys are normed per head before RoPE.
    sliding_window: keys a query of a sliding layer reads, itself included;
      None when no layer slides.
    sliding_layers: which layers slide, length L.
    bos_id: beginning of text, or None.
    eos_ids: ids that end a text; may be empty.
    pad_id: padding, or None.
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
  rope: RopeConfig
  max_positions: int
  tie_embeddings: bool
  activation: str = "silu"
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...]
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None
  ignored: tuple[str, ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )

  @classmethod
  def from_hf(
    cls, source: str | os.PathLike | Mapping[str, Any]
  ) -> "ModelConfig":
    """Read a Hugging Face configuration.

    Args:
      source: a checkpoint folder, or the parsed content of its config.json.

    Returns:
      The configuration. `eos_ids` and `pad_id` come from the folder's
      generation_config.json where that names them.

    Raises:
      ValueError: one line that names the file and every field that is wrong,
        with its value.
    """
    if isinstance(source, Mapping):
      return _parse(Fields("config", source), {})
    folder = pathlib.Path(source)
    file = folder / "config.json"
    if not file.is_file():
      raise ValueError(
        f"{folder}: no config.json there; give a Hugging Face checkpoint folder"
      )
    generation = folder / "generation_config.json"
    return _parse(
      Fields(str(file), config_fields.read_object(file)),
      config_fields.read_object(generation) if generation.is_file() else {},
    )


# Keys of some families that ask the others for another arithmetic.
_NO_BIAS = ((False, None), "this family has no such biases")
_REFUSED = {
  "llama": {},
  "mistral": {"attention_bias": _NO_BIAS, "mlp_bias": _NO_BIAS},
  "qwen2": {"mlp_bias": _NO_BIAS},
  "qwen3": {"mlp_bias": _NO_BIAS},
}


def _parse(raw: Fields, generation: Mapping[str, Any]) -> ModelConfig:
  """Turn the fields of one configuration into a ModelConfig."""
  family = raw.take("model_type")
  if not isinstance(family, str) or family not in FAMILIES:
    raw.problem("model_type", family, f"known are {', '.join(FAMILIES)}")
    raw.values.clear()  # what the other keys mean depends on the family
    raw.finish()
  raw.of_family(family)
  activation = raw.take_activation("hidden_act")
  norm_eps = raw.take_positive("rms_norm_eps")
  num_layers = raw.take_int("num_hidden_layers", most=config_fields.MAX_LAYERS)
  max_positions = raw.take_int("max_position_embeddings")
  vocab_size = raw.take_int("vocab_size")
  heads = _heads(raw, family)
  # Qwen2 has biases on query, key and value whatever its JSON says.
  bias = family != "qwen2" and _bias(raw)
  window, sliding = _sliding(raw, family, num_layers, max_positions)
  fields = dict(
    heads,
    family=family,
    num_layers=num_layers,
    mlp_dim=raw.take_int("intermediate_size"),
    vocab_size=vocab_size,
    norm_eps=norm_eps,
    rope=read_rope(raw, family, heads["head_dim"], max_positions),
    max_positions=max_positions,
    tie_embeddings=raw.take_bool("tie_word_embeddings"),
    activation=activation,
    qkv_bias=bias or family == "qwen2",
    output_bias=bias,
    mlp_bias=raw.declares("mlp_bias") and raw.take_bool("mlp_bias"),
    qk_norm=family == "qwen3",
    sliding_window=window,
    sliding_layers=sliding,
    bos_id=raw.take_id("bos_token_id"),
    eos_ids=_eos(raw, generation),
    pad_id=_pad(raw, generation, vocab_size),
  )
  raw.finish(_REFUSED[family])
  return ModelConfig(**fields, ignored=tuple(raw.ignored))


def _bias(raw: Fields) -> bool:
  """Whether the attention has biases, where the JSON decides."""
  if not raw.declares("attention_bias"):
    return False
  # transformers 4 writes null for "no".
  if raw.peek("attention_bias") is None:
    raw.take("attention_bias")
    return False
  return raw.take_bool("attention_bias")


def _heads(raw: Fields, family: str) -> dict[str, int | None]:
  """Widths that must fit one another; None where one is wrong."""
  embed_dim = raw.take_int("hidden_size")
  num_heads = raw.take_int("num_attention_heads")
  if raw.peek("num_key_value_heads") is None:
    raw.take("num_key_value_heads")
    num_kv_heads = num_heads
  else:
    num_kv_heads = raw.take_int("num_key_value_heads")
  if num_heads and num_kv_heads and num_heads % num_kv_heads:
    raw.problem(
      "num_key_value_heads",
      num_kv_heads,
      f"must divide num_attention_heads={num_heads}",
    )
  if family == "llama" and embed_dim and num_heads and embed_dim % num_heads:
    raw.problem(
      "hidden_size",
      embed_dim,
      f"must be a multiple of num_attention_heads={num_heads}",
    )
  head_dim = None
  # Only Qwen3 has a default head width that is not the quotient.
  if raw.peek("head_dim") is not None or family == "qwen3":
    head_dim = raw.take_int("head_dim")
    field, value = "head_dim", head_dim
  elif embed_dim and num_heads:
    raw.take("head_dim")
    head_dim = embed_dim // num_heads
    field, value = "hidden_size", embed_dim
    if not head_dim:
      raw.problem(field, value, "leaves heads without width")
  if head_dim and head_dim % 2:
    raw.problem(
      field, value, f"RoPE needs an even width of heads, not {head_dim}"
    )
  return dict(
    embed_dim=embed_dim,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=head_dim,
  )


def _sliding(
  raw: Fields, family: str, num_layers: int | None, max_positions: int | None
) -> tuple[int | None, tuple[bool, ...]]:
  """Window and the layers that use it."""
  window, first = None, 0
  active = family != "llama"
  if family.startswith("qwen"):
    first = raw.take_int("max_window_layers", least=0)
    active = raw.take_bool("use_sliding_window")
  if family != "llama" and raw.peek("sliding_window") is not None:
    # A window of 0 is allowed where no layer reads it.
    window = raw.take_int("sliding_window", least=0)
    window = window if active else None
  elif family != "llama":
    raw.take("sliding_window")
  else:
    _llama_window(raw, max_positions)
  kinds = raw.take("layer_types")
  if num_layers is None or first is None:
    return None, ()
  default = tuple(
    window is not None and index >= first for index in range(num_layers)
  )
  sliding = default
  if kinds is not None:
    sliding = _layer_types(raw, family, kinds, default)
  if any(sliding) and window is None:
    raw.problem(
      "layer_types", kinds, "sliding layers need an active sliding_window"
    )
  elif any(sliding) and window == 0:
    raw.problem("sliding_window", window, "leaves nothing to attend to")
  return (window if any(sliding) else None), sliding


def _llama_window(raw: Fields, max_positions: int | None) -> None:
  """Refuse a window in a family that has none.

  The masks of stock Llama do not know it, but its cache forgets the keys
  beyond, so that only a window as long as the context changes nothing.
  """
  window = raw.take("sliding_window")
  if window is None:
    return
  if isinstance(window, int) and max_positions and window >= max_positions:
    raw.ignored.append("sliding_window")
  else:
    raw.problem("sliding_window", window, "Llama has no sliding layers")


def _layer_types(
  raw: Fields, family: str, kinds: Any, default: tuple[bool, ...]
) -> tuple[bool, ...]:
  """Which layers slide by `layer_types`."""
  # The last of these keys is the older name of the first.
  known = ("full_attention", "sliding_attention", "attention")
  if (
    not isinstance(kinds, (list, tuple))
    or len(kinds) != len(default)
    or any(kind not in known for kind in kinds)
  ):
    raw.problem(
      "layer_types",
      kinds,
      f"must be {len(default)} of {known[0]} or {known[1]}",
    )
    return default
  sliding = tuple(kind == known[1] for kind in kinds)
  if not family.startswith("qwen") and sliding != default:
    raw.problem(
      "layer_types",
      kinds,
      f"{family} has one kind of attention, set by sliding_window",
    )
    return default
  return sliding


def _eos(raw: Fields, generation: Mapping[str, Any]) -> tuple[int, ...]:
  """Ids that end a text; those of generation_config.json go first."""
  field, value = "eos_token_id", raw.take("eos_token_id")
  if generation.get("eos_token_id") is not None:
    field = "generation_config.json: eos_token_id"
    value = generation["eos_token_id"]
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
  raw: Fields, generation: Mapping[str, Any], vocab_size: int | None
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
  other = generation.get("pad_token_id")
  if other is None:
    return config_fields.as_id(pad_id)
  if not raw.check_id("generation_config.json: pad_token_id", other):
    return None
  return config_fields.as_id(other)
