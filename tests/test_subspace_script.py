"""The subspace script as a user runs it, and a flag of trajectories."""

import json

import pytest
import scripts


@pytest.mark.slow
def test_a_model_against_itself(two_layers, tmp_path):
  out = tmp_path / "out"
  done = scripts.call(
    "subspace",
    f"--dense={two_layers}",
    f"--pruned={two_layers}",
    "--limit=3",
    "--num_subsets=2",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  assert summary["questions"] == 3
  # Bins of one question have no interval; every record is finite.
  assert all(name.startswith("by_mass") for name in summary["non_finite"])
  assert summary["sets"]["vocabulary"]["kl"]["value"] == 0
  assert summary["kept_among_options"]["value"] == 1
  rows = [
    json.loads(line)
    for line in (out / "records.jsonl").read_text().splitlines()
  ]
  # Vocabulary, options, 4 single ones, their tokens, 2 draws, 8 top tokens.
  assert len(rows) == 3 * (1 + 1 + 4 + 1 + 2 + 8)
  assert json.loads((out / "run.json").read_text())["items"]["count"] == 3
  assert "<h1>" in (out / "report.html").read_text()


@pytest.mark.slow
def test_bad_questions_are_one_line(tmp_path):
  items = tmp_path / "items.jsonl"
  items.write_text(
    json.dumps({"context": "Who?", "options": ["a", "ab"], "answer": 0}) + "\n"
  )
  done = scripts.call(
    "subspace", "--pruned=pocket", f"--items={items}", f"--out={tmp_path}/out"
  )
  lines = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
  assert done.returncode == 1 and len(lines) == 1, done.stderr
  assert "items.jsonl" in lines[0] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_samples_need_a_temperature(tmp_path):
  done = scripts.call(
    "trajectories",
    "--dense=pocket",
    "--pruned=pocket",
    "--prompts=pocket",
    "--samples=2",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 1 and "--temperature" in done.stderr
  assert not (tmp_path / "out").exists()
