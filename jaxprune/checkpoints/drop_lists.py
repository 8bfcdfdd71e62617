"""Which sublayers does a config.json say to leave out?

LLM-Drop lists them and leaves their weights whole, for code of its own; the
exports of this project list them and write their output projections as zeros.
Either way the model has no such sublayers, so their output projections are
read as zeros: everything that reads weights agrees then.

Reference: He et al., LLM-Drop, arXiv 2406.15786, whose own files hold indices
or one bool per layer.
Differs from the reference in: a list that is neither is an error. Stock
transformers does not read the lists.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune.checkpoints import names

KEYS = {"attention": "drop_attn_list", "mlp": "drop_mlp_list"}


def parse(
  hf: Mapping[str, Any], num_layers: int, file: pathlib.Path
) -> dict[str, tuple[int, ...]]:
  """Read the lists of a config.json.

  Args:
    hf: its content.
    num_layers: L.
    file: named in errors.

  Returns:
    {'attention': indices, 'mlp': indices}, ascending.

  Raises:
    ValueError: a list that holds neither layer indices nor one bool per layer.
  """
  return {
    sublayer: _layers(hf.get(key), num_layers, f"{file}: {key}")
    for sublayer, key in KEYS.items()
  }


def zeroed(
  config: names.Config, drops: Mapping[str, tuple[int, ...]]
) -> frozenset[str]:
  """Names of the tensors that are zero in a model without these sublayers.

  Args:
    config: the model.
    drops: from `parse`.
  """
  outputs = names.table(config).sublayer_outputs
  return frozenset(
    row.name.format(index)
    for row in names.layer_rows(config)
    for sublayer, layers in drops.items()
    if row.path.startswith(outputs[sublayer] + "/")
    for index in layers
  )


def describe(drops: Mapping[str, tuple[int, ...]]) -> str:
  """What is left out, in words; '' where nothing is."""
  return "; ".join(
    f"{sublayer} of layers {', '.join(map(str, layers))} ({KEYS[sublayer]})"
    for sublayer, layers in drops.items()
    if layers
  )


def _layers(value: Any, num_layers: int, label: str) -> tuple[int, ...]:
  """The layers of one list; `label` names it in an error."""
  if value is None:
    return ()
  if isinstance(value, list):
    if len(value) == num_layers and all(type(v) is bool for v in value):
      return tuple(i for i, dropped in enumerate(value) if dropped)
    if all(type(v) is int and 0 <= v < num_layers for v in value):
      return tuple(sorted(set(value)))
  raise ValueError(
    f"{label}={value!r:.80} is neither layer indices below {num_layers} nor"
    f" {num_layers} bools; correct or remove it"
  )
