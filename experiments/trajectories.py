"""Compare a dense and a pruned model over positions and layers.

  python -m experiments.trajectories --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --protocol=teacher_forced --max_new_tokens=32 --out=OUT

The dense model continues every prompt (greedily, or by sampling at
--temperature), and both models are compared at every step. Rows with a layer
are inner read-outs, rows without one are the model's output. Step 0 is the
prediction after the last prompt token. `teacher_forced` is always run; the
other protocols add rows under the names of their lanes (`probes.trajectories`):

  free_running    free_running, control
  handoff         direct, history, dense_then_pruned, pruned_then_dense
  resynchronised  resynchronised_2, _4, _8, _16

With --temperature, --seeds=3 samples three texts from each prompt, and the
intervals hold the spread over prompts and over seeds; lane control, the dense
model with another seed, stands beside them. summary.json also breaks the output
down by step, text length, position, entropy and steps from the first
divergence.

Reference: He et al., arXiv 2603.24652, Figs 4, 7 and 12.
"""

import sys
import time

from absl import flags

from . import launch

_DENSE = flags.DEFINE_string(
  "dense", None, "The original model: a folder or a hub id.", required=True
)
_PRUNED = flags.DEFINE_string(
  "pruned", None, "The pruned model, of the same shape.", required=True
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "txt or jsonl file, or an .npz of ids.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_PROTOCOL = flags.DEFINE_multi_enum(
  "protocol",
  ["teacher_forced"],
  ["teacher_forced", "free_running", "handoff", "resynchronised"],
  "Who reads what; may be given several times.",
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 32, "Steps to decode and compare.", lower_bound=1
)
_NUM_PROMPTS = flags.DEFINE_integer(
  "num_prompts", None, "Only the first so many prompts.", lower_bound=1
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
  "Whether inner layers pass the final norm before the LM head.",
)
_BATCH = flags.DEFINE_integer(
  "batch", 8, "Prompts decoded together.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling and intervals.")
_SEEDS = flags.DEFINE_integer(
  "seeds",
  1,
  "Texts sampled from each prompt: seeds --seed, --seed + 1, ...",
  lower_bound=1,
)


def main() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.studies import inputs
  from jaxprune.studies.comparison import measure

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  if _SEEDS.value > 1 and not _TEMPERATURE.value:
    raise ValueError(
      f"--seeds={_SEEDS.value}: greedy texts are the same for every seed;"
      " give --temperature, or one seed"
    )
  dense = inputs.open_model(_DENSE.value)
  pruned = inputs.open_model(_PRUNED.value)
  prompts = inputs.read_prompts(
    dense,
    _PROMPTS.value,
    limit=_NUM_PROMPTS.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  # The reference of all the others is always run.
  protocols = tuple(dict.fromkeys([measure.PROTOCOL, *_PROTOCOL.value]))
  settings = measure.Settings(
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_TEMPERATURE.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    lens=_LENS.value,
    batch=_BATCH.value,
    seed=_SEED.value,
    num_seeds=_SEEDS.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={
      "sampling": _SEED.value,
      "texts_per_prompt": _SEEDS.value,
      "bootstrap": _SEED.value,
    },
    checkpoint_hash={
      "dense": checkpoints.checkpoint_hash(dense),
      "pruned": checkpoints.checkpoint_hash(pruned),
    },
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    }
  }
  with report.RunFolder(_OUT.value, description) as run:
    measure.compare(
      dense,
      pruned,
      prompts,
      settings,
      run,
      progress=launch.Progress(
        "batch", _SEEDS.value * -(-len(prompts.tokens) // _BATCH.value)
      ),
      protocols=protocols,
    )
    summary = measure.summarise(run.folder, settings)
    summary |= measure.summarise_texts(run.folder, settings)
    run.write_summary({**summary, "seconds": time.monotonic() - began})
    measure.write_report(run, description, summary, settings)
  print(measure.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
