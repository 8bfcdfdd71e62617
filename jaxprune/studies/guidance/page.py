"""Records, figures, page and lines of `guidance`."""

from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.studies.guidance import rules as rules_lib
from jaxprune.studies.guidance.fit import H_COSINE, KL, UNTUNED
from jaxprune.studies.guidance.splits import HALF, splits
from jaxprune.studies.guidance.sweeps import KINDS, Grids

FIELDS = {
  "cell": report.Field("text", "", "METHOD:AMOUNT"),
  "dense": report.Field("text", "", "hash of the dense checkpoint"),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
  "feature": report.Field("text", "", "measurement that a rule may use"),
  "kept": report.Field("float", "", "share of the dense score"),
  "survives": report.Field("bool", "", "enough of the score was kept"),
  "certainty": report.Field(
    "float", "", "share of resamples of the items with the same answer"
  ),
  "threshold": report.Field("float", "", "yes up to this"),
  "fit_error": report.Field(
    "float", "", "balanced error on the models learnt from"
  ),
  "error": report.Field("float", "", "share of wrong held-out answers"),
  "balanced_error": report.Field(
    "float", "", "mean of the errors among both classes, held out"
  ),
  "auc": report.Field("float", "", "area under the curve, all models"),
  "auc_fit": report.Field("float", "", "of the models learnt from"),
  "auc_held_out": report.Field("float", "", "of the held-out models"),
  "spearman": report.Field("float", "", "rank correlation with kept, all"),
  "spearman_held_out": report.Field("float", "", "of the held-out models"),
} | {
  name: report.Field("float", "", "see jaxprune.studies.guidance.rules")
  for name in rules_lib.FEATURES
}
NAMES = {
  "rule": "the rule",
  "removed": "sparsity",
  "perplexity": "perplexity",
  H_COSINE: "cosine of h, mean",
  KL: "KL, mean",
  "untuned": f"{UNTUNED}, threshold not fitted",
  "majority": "majority",
}


def rows(grids: Grids):
  """Per model its features, and per model and task its score."""
  for index, model in enumerate(grids.models):
    yield (
      _of(model)
      | {"protocol": "features"}
      | {name: values[index] for name, values in grids.features.items()}
    )
  for name, task in grids.tasks.items():
    for index, found in zip(task.models, task.survivals):
      yield _of(grids.models[index]) | {
        "protocol": "task",
        "task": name,
        "metric": task.metric,
        "value": found.score,
        "reference": found.dense,
        "kept": found.kept,
        "survives": found.survives,
        "certainty": found.certainty,
      }


def lines(rules: dict[str, Any]) -> list[str]:
  """One line per task: what was learnt and how often it was wrong."""
  said = []
  for task, entry in rules.items():
    head = f"{task}: {entry['survived']} of {entry['models']} survived; "
    if entry["feature"] is None:
      said.append(head + entry["reason"])
      continue
    others = ", ".join(
      f"{split} {_error(found.get('rule'))}"
      for split, found in entry["splits"].items()
      if split != HALF
    )
    said.append(
      head + f"{entry['feature']} <= {entry['threshold']:.3g}, held-out error"
      f" {_error(entry['held_out'])} ({others})"
    )
  return said


def write_page(run, description, grids: Grids, rules, settings, table) -> None:
  """Figures and report.html."""
  sections = [
    _settings_section(table),
    _rules_section(rules),
    _baselines_section(rules),
  ]
  feature_rows = [
    row
    for row in report.read_records(run.folder)
    if row["protocol"] == "feature"
  ]
  for name in grids.tasks:
    png, caption = _draw(grids, name, rules[name], settings)
    run.write_figure("score_" + name.replace(" ", "_"), png)
    sections.append(
      page.Section(
        title=name,
        paragraphs=[lines({name: rules[name]})[0]],
        figures=[
          page.Figure(
            png=png,
            caption=caption,
            alt=f"Scatter of the kept share of {name} over a feature.",
          )
        ],
        tables=[_feature_table(feature_rows, name)],
      )
    )
  every = splits(grids)
  sections.append(
    page.Section(
      title="What was held out",
      paragraphs=[f"{split.name}: {split.said}." for split in every]
      + [f"Left out: {line}" for line in grids.left_out],
    )
  )
  run.write_page(
    page.render_page(
      title="Which pruning for which task",
      verdict=verdict(rules, settings),
      sections=sections,
      run=description,
      protocol={
        "Survival": f"at least {settings.keep:g} of the dense score; of a"
        " perplexity, dense over pruned",
        "Pruned models": len(grids.models),
        "Features tried for each task": len(settings.features),
        "Cells": grids.hash,
      },
    )
  )


