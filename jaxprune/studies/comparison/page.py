"""The page of a comparison: tables and figures of what the summary holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes.position import COSINES
from jaxprune.report import RunFolder, Summary, figures, page
from jaxprune.studies.comparison import breakdown
from jaxprune.studies.comparison.measure import SUBLAYERS, Tables

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
_THEOREMS = {
  "theorem_1": "1: 1 − cosine of h",
  "theorem_1_z": "1: 1 − cosine of z",
  "theorem_2": "2: 1 − cosine of p",
  "theorem_3": "3: KL(p‖q)",
}


def write_page(run: RunFolder, tables: Tables, summary: Summary) -> None:
  """Write report.html and figures/.

  Args:
    run: the open run folder.
    tables: from `measure.compare`, for the points of the scatter plots.
    summary: from `summary.summarise`, and perhaps `summary.summarise_texts` and
      `tasks`.
  """
  settings = tables.settings
  page.write_report(
    run,
    title="Dense against pruned, teacher-forced",
    verdict=verdict(summary),
    sections=(
      _task_sections(summary.get("tasks", {}))
      + _comparison_sections(tables, summary)
      + [_theorem_section(tables, summary)]
      + decoding_sections(summary.get("decodings", {}))
      + breakdown_sections(summary.get("breakdown", {}))
    ),
    protocol={
      "Protocol": "teacher-forced on the dense model's continuation",
      "Prompts": summary["prompts"],
      "Steps": settings.max_new_tokens,
      "Texts of each prompt (seeds)": settings.num_seeds,
      "Sampling temperature (0 is greedy)": settings.temperature,
      "Analysis temperature T": settings.analysis_temperature,
      "Lens of inner layers": settings.lens,
    },
  )


def verdict(summary: Mapping[str, Any]) -> str:
  """What the numbers say, in plain words; thresholds are not claimed."""
  output = summary["output"]
  space = {name: output[f"one_minus_cos_{name}"]["value"] for name in "hzp"}
  space["centred z"] = output["one_minus_cos_z_centred"]["value"]
  order = sorted(space, key=space.get, reverse=True)
  ranked = ", ".join(f"{name} {space[name]:.3g}" for name in order)
  kl = output["kl"]
  return (
    f"At the output, teacher-forced over {summary['positions']} positions of"
    f" {summary['prompts']} prompts, the largest deviation is in {order[0]}"
    f" (1 - cosine, mean: {ranked}).\n\nThe most likely token changes at"
    f" {100 * output['flip']['value']:.1f} % of the positions, and KL(p‖q) is"
    f" {kl['value']:.3g} nats on average, {kl['median']:.3g} in the"
    f" median and {kl['max']:.3g} at worst.\n\nEach changed token would"
    " send free-running text another way; this comparison keeps both models"
    " on the same tokens, so it shows the damage at each position and not"
    " how it adds up."
  )


def _task_sections(tasks) -> list[page.Section]:
  if not tasks:
    return []
  return [
    page.Section(
      title="On the tasks",
      tables=[
        page.Table(
          caption="Held-out items of the pocket model's world, whose facts the"
          " same model chooses, retrieves or writes out.",
          columns=("task", "measure", "items", "dense", "pruned"),
          rows=[
            (name, entry["metric"], entry["count"], entry["reference"], entry)
            for name, entry in tasks.items()
          ],
        )
      ],
    )
  ]


def _comparison_sections(tables, summary) -> list[page.Section]:
  """Tables and figures of the output and of the layers."""
  by_layer = [
    [entry for entry in summary["by_layer"] if entry["sublayer"] == sublayer]
    for sublayer in SUBLAYERS
  ]
  rows = [
    (
      report.axis_label(name),
      entry,
      entry["median"],
      entry["min"],
      entry["max"],
    )
    for name, entry in summary["output"].items()
  ]
  output = tables.output
  drawn = {
    "steps": page.Figure(
      name="steps",
      png=figures.lines(_ranges(summary["by_step"], "step", COSINES), x="step"),
      caption="Cosine between the two models at the output: mean over prompts,"
      " band from least to greatest.",
      alt="Lines of the cosine of h, z, centred z and p over decoding steps.",
    ),
    "layers": page.Figure(
      name="layers",
      png=figures.lines_by_sublayer(
        *(_ranges(entries, "layer", COSINES) for entries in by_layer)
      ),
      caption="Cosine after every attention and every MLP: mean over prompts"
      " and steps, band from least to greatest. The pruned model runs on its"
      " own inner states, so damage adds up over the layers.",
      alt="Two panels, attention and MLP: cosine of h, z, centred z and p by"
      " layer.",
    ),
    "kl_layers": page.Figure(
      name="kl_layers",
      png=figures.lines_by_sublayer(
        *(
          _ranges(entries, "layer", ("kl", "kl_estimate"))
          for entries in by_layer
        ),
        y="nats",
        log_y=True,
      ),
      caption="KL(p‖q) after every sublayer and its estimate of Theorem 3.",
      alt="KL divergence and its estimate by layer, logarithmic.",
    ),
    "kl_map": page.Figure(
      name="kl_map",
      png=figures.heat_map(
        np.array(summary["kl_map"], float), value="kl", log=True
      ),
      caption="KL(p‖q) after each layer at each step, mean over prompts.",
      alt="Heat map of KL by layer and decoding step.",
    ),
    "kl_estimate": _against_truth(
      "kl_estimate",
      output,
      "kl",
      "kl_estimate",
      "Theorem 3 at the output: the estimate of KL against its value; on the"
      " line it is exact.",
    ),
    "cos_p_estimate": _against_truth(
      "cos_p_estimate",
      output,
      "one_minus_cos_p",
      "one_minus_cos_p_estimate",
      "Theorem 2 at the output: the estimate of 1 - cos(p, q) against its"
      " value.",
    ),
  }
  return [
    page.Section(
      title="At the output",
      tables=[
        page.Table(
          caption="Every position counts alike; intervals of the mean are"
          " 95 %, resampling prompts.",
          columns=("measure", "mean", "median", "least", "greatest"),
          rows=rows,
        )
      ],
      figures=[
        drawn[name] for name in ("steps", "kl_estimate", "cos_p_estimate")
      ],
    ),
    page.Section(
      title="Through the layers",
      figures=[drawn[name] for name in ("layers", "kl_layers", "kl_map")],
    ),
  ]


def _against_truth(name, table, truth, estimate, caption) -> page.Figure:
  return page.Figure(
    name=name,
    png=figures.scatter_against_truth(
      table[truth], table[estimate], x=truth, y=estimate
    ),
    caption=caption,
    alt=f"Scatter of estimated against true {report.axis_label(truth)} with"
    " the identity line.",
  )


def _theorem_section(tables, summary) -> page.Section:
  """Where the estimates hold, and what the softmax does to a change."""
  figure = _against_truth(
    "cos_h_estimate",
    tables.output,
    "one_minus_cos_h",
    "one_minus_cos_h_estimate",
    "Theorem 1 at the output: the estimate ρ² / 2 of 1 - cos(h) against its"
    " value; it leaves out the change along h.",
  )
  rows = []
  for name, entry in summary["theorems"].items():
    inside, outside = entry["inside"], entry["outside"]
    rows.append(
      (
        _THEOREMS[name],
        entry["valid"],
        inside["median_error"],
        outside["median_error"],
        inside["ratio_of_sums"],
        outside["ratio_of_sums"],
      )
    )
  softmax = summary["softmax"]
  return page.Section(
    title="Do the theorems hold, and does softmax amplify?",
    paragraphs=(theorem_sentence(summary), softmax_sentence(summary)),
    tables=[
      page.Table(
        caption="Second-order estimates at the output. An estimate counts as"
        " valid where the next order of its expansion is at most"
        f" {100 * summary['theorems']['theorem_3']['tolerance']:g} % of it;"
        " the error is |estimate − truth| / truth, its median over positions,"
        " and the ratio is the sum of the estimates over that of the truths.",
        columns=(
          "theorem",
          "valid at (fraction)",
          "error where valid",
          "error elsewhere",
          "ratio where valid",
          "ratio elsewhere",
        ),
        rows=rows,
      ),
      page.Table(
        caption="Softmax at the output, means over positions. Amplification is"
        " |Δp| / |p| over |Δz| / |z|; of a random and of the worst direction"
        " it is that of a small change.",
        columns=("measure", "mean"),
        rows=[
          ("relative change of p", softmax["relative_p"]),
          ("amplification", softmax["amplification"]),
          ("amplification, centred z", softmax["amplification_centred"]),
          ("of a random direction, centred z", softmax["random_amplification"]),
          ("of the worst direction, centred z", softmax["worst_amplification"]),
          ("share of the worst direction", softmax["worst_share"]),
          ("linear over true change of p", softmax["linear_ratio"]),
          ("likely tokens, 1 / Σp²", softmax["participation"]),
          ("positions where softmax damps", softmax["damped"]),
        ],
      ),
    ],
    figures=[figure],
  )


def theorem_sentence(summary: Mapping[str, Any]) -> str:
  """What the table of the theorems says, in plain words."""
  theorem = summary["theorems"]["theorem_3"]
  bound = summary["kl_bound"]

  def error(part):
    if not part["positions"]:
      return "there is no such position"
    return f"it is off by {100 * part['median_error']:.3g} % (median)"

  text = (
    "Theorem 3 says that KL is about half the variance of the change of the"
    " logits under p. By its own next order that estimate can be trusted at"
    f" {100 * theorem['valid']['value']:.1f} % of the positions: there"
    f" {error(theorem['inside'])}, elsewhere {error(theorem['outside'])}."
  )
  if bound["median_share"] is not None:
    text += (
      " Hoeffding's bound, which needs no small change, is exceeded at"
      f" {bound['exceeded']} positions; KL is {bound['median_share']:.2g} of it"
      " in the median."
    )
  return text


def softmax_sentence(summary: Mapping[str, Any]) -> str:
  """What the table of the softmax says, in plain words."""
  value = {
    name: entry["value"]
    for name, entry in summary["softmax"].items()
    if isinstance(entry, Mapping)
  }
  return (
    "Softmax makes the relative change of p"
    f" {value['amplification_centred']:.3g} times that of the centred logits on"
    f" average, and damps it at {100 * value['damped']:.1f} % of the positions."
    " A small change in a random direction would be amplified"
    f" {value['random_amplification']:.3g} times, in the worst direction"
    f" {value['worst_amplification']:.3g} times. The change of the logits has"
    f" {100 * value['worst_share']:.3g} % of the effect that a change of its"
    " size would have in the worst direction."
  )


def decoding_sections(decodings: Mapping[str, Any]) -> list[page.Section]:
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
    ),
    page.Table(
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
    ),
  ]
  return [
    page.Section(
      title="Decoding step by step",
      paragraphs=(
        "Aligned: both models have read the same tokens so far. Once the"
        " texts have parted, the numbers compare different texts; decoding"
        " control, the dense model with another seed, shows how much of that"
        " is no damage at all (greedy, it equals the dense text).",
      ),
      tables=[table for table in tables if table.rows],
    )
  ]


def breakdown_sections(
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
    png=figures.lines(series, x=label, y="kl", log_y=True),
    caption=f"Mean KL(p‖q) by {label}; band: 95 % interval over prompts.",
    alt=f"Lines of mean KL by {label}, one for each decoding.",
  )


def _bin_table(label, bins) -> page.Table:
  return page.Table(
    caption=f"By {label}.",
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


def _ranges(
  entries: Sequence[Mapping[str, Any]], x: str, names: Sequence[str]
) -> dict[str, figures.Series]:
  """Means as lines with bands from least to greatest."""
  return {
    name: figures.Series(
      x=np.array([entry[x] for entry in entries]),
      y=np.array([entry[name] for entry in entries]),
      low=np.array([entry["min"][name] for entry in entries]),
      high=np.array([entry["max"][name] for entry in entries]),
    )
    for name in names
  }
