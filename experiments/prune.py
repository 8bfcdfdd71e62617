"""Prune a checkpoint by any method, into a folder that transformers loads.

  jaxprune prune FOLDER PRUNED --method=wanda --sparsity=0.5 \\
    --calibration=TEXT --num_samples=128 --seq_len=512
  jaxprune prune FOLDER PRUNED --method=kl_attention --drop_count=4 \\
    --calibration=TEXT

PRUNED is a Hugging Face checkpoint with zeros in place of what was removed.
Beside it are masks.safetensors (packed bits and their hash; weight methods),
run.json, records.jsonl (a row per layer) and summary.json. Zeros save neither
time nor memory. --slim builds what is smaller: MLPs without the removed units
(neuron, neuron_root, flap, whose --sparsity is the fraction of units), and a
model without the layers whose attention and MLP are both dropped. rtn and awq
round to --bits.

drop_* and kl_* remove whole sublayers: their output projections are zero, and
config.json lists them under drop_attn_list and drop_mlp_list. drop_* removes
first what changes the residual stream least (similarity, one layer in memory at
a time). kl_* removes first what changes the output least: KL(dense || without
it) on the calibration tokens, the rest of the model as it is. That holds the
whole model in memory and reads the tokens once per candidate, with kl_iterative
per candidate and round. --allocation=kl spares the layers whose pruning alone
changes the output most.

A run that was killed goes on with the same command after the last finished
layer, to the same bits. On a pod every process runs the same command with
--distributed, --mesh, and --out on a file system that all of them see.
docs/prune.md has a table of the methods.
"""

from absl import flags

from jaxprune.pruning import change as change_lib
from jaxprune.pruning import registry

from . import descriptions, flag_groups, launch

_MODEL = flag_groups.model(
  flag_groups.REQUIRED, about="Checkpoint to prune: a folder or a hub id."
)
_OUT = flag_groups.out()
_METHOD = flags.DEFINE_enum(
  "method", "wanda", list(registry.METHODS), "How to choose what is removed."
)
_SPARSITY = flags.DEFINE_float("sparsity", 0.5, "Fraction removed, in [0, 1).")
_PATTERN = flags.DEFINE_string(
  "pattern", "unstructured", "unstructured, or n:m with n kept out of m."
)
_GROUP = flags.DEFINE_enum(
  "group",
  None,
  ["output", "matrix", "global"],
  "Which weights compete in an unstructured pattern; by default output, and"
  " matrix for sparsegpt, as in the references.",
)
_ALLOCATION = flags.DEFINE_enum(
  "allocation",
  "uniform",
  list(change_lib.ALLOCATIONS),
  "How the sparsity is spread over layers.",
)
_SPREAD = flags.DEFINE_float(
  "spread",
  0.08,
  "Half of the difference between the highest and lowest sparsity of a"
  " layer, unless uniform.",
)
_SLIM = flags.DEFINE_bool(
  "slim",
  False,
  "Build a smaller model instead of zeros: MLPs without the removed units, or"
  " without the layers of which nothing is left.",
)
flags.DEFINE_alias("narrow", "slim")
_BITS = flags.DEFINE_integer("bits", 4, "Bits of a weight, for rtn and awq.")
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
_CALIBRATION = flag_groups.calibration(
  None, num_samples=128, seq_len=2048, about=flag_groups.TEXT_OR_SELF
)
_SAMPLING = flags.DEFINE_enum(
  "sampling",
  None,
  ["documents", "joined", "packed"],
  "How sequences are cut from text; see calibration.tokens.",
)
_SEED = flag_groups.seed()
_MICRO_BATCH = flag_groups.micro_batch("Sequences in a layer at once.")
_OFFLOAD = flags.DEFINE_bool(
  "offload", False, "Keep activations on the host between layers."
)
_MESH = flag_groups.mesh(
  "Devices, such as data:4,model:2: sequences over data, outputs of kernels"
  " over model."
)
_SHARD_SIZE = flag_groups.shard_size()


