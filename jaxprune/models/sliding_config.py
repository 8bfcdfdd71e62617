"""Which layers slide, and how far do they see? Read from config.json.

Reference: the configuration classes of transformers 5.
"""

from typing import Any

from jaxprune.models.config_fields import Fields
from jaxprune.models.families import Family


def read_sliding(
  raw: Fields, row: Family, num_layers: int | None, max_positions: int | None
) -> tuple[int | None, tuple[bool, ...]]:
  """Take what config.json says of sliding layers.

  Args:
    raw: the fields, from which these are taken; what is wrong is noted there.
    row: of the family.
    num_layers: L, or None where it is wrong.
    max_positions: positions the checkpoint was made for, or None.

  Returns:
    The window, None where no layer slides, and which layers slide, length L.
  """
  window, first, active = None, 0, row.sliding
  if raw.declares("max_window_layers"):
    first = raw.take_int("max_window_layers", least=0)
  if raw.declares("use_sliding_window"):
    active = raw.take_bool("use_sliding_window")
  if row.sliding and raw.peek("sliding_window") is not None:
    # A window of 0 is allowed where no layer reads it.
    window = raw.take_int("sliding_window", least=0)
    window = window if active else None
  elif row.sliding:
    raw.take("sliding_window")
  else:
    _no_window(raw, max_positions)
  kinds = raw.take("layer_types")
  if num_layers is None or first is None:
    return None, ()
  pattern = row.sliding_pattern
  if pattern is None:
    default = tuple(
      window is not None and index >= first for index in range(num_layers)
    )
  else:
    every = _sliding_pattern(raw, *pattern)
    default = tuple((index + 1) % every != 0 for index in range(num_layers))
  sliding = default
  if kinds is not None:
    sliding = _layer_types(raw, kinds, default)
  if pattern is not None and window is None:
    raw.problem(
      "sliding_window",
      None,
      "this family makes a mask of that length for every model",
    )
  elif any(sliding) and window is None:
    raw.problem(
      "layer_types", kinds, "sliding layers need an active sliding_window"
    )
  elif any(sliding) and window == 0:
    raw.problem("sliding_window", window, "leaves nothing to attend to")
  return (window if any(sliding) else None), sliding


def _sliding_pattern(raw: Fields, field: str | None, default: int) -> int:
  """Every so manyth layer does not slide."""
  if field is None or field not in raw.values:
    return default
  return raw.take_int(field) or default


def _no_window(raw: Fields, max_positions: int | None) -> None:
  """Refuse a window in a family that has none.

  The masks of stock code do not know it, but its cache forgets the keys
  beyond, so that only a window as long as the context changes nothing.
  """
  window = raw.take("sliding_window")
  if window is None:
    return
  if isinstance(window, int) and max_positions and window >= max_positions:
    raw.ignored.append("sliding_window")
  else:
    raw.problem("sliding_window", window, "this family has no sliding layers")


def _layer_types(
  raw: Fields, kinds: Any, default: tuple[bool, ...]
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
  if not raw.declares("layer_types") and sliding != default:
    raw.problem(
      "layer_types",
      kinds,
      "this family has one kind of attention, set by sliding_window",
    )
    return default
  return sliding
