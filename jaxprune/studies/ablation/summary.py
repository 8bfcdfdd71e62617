"""Numbers of `ablation`: damages, agreement of rankings, orders of removal."""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.studies.ablation.measure import (
  ESTIMATES,
  SELECTIONS,
  Curve,
  Settings,
  Single,
)


def summarise(
  single: Single,
  orders: dict[str, dict[str, list[Drops]]],
  curves: list[Curve],
  settings: Settings,
) -> dict[str, Any]:
  """Estimates over sequences, agreement of rankings, and orders of removal.

  Args:
    single: what the output loses without each sublayer.
    orders: drops by target and selection, one for each draw.
    curves: damage of the first drops of each target and selection.
    settings: of the measurement.

  Returns:
    What summary.json holds; `page.write_page` shows it.
  """
  seed = settings.seed
  return {
    "analysis_temperature": settings.analysis_temperature,
    "sequences": next(iter(single.damages.values()))["kl"].shape[1],
    "single": [
      {
        "sublayer": kind,
        "layer": i,
        "similarity": float(single.similarities[kind][i]),
      }
      | {name: _mean(leaf[i], seed) for name, leaf in measures.items()}
      for kind, measures in single.damages.items()
      for i in range(len(measures["kl"]))
    ],
    "rank_correlation": {
      kind: _agreement(single, kinds, seed)
      for kind, kinds in (
        ("attention", ("attention",)),
        ("mlp", ("mlp",)),
        ("joint", ("attention", "mlp")),
        ("block", ("block",)),
      )
    },
    "orders": {
      target: {
        name: [[list(pair) for pair in one.order] for one in found]
        for name, found in by.items()
      }
      for target, by in orders.items()
    },
    "curves": [
      {
        "target": curve.target,
        "selection": curve.selection,
        "kl": [_mean(part, seed) for part in curve.kl.mean(axis=0)],
        # Paired: the same sequences, less what similarity's choice does.
        "change": [
          _mean(part, seed)
          for part in (curve.kl.mean(axis=0) - _reference(curves, curve))
        ],
      }
      for curve in curves
    ],
  }


def _reference(curves, curve):
  return next(
    one.kl.mean(axis=0)
    for one in curves
    if (one.target, one.selection) == (curve.target, SELECTIONS[0])
  )


def _agreement(single, kinds, seed):
  """Rank correlation of each cheaper score with the damage.

  Sequences are resampled. Of the similarities only means over the sequences
  are known, so those are the same in every resample.
  """
  kl_SL = np.concatenate([single.damages[k]["kl"] for k in kinds]).T
  size = kl_SL.shape[1]
  cosine_L = np.concatenate([single.similarities[k] for k in kinds])
  agreement = {
    "similarity": statistics.statistic(
      lambda rows: statistics.rank_correlation(rows.mean(axis=0), -cosine_L),
      kl_SL,
      seed=seed,
    )
  }
  for name in ESTIMATES:
    other_SL = np.concatenate([single.damages[k][name] for k in kinds]).T
    agreement[name] = statistics.statistic(
      lambda rows: statistics.rank_correlation(
        *rows.mean(axis=0).reshape(2, size)
      ),
      np.concatenate([kl_SL, other_SL], axis=1),
      seed=seed,
    )
  return {name: estimate.to_json() for name, estimate in agreement.items()}


def _mean(values, seed):
  return statistics.mean(values, seed=seed).to_json()
