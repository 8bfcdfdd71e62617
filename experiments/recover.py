"""Train a pruned model for a few hundred steps, its zeros kept.

  python -m experiments.recover --dense=FOLDER --pruned=PRUNED \\
    --objective=distill --calibration=TEXT --steps=200 --out=RECOVERED

RECOVERED is a Hugging Face checkpoint as `prune` writes it, with the masks of
PRUNED: what was removed is still zero, what was dropped is still dropped, and
`experiments.verify` accepts it. Beside it are run.json, records.jsonl (a row
per step and part of the loss) and summary.json.

Objectives: `language` is the next token of the text, `distill` is
KL(dense||pruned), `distill_variance` adds --weight times the variance of the
logit change under the dense model, Var_p(dz)/(2T^2). A pruned folder without
masks.safetensors keeps the zeros that it has.

The run is deterministic: one seed is one result on one machine. It is too
short to be worth resuming; a killed run starts over. `recovery_study` compares
the objectives.
"""

import sys
import time

from absl import flags

from . import launch

_DENSE = flags.DEFINE_string(
  "dense", None, "The original model; not needed for language."
)
_PRUNED = flags.DEFINE_string(
  "pruned", None, "The pruned model, of the same shape.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_OBJECTIVE = flags.DEFINE_enum(
  "objective",
  "distill",
  ["language", "distill", "distill_variance"],
  "What is minimised.",
)
_STEPS = flags.DEFINE_integer("steps", 200, "Steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Rows of a step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate", 5e-4, "Peak; 10 % warm-up, then a cosine to 0."
)
_WEIGHT = flags.DEFINE_float("weight", 1.0, "Of the variance.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.0, "Of AdamW.")
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  None,
  "Text, jsonl, json.gz or parquet file, c4, wikitext2, pocket, or an .npz"
  " of ids.",
  required=True,
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 1024, "Rows of text, read in turn.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a row.", lower_bound=2
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the text and of the order in which it is read."
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace an older model folder in --out."
)

EXTRA_FIELDS = {"optimiser_step": ("int", "", "steps before this one")}


def main() -> None:
  import jax
  import numpy as np

  from jaxprune import checkpoints, report
  from jaxprune.calibration import tokens
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.recovery import Recovery
  from jaxprune.studies import inputs
  from jaxprune.studies.recovery import train

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  pruned = inputs.open_model(_PRUNED.value)
  dense = None if _DENSE.value is None else inputs.open_model(_DENSE.value)
  recovery = Recovery(
    objective=_OBJECTIVE.value,
    steps=_STEPS.value,
    batch=_BATCH.value,
    learning_rate=_LEARNING_RATE.value,
    weight=_WEIGHT.value,
    weight_decay=_WEIGHT_DECAY.value,
    seed=_SEED.value,
  )
  calibration = inputs.read_calibration(
    pruned,
    _CALIBRATION.value,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
    seed=_SEED.value,
  )
  train.check(pruned, dense, recovery, calibration.tokens)
  described = tokens.describe(calibration)
  hashes = {
    name: checkpoints.checkpoint_hash(source)
    for name, source in (("pruned", pruned), ("dense", dense))
    if source is not None
  }
  found, masks = train.train(
    pruned, dense, recovery, calibration.tokens, launch.say
  )
  train.write(
    _OUT.value,
    pruned,
    found.params,
    masks,
    recovery,
    notes={"calibration": described, "checkpoint_hash": hashes},
    overwrite=_OVERWRITE.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEED.value, "order": _SEED.value},
    checkpoint_hash=hashes,
    calibration=described,
  )
  checkpoints.atomic_write_json(f"{_OUT.value}/run.json", description)
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    run.write_all(
      {
        "metric": name,
        "optimiser_step": step,
        "value": value,
        "seed": _SEED.value,
      }
      for name, values in found.losses.items()
      for step, value in enumerate(values)
    )
    last = max(1, _STEPS.value // 10)
    summary = {
      "objective": _OBJECTIVE.value,
      "steps": _STEPS.value,
      "sparsity": weights.folder_sparsity(_OUT.value),
      "first": {k: float(np.mean(v[:last])) for k, v in found.losses.items()},
      "last": {k: float(np.mean(v[-last:])) for k, v in found.losses.items()},
      "seconds": time.monotonic() - began,
    }
    run.write_summary(summary)
  print(
    f"wrote {_OUT.value}: {summary['sparsity']:.4f} of the kernels is"
    f" zero, loss {summary['first']['loss']:.4g} to"
    f" {summary['last']['loss']:.4g} nats"
  )


if __name__ == "__main__":
  launch.run(main)
