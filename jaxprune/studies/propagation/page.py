"""The page of `propagation`: tables and figures of what the summary holds."""

import numpy as np

from jaxprune.probes.decoder.propagation.path import SUBLAYERS
from jaxprune.report import (
  RunFolder,
  Summary,
  attribution_figures,
  figures,
  page,
)
from jaxprune.studies.propagation import finding
from jaxprune.studies.propagation.arrays import Settings
from jaxprune.studies.propagation.rows import ARRIVALS
from jaxprune.studies.propagation.summary import BOUND

_LABELS = {
  "kl": "KL (nats)",
  "dz_centred": "fraction of centred Δz",
  "log_prob": "log-probability (nats)",
}
_RATES = {
  "p": "rate_p",
  "turn": "√Varᵣ(dz) / T, the turn of p",
  "z_centred": "rate_z_centred",
  "h": "rate_h",
}
_T = "t, 0 dense and 1 pruned"


def write_page(run: RunFolder, summary: Summary, settings: Settings) -> None:
  """Write figures/ and report.html.

  Args:
    run: the run folder.
    summary: from `summary.summarise`.
    settings: of the run: steps and temperature.
  """
  first = summary["models"][0]
  page.write_report(
    run,
    title="What caused the change",
    finding=finding.finding(summary),
    verdict=finding.verdict(summary),
    sections=[
      page.Section(title="Against chance", tables=[_chance_table(summary)]),
      *(
        section
        for entry in summary["models"]
        if entry["source"] == "pruned"
        for section in _sections(entry)
      ),
    ],
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
  measures = {
    "kl": "KL",
    "attention": "attention",
    "mlp": "MLP",
    "own_step": "own step",
    "through_cache": "cache",
    "missed": "first order misses",
    "radius": "radius",
    "p_over_z_centred": "p over z",
    "alone": "alone",
  }
  rows = {
    finding.name_of(entry): {
      "kl": entry["change"]["kl"],
      "attention": entry["by_kind"]["attention"]["kl"],
      "mlp": entry["by_kind"]["mlp"]["kl"],
      "own_step": entry["by_arrival"]["kl"]["own_step"],
      "through_cache": entry["through_cache"]["kl"],
      "missed": entry["path"]["first_order"]["logits"][-1],
      "radius": entry["radius"]["first_order"]["logits"],
      "p_over_z_centred": entry["amplification"]["p_over_z_centred"],
      "alone": entry["interactions"]["kl_alone_over_together"],
    }
    for entry in summary["models"]
  }
  return page.estimate_table(
    "Pruned models beside random changes of the same size (random: as many"
    " weights or sublayers; noise: the same norm in every kernel). KL in nats"
    " and its parts; radius: largest t up to which first order predicts the"
    f" logits to {100 * BOUND:.0f} %; rate of p over that of centred z; KL of"
    " sublayers alone over that of all.",
    "model",
    measures,
    rows,
  )


def _sections(entry):
  title = entry["configuration"]
  pairs = _pairs_table(entry)
  return [
    page.Section(
      title=f"{title}: by sublayer",
      figures=[
        *(_contributions(entry, name) for name in ("kl", "dz_centred")),
        _stacked_steps(entry),
      ],
      tables=[_sublayers_table(entry)],
    ),
    page.Section(
      title=f"{title}: by decoding step",
      figures=[
        _influence(entry, name) for name in ("kl", "log_prob", "dz_centred")
      ],
      tables=[_groups_table(entry)],
    ),
    page.Section(
      title=f"{title}: pairs of sublayers",
      figures=[_pairs(entry)],
      tables=[pairs] if pairs.rows else [],
    ),
    page.Section(
      title=f"{title}: first order against the truth",
      figures=[_path_error(entry), _path_kl(entry)],
    ),
    page.Section(
      title=f"{title}: how fast p moves",
      figures=[_rates(entry, "mean"), _rates(entry, "median"), _moved(entry)],
    ),
    page.Section(
      title=f"{title}: is it complete?", tables=[_checks_table(entry)]
    ),
  ]


def _figure(entry, name, chart, caption, alt):
  file = f"{entry['configuration'].replace(':', '_')}_{name}"
  return page.Figure(name=file, chart=chart, caption=caption, alt=alt)


def _contributions(entry, name):
  bars = [
    [part[name] for part in entry["by_sublayer"] if part["sublayer"] == kind]
    for kind in SUBLAYERS
  ]
  error = entry["completeness"]["sublayer"][name]
  total = entry["change"][name]["value"]
  return _figure(
    entry,
    f"contributions_{name}",
    attribution_figures.contribution_bars(
      *bars,
      y=_LABELS[name],
      completeness=f"sum {total:.4g}, completeness error {error:.1g}",
    ),
    f"Contribution of each sublayer to {_LABELS[name]}: mean over prompts,"
    " steps and seeds, with 95 % intervals over prompts. All bars together"
    " are the change.",
    f"Bars of the contributions to {_LABELS[name]} by layer.",
  )


def _group_names(entry) -> list[str]:
  return [
    f"layer {first}" if first == last else f"layers {first}–{last}"
    for first, last in entry["by_step"]["groups"]
  ]


def _stacked_steps(entry):
  by_step = entry["by_step"]
  stacks = [
    {
      label: np.array(values)
      for label, values in zip(
        _group_names(entry), by_step["contributions"][kind]
      )
    }
    for kind in SUBLAYERS
  ]
  return _figure(
    entry,
    "steps_kl",
    attribution_figures.stacked_steps(
      *stacks, np.array(by_step["change"]), y=_LABELS["kl"]
    ),
    "KL at each step, divided among groups of sublayers: what is stacked up"
    " less what is stacked down is the true KL (dots).",
    "Stacked bars of contributions to the KL by step.",
  )


def _influence(entry, name):
  maps = entry["by_step"]["influence"][name]
  return _figure(
    entry,
    f"time_{name}",
    attribution_figures.time_influence(
      {
        label: np.array(values, np.float64)
        for label, values in zip(_group_names(entry), maps)
      },
      value=f"contribution to {name}",
    ),
    "What the weights of a group of layers, changed at one step (row), add"
    f" to {name} of an output (column), mean over prompts and seeds. On the"
    " diagonal the step itself, below it what comes through keys and"
    " values; nothing comes before its cause (grey).",
    f"Heat maps of contributions to {name} by step and output step.",
  )


def _pairs(entry):
  return _figure(
    entry,
    "pairs",
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


def _lines(t, labels, values, *, y, log_y):
  """Lines over t: `labels` by key of `values`."""
  series = {
    label: figures.Series(x=np.array(t), y=np.array(values[key]))
    for key, label in labels.items()
  }
  return figures.lines(series, x=_T, y=y, log_y=log_y)


def _path_error(entry):
  labels = {"first_order": "first order", "second_order": "second order"}
  return _along_path(
    entry,
    "logits",
    labels,
    "relative error of Δz",
    (
      "path_error",
      "How far the derivatives at the dense model predict the logits.",
    ),
    "Relative error of first and second order along the path.",
  )


def _path_kl(entry):
  labels = {
    "truth": "true",
    "first_order_mean": "of first-order logits",
    "second_order_mean": "of second-order logits",
  }
  return _along_path(
    entry,
    "kl",
    labels,
    "kl",
    ("path_kl", "KL(p‖q) along the path, and that of predicted logits."),
    "True and predicted KL along the path, logarithmic.",
  )


def _along_path(entry, field, labels, y, named, alt):
  """A figure of one field of the path, (name, caption) given together."""
  name, caption = named
  path = entry["path"]
  values = {key: path[key][field] for key in labels}
  chart = _lines(path["t"], labels, values, y=y, log_y=True)
  return _figure(entry, name, chart, caption, alt)


def _rates(entry, kind):
  rates = entry["amplification"]
  return _figure(
    entry,
    f"rate_{kind}",
    _lines(
      rates["t"], _RATES, rates[kind], y="relative rate per unit t", log_y=True
    ),
    f"How fast p, centred z and h move along the path, {kind} over outputs."
    " The turn of p is the root of the variance of the momentary dz under"
    " r; the rest of the rate of p changes its length. Softmax amplifies"
    " where p is above centred z.",
    f"Relative rates along the path, {kind}.",
  )


def _moved(entry):
  rates = entry["amplification"]
  labels = {"moved_p": "|Δp| / |p|", "moved_z_centred": "|Δz| / |z|, centred"}
  return _figure(
    entry,
    "moved",
    _lines(
      rates["t"],
      labels,
      rates["mean"],
      y="change from the dense model",
      log_y=False,
    ),
    "How far p and z have moved, mean over outputs.",
    "Relative changes of p and z along the path.",
  )


def _sublayers_table(entry):
  return page.estimate_table(
    "Mean contributions; columns add up to the change.",
    "sublayer",
    {name: name for name in entry["change"]},
    {
      f"{part['sublayer']} {part['layer']}": part
      for part in entry["by_sublayer"]
    },
  )


def _groups_table(entry):
  return page.estimate_table(
    "Contributions to the KL (nats) by group of layers, the earliest"
    " first, and by where its weights are changed.",
    "group",
    {way: way for way in ARRIVALS},
    {str(group): part for group, part in enumerate(entry["by_group"]["kl"])},
  )


def _pairs_table(entry):
  return page.estimate_table(
    "Interactions of the strongest pairs: the KL (nats) and the"
    " log-probability of the dense token with both changed, less what each"
    " gives alone; and their second order.",
    "pair",
    {
      "kl": "KL",
      "kl_second_order": "KL, second order",
      "log_prob": "log-probability",
      "log_prob_second_order": "log-probability, second order",
    },
    {
      " and ".join(
        f"{kind} {layer}" for layer, kind in (pair["first"], pair["second"])
      ): pair
      for pair in entry["interactions"]["pairs"]
    },
  )


def _checks_table(entry):
  return page.estimate_table(
    "Relative errors: of the sum of contributions, and of the sum of"
    " first-order effects. KL and 1 − cosine have slope 0 at the dense"
    " model, so their first order is always 0.",
    "metric",
    {
      "change": "mean change",
      "sublayer": "by sublayer",
      "step": "by step",
      "first_order": "first order",
    },
    {
      name: {
        "change": entry["change"][name],
        "sublayer": entry["completeness"]["sublayer"][name],
        "step": entry["completeness"]["step"].get(name),
        "first_order": entry["first_order_error"][name],
      }
      for name in entry["change"]
    },
  )
