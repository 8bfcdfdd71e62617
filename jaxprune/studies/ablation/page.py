"""The page of `ablation`, and what the script prints."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.statistics import Estimate
from jaxprune.studies.ablation.measure import SELECTIONS

_LABELS = dict(
  zip(
    SELECTIONS,
    ("by similarity", "by KL alone", "by KL, measured again", "random"),
  )
)


def headline(summary: dict[str, Any]) -> str:
  """What the script prints."""
  lines = [
    f"{kind}: rank correlation with the KL: "
    + ", ".join(
      f"{name} {Estimate.from_json(entry).format()}"
      for name, entry in by_score.items()
    )
    for kind, by_score in summary["rank_correlation"].items()
  ]
  for curve in summary["curves"]:
    lines.append(
      f"{curve['target']}, {curve['selection']}: KL at 1, 2, ... drops "
      + " ".join(f"{entry['value']:.3g}" for entry in curve["kl"])
    )
  return "\n".join(lines)


def write_page(run: report.RunFolder, summary: dict[str, Any]) -> None:
  """Write figures/ and report.html.

  Args:
    run: the run folder.
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
    protocol={
      "divergence": "KL(dense || without), nats, mean over positions",
      "analysis temperature T": summary["analysis_temperature"],
      "sequences": summary["sequences"],
      "intervals": "95 %, resampling sequences",
    },
  )


def _verdict(summary):
  return "\n\n".join(
    f"{entry['target']}, {entry['selection']}: less is lost than by the choice"
    f" by similarity at {entry['better']} of {entry['counts']} counts, more at"
    f" {entry['worse']} (intervals that leave out 0)."
    for entry in summary["against_similarity"]
  )


def _single_section(summary):
  labels = {
    "kl": "KL, exact",
    "kl_estimate": "estimate, true change",
    "kl_first_order": "estimate, derivative",
  }
  series = {}
  for kind in ("attention", "mlp"):
    rows = [row for row in summary["single"] if row["sublayer"] == kind]
    layers = np.array([row["layer"] for row in rows])
    series[kind] = {
      label: figures.estimated(layers, [row[name] for row in rows])
      for name, label in labels.items()
    }
  return page.Section(
    title="One sublayer left out",
    figures=[
      page.Figure(
        name="ablation_by_layer",
        chart=figures.lines_by_sublayer(
          series["attention"], series["mlp"], y="kl", log_y=True
        ),
        caption="KL at the output without one sublayer; bands are 95 %"
        " intervals over sequences.",
        alt="Lines of the KL over layers, for attention and MLP: exact and two"
        " estimates.",
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
  names = next(iter(summary["rank_correlation"].values()))
  return page.Section(
    title="Do cheaper scores rank alike?",
    tables=[
      page.estimate_table(
        "Spearman's rank correlation with the exact KL.",
        "among",
        {name: name for name in names},
        summary["rank_correlation"],
      )
    ],
  )


def _curve_section(summary, target):
  curves = [curve for curve in summary["curves"] if curve["target"] == target]
  counts = np.arange(1, len(curves[0]["kl"]) + 1)
  columns = {
    f"{curve['selection']}{suffix}": curve[part]
    for curve in curves
    for part, suffix in (("kl", ""), ("change", ", change"))
    if part == "kl" or curve["selection"] != SELECTIONS[0]
  }
  orders = {
    name: ", ".join(f"{kind[0].upper()}{layer}" for kind, layer in draws[0])
    for name, draws in summary["orders"][target].items()
  }
  return page.Section(
    title=f"Dropped one after the other: {target}",
    figures=[
      page.Figure(
        name=f"selection_{target}",
        chart=figures.lines(
          {
            _LABELS[curve["selection"]]: figures.estimated(counts, curve["kl"])
            for curve in curves
          },
          x="dropped",
          y="kl",
          log_y=True,
        ),
        caption="KL on tokens that no choice has seen.",
        alt=f"Lines of KL over the number of dropped {target} sublayers, one"
        " per selection.",
      )
    ],
    tables=[
      page.Table(
        caption="KL in nats on unseen tokens, and the paired change from"
        " the choice by similarity.",
        columns=("dropped", *columns),
        rows=[
          (int(count), *(entries[index] for entries in columns.values()))
          for index, count in enumerate(counts)
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
