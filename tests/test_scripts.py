"""The scripts as a user runs them, on real folders."""

import json
import subprocess
import sys
import time

import hf_models
import numpy as np
import pytest
import scripts

from jaxprune.studies.comparison import measure

SCRIPTS = (
  "quickstart",
  "prune",
  "trajectories",
  "benchmark",
  "train_pocket",
  "verify",
  "discrepancy",
  "code_tasks",
  "subspace",
  "transitions",
  "retrieval",
  "evaluate",
  "harness",
  "ablation",
  "compare_methods",
  "compare_models",
  "propagation",
  "guidance",
  "recover",
  "recovery_study",
  "monitoring",
  "interventions",
  "plan",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama folder with ids to calibrate on and to continue."""
  folder = tmp_path_factory.mktemp("model")
  hf_models.save_llama(folder / "dense")
  draw = np.random.default_rng(0)
  np.savez(
    folder / "ids.npz",
    calibration=draw.integers(3, 96, (4, 16)).astype(np.int32),
    prompt=draw.integers(3, 96, (3, 7)).astype(np.int32),
  )
  return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_loads_no_jax(script):
  code = (
    "import sys, runpy; sys.argv = ['x', '--help'];"
    f"import atexit; atexit.register(lambda: print('jax' in sys.modules));"
    f"runpy.run_module('experiments.{script}', run_name='__main__')"
  )
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=scripts.ROOT,
  )
  assert done.returncode == 0
  assert "--out" in done.stdout and "--pdb" not in done.stdout
  assert done.stdout.strip().endswith("False")
  assert time.monotonic() - began < 30  # a hang, not a speed


# Of both tests of trajectories, so that they run the same programs.
TRAJECTORIES = (
  "--max_new_tokens=5",
  "--temperature=1",
  "--samples=2",
  "--seed=5",
  "--protocol=free_running,handoff",
  "--protocol=resynchronised",
  "--layer_rows",
)


@pytest.fixture
def one_interval(monkeypatch):
  """One of the four decodings that are put back, as each is compiled."""
  every = measure.PROTOCOLS["resynchronised"]
  monkeypatch.setitem(measure.PROTOCOLS, "resynchronised", every[:2])


@pytest.mark.slow
@pytest.mark.usefixtures("one_interval")
def test_prune_then_compare(tiny, tmp_path):
  pruned, out = tmp_path / "pruned", tmp_path / "report"
  done = scripts.call(
    "prune",
    f"--model={tiny}/dense",
    f"--calibration={tiny}/ids.npz",
    "--pattern=2:4",
    f"--out={pruned}",
  )
  assert done.returncode == 0, done.stderr
  assert "layer 2/2" in done.stderr
  assert "zeros alone save no time and no memory" in done.stdout
  summary = json.loads((pruned / "summary.json").read_text())
  assert summary["sparsity"] == 0.5
  rows = [
    json.loads(line)
    for line in (pruned / "records.jsonl").read_text().splitlines()
  ]
  assert [row["layer"] for row in rows] == [0, 1]
  assert {"masks.safetensors", "config.json", "run.json"} <= {
    path.name for path in pruned.iterdir()
  }
  done = scripts.call("verify", f"--model={pruned}", f"--out={tmp_path}/sound")
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "sound/summary.json").read_text())[
    "checks"
  ] == dict.fromkeys(("shards", "masks", "pattern", "stock"), True)
  done = scripts.call(
    "trajectories",
    f"--dense={tiny}/dense",
    f"--pruned={pruned}",
    f"--prompts={tiny}/ids.npz",
    *TRAJECTORIES,
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  rows = [
    json.loads(line)
    for line in (out / "records.jsonl").read_text().splitlines()
  ]
  own = [row for row in rows if row["protocol"] == "alone"]
  assert {row["prompt"] for row in own} == {0, 1, 2} and len(own) <= 2 * 15
  rows = [row for row in rows if row["protocol"] == "teacher_forced"]
  assert len(rows) == 2 * 3 * 5 * (1 + 2 * 2)
  output = [row for row in rows if "layer" not in row]
  assert {row["step"] for row in output} == {0, 1, 2, 3, 4}
  mean = json.loads((out / "summary.json").read_text())["output"]["kl"]["value"]
  assert mean == pytest.approx(np.mean([row["kl"] for row in output]))
  page = (out / "report.html").read_text()
  assert "unstructured" not in page and "2:4 · " in page


@pytest.mark.slow
@pytest.mark.usefixtures("one_interval")
def test_all_protocols(tiny, tmp_path):
  """Records of every decoding; the dense model against itself is 0 in all."""
  done = scripts.call(
    "trajectories",
    f"--dense={tiny}/dense",
    f"--pruned={tiny}/dense",
    f"--prompts={tiny}/ids.npz",
    *TRAJECTORIES,
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 0, done.stderr
  rows = [
    json.loads(line)
    for line in (tmp_path / "out/records.jsonl").read_text().splitlines()
  ]
  forced = [row for row in rows if row["protocol"] == "teacher_forced"]
  assert any("layer" in row for row in forced)
  for row in forced:
    assert row["kl"] == row["rho_h"] == row["rho_z"] == row["tv"] == 0
    assert row["cos_h"] == row["cos_z"] == row["cos_p"] == 1
    assert row["flip"] is False
  names = {row["protocol"] for row in rows}
  assert names == {
    "alone",
    "teacher_forced",
    "free_running",
    "control",
    "direct",
    "history",
    "dense_then_pruned",
    "pruned_then_dense",
    "resynchronised_2",
  }
  measured = [row for row in rows if row["protocol"] != "alone"]
  assert all(row["kl"] == 0 for row in measured if row["protocol"] != "control")
  parted = [
    row for row in rows if row["protocol"] == "control" and not row["aligned"]
  ]
  assert parted and all(row["kl"] > 0 for row in parted)
  texts = {
    seed: [row["token_dense"] for row in forced if row["seed"] == seed]
    for seed in (5, 6)
  }
  assert texts[5] and texts[6] and texts[5] != texts[6]
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  decodings = summary["decodings"]
  assert set(decodings) == names - {"teacher_forced", "alone"}
  assert summary["alone"]["same"] == summary["alone"]["texts"]
  assert decodings["free_running"]["fraction_aligned"] == 1
  assert 0 < decodings["control"]["fraction_aligned"] < 1
  assert [one["seed"] for one in decodings["control"]["by_seed"]] == [5, 6]
  assert decodings["free_running"]["minus_control"]["kl"]["value"] < 0
  assert set(summary["breakdown"]["teacher_forced"]) == {
    "step",
    "text_length",
    "position",
    "entropy",
  }


BAD = {
  "--sparsity=1": "sparsity",
  "--sparsity=-0.1": "sparsity",
  "--pattern=3:7": "does not divide",
  "--pattern=4:2": "keep",
  "--pattern=half": "--pattern=half",
  "--model=/no/such/folder": "no such folder",
  "--calibration=/no/such/file.npz": "file.npz",
  "--method=drop_attention --drop_count=9": "drop count is 9",
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", sorted(BAD))
def test_bad_input_is_one_line(tiny, tmp_path, arguments):
  done = scripts.call(
    "prune",
    f"--model={tiny}/dense",
    f"--calibration={tiny}/ids.npz",
    "--seq_len=32",
    f"--out={tmp_path}/out",
    *arguments.split(),
  )
  assert done.returncode == 1
  lines = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
  assert len(lines) == 1 and BAD[arguments] in lines[0], done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_prompts_longer_than_the_context(tiny, tmp_path):
  done = scripts.call(
    "trajectories",
    f"--dense={tiny}/dense",
    f"--pruned={tiny}/dense",
    f"--prompts={tiny}/ids.npz",
    "--max_new_tokens=60",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 1
  assert "exceed the context" in done.stderr and "ids.npz" in done.stderr
  assert not list(tmp_path.iterdir())


def test_leftover_arguments_are_refused():
  done = scripts.start("prune", "--model=x", "--out=y", "wanda")
  assert done.returncode == 1 and "unexpected arguments: wanda" in (
    done.stdout + done.stderr
  )
