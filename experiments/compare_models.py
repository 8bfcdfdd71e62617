"""Does it hold for other dense models? The same grid on several of them.

  python -m experiments.compare_models --runs=GRID1,GRID2,GRID3 --out=OUT

Reads the finished cells of `experiments.discrepancy`, one folder per dense
model, and takes what all folders have: cells, tasks and metrics. A score is the
mean over seeds and items; `kept` is its share of the score of the model that it
was pruned from (of a perplexity: dense / pruned). Few dense models have no
interval: the lowest and the highest of them stand beside the mean, the number
in which --survival of the score is kept, and how alike two dense models order
the cells (Spearman's rank correlation).
"""

import json
import pathlib
import sys

from absl import flags

from . import launch

_RUNS = flags.DEFINE_list(
  "runs",
  None,
  "Folders that experiments.discrepancy wrote, one per dense model.",
  required=True,
)
_SURVIVAL = flags.DEFINE_float(
  "survival",
  0.9,
  "Part of the dense score that must be left.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)

EXTRA_FIELDS = {
  "cell": ("text", "", "METHOD:AMOUNT, or dense"),
  "run": ("int", "", "which of --runs, from 0"),
  "kept": ("float", "", "score over that of the dense model"),
}


def main() -> None:
  from jaxprune import report
  from jaxprune.studies.sweep import compare_models, scores

  if len(_RUNS.value) < 2:
    raise ValueError(f"--runs={','.join(_RUNS.value)}: give two or more")
  hashes = [_dense_hash(pathlib.Path(run)) for run in _RUNS.value]
  if len(set(hashes)) < len(hashes):
    raise ValueError(
      "--runs: two folders are of the same dense model; several seeds of one"
      " calibration belong into one run of experiments.discrepancy"
    )
  rows = compare_models.compare(
    [scores.read_cells(pathlib.Path(run)) for run in _RUNS.value],
    _SURVIVAL.value,
  )
  if not rows:
    raise ValueError("--runs: no cell and task that all folders have")
  order = compare_models.orders(rows)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={},
    checkpoint_hash=", ".join(hashes),
  )
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    run.write_all(compare_models.flat(rows))
    run.write_summary(
      {"cells": rows, "order": order, "survival": _SURVIVAL.value}
    )
    run.write_page(compare_models.render(rows, order, description))
  for row in rows:
    print(
      f"{row['cell']:>20} {row['task']}, {row['metric']}:"
      f" {compare_models.said(row)}"
    )
  for entry in order:
    print(
      f"order of the cells, {entry['task']}, {entry['metric']}: Spearman"
      f" {entry['low']:.3f} to {entry['high']:.3f} over {entry['pairs']}"
      f" pairs; all models agree on survival in {entry['agree']} of"
      f" {entry['cells']} cells"
    )
  print(f"wrote {_OUT.value}/report.html")


def _dense_hash(folder: pathlib.Path) -> str:
  path = folder / "cells" / "job.json"
  if not path.is_file():
    raise ValueError(
      f"--runs: {folder} has no cells/job.json: give folders that"
      " experiments.discrepancy wrote"
    )
  return json.loads(path.read_text())["checkpoint_hash"]


if __name__ == "__main__":
  launch.run(main)
