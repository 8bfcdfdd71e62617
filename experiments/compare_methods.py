"""Is one method better than another at equal amount, item by item?

  python -m experiments.compare_methods --run=OUT --baseline=drop_attention \\
    --out=PAIRS

Reads the finished cells of `experiments.discrepancy`. Each cell METHOD:AMOUNT
is compared with BASELINE:AMOUNT on the same items: an item's score is its mean
over seeds, the difference is taken item by item, and the 95 % interval
resamples items. Beside it the lowest and highest difference of one seed, paired
by seed, for what the calibration does. `survives` is the largest amount up to
which the mean score of a method stays at --survival of the dense score.
"""

import json
import pathlib
import sys
import time

from absl import flags

from . import launch

_RUN = flags.DEFINE_string(
  "run", None, "Folder that experiments.discrepancy wrote.", required=True
)
_BASELINE = flags.DEFINE_string(
  "baseline", None, "Method that the others are compared with.", required=True
)
_SURVIVAL = flags.DEFINE_float(
  "survival",
  0.9,
  "Part of the dense score that must be left.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the intervals.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)

EXTRA_FIELDS = {
  "cell": ("text", "", "METHOD:AMOUNT"),
  "against": ("text", "", "the cell it is compared with"),
  "score": ("float", "", "mean over seeds and items"),
  "score_against": ("float", "", "the same of the other cell"),
  "seed_low": ("float", "", "lowest difference of one seed"),
  "seed_high": ("float", "", "highest difference of one seed"),
}


def main() -> None:
  from jaxprune import report
  from jaxprune.studies.sweep import scores

  began = time.monotonic()
  cells = scores.read_cells(pathlib.Path(_RUN.value))
  rows = list(compare(cells, _BASELINE.value, _SEED.value))
  if not rows:
    raise ValueError(
      f"--baseline={_BASELINE.value}: no other cell in {_RUN.value} has an"
      " amount in common with it"
    )
  alive = survivals(cells, _SURVIVAL.value)
  with open(pathlib.Path(_RUN.value) / "run.json") as file:
    earlier = json.load(file)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"bootstrap": _SEED.value},
    checkpoint_hash=earlier["checkpoint_hash"],
    calibration=earlier["calibration"],
  ) | {"compared": earlier["command"]}
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    run.write_all(rows)
    run.write_summary(
      {
        "differences": rows,
        "survives": alive,
        "survival": _SURVIVAL.value,
        "seconds": time.monotonic() - began,
      }
    )
    run.write_page(render(rows, alive, description))
  for row in rows:
    print(
      f"{row['cell']:>20} less {row['against']}: {row['task']},"
      f" {row['metric']}: {said(row)}"
    )
  print(f"wrote {_OUT.value}/report.html")


def compare(cells: dict[str, list[dict]], baseline: str, seed: int):
  """One row per cell, task and metric: the cell less the baseline's.

  Args:
    cells: from `grid_report.read_cells`.
    baseline: a method.
    seed: of the intervals.
  """
  from jaxprune import report

  for name, seeds in cells.items():
    method, _, amount = name.partition(":")
    against = cells.get(f"{baseline}:{amount}")
    if method == baseline or against is None:
      continue
    for task, entry in seeds[0]["tasks"].items():
      for metric in entry["columns"]:
        a_SI, b_SI = (_values(each, task, metric) for each in (seeds, against))
        weights = _weights(entry, a_SI)
        found = report.ratio_interval(
          a_SI.mean(axis=0) - b_SI.mean(axis=0), weights, seed=seed
        )
        common = [
          _values([one], task, metric) - _values([other], task, metric)
          for one in seeds
          for other in against
          if one["seed"] == other["seed"]
        ]
        each = [part.sum() / weights.sum() for part in common]
        yield {
          "cell": name,
          "against": f"{baseline}:{amount}",
          "task": task,
          "metric": metric,
          "value": found.estimate,
          "low": found.low,
          "high": found.high,
          "count": found.rows,
          "score": float(a_SI.mean(axis=0).sum() / weights.sum()),
          "score_against": float(b_SI.mean(axis=0).sum() / weights.sum()),
          "seed_low": float(min(each)) if each else None,
          "seed_high": float(max(each)) if each else None,
        }


def survivals(
  cells: dict[str, list[dict]], share: float
) -> list[dict[str, object]]:
  """The largest amount up to which a score of a method is high enough.

  Scores that are not better when higher (nll) are left out, and amounts that
  are no numbers.
  """
  amounts: dict[str, list[tuple[float, str]]] = {}
  for name in cells:
    method, _, amount = name.partition(":")
    if amount.replace(".", "", 1).isdigit():
      amounts.setdefault(method, []).append((float(amount), name))
  found = []
  for task, entry in cells["dense"][0]["tasks"].items():
    for metric in entry["columns"]:
      if metric == "nll":
        continue
      floor = share * _values(cells["dense"], task, metric).mean()
      for method, each in amounts.items():
        last = None
        for amount, name in sorted(each):
          if _values(cells[name], task, metric).mean() < floor:
            break
          last = amount
        found.append(
          {
            "method": method,
            "task": task,
            "metric": metric,
            "survives": last,
            "largest": max(each)[0],
          }
        )
  return found


def _values(seeds, task, metric):
  import numpy as np

  return np.array([one["tasks"][task]["columns"][metric] for one in seeds])


def _weights(entry, values_SI):
  import numpy as np

  return (
    np.ones(values_SI.shape[1])
    if entry["weights"] is None
    else (np.array(entry["weights"]))
  )


def said(row) -> str:
  """A difference, its interval, and the range over seeds."""
  text = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
  if row["seed_low"] is None:
    return text
  return f"{text}, seeds {row['seed_low']:+.3f} to {row['seed_high']:+.3f}"


def render(rows, alive, description) -> str:
  """report.html."""
  from jaxprune.report import page
  from jaxprune.studies.sweep import scores

  sections = []
  for task, metric, at in scores.by_metric(rows):
    sections.append(
      page.Section(
        title=f"{task}, {metric}",
        tables=[
          page.Table(
            caption="Paired difference by item of the mean over seeds, 95 %"
            " interval resampling items, lowest and highest seed.",
            columns=("cell", "score", "against", "its score", "difference"),
            rows=[
              (r["cell"], r["score"], r["against"], r["score_against"], said(r))
              for r in at
            ],
          )
        ],
      )
    )
  sections.append(
    page.Section(
      title="How far each method goes",
      tables=[
        page.Table(
          caption=f"Largest amount up to which {_SURVIVAL.value:.0%} of the"
          " dense score are left; none: not even at the smallest.",
          columns=("method", "task", "metric", "survives", "largest tried"),
          rows=[
            (
              e["method"],
              e["task"],
              e["metric"],
              "none" if e["survives"] is None else e["survives"],
              e["largest"],
            )
            for e in alive
          ],
        )
      ],
    )
  )
  better, worse = (
    sum(r[end] * sign > 0 for r in rows if r["metric"] != "nll")
    for end, sign in (("low", 1), ("high", -1))
  )
  return page.render_page(
    title="Methods against one another, item by item",
    verdict=f"Against {_BASELINE.value}: better in {better} comparisons and"
    f" worse in {worse}, of {len(rows)} (intervals that leave out 0; no"
    " correction for their number; perplexity not counted).",
    sections=sections,
    run=description,
  )


if __name__ == "__main__":
  launch.run(main)
