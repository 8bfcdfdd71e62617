"""Means, intervals and paired differences of `interventions`.

Intervals resample prompts (or questions), all seeds of one together; the
range over seeds stands beside them. A change is paired: the same model, seed
and prompt with and without the intervention.
"""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.probes.interventions import NULL_IN_GREEDY, RESTORATIONS
from jaxprune.studies.interventions.measure import (
  ANSWERS,
  CONTINUED,
  POSITION_METRICS,
  READ,
  Settings,
)

# The protocols whose numbers are means over positions, and those over texts.
BY_POSITION = {
  READ: POSITION_METRICS,
  CONTINUED: ("kl", "flips"),
  ANSWERS: ("hits",),
}
BY_TEXT = {
  READ: ("common_steps", "same_text"),
  CONTINUED: ("common_steps", "same_text"),
  ANSWERS: ("exact", "exact_sampled"),
}
PAIRED = {
  READ: ("kl", "tv", "flips", "common_steps"),
  CONTINUED: ("kl", "flips", "common_steps"),
  ANSWERS: ("exact", "exact_sampled"),
}


def summarise(
  table: dict[str, np.ndarray], settings: Settings
) -> dict[str, Any]:
  """Every intervention of every model, and what must be null.

  Args:
    table: columns of the records.
    settings: of the run.
  """
  groups: dict[tuple, list[int]] = {}
  depth = table["depth"].astype(float)
  for row, key in enumerate(
    zip(
      table["protocol"],
      table["configuration"],
      table["source"],
      table["intervention"],
      np.where(np.isnan(depth), -1, depth),
    )
  ):
    groups.setdefault(key, []).append(row)
  groups = {key: np.array(rows) for key, rows in groups.items()}

  def plain(key):
    """The rows without an intervention, which no frozen layer is too."""
    rows = groups.get((*key[:3], "pruned", -1))
    return groups[(*key[:3], "freeze_first", 0)] if rows is None else rows

  entries = [
    _entry(table, key, rows, plain(key)) for key, rows in groups.items()
  ]
  names = dict.fromkeys(entry["configuration"] for entry in entries)
  return {
    "analysis_temperature": settings.analysis_temperature,
    "top_tokens": settings.top_tokens,
    "steps": settings.max_new_tokens,
    "prompts": _count(table["prompt"]),
    "questions": _count(table["question"]) if "question" in table else 0,
    "seeds": sorted({int(seed) for seed in table["seed"]}),
    "configurations": {name: _restored(entries, name) for name in names},
    "entries": entries,
    "checks": _checks(entries),
  }


def find(
  summary: dict[str, Any],
  protocol: str,
  configuration: str,
  source: str,
  name: str,
) -> list[dict[str, Any]]:
  """Entries of one intervention, by depth.

  Args:
    summary: from `summarise`.
    protocol: READ, CONTINUED or ANSWERS.
    configuration: METHOD:AMOUNT, or pruned.
    source: `pruned`, or `random` for the control.
    name: of the intervention.
  """
  entries = _of(summary["entries"], protocol, configuration, source, name)
  return sorted(entries, key=lambda entry: entry["depth"] or 0)


def _of(entries, *key):
  names = ("protocol", "configuration", "source", "intervention")
  return [
    entry for entry in entries if tuple(entry[name] for name in names) == key
  ]


def kind_of(name: str) -> str | None:
  """'oracle' or 'usable' for a restoration, None for another intervention."""
  for restoration, kind in RESTORATIONS.items():
    if name == restoration or (
      name.startswith(f"{restoration}_")
      and name[len(restoration) + 1 :][0].isdigit()
    ):
      return kind
  return None


def _restored(entries, configuration) -> dict[str, Any]:
  """Kind of each restoration, and the usable one that lowers the TV most."""
  names = dict.fromkeys(
    entry["intervention"]
    for entry in entries
    if entry["configuration"] == configuration
  )
  kinds = {name: kind_of(name) for name in names if kind_of(name) is not None}
  usable = [
    (entry["tv_change"]["value"], name)
    for name, kind in kinds.items()
    if kind == "usable"
    for entry in _of(entries, READ, configuration, "pruned", name)
  ]
  best = min(usable, key=lambda pair: pair[0])[1] if usable else None
  return {"restorations": kinds, "best_usable": best}


