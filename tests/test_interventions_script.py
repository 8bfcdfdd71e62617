"""The interventions script: rows by hand, and a run that prunes nothing."""

import json

import numpy as np
import pytest
import scripts

from jaxprune import report
from jaxprune.probes.decoder.interventions import Text
from jaxprune.studies.interventions import answers, measure
from jaxprune.studies.interventions import summary as summary_lib

SETTINGS = measure.Settings(max_new_tokens=4, top_tokens=2)


def test_answers_end_together():
  pairs = [((5, 6), (7,)), ((8,), (9, 10, 11))]
  (text,) = answers.answer_texts(pairs, pad=0, batch=32)
  np.testing.assert_array_equal(text.tokens, [[0, 5, 6], [8, 9, 10]])
  np.testing.assert_array_equal(
    text.valid, [[False, True, True], [True, True, True]]
  )
  np.testing.assert_array_equal(
    text.alive, [[False, False, True], [True, True, True]]
  )
  # The token that follows each position that counts.
  np.testing.assert_array_equal(text.target[0, 2:], [7])
  np.testing.assert_array_equal(text.target[1], [9, 10, 11])


def test_many_answers_come_in_batches():
  pairs = [((5, n), (n,)) for n in (6, 7, 8)]
  texts = answers.answer_texts(pairs, pad=0, batch=2)
  assert [t.alive.sum() for t in texts] == [2, 1]  # the filler is dead
  assert [start for start, _ in measure._numbered(texts)] == [0, 2]
  assert [int(t.target[0, 0]) for t in texts] == [6, 8]


def test_rows_by_hand():
  text = Text(
    tokens=np.zeros((3, 4)),
    valid=np.ones((3, 4), bool),
    target=np.zeros((3, 3)),
    alive=np.array([[True] * 3, [True, True, False], [False] * 3]),
  )
  values = {
    "kl": np.array([[1.0, 2, 6], [4, np.inf, 0], [9, 9, 9]]),
    "flips": np.array([[0.0, 0, 1], [0, 0, 1], [1, 1, 1]]),
  }
  rows = list(
    measure._rows("teacher_forced", "half", None, values, text, 8, SETTINGS)
  )
  assert [row["prompt"] for row in rows] == [8, 9]
  assert rows[0]["kl"] == 3 and rows[0]["flips"] == pytest.approx(1 / 3)
  assert rows[1]["kl"] is None and rows[1]["flips"] == 0
  # A flip behind the end of a text is none.
  assert [(r["common_steps"], r["same_text"], r["count"]) for r in rows] == [
    (2, 0, 3),
    (2, 1, 2),
  ]
  scores = {
    "hits": np.array([[1.0, 1, 1], [1, 0, 1], [0, 0, 0]]),
    "log_prob": np.log([[0.5, 0.5, 1], [0.5, 0.2, 1], [1, 1, 1]]),
  }
  rows = list(measure._score_rows("half", 2, scores, text, 0))
  assert [(r["exact"], r["hits"]) for r in rows] == [(1, 1), (0, 0.5)]
  np.testing.assert_allclose([r["exact_sampled"] for r in rows], [0.25, 0.1])


def row(name, seed, prompt, kl, count=2, depth=None):
  values = dict.fromkeys(measure.POSITION_METRICS, 0.5)
  return values | {
    "protocol": "teacher_forced",
    "configuration": "c:1",
    "source": "pruned",
    "intervention": name,
    "depth": depth,
    "seed": seed,
    "prompt": prompt,
    "count": count,
    "kl": kl,
    "common_steps": 1.0,
    "same_text": 0.0,
  }


