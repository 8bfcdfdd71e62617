"""Which objective brings a pruned pocket model back? Equal steps, same text.

  python -m experiments.recovery_study --out=OUT

For every cell and calibration seed the dense model is pruned, trained with
each objective, written as a folder, read back and scored: choose, retrieve and
generate of the test split, and KL(dense||trained) on the dense model's greedy
texts for the same prompts. `none` is the pruned model as it is. The factor of
the variance is chosen per cell at the first seed, among --weights, by exact
answers on the validation split (equal ones: by the KL there); the test items
are not looked at. Nothing else is tuned, so the variance has the advantage of
a choice that plain distillation does not have.

A row of the records is one item of one trained model. A run that was killed
goes on with --resume after the last finished model.
"""

import sys
import time

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "The dense model, in the pocket model's language."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_CELLS = flags.DEFINE_list(
  "cells",
  ["wanda:0.6", "wanda:2:4", "drop_mlp:4"],
  "Ways to prune, METHOD:AMOUNT.",
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "Of calibration, training text and order."
)
_WEIGHTS = flags.DEFINE_list(
  "weights", ["0.1", "1", "10"], "Factors of the variance to choose from."
)
_STEPS = flags.DEFINE_integer(
  "steps", 120, "Steps of each training.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "batch", 4, "Rows of a step; each row is read once.", lower_bound=1
)
_ROW_LEN = flags.DEFINE_integer(
  "row_len", 64, "Tokens of a row in training.", lower_bound=2
)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate", 5e-4, "Peak; 10 % warm-up, then a cosine to 0."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Sequences to prune with.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of each.", lower_bound=1
)
_RESUME = flags.DEFINE_bool(
  "resume", False, "Keep the finished models of an earlier run in --out."
)


def main() -> None:
  import jax

  from jaxprune import checkpoints, devices, report
  from jaxprune.recovery import Recovery
  from jaxprune.studies import inputs
  from jaxprune.studies.recovery import measure, page
  from jaxprune.studies.sweep import configurations

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  if not inputs.is_pocket(source):
    raise ValueError(
      f"--model={_MODEL.value}: the study asks the pocket model's questions;"
      " use experiments.recover and experiments.evaluate for another model"
    )
  cells = [
    configurations.read_cell(text, group_size=None, target="mlp")
    for text in _CELLS.value
  ]
  for cell in cells:
    configurations.check(source.config, cell)
  settings = measure.Settings(
    seeds=tuple(map(int, _SEEDS.value)),
    weights=tuple(map(float, _WEIGHTS.value)),
    row_len=_ROW_LEN.value,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
    recovery=Recovery(
      steps=_STEPS.value, batch=_BATCH.value, learning_rate=_LEARNING_RATE.value
    ),
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": list(settings.seeds), "bootstrap": 0},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
  )
  with report.RunFolder(
    _OUT.value, description, resume=_RESUME.value, extra_fields=measure.FIELDS
  ) as run:
    measure.study(
      source,
      cells,
      settings,
      run,
      launch.Progress("model", measure.count(cells, settings)),
    )
    table = report.columns(report.read_records(run.folder))
    summary = page.summarise(table)
    run.write_summary(
      {
        **summary,
        "seconds": time.monotonic() - began,
        "memory": devices.peak_bytes(),
      }
    )
    page.write_page(run, description, summary, settings)
  print("\n".join(page.lines(summary)))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
