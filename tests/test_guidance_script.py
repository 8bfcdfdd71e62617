"""The guidance script as a user runs it: learn, then apply."""

import json

import pytest
import scripts

from jaxprune.studies.guidance import shipped
from tests.guidance_sweeps_made import (
  write_configuration,
  write_dense,
  write_sweep,
)


@pytest.mark.slow
def test_learn_and_apply(two_layers, tmp_path):
  sweep = write_sweep(tmp_path / "sweep")
  done = scripts.call(
    "guidance",
    f"--sweeps={sweep}",
    f"--out={tmp_path}/learnt",
    "--resamples=100",
  )
  assert done.returncode == 0, done.stderr
  rule = json.loads((tmp_path / "learnt/rule.json").read_text())
  summary = json.loads((tmp_path / "learnt/summary.json").read_text())
  assert rule["tasks"]["choose"] == summary["tasks"]["choose"]
  assert rule["sources"][0]["checkpoint_hash"] == "aaaa"
  assert summary["models"] == 30 and len(summary["settings"]) == 3 * 7
  assert sorted(p.name for p in (tmp_path / "learnt/figures").iterdir()) == [
    "score_choose.svg",
    "score_easy.svg",
    "score_text.svg",
  ]
  assert "Prune this way" in (tmp_path / "learnt/report.html").read_text()
  rows = [
    json.loads(line)
    for line in (tmp_path / "learnt/records.jsonl").read_text().splitlines()
  ]
  assert len([r for r in rows if r["protocol"] == "features"]) == 30
  assert len([r for r in rows if r["protocol"] == "task"]) == 3 * 30
  # 32 features, sparsity, and perplexity but for its own task.
  assert len([r for r in rows if r["protocol"] == "feature"]) == 3 * 34 - 1

  done = scripts.call(
    "guidance",
    f"--rule={tmp_path}/learnt/rule.json",
    f"--dense={two_layers}",
    f"--pruned={two_layers}",
    "--num_prompts=2",
    "--max_new_tokens=3",
    f"--out={tmp_path}/judged",
  )
  assert done.returncode == 0, done.stderr
  judged = json.loads((tmp_path / "judged/summary.json").read_text())
  assert not judged["tested"] and "warning: UNTESTED" in done.stdout
  assert set(judged["features"].values()) == {0.0}  # The model against itself.
  assert [a["answer"] for a in judged["answers"]] == ["yes", "yes", "unknown"]
  assert judged["positions"] == 6

  done = scripts.call(
    "guidance",
    f"--rule={tmp_path}/learnt/rule.json",
    f"--sweeps={sweep}",
    f"--out={tmp_path}/checked",
  )
  assert done.returncode == 1 and "no task has a rule" in done.stderr
  other = write_sweep(tmp_path / "other", dense="bbbb", shift=0.06)
  done = scripts.call(
    "guidance",
    f"--rule={tmp_path}/learnt/rule.json",
    f"--sweeps={other}",
    f"--out={tmp_path}/checked",
  )
  assert done.returncode == 0, done.stderr
  checked = json.loads((tmp_path / "checked/summary.json").read_text())
  assert not checked["same_dense_model"] and checked["no_rule"] == ["easy"]
  assert "other dense models" in done.stdout


@pytest.mark.parametrize(
  ("grid", "words"),
  [
    ({"wanda:0.5": (0.1, 20)}, "No rule can be learnt"),
    (
      # Six configurations of two methods: one method is left to resample.
      {
        "wanda:0.3": (0.05, 20),
        "wanda:0.5": (0.1, 20),
        "wanda:0.7": (0.6, 5),
        "rtn:8": (0.01, 20),
        "rtn:4": (0.2, 20),
        "rtn:2": (1.0, 2),
      },
      "are wrong for",
    ),
  ],
  ids=["one", "six"],
)
def test_a_grid_of_any_size(tmp_path, grid, words):
  sweep = tmp_path / "sweep"
  write_dense(sweep)
  for name, (damage, right) in grid.items():
    file = f"{name.replace(':', '_')}-seed0"
    write_configuration(sweep, file, name, 0, damage, right)
  out = tmp_path / "out"
  done = scripts.call(
    "guidance", f"--sweeps={sweep}", f"--out={out}", "--resamples=100"
  )
  assert done.returncode == 0, done.stderr
  first = done.stdout.splitlines()[0]
  assert first.startswith(f"Of {len(grid)} pruned model") and words in first
  assert words in (out / "report.html").read_text()


