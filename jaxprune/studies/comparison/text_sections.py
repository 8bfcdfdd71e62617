"""The part of the page on decodings, and on where in the texts the change is.

Everything stands in tables that are folded away, and in figures.
"""

from collections.abc import Mapping
from typing import Any

from jaxprune import report
from jaxprune.report import figures, page
from jaxprune.studies.comparison import breakdown

_SHOWN = {
  "cos_h": "cosine of h",
  "cos_z_centred": "centred z",
  "cos_p": "cosine of p",
  "kl": "KL (nats)",
}
_QUANTITIES = {
  "text_length": "length of the text (steps)",
  "position": "index in the text",
  "entropy": "entropy of p (nats)",
  "step": "decoding step",
}


def of_decodings(decodings: Mapping[str, Any]) -> list[page.Section]:
  """Tables of `decodings.summarise`; none where nothing was decoded."""
  if not decodings:
    return []

  tables = [
    page.estimate_table(
      "Means over prompts and steps at the output, with 95 % intervals over"
      " prompts.",
      "decoding",
      _SHOWN,
      {
        f"{name}, {part}": entry[part]
        for name, entry in decodings.items()
        for part in ("aligned", "parted")
        if part in entry
      },
      folded="Before and after the texts part",
    ),
    page.Table(
      folded="Tokens in common",
      caption="Tokens in common with the dense text; a text that never"
      " parts counts all its steps.",
      columns=("decoding", "tokens in common", "texts", "never parted"),
      rows=[
        (
          name,
          entry["first_divergence"],
          entry["first_divergence"]["texts"],
          entry["first_divergence"]["never_parted"],
        )
        for name, entry in decodings.items()
      ],
    ),
    page.estimate_table(
      "Less the control, the dense model with another seed, at the same prompt,"
      " seed and step.",
      "decoding",
      _SHOWN,
      {
        name: entry["minus_control"]
        for name, entry in decodings.items()
        if entry.get("minus_control")
      },
      folded="Less the control",
    ),
    page.estimate_table(
      "Means of each seed, all steps.",
      "decoding",
      _SHOWN,
      {
        f"{name}, seed {means['seed']}": means
        for name, entry in decodings.items()
        for means in entry.get("by_seed", ())
      },
      folded="By seed",
    ),
  ]
  return [
    page.Section(
      title="Decoding step by step",
      folded="Before and after the texts part, tokens in common, and by seed",
      paragraphs=(
        "Aligned: both models have read the same tokens so far. Once the"
        " texts have parted, the numbers compare different texts; decoding"
        " control, the dense model with another seed, shows how much of that"
        " is no damage at all (greedy, it equals the dense text).",
      ),
      tables=[table for table in tables if table.rows],
    )
  ]


def of_breakdowns(
  breakdowns: Mapping[str, Mapping[str, Any]],
) -> list[page.Section]:
  """Figures and tables of the breakdowns.

  Args:
    breakdowns: by decoding, what `breakdown.break_down` gave, and perhaps
      `around_divergence`.
  """
  drawn, tables = [], []
  for name in breakdown.QUANTITIES:
    bins = {
      decoding: entry[name]
      for decoding, entry in breakdowns.items()
      if len(entry.get(name, ())) > 1 and _any_change(entry[name])
    }
    if bins:
      drawn.append(_kl_figure(name, bins, _QUANTITIES[name]))
      tables.append(_bin_table(_QUANTITIES[name], bins))
  around = {
    decoding: entry["around_divergence"]
    for decoding, entry in breakdowns.items()
    if len(entry.get("around_divergence", ())) > 1
  }
  if around:
    label = "steps since the tokens first differed"
    drawn.append(_kl_figure("divergence", around, label))
  if not drawn:
    return []
  return [
    page.Section(
      title="Where in the texts",
      folded="KL by step, length, place in the text and entropy",
      paragraphs=(
        "Means over positions with 95 % intervals over prompts. Bins hold"
        " about as many positions each.",
      ),
      tables=tables,
      figures=drawn,
    )
  ]


def _any_change(bins) -> bool:
  """False for decodings that equal the dense one: a logarithm has no 0."""
  return any(entry["kl"]["value"] > 0 for entry in bins)


def _kl_figure(name, bins, label) -> page.Figure:
  series = {
    decoding: figures.estimated(
      [entry["centre"] for entry in entries], [entry["kl"] for entry in entries]
    )
    for decoding, entries in bins.items()
  }
  return page.Figure(
    name=f"kl_by_{name}",
    chart=figures.lines(series, x=label, y="kl", log_y=True),
    caption=f"Mean KL(p‖q) by {label}; band: 95 % interval over prompts.",
    alt=f"Lines of mean KL by {label}, one for each decoding.",
  )


def _bin_table(label, bins) -> page.Table:
  return page.Table(
    folded=f"By {label}",
    caption=f"Means by {label}, with 95 % intervals over prompts.",
    columns=(
      "decoding and bin",
      "positions",
      *map(report.axis_label, breakdown.MEASURES),
    ),
    rows=[
      (
        f"{decoding}, {page.format_number(entry['low'])} to"
        f" {page.format_number(entry['high'])}",
        entry["positions"],
        *(entry[name] for name in breakdown.MEASURES),
      )
      for decoding, entries in bins.items()
      for entry in entries
    ],
  )
