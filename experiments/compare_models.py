"""Does it hold for other dense models? The same sweep on several of them.

  jaxprune compare_models --runs=SWEEP1,SWEEP2,SWEEP3 --out=OUT

Each SWEEP is a folder that `discrepancy` wrote for one dense model. Compared
are the configurations, tasks and metrics that all of them have. A score is the
mean over seeds and items, and `kept` is its share of the dense score (of a
perplexity: dense / pruned). So few models have no interval; instead the page
shows the mean, the lowest and the highest model, the number of models that keep
--survival of the score, and how alike two models rank the configurations
(Spearman's rank correlation).
"""

from absl import flags

from . import flag_groups, launch

_RUNS = flags.DEFINE_list(
  "runs",
  None,
  "Folders that discrepancy wrote, one per dense model.",
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