def verdict(rules: dict[str, Any], settings) -> str:
  """What the numbers say, in plain words."""
  parts = ["\n".join(lines(rules)).replace("\n", "\n\n")]
  for task, entry in rules.items():
    found = entry.get("splits", {}).get(HALF, {}).get("baselines", {})
    better = [
      NAMES[name]
      for name, other in found.items()
      if (other["rule_less_this"][2] or 0) < 0
    ]
    if entry["feature"] is not None:
      parts.append(
        f"{task}: the rule is wrong less often than "
        + (", ".join(better) if better else "none of the baselines")
        + " (95 % interval of the difference below 0, resampling methods)."
      )
    if "warning" in entry:
      parts.append(f"{task}: {entry['warning']}.")
  parts.append(
    "Intervals resample whole methods. There are few, so the intervals are"
    " rough. A rule is known to hold for the dense models of the grid only."
  )
  return "\n\n".join(parts)


def setting_rows(table: list[dict[str, Any]]) -> list[tuple[str, ...]]:
  """The recommendations as text: task, method, setting, evidence, next."""
  return [
    (
      entry["task"],
      entry["family"],
      (
        "none of " + ", ".join(entry["tried"])
        if entry["cell"] is None
        else entry["cell"]
      )
      + (
        ""
        if entry["beyond"] is None
        else f" ({entry['beyond']} survived, but a weaker one did not)"
      ),
      _evidence(entry["evidence"], entry["metric"]),
      "not tried"
      if entry["next"] is None
      else f"{entry['next']['cell']}: "
      + _evidence(entry["next"], entry["metric"]),
    )
    for entry in table
  ]


def setting_lines(table: list[dict[str, Any]]) -> list[str]:
  """One line per task: the strongest setting of each method."""
  by_task: dict[str, list[str]] = {}
  for entry in table:
    by_task.setdefault(entry["task"], []).append(
      entry["cell"] or f"no {entry['family']}"
    )
  return [
    f"{task} survives up to: {', '.join(cells)}"
    for task, cells in by_task.items()
  ]


def _of(model) -> dict[str, Any]:
  return {
    "dense": model.dense,
    "cell": model.cell,
    "method": model.method,
    "seed": model.seed,
    "removed": model.removed,
  }


def _error(found) -> str:
  if found is None:
    return "not checked"
  ends = [found["low"], found["high"]]
  shown = (
    "no interval"
    if any(end is None or not np.isfinite(end) for end in ends)
    else ", ".join(f"{100 * end:.0f}" for end in ends)
  )
  return f"{100 * found['error']:.0f} % [{shown}]"


def _evidence(found, metric) -> str:
  if found is None:
    return "–"
  name = "perplexity" if metric == "nll" else metric
  score, low, high, dense = (
    page.format_number(found[key], 3)
    for key in ("score", "low", "high", "dense")
  )
  return (
    f"{name} {score} [{low}, {high}], dense {dense};"
    f" {found['survived']} of {found['runs']} runs survived, worst kept"
    f" {100 * found['least_kept']:.0f} %, certainty"
    f" {found['least_certainty']:.2f}"
  )


def _settings_section(table) -> page.Section:
  return page.Section(
    title="Prune this way for this task",
    tables=[
      page.Table(
        caption="The strongest setting of each method with which, as with"
        " all weaker ones, the task survived in every run (calibration seed"
        " and dense model), and the next stronger one that was tried. Mean"
        " score over runs, 95 % interval resampling items. Certainty"
        " is the share of resamples of the items that agree with the least"
        " certain run.",
        columns=(
          "task",
          "method",
          "strongest that survived",
          "evidence",
          "next",
        ),
        rows=setting_rows(table),
      )
    ],
  )


