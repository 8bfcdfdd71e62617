"""Where in the texts is the change: by step, length, position and entropy?

A mean over all positions hides where they differ. Each table sorts the
positions of one decoding by one quantity and gives the mean of every measure in
each bin, with an interval over prompts:

  step         predictions after the prompt
  text_length  steps until one of the two models ended its text, or the last
  position     index in the text, prompt included
  entropy      of the dense distribution, nats

`around_divergence` counts steps from the first at which the chosen tokens
differ: until then both models have read the same text, after it they have not.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune import statistics

Table = Mapping[str, np.ndarray]
QUANTITIES = ("step", "text_length", "position", "entropy")
MEASURES = ("kl", "one_minus_cos_p", "cos_h", "cos_z_centred", "flip")
_BINS = 8
_AROUND = 8  # steps before and after the first divergence


def text_ids(table: Table) -> np.ndarray:
  """One number per text (prompt and seed) for each row."""
  seeds = table.get("seed", np.zeros(len(table["prompt"]), np.int64))
  pairs = np.stack([table["prompt"], seeds], axis=1)
  return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def with_lengths(table: Table) -> dict[str, np.ndarray]:
  """Adds `text_length` to output rows of one decoding.

  Lengths are of whole texts, so call it before rows are left out.
  """
  if "text_length" in table:
    return dict(table)
  text = text_ids(table)
  last = np.zeros(text.max() + 1, np.int64)
  np.maximum.at(last, text, table["step"])
  return dict(table) | {"text_length": last[text] + 1}


def break_down(table: Table, *, seed: int) -> dict[str, list[dict[str, Any]]]:
  """Means per bin of each quantity.

  Args:
    table: columns of the output rows of one decoding.
    seed: of the intervals.

  Returns:
    By quantity, a list of bins: low, high, centre, positions, prompts, and by
    measure the JSON of an `Estimate`.
  """
  table = with_lengths(table)
  return {
    name: _bins(
      table, table[name], statistics.quantile_edges(table[name], _BINS), seed
    )
    for name in QUANTITIES
    if name in table
  }


def around_divergence(table: Table, *, seed: int) -> list[dict[str, Any]]:
  """Means by steps since the tokens of a text first differed.

  Texts that never part, and steps further away, are left out. Step 0 is still
  predicted from the same text; from step 1 on the texts are others.

  Args:
    table: columns of the output rows of one decoding.
    seed: of the intervals.

  Returns:
    Bins as those of `break_down`, one for each step.
  """
  table = with_lengths(table)
  since = steps_since_divergence(table)
  near = np.isfinite(since) & (np.abs(since) <= _AROUND)
  if not near.any():
    return []
  part = {name: values[near] for name, values in table.items()}
  steps = np.unique(since[near])
  return _bins(part, since[near], np.append(steps, steps[-1]), seed)


def steps_since_divergence(table: Table) -> np.ndarray:
  """Steps from the first with other tokens; NaN in texts that never part."""
  text = text_ids(table)
  first = np.full(text.max() + 1, np.inf)
  differs = table["token_dense"] != table["token_pruned"]
  np.minimum.at(first, text[differs], table["step"][differs])
  since = table["step"] - first[text]
  return np.where(np.isfinite(since), since, np.nan)


def _bins(table, by, edges, seed) -> list[dict[str, Any]]:
  kept = np.isfinite(table["kl"])  # inf only where a token is masked
  entries: dict[tuple, dict[str, Any]] = {}
  for measure in MEASURES:
    for bin_mean in statistics.binned_means(
      table[measure][kept].astype(float),
      by[kept],
      table["prompt"][kept],
      edges,
      seed=seed,
    ):
      entry = entries.setdefault(
        (bin_mean.low, bin_mean.high, bin_mean.centre),
        {
          "low": bin_mean.low,
          "high": bin_mean.high,
          "centre": bin_mean.centre,
          "positions": bin_mean.rows,
          "prompts": bin_mean.estimate.count,
        },
      )
      entry[measure] = bin_mean.estimate.to_json()
  return list(entries.values())
