"""Summary, figures and page of `damage`."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.report import figures, page
from jaxprune.studies.ablation.measure import (
  ESTIMATES,
  SELECTIONS,
  Curve,
  Settings,
  Single,
)

_LABELS = dict(
  zip(
    SELECTIONS,
    (
      "by similarity",
      "by single damage",
      "by damage, measured again",
      "random",
    ),
  )
)


def summarise(
  single: Single,
  orders: dict[str, dict[str, list[Drops]]],
  curves: list[Curve],
  settings: Settings,
) -> dict[str, Any]:
  """Means with intervals over sequences, agreement of rankings, orders."""
  seed = settings.seed
  return {
    "analysis_temperature": settings.analysis_temperature,
    "sequences": next(iter(single.damages.values()))["kl"].shape[1],
    "single": [
      {
        "sublayer": kind,
        "layer": i,
        "similarity": float(single.similarities[kind][i]),
      }
      | {name: _interval(leaf[i], seed) for name, leaf in measures.items()}
      for kind, measures in single.damages.items()
      for i in range(len(measures["kl"]))
    ],
    "rank_correlation": {
      kind: _agreement(single, kinds, seed)
      for kind, kinds in (
        ("attention", ("attention",)),
        ("mlp", ("mlp",)),
        ("joint", ("attention", "mlp")),
        ("block", ("block",)),
      )
    },
    "orders": {
      target: {
        name: [[list(pair) for pair in one.order] for one in found]
        for name, found in by.items()
      }
      for target, by in orders.items()
    },
    "curves": [
      {
        "target": curve.target,
        "selection": curve.selection,
        "kl": [_interval(part, seed) for part in curve.kl.mean(axis=0)],
        # Paired: the same sequences, less what similarity's choice does.
        "change": [
          _interval(part, seed)
          for part in (curve.kl.mean(axis=0) - _reference(curves, curve))
        ],
      }
      for curve in curves
    ],
  }


def _reference(curves, curve):
  return next(
    one.kl.mean(axis=0)
    for one in curves
    if (one.target, one.selection) == (curve.target, SELECTIONS[0])
  )


def _agreement(single, kinds, seed):
  """Rank correlation of each cheaper score with the damage.

  Sequences are resampled; the similarities, of which only means are kept, stay.
  """
  kl_SL = np.concatenate([single.damages[k]["kl"] for k in kinds]).T
  size = kl_SL.shape[1]
  cosine_L = np.concatenate([single.similarities[k] for k in kinds])
  found = {
    "similarity": report.statistic_interval(
      lambda rows: _spearman(rows.mean(axis=0), -cosine_L), kl_SL, seed=seed
    )
  }
  for name in ESTIMATES:
    other_SL = np.concatenate([single.damages[k][name] for k in kinds]).T
    found[name] = report.statistic_interval(
      lambda rows: _spearman(*rows.mean(axis=0).reshape(2, size)),
      np.concatenate([kl_SL, other_SL], axis=1),
      seed=seed,
    )
  return {name: _entry(interval) for name, interval in found.items()}


def _spearman(x, y) -> float:
  """Rank correlation; ties do not occur among these numbers."""
  ranks = [np.argsort(np.argsort(each)) for each in (x, y)]
  return float(np.corrcoef(*ranks)[0, 1])


def _interval(values, seed):
  return _entry(report.mean_interval(values, seed=seed))


def _entry(interval):
  return {"mean": interval.estimate, "low": interval.low, "high": interval.high}


def lines(summary: dict[str, Any]) -> list[str]:
  """What the script prints."""
  said = [
    f"{kind}: rank correlation with the damage: "
    + ", ".join(f"{name} {_said(entry)}" for name, entry in by.items())
    for kind, by in summary["rank_correlation"].items()
  ]
  for curve in summary["curves"]:
    said.append(
      f"{curve['target']}, {curve['selection']}: KL at 1, 2, ... drops "
      + " ".join(f"{entry['mean']:.3g}" for entry in curve["kl"])
    )
  return said


def write_page(
  run: report.RunFolder, description: dict[str, Any], summary: dict[str, Any]
) -> None:
  """figures/ and report.html."""
  sections = [_single_section(run, summary), _agreement_section(summary)]
  sections += [
    _curve_section(run, summary, target) for target in summary["orders"]
  ]
  run.write_page(
    page.render_page(
      title="What the output loses without each sublayer",
      verdict=_verdict(summary),
      sections=sections,
      run=description,
      protocol={
        "divergence": "KL(dense || without), nats, mean over positions",
        "analysis temperature T": summary["analysis_temperature"],
        "sequences": summary["sequences"],
        "intervals": "95 %, resampling sequences",
      },
    )
  )


def _verdict(summary):
  parts = []
  for curve in summary["curves"]:
    if curve["selection"] not in ("kl", "kl_iterative"):
      continue
    better = sum(entry["high"] < 0 for entry in curve["change"])
    worse = sum(entry["low"] > 0 for entry in curve["change"])
    parts.append(
      f"{curve['target']}, {curve['selection']}: less damage than the choice"
      f" by similarity at {better} of {len(curve['change'])} counts, more at"
      f" {worse} (intervals that leave out 0)."
    )
  return "\n\n".join(parts)


def _single_section(run, summary):
  series = {}
  for kind in ("attention", "mlp"):
    rows = [row for row in summary["single"] if row["sublayer"] == kind]
    x = np.array([row["layer"] for row in rows])
    series[kind] = {
      label: figures.Series(
        x=x,
        **{
          key: np.array([row[name][old] for row in rows])
          for key, old in (("y", "mean"), ("low", "low"), ("high", "high"))
        },
      )
      for name, label in (
        ("kl", "KL, exact"),
        ("kl_estimate", "estimate, true change"),
        ("kl_first_order", "estimate, derivative"),
      )
    }
  png = figures.lines_by_sublayer(
    series["attention"], series["mlp"], y="kl", log_y=True
  )
  run.write_figure("damage_by_layer", png)
  return page.Section(
    title="One sublayer left out",
    figures=[
      page.Figure(
        png=png,
        caption="Damage at the output; bands are 95 % intervals over"
        " sequences.",
        alt="Lines of damage over layers, for attention and"
        " MLP: exact and two estimates.",
      )
    ],
    tables=[
      page.Table(
        caption="KL(dense || without) in nats, its two estimates, and"
        " LLM-Drop's similarity.",
        columns=(
          "left out",
          "KL",
          "Var_p(dz)/2T², true dz",
          "Var_p(dz)/2T², derivative",
          "similarity",
        ),
        rows=[
          (
            f"{row['sublayer']} {row['layer']}",
            *(_said(row[name]) for name in ("kl", *ESTIMATES)),
            page.format_number(row["similarity"]),
          )
          for row in summary["single"]
        ],
      )
    ],
  )


def _agreement_section(summary):
  names = next(iter(summary["rank_correlation"].values()))
  return page.Section(
    title="Do cheaper scores rank alike?",
    tables=[
      page.Table(
        caption="Spearman's rank correlation with the exact damage.",
        columns=("among", *names),
        rows=[
          (kind, *(_said(entry) for entry in by.values()))
          for kind, by in summary["rank_correlation"].items()
        ],
      )
    ],
  )


def _curve_section(run, summary, target):
  curves = [each for each in summary["curves"] if each["target"] == target]
  counts = np.arange(1, len(curves[0]["kl"]) + 1)
  png = figures.lines(
    {
      _LABELS[each["selection"]]: figures.Series(
        x=counts,
        **{
          key: np.array([entry[old] for entry in each["kl"]])
          for key, old in (("y", "mean"), ("low", "low"), ("high", "high"))
        },
      )
      for each in curves
    },
    x="dropped",
    y="kl",
    log_y=True,
  )
  run.write_figure(f"selection_{target}", png)
  shown = [
    (each, part, suffix)
    for each in curves
    for part, suffix in (("kl", ""), ("change", ", change"))
    if part == "kl" or each["selection"] != SELECTIONS[0]
  ]
  orders = {
    name: ", ".join(f"{kind[0].upper()}{i}" for kind, i in found[0])
    for name, found in summary["orders"][target].items()
  }
  return page.Section(
    title=f"Dropped one after the other: {target}",
    figures=[
      page.Figure(
        png=png,
        caption="Damage on tokens that no choice has seen.",
        alt=f"Lines of KL over the number of dropped {target} sublayers, one"
        " per selection.",
      )
    ],
    tables=[
      page.Table(
        caption="KL in nats on unseen tokens, and the paired change from"
        " the choice by similarity.",
        columns=(
          "dropped",
          *(each["selection"] + suffix for each, _, suffix in shown),
        ),
        rows=[
          (int(count), *(_said(each[part][i]) for each, part, _ in shown))
          for i, count in enumerate(counts)
        ],
      ),
      page.Table(
        caption="Order of removal; A attention, M MLP; the first draw of"
        " random.",
        columns=("selection", "order"),
        rows=list(orders.items()),
      ),
    ],
  )


def _said(entry) -> str:
  digits = page.format_number
  return (
    f"{digits(entry['mean'], 3)} [{digits(entry['low'], 3)},"
    f" {digits(entry['high'], 3)}]"
  )
