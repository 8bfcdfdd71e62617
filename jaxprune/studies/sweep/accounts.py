"""Why does writing fail? Four accounts, each held against what was scored.

A pruned model writes what the dense one writes until a next token flips. Of
the items that the dense model answers right, the share that the pruned one
answers right is predicted from what was measured along the dense text:

  independent  mean of (1 - f)^n: n tokens of which each flips with the one
               chance f of this configuration; a flip is always fatal
  sure         the same with f of flips against a sure choice only (a dense
               margin above 2 nats): other flips are paraphrases
  kl           mean of exp(-sum of KL), from the divergence and not the choice
  unchanged    share of texts without any flip

If writing failed because errors feed on themselves, texts would fail more often
than independent flips say; if most flips are harmless, less often.
`forgiven_count` is how many of the texts that did change are right: what an
account in which every flip is fatal leaves out.

Between choosing and writing stands reading a right text that somebody else
wrote (`references`): no error feeds on another there.
"""

from typing import Any

import numpy as np

from jaxprune import statistics
from jaxprune.evaluation.tasks.table import TASKS
from jaxprune.statistics import Estimate
from jaxprune.studies.sweep.scores import DENSE, Score, item_scores

ACCOUNTS = ("independent", "sure", "kl", "unchanged")


def accounts(grouped: dict[str, list[Score]]) -> dict[str, Any]:
  """All accounts of all configurations and tasks in which a model writes.

  Args:
    grouped: scores by configuration, the dense model's among them.

  Returns:
    `entries`, see `_entry`, one per configuration and task; and `fits`, per
    account: `count` of entries, `error`, the mean of |predicted - measured|
    with its interval, `bias`, the mean of predicted - measured, and `spearman`,
    the rank correlation, {} where there are fewer than three entries; and
    `references`.
  """
  dense = grouped[DENSE][0]
  entries = []
  for name, seeds in grouped.items():
    for task in seeds[0].get("paths", {}):
      # What a data-driven method follows differs by seed; this is the first.
      entry = _entry(dense, seeds[0], task)
      if entry is not None:
        entries.append({"configuration": name, "task": task} | entry)
  fits = {}
  measured = np.array([entry["measured"] for entry in entries])
  for account in ACCOUNTS if len(entries) >= 3 else ():
    predicted = np.array([entry[account] for entry in entries])
    fits[account] = {
      "count": len(entries),
      "error": statistics.mean(np.abs(predicted - measured)).to_json(),
      "bias": statistics.mean(predicted - measured).to_json(),
      "spearman": float(statistics.rank_correlation(predicted, measured)),
    }
  return {"entries": entries, "fits": fits, "references": references(grouped)}


def references(grouped: dict[str, list[Score]]) -> list[dict[str, Any]]:
  """How both models read the published solutions.

  Args:
    grouped: scores by configuration, the dense model's among them.

  Returns:
    Per configuration and task that has solutions: `perplexity` and
    `dense_perplexity` of a token, and per token `flips`, where the likeliest
    one changed, and `misses` and `dense_misses`, where it is not that of the
    solution. Estimates over items, of the first seed.
  """
  entries = []
  for name, seeds in grouped.items():
    for task, kinds in seeds[0].get("paths", {}).items():
      path = kinds.get("reference")
      if path is None:
        continue
      tokens = np.array(path["tokens"])
      entry = {
        column: statistics.ratio(np.array(path[column]), tokens).to_json()
        for column in ("flips", "misses", "dense_misses")
      }
      for column, source in (
        ("perplexity", "nll"),
        ("dense_perplexity", "dense_nll"),
      ):
        entry[column] = statistics.ratio(
          np.array(path[source]), tokens, transform=np.exp
        ).to_json()
      entries.append({"configuration": name, "task": task} | entry)
  return entries


def headline(summary: dict[str, Any]) -> str:
  """Which account comes nearest, and how often a changed text is right."""
  if not summary["fits"]:
    return ""
  best = min(ACCOUNTS, key=lambda name: summary["fits"][name]["error"]["value"])
  error = Estimate.from_json(summary["fits"][best]["error"])
  changed = [entry for entry in summary["entries"] if entry["changed"]]
  right = sum(entry["forgiven_count"] for entry in changed)
  total = sum(entry["changed"] for entry in changed)
  return (
    f"of {total} right answers whose text changed, {right} stayed right; the"
    f" account '{best}' is nearest to the scores, off by {error.format()}"
  )


def _entry(dense: Score, score: Score, task: str) -> dict[str, Any] | None:
  """Measured and predicted on the items that the dense model answers right.

  Returns:
    `items`, their number; `measured`, the share that stayed right, and
    `interval`, its estimate; a prediction per account; `flip_rate` and
    `sure_flip_rate` per token of all items; `tokens`, mean of a text;
    `changed`, texts with a flip, and of those `forgiven_count` that are right
    nevertheless; `length`, the rank correlation of the tokens of a text with
    its being right. None where the dense model answers nothing right.
  """
  path = score["paths"][task].get("written")
  if path is None:
    return None
  metric = TASKS[dense["tasks"][task]["named"]].metric
  items = np.array(path["items"])
  was_X = item_scores([dense], task, metric)[0][items] > 0.5
  if not was_X.any():
    return None
  right_X = item_scores([score], task, metric)[0][items][was_X]
  columns = {
    name: np.array(path[name])
    for name in ("tokens", "flips", "sure_flips", "kl")
  }
  flip, sure = (
    float(columns[name].sum() / columns["tokens"].sum())
    for name in ("flips", "sure_flips")
  )
  own = {name: column[was_X] for name, column in columns.items()}
  tokens_X, changed_X = own["tokens"], own["flips"] > 0
  interval = statistics.proportion(right_X)
  return {
    "items": int(was_X.sum()),
    "measured": float(right_X.mean()),
    "interval": interval.to_json(),
    "independent": float(np.mean((1 - flip) ** tokens_X)),
    "sure": float(np.mean((1 - sure) ** tokens_X)),
    "kl": float(np.mean(np.exp(-own["kl"]))),
    "unchanged": float(np.mean(~changed_X)),
    "flip_rate": flip,
    "sure_flip_rate": sure,
    "tokens": float(tokens_X.mean()),
    "changed": int(changed_X.sum()),
    "forgiven_count": int(right_X[changed_X].sum()),
    "length": _correlation(tokens_X, right_X),
  }


def _correlation(x, y) -> float:
  return statistics.rank_correlation(x, y) if len(x) > 2 else float("nan")
