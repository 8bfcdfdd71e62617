"""What does config.json say of rotary position embedding?

transformers 5 writes one object `rope_parameters`; transformers 4 wrote
`rope_theta` and `rope_scaling`, and Phi-3 an `original_max_position_embeddings`
beside them.

Reference: `RotaryEmbeddingConfigMixin` and the RoPE functions of transformers
5.
Differs from the reference in: unknown kinds, RoPE over a part of the width in
families that do not compute it, or per layer type, and numbers that no
computation could use raise; `su` is the older name of `longrope` in all
families.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxprune.models import config_fields
from jaxprune.models.config_fields import Fields, is_positive
from jaxprune.models.families import Family

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


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """How positions turn queries and keys.

  Attributes:
    kind: 'default', 'linear', 'dynamic', 'yarn', 'longrope' or 'llama3'.
    theta: base of the geometric series of wavelengths.
    scaling: (name, value) pairs under their Hugging Face names with every
      default resolved, sorted by name; lists are tuples.
    rotary_dim: how many features of a head are turned, the first ones; even.
      None turns all.
  """

  kind: str
  theta: float
  scaling: tuple[tuple[str, Any], ...] = ()
  rotary_dim: int | None = None


def read_rope(
  raw: Fields, row: Family, head_dim: int | None, max_positions: int | None
) -> tuple[RopeConfig | None, RopeConfig | None]:
  """Take what config.json says of RoPE, for all layers or for two kinds.

  Args:
    raw: the fields, from which those of RoPE are taken; what is wrong is noted
      there.
    row: of the family: its names, and what holds where none is given.
    head_dim: H, or None where it is wrong.
    max_positions: positions the checkpoint was made for, or None.

  Returns:
    The RoPE with every default resolved, and that of sliding layers where they
    have their own; None where something is wrong.
  """
  if not row.local_rope:
    return _read_one(raw, row, head_dim, max_positions), None
  theta = config_fields.stock_theta(raw.family)
  new, old = raw.take("rope_parameters"), raw.take("rope_scaling")
  new = {} if new is None else new
  for field, value in (("rope_parameters", new), ("rope_scaling", old)):
    if value is not None and not isinstance(value, Mapping):
      raw.problem(field, value, "must be an object or null")
      return None, None
  ropes = []
  for kind, outer, default, more in (
    ("full_attention", "rope_theta", theta["global"], old),
    ("sliding_attention", "rope_local_base_freq", theta["local"], None),
  ):
    field = f"rope_parameters.{kind}"
    given = new.get(kind)
    given = {"rope_type": "default"} if given is None else given
    if not isinstance(given, Mapping):
      raw.problem(field, given, "must be an object or null")
      return None, None
    given = {**given, **(more or {})}
    has_outer = outer in raw.values
    outer_theta = raw.values.pop(outer, default)
    if has_outer and given.setdefault("rope_theta", outer_theta) != outer_theta:
      raw.ignored.append(outer)
    given.setdefault("rope_theta", outer_theta)
    chosen = _rope_kind(raw, row, field, given)
    _check_whole(raw, field, given, raw.values)
    ropes.append(
      _rope(raw, field, chosen, given, (head_dim, head_dim), max_positions)
    )
  raw.ignored += [
    config_fields.label(f"rope_parameters.{key}")
    for key in new
    if key not in ("full_attention", "sliding_attention")
  ]
  return tuple(ropes)


def _read_one(
  raw: Fields, row: Family, head_dim: int | None, max_positions: int | None
) -> RopeConfig | None:
  """Take what config.json says of RoPE, in either layout or in both.

  Where both are there, stock 5 takes `rope_scaling` for `rope_parameters`, and
  a `rope_theta` within either goes before the outer one.
  """
  has_outer_theta = row.rope_theta in raw.values
  outer_theta = raw.values.pop(
    row.rope_theta, config_fields.stock_theta(raw.family)
  )
  part_name, part = row.rotary_part or ("partial_rotary_factor", None)
  outer_given = {
    key: raw.values.pop(key)
    for key in (part_name, _ORIGINAL)
    if key in raw.values and not (key == _ORIGINAL and raw.declares(key))
  }
  if raw.declares(_ORIGINAL):
    outer_given[_ORIGINAL] = raw.take_int(_ORIGINAL, least=0)
  old, new = raw.take("rope_scaling"), raw.take("rope_parameters")
  field, given = ("rope_scaling", old) if old else ("rope_parameters", new)
  if old and new is not None:
    if not isinstance(new, Mapping):
      raw.problem("rope_parameters", new, "must be an object or null")
    elif _says_otherwise(new, old, outer_theta):
      raw.ignored.append("rope_parameters")
  given = {} if given is None else given
  if not isinstance(given, Mapping):
    raw.problem(field, given, "must be an object or null")
    return None
  if any(isinstance(value, Mapping) for value in given.values()):
    raw.problem(field, given, "one RoPE per layer type is not supported")
    return None
  given = dict(given)
  kind = _rope_kind(raw, row, field, given)
  if has_outer_theta and given.get("rope_theta", outer_theta) != outer_theta:
    raw.ignored.append(row.rope_theta)
  given.setdefault("rope_theta", outer_theta)
  width = head_dim
  if part is None:
    _check_whole(raw, field, given, outer_given)
  else:
    outer_part = outer_given.pop(part_name, part)
    width = _rotary_dim(raw, field, given, outer_part, head_dim)
  if kind and _ORIGINAL in _ROPE_KEYS[kind][0]:
    # The outer key has precedence, even where it is 0 or null.
    given.update(outer_given)
  elif outer_given and not raw.declares(_ORIGINAL):
    raw.ignored.append(_ORIGINAL)
  return _rope(raw, field, kind, given, (head_dim, width), max_positions)


def _rope(
  raw: Fields,
  field: str,
  kind: str | None,
  given: dict[str, Any],
  widths: tuple[int | None, int | None],
  max_positions: int | None,
) -> RopeConfig | None:
  """Check the parameters of one RoPE and fill in what they leave out.

  Args:
    raw: where what is wrong is noted.
    field: under which the parameters are.
    kind: of RoPE, or None where it is unknown.
    given: the parameters, `rope_theta` among them.
    widths: of a head, and of the part of it that is turned.
    max_positions: positions the checkpoint was made for, or None.

  Returns:
    The RoPE, or None where something is wrong.
  """
  theta = given.pop("rope_theta")
  before = len(raw.problems)
  if not is_positive(theta) or (kind == "yarn" and theta == 1):
    raw.problem(
      "rope_theta", theta, "must be a positive number, for yarn not 1"
    )
  head_dim, width = widths
  if kind is None or head_dim is None or max_positions is None:
    return None
  if width is None:
    return None
  if kind == "dynamic" and width == 2:
    raw.problem("head_dim", head_dim, "must be above 2 for rope_type='dynamic'")
  if _ORIGINAL in _ROPE_KEYS[kind][0]:
    given.setdefault(_ORIGINAL, max_positions)
  scaling = _scaling(raw, field, kind, given, width)
  if len(raw.problems) > before:
    return None
  _resolve(raw, field, kind, scaling, max_positions)
  if len(raw.problems) > before:
    return None
  return RopeConfig(
    kind,
    float(theta),
    tuple(sorted(scaling.items())),
    None if width == head_dim else width,
  )


def _says_otherwise(new: Mapping, old: Any, outer_theta: Any) -> bool:
  """Whether `rope_parameters` contradicts what is read in its place."""
  if not new or not isinstance(old, Mapping):
    return False

  def parameters(given):
    kind = given.get("rope_type", given.get("type", "default"))
    theta = given.get("rope_theta", outer_theta)
    return {**given, "rope_type": kind, "type": None, "rope_theta": theta}

  return parameters(new) != parameters(old)


def _rope_kind(
  raw: Fields, row: Family, field: str, given: dict[str, Any]
) -> str | None:
  """Take the kind of RoPE out of its parameters; None where unknown."""
  older = given.pop("type", "default")
  kind = given.pop("rope_type", older)
  if kind != older and older != "default":
    raw.ignored.append(f"{field}.type")
  kinds = row.rope_kinds or tuple(_ROPE_KEYS)
  if isinstance(kind, str):
    kind = row.rope_synonyms.get(kind, kind)
  if not isinstance(kind, str) or kind not in kinds:
    raw.problem(f"{field}.rope_type", kind, f"known are {', '.join(kinds)}")
    return None
  return kind


def _check_whole(
  raw: Fields, field: str, given: dict[str, Any], outer_given: dict[str, Any]
) -> None:
  """Refuse RoPE over a part of the width, inside or outside `field`."""
  name = "partial_rotary_factor"
  for label, values in ((f"{field}.{name}", given), (name, outer_given)):
    value = values.pop(name, None)
    if value is not None and value != 1:
      raw.problem(label, value, "only 1 is known: the whole width is turned")


def _rotary_dim(
  raw: Fields,
  field: str,
  given: dict[str, Any],
  outer_part: Any,
  head_dim: int | None,
) -> int | None:
  """Take the part of the width that is turned, in features; None if wrong."""
  part = given.pop("partial_rotary_factor", outer_part)
  label = f"{field}.partial_rotary_factor"
  if not is_positive(part) or part > 1:
    raw.problem(label, part, "must be above 0 and at most 1")
    return None
  if head_dim is None:
    return None
  width = int(head_dim * part)
  if width % 2 or not width:
    raw.problem(
      label, part, f"turns {width} of {head_dim} features, not an even number"
    )
    return None
  return width


def _scaling(
  raw: Fields, field: str, kind: str, given: dict[str, Any], width: int
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
      # A key that is present and null counts as false, an absent one as true.
      if value is not None and not isinstance(value, bool):
        raw.problem(label, value, "must be true or false")
      scaling[key] = bool(value)
    elif key in ("short_factor", "long_factor"):
      scaling[key] = _factors(raw, label, value, width)
    elif key == _ORIGINAL:
      # With a length of 0 every position lies beyond the original context.
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
  raw: Fields, label: str, values: Any, width: int
) -> tuple[float, ...]:
  """The factors of longrope, one per turned pair."""
  if (
    not isinstance(values, (list, tuple))
    or len(values) != width // 2
    or not all(is_positive(value) for value in values)
  ):
    raw.problem(
      label,
      values,
      f"must be {width // 2} positive numbers, one per turned pair",
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
