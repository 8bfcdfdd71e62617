"""Means over queries, pairs and texts with intervals, and what they say."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.statistics import Estimate
from jaxprune.studies.retrieval.encoders import DENSE
from jaxprune.studies.retrieval.measure import METRICS, Measured
from jaxprune.studies.retrieval.reading import Texts

STS = "spearman"
MAIN = "ndcg@10"


def summarise(
  measured: list[Measured],
  texts: Texts,
  similarities: dict[str, np.ndarray] | None,
  seed: int,
) -> dict[str, Any]:
  """All numbers of the study.

  Args:
    measured: from `measure.measure`, the dense model first.
    texts: what was embedded.
    similarities: what drops were chosen by; None where nothing was dropped.
    seed: of the resampling of queries, pairs and texts.

  Returns:
    `queries`, `documents` and `pairs`, their numbers; `dense` and `models` (by
    name): `sparsity`, `dropped`, the settings, and for each metric an estimate,
    with its `difference` from the dense model and the part of the dense score
    that is `kept`; for each kind of text `cos_h` and `one_minus_cos_h`;
    and `similarity`, where drops were chosen by it.
  """
  dense = measured[0]
  entries = {
    model.variant.name: summarise_model(model, dense, texts, seed)
    for model in measured
  }
  summary = {
    "collection": texts.collection.name,
    "queries": sum(map(bool, texts.collection.qrels)),
    "documents": len(texts.collection.documents),
    "pairs": 0 if texts.pairs is None else len(texts.pairs.scores),
    "dense": entries.pop(DENSE),
    "models": entries,
  }
  if similarities is not None:
    summary["similarity"] = {
      kind: values.tolist() for kind, values in similarities.items()
    }
  return summary


def summarise_model(
  model: Measured, dense: Measured, texts: Texts, seed: int
) -> dict[str, Any]:
  """Numbers of one model, and its paired differences from the dense one.

  Args:
    model: what it does.
    dense: what the dense model does.
    texts: what was embedded.
    seed: of the resampling.
  """
  entry: dict[str, Any] = {
    "sparsity": model.sparsity,
    "dropped": model.dropped,
    **model.variant.settings,
  }
  for metric in METRICS:
    values = model.scores[metric]
    entry[metric] = _beside(
      statistics.mean(values, seed=seed),
      statistics.mean(values - dense.scores[metric], seed=seed),
    )
  if texts.pairs is not None:
    columns = np.stack(
      [
        np.array(texts.pairs.scores),
        dense.scores["cosine"],
        model.scores["cosine"],
      ],
      axis=1,
    )
    of_dense, of_model = _correlation(1), _correlation(2)
    entry[STS] = _beside(
      statistics.statistic(of_model, columns, vectorized=True, seed=seed),
      statistics.statistic(
        lambda rows: of_model(rows) - of_dense(rows),
        columns,
        vectorized=True,
        seed=seed,
      ),
    )
  for name, deviation in model.deviations.items():
    cosine = statistics.mean(deviation.cos, seed=seed)
    entry[f"cos_h_{name}"] = cosine.to_json() | {
      "min": float(deviation.cos.min())
    }
    entry[f"one_minus_cos_h_{name}"] = statistics.mean(
      deviation.one_minus_cos, seed=seed
    ).to_json()
  return entry


def verdict(summary: dict[str, Any]) -> str:
  """What the numbers say, in plain words."""
  kept, lost = [], []
  for name, entry in summary["models"].items():
    text = f"{name} ({100 * entry[MAIN]['kept']['value']:.0f} %)"
    enough = entry[MAIN]["difference"]["high"] >= 0
    (kept if enough else lost).append(text)
  return (
    f"The dense encoder reaches nDCG@10 {summary['dense'][MAIN]['value']:.3f}"
    f" on {summary['queries']} queries. Not measurably worse (the 95 % interval"
    f" of the paired difference reaches 0): {', '.join(kept) or 'none'}."
    f"\n\nWorse: {', '.join(lost) or 'none'}. In brackets, the part of the"
    " dense nDCG@10 that is left.\n\nOne collection and one model: whether"
    " retrieval survives pruning is a statement about how much is removed"
    " and of what, not about retrieval as such."
  )


def _correlation(column: int) -> Callable[[np.ndarray], np.ndarray]:
  """Spearman's rho of what people say and one column of rows."""
  return lambda rows: statistics.rank_correlation(
    rows[..., 0], rows[..., column]
  )


def _beside(score: Estimate, difference: Estimate) -> dict[str, Any]:
  """A score, its difference from the dense one, and what is kept of that."""
  dense = score.value - difference.value
  kept = [
    1 + change / dense if dense else float("nan")
    for change in (difference.value, difference.low, difference.high)
  ]
  return score.to_json() | {
    "difference": difference.to_json(),
    "kept": Estimate(*kept, difference.count).to_json(),
  }
