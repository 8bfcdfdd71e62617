"""Figures and page of `ablation`, and what the script prints."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.statistics import Estimate
from jaxprune.studies.ablation.measure import ESTIMATES, SELECTIONS

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


def headline(summary: dict[str, Any]) -> str:
  """A line per kind of sublayer and per selection."""
  lines = [
    f"{kind}: rank correlation with the damage: "
    + ", ".join(
      f"{name} {Estimate.from_json(entry).format()}"
      for name, entry in scores.items()
    )
    for kind, scores in summary["rank_correlation"].items()
  ]
  lines += [
    f"{curve['target']}, {curve['selection']}: KL at 1, 2, ... drops "
    + " ".join(f"{entry['value']:.3g}" for entry in curve["kl"])
    for curve in summary["curves"]
  ]
  return "\n".join(lines)


def write_page(
  run: report.RunFolder, description: dict[str, Any], summary: dict[str, Any]
) -> None:
  """Write figures/ and report.html.

  Args:
    run: the run folder.
    description: of the run.
    summary: from `summary.summarise`.
  """
  page.write_report(
    run,
    title="What the output loses without each sublayer",
    verdict=_verdict(summary),
    sections=[
      _single_section(summary),
      _agreement_section(summary),
      *(_curve_section(summary, target) for target in summary["orders"]),
    ],
    run=description,
    protocol={
      "divergence": "KL(dense || without), nats, mean over positions",
      "analysis temperature T": summary["analysis_temperature"],
      "sequences": summary["sequences"],
      "intervals": "95 %, resampling sequences",
    },
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


def _single_section(summary):
  series = {}
  for kind in ("attention", "mlp"):
    rows = [row for row in summary["single"] if row["sublayer"] == kind]
    series[kind] = {
      label: figures.estimated(
        [row["layer"] for row in rows], [row[name] for row in rows]
      )
      for name, label in (
        ("kl", "KL, exact"),
        ("kl_estimate", "estimate, true change"),
        ("kl_first_order", "estimate, derivative"),
      )
    }
  return page.Section(
    title="One sublayer left out",
    figures=[
      page.Figure(
        name="damage_by_layer",
        png=figures.lines_by_sublayer(
          series["attention"], series["mlp"], y="kl", log_y=True
        ),
        caption="Damage at the output; bands are 95 % intervals over"
        " sequences.",
        alt="Lines of damage over layers, for attention and"
        " MLP: exact and two estimates.",
      )
    ],
    tables=[
      page.estimate_table(
        "KL(dense || without) in nats, its two estimates, and LLM-Drop's"
        " similarity.",
        "left out",
        {
          "kl": "KL",
          "kl_estimate": "Var_p(dz)/2T², true dz",
          "kl_first_order": "Var_p(dz)/2T², derivative",
          "similarity": "similarity",
        },
        {f"{row['sublayer']} {row['layer']}": row for row in summary["single"]},
      )
    ],
  )


def _agreement_section(summary):
  return page.Section(
    title="Do cheaper scores rank alike?",
    tables=[
      page.estimate_table(
        "Spearman's rank correlation with the exact damage.",
        "among",
        {name: name for name in ("similarity", *ESTIMATES)},
        summary["rank_correlation"],
      )
    ],
  )


def _curve_section(summary, target):
  curves = [each for each in summary["curves"] if each["target"] == target]
  counts = np.arange(1, len(curves[0]["kl"]) + 1)
  shown = {
    curve["selection"] + suffix: curve[part]
    for curve in curves
    for part, suffix in (("kl", ""), ("change", ", change"))
    if part == "kl" or curve["selection"] != SELECTIONS[0]
  }
  orders = {
    name: ", ".join(f"{kind[0].upper()}{i}" for kind, i in draws[0])
    for name, draws in summary["orders"][target].items()
  }
  return page.Section(
    title=f"Dropped one after the other: {target}",
    figures=[
      page.Figure(
        name=f"selection_{target}",
        png=figures.lines(
          {
            _LABELS[curve["selection"]]: figures.estimated(counts, curve["kl"])
            for curve in curves
          },
          x="dropped",
          y="kl",
          log_y=True,
        ),
        caption="Damage on tokens that no choice has seen.",
        alt=f"Lines of KL over the number of dropped {target} sublayers, one"
        " per selection.",
      )
    ],
    tables=[
      page.Table(
        caption="KL in nats on unseen tokens, and the paired change from"
        " the choice by similarity.",
        columns=("dropped", *shown),
        rows=[
          (int(count), *(estimates[i] for estimates in shown.values()))
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
