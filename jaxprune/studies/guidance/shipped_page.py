"""What the rule that is shipped says of itself: in words, as page, in the docs.

Everything is made from rule.json alone, so that the tables in the docs cannot
differ from what the package answers with.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxprune import files
from jaxprune.report import marks, page
from jaxprune.statistics import Estimate
from jaxprune.studies.comparison import finding as finding_lib
from jaxprune.studies.guidance import cases, shipped, transfer

BEGIN, END = "<!-- rule: begin -->", "<!-- rule: end -->"


def headline(rule: Mapping[str, Any]) -> str:
  """How well it does on models that it was not learnt from, kind by kind."""
  return "\n".join(
    [shipped.origin(rule)]
    + [_describe(kind, entry) for kind, entry in rule["kinds"].items()]
  )


def render(
  rule: Mapping[str, Any], left_out: list[str], description: dict[str, Any]
) -> str:
  """Make report.html of what was learnt.

  Args:
    rule: from `shipped.make_rule`.
    left_out: what was not learnt from, and why.
    description: of the run.
  """
  return page.render_page(
    title="Which kinds of task does a pruned model keep?",
    finding=None,
    verdict=headline(rule).replace("\n", "\n\n"),
    sections=[
      page.Section(
        title="On models that it was not learnt from", tables=tables(rule)
      ),
      page.Section(title="Left out", paragraphs=left_out or ["Nothing."]),
    ],
    run=description,
  )


def judged_headline(
  judged: Mapping[str, shipped.Judgement], rule: Mapping[str, Any]
) -> str:
  """A line per kind of task, and where the rule comes from.

  Args:
    judged: from `shipped.judge`.
    rule: that was asked.
  """
  return "\n".join(
    [*(each.sentence for each in judged.values()), shipped.origin(rule)]
  )


def finding(judged: Mapping[str, shipped.Judgement]) -> list[page.Part]:
  """For which kinds of task the model is fit, in one sentence with its tones.

  Args:
    judged: from `shipped.judge`.
  """
  said = finding_lib.find_verdict(
    {
      kind: {
        "state": each.state,
        "basis": finding_lib.RULE,
        "error": None if each.error is None else each.error.value,
      }
      for kind, each in judged.items()
    }
  )
  return page.as_parts(said)


def render_judged(
  judged: Mapping[str, shipped.Judgement],
  rule: Mapping[str, Any],
  description: dict[str, Any],
) -> str:
  """Make report.html of one pruned model.

  Args:
    judged: from `shipped.judge`.
    rule: that said so.
    description: of the run.
  """
  return page.render_page(
    title="What this pruned model may be used for",
    finding=finding(judged),
    verdict=judged_headline(judged, rule).replace("\n", "\n\n"),
    sections=[page.Section(title="How good the rule is", tables=tables(rule))],
    run=description,
  )


def markdown(rule: Mapping[str, Any]) -> str:
  """The headline and all tables, for docs."""
  parts = ["\n".join(f"- {line}" for line in headline(rule).splitlines())]
  for table in tables(rule):
    lines = [
      "| " + " | ".join(table.columns) + " |",
      "|" + "---|" * len(table.columns),
      *("| " + " | ".join(map(_text, row)) + " |" for row in table.rows),
    ]
    parts.append(f"{table.caption}\n\n" + "\n".join(lines))
  return "\n\n".join(parts)


def write_markdown(path: pathlib.Path | str, rule: Mapping[str, Any]) -> None:
  """Replace what stands between BEGIN and END in a page of the docs.

  Args:
    path: of the page.
    rule: that is described.

  Raises:
    ValueError: the file or the marks are missing.
  """
  path = pathlib.Path(path)
  text = path.read_text() if path.is_file() else ""
  try:
    text = marks.replace_between(text, BEGIN, END, f"\n\n{markdown(rule)}\n\n")
  except ValueError:
    raise ValueError(f"--docs={path}: has no lines {BEGIN} and {END}") from None
  files.atomic_write_bytes(path, text.encode())


def tables(rule: Mapping[str, Any]) -> list[page.Table]:
  """What was learnt, how often it errs, against what, and from where."""
  kinds = rule["kinds"]
  known = {kind: e for kind, e in kinds.items() if e["feature"] is not None}
  made = [_lines(kinds)]
  if any(entry["left_out"] for entry in known.values()):
    made += [_errors(known), _models(known), _against(known)]
    made.append(_calibration(known))
  return [*made, _sources(rule["sources"])]


def _describe(kind, entry) -> str:
  head = (
    f"{kind}: {entry['kept']} kept, {entry['lost']} lost,"
    f" {entry['unknown']} that the items do not decide"
  )
  if entry["feature"] is None:
    return f"{head}; no rule, because {entry['reason']}."
  checked = entry["left_out"]
  if checked is None:
    return f"{head}; not checked on a model that it was not learnt from."
  auc, sure = checked["auc"], checked["sure"]
  wrong, decided, said = (
    sum(each[name] for each in sure.values())
    for name in ("wrong", "decided", "said")
  )
  told = "no AUC, because the items decide for one class only"
  if auc["value"] is not None:
    told = f"AUC {_text(_estimate(auc))}"
  errors = f"wrong in {wrong} of the {decided} that the items decide"
  if not decided:
    errors = "none of which the items decide"
  return (
    f"{head}; on a model left out, {told}; sure of {said} of"
    f" {checked['cases']} cases, {errors}."
  )


def _lines(kinds) -> page.Table:
  return page.Table(
    caption="What the rule reads; x is its natural logarithm. Log odds of being"
    " kept: trust × (intercept − slope × x). Cases by what the items decide.",
    columns=(
      *("kind", "kept", "lost", "undecided", "reads", "intercept"),
      *("slope", "trust"),
    ),
    rows=[
      (
        kind,
        *(entry[state] for state in ("kept", "lost", "unknown")),
        transfer.in_words(entry["feature"])
        if entry["feature"]
        else "nothing: " + entry["reason"],
        *(entry.get(name) for name in ("intercept", "slope", "trust")),
      )
      for kind, entry in kinds.items()
    ],
  )


def _errors(kinds) -> page.Table:
  return page.Table(
    caption="Every model left out once. AUC of the cases that the items decide,"
    " 95 % interval resampling models and configurations in them; Brier score"
    " beside that of always stating the mean; sure answers that were wrong, of"
    " those that the items decide, with the interval of Wilson.",
    columns=(
      "kind",
      "AUC",
      "Brier",
      "mean stated",
      "kept",
      "lost",
      "no answer",
    ),
    rows=[
      (
        kind,
        _estimate(entry["left_out"]["auc"]),
        entry["left_out"]["brier"],
        entry["left_out"]["coin"],
        *(_wrong(entry["left_out"]["sure"][s]) for s in ("kept", "lost")),
        _unsure(entry["left_out"]),
      )
      for kind, entry in kinds.items()
      if entry["left_out"]
    ],
  )


def _models(kinds) -> page.Table:
  return page.Table(
    caption="By the model that was left out: what the others chose to read,"
    " cases, AUC of the decided ones, wrong answers among the sure ones.",
    columns=("kind", "model", "read", "cases", "AUC", "kept", "lost"),
    rows=[
      (
        *(kind, model, transfer.in_words(entry["left_out_features"][model])),
        *(checked["cases"], _estimate(checked["auc"])),
        *(_wrong(checked["sure"][state]) for state in ("kept", "lost")),
      )
      for kind, entry in kinds.items()
      for model, checked in entry["by_model"].items()
      if checked is not None
    ],
  )


def _against(kinds) -> page.Table:
  rows = []
  for kind, entry in kinds.items():
    named = {"the rule": entry["left_out"]} | {
      cases.BASELINES[name]: checked
      for name, checked in entry["baselines"].items()
    }
    rows += [
      (
        *(kind, name, checked["cases"], _estimate(checked["auc"])),
        *(checked["brier"], _estimate(checked["error"])),
      )
      for name, checked in named.items()
      if checked is not None
    ]
  return page.Table(
    caption="Against simpler rules, learnt and asked alike: AUC of the decided"
    " cases, Brier score, and share of all cases where the more likely answer"
    " was wrong.",
    columns=("kind", "rule", "cases", "AUC", "Brier", "error"),
    rows=rows,
  )


def _calibration(kinds) -> page.Table:
  return page.Table(
    caption="Stated probability of being kept, and how often it was, on models"
    " left out.",
    columns=("kind", "stated", "mean stated", "kept", "cases"),
    rows=[
      (
        *(kind, f"{row['low']:.1f} to {row['high']:.1f}"),
        *(row["stated"], row["observed"], row["count"]),
      )
      for kind, entry in kinds.items()
      if entry["left_out"]
      for row in entry["left_out"]["reliability"]
    ],
  )


def _sources(sources) -> page.Table:
  return page.Table(
    caption="Learnt from; tasks with their items and the dense score.",
    columns=("model", "checkpoint", "configurations", "prompts", "tasks"),
    rows=[
      (
        source["model"],
        source["checkpoint_hash"][:12],
        len(source["configurations"]),
        str(source["prompts"]),
        ", ".join(
          f"{task} ({about['items']}: {about['dense']:.2f})"
          for task, about in source["tasks"].items()
        ),
      )
      for source in sources
    ],
  )


def _estimate(entry) -> Estimate:
  return Estimate.from_json(entry)


def _wrong(counted) -> str:
  """Wrong answers of the decided ones."""
  if not counted["decided"]:
    return "no such answer"
  error, low, high = (
    f"{100 * counted[name]:.0f}" for name in ("error", "low", "high")
  )
  return (
    f"{counted['wrong']} of {counted['decided']} ({error} % [{low}, {high}])"
  )


def _unsure(checked) -> str:
  said = sum(each["said"] for each in checked["sure"].values())
  return f"{checked['cases'] - said} of {checked['cases']}"


def _text(cell) -> str:
  if isinstance(cell, Estimate):
    return cell.format(2)
  if isinstance(cell, float):
    return page.format_number(cell, 3)
  return "–" if cell is None else str(cell)
