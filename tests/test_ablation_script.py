"""The scripts `ablation` and `compare_methods` on tables of a hand's size."""

import json

import hf_models
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints, report
from jaxprune.models import make_gates
from jaxprune.probes.decoder import ablation
from jaxprune.studies.sweep import compare_methods


def cell(name, seed, right, nll=(1.0, 3.0)):
  return {
    "cell": name,
    "seed": seed,
    "removed": 0.5,
    "tasks": {
      "choice": {"columns": {"acc": list(right)}, "weights": None},
      "text": {"columns": {"nll": list(nll)}, "weights": [10.0, 30.0]},
    },
  }


CELLS = {
  "dense": [cell("dense", 0, [1, 1, 1, 1])],
  "old:2": [cell("old:2", 0, [1, 1, 1, 1]), cell("old:2", 1, [1, 1, 0, 1])],
  "new:2": [
    cell("new:2", 0, [0, 1, 1, 1]),
    cell("new:2", 1, [0, 1, 1, 1], (2.0, 4.0)),
  ],
  "new:4": [cell("new:4", 0, [0, 0, 0, 1])],
  "old:2:4": [cell("old:2:4", 0, [1, 1, 1, 1])],
}


def test_differences_by_hand():
  rows = {
    (r["configuration"], r["metric"]): r
    for r in compare_methods.compare(CELLS, "old", 0)
  }
  assert set(rows) == {("new:2", "acc"), ("new:2", "nll")}
  acc = rows["new:2", "acc"]
  # Items: 0 - 1, 1 - 1, 1 - 0.5, 1 - 1. Seeds: -1/4, and (0 + 0 + 1 - 1) / 4.
  assert acc["value"] == -0.125 and acc["count"] == 4
  assert (acc["seed_low"], acc["seed_high"]) == (-0.25, 0.0)
  assert acc["low"] < -0.125 < acc["high"]
  assert (acc["score"], acc["score_against"]) == (0.75, 0.875)
  # nll per token: (0.5 + 0.5) / 40.
  assert rows["new:2", "nll"]["value"] == pytest.approx(1 / 40)
  itself = CELLS | {"new:2": CELLS["old:2"]}
  same = next(compare_methods.compare(itself, "old", 0))
  assert same["value"] == same["low"] == same["high"] == 0


def test_survival_by_hand():
  found = {e["method"]: e for e in compare_methods.survivals(CELLS, 0.75)}
  assert (found["new"]["survives"], found["new"]["largest"]) == (2, 4)
  assert found["old"]["survives"] == 2  # 2:4 is no number
  found = {e["method"]: e for e in compare_methods.survivals(CELLS, 0.9)}
  assert found["new"]["survives"] is None


def test_paired_on_a_folder(tmp_path):
  folder = tmp_path / "run"
  (folder / "cells").mkdir(parents=True)
  (folder / "run.json").write_text(
    json.dumps(
      {"checkpoint_hash": "x", "calibration": None, "command": "before"}
    )
  )
  (folder / "cells/job.json").write_text('{"checkpoint_hash": "x"}')
  for name, seeds in CELLS.items():
    for one in seeds:
      path = folder / f"cells/{name.replace(':', '_')}-{one['seed']}.json"
      path.write_text(json.dumps(one))
  done = scripts.call(
    "compare_methods",
    f"--run={folder}",
    "--baseline=old",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 0, done.stderr
  rows = report.read_records(tmp_path / "out")
  assert [row["value"] for row in rows] == [-0.125, pytest.approx(1 / 40)]
  assert "new:2" in (tmp_path / "out/report.html").read_text()
  done = scripts.call(
    "compare_methods", f"--run={folder}", "--baseline=no", "--out=x"
  )
  assert done.returncode == 1 and "--baseline=no" in done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama of 2 layers, and two files of ids."""
  folder = tmp_path_factory.mktemp("model")
  hf_models.save_llama(folder / "dense")
  draw = np.random.default_rng(0)
  for name in ("seen", "unseen"):
    np.savez(
      folder / f"{name}.npz",
      calibration=draw.integers(3, 96, (3, 12)).astype(np.int32),
    )
  return folder


def test_ablation_of_a_tiny_model(tiny, tmp_path):
  flags = [
    f"--model={tiny}/dense",
    f"--calibration={tiny}/seen.npz",
    "--max_count=2",
    "--draws=2",
    "--targets=mlp,joint",
    f"--out={tmp_path}/out",
  ]
  done = scripts.call("ablation", *flags)
  assert done.returncode == 1 and "give --held_out" in done.stderr
  done = scripts.call("ablation", *flags, f"--held_out={tiny}/unseen.npz")
  assert done.returncode == 0, done.stderr
  rows = report.read_records(tmp_path / "out")
  config, params = checkpoints.load_params(tiny / "dense", np.float32)
  seen, unseen = (
    np.load(tiny / f"{name}.npz")["calibration"] for name in ("seen", "unseen")
  )
  kl = ablation.ablate_sublayers(config, params, seen)["block"]["kl"]
  found = {
    (r["layer"], r["document"]): r["kl"]
    for r in rows
    if r["protocol"] == "single" and r["sublayer"] == "block"
  }
  for (layer, document), value in found.items():
    np.testing.assert_allclose(value, kl[layer, document], rtol=1e-4)
  assert len(found) == 6
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  # What stands for a set is the loss of that set, on the unseen tokens.
  sets = [r for r in rows if r["protocol"] == "selection"]
  assert len(sets) == 2 * (3 + 2) * 2 * 3
  for target, by in summary["orders"].items():
    for name, orders in by.items():
      for draw, order in enumerate(orders):
        gone = {
          kind: [i for k, i in order if k == kind]
          for kind in ("attention", "mlp")
        }
        pair = [make_gates(config), make_gates(config, **gone)]
        gates = ablation.Gates(
          **{
            kind: np.stack([getattr(one, kind) for one in pair])
            for kind in ("attention", "mlp")
          }
        )
        truth = ablation.ablate_gates(config, params, unseen, gates)
        written = [
          r["kl"]
          for r in sets
          if (r["target"], r["selection"], r["draw"], r["drop_count"])
          == (target, name, draw, 2)
        ]
        np.testing.assert_allclose(written, truth["kl"][1], rtol=1e-4)
  # All MLPs of two layers are gone, whatever chose them.
  last = [
    e["kl"][1]["value"] for e in summary["curves"] if e["target"] == "mlp"
  ]
  np.testing.assert_allclose(last, last[0], rtol=1e-4)
  assert "rank correlation" in done.stdout
