"""Which decoder is this? Reads a Hugging Face config.json into a frozen value.

One `ModelConfig` serves llama, mistral, qwen2 and qwen3. The JSON is read as
transformers 5 reads it, in its own layout (`rope_parameters`), in that of
transformers 4 (`rope_theta`, `rope_scaling`), or in both at once. What happens
to the keys that are not taken here, `config_fields` decides.

Reference: the configuration classes of transformers 5 and its RoPE functions.
Differs from the reference in: numbers that contradict each other, or that no
computation could use, raise; `attention_bias: null` is false, as in
transformers 4; a `head_dim` of null is the quotient for Qwen2 too;
`generation_config.json` is read here for the ids that end a text, because stock
generation stops at those.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune.models import config_fields
from jaxprune.models.config_fields import Fields, is_positive

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


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

_ORIGINAL = "original_max_position_embeddings"
# What each kind of RoPE reads: what must be there, and what may be.
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  "default": ((), ()),
  "linear": (("factor",), ()),
  "dynamic": (("factor",), ()),
  "yarn": (
    ("factor", _ORIGINAL),
    (
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate",
    ),
  ),
  "longrope": (
    ("long_factor", "short_factor", _ORIGINAL),
    ("attention_factor", "factor"),
  ),
  "llama3": (("factor", "high_freq_factor", "low_freq_factor", _ORIGINAL), ()),
}


def _parse(raw: Fields, generation: Mapping[str, Any]) -> ModelConfig:
  """Turn the fields of one configuration into a ModelConfig."""
  family = raw.take("model_type")
  if not isinstance(family, str) or family not in FAMILIES:
    raw.problem("model_type", family, f"known are {', '.join(FAMILIES)}")
    raw.values.clear()  # what the other keys mean depends on the family
    raw.finish()
  raw.of_family(family)
  activation = raw.take("hidden_act")
  if activation not in ("silu", "swish"):
    raw.problem("hidden_act", activation, "only 'silu' is known")
  norm_eps = raw.take_positive("rms_norm_eps")
  num_layers = raw.take_int("num_hidden_layers", most=config_fields.MAX_LAYERS)
  max_positions = raw.take_int("max_position_embeddings")
  vocab_size = raw.take_int("vocab_size")
  heads = _heads(raw, family)
  # Qwen2 has biases on query, key and value whatever its JSON says.
  bias = family != "qwen2" and _bias(raw)
  window, sliding = _sliding(raw, family, num_layers)
  fields = dict(
    heads,
    family=family,
    num_layers=num_layers,
    mlp_dim=raw.take_int("intermediate_size"),
    vocab_size=vocab_size,
    norm_eps=norm_eps,
    rope=_rope(raw, family, heads["head_dim"], max_positions),
    max_positions=max_positions,
    tie_embeddings=raw.take_bool("tie_word_embeddings"),
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
  # Qwen3 alone has a width of its own that is not the quotient by default.
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
  raw: Fields, family: str, num_layers: int | None
) -> tuple[int | None, tuple[bool, ...]]:
  """Window and the layers that use it."""
  window, first = None, 0
  active = family != "llama"
  if family.startswith("qwen"):
    first = raw.take_int("max_window_layers", least=0)
    active = raw.take_bool("use_sliding_window")
  if family != "llama" and raw.peek("sliding_window") is not None:
    # Where no layer reads it, 0 is allowed.
    window = raw.take_int("sliding_window", least=0)
    window = window if active else None
  elif family != "llama":
    raw.take("sliding_window")
  else:
    _llama_window(raw)
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


def _llama_window(raw: Fields) -> None:
  """Refuse a window in a family that has none.

  The masks of stock Llama do not know it, but its cache forgets the keys
  beyond, so that only a window as long as the context changes nothing.
  """
  window, longest = (
    raw.take("sliding_window"),
    raw.peek("max_position_embeddings"),
  )
  if window is None:
    return
  if (
    isinstance(window, int)
    and isinstance(longest, int)
    and 0 < longest <= window
  ):
    raw.ignored.append("sliding_window")
  else:
    raw.problem("sliding_window", window, "Llama has no sliding layers")


def _layer_types(
  raw: Fields, family: str, kinds: Any, default: tuple[bool, ...]
) -> tuple[bool, ...]:
  """Which layers slide by `layer_types`."""
  # The last is the older name of the first.
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


def _rope(
  raw: Fields, family: str, head_dim: int | None, max_positions: int | None
) -> RopeConfig | None:
  """RoPE in either layout, every default resolved; None where it is wrong.

  Where both layouts are there, stock 5 takes `rope_scaling` for
  `rope_parameters`, and a `rope_theta` within either goes before the outer one.
  """
  has_outer_theta = "rope_theta" in raw.values
  outer_theta = raw.values.pop("rope_theta", config_fields.stock_theta(family))
  outer_given = {
    key: raw.values.pop(key)
    for key in ("partial_rotary_factor", _ORIGINAL)
    if key in raw.values
  }
  old, new = raw.take("rope_scaling"), raw.take("rope_parameters")
  field, given = ("rope_scaling", old) if old else ("rope_parameters", new)
  if old and new is not None:
    if not isinstance(new, Mapping):
      raw.problem("rope_parameters", new, "must be an object or null")
    elif new:
      raw.ignored.append("rope_parameters")
  given = {} if given is None else given
  if not isinstance(given, Mapping):
    raw.problem(field, given, "must be an object or null")
    return None
  if any(isinstance(value, Mapping) for value in given.values()):
    raw.problem(field, given, "one RoPE per layer type is not supported")
    return None
  before = len(raw.problems)
  given = dict(given)
  kind = _rope_kind(raw, field, given)
  if has_outer_theta and given.get("rope_theta", outer_theta) != outer_theta:
    raw.ignored.append("rope_theta")
  theta = given.pop("rope_theta", outer_theta)
  if not is_positive(theta) or (kind == "yarn" and theta == 1):
    raw.problem(
      "rope_theta", theta, "must be a positive number, for yarn not 1"
    )
  _check_partial(raw, field, given, outer_given)
  if kind is None or head_dim is None or max_positions is None:
    return None
  if kind == "dynamic" and head_dim == 2:
    raw.problem("head_dim", head_dim, "must be above 2 for rope_type='dynamic'")
  if _ORIGINAL in _ROPE_KEYS[kind][0]:
    # The outer one goes first, even where it is 0 or null.
    given.setdefault(_ORIGINAL, max_positions)
    given.update(outer_given)
  elif outer_given:
    raw.ignored.append(_ORIGINAL)
  scaling = _scaling(raw, field, kind, given, head_dim)
  if len(raw.problems) > before:
    return None
  _resolve(raw, field, kind, scaling, max_positions)
  if len(raw.problems) > before:
    return None
  return RopeConfig(kind, float(theta), tuple(sorted(scaling.items())))


def _rope_kind(raw: Fields, field: str, given: dict[str, Any]) -> str | None:
  """Take the kind of RoPE out of its parameters; None where unknown."""
  older = given.pop("type", "default")
  kind = given.pop("rope_type", older)
  if kind != older and older != "default":
    raw.ignored.append(f"{field}.type")
  kind = "longrope" if kind == "su" else kind
  if not isinstance(kind, str) or kind not in _ROPE_KEYS:
    raw.problem(
      f"{field}.rope_type", kind, f"known are {', '.join(_ROPE_KEYS)}"
    )
    return None
  return kind


def _check_partial(
  raw: Fields, field: str, given: dict[str, Any], outer_given: dict[str, Any]
) -> None:
  """Refuse RoPE over a part of the width, inside or outside `field`."""
  name = "partial_rotary_factor"
  for label, values in ((f"{field}.{name}", given), (name, outer_given)):
    value = values.pop(name, None)
    if value is not None and value != 1:
      raw.problem(label, value, "only 1 is known: the whole width is turned")


def _scaling(
  raw: Fields, field: str, kind: str, given: dict[str, Any], head_dim: int
) -> dict[str, Any]:
  """Check each number that a kind of RoPE reads; what is null is left out."""
  required, optional = _ROPE_KEYS[kind]
  scaling = {}
  for key, value in given.items():
    label = f"{field}.{key}"
    if key in ("mrope_section", "short_mscale", "long_mscale"):
      if value is not None:
        raw.problem(label, value, f"not known for rope_type={kind!r}")
    elif key not in required + optional:
      raw.ignored.append(config_fields.label(label))
    elif key == "truncate":
      # Present and null is false; absent is true.
      if value is not None and not isinstance(value, bool):
        raw.problem(label, value, "must be true or false")
      scaling[key] = bool(value)
    elif key in ("short_factor", "long_factor"):
      scaling[key] = _factors(raw, label, value, head_dim)
    elif key == _ORIGINAL:
      # With 0 every position is beyond the original context.
      least = 1 if kind == "yarn" else 0
      if not (is_positive(value) or (least == 0 and _is_zero(value))):
        raw.problem(label, value, f"must be a number of at least {least}")
      scaling[key] = value
    elif value is None and (
      key in optional or (kind, key) == ("yarn", "factor")
    ):
      continue
    elif key in ("mscale", "mscale_all_dim", "beta_fast", "beta_slow") and (
      _is_zero(value)
    ):
      continue  # 0 is the default
    elif not is_positive(value):
      raw.problem(label, value, "must be a positive number")
    else:
      scaling[key] = value
  for key in required:
    if key not in given:
      raw.problem(f"{field}.{key}", None, f"rope_type={kind!r} needs it")
  return scaling


def _is_zero(value: Any) -> bool:
  return type(value) in (int, float) and value == 0


def _factors(
  raw: Fields, label: str, values: Any, head_dim: int
) -> tuple[float, ...]:
  """The factors of longrope, one per turned pair."""
  if (
    not isinstance(values, (list, tuple))
    or len(values) != head_dim // 2
    or not all(is_positive(value) for value in values)
  ):
    raw.problem(
      label,
      values,
      f"must be {head_dim // 2} positive numbers, half of head_dim",
    )
    return ()
  return tuple(float(value) for value in values)


def _resolve(
  raw: Fields,
  field: str,
  kind: str,
  scaling: dict[str, Any],
  max_positions: int,
) -> None:
  """Fill in what the parameters of a kind of RoPE leave out."""
  try:
    if kind in ("yarn", "longrope") and "factor" not in scaling:
      scaling["factor"] = max_positions / scaling[_ORIGINAL]
    if kind == "yarn":
      scaling.setdefault("truncate", True)
      scaling.setdefault("beta_fast", 32)
      scaling.setdefault("beta_slow", 1)
    if kind in ("yarn", "longrope") and "attention_factor" not in scaling:
      scaling["attention_factor"] = _attention_factor(kind, scaling)
  except (ArithmeticError, ValueError):
    raw.problem(
      f"{field}.{_ORIGINAL}",
      scaling[_ORIGINAL],
      "no attention_factor or factor follows from it: give both",
    )
  if kind == "llama3" and (
    scaling["high_freq_factor"] <= scaling["low_freq_factor"]
  ):
    raw.problem(
      f"{field}.high_freq_factor",
      scaling["high_freq_factor"],
      f"must exceed low_freq_factor={scaling['low_freq_factor']}",
    )


def _attention_factor(kind: str, scaling: dict[str, Any]) -> float:
  """Scale of cos and sin where the configuration gives none."""
  factor = scaling["factor"]
  if kind == "longrope":
    return (
      1.0
      if factor <= 1
      else math.sqrt(1 + math.log(factor) / math.log(scaling[_ORIGINAL]))
    )

  def mscale(weight):
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

  top, bottom = scaling.get("mscale"), scaling.get("mscale_all_dim")
  return mscale(top) / mscale(bottom) if top and bottom else mscale(1)


def _eos(raw: Fields, generation: Mapping[str, Any]) -> tuple[int, ...]:
  """Ids that end a text; those of generation_config.json go first."""
  field, value = "eos_token_id", raw.take("eos_token_id")
  if generation.get("eos_token_id") is not None:
    field = "generation_config.json: eos_token_id"
    value = generation["eos_token_id"]
  values = value if isinstance(value, (list, tuple)) else [value]
  if len(values) > 1 and None in values:
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
  own = raw.take("pad_token_id")
  if not raw.check_id("pad_token_id", own):
    return None
  if own is not None and vocab_size and not -vocab_size <= own < vocab_size:
    raw.problem(
      "pad_token_id", own, f"must be null or below vocab_size={vocab_size}"
    )
  other = generation.get("pad_token_id")
  if other is None:
    return config_fields.as_id(own)
  if not raw.check_id("generation_config.json: pad_token_id", other):
    return None
  return config_fields.as_id(other)
