"""Is one pruning method better than another at equal amount, item by item?

  jaxprune compare_methods --run=SWEEP --baseline=drop_attention --out=OUT

SWEEP is a folder that `discrepancy` wrote. Each METHOD:AMOUNT in it is compared
with BASELINE:AMOUNT on the same items. The score of an item is its mean over
seeds, the difference is taken item by item, and the 95 % interval resamples
items. Beside it stand the lowest and the highest difference of a single seed,
which show what the calibration text does. `survives` is the largest amount up
to which the mean score of a method stays at --survival of the dense score.
"""

from absl import flags

from . import flag_groups, launch

_RUN = flags.DEFINE_string(
  "run", None, "Folder that discrepancy wrote.", required=True
)
_BASELINE = flags.DEFINE_string(
  "baseline", None, "Method that the others are compared with.", required=True
)
_SURVIVAL = flag_groups.survival()
_SEED = flag_groups.seed("Seed of the intervals.")
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.studies.sweep import compare_methods, compare_pages

  scores, earlier = compare_methods.read_run(_RUN.value)
  summary = compare_methods.summarise(
    scores, _BASELINE.value, _SURVIVAL.value, _SEED.value
  )
  with launch.study(
    _OUT.value,
    seeds={"bootstrap": _SEED.value},
    models=earlier["checkpoint_hash"],
    calibration=earlier["calibration"],
    notes={"compared": earlier["command"]},
    extra_fields=compare_methods.FIELDS,
  ) as study:
    study.run.write_all(summary["differences"])
    study.run.write_page(
      compare_pages.render_methods(summary, study.description)
    )
    study.finish(summary, compare_methods.headline(summary))


if __name__ == "__main__":
  launch.run(main)
