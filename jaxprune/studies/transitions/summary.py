"""What each sublayer does when it alone is changed: the numbers of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.probes import position
from jaxprune.studies.transitions.measure import PROTOCOL, SUBLAYERS, Measured

Table = Mapping[str, np.ndarray]
HEAD = (
  "head_gain_h",
  "head_gain_dh",
  "attenuation",
  "attenuation_centred",
  "head_energy_h",
  "head_energy_dh",
  "offset_dz",
)
MEASURES = (
  *position.COSINES,
  "kl",
  "kl_reverse",
  "rho_h",
  "rho_z",
  "flip",
  *HEAD,
)
# Each truth, and the field that estimates it.
ESTIMATES = {
  "kl": "kl_estimate",
  "one_minus_cos_p": "one_minus_cos_p_estimate",
  "one_minus_cos_h": "one_minus_cos_h_estimate",
  "one_minus_cos_z": "one_minus_cos_z_estimate",
}
# The fields that are drawn by decoding step, for the middle and the last layer.
BY_STEP = (
  "rho_h",
  "rho_z",
  "kl",
  "kl_estimate",
  "one_minus_cos_p",
  "one_minus_cos_p_estimate",
  "var_uniform",
  "var_r",
  "var_p",
)


def summarise(measured: Measured) -> dict[str, Any]:
  """Means of each sublayer over prompts and steps, and what follows.

  Args:
    measured: from `measure.measure`; its settings hold the seed of the
      intervals.

  Returns:
    by_sublayer: of every measure its mean with an interval over prompts, and
    range; by_step: the same of two layers at every step, without intervals;
    head: the spectrum of the LM head; estimates against the truth; orderings.
  """
  table, settings = measured.table, measured.settings
  by_sublayer = [
    _by_sublayer(table, int(layer), sublayer, settings.seed)
    for layer in np.unique(table["layer"])
    for sublayer in SUBLAYERS
  ]
  return {
    "protocol": PROTOCOL,
    "intervention": str(table["intervention"][0]),
    "history": settings.history,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
    "prompts": len(np.unique(table["prompt"])),
    "positions": len(
      np.unique(np.stack([table["prompt"], table["step"]]), axis=1).T
    ),
    "by_sublayer": by_sublayer,
    "by_step": _by_step(table),
    "head": _head(measured),
    "estimates": {
      truth: compare_estimate(table[truth], table[estimate])
      for truth, estimate in ESTIMATES.items()
    },
    "orderings": orderings(by_sublayer),
  }


def compare_estimate(truth: np.ndarray, estimate: np.ndarray) -> dict[str, Any]:
  """How well an estimate follows: ranks, ratio of sums, median ratio.

  Rows that are not finite are left out of everything, those whose truth is 0
  of the ratios. A correlation is None where it is undefined.

  Args:
    truth: real [rows].
    estimate: real [rows].
  """
  good = np.isfinite(truth) & np.isfinite(estimate)
  truth, estimate = truth[good], estimate[good]
  seen = truth > 0
  return {
    "pearson": _correlation(truth, estimate),
    "spearman": _rank_correlation(truth, estimate),
    "rows": len(truth),
    "rows_with_ratio": int(seen.sum()),
    "sum_ratio": float(estimate[seen].sum() / truth[seen].sum())
    if seen.any()
    else None,
    "median_ratio": float(np.median(estimate[seen] / truth[seen]))
    if seen.any()
    else None,
  }


def orderings(by_sublayer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How many sublayers show the orders that the paper reports.

  Args:
    by_sublayer: entries of `summarise`.

  Returns:
    Per kind of sublayer: counts over layers, and the rank correlation of depth
    with mean KL.
  """
  result = {}
  for sublayer in SUBLAYERS:
    entries = [entry for entry in by_sublayer if entry["sublayer"] == sublayer]
    mean = {
      name: np.array([entry[name]["value"] for entry in entries])
      for name in (*position.COSINES, "kl", "rho_h", "rho_z", *HEAD)
    }

    def layers(low, high, mean=mean):
      return int((mean[low] < mean[high]).sum())

    result[sublayer] = {
      "layers": len(entries),
      "cos_z_above_cos_h": layers("cos_h", "cos_z"),
      "cos_z_centred_above_cos_h": layers("cos_h", "cos_z_centred"),
      "cos_p_below_cos_z": layers("cos_p", "cos_z"),
      "cos_p_below_cos_h": layers("cos_p", "cos_h"),
      "rho_z_below_rho_h": layers("rho_z", "rho_h"),
      "energy_dh_below_h": layers("head_energy_dh", "head_energy_h"),
      "attenuation_below_1": int((mean["attenuation"] < 1).sum()),
      "rank_correlation_depth_kl": _rank_correlation(
        np.arange(len(entries)), mean["kl"]
      ),
    }
  return result


