"""A sweep: names of configurations, their table, and a run that goes on."""

import json

import numpy as np
import pytest
import scripts

from jaxprune import files
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies.sweep import configurations, summary
from jaxprune.studies.sweep import scores as scores_lib


def read(text):
  return configurations.read_configuration(text, group_size=64, target="mlp")


def test_names():
  assert read("wanda:0.5").change.pattern == Unstructured(sparsity=0.5)
  assert read("sparsegpt:0.5").change.pattern.group == "matrix"
  assert read("wanda:1:4").change.pattern == NofM(keep=1, of=4)
  assert read("wanda:1:4").file == "wanda_1of4"
  assert read("awq:3").change.pattern == Levels(bits=3, group_size=64)
  drop = read("drop_random:2").change
  assert (drop.drop_count, drop.drop_target) == (2, "mlp")
  assert (drop.row.score, drop.row.selection) == ("similarity", "random")
  assert read("drop_attention:2").change.drop_target == "attention"
  kl = read("kl_iterative:2").change
  assert (kl.drop_target, kl.row.score, kl.row.selection) == (
    "mlp",
    "kl",
    "iterative",
  )
  joint = read("kl_joint:2").change
  assert (joint.drop_target, joint.row.score, joint.row.selection) == (
    "joint",
    "kl",
    "ranked",
  )
  spread = read("wanda@kl:0.5")
  assert spread.change.pattern == Unstructured(sparsity=0.5)
  assert (spread.base, spread.change.allocation, spread.name, spread.file) == (
    "wanda",
    "kl",
    "wanda@kl:0.5",
    "wanda@kl_0.5",
  )
  for wrong in (
    "wanda",
    "wanda:1.5",
    "wanda:4:4",
    "neuron:2:4",
    "awq:x",
    "prune:0.5",
    "drop_mlp:0.5",
    "wanda@kl:2:4",
    "wanda@x:0.5",
    "rtn@kl:4",
    "wanda@:0.5",
  ):
    with pytest.raises(ValueError, match=f"--configurations={wrong}"):
      read(wrong)


def score(configuration, seed, right, nll):
  return {
    "configuration": configuration,
    "seed": seed,
    "removed": 0.5,
    "tasks": {
      "choice": {"columns": {"acc": right}, "weights": None},
      "text": {"columns": {"nll": nll}, "weights": [10.0, 30.0]},
    },
  }


def test_table_by_hand():
  scores = [
    score("dense", 0, [1, 1, 1, 0], [10.0, 30.0]),
    score("wanda:0.5", 0, [1, 1, 0, 0], [20.0, 60.0]),
    score("wanda:0.5", 1, [1, 0, 0, 0], [20.0, 100.0]),
  ]
  table = {
    (entry["configuration"], entry["metric"]): entry
    for entry in summary.summarise(scores)["table"]
  }
  choice = table["wanda:0.5", "acc"]
  assert (choice["value"], choice["seed_low"], choice["seed_high"]) == (
    0.375,
    0.25,
    0.5,
  )
  # Per item and paired: 0, -0.5, -1, 0.
  change = choice["change"]
  assert change["value"] == -0.375
  assert change["low"] <= -0.375 <= change["high"]
  text = table["wanda:0.5", "perplexity"]
  np.testing.assert_allclose(text["value"], np.exp((20 + 80) / 40))
  np.testing.assert_allclose(
    (text["seed_low"], text["seed_high"]), np.exp([2, 3])
  )
  np.testing.assert_allclose(text["change"]["value"], (100 - 40) / 40)
  rows = list(scores_lib.rows(scores))
  assert len(rows) == 6 and rows[1]["value"] == pytest.approx(np.e)


@pytest.mark.slow
def test_a_run_goes_on(two_layers, tmp_path):
  """A finished cell is taken from its file; another command is refused."""
  text = tmp_path / "text.txt"
  text.write_text("The tower has three lamps and a red door.\n" * 60)
  asked = tmp_path / "asked.jsonl"
  asked.write_text(
    "".join(
      json.dumps({"context": "The", "options": options, "answer": 0}) + "\n"
      for options in ([" a", " b"], [" a", " b", " c", " d"])
    )
  )
  flags = [
    f"--model={two_layers}",
    f"--perplexity={text}",
    "--seq_len=32",
    f"--choice={asked}",
    "--num_samples=4",
    "--limit=4",
    f"--out={tmp_path}/out",
  ]
  done = scripts.call(
    "discrepancy", *flags, "--configurations=magnitude:0.5", "--seeds=0"
  )
  assert done.returncode == 0, done.stderr
  kept = tmp_path / "out/configurations/magnitude_0.5-seed0.json"
  changed = files.read_signed_json(kept)
  changed["removed"] = 0.123  # Shows whether it is read.
  files.write_signed_json(kept, changed)
  more = [*flags, "--configurations=magnitude:0.5,rtn:4", "--seeds=0"]
  done = scripts.call("discrepancy", *more)
  assert done.returncode == 1 and "not what the run wrote" in done.stderr
  (tmp_path / "out/checksums.json").unlink()
  done = scripts.call("discrepancy", *more)
  assert done.returncode == 0, done.stderr
  dense = files.read_signed_json(tmp_path / "out/configurations/dense.json")
  assert dense["tasks"]["choice asked"]["chance"] == 3 / 8
  assert "chance" not in dense["tasks"]["perplexity text"]
  table = json.loads((tmp_path / "out/summary.json").read_text())["table"]
  table = [entry for entry in table if entry["task"] == "perplexity text"]
  assert [e["configuration"] for e in table] == [
    "dense",
    "magnitude:0.5",
    "rtn:4",
  ]
  assert table[1]["removed"] == 0.123
  assert {p.name for p in (tmp_path / "out/configurations").iterdir()} == {
    "job.json",
    "dense.json",
    "magnitude_0.5-seed0.json",
    "rtn_4-seed0.json",
  }
  done = scripts.call(
    "discrepancy",
    *flags[:2],
    "--seq_len=16",
    *flags[3:],
    "--configurations=magnitude:0.5",
    "--seeds=0",
  )
  assert done.returncode == 1 and "seq_len was 32" in done.stderr
