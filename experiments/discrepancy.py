"""Which tasks survive which pruning? Tasks over methods, amounts and seeds.

  jaxprune discrepancy --model=pocket --pocket \\
    --configurations=wanda:0.6,wanda:2:4,drop_attention:4 --seeds=0,1,2 \\
    --out=OUT

Prunes the model once per configuration and calibration seed, and scores every
pruned copy and the dense model on the same items. The table shows the mean over
seeds with a 95 % interval over items, the range over seeds, and the paired
change from the dense model; records.jsonl has a row per configuration, seed,
task and metric. With --prompts every copy also reads what the dense model
writes after them, and how far h, z and p move at the output is kept beside the
scores. `guidance` learns from such a sweep.

Finished configurations are kept in OUT/configurations. A run that was killed
goes on with the same command, and one with more configurations or seeds adds to
it; other flags or inputs are refused. Pruned weights are not kept. Methods that
look at no data run for the first seed only.
"""

from absl import flags

from . import descriptions, flag_groups, launch

_MODEL = flag_groups.model()
_CONFIGURATIONS = flag_groups.configurations(
  ["magnitude:0.5", "wanda:0.5", "sparsegpt:0.5"]
)
_SEEDS = flag_groups.seeds()
_CALIBRATION = flag_groups.calibration(
  about_seq_len="Tokens of a calibration sequence, and of a window for"
  " perplexity."
)
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 64, "Inputs that share a scale in rtn and awq; 0 for all."
)
_DROP_TARGET = flags.DEFINE_enum(
  "drop_target",
  "attention",
  ["attention", "mlp", "joint", "block"],
  "What drop_iterative, drop_random and drop_reverse drop.",
)
_TASKS = flag_groups.tasks()
_PROMPTS = flag_groups.prompt_file(
  None, about="Texts to measure h, z and p on: a file, or pocket."
)
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.pruning.checkpoint import sublayers
  from jaxprune.report import page as report_page
  from jaxprune.studies.sweep import (
    configurations,
    measure,
    page,
    scores,
    summary,
  )

  source, seeds = _MODEL.open(), _SEEDS.value
  wanted = configurations.read_all(
    _CONFIGURATIONS.value,
    source.config,
    group_size=_GROUP_SIZE.value or None,
    target=_DROP_TARGET.value,
    earlier=sublayers.dropped_before(source),
  )
  dense = _read_dense(source)
  drawn, calibration = _CALIBRATION.read_seeds(source, seeds)
  with launch.study(
    _OUT.value,
    seeds={"calibration": seeds, "bootstrap": 0},
    models=source,
    calibration=calibration,
    prompts=dense.prompts,
    extra_fields=measure.FIELDS,
    grows=("configurations", "cells", "seeds"),
  ) as study:
    places = _places(study.stage, source)
    todo = measure.jobs(wanted, seeds)
    progress = study.progress("configuration", len(todo))
    measured = measure.measure(
      dense, todo, drawn, places, progress.step, launch.tell_amount
    )
    study.run.write_all(scores.rows(measured))
    numbers = summary.summarise(measured)
    report_page.write_report(study.run, **page.content(numbers))
    study.finish(numbers, summary.headline(numbers))


def _places(stage, source):
  """Where the run works, with the scores that are finished."""
  from jaxprune.studies.sweep import measure, scores

  places = measure.Places(
    scores=stage.new / scores.FOLDER, work=stage.scaffold / "work"
  )
  scores.start(
    places.scores,
    scores.job(descriptions.flag_values(), source),
    None if launch.overwrites() else stage.folder,
  )
  return places


def _read_dense(source):
  """The dense model, and what is asked of all that is made from it."""
  from jaxprune.studies import inputs
  from jaxprune.studies.sweep import measure
  from jaxprune.studies.tasks import scores as task_scores

  steps = measure.NEW_TOKENS
  tasks = _TASKS.read(seq_len=_CALIBRATION.seq_len.value, max_new_tokens=steps)
  task_scores.check(tasks, [source])
  prompts = None
  if _PROMPTS.value is not None:
    prompts = inputs.read_prompts(
      source, _PROMPTS.value, limit=measure.NUM_PROMPTS, max_new_tokens=steps
    )
  return measure.Dense(source=source, tasks=tasks, prompts=prompts)


if __name__ == "__main__":
  launch.run(main)
