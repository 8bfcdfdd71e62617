"""Decoding in lockstep: rows, scalars and tables of each lane.

Shared by whatever compares decoders step by step; see `probes.trajectories`
for what a lane is.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.probes import trajectories
from jaxprune.report import page
from jaxprune.studies.comparison import breakdown

TEACHER_FORCED = "teacher_forced"
# Protocols that decode step by step, and the lanes of each.
LANES = {
  "free_running": (trajectories.FREE_RUNNING, trajectories.CONTROL),
  "handoff": (*trajectories.HISTORY_SPLIT, *trajectories.HANDOFF),
  "resynchronised": (
    trajectories.TEACHER_FORCED,
    *(trajectories.resynchronised(every) for every in (2, 4, 8, 16)),
  ),
}
# What the summary says of every lane, in this order.
MEASURES = ("cos_h", "cos_z", "cos_z_centred", "cos_p", "kl", "tv", "flip")


def lanes_of(protocols: tuple[str, ...]) -> tuple[trajectories.Lane, ...]:
  """One lane of each name, in the order of the protocols."""
  return tuple(
    {
      lane.name: lane for name in protocols for lane in LANES.get(name, ())
    }.values()
  )


def lane_rows(
  found: dict[str, trajectories.LaneRecords], common: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
  """Flat rows of decoding in lockstep; steps after an end of text left out.

  Args:
    found: from `drivers.compare_lanes`, leaves [T, B].
    common: for each text of the batch that counts, its fields and `position`,
      the index of its last prompt token.
  """
  for name, records in found.items():
    if name == TEACHER_FORCED:
      continue  # compared in one pass, with its layers
    leaves = {
      f.name: np.asarray(getattr(records.position, f.name))
      for f in dataclasses.fields(records.position)
    }
    # What was chosen, which sampling can make another token than the likeliest.
    for extra in ("token_dense", "token_pruned", "aligned", "alive"):
      leaves[extra] = np.asarray(getattr(records, extra))
    for b, text in enumerate(common):
      for step in np.flatnonzero(leaves["alive"][:, b]):
        yield (
          text
          | {
            "protocol": name,
            "step": int(step),
            "position": text["position"] + int(step),
          }
          | {field: leaf[step, b] for field, leaf in leaves.items()}
        )


def lane_tables(folder) -> dict[str, dict[str, np.ndarray]]:
  """Columns of each lane but the teacher-forced one."""
  rows: dict[str, list] = {}
  for row in report.read_records(folder):
    if row.get("protocol", TEACHER_FORCED) != TEACHER_FORCED:
      rows.setdefault(row["protocol"], []).append(row)
  return {name: report.columns(own) for name, own in rows.items()}


def summarise_lanes(folder, *, seed: int) -> dict[str, Any]:
  """Means of each lane, of all steps and of those before the texts part.

  Intervals resample prompts and keep all texts of a prompt together, whatever
  their seed: seeds of one prompt are draws within it, so the interval holds the
  spread over prompts and over seeds. `by_seed` shows the latter alone.

  Args:
    folder: of the run.
    seed: of the intervals.
  """
  tables = lane_tables(folder)
  lanes = {}
  for name, own in tables.items():
    everything = np.ones(len(own["step"]), bool)
    parted = own["prompt"][~own["aligned"]]
    entry = {
      "positions": len(own["step"]),
      "fraction_aligned": float(own["aligned"].mean()),
      "prompts_parted": len(np.unique(parted)),
      "first_divergence": _first_divergence(own, seed),
    }
    for part, keep in (
      ("all", everything),
      ("aligned", own["aligned"]),
      ("parted", ~own["aligned"]),
    ):
      if keep.any():
        entry[part] = {
          measure: _mean(own[measure][keep], own["prompt"][keep], seed)
          for measure in MEASURES
        }
    seeds = np.unique(own["seed"])
    if len(seeds) > 1:
      entry["by_seed"] = [
        {"seed": int(one)}
        | {
          measure: float(own[measure][own["seed"] == one].mean())
          for measure in MEASURES
        }
        for one in seeds
      ]
    if name != "control" and "control" in tables:
      entry["minus_control"] = _minus_control(own, tables["control"], seed)
    lanes[name] = entry
  return lanes


def break_down_lanes(folder, *, seed: int) -> dict[str, Any]:
  """`breakdown.break_down` of each lane, before and after the texts part."""
  found = {}
  for name, own in lane_tables(folder).items():
    own = breakdown.with_lengths(own)
    for part, keep in (
      ("aligned", own["aligned"]),
      ("parted", ~own["aligned"]),
    ):
      if keep.any():
        found[f"{name}, {part}"] = breakdown.break_down(
          {field: values[keep] for field, values in own.items()}, seed=seed
        )
    around = breakdown.around_divergence(own, seed=seed)
    if around:
      found[name] = {"around_divergence": around}
  return found


def _first_divergence(own, seed) -> dict[str, Any]:
  """Tokens in common; a text that never parts counts all its steps."""
  text = breakdown.text_ids(own)
  same = own["aligned"] & (own["token_dense"] == own["token_pruned"])
  steps = np.bincount(text, same)
  prompt = np.zeros(len(steps), np.int64)
  prompt[text] = own["prompt"]
  never = np.bincount(text, ~same) == 0
  return _mean(steps, prompt, seed) | {
    "texts": len(steps),
    "never_parted": int(never.sum()),
  }


def _minus_control(own, control, seed) -> dict[str, Any]:
  """Difference to the dense model with another seed, at the same steps."""

  def keys(table):
    return list(
      zip(*(table[name].tolist() for name in ("prompt", "seed", "step")))
    )

  place = {key: row for row, key in enumerate(keys(control))}
  pairs = np.array(
    [(row, place[key]) for row, key in enumerate(keys(own)) if key in place],
    np.int64,
  ).reshape(-1, 2)
  if not len(pairs):
    return {}
  ours, theirs = pairs.T
  return {
    measure: _mean(
      own[measure][ours].astype(float) - control[measure][theirs].astype(float),
      own["prompt"][ours],
      seed,
    )
    for measure in MEASURES
  }


def _mean(values, prompts, seed) -> dict[str, float]:
  found = report.mean_interval(values, prompts, seed=seed)
  return {"mean": found.estimate, "low": found.low, "high": found.high}


def sections(lanes: dict[str, Any]) -> list[page.Section]:
  """Tables of `summarise_lanes`."""
  if not lanes:
    return []
  shown = ("cos_h", "cos_z_centred", "cos_p", "kl")
  rows = [
    (f"{name}, {part}", *(breakdown.cell(entry[part][m]) for m in shown))
    for name, entry in lanes.items()
    for part in ("aligned", "parted")
    if part in entry
  ]
  tables = [
    page.Table(
      caption="Means over prompts and steps at the output, with 95 %"
      " intervals over prompts.",
      columns=("lane", "cosine of h", "centred z", "cosine of p", "KL (nats)"),
      rows=rows,
    ),
    page.Table(
      caption="Tokens in common with the dense text; a text that never"
      " parts counts all its steps.",
      columns=("lane", "tokens in common", "texts", "never parted"),
      rows=[
        (
          name,
          breakdown.cell(entry["first_divergence"]),
          entry["first_divergence"]["texts"],
          entry["first_divergence"]["never_parted"],
        )
        for name, entry in lanes.items()
      ],
    ),
  ]
  against = [
    (name, *(breakdown.cell(entry["minus_control"][m]) for m in shown))
    for name, entry in lanes.items()
    if entry.get("minus_control")
  ]
  if against:
    tables.append(
      page.Table(
        caption="Less the control, the dense model with another seed, at the"
        " same prompt, seed and step.",
        columns=(
          "lane",
          "cosine of h",
          "centred z",
          "cosine of p",
          "KL (nats)",
        ),
        rows=against,
      )
    )
  by_seed = [
    (f"{name}, seed {one['seed']}", *(one[m] for m in shown))
    for name, entry in lanes.items()
    for one in entry.get("by_seed", ())
  ]
  if by_seed:
    tables.append(
      page.Table(
        caption="Means of each seed, all steps.",
        columns=(
          "lane",
          "cosine of h",
          "centred z",
          "cosine of p",
          "KL (nats)",
        ),
        rows=by_seed,
      )
    )
  return [
    page.Section(
      title="Decoding step by step",
      paragraphs=(
        "Aligned: both models have read the same tokens so far. Once the"
        " texts have parted, the numbers compare different texts; lane"
        " control, the dense model with another seed, shows how much of that"
        " is no damage at all (greedy, it equals the dense lane).",
      ),
      tables=tables,
    )
  ]
