"""Replace or drop one sublayer at a time where everything else is dense.

  python -m experiments.transitions --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --max_new_tokens=64 --out=OUT
  python -m experiments.transitions --dense=FOLDER --drop \\
    --prompts=FILE --out=OUT

The dense model continues every prompt, greedily or by sampling at
--temperature. At every step the attention and the MLP of every layer are
computed again with the pruned weights (or left out, with --drop) from the dense
residual stream, and the streams behind them are compared. A row of the records
is one prompt, step, layer and sublayer. Step 0 is the prediction after the last
prompt token; steps after the end of a text are left out.

With --drop the cosine of h is LLM-Drop's similarity, on decoded tokens.

--history says whose keys and values pruned attention reads of earlier tokens:
`dense` (default), `pruned` (this sublayer was pruned from the first token on,
the official script at step 0) or `none` (the official script at later steps,
whose cache is lost).

Reference: He et al., arXiv 2603.24652, section 5, Figs 2, 4-6 and 13-21.
"""

import sys
import time

from absl import flags

from experiments import launch

_DENSE = flags.DEFINE_string(
  "dense", None, "The original model: a folder or a hub id.", required=True
)
_PRUNED = flags.DEFINE_string(
  "pruned", None, "The pruned model, of the same shape."
)
_DROP = flags.DEFINE_bool(
  "drop", False, "Leave each sublayer out, instead of --pruned."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "txt or jsonl file, or an .npz of ids.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 64, "Steps to decode and compare.", lower_bound=1
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many prompts.", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "Of sampling; 0 is greedy.", lower_bound=0.0
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature",
  1.0,
  "T of the softmax that is measured.",
  lower_bound=1e-3,
)
_LENS = flags.DEFINE_enum(
  "lens",
  "final_norm",
  ["final_norm", "raw"],
  "Whether a layer passes the final norm before the LM head.",
)
_HISTORY = flags.DEFINE_enum(
  "history",
  "dense",
  ["dense", "pruned", "none"],
  "Whose keys and values pruned attention reads of earlier tokens.",
)
_BATCH = flags.DEFINE_integer(
  "batch", 8, "Prompts decoded together.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling and intervals.")


def main() -> None:
  if bool(_PRUNED.value) == _DROP.value:
    raise ValueError(
      "--pruned and --drop: give one of them, --pruned=FOLDER to replace"
      " sublayers or --drop to leave them out"
    )
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.studies import inputs
  from jaxprune.studies.transitions import measure

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  dense = inputs.open_model(_DENSE.value)
  pruned = inputs.open_model(_PRUNED.value) if _PRUNED.value else None
  prompts = inputs.read_prompts(
    dense,
    _PROMPTS.value,
    limit=_LIMIT.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  settings = measure.Settings(
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_TEMPERATURE.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    lens=_LENS.value,
    history=_HISTORY.value,
    batch=_BATCH.value,
    seed=_SEED.value,
  )
  hashes = {"dense": checkpoints.checkpoint_hash(dense)}
  if pruned is not None:
    hashes["pruned"] = checkpoints.checkpoint_hash(pruned)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"sampling": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash=hashes,
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    }
  }
  batches = -(-len(prompts.tokens) // _BATCH.value)
  with report.RunFolder(
    _OUT.value, description, extra_fields=measure.FIELDS
  ) as run:
    measure.measure(
      dense,
      pruned,
      prompts,
      settings,
      run,
      progress=launch.Progress("batch", batches),
    )
    table = report.columns(report.read_records(run.folder))
    summary = measure.summarise(table, settings)
    run.write_summary({**summary, "seconds": time.monotonic() - began})
    measure.write_page(run, description, table, summary, settings)
  print(measure.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
