"""Do answer options move less than the rest of the vocabulary?

  python -m experiments.subspace --pruned=PRUNED --out=OUT
  python -m experiments.subspace --dense=FOLDER --pruned=PRUNED \\
    --items=QUESTIONS.jsonl --answer_as=letter --out=OUT

Each line of the jsonl file has `context`, `options` and `answer`. At the
position where the options part, both models are compared on the whole
vocabulary, on the first tokens of the options, and on random token sets of
about the same probability; the options are compared by the log-probability of
all their tokens and spellings. `--answer_as=letter` lists the options below
the context and reads A, B, ... after `--cue`; `--cue=` gives none, as in the
paper. Writes run.json, records.jsonl, summary.json, figures/ and report.html.
A minute or two on two CPU cores for a small model, most of it compilation.

Reference: He et al., arXiv 2603.24652, section 7 and Fig 8.
"""

import sys
import time

from absl import flags

from . import launch

_DENSE = flags.DEFINE_string(
  "dense", "pocket", "The original model: a folder, a hub id, or pocket."
)
_PRUNED = flags.DEFINE_string(
  "pruned", None, "The pruned model, of the same shape.", required=True
)
_ITEMS = flags.DEFINE_string(
  "items", "pocket", "jsonl of questions, or pocket for those of its world."
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many questions.", lower_bound=1
)
_ANSWER_AS = flags.DEFINE_enum(
  "answer_as", "text", ["text", "letter"], "What the model answers with."
)
_CUE = flags.DEFINE_string(
  "cue", "Answer:", "Last line of the context of --answer_as=letter."
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature",
  1.0,
  "T of the softmax that is measured.",
  lower_bound=1e-3,
)
_NUM_SUBSETS = flags.DEFINE_integer(
  "num_subsets", 16, "Random token sets of each question.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "batch", 8, "Questions compared together.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the random sets and the intervals."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  import jax
  import jax.numpy as jnp

  from jaxprune import checkpoints, report
  from jaxprune.calibration import load_tokenizer
  from jaxprune.studies import inputs
  from jaxprune.studies.subspace import items as items_lib
  from jaxprune.studies.subspace import measure, page

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  dense = inputs.open_model(_DENSE.value)
  pruned = inputs.open_model(_PRUNED.value)
  if _ITEMS.value == "pocket":
    if not inputs.is_pocket(dense):
      raise ValueError(
        f"--items=pocket: {dense.folder} does not speak the pocket model's"
        " language; give a jsonl file of questions"
      )
    questions = items_lib.pocket_questions(_LIMIT.value)
  else:
    questions = items_lib.read_questions(_ITEMS.value, _LIMIT.value)
  tokenizer = load_tokenizer(dense.folder)
  items = items_lib.read_items(
    questions,
    tokenizer,
    answer_as=_ANSWER_AS.value,
    cue=_CUE.value,
    bos_id=dense.config.bos_id,
    longest=dense.config.max_positions,
    source=_ITEMS.value,
  )
  settings = measure.Settings(
    answer_as=_ANSWER_AS.value,
    cue=_CUE.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    num_subsets=_NUM_SUBSETS.value,
    batch=min(_BATCH.value, len(items)),
    seed=_SEED.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"subsets": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash={
      "dense": checkpoints.checkpoint_hash(dense),
      "pruned": checkpoints.checkpoint_hash(pruned),
    },
  ) | {
    "items": {
      "source": _ITEMS.value,
      "count": len(items),
      "hash": items_lib.items_hash(items),
    }
  }
  config, params = checkpoints.load_params(dense, jnp.float32)
  pruned_config, pruned_params = checkpoints.load_params(pruned, jnp.float32)
  with report.RunFolder(_OUT.value, description) as run:
    for rows in measure.compare_items(
      config,
      params,
      pruned_config,
      pruned_params,
      items,
      items_lib.make_arrays(items),
      settings,
      launch.Progress("batch", -(-len(items) // settings.batch)),
    ):
      run.write_all(rows)
    summary = page.summarise(run.folder, settings)
    run.write_summary({**summary, "seconds": time.monotonic() - began})
    page.write_report(
      run,
      description,
      summary,
      settings,
      lambda token: tokenizer.decode([token], skip_special_tokens=False),
    )
  print(page.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