def headline(summary: Mapping[str, Any]) -> str:
  """The result in a few lines."""
  lines = [
    f"{summary['intervention']} one sublayer at a time,"
    f" {summary['positions']} positions of {summary['prompts']} prompts"
  ]
  for sublayer in SUBLAYERS:
    entries = [
      entry for entry in summary["by_sublayer"] if entry["sublayer"] == sublayer
    ]
    means = {
      name: np.mean([entry[name]["value"] for entry in entries])
      for name in (*position.COSINES, "kl")
    }
    worst = max(entries, key=lambda entry: entry["kl"]["value"])
    lines.append(
      f"{sublayer}: mean over layers of cos_h {means['cos_h']:.4f}, cos_z"
      f" {means['cos_z']:.4f}, centred {means['cos_z_centred']:.4f}, cos_p"
      f" {means['cos_p']:.4f}, KL {means['kl']:.4g} nats; most KL in layer"
      f" {worst['layer']}, {worst['kl']['value']:.4g}"
    )
  return "\n".join(lines)


def _by_sublayer(table, layer, sublayer, seed) -> dict[str, Any]:
  """Means with intervals, and ranges, of one sublayer."""
  keep = (table["layer"] == layer) & (table["sublayer"] == sublayer)
  entry = {"layer": layer, "sublayer": sublayer}
  for name in MEASURES:
    values = table[name][keep].astype(float)
    mean = statistics.finite_mean(values, table["prompt"][keep], seed=seed)
    entry[name] = mean.to_json() | _range(values)
  return entry | {
    "kl_estimate": _mean_and_range(table["kl_estimate"][keep].astype(float))
  }


def _by_step(table) -> list[dict[str, Any]]:
  """Means and ranges of the middle and the last layer at every step."""
  layers = np.unique(table["layer"])
  return [
    {"layer": int(layer), "sublayer": sublayer, "step": int(step)}
    | {
      name: _mean_and_range(
        table[name][
          (table["layer"] == layer)
          & (table["sublayer"] == sublayer)
          & (table["step"] == step)
        ].astype(float)
      )
      for name in BY_STEP
    }
    for layer in dict.fromkeys((layers[len(layers) // 2], layers[-1]))
    for sublayer in SUBLAYERS
    for step in np.unique(table["step"])
  ]


def _mean_and_range(values) -> dict[str, float]:
  good = values[np.isfinite(values)]
  mean = float(good.mean()) if good.size else np.nan
  return {"value": mean} | _range(values)


def _range(values) -> dict[str, float]:
  """Least and greatest of what is finite."""
  good = values[np.isfinite(values)]
  if not good.size:
    return {"min": np.nan, "max": np.nan}
  return {"min": float(good.min()), "max": float(good.max())}


def _head(measured) -> dict[str, Any]:
  """What a random change would meet in the LM head."""
  head = measured.head
  directions = len(head.values)
  return {
    "directions": directions,
    "values": np.asarray(head.values, float).tolist(),
    "largest_residual": float(np.max(head.residual)),
    "gain_random": float(head.frobenius) / float(np.sqrt(measured.embed_dim)),
    "energy_random": directions / measured.embed_dim,
  }


def _correlation(a, b):
  if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
    return None
  return float(np.corrcoef(a, b)[0, 1])


def _rank_correlation(a, b):
  """Spearman's, or None where one side does not vary or is not finite."""
  if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
    return None
  correlation = statistics.rank_correlation(a, b)
  return None if np.isnan(correlation) else correlation
