"""How much does the output lose, and which score chooses best?

Also whether the cheaper scores rank the sublayers alike.

Intervals resample sequences.
"""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.studies.ablation.measure import (
  ESTIMATES,
  SELECTIONS,
  Measured,
  Settings,
)

# The sets of sublayers within which rankings are compared.
_RANKED = {
  "attention": ("attention",),
  "mlp": ("mlp",),
  "joint": ("attention", "mlp"),
  "block": ("block",),
}


def summarise(measured: Measured, settings: Settings) -> dict[str, Any]:
  """Means with intervals, agreement of rankings, orders and curves.

  Args:
    measured: everything that was measured.
    settings: of the run.
  """
  seed, single = settings.seed, measured.single
  mean = lambda values: statistics.mean(values, seed=seed).to_json()
  curves = [
    {
      "target": curve.target,
      "selection": curve.selection,
      "kl": [mean(kl_X) for kl_X in curve.kl.mean(axis=0)],
      # Paired by sequence: the loss of this choice less that of the choice by
      # similarity.
      "change": [
        mean(difference_X)
        for difference_X in (
          curve.kl.mean(axis=0) - _reference(measured.curves, curve)
        )
      ],
    }
    for curve in measured.curves
  ]
  return {
    "analysis_temperature": settings.analysis_temperature,
    "sequences": next(iter(single.divergences.values()))["kl"].shape[1],
    "single": [
      {
        "sublayer": kind,
        "layer": layer,
        "similarity": float(single.similarities[kind][layer]),
      }
      | {name: mean(leaf[layer]) for name, leaf in measures.items()}
      for kind, measures in single.divergences.items()
      for layer in single.layers[kind]
    ],
    "rank_correlation": {
      name: _agreement(single, kinds, seed)
      for name, kinds in _RANKED.items()
      if any(single.layers[kind] for kind in kinds)
    },
    "orders": {
      target: {
        selection: [[list(pair) for pair in order.order] for order in draws]
        for selection, draws in by_selection.items()
      }
      for target, by_selection in measured.orders.items()
    },
    "curves": curves,
    "against_similarity": [
      _against_similarity(curve)
      for curve in curves
      if curve["selection"] in ("kl", "kl_iterative")
    ],
  }


def _reference(curves, curve):
  """What the choice by similarity loses, [counts, sequences]."""
  return next(
    other.kl.mean(axis=0)
    for other in curves
    if (other.target, other.selection) == (curve.target, SELECTIONS[0])
  )


def _against_similarity(curve):
  """At how many counts a choice surely loses less than similarity, and more."""
  return {
    "target": curve["target"],
    "selection": curve["selection"],
    "counts": len(curve["change"]),
    "better": sum(entry["high"] < 0 for entry in curve["change"]),
    "worse": sum(entry["low"] > 0 for entry in curve["change"]),
  }


def _agreement(single, kinds, seed):
  """Rank correlation of each cheaper score with the exact loss.

  Sequences are resampled; the similarities, of which only means are kept, stay.
  """

  def of_all(values):
    return np.concatenate([values[k][list(single.layers[k])] for k in kinds])

  def measures(name):
    return of_all({k: single.divergences[k][name] for k in kinds}).T

  kl_XL, cosine_L = measures("kl"), of_all(single.similarities)
  by_score = {
    "similarity": statistics.statistic(
      lambda rows: statistics.rank_correlation(rows.mean(axis=-2), -cosine_L),
      kl_XL,
      vectorized=True,
      seed=seed,
    )
  }
  for name in ESTIMATES:
    other_XL = measures(name)
    by_score[name] = statistics.statistic(
      lambda rows: statistics.rank_correlation(
        *np.split(rows.mean(axis=-2), 2, axis=-1)
      ),
      np.concatenate([kl_XL, other_XL], axis=1),
      vectorized=True,
      seed=seed,
    )
  return {name: estimate.to_json() for name, estimate in by_score.items()}
