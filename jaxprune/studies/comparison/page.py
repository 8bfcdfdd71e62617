"""The page of a comparison: what the summary holds, worst first."""

import datetime
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxprune.report import RunFolder, Summary, page
from jaxprune.statistics import as_estimate, format_number
from jaxprune.studies.comparison import attribution, sections, text_sections
from jaxprune.studies.comparison.measure import Settings, Tables

_VISIBLE = 4  # texts before the fold
_SHADES = 9
_TONES = {"kept": "good", "lost": "bad", "unknown": ""}
_KL = (
  "KL(p‖q): how far the pruned model's probabilities q of the next token are"
  " from the original's p; 0 is no difference"
)


def write_page(run: RunFolder, tables: Tables, summary: Summary) -> None:
  """Write report.html and figures/.

  Args:
    run: the open run folder.
    tables: from `measure.compare`, for its settings.
    summary: from `summary.summarise_all`; perhaps with `perplexity`, an
      `Estimate` under `dense` and `pruned`, and the number of `tokens`; and
      with `tasks` by name, of which each has

        metric           what is measured, such as accuracy
        value, low, high, count    the `Estimate` of the pruned model
        reference        the value of the original
        retention        a `statistics.Retention`, where there is one

      What is not there is left out.
  """
  settings = tables.settings
  found, texts = summary["finding"], summary.get("texts", [])
  tasks = summary.get("tasks") or {}
  page.write_report(
    run,
    template="comparison.html.j2",
    title=f"{summary['subject']['model']}: pruned and original",
    about=about(summary, settings),
    finding=found["parts"],
    verdict=found["lead"],
    tiles=tiles(summary),
    texts=[_shaded(text) for text in texts],
    visible=_VISIBLE,
    of_texts=summary["alone"]["texts"],
    tasks=[
      *(task_row(name, entry) for name, entry in tasks.items()),
      *_perplexity_row(summary.get("perplexity")),
    ],
    sections=[
      *sections.of_damage(summary, texts),
      *map(attribution.section, filter(None, [summary.get("attribution")])),
      sections.of_spaces(summary),
      sections.of_theorems(summary),
      *text_sections.of_decodings(summary.get("decodings", {})),
      *text_sections.of_breakdowns(summary.get("breakdown", {})),
    ],
    protocol=_protocol(settings, summary),
    next=_next(run.description),
  )


def about(summary: Mapping[str, Any], settings: Settings) -> str:
  """Model, size, method, amount and date, in one line.

  Args:
    summary: with `subject`, from `subject.describe`.
    settings: of the comparison.
  """
  subject = summary["subject"]
  method = " ".join(filter(None, (subject["method"], subject["pattern"])))
  amount = []
  if subject["zeros"] > subject["zeros_dense"]:
    amount.append(f"{100 * subject['zeros']:.0f} % zeros")
  if subject["dropped"] > 0:
    amount.append(f"{subject['dropped']} sublayers dropped")
  if subject["removed"] > 0:
    amount.append(f"{_size(subject['removed'])} parameters removed")
  date = datetime.date.fromisoformat(subject["date"])
  return " · ".join(
    filter(
      None,
      (
        f"{subject['model']} ({_size(subject['parameters'])} parameters)",
        method or "pruned by a method that its folder does not name",
        *(amount or ["as many zeros as the original"]),
        f"{summary['prompts']} prompts × {settings.max_new_tokens} tokens",
        f"{date.day} {date:%b %Y}",
      ),
    )
  )


def tiles(summary: Mapping[str, Any]) -> list[page.Tile]:
  """The numbers of the first screen.

  Args:
    summary: see `write_page`.
  """
  output, alone = summary["output"], summary["alone"]
  common = page.estimate_tile(
    alone, "tokens in common when it writes alone", unit="of"
  )
  shown = [
    page.estimate_tile(
      output["flip"],
      "next tokens changed",
      unit="%",
      scale=100,
      about="both models read the original text; the likeliest token differs",
    ),
    page.Tile(
      value=f"{common.value} {alone['steps']:.0f}",
      label=common.label,
      ends=common.ends,
      about="each reads what it wrote itself, until the first difference",
    ),
    page.estimate_tile(
      output["kl"], "mean KL", unit="nats", about=_KL, source=page.PAPER
    ),
  ]
  return [*shown, *_last_tile(summary)]