def main() -> None:
  import jax

  from jaxprune.pruning.checkpoint import sublayers
  from jaxprune.studies import prune, self_calibration

  jax.config.update("jax_default_matmul_precision", "highest")
  source = _MODEL.open(logits=False)
  memory, change = _memory(), _change()
  given = _CALIBRATION.calibration.value is not None
  earlier = sublayers.dropped_before(source)
  prune.check(
    source.config, change, tokens=given, slim=_SLIM.value, earlier=earlier
  )
  shape = _CALIBRATION.shape() if given else (0, 0)
  _check_memory(source.config, change, shape, memory)
  text = _read_text(source) if given else None
  description = descriptions.describe(
    seeds={"calibration": _SEED.value},
    models=source,
    calibration=text and self_calibration.describe(text),
  )
  with launch.place(
    _OUT.value, description, models=source, resume=True, model=True
  ) as (stage, _):
    result = prune.prune(
      source,
      stage.new,
      change,
      text and _written(source, text, stage),
      memory=memory,
      output=_output(change, description),
      progress=launch.Progress,
    )
    with launch.records(stage, description, extra_fields=prune.FIELDS) as study:
      _write(study, result, source)
  study.close()


def _change():
  """What the flags ask for."""
  from jaxprune.pruning.methods import quantize
  from jaxprune.studies import prune

  return prune.Change(
    method=_METHOD.value,
    pattern=prune.make_pattern(
      _METHOD.value,
      sparsity=_SPARSITY.value,
      pattern=_PATTERN.value,
      group=_GROUP.value,
      levels=quantize.Levels(
        bits=_BITS.value, group_size=_GROUP_SIZE.value or None
      ),
    ),
    drop_count=_DROP_COUNT.value,
    target=_DROP_TARGET.value,
    allocation=_ALLOCATION.value,
    spread=_SPREAD.value,
    seed=_SEED.value,
  )


def _memory():
  """How the flags say that activations are held."""
  from jaxprune.pruning.checkpoint import streaming
  from jaxprune.studies import inputs

  return streaming.Memory(
    micro_batch=_MICRO_BATCH.value,
    offload=_OFFLOAD.value,
    mesh=inputs.read_mesh(_MESH.value),
  )


def _output(change, description):
  """How the folder is written."""
  from jaxprune.pruning.checkpoint.weights import Output
  from jaxprune.studies import inputs

  return Output(
    slim=_SLIM.value,
    provenance={
      "method": change.method,
      "seed": change.seed,
      "checkpoint_hash": description["checkpoint_hash"],
      "calibration": description["calibration"],
      "micro_batch": _MICRO_BATCH.value,
      "mesh": _MESH.value,
    },
    shard_size=inputs.read_size(_SHARD_SIZE.value),
  )


def _read_text(source):
  """The text of --calibration, which may have to be written yet."""
  return _CALIBRATION.read_or_plan(
    source, _SEED.value, sampling=_SAMPLING.value
  )


def _written(source, text, stage):
  """The calibration tokens, int [sequences, length]."""
  from jaxprune.studies import kept, self_calibration

  return self_calibration.written(
    source,
    text,
    kept.Kept(stage.scaffold / "text.json"),
    launch.tell_amount("texts that the model writes itself"),
  ).tokens


def _check_memory(config, change, shape, memory):
  """Say what the run will hold, and refuse what cannot fit."""
  from jaxprune.pruning.checkpoint import memory as memory_lib

  estimate = memory_lib.estimate_bytes(
    config, change, sequences=shape[0], length=shape[1], memory=memory
  )
  launch.say(f"memory: {estimate.text}")
  memory_lib.check_fits(estimate)


def _write(study, result, source):
  """Put records and summary into the pruned folder."""
  from jaxprune.pruning.checkpoint import weights

  summary = dict(result.summary)
  if "sparsity" not in summary:
    summary["sparsity"] = weights.folder_sparsity(study.stage.new)
  study.run.write_all(
    {**result.settings, "seed": _SEED.value, **row} for row in result.log
  )
  headline = f"{summary['sparsity']:.4f} of the kernels is zero"
  if _SLIM.value:
    headline = "built without what was removed"
  elif summary["sparsity"]:
    headline += (
      "\nzeros alone save no time and no memory: the folder is as large and as"
      " slow as the dense model"
    )
  then = ()
  # Without a head there are no logits, and a slim model may lack layers.
  if getattr(source.config, "has_head", False) and not _SLIM.value:
    then = ("compare", _MODEL.model.value, study.stage.shown)
  study.finish({**result.settings, **summary}, headline, wrote=("",), then=then)


if __name__ == "__main__":
  launch.run(main)
