"""Where in the texts is the damage: by step, length, position and entropy.

A mean over all positions hides where they differ. Each table sorts the
positions of one lane by one quantity and gives the mean of every measure in
each bin, with an interval over prompts:

  step         predictions after the prompt
  text_length  steps until one of the two models ended its text, or the last
  position     index in the text, prompt included
  entropy      of the dense distribution, nats

`around_divergence` counts steps from the first at which the chosen tokens
differ: until then both models have read the same text, after it they have not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import report
from jaxprune.report import figures, page

QUANTITIES = ("step", "text_length", "position", "entropy")
MEASURES = ("kl", "one_minus_cos_p", "cos_h", "cos_z_centred", "flip")
LABELS = {
  "text_length": "length of the text (steps)",
  "position": "index in the text",
  "entropy": "entropy of p (nats)",
  "step": "decoding step",
}
_BINS = 8
_AROUND = 8  # steps before and after the first divergence


def text_ids(table: Mapping[str, np.ndarray]) -> np.ndarray:
  """One number per text (prompt and seed) for each row."""
  seeds = table.get("seed", np.zeros(len(table["prompt"]), np.int64))
  pairs = np.stack([table["prompt"], seeds], axis=1)
  return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def with_lengths(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds `text_length` and `one_minus_cos_p` to output rows of one lane.

  Lengths are of whole texts, so call it before rows are left out.
  """
  if "text_length" in table:
    return dict(table)
  text = text_ids(table)
  last = np.zeros(text.max() + 1, np.int64)
  np.maximum.at(last, text, table["step"])
  return dict(table) | {
    "text_length": last[text] + 1,
    "one_minus_cos_p": 1 - table["cos_p"],
  }


def break_down(
  table: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, list[dict[str, Any]]]:
  """Means per bin of each quantity.

  Args:
    table: columns of the output rows of one lane, from `report.columns`.
    seed: of the intervals.

  Returns:
    By quantity, a list of bins: low, high, centre, positions, prompts, and by
    measure mean, low and high.
  """
  table = with_lengths(table)
  return {
    name: _bins(
      table, table[name], report.quantile_edges(table[name], _BINS), seed
    )
    for name in QUANTITIES
    if name in table
  }


def around_divergence(
  table: Mapping[str, np.ndarray], *, seed: int
) -> list[dict[str, Any]]:
  """Means by steps since the tokens of a text first differed.

  Texts that never part, and steps further away, are left out. Step 0 is still
  predicted from the same text; from step 1 on the texts are others.
  """
  table = with_lengths(table)
  since = steps_since_divergence(table)
  near = np.isfinite(since) & (np.abs(since) <= _AROUND)
  if not near.any():
    return []
  part = {name: values[near] for name, values in table.items()}
  steps = np.unique(since[near])
  return _bins(part, since[near], np.append(steps, steps[-1]), seed)


def steps_since_divergence(table: Mapping[str, np.ndarray]) -> np.ndarray:
  """Steps from the first with other tokens; NaN in texts that never part."""
  text = text_ids(table)
  first = np.full(text.max() + 1, np.inf)
  differs = table["token_dense"] != table["token_pruned"]
  np.minimum.at(first, text[differs], table["step"][differs])
  since = table["step"] - first[text]
  return np.where(np.isfinite(since), since, np.nan)


def _bins(table, by, edges, seed) -> list[dict[str, Any]]:
  kept = np.isfinite(table["kl"])  # inf only where a token is masked
  found: dict[tuple, dict[str, Any]] = {}
  for measure in MEASURES:
    for one in report.binned_means(
      table[measure][kept].astype(float),
      by[kept],
      table["prompt"][kept],
      edges,
      seed=seed,
    ):
      entry = found.setdefault(
        (one.low, one.high, one.centre),
        {
          "low": one.low,
          "high": one.high,
          "centre": one.centre,
          "positions": one.interval.rows,
          "prompts": one.interval.prompts,
        },
      )
      entry[measure] = {
        "mean": one.interval.estimate,
        "low": one.interval.low,
        "high": one.interval.high,
      }
  return list(found.values())


def series_of(bins: Sequence[Mapping[str, Any]], measure: str):
  """Bins as a line with a band, the interval of each mean."""

  def column(part):
    values = (entry[measure][part] for entry in bins)
    return np.array([np.nan if v is None else v for v in values], float)

  return figures.Series(
    x=np.array([entry["centre"] for entry in bins]),
    y=column("mean"),
    low=column("low"),
    high=column("high"),
  )


def sections(
  run: report.RunFolder, found: Mapping[str, Mapping[str, Any]]
) -> list[page.Section]:
  """Figures and tables of the breakdowns by lane; figures are also written.

  Args:
    run: where figures go.
    found: by lane, what `break_down` gave, and perhaps `around_divergence`.
  """
  drawn, tables = [], []
  for name in QUANTITIES:
    bins = {
      lane: entry[name]
      for lane, entry in found.items()
      if len(entry.get(name, ())) > 1 and _any_damage(entry[name])
    }
    if bins:
      drawn.append(_figure(run, name, bins, LABELS[name]))
      tables.append(_table(LABELS[name], bins))
  around = {
    lane: entry["around_divergence"]
    for lane, entry in found.items()
    if len(entry.get("around_divergence", ())) > 1
  }
  if around:
    drawn.append(
      _figure(
        run, "divergence", around, "steps since the tokens first differed"
      )
    )
  if not drawn:
    return []
  return [
    page.Section(
      title="Where in the texts",
      paragraphs=(
        "Means over positions with 95 % intervals over prompts. Bins hold"
        " about as many positions each.",
      ),
      tables=tables,
      figures=drawn,
    )
  ]


def _any_damage(bins) -> bool:
  """False for lanes that equal the dense one: a logarithm has no 0."""
  return any(entry["kl"]["mean"] > 0 for entry in bins)


def _figure(run, name, bins, label) -> page.Figure:
  png = figures.lines(
    {lane: series_of(entries, "kl") for lane, entries in bins.items()},
    x=label,
    y="kl",
    log_y=True,
  )
  run.write_figure(f"kl_by_{name}", png)
  return page.Figure(
    png=png,
    caption=f"Mean KL(p‖q) by {label}; band: 95 % interval over prompts.",
    alt=f"Lines of mean KL by {label}, one per lane.",
  )


def _table(label, bins) -> page.Table:
  rows = []
  for lane, entries in bins.items():
    for entry in entries:
      rows.append(
        (
          f"{lane}, {page.format_number(entry['low'])} to"
          f" {page.format_number(entry['high'])}",
          entry["positions"],
          *(cell(entry[m]) for m in MEASURES),
        )
      )
  return page.Table(
    caption=f"By {label}.",
    columns=("lane and bin", "positions", *map(report.axis_label, MEASURES)),
    rows=rows,
  )


def cell(entry: Mapping[str, float]) -> report.Interval:
  """A stored mean with its interval, as a cell of a table."""
  low, high = (
    np.nan if entry[end] is None else entry[end] for end in ("low", "high")
  )
  return report.Interval(
    estimate=entry["mean"],
    low=low,
    high=high,
    level=0.95,
    prompts=0,
    rows=0,
    resamples=0,
    seed=0,
    method="bca",
  )
