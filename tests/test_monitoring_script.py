"""Thresholds, rows and tables of monitoring, and the script on a tiny model."""

import dataclasses
import json

import hf_models
import jax
import numpy as np
import pytest
import scripts

from jaxprune import report
from jaxprune.pocket import training
from jaxprune.probes import monitoring
from jaxprune.studies.monitoring import measure, page
from jaxprune.studies.monitoring import summary as summary_lib

CONFIG = dataclasses.replace(
  training.model_config(40),
  num_layers=1,
  embed_dim=16,
  mlp_dim=24,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  sliding_layers=(False,),
  max_positions=32,
  eos_ids=(39,),
)
SETTINGS = measure.Settings(
  signals=("margin", "random"), fractions=(0.25,), max_new_tokens=5
)


def texts_of(tokens_TN, deferred_TN, alive_TN, **risks):
  """One policy, [1, T, N]; risks that are not given are 0."""
  zero = np.zeros(np.shape(tokens_TN))
  return jax.tree.map(
    lambda a: np.asarray(a)[None],
    monitoring.Monitored(
      tokens=tokens_TN,
      deferred=deferred_TN,
      alive=alive_TN,
      risks=monitoring.Risks(
        **{name: risks.get(name, zero) for name in monitoring.SIGNALS}
      ),
    ),
  )


def test_thresholds_defer_the_fraction_asked_for():
  """Of steps that belong to a text: the dead ones have a risk of 100."""
  alive = np.array([[True] * 4, [True] * 4, [True, True, False, False]])
  risk = np.where(alive, np.arange(12).reshape(3, 4), 100.0)
  policies = measure.sweep(texts_of(alive, alive, alive, margin=risk), SETTINGS)
  assert [policy[2:] for policy in policies] == [
    ("none", 0.0),
    ("dense", 1.0),
    ("flip", None),
    ("margin", 0.25),
    ("random", 0.25),
  ]
  by_name = {name: threshold for _, threshold, name, _ in policies}
  assert by_name["none"] == np.inf and by_name["dense"] == -np.inf
  assert by_name["random"] == 0.75
  # Ten live risks 0..9: the quantile 0.75 is 6.75, three are above.
  assert (risk[alive] > by_name["margin"]).sum() == 3


def test_rows_of_a_policy_by_hand():
  """The dense texts are 1 2 9 and 4 9; 9 ends a text."""
  tokens = np.array([[1, 4], [3, 5], [9, 9]])
  alive = np.ones((3, 2), bool)
  deferred = np.array([[1, 0], [0, 0], [1, 0]], bool)
  texts = measure.Texts(
    prompts=[[7, 7], [7, 7, 7]],
    answers=[[1, 3, 9], [4, 9]],
    validation=[],
    source="here",
  )
  found = texts_of(
    tokens, deferred, alive, kl=np.array([[0.1, 0.2], [0.5, 0.3], [0.2, 0.9]])
  )
  rows = list(measure._rows(found, 0, texts, [[1, 2, 9], [4, 9]], "own"))
  assert rows[0] == {
    "question": 0,
    "steps": 3,
    "deferred": 2,
    "dense_forwards": 4,
    "dense_alone": 4,
    "same": False,
    "agreement": 1 / 3,
    "correct": True,
  }
  assert rows[1] == {
    "question": 1,
    "steps": 3,
    "deferred": 0,
    "dense_forwards": 0,
    "dense_alone": 4,
    "same": False,
    "agreement": 0.5,
    "correct": False,
  }
  stop = list(measure._stop_rows(found, texts, [[1, 2, 9], [4, 9]]))
  largest = {(row["signal"], row["question"]): row["value"] for row in stop}
  assert largest["kl", 0] == 0.5 and largest["kl", 1] == 0.9
  assert largest["length", 1] == 3 and ("flip", 0) not in largest


def test_texts_do_not_depend_on_what_is_written_together(monkeypatch):
  dense = training.initial_params(CONFIG, jax.random.key(0))
  pruned = training.initial_params(CONFIG, jax.random.key(1))
  prompts = [[3, 14, 15], [9, 2], [6, 5, 3]]
  policies = [("margin", np.inf), ("margin", -0.5), ("kl", 0.3)]
  found = []
  for rows in (4, 9):
    monkeypatch.setattr(measure, "_ROWS", rows)
    found.append(
      measure.write(
        CONFIG, dense, pruned, prompts, policies, settings=SETTINGS, width=4
      )
    )
  for name in ("tokens", "deferred", "alive"):
    one, other = (getattr(each, name) for each in found)
    assert one.shape == (3, 5, 3)
    np.testing.assert_array_equal(one, other)
  assert not found[0].deferred[0].any() and found[0].deferred[1:].any()