def _rules_section(rules) -> page.Section:
  names = list(
    dict.fromkeys(
      split for entry in rules.values() for split in entry.get("splits", {})
    )
  )
  table = []
  for task, entry in rules.items():
    if entry["feature"] is None:
      table.append(
        (task, entry["reason"], *("–" for _ in range(4 + len(names))))
      )
      continue
    held, luck = entry["held_out"] or {}, entry["shuffled"]
    table.append(
      (
        task,
        f"{entry['feature']} <= {page.format_number(entry['threshold'])}",
        f"{100 * entry['balanced_error']:.0f} %",
        f"{100 * luck['mean']:.0f} % ({100 * luck['as_good']:.1f} %)",
        f"{held.get('false_yes', '–')} and {held.get('false_no', '–')} of"
        f" {held.get('models', '–')}",
        "–"
        if held.get("error_of_certain") is None
        else f"{100 * held['error_of_certain']:.0f} % of {held['certain']}",
        *(
          _error(entry["splits"].get(split, {}).get("rule")) for split in names
        ),
      )
    )
  return page.Section(
    title="What foretells it",
    tables=[
      page.Table(
        caption="A rule for each task: the task survives up to the threshold."
        " Balanced error on the models learnt from; that of the best feature"
        " after shuffling the labels, with the share of shuffles that are as"
        " good; wrong answers of the held-out half that said yes and no;"
        " error among its models with a certain label; then the share of wrong"
        " answers by what was held out.",
        columns=(
          "task",
          "rule",
          "fitted",
          "shuffled",
          "false yes and no",
          "certain",
          *names,
        ),
        rows=table,
      )
    ],
  )


def _baselines_section(rules) -> page.Section:
  tables = []
  names = list(
    dict.fromkeys(
      split for entry in rules.values() for split in entry.get("splits", {})
    )
  )
  for split in names:
    cells = []
    for task, entry in rules.items():
      found = entry.get("splits", {}).get(split, {})
      if "rule" in found:
        cells.append(
          (
            task,
            _error(found["rule"]),
            *(
              _error(found["baselines"].get(name))
              for name in NAMES
              if name != "rule"
            ),
          )
        )
    if cells:
      tables.append(
        page.Table(
          caption=f"Share of wrong answers, {split}, 95 % interval resampling"
          " methods. The baselines are fitted as the rule is.",
          columns=("task", *NAMES.values()),
          rows=cells,
        )
      )
  return page.Section(title="Against simpler rules", tables=tables)


def _feature_table(rows_, task) -> page.Table:
  chosen = [row for row in rows_ if row["task"] == task]
  chosen.sort(key=lambda row: -row.get("auc", 0))
  return page.Table(
    caption="All features and baselines, by the area under the curve over all"
    " models; threshold and error of the half split.",
    columns=(
      "feature",
      "Spearman",
      "AUC",
      "AUC held out",
      "threshold",
      "error fitted",
      "error held out",
    ),
    rows=[
      (
        NAMES.get(row["feature"], row["feature"]),
        row.get("spearman"),
        row.get("auc"),
        row.get("auc_held_out"),
        row.get("threshold"),
        row.get("fit_error"),
        _error(row) if "error" in row else None,
      )
      for row in chosen
    ],
  )


def _draw(grids, name, entry, settings):
  task = grids.tasks[name]
  feature = entry["feature"] or KL
  kinds = np.array([grids.models[i].kind for i in task.models])
  png = figures.score_against_feature(
    grids.features[feature][task.models],
    task.kept,
    splits(grids)[0].folds[0][0][task.models],
    {kind: kinds == kind for kind in KINDS if (kinds == kind).any()},
    x=feature,
    keep=settings.keep,
    threshold=entry.get("threshold"),
  )
  caption = (
    f"{name}: share of the dense score against {feature}. Hollow: the"
    " models learnt from. "
  )
  return png, caption + (
    "No threshold could be learnt."
    if entry["feature"] is None
    else "Dashed: the threshold."
  )


def summarise(grids: Grids, rules, settings) -> dict[str, Any]:
  """What summary.json holds beside the recommended settings."""
  return {
    "keep": settings.keep,
    "models": len(grids.models),
    "methods": sorted(set(grids.methods.tolist())),
    "features_tried": len(settings.features),
    "tasks": rules,
    "left_out": grids.left_out,
    "cells_hash": grids.hash,
  }