def _entry(table, key, rows, base) -> dict[str, Any]:
  """One intervention: means, and paired changes from the plain pruned run."""
  protocol, configuration, source, name, depth = key
  unit = table["question" if protocol == ANSWERS else "prompt"]
  # Both are put in one order, so that row by row they have the same seed and
  # text.
  rows, base = (
    each[np.lexsort((unit[each], table["seed"][each]))] for each in (rows, base)
  )
  unit, weight, seed = unit[rows], table["count"][rows], table["seed"][rows]
  entry: dict[str, Any] = {
    "protocol": protocol,
    "configuration": configuration,
    "source": source,
    "intervention": name,
    "depth": None if depth < 0 else int(depth),
    "removed": _mean_or_none(table, rows),
  }
  for metrics, by in (
    (BY_POSITION[protocol], weight),
    (BY_TEXT[protocol], np.ones(len(rows))),
  ):
    for metric in metrics:
      value = table[metric][rows].astype(float)
      if not np.isfinite(value).all():
        # h inside the model, for a change of logits; or the KL under truncation
        continue
      by_seed = [
        np.average(value[seed == one_seed], weights=by[seed == one_seed])
        for one_seed in np.unique(seed)
      ]
      entry[metric] = statistics.ratio(value * by, by, unit).to_json() | {
        "seed_low": float(min(by_seed)),
        "seed_high": float(max(by_seed)),
      }
      before = table[metric][base].astype(float)
      if metric in PAIRED[protocol]:
        entry[f"{metric}_change"] = statistics.ratio(
          (value - before) * by, by, unit
        ).to_json()
      if metric == "kl":
        entry["kl_share"] = _share(value * by, before * by, unit)
  if protocol == ANSWERS:
    nll = table["nll"][rows].astype(float)
    if np.isfinite(nll).all():
      entry["nll"] = statistics.ratio(nll, weight, unit).to_json()
  return entry


def _share(value, base, unit) -> dict[str, float] | None:
  """Sum of `value` over that of `base`; None where a text has none of it."""
  groups = np.unique(unit, return_inverse=True)[1]
  value_X, base_X = (np.bincount(groups, each) for each in (value, base))
  if not (base_X > 0).all():
    return None
  return statistics.ratio(value_X, base_X).to_json()


def _checks(entries) -> dict[str, float]:
  """Largest deviations where there must be none."""
  last = max(entry["depth"] or 0 for entry in entries)
  null = {
    "dense": ("dense", None),
    "freeze_first, all layers": ("freeze_first", last),
    "freeze_last, no layer": ("freeze_last", 0),
    "patch_pruned, last layer": ("patch_pruned", last),
    "patch_dense, no layer": ("patch_dense", 0),
    "keep_offset": ("keep_offset", None),
  }
  deviations = {
    f"kl of {label}": max(
      entry["kl"]["value"]
      for entry in entries
      if entry["protocol"] == READ
      and (entry["intervention"], entry["depth"]) == key
    )
    for label, key in null.items()
  }
  for name in ("keep_centred", "centred_by_p", "centred_logits"):
    deviations[f"kl_change of {name}"] = _largest(entries, READ, "kl", name)
  for name in NULL_IN_GREEDY:
    for protocol, metric in ((READ, "flips"), (ANSWERS, "exact")):
      value = _largest(entries, protocol, metric, name)
      if value is not None:
        deviations[f"{metric}_change of {name}"] = value
  return deviations


def _largest(entries, protocol, metric, name):
  values = [
    abs(entry[f"{metric}_change"]["value"])
    for entry in entries
    if entry["protocol"] == protocol
    and (
      entry["intervention"] == name
      or entry["intervention"].startswith(f"{name}_")
    )
  ]
  return max(values) if values else None


def _mean_or_none(table, rows):
  if "removed" not in table:
    return None
  value = float(np.mean(table["removed"][rows]))
  return value if np.isfinite(value) else None


def _count(column) -> int:
  column = column.astype(float)
  return len(np.unique(column[np.isfinite(column)]))
