"""Verdict, figures and page of `interventions`."""

from typing import Any

import numpy as np

from jaxprune.probes.interventions import PAIRS, PARTS, RESCUES
from jaxprune.report import figures, page
from jaxprune.studies.interventions.measure import (
  ANSWERS,
  CONTINUED,
  READ,
  Settings,
)
from jaxprune.studies.interventions.summary import as_interval, find, summarise

__all__ = ["headline", "summarise", "write_page"]

_NOTHING = 1e-9  # below: rounding, and not shown on a logarithmic axis
SPACES = (
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
)
CROSSED = (
  "pruned",
  "direction_kept",
  "variance_kept",
  "add_random_all",
  "shuffled",
)


def cells(summary: dict[str, Any]) -> list[str]:
  """Names of the cells, in the order of the run."""
  return list(dict.fromkeys(entry["cell"] for entry in summary["entries"]))


def headline(summary: dict[str, Any]) -> str:
  """The result in a few lines per cell."""
  lines = []
  for cell in cells(summary):
    (plain,) = find(summary, READ, cell, "pruned", "pruned")
    (random,) = find(summary, READ, cell, "random", "pruned")
    shares = {
      name: find(summary, READ, cell, "pruned", name)[0].get("kl_share")
      for name in (*(f"keep_{part}" for part in PARTS), "add_random_all")
    }
    lines.append(
      f"{cell}: KL {_said(plain['kl'])} nats,"
      f" {_said(plain['kl_at_flips'])} of them where the likeliest token"
      f" changed; flips {_said(plain['flips'])},"
      f" {_said(plain['common_steps'])} steps in common; at random KL"
      f" {_said(random['kl'])}"
    )
    first = find(summary, READ, cell, "pruned", "freeze_first")[1]
    lines.append(
      f"  first layer dense: KL {_said(first['kl'])},"
      f" flips {_said(first['flips'])}"
    )
    if plain.get("kl_share") is not None:
      lines.append(
        "  share of the KL: "
        + ", ".join(f"{name} {_said(share)}" for name, share in shares.items())
      )
    for name, entry in _best(summary, cell).items():
      lines.append(f"  {name}: {entry}")
  worst = max(summary["checks"].values())
  lines.append(f"largest deviation where there must be none: {worst:.2g}")
  return "\n".join(lines)


def rescue_names(summary: dict[str, Any], cell: str) -> list[str]:
  """Rescues of the run, with their parameter."""
  names = dict.fromkeys(
    entry["intervention"]
    for entry in summary["entries"]
    if entry["cell"] == cell
  )
  return [name for name in names if kind_of(name) is not None]


def kind_of(name: str) -> str | None:
  """'oracle' or 'usable' for a rescue, None for another intervention."""
  for rescue, kind in RESCUES.items():
    if name == rescue or (
      name.startswith(f"{rescue}_") and name[len(rescue) + 1 :][0].isdigit()
    ):
      return kind
  return None


def _best(summary, cell) -> dict[str, str]:
  """The usable rescue that lowers the total variation most."""
  found = [
    (entry["tv_change"]["mean"], name, entry)
    for name in rescue_names(summary, cell)
    if kind_of(name) == "usable"
    for entry in find(summary, READ, cell, "pruned", name)
  ]
  if not found:
    return {}
  _, name, entry = min(found, key=lambda item: item[0])
  return {
    f"best usable rescue, {name}": f"total variation {_said(entry['tv'])},"
    f" change {_said(entry['tv_change'])}"
  }