def curve_rows():
  """Two items, one seed; random rises slowly and margin at once."""
  measured = [
    ("none", 0.0, 0, [0, 0]),
    ("dense", 1.0, 20, [1, 1]),
    ("flip", None, 1, [1, 1]),
    ("random", 0.1, 2, [0, 0]),
    ("margin", 0.1, 2, [1, 0]),
  ]
  for signal, fraction, deferred, correct in measured:
    for question, right in enumerate(correct):
      row = {
        "configuration": "c",
        "seed": 0,
        "signal": signal,
        "question": question,
        "steps": 10,
        "deferred": deferred // 2,
        "dense_forwards": deferred,
        "dense_alone": 20,
        "same": bool(right),
        "agreement": float(right),
        "correct": bool(right),
      }
      yield row | ({} if fraction is None else {"fraction": fraction})
  for signal in ("margin", "random", "length"):
    for question in range(2):
      yield {
        "configuration": "c",
        "seed": 0,
        "signal": signal,
        "metric": "stop",
        "question": question,
        "value": float(question),
        "correct": question == 0,
      }


def test_summary_by_hand():
  summary = summary_lib.summarise(report.columns(list(curve_rows())))
  entry = summary["configurations"]["c"]
  assert summary["score"] == "correct"
  assert [point["fraction"] for point in entry["curves"]["margin"]] == [
    0,
    0.1,
    1,
  ]
  assert entry["curves"]["flip"][0]["fraction"] == 0  # 1 // 2 of ten
  margin, random = (
    entry["compared"]["correct"][name] for name in ("margin", "random")
  )
  # From (0, 0) to (0.1, 1/2) to (1, 1); random from (0.1, 0) to (1, 1).
  assert margin["at 0.1"]["value"] == pytest.approx(0.5)
  assert margin["at 0.05"]["value"] == pytest.approx(0.25)
  assert random["at 0.05"]["value"] == 0
  assert margin["at 0.1 less control"]["value"] == pytest.approx(0.5)
  assert random["at 0.1 less margin"]["value"] == pytest.approx(-0.5)
  assert margin["area"]["value"] == pytest.approx(0.025 + 0.9 * 0.75)
  assert random["area"]["value"] == pytest.approx(0.45)
  assert margin["area less control"]["value"] == pytest.approx(0.25)
  # Right first: accuracy 1 at coverage 1/2, 1/2 at coverage 1.
  assert entry["stop"]["signals"]["margin"]["area"]["value"] == 0.75
  assert entry["stop"]["best area"] == 0.75
  assert entry["recovered"]["margin"] == pytest.approx(0.5)
  assert "margin 50 %" in page.verdict(summary)


@pytest.mark.parametrize(
  "change,word",
  [
    ({"signals": ("margin", "hope")}, "--signals=hope"),
    ({"signals": ("margin",)}, "keep random"),
    ({"fractions": (0.1, 1.0)}, "between 0 and 1"),
  ],
)
def test_bad_settings_are_named(change, word):
  with pytest.raises(ValueError, match=word):
    measure.check(dataclasses.replace(SETTINGS, **change))


def test_script_on_a_model_against_itself(tmp_path):
  """Without answers; nothing to defer, so nothing changes."""
  hf_models.save_llama(
    tmp_path / "dense",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
  )
  np.savez(
    tmp_path / "ids.npz",
    prompt=np.random.default_rng(0).integers(3, 96, (8, 7)).astype(np.int32),
  )
  done = scripts.call(
    "monitoring",
    f"--dense={tmp_path}/dense",
    f"--pruned={tmp_path}/dense",
    f"--prompts={tmp_path}/ids.npz",
    "--max_new_tokens=4",
    "--signals=margin,random",
    "--fractions=0.5",
    "--cache=shared",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 0, done.stderr
  rows = [
    json.loads(line)
    for line in (tmp_path / "out/records.jsonl").read_text().splitlines()
  ]
  back = [row for row in rows if "metric" not in row]
  assert len(back) == 5 * 6 and all(row["same"] for row in back)
  assert all(row["deferred"] == 0 for row in back if row["signal"] == "flip")
  assert all(row["dense_forwards"] == row["deferred"] for row in back)
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  assert summary["score"] == "same"
  assert (
    0
    < summary["configurations"]["pruned"]["curves"]["random"][1]["fraction"]
    < 1
  )
  assert "<h1>" in (tmp_path / "out/report.html").read_text()
