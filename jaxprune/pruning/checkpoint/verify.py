"""Is a folder pruned where it says, and how alike are two pruned folders?

One layer in memory at a time. What a folder says of itself are the record of
its export (sizes and hashes), `masks.safetensors` and the pattern in
config.json. Two folders are compared by their masks, and where a folder has
none by its zeros.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxprune import checkpoints, files
from jaxprune.checkpoints import export, folders, names
from jaxprune.models import kernels_of
from jaxprune.pruning import masks as masks_lib
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import resume
from jaxprune.pruning.patterns import NofM, Unstructured, removed_count

Tree = dict[str, Any]
# What a row says of a kernel in two folders: field -> (type, unit, meaning).
FIELDS = {
  "removed": ("int", "weights", "zeros of the kernel"),
  "removed_alone": ("int", "weights", "zero here and not in --against"),
  "kept_alone": ("int", "weights", "zero in --against and not here"),
  "max_weight_difference": ("float", "", "over weights that both keep"),
  "in_common": (
    "float",
    "",
    "fraction of the entries that both masks treat alike",
  ),
  "jaccard": (
    "float",
    "",
    "weights that both masks keep over those either keeps",
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
  """What was found in a folder.

  Attributes:
    rows: one per layer and kernel.
    checks: by name, whether it holds; None where the folder does not say.
    values: numbers of the comparison with another folder, {} for none.
  """

  rows: list[dict[str, Any]]
  checks: dict[str, bool | None]
  values: dict[str, Any]


def verify(
  source: checkpoints.Source,
  other: checkpoints.Source | None = None,
  *,
  pattern: NofM | None = None,
) -> Verified:
  """Check a folder, and compare it with another.

  Args:
    source: the folder that is checked.
    other: a model of the same shape, pruned otherwise.
    pattern: n:m that every kernel must obey, at most n weights of every m
      inputs; for folders that do not name their pattern.

  Raises:
    ValueError: kernels of other shapes, or bad weights or masks.
  """
  if other and names.kernel_shapes(other.config) != names.kernel_shapes(
    source.config
  ):
    raise ValueError(
      f"{other.folder}: its kernels have other shapes than those of"
      f" {source.folder}"
    )
  masks = _read_masks(source)
  their_masks = _read_masks(other) if other else {}
  patterns = _patterns(source)
  rows, counts, wrong = [], [], {"masks": 0, "pattern": 0, "n:m": 0}
  for index in range(source.config.num_layers):
    layer = _kernels(source, index)
    keep = {name: masks[name][index] for name in layer if name in masks}
    wrong["masks"] += sum(
      int((layer[name][~keep_IO] != 0).sum()) for name, keep_IO in keep.items()
    )
    if patterns:
      wrong["pattern"] += sum(
        not _has(keep_IO, patterns[index]) for keep_IO in keep.values()
      )
    if pattern:
      zeros = {name: w_IO != 0 for name, w_IO in layer.items()}
      obeyed = masks_lib.verify_nm(zeros, pattern, exact=False)
      wrong["n:m"] += sum(not ok for ok in obeyed.values())
    part = {
      name: {
        "layer": index,
        "kernel": name,
        "removed": int((w_IO == 0).sum()),
        "sparsity": float((w_IO == 0).mean()),
      }
      for name, w_IO in layer.items()
    }
    if other:
      other_layer = _kernels(other, index)
      both, either, distance, jaccard = jax.device_get(
        _compare_masks(
          {name: keep.get(name, w_IO != 0) for name, w_IO in layer.items()},
          {
            name: their_masks[name][index] if name in their_masks else w_IO != 0
            for name, w_IO in other_layer.items()
          },
        )
      )
      for name, row in part.items():
        row |= _differences(layer[name], other_layer[name])
        row["in_common"] = 1.0 - float(distance[name])
        row["jaccard"] = float(jaccard[name])
        size = layer[name].size
        counts.append(
          {
            "kernel": name,
            "layer": index,
            "size": size,
            "differ": float(distance[name]) * size,
            "both": float(both[name]) * size,
            "either": float(either[name]) * size,
          }
        )
    rows += part.values()
  checks = {
    "shards": _check_shards(source),
    "masks": wrong["masks"] == 0 if masks else None,
    "pattern": wrong["pattern"] == 0 if masks and patterns else None,
  }
  if pattern:
    checks[f"{pattern.keep}:{pattern.of}"] = wrong["n:m"] == 0
  values = _totals(rows, counts) if other else {}
  return Verified(rows=rows, checks=checks, values=values)


def _totals(rows, counts) -> dict[str, Any]:
  """The comparison of all kernels together."""
  layers = range(1 + max(entry["layer"] for entry in counts))
  kernels = dict.fromkeys(entry["kernel"] for entry in counts)
  return {
    "removed_alone": sum(row["removed_alone"] for row in rows),
    "kept_alone": sum(row["kept_alone"] for row in rows),
    "max_weight_difference": max(row["max_weight_difference"] for row in rows),
    "masks": {
      **_alike(counts),
      "by_kernel": {
        name: _alike([c for c in counts if c["kernel"] == name])
        for name in kernels
      },
      "by_layer": [
        _alike([c for c in counts if c["layer"] == index]) for index in layers
      ],
    },
  }


def _alike(counts) -> dict[str, float]:
  """How alike the masks of some kernels are, every entry counting alike."""
  size, differ, both, either = (
    sum(entry[name] for entry in counts)
    for name in ("size", "differ", "both", "either")
  )
  return {
    "in_common": 1.0 - differ / size,
    "jaccard": both / either if either else 1.0,
  }


def _kernels(source, index) -> dict[str, np.ndarray]:
  """The kernels [I, O] of a layer by GROUP/KERNEL or GROUP/KERNEL/EXPERT."""
  layer = checkpoints.read_layer(source, index)
  kernels = {
    f"{group}/{name}": layer[group][name]["kernel"]
    for group, name in kernels_of(layer)
  }
  return _one_per_expert(kernels, axis=0)


def _one_per_expert(kernels, axis):
  """Stacks of experts as one matrix, or stack over layers, for each."""
  return {
    name if several.ndim == 2 + axis else f"{name}/{expert}": one
    for name, several in kernels.items()
    for expert, one in enumerate(
      (several,) if several.ndim == 2 + axis else np.moveaxis(several, axis, 0)
    )
  }


def _check_shards(source) -> bool | None:
  """Compare with the record of the export; None where there is none."""
  if not os.path.lexists(source.folder / export.PROGRESS):
    return None
  path = folders.inside(source.folder, export.PROGRESS)
  recorded = files.read_json(path).get("shards")
  if not isinstance(recorded, dict) or not all(
    isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()
    for entry in recorded.values()
  ):
    raise ValueError(
      f"{path}: 'shards' should map file names to size and sha256; remove the"
      " file, or export the folder again"
    )
  return all(
    _is_recorded(folders.inside(source.folder, name), entry)
    for name, entry in recorded.items()
  )


def _is_recorded(path, entry) -> bool:
  """Whether a file has the size and the hash that were recorded."""
  return (
    path.stat().st_size == entry["size"]
    and files.sha256_file(path) == entry["sha256"]
  )


def _read_masks(source) -> Mapping[str, np.ndarray]:
  """The masks [L, I, O] of a folder by the names of `_kernels`; {} for none."""
  if not os.path.lexists(source.folder / resume.MASKS):
    return {}
  path = folders.inside(source.folder, resume.MASKS)
  masks = names.flatten(checkpoints.read_masks(path, source.config)[0])
  return _one_per_expert(masks, axis=1)


def _patterns(source) -> list[Unstructured | NofM] | None:
  """The pattern of each layer that config.json names.

  None where none is named, or one that has no exact count in every kernel.
  """
  job = source.hf.get("jaxprune", {})
  written, method = job.get("pattern"), registry.METHODS.get(job.get("method"))
  if not written or not getattr(method, "exact", True):
    return None
  entries = written if isinstance(written, list) else [written]
  if any(
    "bits" in fields or fields.get("group") == "global" for fields in entries
  ):
    return None
  patterns = [
    NofM(**fields) if "keep" in fields else Unstructured(**fields)
    for fields in entries
  ]
  return patterns if len(entries) > 1 else patterns * source.config.num_layers


def _has(keep_IO, pattern) -> bool:
  """Whether every comparison group of a mask has the exact count."""
  if isinstance(pattern, NofM):
    return bool(masks_lib.verify_nm(keep_IO, pattern))
  if pattern.group == "output":
    removed = removed_count(keep_IO.shape[0], pattern.sparsity)
    return bool(((~keep_IO).sum(axis=0) == removed).all())
  # SparseGPT rounds the count of each block of inputs down, so an output may
  # lose a little less than its pattern says.
  removed = removed_count(keep_IO.size, pattern.sparsity)
  return 0 <= removed - int((~keep_IO).sum()) <= keep_IO.shape[0]


@jax.jit
def _compare_masks(masks, other):
  """Fractions of the entries of each kernel that both, or either, keep."""
  return (
    masks_lib.density(masks_lib.intersection(masks, other)),
    masks_lib.density(masks_lib.union(masks, other)),
    masks_lib.distance(masks, other),
    masks_lib.overlap(masks, other),
  )


def _differences(w_IO, other_IO) -> dict[str, Any]:
  """What one of two kernels removes alone, and how the rest differs."""
  both_IO = (w_IO != 0) & (other_IO != 0)
  kept_values, other_values = (
    x[both_IO].astype(np.float32) for x in (w_IO, other_IO)
  )
  return {
    "removed_alone": int(((w_IO == 0) & (other_IO != 0)).sum()),
    "kept_alone": int(((w_IO != 0) & (other_IO == 0)).sum()),
    "max_weight_difference": float(
      abs(kept_values - other_values).max(initial=0.0)
    ),
  }
