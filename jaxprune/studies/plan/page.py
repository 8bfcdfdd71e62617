"""The page of a plan: what can go, how sure that is, and what was tried."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import RunFolder, figures, page
from jaxprune.statistics import Estimate
from jaxprune.studies.plan.summary import AMOUNTS
from jaxprune.studies.plan.tries import Settings


def write_page(
  run: RunFolder,
  summary: report.Summary,
  settings: Settings,
  command: tuple[str, ...] = (),
) -> None:
  """Write report.html and figures/.

  Args:
    run: the open run folder.
    summary: from `summary.summarise`.
    settings: what was looked for.
    command: words of the script that looks at the model; () for none.
  """
  page.write_report(
    run,
    title=f"What can be removed from {summary['model']}",
    finding=summary["finding"],
    verdict=summary["lead"],
    tiles=_tiles(summary),
    sections=[_search(summary), *_measured(summary)],
    protocol=_protocol(summary, settings),
    next=page.Next(
      why="Next: what this model writes, and how it answers:",
      command=shlex.join(["jaxprune", *command]),
    )
    if command
    else None,
  )


def _tiles(summary) -> list[page.Tile]:
  chosen = summary["chosen"]
  if chosen is None:
    return []
  return [
    page.Tile(
      value=f"{100 * chosen['amount']:.1f} %",
      label=f"of the {AMOUNTS[summary['amount']]} removed",
    ),
    page.estimate_tile(
      Estimate.from_json(chosen["kept"]),
      "of the score above chance is kept",
      unit="%",
      scale=100,
    ),
    page.Tile(
      value=f"{page.format_number(100 * chosen['changed'], 2)} %",
      label="next tokens changed",
    ),
    page.Tile(
      value=f"{page.format_number(chosen['kl'], 2)} nats",
      label="mean KL",
      about="KL(p‖q): how far the pruned model's probabilities q of the next"
      " token are from the original's p; 0 is no difference",
      source=page.PAPER,
    ),
  ]


def _search(summary) -> page.Section:
  """What was tried without looking at any answer."""
  families = dict.fromkeys(entry["family"] for entry in summary["tried"])
  lines = {}
  for family in families:
    entries = sorted(
      (each for each in summary["tried"] if each["family"] == family),
      key=lambda each: each["amount"],
    )
    lines[family] = figures.Series(
      x=np.array([100 * each["amount"] for each in entries]),
      y=np.array([each["damage"] for each in entries]),
    )
  return page.Section(
    title="What was tried",
    paragraphs=[
      "Damage is the mean KL in nats on texts of the original, weighted by"
      " exp(−entropy), so that positions count where the original is sure. No"
      " answer is looked at. The part of a score that is expected to be kept is"
      f" exp(−{page.format_number(summary['slope'], 3)} × damage), with the"
      " factor that explains the last measurement."
    ],
    figures=[
      page.Figure(
        name="damage",
        chart=figures.lines(lines, x="removed, %", y="damage", log_y=True),
        caption="Damage over what is removed, a line for each kind of pruning.",
        alt="Damage over the amount removed, by kind of pruning.",
      )
    ],
    tables=[
      page.Table(
        folded="Every pruning that was tried",
        caption="Amounts and changed tokens in percent, damage and KL in nats;"
        " predicted is the part of the score that is expected to be kept.",
        columns=("pruning", "removed", "damage", "KL", "changed", "predicted"),
        rows=[
          (
            _name(each),
            100 * each["amount"],
            each["damage"],
            each["kl"],
            100 * each["changed"],
            each["predicted"],
          )
          for each in summary["tried"]
        ],
      )
    ],
  )


def _measured(summary) -> list[page.Section]:
  """What was asked, of the prunings of the plan and of the usual ones."""
  entries = [e for e in summary["tried"] if e["kept"]]
  controls = [e["label"] for e in summary["controls"]]
  if not entries:
    return []
  tasks = list(summary["dense"])
  rows = [
    (
      _name(each) + (" (usual)" if each["label"] in controls else ""),
      100 * each["amount"],
      *(Estimate.from_json(each["scores"][task]) for task in tasks),
      Estimate.from_json(each["kept"]),
      each["kept"]["state"],
    )
    for each in entries
  ]
  dense = ", ".join(
    f"{name} {entry['value']:.3f} ({entry['metric']}, {entry['count']} items,"
    f" guessing {entry['chance']:.2f})"
    for name, entry in summary["dense"].items()
  )
  return [
    page.Section(
      title="What was measured",
      paragraphs=[
        f"The original scores {dense}. Kept is (score − chance) / (original −"
        " chance) of the task that suffers most, with its 95 % interval. The"
        f" amount is the largest of which the measured value is at least"
        f" {summary['keep']:.2f}; among several that were measured on the same"
        " items, the one that passes is luckier than it looks."
      ],
      tables=[
        page.Table(
          caption="Scores with their 95 % intervals, removed in percent. Kept"
          " and lost: the whole interval lies on one side of what was asked.",
          columns=("pruning", "removed", *tasks, "kept", "state"),
          rows=rows,
        )
      ],
    )
  ]


def _name(entry: Mapping[str, Any]) -> str:
  return f"{entry['label']} (trained)" if entry["recovered"] else entry["label"]


def _protocol(summary, settings) -> dict[str, Any]:
  return {
    "Tasks": ", ".join(summary["tasks"]),
    "Part of the score that must stay": settings.keep,
    "Amount": AMOUNTS[summary["amount"]],
    "Methods": ", ".join(settings.methods),
    "Allocations": ", ".join(settings.allocations),
    "Patterns": ", ".join(settings.patterns),
    "Prunings measured at most": settings.measurements,
    "Steps of training": settings.recover_steps,
  }
