"""Which decoder is this? Reads a Hugging Face config.json into a frozen value.

One `ModelConfig` serves llama, mistral, qwen2 and qwen3. The JSON is read as it
is, in the layout of transformers 4 (`rope_theta`, `rope_scaling`) or 5
(`rope_parameters`). A field that is neither handled here nor known to leave the
logits alone is an error: a new field read as nothing is a silently wrong model.

Reference: the configuration classes of transformers 5, whose defaults for
omitted keys are `_DEFAULTS`.
Differs from the reference in: unknown fields, unknown RoPE types and numbers
that contradict each other raise; `generation_config.json` is read here for the
ids that end a text, because stock generation stops at those.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """How positions turn queries and keys.

  Attributes:
    kind: 'default', 'linear', 'dynamic', 'yarn', 'longrope' or 'llama3'.
    theta: base of the geometric series of wavelengths.
    scaling: (name, value) pairs under their Hugging Face names with every
      default resolved, sorted by name; lists are tuples.
  """

  kind: str
  theta: float
  scaling: tuple[tuple[str, Any], ...] = ()


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
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...]
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None

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
      ValueError: naming file, field and value, for an unknown model type, RoPE
        type or activation, a field not known here, or inconsistent numbers.
    """
    if isinstance(source, Mapping):
      return _parse(_Reader("config", dict(source)), {})
    folder = pathlib.Path(source)
    file = folder / "config.json"
    if not file.is_file():
      raise ValueError(
        f"{folder}: no config.json there; give a Hugging Face checkpoint folder"
      )
    generation = folder / "generation_config.json"
    return _parse(
      _Reader(str(file), _read_json(file)),
      _read_json(generation) if generation.is_file() else {},
    )


# What an omitted key means, per family.
_COMMON = dict(
  hidden_act="silu",
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
  pad_token_id=None,
)
_DEFAULTS = {
  "llama": dict(
    _COMMON,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    head_dim=None,
    max_position_embeddings=2048,
    attention_bias=False,
    mlp_bias=False,
    bos_token_id=1,
    eos_token_id=2,
  ),
  "mistral": dict(
    _COMMON,
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=None,
    max_position_embeddings=131072,
    sliding_window=4096,
    bos_token_id=1,
    eos_token_id=2,
  ),
  "qwen2": dict(
    _COMMON,
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=None,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    bos_token_id=None,
    eos_token_id=None,
  ),
  "qwen3": dict(
    _COMMON,
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=32768,
    attention_bias=False,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    bos_token_id=None,
    eos_token_id=None,
  ),
}

# Fields that do not reach the logits of the dense arithmetic done here.
# The LLM-Drop lists are here because the weights of a listed sublayer are
# zero in the file, or absent, which the reader of the weights refuses.
_HARMLESS = frozenset(
  """
  _attn_implementation _commit_hash _from_model_config _name_or_path
  architectures attention_dropout begin_suppress_tokens decoder_start_token_id
  drop_attn_list drop_mlp_list dtype finetuning_task forced_bos_token_id
  forced_eos_token_id id2label initializer_range jaxprune label2id
  max_sequence_length num_labels output_attentions output_hidden_states
  output_scores prefix pretraining_tp problem_type remove_invalid_values
  return_dict return_dict_in_generate sep_token_id suppress_tokens
  task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript
  transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
  bad_words_ids diversity_penalty do_sample early_stopping
  encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty
  max_length min_length no_repeat_ngram_size num_beam_groups num_beams
  num_return_sequences repetition_penalty temperature top_k top_p typical_p
""".split()
)

# Fields that are harmless at these values only.
_NEUTRAL = {
  "add_cross_attention": (False, None),
  "attention_bias": (False, None),
  "auto_map": (None,),
  "chunk_size_feed_forward": (0, None),
  "cross_attention_hidden_size": (None,),
  "is_decoder": (False, None),
  "is_encoder_decoder": (False, None),
  "mlp_bias": (False, None),
  "partial_rotary_factor": (1, None),
  "per_layer_config": (None, {}),
  "pruned_heads": (None, {}),
  "quantization_config": (None,),
  "sliding_window": (None,),
  "tie_encoder_decoder": (False, None),
  "use_mrope": (False, None),
  "use_sliding_window": (False, None),
}

