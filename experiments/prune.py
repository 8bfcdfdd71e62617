"""Prune a checkpoint by any method and write a folder that transformers loads.

  python -m experiments.prune --model=FOLDER --method=wanda --sparsity=0.5 \\
    --calibration=TEXT --num_samples=128 --seq_len=512 --out=PRUNED

PRUNED is a Hugging Face checkpoint with zeros in place of what was removed,
and beside it `masks.safetensors` (packed bits; weight methods), run.json,
records.jsonl (a row per layer) and summary.json. A run that was killed goes on
with the same command, after the last finished layer, to the same bits.

Methods that remove hidden units (neuron, neuron_root, flap) take --sparsity as
the fraction of units and may build a narrower model (--narrow). rtn and awq
round to --bits. On a pod every process runs the same command with
--distributed, --mesh, and --out on a file system that all of them see.

Drop methods remove whole sublayers: their output projections are zero and
config.json lists them under `drop_attn_list` and `drop_mlp_list`. drop_*
removes first what changes the residual stream least (similarity, one layer in
memory at a time); kl_* what changes the output least: KL(dense || without it),
the rest of the model as it is, on the calibration tokens. That holds the whole
model in memory and passes the tokens once per candidate, kl_iterative per
candidate and round. --allocation=kl spares the layers whose pruning alone does
the most of it.
"""

import sys
import time

from absl import flags

from jaxprune.studies.sweep import configurations

from . import launch

_MODEL = flags.DEFINE_string(
  "model", None, "Checkpoint to prune: a folder or a hub id.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_METHOD = flags.DEFINE_enum(
  "method",
  "wanda",
  [
    *configurations.ENTRIES,
    *configurations.UNITS,
    *configurations.ROUNDING,
    *configurations.DROPS,
  ],
  "What decides.",
)
_SPARSITY = flags.DEFINE_float("sparsity", 0.5, "Fraction removed, in [0, 1).")
_PATTERN = flags.DEFINE_string(
  "pattern", "unstructured", "unstructured, or n:m with n kept out of m."
)
_GROUP = flags.DEFINE_enum(
  "group",
  None,
  ["output", "matrix", "global"],
  "What competes in an unstructured pattern; by default output, and matrix"
  " for sparsegpt, as in the references.",
)
_ALLOCATION = flags.DEFINE_enum(
  "allocation",
  "uniform",
  ["uniform", *configurations.ALLOCATIONS],
  "How the sparsity is spread over layers.",
)
_SPREAD = flags.DEFINE_float(
  "spread",
  0.08,
  "Half of what the sparsities of layers lie apart, unless uniform.",
)
_NARROW = flags.DEFINE_bool(
  "narrow",
  False,
  "Build narrower MLPs instead of zeros (neuron, neuron_root, flap).",
)
_BITS = flags.DEFINE_integer("bits", 4, "Of a weight, for rtn and awq.")
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 128, "Inputs that share a scale in rtn and awq; 0 for all."
)
_DROP_COUNT = flags.DEFINE_integer(
  "drop_count", 1, "Sublayers (or blocks) to drop.", lower_bound=0
)
_DROP_TARGET = flags.DEFINE_enum(
  "drop_target",
  "attention",
  ["attention", "mlp", "joint", "block"],
  "What drop_iterative, drop_random, drop_reverse, kl_iterative drop.",
)
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  None,
  "Text, jsonl, json.gz or parquet file, c4, wikitext2, or an .npz of ids.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 128, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 2048, "Tokens of a calibration sequence.", lower_bound=1
)
_SAMPLING = flags.DEFINE_enum(
  "sampling",
  None,
  ["documents", "joined", "packed"],
  "How sequences are cut from text; see calibration.tokens.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every draw.")
_MICRO_BATCH = flags.DEFINE_integer(
  "micro_batch", 8, "Sequences in a layer at once.", lower_bound=1
)
_OFFLOAD = flags.DEFINE_bool(
  "offload", False, "Keep activations on the host between layers."
)
_MESH = flags.DEFINE_string(
  "mesh",
  None,
  "Devices, such as data:4,model:2: sequences over data, outputs of kernels"
  " over model.",
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace an older model folder in --out."
)

EXTRA_FIELDS = {
  "allocation": ("text", "", "how the sparsity is spread over layers"),
  "spread": ("float", "", "half of what the sparsities lie apart"),
  "group_size": ("int", "", "inputs that share a scale"),
  "damping": ("float", "", "largest share of the mean diagonal added to H"),
  "attention_kept": ("bool", "", "the attention of the layer stays"),
  "mlp_kept": ("bool", "", "the MLP of the layer stays"),
  "similarity_attention": ("float", "", "cosine over the attention"),
  "similarity_mlp": ("float", "", "cosine over the MLP"),
  "similarity_block": ("float", "", "cosine over the whole layer"),
  "kl_attention": ("float", "nats", "KL without the attention alone"),
  "kl_mlp": ("float", "nats", "KL without the MLP alone"),
  "kl_block": ("float", "nats", "KL without the layer alone"),
  "kl_alone": ("float", "nats", "KL with this layer alone pruned"),
}


