"""Several dense models, pruned alike: by hand and as a user asks."""

import math

import pytest
import scripts

from jaxprune import report
from jaxprune.studies.sweep import compare_models
from tests.guidance_sweeps_made import write_sweep


def score(name, right, nats, seed=0):
  return {
    "configuration": name,
    "seed": seed,
    "tasks": {
      "choice": {"columns": {"acc": list(right)}, "weights": None},
      "text": {"columns": {"nll": [nats, 3 * nats]}, "weights": [1.0, 3.0]},
    },
  }


RUNS = [
  {
    "dense": [score("dense", [1, 1, 1, 1], 1.0)],
    "a:1": [
      score("a:1", [1, 1, 1, 1], 1.0),
      score("a:1", [1, 1, 0, 0], 3.0, 1),
    ],
    "b:1": [score("b:1", [1, 1, 0, 0], 2.0)],
    "only here": [score("only here", [1, 1, 1, 1], 1.0)],
  },
  {
    "dense": [score("dense", [1, 1, 1, 0], 1.0)],
    "a:1": [score("a:1", [1, 1, 1, 0], 1.0)],
    "b:1": [score("b:1", [0, 0, 0, 1], 1.5)],
  },
]


def test_rows_by_hand():
  rows = {
    (r["configuration"], r["metric"]): r
    for r in compare_models.compare(RUNS, 0.75)
  }
  assert {name for name, _ in rows} == {"dense", "a:1", "b:1"}
  row = rows["a:1", "acc"]  # 3/4 of 1, and 3/4 of 3/4
  assert row["scores"] == [0.75, 0.75] and row["kept_each"] == [0.75, 1.0]
  assert (row["kept"], row["survives"], row["models"]) == (0.875, 2, 2)
  row = rows["b:1", "acc"]
  assert row["kept_each"] == pytest.approx([0.5, 1 / 3])
  assert (row["value"], row["low"], row["high"]) == (0.375, 0.25, 0.5)
  assert row["survives"] == 0
  row = rows["a:1", "perplexity"]  # two seeds: 2 nats per token
  assert row["scores"] == pytest.approx([math.exp(2), math.e])
  assert row["kept_each"] == pytest.approx([1 / math.e, 1])
  assert row["survives"] == 1


def test_a_dense_model_that_knows_nothing_keeps_no_share():
  runs = [
    {"dense": [score("dense", [0], 1.0)], "a:1": [score("a:1", [0], 1.0)]}
  ]
  (row,) = (
    r
    for r in compare_models.compare(2 * runs, 0.9)
    if (r["configuration"], r["metric"]) == ("a:1", "acc")
  )
  assert math.isnan(row["kept"]) and row["survives"] == 0
  assert not compare_models.orders(compare_models.compare(2 * runs, 0.9))


def test_order_by_hand():
  kept = {"a": [0.9, 0.8], "b": [0.5, 0.3], "c": [0.7, 0.95], "dense": [1, 1]}
  rows = [
    {
      "configuration": name,
      "task": "t",
      "metric": "acc",
      "kept_each": each,
      "survives": sum(k >= 0.9 for k in each),
      "models": 2,
    }
    for name, each in kept.items()
  ]
  (entry,) = compare_models.orders(rows)
  # Ranks 2 0 1 and 1 0 2: 1 - 6 * 2 / (3 * 8).
  assert entry["low"] == entry["high"] == pytest.approx(0.5)
  assert (entry["pairs"], entry["configurations"], entry["agree"]) == (1, 3, 1)


def test_the_script(tmp_path):
  one, other = (
    write_sweep(tmp_path / name, dense=name, shift=shift)
    for name, shift in (("one", 0.0), ("other", 0.1))
  )
  done = scripts.call(
    "compare_models", f"--runs={one},{other}", f"--out={tmp_path}/out"
  )
  assert done.returncode == 0, done.stderr
  rows = report.read_records(tmp_path / "out")
  assert len(rows) == 2 * (1 + 18) * 3  # a length is no score
  # Damage 0.22 and 0.32, seeds a little more: all right, and half.
  assert [
    (r["run"], r["value"], r["kept"])
    for r in rows
    if (r["configuration"], r["metric"]) == ("sparsegpt:0.5", "acc")
  ] == [(0, 1, 1), (1, 0.5, 0.5)]
  assert "1 of 2" in (tmp_path / "out" / "report.html").read_text()
  assert "Spearman" in done.stdout


def test_refusals(tmp_path):
  one = write_sweep(tmp_path / "one")
  for runs, said in (
    (f"{one}", "give two or more"),
    (f"{one},{one}", "same dense model"),
    (f"{one},{tmp_path}", "no configurations/job.json"),
  ):
    done = scripts.call(
      "compare_models", f"--runs={runs}", f"--out={tmp_path}/out"
    )
    assert done.returncode == 1 and said in done.stderr, done.stderr
  assert not (tmp_path / "out").exists()
