"""The page of `interventions`, and what the script prints."""

import numpy as np

from jaxprune.probes.interventions import PAIRS, PARTS
from jaxprune.report import RunFolder, Summary, figures, page, points
from jaxprune.studies.interventions import finding
from jaxprune.studies.interventions.measure import (
  ANSWERS,
  CONTINUED,
  READ,
  WRITTEN,
  Settings,
)
from jaxprune.studies.interventions.summary import find

# Smaller values are rounding and are not shown on a logarithmic axis.
_NOTHING = 1e-9
_SPACES = (
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
)
_PATCHES = {
  "patch_pruned": "pruned run, dense h",
  "patch_dense": "dense run, pruned h",
  "patch_pruned_random": "pruned run, random",
  "patch_dense_random": "dense run, random",
}
_CROSSED = (
  "pruned",
  "direction_kept",
  "variance_kept",
  "add_random_all",
  "shuffled",
)


def write_page(run: RunFolder, summary: Summary, settings: Settings) -> None:
  """Write figures/ and report.html.

  Args:
    run: the run folder.
    summary: from `summary.summarise`.
    settings: of the run: steps, temperature, and tokens of the part `top`.
  """
  page.write_report(
    run,
    title="What undoes the change",
    finding=finding.finding(summary),
    verdict=finding.verdict(summary),
    sections=_sections(summary),
    protocol={
      "Protocol": "teacher-forced on the dense model's greedy text",
      "Prompts": summary["prompts"],
      "Steps": settings.max_new_tokens,
      "Answers": summary["questions"],
      "Seeds": ", ".join(map(str, summary["seeds"])),
      "Analysis temperature T": settings.analysis_temperature,
      "Tokens of the part top": settings.top_tokens,
    },
  )


def _sections(summary):
  """Four for each way to prune, and one of checks."""
  by_configuration = [
    make(summary, name)
    for name in summary["configurations"]
    for make in (_by_depth, _parts, _restorations, _continued)
  ]
  checks = page.Table(
    caption="Largest absolute means over all models. What is not 0 is"
    " rounding.",
    columns=("check", "deviation"),
    rows=list(summary["checks"].items()),
  )
  return [
    *by_configuration,
    page.Section(title="Checks that must give 0", tables=[checks]),
  ]


def _figure(configuration, name, chart, caption, alt):
  file = f"{name}_{configuration.replace(':', '-')}"
  return page.Figure(name=file, chart=chart, caption=caption, alt=alt)


def _by_depth(summary, configuration):
  first, last, *patches = (
    find(summary, READ, configuration, "pruned", name)
    for name in ("freeze_first", "freeze_last", *_PATCHES)
  )
  patched = dict(zip(_PATCHES, patches))
  random = find(summary, READ, configuration, "random", "freeze_first")
  drawn = [
    _figure(
      configuration,
      "freeze_kl",
      _lines_over_depth(
        {
          "first k dense": (first, "kl"),
          "first k pruned": (last, "kl"),
          "first k dense, at random": (random, "kl"),
        },
        x="layers k",
        y="kl",
      ),
      "KL when some layers are dense; bands are 95 % intervals.",
      "KL over the number of dense layers.",
    ),
    _figure(
      configuration,
      "freeze_spaces",
      _lines_over_depth(
        {space: (first, space) for space in _SPACES},
        x="first layers dense, k",
        y="1 − cosine",
      ),
      "h, z and p at the output when only the layers from k on are pruned.",
      "1 - cosine of each space over k.",
    ),
    _figure(
      configuration,
      "patch_kl",
      _lines_over_depth(
        {label: (patched[name], "kl") for name, label in _PATCHES.items()},
        x="layers k",
        y="kl",
      ),
      "KL when h is replaced after k layers at the position that is"
      " read; random: h moved as far in a random direction.",
      "KL over the layer of the patch.",
    ),
  ]
  return page.Section(
    title=f"{configuration}: layers frozen and patched",
    figures=drawn,
    tables=[
      _frozen_table(first, last, random),
      _patched_table(patched, [entry["depth"] for entry in random]),
    ],
  )