def main() -> None:
  import jax
  import numpy as np

  from jaxprune import checkpoints, devices, report
  from jaxprune.calibration import tokens
  from jaxprune.pruning.checkpoint import streaming, sublayers, weights
  from jaxprune.studies import inputs

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  mesh = inputs.read_mesh(_MESH.value)
  memory = streaming.Memory(
    micro_batch=_MICRO_BATCH.value, offload=_OFFLOAD.value, mesh=mesh
  )
  drops = configurations.DROPS.get(_METHOD.value)
  pattern = None if drops else _pattern()
  if pattern:
    weights.check_job(
      source.config,
      _METHOD.value,
      pattern,
      tokens=_CALIBRATION.value is not None,
      narrow=_NARROW.value,
    )
  calibration = None
  if _CALIBRATION.value is not None:
    calibration = inputs.read_calibration(
      source,
      _CALIBRATION.value,
      num_samples=_NUM_SAMPLES.value,
      seq_len=_SEQ_LEN.value,
      seed=_SEED.value,
      sampling=_SAMPLING.value,
    )
  described = None if calibration is None else tokens.describe(calibration)
  ids = None if calibration is None else calibration.tokens
  if pattern:
    _check_memory(source.config, ids, memory)
  digest = checkpoints.checkpoint_hash(source)
  provenance = {
    "method": _METHOD.value,
    "seed": _SEED.value,
    "checkpoint_hash": digest,
    "calibration": described,
    "micro_batch": _MICRO_BATCH.value,
    "mesh": _MESH.value,
  }
  progress = launch.Progress("layer", source.config.num_layers)
  if drops:
    target, selection = drops[0] or _DROP_TARGET.value, drops[1]
    provenance |= {"target": target, "drop_count": _DROP_COUNT.value}
    if selection == "kl_iterative":
      progress = launch.Progress("round", _DROP_COUNT.value)
    elif selection == "kl":
      progress = launch.Progress("round", 1)
    chosen, scores = configurations.choose_drops(
      source,
      _DROP_COUNT.value,
      target=target,
      selection=selection,
      tokens=ids,
      memory=memory,
      seed=_SEED.value,
      on_layer=lambda layer: progress.step(layer),
    )
    log = sublayers.prune_drops(
      source,
      _OUT.value,
      chosen,
      scores,
      score_name=configurations.score_name(selection),
      provenance=provenance,
      overwrite=_OVERWRITE.value,
    )
    settings = {"method": _METHOD.value, "drop_count": _DROP_COUNT.value}
    summary = {"dropped": [list(pair) for pair in chosen.order]}
  else:
    settings = {"method": _METHOD.value} | inputs.describe_pattern(pattern)
    # The sparsity of a row is what was reached, not what was asked.
    asked = settings.pop("sparsity", None)
    alone = None
    if _ALLOCATION.value != "uniform":
      pattern, alone = _allocated(source, pattern, ids, memory)
      settings |= {"allocation": _ALLOCATION.value, "spread": _SPREAD.value}
    log = weights.prune_weights(
      source,
      _OUT.value,
      method=_METHOD.value,
      pattern=pattern,
      tokens=ids,
      narrow=_NARROW.value,
      memory=memory,
      provenance=provenance,
      overwrite=_OVERWRITE.value,
      on_layer=lambda row: progress.step(
        row["layer"],
        sparsity=row["sparsity"],
        layer_error=row.get("layer_error"),
      ),
    )
    if alone is not None:
      log = [row | {"kl_alone": kl} for row, kl in zip(log, alone)]
    summary = {"asked_sparsity": asked} if asked is not None else {}
    if "layer_error" in log[0]:
      summary["layer_error"] = float(
        np.mean([row["layer_error"] for row in log])
      )
  if not devices.is_writer():
    return
  summary["sparsity"] = (
    float(np.mean([row["sparsity"] for row in log]))
    if (pattern)
    else weights.folder_sparsity(_OUT.value)
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEED.value},
    checkpoint_hash=digest,
    calibration=described,
  )
  checkpoints.atomic_write_json(f"{_OUT.value}/run.json", description)
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    run.write_all({**settings, "seed": _SEED.value, **row} for row in log)
    run.write_summary(
      {**settings, **summary, "seconds": time.monotonic() - began}
    )
  print(f"wrote {_OUT.value}: {summary['sparsity']:.4f} of the kernels is zero")


def _pattern():
  """What the flags ask every kernel to become."""
  from jaxprune.pruning import patterns
  from jaxprune.pruning.methods import quantize
  from jaxprune.studies import inputs

  if _METHOD.value in configurations.ROUNDING:
    return quantize.Levels(
      bits=_BITS.value, group_size=_GROUP_SIZE.value or None
    )
  if _METHOD.value in configurations.UNITS:
    return patterns.Unstructured(sparsity=_SPARSITY.value)
  group = _GROUP.value or (
    "matrix" if _METHOD.value == "sparsegpt" else "output"
  )
  return inputs.read_pattern(_PATTERN.value, _SPARSITY.value, group)


def _allocated(source, pattern, ids, memory):
  """The pattern of each layer, and the scores behind it."""
  if not hasattr(pattern, "sparsity"):
    raise ValueError(
      f"--allocation={_ALLOCATION.value} spreads a --sparsity over layers:"
      " use the unstructured pattern"
    )
  progress = launch.Progress("scored layer", source.config.num_layers)
  return configurations.spread_pattern(
    source,
    _METHOD.value,
    pattern,
    _ALLOCATION.value,
    tokens=ids,
    spread=_SPREAD.value,
    memory=memory,
    on_layer=lambda layer: progress.step(layer),
  )


def _check_memory(config, ids, memory):
  """Say what the run will hold, and refuse what cannot fit."""
  from jaxprune import devices
  from jaxprune.pruning.checkpoint import memory as memory_lib

  sequences, length = (0, 0) if ids is None else ids.shape
  found = memory_lib.estimate_bytes(
    config, _METHOD.value, sequences=sequences, length=length, memory=memory
  )
  launch.say(
    f"memory: device {devices.gib(found.device)} (layer"
    f" {devices.gib(found.layer)}, statistics"
    f" {devices.gib(found.statistics)}, activations"
    f" {devices.gib(found.activations)}), host {devices.gib(found.host)}"
  )
  memory_lib.check_fits(found)


if __name__ == "__main__":
  launch.run(main)
