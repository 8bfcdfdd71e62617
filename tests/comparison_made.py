"""A comparison that no model made: columns, a summary and its page."""

import numpy as np

from jaxprune import report, statistics
from jaxprune.studies.comparison import finding, page, written
from jaxprune.studies.comparison import summary as summary_lib
from jaxprune.studies.comparison.measure import SUBLAYERS, Settings, Tables

LAYERS = 3
SUBJECT = {
  "model": "made",
  "parameters": 134_515_008,
  "layers": LAYERS,
  "method": "wanda",
  "pattern": "2:4",
  "zeros": 0.5,
  "zeros_dense": 0.0,
  "dropped": 0,
  "removed": 0,
  "date": "2026-11-27",
}
WORDS = (
  *(" the", " a", " story", " of", " one", " small", " girl", "\n", ".", ","),
  *(" and", " <script>alert(1)</script>", " é", "\x1b[31m", " \ud800"),
  "\u202e",
)


def read(ids):
  """Token ids as text; ids beyond the words are their numbers."""
  return "".join(WORDS[i] if i < len(WORDS) else f" {i}" for i in ids)


def tables(prompts=6, steps=8, size=1.0, seed=0):
  """Columns of a comparison whose changes have a given size."""
  rng = np.random.default_rng(seed)
  place = {
    "prompt": np.repeat(np.arange(prompts), steps),
    "step": np.tile(np.arange(steps), prompts),
    "seed": np.zeros(prompts * steps, np.int64),
  }
  place["position"] = place["step"] + 4
  ids = rng.integers(0, len(WORDS), (prompts, steps))
  output = place | _measured(rng, prompts * steps, size)
  output["token"] = ids.ravel()
  output["token_dense"] = ids.ravel()
  changed = rng.random(prompts * steps) < 0.3 * size
  other = (ids.ravel() + 1) % len(WORDS)
  output["token_pruned"] = np.where(changed, other, ids.ravel())
  output["flip"] = changed
  inner = {
    name: np.repeat(values, 2 * LAYERS) for name, values in place.items()
  }
  rows = len(inner["step"])
  inner["layer"] = np.tile(np.repeat(np.arange(LAYERS), 2), prompts * steps)
  inner["sublayer"] = np.tile(np.array(SUBLAYERS, object), rows // 2)
  inner |= _measured(rng, rows, size)
  own = np.where(
    np.arange(steps) < rng.integers(0, steps, (prompts, 1)), ids, (ids + 1) % 16
  )
  alone = place | {"token": (own if size else ids).ravel()}
  return Tables(
    settings=Settings(max_new_tokens=steps),
    prompts=tuple((0, 2, 3, 4 + index % 6) for index in range(prompts)),
    output=output,
    inner=inner,
    alone=alone,
    decodings={},
  )


def summary(tables_, tasks=None, **more):
  """The summary of some tables, without any model."""
  made = {
    **more,
    **summary_lib.summarise(tables_),
    **written.summarise(tables_, read),
    **summary_lib.summarise_texts(tables_),
    "subject": SUBJECT,
    "tasks": tasks or {},
  }
  return made | finding.find(made)


def task(dense, pruned, chance=0.0, items=100, metric="accuracy"):
  """A task with so many right answers of each model."""
  scores = [np.arange(items) < right for right in (pruned, dense)]
  kept = statistics.retention(*scores, chance)
  return {
    "metric": metric,
    **statistics.proportion(scores[0]).to_json(),
    "reference": dense / items,
    "retention": vars(kept),
  }


def write(folder, tables_, summary_):
  """The run folder of a summary; returns the text of its page."""
  description = report.describe_run(
    flags={"dense": "A", "pruned": "B", "prompts": "P", "out": "O"},
    command=["python", "-m", "experiments.trajectories", "--dense=A"],
    seeds={"sampling": 0},
  )
  with report.RunFolder(folder, description) as run:
    run.write_summary(summary_)
    page.write_page(run, tables_, summary_)
  return (folder / "report.html").read_text()


def _measured(rng, rows, size):
  """Every field of the output; far from consistent, but finite."""
  kl = size * rng.exponential(0.5, rows)
  fields = dict.fromkeys(
    (*summary_lib.MEASURES, *summary_lib.GAINS, *summary_lib.BY_LAYER)
  )
  columns = {name: size * rng.random(rows) for name in fields}
  columns |= {"kl": kl, "kl_estimate": kl * rng.uniform(0.5, 1.5, rows)}
  columns["kl_bound"] = 2 * kl + 1
  for truth, estimate, valid in summary_lib.THEOREMS.values():
    columns[valid] = rng.random(rows) < 0.5
    columns[estimate] = columns[truth] * rng.uniform(0.5, 1.5, rows)
  columns["top_singular_converged"] = np.ones(rows, bool)
  for name in ("top_p", "top_q", "p_of_pruned", "q_of_dense"):
    columns[name] = rng.random(rows)
  return columns
