"""Which objective brings a pruned pocket model back? Equal steps, same text.

  jaxprune recovery_study --out=OUT

For every configuration and calibration seed the dense model is pruned, trained
with each objective, written as a folder, read back and scored: choose, retrieve
and generate of the test split, and KL(dense || trained) on the dense model's
greedy texts for the same prompts. `none` is the pruned model as it is.

The factor of the variance is chosen among --weights per configuration at the
first seed, by exact answers on the validation split (between equal ones, by the
KL there); the test items are not looked at. Nothing else is tuned, so the
variance has the advantage of a choice that plain distillation does not have.

A row of the records is one item of one trained model. A run that was killed
goes on with the same command after the last finished model.
"""

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(
  about="The dense model, in the pocket model's language."
)
_CONFIGURATIONS = flag_groups.configurations(
  ["wanda:0.6", "wanda:2:4", "drop_mlp:4"]
)
_SEEDS = flag_groups.seeds(
  about="Seeds of calibration, training text and order."
)
_WEIGHTS = flags.DEFINE_list(
  "weights", ["0.1", "1", "10"], "Factors of the variance to choose from."
)
_STEPS = flags.DEFINE_integer(
  "steps", 120, "Steps of each training.", lower_bound=1
)
_BATCH = flag_groups.batch(4, about="Rows of a step; each row is read once.")
_ROW_LEN = flags.DEFINE_integer(
  "row_len", 64, "Tokens of a row in training.", lower_bound=2
)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate", 5e-4, "Peak of the rate: 10 % warm-up, then a cosine to 0."
)
_NUM_SAMPLES = flag_groups.samples(32, about="Sequences to prune with.")
_SEQ_LEN = flag_groups.sequence_length(
  128, about="Tokens of a calibration sequence."
)
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune import devices
  from jaxprune.studies.recovery import measure, page, summary
  from jaxprune.studies.sweep import configurations

  source = _MODEL.open()
  measure.check(source)
  wanted = configurations.read_all(
    _CONFIGURATIONS.value, source.config, group_size=None, target="mlp"
  )
  settings = _settings()
  with launch.study(
    _OUT.value,
    seeds={"calibration": list(settings.seeds), "bootstrap": 0},
    models=source,
    extra_fields=measure.FIELDS,
    resume=True,
  ) as study:
    progress = study.progress("model", measure.count(wanted, settings))
    table = measure.measure(source, wanted, settings, study.run, progress)
    numbers = summary.summarise(table)
    study.run.write_page(page.render(numbers, settings, study.description))
    study.finish(
      {**numbers, "memory": devices.peak_bytes()}, summary.headline(numbers)
    )


def _settings():
  """How models are pruned and trained.

  Raises:
    ValueError: more tokens than the memory holds.
  """
  from jaxprune.calibration import tokens
  from jaxprune.recovery import Recovery
  from jaxprune.studies.recovery import measure

  tokens.check_room(_NUM_SAMPLES.value, _SEQ_LEN.value)
  tokens.check_room(
    _STEPS.value * _BATCH.value,
    _ROW_LEN.value,
    asked=f"--steps={_STEPS.value} of --batch={_BATCH.value} rows of"
    f" --row_len={_ROW_LEN.value} tokens",
  )
  return measure.Settings(
    seeds=tuple(_SEEDS.value),
    weights=flag_groups.numbers(_WEIGHTS, float),
    row_len=_ROW_LEN.value,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
    recovery=Recovery(
      steps=_STEPS.value, batch=_BATCH.value, learning_rate=_LEARNING_RATE.value
    ),
  )


if __name__ == "__main__":
  launch.run(main)