def _frozen_table(first, last, random):
  return page.estimate_table(
    "First k layers dense, the others pruned: deviations of h, centred z and"
    " p, and KL; the reverse; and the random control.",
    "k",
    {
      "one_minus_cos_h": "1 − cos h",
      "one_minus_cos_z_centred": "1 − cos z",
      "one_minus_cos_p": "1 − cos p",
      "kl": "KL",
      "flips": "flips",
      "common_steps": "steps in common",
      "kl_last": "KL, first k pruned",
      "kl_random": "KL, random control",
    },
    {
      str(control["depth"]): dense
      | {"kl_last": pruned["kl"], "kl_random": control["kl"]}
      for dense, pruned, control in zip(first, last, random)
    },
  )


def _patched_table(patched, depths):
  flips = {
    "patch_pruned": "flips, pruned run",
    "patch_dense": "flips, dense run",
  }
  return page.estimate_table(
    "h replaced after k layers at one position: KL.",
    "k",
    _PATCHES | {f"{name}_flips": label for name, label in flips.items()},
    {
      str(k): {name: patched[name][n]["kl"] for name in _PATCHES}
      | {f"{name}_flips": patched[name][n]["flips"] for name in flips}
      for n, k in enumerate(depths)
    },
  )


def _lines_over_depth(series, *, x, y):
  """Lines of a metric over depth on a logarithmic axis, without rounding."""
  lines = {}
  for label, (entries, metric) in series.items():
    shown = [entry for entry in entries if entry[metric]["value"] > _NOTHING]
    line = figures.estimated(
      [entry["depth"] for entry in shown], [entry[metric] for entry in shown]
    )
    lines[label] = figures.Series(
      x=line.x, y=line.y, low=np.maximum(line.low, _NOTHING), high=line.high
    )
  return figures.lines(lines, x=x, y=y, log_y=True)


def _parts(summary, configuration):
  parts = ("all", *PARTS)

  def of(name, source="pruned"):
    return find(summary, READ, configuration, source, name)[0]

  keep = {part: "pruned" if part == "all" else f"keep_{part}" for part in parts}
  kept = {part: of(keep[part]) for part in parts}
  instead = {part: of(f"add_random_{part}")["kl"] for part in parts}
  removed = {part: of(f"remove_random_{part}")["kl"] for part in parts}
  dots = {
    "pruned": [kept[part]["kl"] for part in parts],
    "random direction of this size": list(instead.values()),
    "random pruning": [of(keep[part], "random")["kl"] for part in parts],
  }
  chart = points.interval_dots(
    [f"only {part}" for part in parts],
    {
      label: [each if each["value"] > _NOTHING else None for each in estimates]
      for label, estimates in dots.items()
    },
    x="kl",
    log_x=True,
  )
  pairs = "; ".join(f"{a} + {b}" for a, b in PAIRS)
  measures = {
    "kl": "KL",
    "kl_share": "share",
    "flips": "flips",
    "rms_dz": "rms Δz",
    "var_p": "Varₚ",
    "margin_lost": "margin lost",
  }
  more = {
    "tv": "total variation",
    "common_steps": "steps in common",
    "kl_instead": "KL, random instead",
    "kl_removed": "KL, random removed",
  }
  return page.Section(
    title=f"{configuration}: parts of Δz",
    figures=[
      _figure(
        configuration,
        "parts",
        chart,
        "KL when the dense logits are given only this part of Δz; no dot"
        " where it is 0.",
        "KL of each part of the change of the logits, with controls.",
      )
    ],
    tables=[
      page.estimate_table(
        f"Only this part ({pairs} = all). To keep one of a pair is to remove"
        " the other. Random: a direction of the part's size instead of it, or"
        " taken from the pruned logits.",
        "part",
        measures | more,
        {
          part: kept[part]
          | {"kl_instead": instead[part], "kl_removed": removed[part]}
          for part in parts
        },
      ),
      page.estimate_table(
        "Direction and size under p, crossed: the direction of Δz with the"
        " variance of a random change, a random direction with the variance of"
        " Δz, a random direction of equal norm, and the entries of Δz given to"
        " random tokens.",
        "change",
        measures,
        {name: of(name) for name in _CROSSED},
      ),
    ],
  )


