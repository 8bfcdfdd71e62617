"""The numbers of a comparison: all that its page shows, computed once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints, statistics
from jaxprune.probes import position, theorems
from jaxprune.probes.decoder import sequences
from jaxprune.studies.comparison import (
  breakdown,
  decodings,
  finding,
  subject,
  written,
)
from jaxprune.studies.comparison.measure import (
  SUBLAYERS,
  TEACHER_FORCED,
  Tables,
)
from jaxprune.studies.comparison.rows import BY_LAYER as BY_LAYER

Table = Mapping[str, np.ndarray]
# What is said of every position at the output, in this order.
MEASURES = (
  *position.COSINES,
  "one_minus_cos_h",
  "one_minus_cos_z",
  "one_minus_cos_z_centred",
  "one_minus_cos_p",
  "kl",
  "kl_reverse",
  "tv",
  "flip",
  "kl_estimate",
  "one_minus_cos_p_estimate",
  "entropy",
  "entropy_pruned",
)
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}  # of the bands
_TRUTH_BINS = 12
# By theorem: what is estimated, by which field, and where that is valid.
THEOREMS = {
  "theorem_1": (
    "one_minus_cos_h",
    "one_minus_cos_h_estimate",
    "theorem_1_valid",
  ),
  "theorem_1_z": (
    "one_minus_cos_z",
    "one_minus_cos_z_estimate",
    "theorem_1_valid_z",
  ),
  "theorem_2": (
    "one_minus_cos_p",
    "one_minus_cos_p_estimate",
    "theorem_2_valid",
  ),
  "theorem_3": ("kl", "kl_estimate", "theorem_3_valid"),
}
GAINS = (
  "relative_p",
  "amplification",
  "amplification_centred",
  "random_amplification",
  "worst_amplification",
  "worst_share",
  "linear_ratio",
  "participation",
  "top_singular",
)


def summarise(tables: Tables) -> dict[str, Any]:
  """Means over prompts and steps, with intervals over prompts.

  Args:
    tables: from `measure.compare`; its settings hold the seed of the intervals.

  Returns:
    protocol, lens, analysis_temperature, prompts, positions; output, by measure
    its mean with an interval, median and range; by_layer, by_step, kl_map;
    largest_growth, the sublayer behind which the mean KL grows most; and what
    the theorems and the softmax do.
  """
  output, inner = tables.output, tables.inner
  settings, by_layer = tables.settings, _by_layer(inner)
  return {
    "protocol": TEACHER_FORCED,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
    "prompts": len(np.unique(output["prompt"])),
    "positions": len(output["kl"]),
    "output": {
      name: _described(output[name], output["prompt"], settings.seed)
      for name in MEASURES
    },
    "by_layer": by_layer,
    "largest_growth": _largest_growth(by_layer),
    "by_step": _by_step(output),
    "kl_map": _kl_map(inner),
    "theorems": {
      name: check_theorem(output, *fields, seed=settings.seed)
      for name, fields in THEOREMS.items()
    },
    "kl_bound": _bound(output),
    "softmax": _softmax(output, settings.seed),
  }


def summarise_all(
  tables: Tables,
  sources: Sequence[checkpoints.Source],
  models: tuple[sequences.Model, sequences.Model],
  **more: Any,
) -> dict[str, Any]:
  """All that the page of a comparison shows.

  Args:
    tables: from `measure.compare`.
    sources: the checkpoints of the dense and of the pruned model.
    models: both, loaded.
    **more: entries beside, such as `tasks` and `verdict`; see
      `page.write_page`.

  Returns:
    What `summarise`, `summarise_texts` (where step by step was decoded),
    `written.summarise` and `finding.find` say, and `subject`.
  """
  summary = {
    **more,
    **summarise(tables),
    **written.summarise(tables, written.text_of(sources[0])),
    **summarise_texts(tables),
    "subject": subject.describe(*sources, models),
  }
  return summary | finding.find(summary)


def summarise_texts(tables: Tables) -> dict[str, Any]:
  """`decodings` and `breakdown`: by decoding, step, length and entropy."""
  seed = tables.settings.seed
  return {
    "decodings": decodings.summarise(tables.decodings, seed=seed),
    "breakdown": {
      TEACHER_FORCED: breakdown.break_down(tables.output, seed=seed),
      **decodings.break_down(tables.decodings, seed=seed),
    },
  }


def check_theorem(
  table: Table, truth: str, estimate: str, valid: str, *, seed: int
) -> dict[str, Any]:
  """How good an estimate is where it is valid, and elsewhere.

  Args:
    table: columns over positions.
    truth: field that is estimated.
    estimate: field of the estimate.
    valid: field that says where the estimate is valid.
    seed: of the interval.

  Returns:
    truth, the fraction of positions where the estimate is valid, and of the
    positions inside and outside: how many, the median of |estimate - truth| /
    truth, and the sum of the estimates over the sum of the truths; None where
    no position has a positive truth. `bins`: by the truth, its median and the
    `QUANTILES` of the estimates.
  """
  usable = np.isfinite(table[truth]) & np.isfinite(table[estimate])
  usable &= table[truth] > 0

  def error(keep):
    exact, estimated = table[truth][keep], table[estimate][keep]
    if not keep.any():
      return {"positions": 0, "median_error": None, "ratio_of_sums": None}
    return {
      "positions": int(keep.sum()),
      "median_error": float(np.median(np.abs(estimated / exact - 1))),
      "ratio_of_sums": float(estimated.sum() / exact.sum()),
    }

  return {
    "truth": truth,
    "tolerance": theorems.TOLERANCE,
    "valid": statistics.proportion(
      table[valid], table["prompt"], seed=seed
    ).to_json(),
    "inside": error(usable & table[valid]),
    "outside": error(usable & ~table[valid]),
    "bins": _by_truth(table[truth][usable], table[estimate][usable]),
  }


def _by_truth(truth, estimate) -> list[dict[str, Any]]:
  """Bins with about as many positions each."""
  if not truth.size:
    return []
  place = statistics.bin_index(
    truth, statistics.quantile_edges(truth, _TRUTH_BINS)
  )
  return [
    {
      "positions": int((place == index).sum()),
      "truth": float(np.median(truth[place == index])),
    }
    | {
      label: float(np.quantile(estimate[place == index], share))
      for label, share in QUANTILES.items()
    }
    for index in np.unique(place)
  ]


def mean_of_layers(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The mean sparsity and error over the layers of a pruning log."""
  return {
    name: sum(row[name] for row in log) / len(log)
    for name in ("sparsity", "layer_error")
  }


