"""The page of the recovery study: four tables per configuration."""

from typing import Any

from jaxprune.report import page
from jaxprune.statistics import Estimate
from jaxprune.studies.recovery.measure import Settings
from jaxprune.studies.recovery.summary import MEASURES, verdict

_COLUMNS = tuple(f"{task} {metric}" for task, metric in MEASURES)


def render(
  summary: dict[str, Any], settings: Settings, description: dict[str, Any]
) -> str:
  """Make report.html.

  Args:
    summary: from `summary.summarise`.
    settings: how models were pruned and trained.
    description: of the run.
  """
  recovery = settings.recovery
  return page.render_page(
    title="Recovery of pruned models",
    finding=None,
    verdict=verdict(summary),
    sections=[
      _section(name, entry, summary["dense"])
      for name, entry in summary["configurations"].items()
    ],
    run=description,
    protocol={
      "Training": f"{recovery.steps} steps of {recovery.batch} rows of"
      f" {settings.row_len} tokens, AdamW, peak rate"
      f" {recovery.learning_rate:g}",
      "Pruning": f"{settings.num_samples} sequences of"
      f" {settings.seq_len} tokens",
      "Seeds": ", ".join(map(str, settings.seeds)),
    },
  )


def _section(name, entry, dense) -> page.Section:
  trials = entry["weights_tried"]
  return page.Section(
    title=name,
    tables=[
      page.Table(
        caption="Mean over seeds and items, 95 % interval resampling"
        " items. KL in nats per token of the dense model's texts.",
        columns=("objective", *_COLUMNS),
        rows=_estimates({"dense": dense, **entry["scores"]}),
      ),
      page.Table(
        caption="Paired differences.",
        columns=("difference", *_COLUMNS),
        rows=_estimates(entry["differences"]),
      ),
      page.Table(
        caption="Lowest and highest seed.",
        columns=("objective", *_COLUMNS),
        rows=[
          (
            objective,
            *(
              f"{measures[column]['seed_low']:.3f} to"
              f" {measures[column]['seed_high']:.3f}"
              for column in _COLUMNS
            ),
          )
          for objective, measures in entry["scores"].items()
        ],
      ),
      page.Table(
        caption="The weight was chosen on the validation split at the"
        f" first seed: {entry['weight']:g}.",
        columns=tuple(trials[0]),
        rows=[tuple(trial.values()) for trial in trials],
      ),
    ],
  )


def _estimates(by_name):
  return [
    (name, *(Estimate.from_json(measures[column]) for column in _COLUMNS))
    for name, measures in by_name.items()
  ]