def test_nothing_to_learn_from_is_one_line(tmp_path):
  write_dense(tmp_path, right=0)
  write_configuration(tmp_path, "a-seed0", "wanda:0.5", 0, 0.1, 0)
  for path in (tmp_path / "configurations").glob("*.json"):
    score = json.loads(path.read_text())
    if "tasks" in score:
      del score["tasks"]["text"], score["tasks"]["easy"]
      path.write_text(json.dumps(score))
  done = scripts.call("guidance", f"--sweeps={tmp_path}", f"--out={tmp_path}/o")
  assert done.returncode == 1 and "near chance" in done.stderr


def test_ship_and_ask(two_layers, tmp_path):
  sweeps = [
    write_sweep(tmp_path / name, dense=name * 4, shift=0.001 * place)
    for place, name in enumerate("abc")
  ]
  docs = tmp_path / "rule.md"
  docs.write_text("<!-- rule: begin -->\n<!-- rule: end -->\n")
  done = scripts.call(
    "guidance",
    f"--sweeps={','.join(map(str, sweeps))}",
    f"--ship={tmp_path}/rule.json",
    f"--docs={docs}",
    f"--out={tmp_path}/learnt",
  )
  assert done.returncode == 0, done.stderr
  rule = json.loads((tmp_path / "rule.json").read_text())
  assert rule["kinds"]["choice"]["cases"] == 90
  assert rule["kinds"]["retrieval"]["feature"] is None
  assert "3 models (made, made bbbb, made cccc)" in docs.read_text()
  assert (tmp_path / "learnt/rule.json").read_text() == (
    tmp_path / "rule.json"
  ).read_text()
  rows = (tmp_path / "learnt/records.jsonl").read_text().splitlines()
  assert len(rows) == 180

  done = scripts.call(
    "guidance",
    f"--dense={two_layers}",
    f"--pruned={two_layers}",
    "--num_prompts=2",
    "--max_new_tokens=3",
    f"--out={tmp_path}/judged",
  )
  assert done.returncode == 0, done.stderr
  assert "generation: kept, because both models say the same" in done.stdout
  judged = json.loads((tmp_path / "judged/summary.json").read_text())
  assert judged["choice"]["state"] == "kept"
  assert "How good the rule is" in (tmp_path / "judged/report.html").read_text()


def test_bad_flags_are_one_line(tmp_path):
  for flags, words in (
    ([], "give --sweeps"),
    (["--ship=x"], "give --sweeps"),
    (["--ship=x", "--pruned=y"], "--ship: is learnt from --sweeps"),
    (["--docs=x", "--sweeps=y"], "--docs: shows what --ship writes"),
    (["--rule=x", "--sweeps=y", "--pruned=z"], "one or the other"),
    (["--sweeps=y", "--features=mean_kl,x"], "--features=x: unknown"),
    ([f"--sweeps={tmp_path}"], "no finished dense model"),
  ):
    done = scripts.call("guidance", *flags, f"--out={tmp_path}/out")
    lines = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert words in lines[0]
  assert not (tmp_path / "out").exists()


def test_a_rule_replaces_only_a_rule(tmp_path):
  config = tmp_path / "config.json"
  config.write_text('{"model_type": "llama"}')
  flags = [f"--sweeps={tmp_path}", f"--ship={config}", f"--out={tmp_path}/out"]
  done = scripts.call("guidance", *flags)
  assert done.returncode == 1 and f"--ship={config}: is there" in done.stderr
  assert config.read_text() == '{"model_type": "llama"}'
  shipped.check_place(tmp_path / "new.json")
  shipped.check_place(shipped.PATH)