def headline(summary: Mapping[str, Any]) -> str:
  """The comparison in one line, and one line for each task."""
  text = {
    name: f"{entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"
    for name, entry in summary["output"].items()
  }
  parts = summary.get("finding", {}).get("parts", ())
  said = "".join(part["text"] for part in parts) + "\n" if parts else ""
  return (
    f"{said}output over {summary['positions']} positions of"
    f" {summary['prompts']} prompts, mean [95 %]: cos_h {text['cos_h']}, cos_z"
    f" {text['cos_z']}, centred {text['cos_z_centred']}, cos_p {text['cos_p']},"
    f" KL {text['kl']} nats, argmax changed {text['flip']}"
    + "".join(map(_task_line, summary.get("tasks", {}).items()))
  )


def _task_line(task) -> str:
  name, entry = task
  return (
    f"\n{name:9s} dense {entry['reference']:.3f}  pruned"
    f" {entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    f" ({entry['count']} items)"
  )


def _described(values, prompts, seed) -> dict[str, Any]:
  """Mean with its interval, median and range."""
  mean = statistics.mean(values, prompts, seed=seed)
  return mean.to_json() | {
    "median": float(np.median(values)),
    "min": float(np.min(values)),
    "max": float(np.max(values)),
  }


def _by_layer(inner) -> list[dict[str, Any]]:
  """Means of each sublayer, and its `QUANTILES`."""
  return [
    {"layer": int(layer), "sublayer": sublayer}
    | _mean_and_quantiles(
      inner, (inner["layer"] == layer) & (inner["sublayer"] == sublayer)
    )
    for layer in np.unique(inner["layer"])
    for sublayer in SUBLAYERS
  ]


def _largest_growth(by_layer) -> dict[str, Any]:
  """The sublayer behind which the mean KL grows most."""
  before = [0.0, *(entry["kl"] for entry in by_layer)]
  index = int(np.argmax([e["kl"] - b for e, b in zip(by_layer, before)]))
  return {
    "layer": by_layer[index]["layer"],
    "sublayer": by_layer[index]["sublayer"],
    "before": before[index],
    "after": by_layer[index]["kl"],
  }


def _by_step(output) -> list[dict[str, Any]]:
  """Means of each step over prompts, and its `QUANTILES`."""
  return [
    {"step": int(step)} | _mean_and_quantiles(output, output["step"] == step)
    for step in np.unique(output["step"])
  ]


def _mean_and_quantiles(table, keep) -> dict[str, Any]:
  parts = {name: table[name][keep] for name in BY_LAYER}
  return {name: float(np.mean(part)) for name, part in parts.items()} | {
    label: {
      name: float(np.quantile(part, share)) for name, part in parts.items()
    }
    for label, share in QUANTILES.items()
  }


def _kl_map(inner) -> list[list[float]]:
  """Mean KL after the MLP of each layer, [layers][steps]; NaN without a row."""
  mlp = inner["sublayer"] == "mlp"
  layer, step = inner["layer"][mlp], inner["step"][mlp]
  shape = (inner["layer"].max() + 1, inner["step"].max() + 1)
  total, count = np.zeros(shape), np.zeros(shape)
  np.add.at(total, (layer, step), inner["kl"][mlp])
  np.add.at(count, (layer, step), 1)
  with np.errstate(invalid="ignore"):
    return (total / count).tolist()


def _bound(output) -> dict[str, Any]:
  """How far KL stays below Hoeffding's bound."""
  kl, bound = output["kl"], output["kl_bound"]
  usable = np.isfinite(bound) & (bound > 0)
  return {
    "positions": int(usable.sum()),
    "median_share": float(np.median(kl[usable] / bound[usable]))
    if usable.any()
    else None,
    "exceeded": int((kl[usable] > bound[usable]).sum()),
  }


def _softmax(output, seed) -> dict[str, Any]:
  """Means of the gains over the positions, and where softmax damps."""
  return {
    **{
      name: statistics.finite_mean(
        output[name], output["prompt"], seed=seed
      ).to_json()
      for name in GAINS
    },
    "damped": statistics.proportion(
      output["amplification_centred"] < 1, output["prompt"], seed=seed
    ).to_json(),
    "converged": float(output["top_singular_converged"].mean()),
  }
