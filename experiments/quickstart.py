"""The whole way once: prune a checkpoint, compare it with the original, report.

  python -m experiments.quickstart
  python -m experiments.quickstart --model=FOLDER --calibration=TEXT \\
    --prompts=PROMPTS --out=OUT

Without flags it prunes the pocket model that comes with the package, and needs
no network. Writes OUT/pruned (a checkpoint that transformers loads) and in OUT
run.json, records.jsonl, summary.json, figures/ and report.html. A minute or
two on two CPU cores, most of it compilation.
"""

import sys
import time

from absl import flags

from jaxprune.pruning import registry

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "Checkpoint: a folder, a hub id, or pocket."
)
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "Text that the pruning method looks at."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", "pocket", "Texts that are continued: txt, jsonl or npz."
)
_OUT = flags.DEFINE_string("out", "out/quickstart", "Folder to write.")
_METHOD = flags.DEFINE_enum(
  "method",
  "wanda",
  list(registry.names(registry.ENTRIES, rounds=False)),
  "What decides.",
)
_SPARSITY = flags.DEFINE_float("sparsity", 0.6, "Fraction removed, in [0, 1).")
_PATTERN = flags.DEFINE_string(
  "pattern", "unstructured", "unstructured, or n:m with n kept out of m."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a calibration sequence.", lower_bound=1
)
_NUM_PROMPTS = flags.DEFINE_integer(
  "num_prompts", 32, "Prompts to compare on.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 32, "Steps to decode and compare.", lower_bound=1
)
_LENS = flags.DEFINE_enum(
  "lens",
  "final_norm",
  ["final_norm", "raw"],
  "Whether inner layers pass the final norm before the LM head.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every draw.")


def main() -> None:
  import pathlib

  import jax

  from jaxprune import checkpoints, report
  from jaxprune.calibration import tokens
  from jaxprune.pruning.checkpoint import weights
  from jaxprune.studies import inputs
  from jaxprune.studies.comparison import measure

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  # Everything that can be wrong with the input is found before any work.
  source = inputs.open_model(_MODEL.value)
  pattern = inputs.read_pattern(
    _PATTERN.value, _SPARSITY.value, registry.default_group(_METHOD.value)
  )
  weights.check_job(source.config, _METHOD.value, pattern, tokens=True)
  prompts = inputs.read_prompts(
    source,
    _PROMPTS.value,
    limit=_NUM_PROMPTS.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  calibration = inputs.read_calibration(
    source,
    _CALIBRATION.value,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
    seed=_SEED.value,
  )
  settings = measure.Settings(
    max_new_tokens=_MAX_NEW_TOKENS.value, lens=_LENS.value, seed=_SEED.value
  )
  out = pathlib.Path(_OUT.value)
  digest = checkpoints.checkpoint_hash(source)
  described = tokens.describe(calibration)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash=digest,
    calibration=described,
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    }
  }
  with report.RunFolder(out, description) as run:
    progress = launch.Progress("layer", source.config.num_layers)
    log = weights.prune_weights(
      source,
      out / "pruned",
      method=_METHOD.value,
      pattern=pattern,
      tokens=calibration.tokens,
      output=weights.Output(
        overwrite=True,
        provenance={
          "seed": _SEED.value,
          "checkpoint_hash": digest,
          "calibration": described,
        },
      ),
      on_layer=lambda row: progress.step(
        row["layer"], sparsity=row["sparsity"], layer_error=row["layer_error"]
      ),
    )
    batches = -(-len(prompts.tokens) // settings.batch)
    pruned = checkpoints.open_checkpoint(out / "pruned")
    measure.compare(
      source,
      pruned,
      prompts,
      settings,
      run,
      progress=launch.Progress("batch", batches),
    )
    tasks = _score_tasks(source, pruned) if inputs.is_pocket(source) else {}
    run.write_all({"task": name, **entry} for name, entry in tasks.items())
    settings_of = {"method": _METHOD.value, **inputs.describe_pattern(pattern)}
    summary = settings_of | measure.summarise(out, settings)
    summary["sparsity"] = sum(row["sparsity"] for row in log) / len(log)
    summary["layer_error"] = sum(row["layer_error"] for row in log) / len(log)
    summary["tasks"] = tasks
    summary["seconds"] = time.monotonic() - began
    run.write_summary(summary)
    measure.write_report(run, description, summary, settings)
  print(measure.headline(summary))
  for name, entry in tasks.items():
    print(
      f"{name:9s} dense {entry['reference']:.3f}  pruned"
      f" {entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
      f" ({entry['count']} items)"
    )
  print(f"wrote {out}/report.html and {out}/pruned")


def _score_tasks(source, pruned):
  """What both models score on the tasks of the pocket model's world."""
  import jax.numpy as jnp

  from jaxprune import checkpoints, report
  from jaxprune.pocket import shipped

  dense, other = (
    shipped.item_scores(*checkpoints.load_params(model, jnp.float32))
    for model in (source, pruned)
  )
  metric = {"retrieve": "nDCG@10"}
  tasks = {}
  # Stories are at chance in the dense model: nothing there could be lost.
  for name in ("choose", "retrieve", "generate"):
    interval = report.mean_interval(other[name], seed=_SEED.value)
    tasks[name] = {
      "metric": metric.get(name, "accuracy"),
      "value": interval.estimate,
      "low": interval.low,
      "high": interval.high,
      "reference": float(dense[name].mean()),
      "count": interval.rows,
    }
  return tasks


if __name__ == "__main__":
  launch.run(main)