_WHY = {
  "auto_map": "it runs code from the checkpoint: remove the key if the"
  " weights are plain",
  "quantization_config": "quantized weights are not read: dequantize them"
  " first",
}

_ROPE_KEYS = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "yarn": (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "truncate",
  ),
  "longrope": (
    "attention_factor",
    "factor",
    "long_factor",
    "original_max_position_embeddings",
    "short_factor",
  ),
  "llama3": (
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
  ),
}


class _Reader:
  """Takes fields out of one JSON object; what is left over is an error."""

  def __init__(self, name: str, fields: dict[str, Any]):
    self.name = name
    self.fields = fields
    self.defaults: dict[str, Any] = {}

  def fail(self, field: str, value: Any, why: str):
    text = repr(value)
    text = text if len(text) < 100 else text[:97] + "..."
    raise ValueError(f"{self.name}: {field}={text}: {why}")

  def take(self, field: str) -> Any:
    if field in self.fields:
      return self.fields.pop(field)
    return self.defaults.get(field)

  def take_int(self, field: str, least: int = 1) -> int:
    value = self.take(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      self.fail(field, value, f"must be an integer of at least {least}")
    return value

  def take_bool(self, field: str) -> bool:
    value = self.take(field)
    if not isinstance(value, bool):
      self.fail(field, value, "must be true or false")
    return value

  def take_id(self, field: str) -> int | None:
    value = self.take(field)
    if value is not None and (
      isinstance(value, bool) or not isinstance(value, int)
    ):
      self.fail(field, value, "must be a token id or null")
    # Old checkpoints write -1 for "there is none".
    return None if value is None or value < 0 else value


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file}: not JSON: {error}") from None
  if not isinstance(content, dict):
    raise ValueError(f"{file}: holds {type(content).__name__}, not an object")
  return content


def _parse(raw: _Reader, generation: dict[str, Any]) -> ModelConfig:
  """Turn the fields of one configuration into a ModelConfig."""
  family = raw.take("model_type")
  if family not in _DEFAULTS:
    raw.fail("model_type", family, f"known are {', '.join(_DEFAULTS)}")
  raw.defaults = _DEFAULTS[family]
  activation = raw.take("hidden_act")
  if activation != "silu":
    raw.fail("hidden_act", activation, "only 'silu' is known")
  eps = raw.take("rms_norm_eps")
  if not _positive(eps):
    raw.fail("rms_norm_eps", eps, "must be a positive number")
  num_layers = raw.take_int("num_hidden_layers")
  max_positions = raw.take_int("max_position_embeddings")
  heads = _heads(raw)
  # Qwen2 has biases on query, key and value whatever its JSON says.
  bias = (
    family != "qwen2"
    and "attention_bias" in raw.defaults
    and (raw.take_bool("attention_bias"))
  )
  window, sliding = _sliding(raw, family, num_layers)
  config = ModelConfig(
    family=family,
    num_layers=num_layers,
    mlp_dim=raw.take_int("intermediate_size"),
    vocab_size=raw.take_int("vocab_size"),
    norm_eps=float(eps),
    rope=_rope(raw, heads["head_dim"], max_positions),
    max_positions=max_positions,
    tie_embeddings=raw.take_bool("tie_word_embeddings"),
    qkv_bias=bias or family == "qwen2",
    output_bias=bias,
    mlp_bias=family == "llama" and raw.take_bool("mlp_bias"),
    qk_norm=family == "qwen3",
    sliding_window=window,
    sliding_layers=sliding,
    bos_id=raw.take_id("bos_token_id"),
    eos_ids=_eos(raw, generation),
    pad_id=_pad(raw, generation),
    **heads,
  )
  _refuse_leftovers(raw)
  return config


