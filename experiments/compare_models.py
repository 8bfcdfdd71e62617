"""Does it hold for other dense models? The same sweep of several of them.

  jaxprune compare_models --runs=SWEEP1,SWEEP2,SWEEP3 --out=OUT

Reads the finished configurations of `experiments.discrepancy`, one folder per
dense model, and takes what all folders have: configurations, tasks and metrics.
A score is the mean over seeds and items; `kept` is the part that it is of the
score of the model that it was pruned from (of a perplexity: dense / pruned).
Few dense models have no interval: the lowest and the highest of them stand
beside the mean, the number in which --survival of the score is kept, and how
alike two dense models order the configurations (Spearman's rank correlation).
"""

from absl import flags

from . import flag_groups, launch

_RUNS = flags.DEFINE_list(
  "runs",
  None,
  "Folders that experiments.discrepancy wrote, one per dense model.",
  required=True,
)
_SURVIVAL = flag_groups.survival()
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.studies.sweep import compare_models, compare_pages

  runs, hashes = compare_models.read_runs(_RUNS.value)
  summary = compare_models.summarise(runs, _SURVIVAL.value)
  with launch.study(
    _OUT.value,
    seeds={},
    models=", ".join(hashes),
    extra_fields=compare_models.FIELDS,
  ) as study:
    study.run.write_all(compare_models.records(summary["configurations"]))
    study.run.write_page(
      compare_pages.render_models(summary, study.description)
    )
    study.finish(summary, compare_models.headline(summary))


if __name__ == "__main__":
  launch.run(main)