def task_row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  """A task as the page shows it.

  Args:
    name: of the task.
    entry: see `write_page`.
  """
  shown, _, ends = as_estimate(entry).format(2).partition(" ")
  kept = entry.get("retention")
  row = {
    "name": name,
    "metric": entry["metric"],
    "change": f"{format_number(entry['reference'], 3)} → {shown}",
    "ends": ends,
    "count": entry["count"],
    "bar": None,
    "state": "",
    "reason": "",
    "tone": "",
  }
  if kept:
    row |= {
      "bar": _bar(kept),
      "state": kept["state"],
      "reason": kept["reason"],
      "tone": _TONES[kept["state"]],
    }
  return row


def _bar(kept) -> dict[str, Any] | None:
  """The bar of a retention, in percent of its track; None where it is NaN."""
  if kept["value"] is None or math.isnan(kept["value"]):
    return None
  ends = [
    0.0 if end is None else min(max(100 * end, 0.0), 100.0)
    for end in (kept["value"], kept["low"], kept["high"], kept["threshold"])
  ]
  value, low, high, threshold = (f"{end:.1f}" for end in ends)
  return {
    "value": value,
    "low": low,
    "high": high,
    "threshold": threshold,
    "title": f"keeps {100 * kept['value']:.0f} % of the score above chance; the"
    f" line stands at {100 * kept['threshold']:.0f} %",
  }


def _perplexity_row(entry) -> list[dict[str, Any]]:
  """Perplexity as a line under the tasks; nothing where none was measured."""
  if not entry:
    return []
  read = dict(entry["pruned"]) | {
    "metric": "built-in text",
    "reference": entry["dense"]["value"],
    "count": entry["tokens"],
  }
  return [task_row("perplexity", read)]


def _last_tile(summary) -> list[page.Tile]:
  """The change of perplexity, or else of the task that lost most."""
  entry, tasks = summary.get("perplexity"), summary.get("tasks") or {}
  if entry:
    about_it = f"original → pruned, {entry['tokens']} tokens"
    before = entry["dense"]["value"]
    return [_change_tile("perplexity", entry["pruned"], before, about_it)]
  judged = [
    (task["retention"]["value"], name)
    for name, task in tasks.items()
    if task.get("retention") and task["retention"]["value"] is not None
  ]
  if not judged:
    return []
  name = min(judged)[1]
  task = tasks[name]
  label = f"{name}, {task['metric']}"
  about_it = f"original → pruned, {task['count']} items"
  return [_change_tile(label, task, task["reference"], about_it)]


def _change_tile(label, entry, before, about_it) -> page.Tile:
  shown, _, ends = as_estimate(entry).format(2).partition(" ")
  return page.Tile(
    value=f"{format_number(float(before), 3)} → {shown}",
    label=label,
    ends=ends,
    about=about_it,
  )


def _shaded(text) -> dict[str, Any]:
  """A text with how dark each token is: 1 - exp(-KL), in steps."""
  return dict(text) | {
    "shade": [
      _SHADES if kl is None else round(_SHADES * (1 - math.exp(-kl)))
      for kl in text["kl"]
    ]
  }


def _size(count: int) -> str:
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if count >= size:
      return f"{count / size:.4g} {unit}"
  return str(count)


def _protocol(settings, summary) -> dict[str, Any]:
  return {
    "Texts": "the original's continuation of each prompt, which both models"
    " read (teacher-forced); and what the pruned model writes on its own",
    "Prompts": summary["prompts"],
    "Positions": summary["positions"],
    "Texts of a batch read out after every sublayer": settings.inside or "all",
    "Steps": settings.max_new_tokens,
    "Texts of each prompt (seeds)": settings.num_seeds,
    "Sampling temperature (0 is greedy)": settings.temperature,
    "Analysis temperature T": settings.analysis_temperature,
    "Lens of inner layers": settings.lens,
    "Intervals": "95 %, bootstrap over prompts",
  }


def _next(description: Mapping[str, Any]) -> page.Next | None:
  """Where the damage comes from, exactly; None for scripts without --pruned."""
  flags = description.get("flags") or {}
  names = ("dense", "pruned", "prompts")
  if not all(flags.get(name) for name in names):
    return None
  given: Sequence[str] = [f"--{name}={flags[name]}" for name in names]
  return page.Next(
    why="Next: which sublayer and which step the change comes from, exactly:",
    command=shlex.join(["jaxprune", "propagation", *given, "--out=WHY"]),
  )
