"""Figures, page and plain words of `propagation`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes import propagation
from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.report import attribution_figures, figures, page
from jaxprune.studies.propagation import summary as summary_lib
from jaxprune.studies.propagation.measure import Found, Settings
from jaxprune.studies.propagation.summary import ARRIVALS, BOUND

Entry = dict[str, Any]  # of one cell and source, from `summarise`
Drawn = dict[str, tuple[bytes, str, str]]  # PNG, caption, alternative text
_LABELS = {
  "kl": "KL (nats)",
  "dz_centred": "share of centred Δz",
  "log_prob": "log-probability (nats)",
}
_SPEEDS = {
  "p": "speed_p",
  "turn": "√Varᵣ(dz) / T, the turn of p",
  "z_centred": "speed_z_centred",
  "h": "speed_h",
}


def carriers(entry: Entry, metric: str) -> list[tuple[str, float]]:
  """Sublayers with the mean contribution, the largest first."""
  found = [
    (f"{part['sublayer']} {part['layer']}", part[metric]["mean"])
    for part in entry["by_sublayer"]
  ]
  return sorted(found, key=lambda pair: -abs(pair[1]))


def name_of(entry: Entry) -> str:
  """The cell, and what stands in for chance."""
  if entry["source"] == "pruned":
    return entry["cell"]
  return f"{entry['cell']}, {entry['source']}"


def headline(summary: dict[str, Any]) -> str:
  """A few lines for each pruned model and its controls."""
  parts = []
  for entry in summary["models"]:
    kl, kinds = entry["change"]["kl"], entry["by_kind"]
    grow = entry["amplification"]["p_over_z_centred"]
    missed = entry["path"]["first_order"]["logits"][-1]
    top = ", ".join(
      f"{name} {value:.3g}" for name, value in carriers(entry, "kl")[:3]
    )
    parts.append(
      f"{name_of(entry)}: KL {_text(kl)} nats, attention"
      f" {kinds['attention']['kl']['mean']:.3g}, MLP"
      f" {kinds['mlp']['kl']['mean']:.3g}, most in {top}; first order misses"
      f" {100 * missed:.0f} % of the logits and holds to t ="
      f" {entry['radius']['first_order']['logits']:.2f}; p moves"
      f" {_text(grow)} times as fast as centred z"
    )
  return "\n".join([*parts, completeness(summary)])


def completeness(summary: dict[str, Any]) -> str:
  """Whether the contributions add up, in one sentence."""
  error, bound = summary["completeness_error"], summary["tolerance"]
  nodes = max(entry["nodes"] for entry in summary["models"])
  if error <= bound:
    return (
      f"The contributions add up: completeness error {error:.2g}, below"
      f" --tolerance={bound:g}, with {nodes} nodes at most."
    )
  return (
    f"NOT COMPLETE: the completeness error is {error:.2g}, above"
    f" --tolerance={bound:g}, with {nodes} nodes; raise --max_nodes before"
    " you read small contributions."
  )


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  parts = headline(summary).split("\n")
  for entry in summary["models"]:
    if entry["source"] != "pruned":
      continue
    ways, pairs = entry["by_arrival"]["kl"], entry["interactions"]
    share = entry["amplification"]
    parts += [
      f"{entry['cell']}: of the KL at an output"
      f" {ways['own_step']['mean']:.3g} nats come from weights changed at its"
      f" own step, {ways['earlier_steps']['mean']:.3g} through keys and"
      " values of earlier steps and"
      f" {ways['text_before']['mean']:.3g} through those of the text before."
      " Sublayers changed alone give"
      f" {_text(pairs['kl_alone_over_together'])} of the KL of all"
      f" together. Relative to its length p is slower than centred z at"
      f" {100 * share['damped']['mean']:.0f} % of the outputs."
    ]
  parts.append(
    "Contributions belong to the straight path between the two sets of"
    " weights. They add up exactly, but a sublayer whose change is undone by"
    " another can still have a large one."
  )
  return "\n\n".join(parts)


def _text(entry) -> str:
  return f"{entry['mean']:.3g} [{entry['low']:.3g}, {entry['high']:.3g}]"


def _interval(entry) -> report.Interval:
  return report.Interval(
    estimate=entry["mean"],
    low=entry["low"],
    high=entry["high"],
    level=0.95,
    prompts=0,
    rows=0,
    resamples=0,
    seed=0,
    method="bca",
  )


def draw(entry: Entry, founds: Sequence[Found], settings: Settings) -> Drawn:
  """Figures of one pruned cell by name."""
  return (
    _draw_sublayers(entry)
    | _draw_steps(entry, founds, settings)
    | _draw_path(entry)
  )


def _draw_sublayers(entry):
  drawn = {}
  for name in ("kl", "dz_centred"):
    bars = [
      [
        _interval(part[name])
        for part in entry["by_sublayer"]
        if part["sublayer"] == kind
      ]
      for kind in SUBLAYERS
    ]
    error = entry["completeness"]["sublayer"][name]
    drawn[f"contributions_{name}"] = (
      attribution_figures.contribution_bars(
        *bars,
        y=_LABELS[name],
        completeness="sum"
        f" {entry['change'][name]['mean']:.4g}, completeness error"
        f" {error:.1g}",
      ),
      f"Contribution of each sublayer to {_LABELS[name]}: mean over prompts,"
      " steps and seeds, with 95 % intervals over prompts. All bars together"
      " are the change.",
      f"Bars of the contributions to {_LABELS[name]} by layer.",
    )
  drawn["pairs"] = (
    attribution_figures.pair_table(
      np.array(entry["interactions"]["curvature"]),
      value="second derivative of KL (nats)",
    ),
    "Second derivatives of the KL at the dense model, covariances of the"
    " first-order changes of the logits under p. Half of their sum is the"
    " second-order KL; off the diagonal stands what sublayers do by pointing"
    " the same way (red) or against each other (blue).",
    "Heat map of pairs of sublayers.",
  )
  return drawn


def _draw_steps(entry, founds, settings):
  layers = len(entry["by_sublayer"]) // 2
  groups = {
    _layers(group): group
    for group in propagation.layer_groups(layers, settings.groups)
  }
  alive_R = sum(found.alive.sum(0) for found in founds)
  mean = lambda get: (
    sum(get(found).sum(0) for found in founds) / np.maximum(alive_R, 1)
  )
  stacks = [
    {
      label: mean(
        lambda found: found.sublayers["kl"][
          [2 * layer + kind for layer in group]
        ].sum(0)
      )
      for label, group in groups.items()
    }
    for kind in (0, 1)
  ]
  drawn = {
    "steps_kl": (
      attribution_figures.stacked_steps(
        *stacks, mean(lambda found: found.change["kl"]), y=_LABELS["kl"]
      ),
      "KL at each step, divided among groups of sublayers: what is stacked up"
      " less what is stacked down is the true KL (dots).",
      "Stacked bars of contributions to the KL by step.",
    )
  }
  for name in ("kl", "log_prob", "dz_centred"):
    maps = summary_lib.time_map(founds, name)
    drawn[f"time_{name}"] = (
      attribution_figures.time_influence(
        dict(zip(groups, maps)), value=f"contribution to {name}"
      ),
      "What the weights of a group of layers, changed at one step (row), add"
      f" to {name} of an output (column), mean over prompts and seeds. On the"
      " diagonal the step itself, below it what comes through keys and"
      " values; nothing comes before its cause (grey).",
      f"Heat maps of contributions to {name} by step and output step.",
    )
  return drawn


def _layers(group) -> str:
  last = group[-1]
  return f"layer {last}" if len(group) == 1 else f"layers {group[0]}–{last}"


def _draw_path(entry):
  line, speeds = entry["path"], entry["amplification"]
  t = np.array(line["t"])
  drawn = {
    "path_error": (
      figures.lines(
        {
          label: figures.Series(x=t, y=np.array(line[order]["logits"]))
          for order, label in (
            ("first_order", "first order"),
            ("second_order", "second order"),
          )
        },
        x="t, 0 dense and 1 pruned",
        y="relative error of Δz",
        log_y=True,
      ),
      "How far the derivatives at the dense model predict the logits.",
      "Relative error of first and second order along the path.",
    )
  }
  drawn["path_kl"] = (
    figures.lines(
      {
        label: figures.Series(x=t, y=np.array(line[key]["kl"]))
        for key, label in (
          ("truth", "true"),
          ("first_order_mean", "of first-order logits"),
          ("second_order_mean", "of second-order logits"),
        )
      },
      x="t, 0 dense and 1 pruned",
      y="kl",
      log_y=True,
    ),
    "KL(p‖q) along the path, and that of predicted logits.",
    "True and predicted KL along the path, logarithmic.",
  )
  for kind in ("mean", "median"):
    drawn[f"speed_{kind}"] = (
      figures.lines(
        {
          label: figures.Series(
            x=np.array(speeds["t"]), y=np.array(speeds[kind][name])
          )
          for name, label in _SPEEDS.items()
        },
        x="t, 0 dense and 1 pruned",
        y="relative speed per unit t",
        log_y=True,
      ),
      f"How fast p, centred z and h move along the path, {kind} over outputs."
      " The turn of p is the root of the variance of the momentary dz under"
      " r; the rest of the speed of p changes its length. Softmax amplifies"
      " where p is above centred z.",
      f"Relative speeds along the path, {kind}.",
    )
  drawn["moved"] = (
    figures.lines(
      {
        label: figures.Series(
          x=np.array(speeds["t"]), y=np.array(speeds["mean"][name])
        )
        for name, label in (
          ("moved_p", "|Δp| / |p|"),
          ("moved_z_centred", "|Δz| / |z|, centred"),
        )
      },
      x="t, 0 dense and 1 pruned",
      y="change from the dense model",
    ),
    "How far p and z have moved, mean over outputs.",
    "Relative changes of p and z along the path.",
  )
  return drawn


def render(
  summary: dict[str, Any],
  drawn: Mapping[str, Drawn],
  description: dict[str, Any],
  settings: Settings,
) -> str:
  """report.html."""
  sections = [
    page.Section(title="Against chance", tables=[_chance_table(summary)])
  ]
  for entry in summary["models"]:
    if entry["source"] == "pruned":
      sections += _sections(entry, drawn[entry["cell"]])
  first = summary["models"][0]
  return page.render_page(
    title="What caused the change",
    verdict=verdict(summary),
    sections=sections,
    run=description,
    protocol={
      "Protocol": "teacher-forced on the dense model's greedy text",
      "Prompts": first["prompts"],
      "Steps": settings.max_new_tokens,
      "Analysis temperature T": settings.analysis_temperature,
      "Seeds": ", ".join(map(str, first["seeds"])),
      "Intervals": "95 %, resampling prompts",
    },
  )


def _chance_table(summary):
  return page.Table(
    caption="Pruned models beside changes as large that chance made (random:"
    " as many weights or sublayers; noise: the norm of every kernel's"
    " change). KL in nats and its parts; radius: largest t up to which first"
    f" order predicts the logits to {100 * BOUND:.0f} %; speed of p over that"
    " of centred z; KL of sublayers alone over that of all.",
    columns=(
      "model",
      "KL",
      "attention",
      "MLP",
      "own step",
      "cache",
      "first order misses",
      "radius",
      "p over z",
      "alone",
    ),
    rows=[
      (
        name_of(entry),
        _interval(entry["change"]["kl"]),
        *(_interval(entry["by_kind"][kind]["kl"]) for kind in SUBLAYERS),
        _interval(entry["by_arrival"]["kl"]["own_step"]),
        sum(entry["by_arrival"]["kl"][way]["mean"] for way in ARRIVALS[1:]),
        entry["path"]["first_order"]["logits"][-1],
        entry["radius"]["first_order"]["logits"],
        _interval(entry["amplification"]["p_over_z_centred"]),
        _interval(entry["interactions"]["kl_alone_over_together"]),
      )
      for entry in summary["models"]
    ],
  )


def _sections(entry, drawn):
  names = tuple(entry["change"])

  def shown(*prefixes):
    return [
      page.Figure(png=png, caption=caption, alt=alt)
      for name, (png, caption, alt) in drawn.items()
      if name.startswith(prefixes)
    ]

  groups = page.Table(
    caption="Contributions to the KL (nats) by group of layers, the earliest"
    " first, and by where its weights are changed.",
    columns=("group", *ARRIVALS),
    rows=[
      (str(group), *(_interval(part[way]) for way in ARRIVALS))
      for group, part in enumerate(entry["by_group"]["kl"])
    ],
  )
  pairs = page.Table(
    caption="Interactions of the strongest pairs: the KL (nats) and the"
    " log-probability of the dense token with both changed, less what each"
    " gives alone; and their second order.",
    columns=("pair", "KL", "second order", "log-probability", "second order "),
    rows=[
      (
        " and ".join(
          f"{kind} {layer}" for layer, kind in (pair["first"], pair["second"])
        ),
        *(
          _interval(pair[name])
          for name in (
            "kl",
            "kl_second_order",
            "log_prob",
            "log_prob_second_order",
          )
        ),
      )
      for pair in entry["interactions"]["pairs"]
    ],
  )
  checks = page.Table(
    caption="Relative errors: of the sum of contributions, and of the sum of"
    " first-order effects. KL and 1 − cosine have slope 0 at the dense"
    " model, so their first order is always 0.",
    columns=("metric", "mean change", "by sublayer", "by step", "first order"),
    rows=[
      (
        name,
        _interval(entry["change"][name]),
        entry["completeness"]["sublayer"][name],
        entry["completeness"]["step"].get(name),
        entry["first_order_error"][name],
      )
      for name in names
    ],
  )
  title = entry["cell"]
  return [
    page.Section(
      title=f"{title}: by sublayer",
      figures=shown("contributions", "steps"),
      tables=[
        page.Table(
          caption="Mean contributions; columns add up to the change.",
          columns=("sublayer", *names),
          rows=[
            (
              f"{part['sublayer']} {part['layer']}",
              *(_interval(part[name]) for name in names),
            )
            for part in entry["by_sublayer"]
          ],
        )
      ],
    ),
    page.Section(
      title=f"{title}: by decoding step", figures=shown("time"), tables=[groups]
    ),
    page.Section(
      title=f"{title}: pairs of sublayers",
      figures=shown("pairs"),
      tables=[pairs] if pairs.rows else [],
    ),
    page.Section(
      title=f"{title}: first order against the truth", figures=shown("path")
    ),
    page.Section(
      title=f"{title}: how fast p moves", figures=shown("speed", "moved")
    ),
    page.Section(title=f"{title}: is it complete?", tables=[checks]),
  ]