def write_page(run, description, summary, settings: Settings) -> None:
  """Figures and report.html."""
  sections = []
  for cell in cells(summary):
    for section, drawn in (
      _by_depth(summary, cell),
      _parts(summary, cell),
      _rescues(summary, cell),
      _continued(summary, cell),
    ):
      for name, figure in drawn.items():
        run.write_figure(f"{name}_{cell.replace(':', '-')}", figure.png)
      sections.append(section)
  sections.append(
    page.Section(
      title="What must come out",
      tables=[
        page.Table(
          caption="Largest absolute means over all models. What is not 0 is"
          " rounding.",
          columns=("check", "deviation"),
          rows=list(summary["checks"].items()),
        )
      ],
    )
  )
  run.write_page(
    page.render_page(
      title="What undoes the damage",
      verdict=_verdict(summary),
      sections=sections,
      run=description,
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
  )


def _verdict(summary):
  return "\n\n".join(
    [
      headline(summary).replace("\n", "\n\n"),
      "A share is the KL with the intervention over the KL without, so 1 undoes"
      " nothing and 0 everything; shares of the two parts of a pair need not"
      " add up. Which token is likeliest is decided by the logits alone, so a"
      " flip is there before the softmax.",
      "Oracles need the dense logits: they explain and are no remedy. A frozen"
      " layer needs nothing but a smaller sparsity.",
    ]
  )


def _by_depth(summary, cell):
  names = (
    "freeze_first",
    "freeze_last",
    "patch_pruned",
    "patch_dense",
    "patch_pruned_random",
    "patch_dense_random",
  )
  by_name = {name: find(summary, READ, cell, "pruned", name) for name in names}
  random = find(summary, READ, cell, "random", "freeze_first")
  depth = np.array([entry["depth"] for entry in random])
  freeze = {
    "first k dense": by_name["freeze_first"],
    "first k pruned": by_name["freeze_last"],
    "first k dense, at random": random,
  }
  patch = {
    "pruned run, dense h": by_name["patch_pruned"],
    "pruned run, random": by_name["patch_pruned_random"],
    "dense run, pruned h": by_name["patch_dense"],
    "dense run, random": by_name["patch_dense_random"],
  }
  drawn = {
    "freeze_kl": page.Figure(
      png=figures.lines(
        {label: _series(depth, found, "kl") for label, found in freeze.items()},
        x="layers k",
        y="kl",
        log_y=True,
      ),
      caption="KL when some layers are dense; bands are 95 % intervals.",
      alt="KL over the number of dense layers.",
    ),
    "freeze_spaces": page.Figure(
      png=figures.lines(
        {
          space: _series(depth, by_name["freeze_first"], space)
          for space in SPACES
        },
        x="first layers dense, k",
        y="1 − cosine",
        log_y=True,
      ),
      caption="h, z and p at the output when only the layers from k on are"
      " pruned.",
      alt="1 - cosine of each space over k.",
    ),
    "patch_kl": page.Figure(
      png=figures.lines(
        {label: _series(depth, found, "kl") for label, found in patch.items()},
        x="layers k",
        y="kl",
        log_y=True,
      ),
      caption="KL when h is replaced after k layers at the position that is"
      " read; random: h moved as far in a random direction.",
      alt="KL over the layer of the patch.",
    ),
  }
  rows = [
    (
      k,
      *(
        as_interval(first.get(name))
        for name in (
          "one_minus_cos_h",
          "one_minus_cos_z_centred",
          "one_minus_cos_p",
          "kl",
          "flips",
          "common_steps",
        )
      ),
      as_interval(back["kl"]),
      as_interval(control["kl"]),
    )
    for k, first, back, control in zip(
      depth.tolist(), by_name["freeze_first"], by_name["freeze_last"], random
    )
  ]
  patches = [
    (
      k,
      *(as_interval(by_name[name][n]["kl"]) for name in names[2:]),
      as_interval(by_name["patch_pruned"][n]["flips"]),
      as_interval(by_name["patch_dense"][n]["flips"]),
    )
    for n, k in enumerate(depth.tolist())
  ]
  return page.Section(
    title=f"{cell}: layers frozen and patched",
    figures=list(drawn.values()),
    tables=[
      page.Table(
        caption="First k layers dense, the others pruned: deviations of"
        " h, centred z and p, and KL; the reverse; and the random"
        " control.",
        columns=(
          "k",
          "1 − cos h",
          "1 − cos z",
          "1 − cos p",
          "KL",
          "flips",
          "steps in common",
          "KL, first k pruned",
          "KL, random control",
        ),
        rows=rows,
      ),
      page.Table(
        caption="h replaced after k layers at one position: KL.",
        columns=(
          "k",
          "pruned run, dense h",
          "dense run, pruned h",
          "pruned run, random",
          "dense run, random",
          "flips, pruned run",
          "flips, dense run",
        ),
        rows=patches,
      ),
    ],
  ), drawn


def _parts(summary, cell):
  parts = ["all", *PARTS]

  def of(name, source="pruned"):
    return find(summary, READ, cell, source, name)[0]

  kept = {
    part: of("pruned" if part == "all" else f"keep_{part}") for part in parts
  }
  random = {part: of(f"add_random_{part}") for part in parts}
  spoilt = {part: of(f"remove_random_{part}") for part in parts}
  drawn = {
    "parts": page.Figure(
      png=figures.interval_dots(
        [f"only {part}" for part in parts],
        {
          "pruned": [_visible(kept[part]["kl"]) for part in parts],
          "random direction of this size": [
            _visible(random[part]["kl"]) for part in parts
          ],
          "random pruning": [
            _visible(
              of("pruned" if part == "all" else f"keep_{part}", "random")["kl"]
            )
            for part in parts
          ],
        },
        x="kl",
        log_x=True,
      ),
      caption="KL when the dense logits are given only this part of Δz; no dot"
      " where it is 0.",
      alt="KL of each part of the change of the logits, with controls.",
    )
  }
  rows = [
    (
      part,
      *(
        as_interval(kept[part].get(name))
        for name in (
          "kl",
          "kl_share",
          "tv",
          "flips",
          "common_steps",
          "rms_dz",
          "var_p",
          "margin_lost",
        )
      ),
      as_interval(random[part]["kl"]),
      as_interval(spoilt[part]["kl"]),
    )
    for part in parts
  ]
  crossed = [
    (
      name,
      *(
        as_interval(entry.get(metric))
        for metric in (
          "kl",
          "kl_share",
          "flips",
          "rms_dz",
          "var_p",
          "margin_lost",
        )
      ),
    )
    for name in CROSSED
    for entry in [of(name)]
  ]
  pairs = "; ".join(f"{a} + {b}" for a, b in PAIRS)
  return page.Section(
    title=f"{cell}: parts of Δz",
    figures=list(drawn.values()),
    tables=[
      page.Table(
        caption=f"Only this part ({pairs} = all). To keep one of a pair"
        " is to remove the other. Random: a direction of the part's size"
        " instead of it, or taken from the pruned logits.",
        columns=(
          "part",
          "KL",
          "share",
          "total variation",
          "flips",
          "steps in common",
          "rms Δz",
          "Varₚ",
          "margin lost",
          "KL, random instead",
          "KL, random removed",
        ),
        rows=rows,
      ),
      page.Table(
        caption="Direction and size under p, crossed: the direction of Δz"
        " with the variance of a random change, a random direction with"
        " the variance of Δz, a random direction of equal norm, and the"
        " entries of Δz given to random tokens.",
        columns=(
          "change",
          "KL",
          "share",
          "flips",
          "rms Δz",
          "Varₚ",
          "margin lost",
        ),
        rows=crossed,
      ),
    ],
  ), drawn


def _rescues(summary, cell):
  names = ["dense", "pruned", *rescue_names(summary, cell)]
  rows, effects, dots = [], [], []
  for name in names:
    (entry,) = find(summary, READ, cell, "pruned", name)
    scores = find(summary, ANSWERS, cell, "pruned", name)
    score = scores[0] if scores else {}
    kind = kind_of(name) or "–"
    rows.append(
      (
        name,
        kind,
        *(
          as_interval(entry.get(metric))
          for metric in ("kl", "tv", "tv_change", "flips")
        ),
        *(
          as_interval(score.get(metric))
          for metric in ("exact", "exact_sampled", "exact_sampled_change")
        ),
      )
    )
    if kind != "–":
      dots.append(f"{name}, {kind}")
      effects.append(
        (
          as_interval(entry["tv_change"]),
          as_interval(score.get("exact_sampled_change")),
        )
      )
  series = {"total variation": [pair[0] for pair in effects]}
  if any(pair[1] is not None for pair in effects):
    series["answers right by sampling"] = [pair[1] for pair in effects]
  drawn = {
    "rescues": page.Figure(
      png=figures.interval_dots(
        dots, series, x="change from the pruned model", reference=0.0
      ),
      caption="What each rescue changes; paired, 95 % intervals.",
      alt="Change of total variation and of sampled answers by rescue.",
    )
  }
  tables = [
    page.Table(
      caption="Rescues. Temperature and truncation change p and leave the"
      " likeliest token, so greedy answers cannot change. Under truncation the"
      " KL is infinite.",
      columns=(
        "rescue",
        "needs",
        "KL",
        "total variation",
        "its change",
        "flips",
        "exact, greedy",
        "exact, sampled",
        "its change",
      ),
      rows=rows,
    )
  ]
  by_depth = [
    (
      first["depth"],
      *(
        as_interval(entry.get(metric))
        for entry in (first, last)
        for metric in ("exact", "exact_sampled", "nll")
      ),
    )
    for first, last in zip(
      find(summary, ANSWERS, cell, "pruned", "freeze_first"),
      find(summary, ANSWERS, cell, "pruned", "freeze_last"),
    )
  ]
  if by_depth:
    tables.append(
      page.Table(
        caption="Answers when the first k layers are dense, or pruned: right by"
        " greedy decoding, probability by sampling, nats per token.",
        columns=(
          "k",
          "exact, dense first",
          "sampled",
          "nll",
          "exact, pruned first",
          "sampled",
          "nll",
        ),
        rows=by_depth,
      )
    )
    names = ["dense", "pruned", *(f"keep_{part}" for part in PARTS)]
    tables.append(
      page.Table(
        caption="Answers with one part of Δz only.",
        columns=("part", "exact, greedy", "change", "exact, sampled"),
        rows=[
          (
            name,
            *(
              as_interval(entry.get(metric))
              for metric in ("exact", "exact_change", "exact_sampled")
            ),
          )
          for name in names
          for entry in find(summary, ANSWERS, cell, "pruned", name)
        ],
      )
    )
  return page.Section(
    title=f"{cell}: rescues", figures=list(drawn.values()), tables=tables
  ), drawn


def _continued(summary, cell):
  names = list(
    dict.fromkeys(
      entry["intervention"]
      for entry in summary["entries"]
      if entry["protocol"] == CONTINUED
    )
  )
  found = {
    name: find(summary, CONTINUED, cell, "pruned", name)[0] for name in names
  }
  drawn = {
    "continued": page.Figure(
      png=figures.interval_dots(
        names,
        {
          "steps": [
            as_interval(entry["common_steps"]) for entry in found.values()
          ]
        },
        x="steps in common with the dense text",
      ),
      caption="Decoding on with a part of Δz: how long the text stays the dense"
      " one.",
      alt="Steps in common with the dense text by intervention.",
    )
  }
  return page.Section(
    title=f"{cell}: decoding on",
    figures=list(drawn.values()),
    tables=[
      page.Table(
        caption="Each intervention writes its own text; flips and KL are on"
        " that text.",
        columns=("change", "steps in common", "same text", "flips", "KL"),
        rows=[
          (
            name,
            *(
              as_interval(entry[metric])
              for metric in ("common_steps", "same_text", "flips", "kl")
            ),
          )
          for name, entry in found.items()
        ],
      )
    ],
  ), drawn


def _series(depth, found, metric):
  """A line with its band, gaps where there is nothing to show on a log axis."""
  y, low, high = (
    np.array([entry[metric][field] for entry in found])
    for field in ("mean", "low", "high")
  )
  shown = y > _NOTHING
  return figures.Series(
    x=depth[shown],
    y=y[shown],
    high=high[shown],
    low=np.maximum(low, _NOTHING)[shown],
  )


def _visible(entry):
  """An interval for a logarithmic axis, None for rounding."""
  return as_interval(entry) if entry["mean"] > _NOTHING else None


def _said(entry) -> str:
  if entry is None:
    return "–"
  digits = page.format_number
  return (
    f"{digits(entry['mean'], 3)} [{digits(entry['low'], 2)},"
    f" {digits(entry['high'], 2)}]"
  )
