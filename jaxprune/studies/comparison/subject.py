"""Which models were compared? The first line of the page."""

import datetime
from collections.abc import Mapping
from typing import Any

import jax

from jaxprune import checkpoints
from jaxprune.pocket import shipped
from jaxprune.probes.decoder import sequences
from jaxprune.pruning.checkpoint import layer


def describe(
  dense: checkpoints.Source,
  pruned: checkpoints.Source,
  models: tuple[sequences.Model, sequences.Model],
) -> dict[str, Any]:
  """Names, sizes and how the one was made of the other.

  Args:
    dense: the checkpoint of the original model.
    pruned: that of the pruned model; what `prune` wrote into its config.json
      says how it was made.
    models: both, loaded.

  Returns:
    model, parameters, layers; method and pattern, None where they are not
    known; zeros and zeros_dense, fractions of the kernels; dropped, number of
    sublayers left out; removed, parameters that are not there any more; date.
  """
  made = pruned.hf.get("jaxprune") or {}
  counts = [
    sum(leaf.size for leaf in jax.tree.leaves(model.params)) for model in models
  ]
  zeros = [layer.sparsity(model.params["layers"]) for model in models]
  return {
    "model": _name(dense),
    "parameters": counts[0],
    "layers": dense.config.num_layers,
    "method": made.get("method"),
    "pattern": _pattern(made.get("pattern")),
    "zeros": zeros[1],
    "zeros_dense": zeros[0],
    "dropped": sum(map(len, pruned.drops.values()))
    - sum(map(len, dense.drops.values())),
    "removed": counts[0] - counts[1],
    "date": datetime.date.today().isoformat(),
  }


def _name(source: checkpoints.Source) -> str:
  if source.folder == shipped.FOLDER:
    return "pocket"
  return source.folder.name


def _pattern(entry: Any) -> str | None:
  """The name of a pattern from what config.json says of it."""
  if not isinstance(entry, Mapping):
    return "by layer" if isinstance(entry, list) else None
  if "keep" in entry and "of" in entry:
    return f"{entry['keep']}:{entry['of']}"
  return "unstructured" if "sparsity" in entry else None