def test_summary_by_hand():
  plain = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 2.0, (1, 1): 4.0}
  rows = [row("pruned", *at, kl, 2 + at[1]) for at, kl in plain.items()]
  # Written in another order: pairs go by seed and prompt.
  rows += [
    row("half", *at, kl / 4, 2 + at[1]) for at, kl in reversed(plain.items())
  ]
  rows += [
    row(name, *at, 0.0, 2 + at[1], depth)
    for at in plain
    for name, depth in (
      ("dense", None),
      ("freeze_first", 2),
      ("freeze_last", 0),
      ("patch_pruned", 2),
      ("patch_dense", 0),
      ("keep_offset", None),
    )
  ]
  rows += [
    row(name, *at, kl, 2 + at[1])
    for at, kl in plain.items()
    for name in (
      "keep_centred",
      "centred_by_p",
      "centred_logits",
      "variance_of_z",
      "temperature_2",
      "top_k_5",
      "top_p_0.9",
    )
  ]
  found = summary_lib.summarise(report.columns(rows), SETTINGS)
  assert (found["prompts"], found["seeds"]) == (2, [0, 1])
  (entry,) = summary_lib.find(
    found, "teacher_forced", "c:1", "pruned", "pruned"
  )
  assert entry["kl"]["value"] == pytest.approx((2 * 3 + 3 * 7) / 10)
  assert entry["kl"]["seed_low"] == pytest.approx((2 * 1 + 3 * 3) / 5)
  assert entry["kl"]["seed_high"] == pytest.approx((2 * 2 + 3 * 4) / 5)
  assert entry["kl_share"]["value"] == 1 and entry["kl_change"]["value"] == 0
  (half,) = summary_lib.find(found, "teacher_forced", "c:1", "pruned", "half")
  np.testing.assert_allclose(
    [half["kl_share"][name] for name in ("value", "low", "high")], 0.25
  )
  assert half["kl_change"]["value"] == pytest.approx(-2.7 * 3 / 4)
  assert half["depth"] is None and max(found["checks"].values()) == 0


def test_kinds_of_restorations():
  kind = summary_lib.kind_of
  assert kind("temperature_0.5") == kind("top_k_5") == "usable"
  assert kind("variance_of_z") == kind("half") == "oracle"
  assert kind("keep_top") is None and kind("top_tail") is None


def test_bad_flags_are_one_line(tmp_path):
  done = scripts.call(
    "interventions", "--top_tokens=5000", f"--out={tmp_path}/out"
  )
  lines = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
  assert done.returncode == 1 and len(lines) == 1, done.stderr
  assert "--top_tokens=5000" in lines[0] and not (tmp_path / "out").exists()


def test_nothing_pruned_is_nothing_everywhere(
  two_layers, tmp_path, monkeypatch
):
  # The control writes what the pruned model does: one program for both.
  monkeypatch.setattr(measure, "WRITTEN_BY_CONTROL", measure.WRITTEN)
  out = tmp_path / "out"
  done = scripts.call(
    "interventions",
    f"--model={two_layers}",
    "--cells=drop_attention:0",
    "--seeds=0",
    "--limit=2",
    "--max_new_tokens=3",
    "--answers=pocket",
    "--answers_limit=2",
    "--num_samples=2",
    "--seq_len=16",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  rows = report.read_records(out)
  names = {r["intervention"] for r in rows}
  assert {"freeze_first", "patch_dense_random", "keep_top", "top_p_0.9"} < names
  cut = [r for r in rows if r["protocol"] == "teacher_forced"]
  for r in cut:
    if r["intervention"].startswith(("temperature", "top_")):
      assert r["flips"] == 0
    elif r["intervention"] == "variance_of_z":
      assert r["kl"] < 1e-9
    else:  # centring rounds
      assert r["kl"] < 1e-12 and r["same_text"] == 1, r
  summary = json.loads((out / "summary.json").read_text())
  assert max(summary["checks"].values()) < 1e-9
  assert "Checks that must give 0" in (out / "report.html").read_text()
  assert (
    not (out / "work").exists() and len(list((out / "figures").iterdir())) == 6
  )
  run_json = json.loads((out / "run.json").read_text())
  assert run_json["answers"]["count"] == 2 and run_json["calibration"]["hash"]
