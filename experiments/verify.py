"""Is a folder what it says: a sound checkpoint, pruned where its masks say?

  python -m experiments.verify --model=PRUNED --out=OUT
  python -m experiments.verify --model=PRUNED --against=OTHER --out=OUT

Checks, each a line and a field of summary.json:
  shards     size and sha256 of every shard, as recorded when it was written
  masks      every weight that `masks.safetensors` removed is zero
  pattern    the pattern of config.json holds in every kernel
  logits     jaxprune and stock transformers agree (if transformers and torch
             are installed), on random tokens
  against    per kernel, what one of two folders removes alone, and the largest
             difference of weights that both keep; a comparison, not a check

records.jsonl has a row per kernel and layer. Exit status 1 if a check fails.
"""

import json
import sys

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", None, "Folder or hub id to look at.", required=True
)
_AGAINST = flags.DEFINE_string(
  "against", None, "Another model of the same shape."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of the random tokens.")
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-4, "Largest difference of logits from stock transformers."
)

EXTRA_FIELDS = {
  "removed": ("int", "weights", "zeros of the kernel"),
  "removed_alone": ("int", "weights", "zero here and not in --against"),
  "kept_alone": ("int", "weights", "zero in --against and not here"),
  "max_weight_difference": ("float", "", "over weights that both keep"),
}


def main() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.studies import inputs

  jax.config.update("jax_default_matmul_precision", "highest")
  source = inputs.open_model(_MODEL.value)
  other = inputs.open_model(_AGAINST.value) if _AGAINST.value else None
  if other and _shapes(other) != _shapes(source):
    raise ValueError(
      f"--against={_AGAINST.value}: its kernels have other shapes than those"
      f" of {_MODEL.value}"
    )
  checks, values = {}, {}
  checks["shards"] = _check_shards(source)
  rows = []
  wrong = {"masks": 0, "pattern": 0}
  masks = _read_masks(source)
  patterns = _patterns(source)
  for index in range(source.config.num_layers):
    layer = checkpoints.read_layer(source, index)
    theirs = checkpoints.read_layer(other, index) if other else None
    for (group, kernel), w_IO in _kernels(layer):
      row = {
        "layer": index,
        "kernel": f"{group}/{kernel}",
        "removed": int((w_IO == 0).sum()),
        "sparsity": float((w_IO == 0).mean()),
      }
      keep = masks.get(group, {}).get(kernel)
      if keep is not None:
        wrong["masks"] += int((w_IO[~keep[index]] != 0).sum())
        if patterns:
          wrong["pattern"] += not _has(keep[index], patterns[index])
      if theirs:
        row |= _differences(w_IO, theirs[group][kernel]["kernel"])
      rows.append(row)
  checks["masks"] = (wrong["masks"] == 0) if masks else None
  checks["pattern"] = (wrong["pattern"] == 0) if masks and patterns else None
  values["logits_difference"] = _stock_difference(source)
  if values["logits_difference"] is not None:
    checks["logits"] = values["logits_difference"] <= _TOLERANCE.value
  if other:
    for name in ("removed_alone", "kept_alone"):
      values[name] = sum(row[name] for row in rows)
    values["max_weight_difference"] = max(
      row["max_weight_difference"] for row in rows
    )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"tokens": _SEED.value},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
  )
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    run.write_all(rows)
    run.write_summary({"checks": checks, **values})
  for name, passed in checks.items():
    print(f"{name}: {'not there' if passed is None else passed}")
  print(json.dumps(values))
  failed = [name for name, passed in checks.items() if passed is False]
  if failed:
    raise ValueError(f"{_MODEL.value}: failed {', '.join(failed)}")


def _kernels(layer):
  from jaxprune.models import KERNELS

  for group, kernel in KERNELS:
    yield (group, kernel), layer[group][kernel]["kernel"]


def _shapes(source):
  from jaxprune.checkpoints import names

  return names.kernel_shapes(source.config)


def _check_shards(source):
  """Compare with the record of the export; None where there is none."""
  from jaxprune import checkpoints

  path = source.folder / "jaxprune_export.json"
  if not path.is_file():
    return None
  recorded = json.loads(path.read_text())["shards"]
  return all(
    (source.folder / name).stat().st_size == entry["size"]
    and checkpoints.sha256_file(source.folder / name) == entry["sha256"]
    for name, entry in recorded.items()
  )


def _read_masks(source):
  from jaxprune import checkpoints

  path = source.folder / "masks.safetensors"
  return (
    checkpoints.read_masks(path, source.config)[0] if (path.is_file()) else {}
  )


def _patterns(source):
  """The pattern of each layer that config.json names; None for none."""
  from jaxprune.pruning.patterns import NofM, Unstructured

  job = source.hf.get("jaxprune", {})
  written = job.get("pattern")
  # Units and thresholds over all layers have no exact count per kernel.
  if not written or job.get("method") in (
    "neuron",
    "neuron_root",
    "flap",
    "wanda_variant",
  ):
    return None
  many = (
    written
    if isinstance(written, list)
    else ([written] * source.config.num_layers)
  )
  made = [
    NofM(keep=one["keep"], of=one["of"])
    if "keep" in one
    else Unstructured(**one)
    for one in many
    if "bits" not in one
  ]
  return None if not made or getattr(made[0], "group", "") == "global" else made


def _has(keep_IO, pattern):
  """Whether every comparison group of a mask has the exact count."""
  from jaxprune.pruning.patterns import NofM, removed_count

  if isinstance(pattern, NofM):
    kept = keep_IO.reshape(-1, pattern.of, keep_IO.shape[1]).sum(axis=1)
    return bool((kept == pattern.keep).all())
  if pattern.group == "output":
    gone = removed_count(keep_IO.shape[0], pattern.sparsity)
    return bool(((~keep_IO).sum(axis=0) == gone).all())
  # SparseGPT counts per block of inputs, which together lose a little less.
  gone = removed_count(keep_IO.size, pattern.sparsity)
  return 0 <= gone - int((~keep_IO).sum()) <= keep_IO.shape[0]


def _differences(w_IO, other_IO):
  """What one of two kernels removes alone, and how the rest differs."""
  both = (w_IO != 0) & (other_IO != 0)
  return {
    "removed_alone": int(((w_IO == 0) & (other_IO != 0)).sum()),
    "kept_alone": int(((w_IO != 0) & (other_IO == 0)).sum()),
    "max_weight_difference": float(
      abs(w_IO[both].astype("float32") - other_IO[both].astype("float32")).max(
        initial=0.0
      )
    ),
  }


def _stock_difference(source):
  """Largest difference of logits; None without transformers and torch."""
  try:
    import torch
    import transformers
  except ImportError:
    return None
  import jax.numpy as jnp
  import numpy as np

  from jaxprune import checkpoints
  from jaxprune.models import forward, unembed

  config, params = checkpoints.load_params(source, jnp.float32)
  ids = np.random.default_rng(_SEED.value).integers(
    config.vocab_size, size=(2, min(64, config.max_positions))
  )
  ours = unembed(config, params, forward(config, params, jnp.asarray(ids))[0])
  stock = transformers.AutoModelForCausalLM.from_pretrained(
    source.folder, dtype=torch.float32
  )
  with torch.no_grad():
    theirs = stock(torch.tensor(ids)).logits.numpy()
  return float(abs(np.asarray(ours) - theirs).max())


if __name__ == "__main__":
  launch.run(main)
