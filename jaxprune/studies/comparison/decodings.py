"""How far do the texts of each decoding drift from the dense text?

Numbers of the protocols that decode step by step; `probes.trajectories` says
what a decoding is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.studies.comparison import breakdown

Table = Mapping[str, np.ndarray]
CONTROL = "control"
# What the summary says of every decoding, in this order.
MEASURES = ("cos_h", "cos_z", "cos_z_centred", "cos_p", "kl", "tv", "flip")


def summarise(tables: Mapping[str, Table], *, seed: int) -> dict[str, Any]:
  """Means of each decoding, of all steps and of those before the texts part.

  Intervals resample prompts and keep all texts of a prompt together, whatever
  their seed: seeds of one prompt are draws within it, so the interval holds the
  spread over prompts and over seeds. `by_seed` shows the latter alone.

  Args:
    tables: columns of each decoding, by its name.
    seed: of the intervals.

  Returns:
    By name: positions, fraction_aligned, prompts_parted, first_divergence, and
    the means of all, aligned and parted steps, by seed, and less the control.
  """
  result = {}
  for name, table in tables.items():
    aligned = table["aligned"]
    entry = {
      "positions": len(table["step"]),
      "fraction_aligned": float(aligned.mean()),
      "prompts_parted": len(np.unique(table["prompt"][~aligned])),
      "first_divergence": _first_divergence(table, seed),
    }
    for part, keep in (
      ("all", np.ones(len(aligned), bool)),
      ("aligned", aligned),
      ("parted", ~aligned),
    ):
      if keep.any():
        entry[part] = {
          measure: statistics.mean(
            table[measure][keep], table["prompt"][keep], seed=seed
          ).to_json()
          for measure in MEASURES
        }
    seeds = np.unique(table["seed"])
    if len(seeds) > 1:
      entry["by_seed"] = [
        {"seed": int(number)}
        | {
          measure: float(table[measure][table["seed"] == number].mean())
          for measure in MEASURES
        }
        for number in seeds
      ]
    if name != CONTROL and CONTROL in tables:
      entry["minus_control"] = _minus_control(table, tables[CONTROL], seed)
    result[name] = entry
  return result


def break_down(tables: Mapping[str, Table], *, seed: int) -> dict[str, Any]:
  """`breakdown.break_down` of each decoding, before and after the texts part.

  Args:
    tables: columns of each decoding, by its name.
    seed: of the intervals.

  Returns:
    By `NAME, aligned` and `NAME, parted` the bins of each quantity; by NAME the
    bins around the first divergence, where any text parts.
  """
  result = {}
  for name, table in tables.items():
    table = breakdown.with_lengths(table)
    for part, keep in (
      ("aligned", table["aligned"]),
      ("parted", ~table["aligned"]),
    ):
      if keep.any():
        result[f"{name}, {part}"] = breakdown.break_down(
          {field: values[keep] for field, values in table.items()}, seed=seed
        )
    around = breakdown.around_divergence(table, seed=seed)
    if around:
      result[name] = {"around_divergence": around}
  return result


def _first_divergence(table, seed) -> dict[str, Any]:
  """Tokens in common; a text that never parts counts all its steps."""
  text = breakdown.text_ids(table)
  same = table["aligned"] & (table["token_dense"] == table["token_pruned"])
  steps = np.bincount(text, same)
  prompt = np.zeros(len(steps), np.int64)
  prompt[text] = table["prompt"]
  never = np.bincount(text, ~same) == 0
  return statistics.mean(steps, prompt, seed=seed).to_json() | {
    "texts": len(steps),
    "never_parted": int(never.sum()),
  }


def _minus_control(table, control, seed) -> dict[str, Any]:
  """Difference to the dense model with another seed, at the same steps."""

  def keys(rows):
    names = ("prompt", "seed", "step")
    return list(zip(*(rows[name].tolist() for name in names)))

  place = {key: row for row, key in enumerate(keys(control))}
  pairs = np.array(
    [(row, place[key]) for row, key in enumerate(keys(table)) if key in place],
    np.int64,
  ).reshape(-1, 2)
  if not len(pairs):
    return {}
  rows, control_rows = pairs.T
  return {
    measure: statistics.mean(
      table[measure][rows].astype(float)
      - control[measure][control_rows].astype(float),
      table["prompt"][rows],
      seed=seed,
    ).to_json()
    for measure in MEASURES
  }
