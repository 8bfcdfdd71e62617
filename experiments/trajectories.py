"""How do a dense and a pruned model drift apart while they write?

  jaxprune trajectories --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --protocol=teacher_forced --max_new_tokens=32 --out=OUT

The dense model continues every prompt (greedily, or by sampling at
--temperature), and both models are compared at every step. Step 0 is the
prediction after the last prompt token. `teacher_forced`, where both models read
the dense model's text, is always run; other protocols add rows under the names
of their decodings (`probes.trajectories`; control only with --temperature):

  free_running    free_running, control
  handoff         direct, history, dense_then_pruned, pruned_then_dense
  resynchronised  resynchronised_2, _4, _8, _16

A row of records.jsonl is one step. summary.json has the means of the read-outs
inside, layer by layer; --layer_rows writes a row for each of them, too. It also
divides the output by step, text length, position, entropy and steps from the
first divergence.

With --temperature, --samples=3 draws three texts from each prompt, and the
intervals hold the spread over prompts and over seeds. The decoding control, the
dense model with another seed, is measured with them.

Reference: He et al., arXiv 2603.24652, Figs 4, 7 and 12.
"""

from absl import flags

from . import flag_groups, launch

_COMPARISON = flag_groups.comparison(max_new_tokens=32)
_PROTOCOL = flag_groups.several(
  "protocol",
  ["teacher_forced"],
  ["teacher_forced", "free_running", "handoff", "resynchronised"],
  "Who reads what, divided by commas.",
)
_SAMPLES = flags.DEFINE_integer(
  "samples",
  1,
  "Texts sampled from each prompt, with the seeds --seed, --seed + 1, ...",
  lower_bound=1,
)
_LAYER_ROWS = flag_groups.layer_rows()
_OUT = flag_groups.out()


def main() -> None:
  if _SAMPLES.value > 1 and not _COMPARISON.temperature.value:
    raise ValueError(
      f"--samples={_SAMPLES.value}: greedy texts are the same for every seed;"
      " give --temperature, or one sample"
    )
  from jaxprune.calibration import batching
  from jaxprune.studies.comparison import measure, page
  from jaxprune.studies.comparison import summary as summary_lib

  models, prompts = _COMPARISON.open()
  settings = _COMPARISON.settings(
    measure.Settings,
    num_seeds=_SAMPLES.value,
    layer_rows=_LAYER_ROWS.value,
    # The teacher-forced comparison, the reference of the others, always runs.
    protocols=tuple(
      name for name in _PROTOCOL.value if name != measure.TEACHER_FORCED
    ),
  )
  seeds = {
    "sampling": settings.seed,
    "texts_per_prompt": _SAMPLES.value,
    "bootstrap": settings.seed,
  }
  with launch.study(
    _OUT.value, seeds=seeds, models=models, prompts=prompts
  ) as study:
    pair = measure.load_models(models["dense"], models["pruned"])
    batches = batching.number_of_batches(len(prompts.tokens), settings.batch)
    progress = study.progress("batch", settings.num_seeds * batches)
    tables = measure.compare(*pair, prompts, settings, study.run, progress)
    sources = (models["dense"], models["pruned"])
    summary = summary_lib.summarise_all(tables, sources, pair)
    study.finish(summary, summary_lib.headline(summary))
    page.write_page(study.run, tables, summary)


if __name__ == "__main__":
  launch.run(main)
