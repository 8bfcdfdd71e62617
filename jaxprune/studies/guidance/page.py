"""The pages of `guidance`: what was learnt, applied, or checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import page, points
from jaxprune.statistics import Estimate
from jaxprune.studies.guidance import apply, check
from jaxprune.studies.guidance.fit import KL, Settings
from jaxprune.studies.guidance.splits import splits
from jaxprune.studies.guidance.summary import (
  NAMES,
  describe_rule,
  format_error,
  verdict,
)
from jaxprune.studies.guidance.sweeps import KINDS, Sweeps

# Words and tone of the answers of a rule, in the order of the headline.
_ANSWERS = {
  "yes": ("fit for", "good"),
  "no": ("not fit for", "bad"),
  "unknown": ("unknown for", "care"),
}


def write_learnt(
  run: report.RunFolder,
  sweeps: Sweeps,
  summary: dict[str, Any],
  features: Sequence[dict[str, Any]],
  settings: Settings,
) -> None:
  """Write the figures and report.html of what was learnt.

  Args:
    run: where they go.
    sweeps: the pruned models, for the scatter plots.
    summary: from `summary.summarise`.
    features: from `fit.feature_rows`.
    settings: how the rules were learnt.
  """
  rules = summary["tasks"]
  sections = [
    _settings_section(summary["settings"]),
    _rules_section(rules),
    _baselines_section(rules),
  ]
  for name in sweeps.tasks:
    chart, caption = _draw(sweeps, name, rules[name], settings)
    sections.append(
      page.Section(
        title=name,
        paragraphs=[describe_rule(name, rules[name])],
        figures=[
          page.Figure(
            name="score_" + name.replace(" ", "_"),
            chart=chart,
            caption=caption,
            alt=f"Scatter of the kept part of {name} over a feature.",
          )
        ],
        tables=[_feature_table(features, name)],
      )
    )
  sections.append(
    page.Section(
      title="What was held out",
      paragraphs=[
        f"{split.name}: {split.description}." for split in splits(sweeps)
      ]
      + [f"Left out: {line}" for line in summary["left_out"]],
    )
  )
  page.write_report(
    run,
    title="Which pruning for which task",
    verdict=verdict(summary),
    sections=sections,
    protocol={
      "Survival": f"at least {settings.keep:g} of the dense score; of a"
      " perplexity, dense over pruned",
      "Pruned models": summary["models"],
      "Features tried for each task": summary["features_tried"],
      "Configurations": summary["configurations_hash"],
    },
  )


def render_judged(judged: dict[str, Any], description: dict[str, Any]) -> str:
  """Make report.html of one pruned model.

  Args:
    judged: from `apply.judge`.
    description: of the run.
  """
  measured = page.Table(
    caption=f"At {judged['positions']} positions of {judged['prompts']} prompts"
    " that the dense model continues; no labels were used.",
    columns=("feature", "value"),
    rows=list(judged["features"].items()),
  )
  return page.render_page(
    title="What this pruned model may be used for",
    finding=judged_parts(judged),
    verdict=apply.headline(judged).replace("\n", "\n\n"),
    sections=[page.Section(title="Measured", tables=[measured])],
    run=description,
  )


def judged_parts(judged: dict[str, Any]) -> list[page.Part]:
  """For which tasks a rule says yes, no or nothing.

  Args:
    judged: from `apply.judge`.
  """
  parts: list[page.Part] = []
  for answer, (words, tone) in _ANSWERS.items():
    tasks = [e["task"] for e in judged["answers"] if e["answer"] == answer]
    if tasks:
      words = words if parts else words.capitalize()
      parts += [page.Part(text="; ")] * bool(parts)
      parts.append(page.Part(text=f"{words} {', '.join(tasks)}", tone=tone))
  if not judged["tested"]:
    parts.append(page.Part(text=" (by a rule never checked on this model)"))
  return parts


def render_checked(
  summary: dict[str, Any],
  rows: Sequence[dict[str, Any]],
  description: dict[str, Any],
) -> str:
  """Make report.html of a rule on other models.

  Args:
    summary: from `check.summarise`.
    rows: from `check.rows`.
    description: of the run.
  """
  return page.render_page(
    title="Does the rule hold here?",
    finding="; ".join(
      f"{name}: the rule is wrong for {100 * errors['error']:.0f} % of"
      f" {errors['models']} models"
      for name, errors in summary["tasks"].items()
    ),
    verdict=check.headline(summary).replace("\n", "\n\n"),
    sections=[
      page.Section(title=name, tables=[_checked_table(rows, name)])
      for name in summary["tasks"]
    ],
    run=description,
  )


def _checked_table(rows, task):
  """The answers of the rule for one task, and what survived."""
  return page.Table(
    caption="The answer of the rule, and whether the task survived.",
    columns=(
      *("configuration", "seed", "feature", "answer", "kept", "survived"),
      "certainty",
    ),
    rows=[
      (
        row["configuration"],
        str(row["seed"]),
        row["value"],
        "yes" if row["answer"] else "no",
        row["kept"],
        "yes" if row["survives"] else "no",
        row["certainty"],
      )
      for row in rows
      if row["task"] == task
    ],
  )


def _setting_rows(table: list[dict[str, Any]]) -> list[tuple[str, ...]]:
  """The recommendations as text: task, method, setting, evidence, next."""
  return [
    (
      entry["task"],
      entry["family"],
      (
        "none of " + ", ".join(entry["tried"])
        if entry["configuration"] is None
        else entry["configuration"]
      )
      + (
        ""
        if entry["beyond"] is None
        else f" ({entry['beyond']} survived, but a weaker one did not)"
      ),
      _evidence(entry["evidence"], entry["metric"]),
      "not tried"
      if entry["next"] is None
      else f"{entry['next']['configuration']}: "
      + _evidence(entry["next"], entry["metric"]),
    )
    for entry in table
  ]


def _evidence(evidence, metric) -> str:
  if evidence is None:
    return "–"
  name = "perplexity" if metric == "nll" else metric
  return (
    f"{name} {Estimate.from_json(evidence).format()}, dense"
    f" {page.format_number(evidence['dense'], 3)};"
    f" {evidence['survived']} of {evidence['runs']} runs survived, worst kept"
    f" {100 * evidence['least_kept']:.0f} %, certainty"
    f" {evidence['least_certainty']:.2f}"
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
        rows=_setting_rows(table),
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
          format_error(entry["splits"].get(split, {}).get("rule"))
          for split in names
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
    table = []
    for task, entry in rules.items():
      checked = entry.get("splits", {}).get(split, {})
      if "rule" in checked:
        table.append(
          (
            task,
            format_error(checked["rule"]),
            *(
              format_error(checked["baselines"].get(name))
              for name in NAMES
              if name != "rule"
            ),
          )
        )
    if table:
      tables.append(
        page.Table(
          caption=f"Share of wrong answers, {split}, 95 % interval resampling"
          " methods. The baselines are fitted as the rule is.",
          columns=("task", *NAMES.values()),
          rows=table,
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
        format_error(row) if "error" in row else None,
      )
      for row in chosen
    ],
  )


def _draw(sweeps, name, entry, settings):
  task = sweeps.tasks[name]
  feature = entry["feature"] or KL
  kinds = np.array([sweeps.models[i].kind for i in task.models])
  chart = points.score_against_feature(
    sweeps.features[feature][task.models],
    task.kept,
    splits(sweeps)[0].folds[0][0][task.models],
    {kind: kinds == kind for kind in KINDS if (kinds == kind).any()},
    x=feature,
    keep=settings.keep,
    threshold=entry.get("threshold"),
  )
  caption = (
    f"{name}: share of the dense score against {feature}. Hollow: the"
    " models learnt from. "
  )
  return chart, caption + (
    "No threshold could be learnt."
    if entry["feature"] is None
    else "Dashed: the threshold."
  )