def _restorations(summary, configuration):
  kinds = summary["configurations"][configuration]["restorations"]
  entries = {}
  for name in ("dense", "pruned", *kinds):
    (read,) = find(summary, READ, configuration, "pruned", name)
    answered = find(summary, ANSWERS, configuration, "pruned", name)
    entries[name] = (answered[0] if answered else {}) | {
      metric: read.get(metric) for metric in ("kl", "tv", "tv_change", "flips")
    }
    entries[name]["needs"] = kinds.get(name, "–")
  dots = {
    "total variation": [entries[name]["tv_change"] for name in kinds],
    "answers right by sampling": [
      entries[name].get("exact_sampled_change") for name in kinds
    ],
  }
  chart = points.interval_dots(
    [f"{name}, {kind}" for name, kind in kinds.items()],
    {label: each for label, each in dots.items() if any(each)},
    x="change from the pruned model",
    reference=0.0,
  )
  table = page.estimate_table(
    "Restorations. Temperature and truncation change p and leave the likeliest"
    " token, so greedy answers cannot change. Under truncation the KL is"
    " infinite.",
    "restoration",
    {
      "needs": "needs",
      "kl": "KL",
      "tv": "total variation",
      "tv_change": "its change",
      "flips": "flips",
      "exact": "exact, greedy",
      "exact_sampled": "exact, sampled",
      "exact_sampled_change": "change of that",
    },
    entries,
  )
  return page.Section(
    title=f"{configuration}: restorations",
    figures=[
      _figure(
        configuration,
        "restorations",
        chart,
        "What each restoration changes; paired, 95 % intervals.",
        "Change of total variation and of sampled answers by restoration.",
      )
    ],
    tables=[table, *_answer_tables(summary, configuration)],
  )


def _answer_tables(summary, configuration):
  """Right answers by depth and by part of the change; none without answers."""
  first, last = (
    find(summary, ANSWERS, configuration, "pruned", name)
    for name in ("freeze_first", "freeze_last")
  )
  if not first:
    return []
  measures = {"exact": "exact", "exact_sampled": "sampled", "nll": "nll"}
  by_depth = page.estimate_table(
    "Answers when the first k layers are dense, or pruned: right by greedy"
    " decoding, probability by sampling, nats per token.",
    "k",
    {
      f"{side} {name}": f"{label}, {side} first"
      for side in ("dense", "pruned")
      for name, label in measures.items()
    },
    {
      str(entries["dense"]["depth"]): {
        f"{side} {name}": entry.get(name)
        for side, entry in entries.items()
        for name in measures
      }
      for pair in zip(first, last)
      for entries in [dict(zip(("dense", "pruned"), pair))]
    },
  )
  by_part = page.estimate_table(
    "Answers with one part of Δz only.",
    "part",
    {
      "exact": "exact, greedy",
      "exact_change": "change",
      "exact_sampled": "exact, sampled",
    },
    {
      name: find(summary, ANSWERS, configuration, "pruned", name)[0]
      for name in ("dense", "pruned", *(f"keep_{part}" for part in PARTS))
    },
  )
  return [by_depth, by_part]


def _continued(summary, configuration):
  entries = {
    name: find(summary, CONTINUED, configuration, "pruned", name)[0]
    for name in WRITTEN
  }
  chart = points.interval_dots(
    list(entries),
    {"steps": [entry["common_steps"] for entry in entries.values()]},
    x="steps in common with the dense text",
  )
  return page.Section(
    title=f"{configuration}: decoding on",
    figures=[
      _figure(
        configuration,
        "continued",
        chart,
        "Decoding on with a part of Δz: how long the text stays the dense one.",
        "Steps in common with the dense text by intervention.",
      )
    ],
    tables=[
      page.estimate_table(
        "Each intervention writes its own text; flips and KL are on that text.",
        "change",
        {
          "common_steps": "steps in common",
          "same_text": "same text",
          "flips": "flips",
          "kl": "KL",
        },
        entries,
      )
    ],
  )