def _heads(raw: _Reader) -> dict[str, int]:
  """Widths that must fit one another."""
  embed_dim = raw.take_int("hidden_size")
  num_heads = raw.take_int("num_attention_heads")
  if raw.fields.get("num_key_value_heads", 0) is None:
    raw.fields["num_key_value_heads"] = num_heads
  elif raw.defaults["num_key_value_heads"] is None:
    raw.fields.setdefault("num_key_value_heads", num_heads)
  num_kv_heads = raw.take_int("num_key_value_heads")
  if num_heads % num_kv_heads:
    raw.fail(
      "num_key_value_heads",
      num_kv_heads,
      f"must divide num_attention_heads={num_heads}",
    )
  if raw.fields.get("head_dim", raw.defaults["head_dim"]) is None:
    if embed_dim % num_heads:
      raw.fail(
        "hidden_size",
        embed_dim,
        f"must be a multiple of num_attention_heads={num_heads} when"
        " head_dim is absent",
      )
    raw.fields["head_dim"] = embed_dim // num_heads
  head_dim = raw.take_int("head_dim")
  if head_dim % 2:
    raw.fail("head_dim", head_dim, "RoPE needs an even width")
  return dict(
    embed_dim=embed_dim,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=head_dim,
  )


def _sliding(
  raw: _Reader, family: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...]]:
  """Window and the layers that use it."""
  window = None
  if family != "llama" and raw.fields.get("sliding_window", 0) is None:
    raw.take("sliding_window")
  elif family != "llama":
    window = raw.take_int("sliding_window")
  first = 0
  if family.startswith("qwen"):
    first = raw.take_int("max_window_layers", least=0)
    if not raw.take_bool("use_sliding_window"):
      window = None
  default = tuple(
    window is not None and index >= first for index in range(num_layers)
  )
  kinds = raw.take("layer_types")
  if kinds is None:
    return (window if any(default) else None), default
  known = ("full_attention", "sliding_attention")
  if (
    not isinstance(kinds, list)
    or len(kinds) != num_layers
    or any(kind not in known for kind in kinds)
  ):
    raw.fail(
      "layer_types", kinds, f"must be {num_layers} of {' or '.join(known)}"
    )
  sliding = tuple(kind == known[1] for kind in kinds)
  if not family.startswith("qwen") and sliding != default:
    raw.fail(
      "layer_types",
      kinds,
      f"{family} has one kind of attention, set by sliding_window",
    )
  if any(sliding) and window is None:
    raw.fail(
      "layer_types", kinds, "sliding layers need an active sliding_window"
    )
  return (window if any(sliding) else None), sliding


def _rope(raw: _Reader, head_dim: int, max_positions: int) -> RopeConfig:
  """RoPE in either layout, every default resolved."""
  old, new = raw.take("rope_scaling"), raw.take("rope_parameters")
  field = "rope_scaling" if old else "rope_parameters"
  given = old or new or {}
  if not isinstance(given, Mapping):
    raw.fail(field, given, "must be an object or null")
  given = dict(given)
  if any(isinstance(value, Mapping) for value in given.values()):
    raw.fail(field, given, "one RoPE per layer type is not supported")

  names = [given.pop(key) for key in ("rope_type", "type") if key in given]
  names = ["longrope" if name == "su" else name for name in names]
  kind = names[0] if names else "default"
  if kind not in _ROPE_KEYS:
    raw.fail(f"{field}.rope_type", kind, f"known are {', '.join(_ROPE_KEYS)}")
  if names[1:] and names[1] != kind:
    raw.fail(f"{field}.type", names[1], f"contradicts rope_type={kind!r}")
  top_theta = raw.take("rope_theta")
  theta = given.pop("rope_theta", None)
  theta = theta if theta is not None else top_theta
  theta = 10000.0 if theta is None else theta
  if not _positive(theta):
    raw.fail("rope_theta", theta, "must be a positive number")
  partial = given.pop("partial_rotary_factor", None)
  if partial not in (None, 1):
    raw.fail(f"{field}.partial_rotary_factor", partial, "only 1 is known")
  top_original = raw.take("original_max_position_embeddings")
  keys = _ROPE_KEYS[kind]
  original = "original_max_position_embeddings"
  if original in keys:
    given[original] = top_original or given.get(original) or max_positions
  elif given.get(original) == max_positions:
    given.pop(original)
  for key, value in given.items():
    if key not in keys:
      raw.fail(f"{field}.{key}", value, f"not known for rope_type={kind!r}")
  scaling = _resolve_scaling(raw, field, kind, given, head_dim, max_positions)
  return RopeConfig(kind, float(theta), tuple(sorted(scaling.items())))


