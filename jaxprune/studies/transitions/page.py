"""The page of `transitions`: tables and figures of what the summary holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes.position import COSINES
from jaxprune.report import RunFolder, Summary, figures, maps, page
from jaxprune.studies.transitions.measure import SUBLAYERS, Measured
from jaxprune.studies.transitions.summary import ESTIMATES, headline

_NAMES = {"attention": "attention", "mlp": "MLP"}
_BY_STEP = {
  "relative_change": (
    ("rho_h", "rho_z"),
    "relative change across",
    "Relative orthogonal magnitude of h and z (Fig 5)",
  ),
  "kl": (
    ("kl", "kl_estimate"),
    "nats",
    "KL(p‖q) and its estimate (Figs 6 and 14)",
  ),
  "cos_p": (
    ("one_minus_cos_p", "one_minus_cos_p_estimate"),
    "1 − cosine of p",
    "1 - cos(p, q) and its estimate (Figs 6 and 15)",
  ),
  "variances": (
    ("var_uniform", "var_r", "var_p"),
    "logits²",
    "Variance of Δz over the vocabulary, under r and under p (Fig 19)",
  ),
}


def write_page(run: RunFolder, measured: Measured, summary: Summary) -> None:
  """Write report.html and figures/.

  Args:
    run: the open run folder.
    measured: from `measure.measure`, for the points of the scatter plots.
    summary: from `summary.summarise`.
  """
  settings = measured.settings
  page.write_report(
    run,
    title="One sublayer at a time",
    finding=finding(summary),
    verdict=verdict(summary),
    sections=[
      _layer_section(summary),
      _head_section(summary),
      page.Section(title="By decoding step", figures=_step_figures(summary)),
      _estimate_section(measured.table, summary),
    ],
    protocol={
      "Protocol": "one sublayer changed, residual stream and cache dense",
      "Change": summary["intervention"],
      "Keys and values of earlier tokens": settings.history,
      "Prompts": summary["prompts"],
      "Steps": settings.max_new_tokens,
      "Sampling temperature (0 is greedy)": settings.temperature,
      "Analysis temperature T": settings.analysis_temperature,
      "Lens": settings.lens,
    },
  )


def finding(summary: Mapping[str, Any]) -> str:
  """In how many layers the order of the paper holds, in one sentence.

  Args:
    summary: from `summary.summarise`.
  """

  def counts(name):
    return " and ".join(
      f"{ordering[name]} of {ordering['layers']} {_NAMES[sublayer]} layers"
      for sublayer, ordering in summary["orderings"].items()
    )

  return (
    f"Logits turn less than h in {counts('cos_z_above_cos_h')}, p more than"
    f" logits in {counts('cos_p_below_cos_z')}"
  )


def verdict(summary: Mapping[str, Any]) -> str:
  """What the numbers say, in plain words."""
  parts = [headline(summary).replace("\n", "\n\n")]
  for sublayer, ordering in summary["orderings"].items():
    layers = ordering["layers"]
    parts.append(
      f"{sublayer.capitalize()}: the logits turn less than the embeddings in"
      f" {ordering['cos_z_above_cos_h']} of {layers} layers"
      f" ({ordering['cos_z_centred_above_cos_h']} once the mean over the"
      " vocabulary is removed), the probabilities more than the logits in"
      f" {ordering['cos_p_below_cos_z']}."
    )
  kl, cos = summary["estimates"]["kl"], summary["estimates"]["one_minus_cos_p"]
  if kl["sum_ratio"] is not None and cos["sum_ratio"] is not None:
    parts.append(
      f"The sum of all estimates is {kl['sum_ratio']:.3g} times the sum of"
      f" KL and {cos['sum_ratio']:.3g} times that of 1 - cos(p, q)."
    )
  parts.append(
    "Each number belongs to one sublayer with everything else dense; how such"
    " changes add up over layers and steps is what `trajectories` measures."
  )
  return "\n\n".join(parts)


def _layer_section(summary) -> page.Section:
  """Cosines and KL by layer."""
  entries = summary["by_sublayer"]
  names = ("kl", "kl_estimate")
  return page.Section(
    title="By layer",
    figures=[
      page.Figure(
        name="cosines",
        chart=figures.lines_by_sublayer(
          *_panels(entries, "layer", COSINES),
          intervals=tuple(
            {
              name: figures.estimated(
                [entry["layer"] for entry in part],
                [entry[name] for entry in part],
              )
              for name in COSINES
            }
            for part in _by_kind(entries)
          ),
        ),
        caption="Cosine behind each sublayer that alone is changed (Fig 4 of"
        " the paper): mean over prompts and steps, band from least to"
        " greatest, bar: 95 % interval of the mean, resampling prompts.",
        alt="Two panels, attention and MLP: cosine of h, z, centred z and p by"
        " layer.",
      ),
      page.Figure(
        name="kl_layers",
        chart=figures.lines_by_sublayer(
          *_panels(entries, "layer", names), y="nats", log_y=True
        ),
        caption="KL(p‖q) behind each sublayer and its estimate of Theorem 3.",
        alt="KL divergence and its estimate by layer, logarithmic.",
      ),
    ],
    tables=[
      page.Table(
        caption="Means over prompts and steps.",
        columns=(
          "sublayer",
          "cosine of h",
          "z",
          "centred z",
          "p",
          "KL (nats)",
          "largest KL",
          "least cosine of p",
        ),
        rows=[
          (
            f"{entry['sublayer']} {entry['layer']}",
            *(entry[name]["value"] for name in (*COSINES, "kl")),
            entry["kl"]["max"],
            entry["cos_p"]["min"],
          )
          for entry in entries
        ],
      )
    ],
  )


def _head_section(summary) -> page.Section:
  """What the LM head does to the change of each sublayer."""
  head = summary["head"]
  return page.Section(
    title="What the LM head lets through",
    paragraphs=(head_sentence(summary),),
    tables=[
      page.estimate_table(
        "Attenuation is |WΔh| / |Δh| over |Wh| / |h| for the LM head W, before"
        " the cap of a model that caps its logits; below 1 it shrinks the"
        " relative change. Energy is the share of the squared"
        f" length in the {head['directions']} largest singular directions of W"
        f" (of a random direction {head['energy_random']:.3g}).",
        "sublayer",
        {
          "attenuation": "attenuation",
          "attenuation_centred": "centred z",
          "head_energy_h": "energy of h",
          "head_energy_dh": "energy of Δh",
          "offset_dz": "constant part of Δz",
        },
        {
          f"{entry['sublayer']} {entry['layer']}": entry
          for entry in summary["by_sublayer"]
        },
      )
    ],
  )


def head_sentence(summary: Mapping[str, Any]) -> str:
  """What the table of the LM head says, in plain words."""

  def layers(name):
    return " and ".join(
      f"{ordering[name]} of {ordering['layers']} layers ({sublayer})"
      for sublayer, ordering in summary["orderings"].items()
    )

  return (
    "The LM head shrinks the mean relative change of the embeddings in"
    f" {layers('attenuation_below_1')}. The change lies less in the head's"
    f" {summary['head']['directions']} largest directions than h itself in"
    f" {layers('energy_dh_below_h')}. What all tokens gain alike is invisible"
    " to softmax and left out of the centred column."
  )


def _step_figures(summary) -> list[page.Figure]:
  """Curves over decoding steps of the middle and the last layer."""
  drawn = []
  for layer in dict.fromkeys(entry["layer"] for entry in summary["by_step"]):
    entries = [e for e in summary["by_step"] if e["layer"] == layer]
    for name, (fields, y, words) in _BY_STEP.items():
      drawn.append(
        page.Figure(
          name=f"{name}_layer_{layer}",
          chart=figures.lines_by_sublayer(
            *_panels(entries, "step", fields), x="step", y=y, log_y=True
          ),
          caption=f"{words} by decoding step, layer {layer}: mean over"
          " prompts, band from least to greatest.",
          alt=f"Two panels, attention and MLP of layer {layer}: {words}, by"
          " step.",
        )
      )
  return drawn


def _estimate_section(table, summary) -> page.Section:
  """Estimates of the theorems against the truth."""
  columns = {
    "sum_ratio": "ratio of sums",
    "median_ratio": "median ratio",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rows": "rows",
  }
  return page.Section(
    title="Estimates against truth",
    figures=[
      page.Figure(
        name=f"{truth}_estimate",
        chart=maps.scatter_against_truth(
          table[truth], table[ESTIMATES[truth]], x=truth, y=ESTIMATES[truth]
        ),
        caption="Estimate against truth, every prompt, step and sublayer; on"
        " the line it is exact.",
        alt="Scatter of estimated against true values with the identity line.",
      )
      for truth in ("kl", "one_minus_cos_p")
    ],
    tables=[
      page.estimate_table(
        "Over every prompt, step and sublayer. Ratios are estimate over truth.",
        "truth",
        columns,
        {
          report.axis_label(truth): entry
          for truth, entry in summary["estimates"].items()
        },
      )
    ],
  )


def _by_kind(entries: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
  """Entries of attention, and of MLP."""
  return [
    [entry for entry in entries if entry["sublayer"] == kind]
    for kind in SUBLAYERS
  ]


def _panels(entries, x, names) -> list[dict[str, figures.Series]]:
  """Means with bands from least to greatest, for attention and for MLP."""
  return [
    {
      name: figures.Series(
        x=np.array([entry[x] for entry in part]),
        y=np.array([entry[name]["value"] for entry in part], float),
        low=np.array([entry[name]["min"] for entry in part], float),
        high=np.array([entry[name]["max"] for entry in part], float),
      )
      for name in names
    }
    for part in _by_kind(entries)
  ]
