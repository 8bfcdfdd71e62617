"""What does the config.json of a changed model say?

The raw JSON of the source is patched, never rebuilt: fields that nothing here
knows stay as they are.

Reference: the lists `drop_attn_list` and `drop_mlp_list` are those of LLM-Drop
(He et al., arXiv 2406.15786), see `drop_lists`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.checkpoints import drop_lists
from jaxprune.checkpoints.source import Source
from jaxprune.models.config import ModelConfig
from jaxprune.models.families import FAMILIES

_PART = "partial_rotary_factor"
_NESTED = {"full_attention", "sliding_attention"}


def patched_config(
  source: Source,
  provenance: Mapping[str, Any],
  drops: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
  """Return the config.json of a model made from `source`.

  Args:
    source: the checkpoint it was made from; sublayers that it lists as dropped
      stay listed.
    provenance: JSON values for the key `jaxprune`.
    drops: {'attention': indices, 'mlp': indices} of the sublayers dropped now.

  Returns:
    JSON values, with the RoPE keys of transformers 4 and 5, without
    `auto_map`.
  """
  hf = dict(source.hf)
  hf.pop("auto_map", None)
  if isinstance(source.config, ModelConfig):
    _write_rope(hf, source.config)
  for sublayer, key in drop_lists.KEYS.items():
    dropped = {*source.drops[sublayer], *drops.get(sublayer, ())}
    if dropped:
      hf[key] = sorted(dropped)
  hf["jaxprune"] = dict(provenance)
  return hf


def _write_rope(hf: dict[str, Any], config: ModelConfig) -> None:
  """Write the RoPE that was used so that transformers 4 and 5 both read it.

  A config.json that holds one layout only, the older, stays as it is. Without
  `rope_theta` and `rope_scaling` transformers 4 takes theta 10000 and no
  scaling without a word, and stale values there it believes.
  """
  rope, row = config.rope, FAMILIES[config.family]
  original = "original_max_position_embeddings"
  if rope is None:
    return
  if _NESTED & set(hf.get("rope_parameters") or ()):
    _write_nested_rope(hf, config)
    return
  length = dict(rope.scaling).get(original)
  new = hf.get("rope_parameters")
  # If both keys are there, transformers 5 reads the older one.
  used = dict(hf.get("rope_scaling") or new or {})
  # transformers 5 reads the outer length, transformers 4 the inner one.
  contradicts = (
    length is not None and original in hf and used.get(original) != length
  )
  if not (new or contradicts or "rope_theta" in used):
    return
  used.pop("type", None)
  used.update(rope_type=rope.kind, rope_theta=rope.theta)
  if length is not None and (original in used or original in hf):
    used[original] = length
    if original in hf or rope.kind == "longrope":
      hf[original] = length
  hf[row.rope_theta] = rope.theta
  part, default = row.rotary_part or (_PART, None)
  if part in hf or part != _PART:
    used.setdefault(_PART, hf.get(part, default))
  hf["rope_scaling"] = None
  if rope.kind != "default":
    outside = {"rope_theta", _PART}
    if config.family == "phi3":
      # Its class in transformers 4 wants these three keys and no other.
      used["type"] = used["rope_type"]
      outside |= {"rope_type", original}
    hf["rope_scaling"] = {k: v for k, v in used.items() if k not in outside}
  if _PART in used:
    hf[part] = used[_PART]
  if new is not None:
    used.pop("type", None)
    hf["rope_parameters"] = used


def _write_nested_rope(hf: dict[str, Any], config: ModelConfig) -> None:
  """The RoPE of full and of sliding layers, in both layouts."""
  new, rope = dict(hf["rope_parameters"]), config.rope
  full = dict(new.get("full_attention") or {}) | (hf.get("rope_scaling") or {})
  full.pop("type", None)
  full.update(rope_type=rope.kind, rope_theta=rope.theta)
  hf["rope_theta"] = rope.theta
  if config.local_rope is not None:
    hf["rope_local_base_freq"] = config.local_rope.theta
  hf["rope_scaling"] = None
  if rope.kind != "default":
    hf["rope_scaling"] = {k: v for k, v in full.items() if k != "rope_theta"}
  hf["rope_parameters"] = {**new, "full_attention": full}