def _resolve_scaling(raw, field, kind, given, head_dim, max_positions):
  """Check each number of a RoPE scaling and fill in what it leaves out."""
  scaling = {key: value for key, value in given.items() if value is not None}
  original = scaling.get("original_max_position_embeddings")
  if kind in ("yarn", "longrope") and "factor" not in scaling:
    scaling["factor"] = max_positions / original
  if kind == "yarn":
    scaling.setdefault("truncate", True)
    # Zero means the default too, as in the reference.
    scaling["beta_fast"] = scaling.get("beta_fast") or 32
    scaling["beta_slow"] = scaling.get("beta_slow") or 1
  if "attention_factor" in _ROPE_KEYS[kind]:
    scaling.setdefault("attention_factor", _attention_factor(kind, scaling))
  if kind == "longrope":
    for key in ("short_factor", "long_factor"):
      values = scaling.get(key)
      if (
        not isinstance(values, (list, tuple))
        or len(values) != head_dim // 2
        or not all(_positive(value) for value in values)
      ):
        raw.fail(
          f"{field}.{key}",
          values,
          f"must be {head_dim // 2} positive numbers, half of head_dim",
        )
      scaling[key] = tuple(float(value) for value in values)
  optional = ("mscale", "mscale_all_dim")
  for key in _ROPE_KEYS[kind]:
    value = scaling.get(key)
    if key in ("truncate", "short_factor", "long_factor") or (
      key in optional and not value
    ):
      continue
    if not _positive(value):
      raw.fail(f"{field}.{key}", value, "must be a positive number")
  if kind == "llama3" and (
    scaling["high_freq_factor"] <= scaling["low_freq_factor"]
  ):
    raw.fail(
      f"{field}.high_freq_factor",
      scaling["high_freq_factor"],
      f"must exceed low_freq_factor={scaling['low_freq_factor']}",
    )
  return scaling


def _attention_factor(kind: str, scaling: dict[str, Any]) -> float:
  """Scale of cos and sin where the configuration gives none."""
  factor = scaling["factor"]
  if kind == "longrope":
    original = scaling["original_max_position_embeddings"]
    return (
      1.0
      if factor <= 1
      else math.sqrt(1 + math.log(factor) / math.log(original))
    )

  def mscale(weight):
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

  top, bottom = scaling.get("mscale"), scaling.get("mscale_all_dim")
  return mscale(top) / mscale(bottom) if top and bottom else mscale(1)


def _eos(raw: _Reader, generation: dict[str, Any]) -> tuple[int, ...]:
  value = raw.take("eos_token_id")
  if generation.get("eos_token_id") is not None:
    value = generation["eos_token_id"]
  values = value if isinstance(value, list) else [value]
  values = [v for v in values if v is not None]
  if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
    raw.fail("eos_token_id", value, "must be a token id, a list or null")
  return tuple(v for v in values if v >= 0)


def _pad(raw: _Reader, generation: dict[str, Any]) -> int | None:
  own = raw.take_id("pad_token_id")
  other = generation.get("pad_token_id")
  return own if other is None else other


def _refuse_leftovers(raw: _Reader) -> None:
  for field, value in raw.fields.items():
    if field in _HARMLESS or value in _NEUTRAL.get(field, ()):
      continue
    raw.fail(
      field,
      value,
      _WHY.get(
        field, "not supported for this family: its meaning is not known here"
      ),
    )


def _positive(value: Any) -> bool:
  return (
    isinstance(value, (int, float))
    and not isinstance(value, bool)
    and math.isfinite(value)
    and value > 0
  )
