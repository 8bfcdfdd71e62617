"""Parts of the page: where the damage is, the three spaces, the theorems."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, maps, page
from jaxprune.report.canvas import Chart
from jaxprune.studies.comparison.measure import SUBLAYERS

_SPACES = {
  "one_minus_cos_h": "h",
  "one_minus_cos_z_centred": "z",
  "one_minus_cos_p": "p",
}
_THEOREMS = {
  "theorem_1": "1: 1 − cosine of h",
  "theorem_1_z": "1: 1 − cosine of z",
  "theorem_2": "2: 1 − cosine of p",
  "theorem_3": "3: KL(p‖q)",
}
_NAMES = {"attention": "attention", "mlp": "MLP"}
_THIRD = (350, 260)  # pixels of a panel of which three stand side by side
_BAND = "line: median, band: the middle 80 % of the positions"


def of_damage(
  summary: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]
) -> list[page.Section]:
  """Where the damage comes from: KL by layer and step, and by sublayer.

  Args:
    summary: of the comparison.
    texts: those of the page; a step of the map leads to the first.
  """
  steps = len(texts[0]["tokens"]) if texts else 0

  def link(step):
    return f"#t0-{min(step, steps - 1)}"

  by_layer = [
    [entry for entry in summary["by_layer"] if entry["sublayer"] == sublayer]
    for sublayer in SUBLAYERS
  ]
  return [
    page.Section(
      title="Where the damage comes from",
      paragraphs=[damage_sentence(summary)],
      figures=[
        page.Figure(
          name="kl_map",
          chart=maps.heat_map(
            np.array(summary["kl_map"], float),
            value="kl",
            log=True,
            link=link if steps else None,
          ),
          caption="KL(p‖q) read out after each layer at each step, mean over"
          " prompts; darker is further from the original. A click on a step"
          " leads to its token in the first text.",
          alt="Map of KL by layer and decoding step.",
        ),
        page.Figure(
          name="kl_layers",
          chart=figures.lines(
            {
              name: _bands(entries, "layer", "kl")
              for name, entries in zip(("attention", "MLP"), by_layer)
            },
            x="layer",
            y="kl",
            log_y=True,
          ),
          caption=f"KL after each attention and each MLP; {_BAND}. The pruned"
          " model runs on its own inner states, so damage adds up over the"
          " layers.",
          alt="KL by layer after attention and after the MLP.",
        ),
      ],
    )
  ]


def damage_sentence(summary: Mapping[str, Any]) -> str:
  """Where the KL grows most, in plain words.

  Args:
    summary: of the comparison.
  """
  worst = summary["largest_growth"]
  return (
    "The KL read out behind a sublayer grows most at the"
    f" {_NAMES[worst['sublayer']]} of layer {worst['layer']}: from"
    f" {page.format_number(worst['before'], 3)} to"
    f" {page.format_number(worst['after'], 3)} nats in the mean."
  )


def of_spaces(summary: Mapping[str, Any]) -> page.Section:
  """From h to z to p, by layer and by step, in figures with bands.

  Args:
    summary: of the comparison.
  """
  layers = [e for e in summary["by_layer"] if e["sublayer"] == "mlp"]
  drawn = {
    "spaces_layers": (layers, "layer", "after the MLP of each layer"),
    "spaces_steps": (summary["by_step"], "step", "at the output"),
  }
  return page.Section(
    title="From h to z to p",
    paragraphs=[
      "h is the hidden state that the LM head W reads, z = W h are the logits"
      " (here without their mean over the vocabulary, which changes no"
      " probability), p = softmax(z / T) the probabilities. How far two models"
      " turn a vector is 1 − cosine, 0 where they agree. " + spaces(summary)
    ],
    figures=[
      page.Figure(
        name=name,
        chart=figures.lines(
          {field: _bands(entries, x, field) for field in _SPACES},
          x=x,
          y="1 − cosine",
          log_y=True,
        ),
        caption=f"1 − cosine of h, z and p {where}; {_BAND}.",
        alt=f"1 − cosine of h, centred z and p by {x}.",
      )
      for name, (entries, x, where) in drawn.items()
    ],
    tables=[
      page.Table(
        folded="Every measure at the output",
        caption="Every position counts alike; intervals of the mean are"
        " 95 %, resampling prompts.",
        columns=("measure", "mean", "median", "least", "greatest"),
        rows=[
          (
            report.axis_label(name),
            entry,
            *(entry[key] for key in ("median", "min", "max")),
          )
          for name, entry in summary["output"].items()
        ],
      )
    ],
  )


def spaces(summary: Mapping[str, Any]) -> str:
  """Which space turns most at the output, in plain words.

  Args:
    summary: of the comparison.
  """
  mean = {
    name: summary["output"][field]["value"] for field, name in _SPACES.items()
  }
  ranked = sorted(mean, key=mean.get, reverse=True)
  listed = ", ".join(f"{name} {mean[name]:.3g}" for name in ranked)
  softmax = summary["softmax"]
  damped = 100 * softmax["damped"]["value"]
  return (
    f"At the output {ranked[0]} turns most (mean: {listed}). The softmax makes"
    f" the relative change smaller at {damped:.0f} % of the positions, larger"
    " at the others."
  )


def of_theorems(summary: Mapping[str, Any]) -> page.Section:
  """Estimates of the theorems against what they estimate.

  Args:
    summary: of the comparison.
  """
  shown = ("theorem_1", "theorem_2", "theorem_3")
  charts = [
    figures.lines(
      {
        "estimate": figures.Series(
          **{
            name: np.array([entry[key] for entry in bins], float)
            for name, key in (
              ("x", "truth"),
              ("y", "median"),
              ("low", "low"),
              ("high", "high"),
            )
          }
        )
      },
      x=_THEOREMS[name].partition(": ")[2] + ", true",
      y=f"estimate of theorem {name[-1]}",
      log_x=True,
      log_y=True,
      identity=True,
      size=_THIRD,
    )
    for name in shown
    if (bins := summary["theorems"][name]["bins"])
  ]
  drawn = page.Figure(
    name="theorems",
    chart=Chart(
      panels=tuple(panel for chart in charts for panel in chart.panels)
    ),
    caption="Second-order estimates at the output against the truth; on the"
    f" dashed line they are exact. Positions sorted by the truth, {_BAND}.",
    alt="Estimates of theorems 1, 2 and 3 against their true values.",
  )
  return page.Section(
    title="Do the theorems hold, and does softmax amplify?",
    paragraphs=(theorem_sentence(summary), softmax_sentence(summary)),
    figures=[drawn] if charts else [],
    tables=[_theorem_table(summary), _softmax_table(summary["softmax"])],
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
    f" average, and smaller at {100 * value['damped']:.1f} % of the positions."
    " A small change in a random direction would be amplified"
    f" {value['random_amplification']:.3g} times, in the worst direction"
    f" {value['worst_amplification']:.3g} times. The change of the logits has"
    f" {100 * value['worst_share']:.3g} % of the effect that a change of its"
    " size would have in the worst direction."
  )


def _theorem_table(summary) -> page.Table:
  tolerance = 100 * summary["theorems"]["theorem_3"]["tolerance"]
  keys = ("median_error", "ratio_of_sums")
  return page.Table(
    folded="Where the theorems hold",
    caption="Second-order estimates at the output. An estimate counts as"
    " valid where the next order of its expansion is at most"
    f" {tolerance:g} % of it; the error is |estimate − truth| / truth, its"
    " median over positions, and the ratio is the sum of the estimates over"
    " that of the truths.",
    columns=(
      "theorem",
      "valid at (fraction)",
      "error where valid",
      "error elsewhere",
      "ratio where valid",
      "ratio elsewhere",
    ),
    rows=[
      (
        _THEOREMS[name],
        entry["valid"],
        *(entry[part][key] for key in keys for part in ("inside", "outside")),
      )
      for name, entry in summary["theorems"].items()
    ],
  )


def _softmax_table(softmax) -> page.Table:
  return page.measure_table(
    "Softmax at the output, means over positions. Amplification is"
    " |Δp| / |p| over |Δz| / |z|; of a random and of the worst direction"
    " it is that of a small change.",
    ("measure", "mean"),
    {
      "relative_p": "relative change of p",
      "amplification": "amplification",
      "amplification_centred": "amplification, centred z",
      "random_amplification": "of a random direction, centred z",
      "worst_amplification": "of the worst direction, centred z",
      "worst_share": "share of the worst direction",
      "linear_ratio": "linear over true change of p",
      "participation": "likely tokens, 1 / Σp²",
      "damped": "positions where softmax makes the change smaller",
    },
    softmax,
    folded="What softmax does",
  )


def _bands(entries, x, name) -> figures.Series:
  """The median with its band, as the summary has them."""
  return figures.Series(
    x=np.array([entry[x] for entry in entries]),
    **{
      field: np.array([entry[label][name] for entry in entries], float)
      for field, label in (("y", "median"), ("low", "low"), ("high", "high"))
    },
  )
