"""From divided changes to rows and a summary, by hand and as a user runs it."""

import json

import hf_models
import numpy as np
import pytest
import scripts

from jaxprune import report
from jaxprune.calibration import Prompts
from jaxprune.studies.propagation import arrays, measure, rows
from tests.test_propagation import CONFIG


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama folder with ids to calibrate on and to continue."""
  folder = tmp_path_factory.mktemp("model")
  hf_models.save_llama(
    folder / "dense",
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    initializer_range=0.3,
    eos_token_id=None,
  )
  draw = np.random.default_rng(0)
  np.savez(
    folder / "ids.npz",
    calibration=draw.integers(3, 64, (4, 16)).astype(np.int32),
    prompt=draw.integers(3, 64, (2, 5)).astype(np.int32),
  )
  return folder


def test_arrivals_by_hand():
  """One group, one prompt, two steps; causes: text before, step 0, step 1."""
  steps_GCNR = np.array([[1.0, 2], [4, 8], [0, 16]]).reshape(1, 3, 1, 2)
  found = rows.arrivals(steps_GCNR)
  assert {name: each.ravel().tolist() for name, each in found.items()} == {
    "own_step": [4, 16],
    "earlier_steps": [0, 8],
    "text_before": [1, 2],
  }


def test_strongest_pairs_are_off_the_diagonal():
  table_PP = np.array([[9.0, 1, -3], [1, 9, 2], [-3, 2, 9]])
  assert arrays.strongest(table_PP[..., None, None], 2) == ((0, 2), (1, 2))
  assert arrays.strongest(table_PP[..., None, None], 0) == ()
  table_PP[1] = table_PP[:, 1] = 0  # A sublayer that did not change.
  assert arrays.strongest(table_PP[..., None, None], 3) == ((0, 2),)


def test_what_cannot_fit_is_refused(monkeypatch):
  prompts = Prompts(tokens=((1, 2, 3),), source="here")
  settings = measure.Settings(max_new_tokens=2, batch=1, groups=2)
  found = measure.check(CONFIG, prompts, settings)
  monkeypatch.setattr(
    measure.devices, "available_bytes", lambda: (found.total - 1, None)
  )
  with pytest.raises(ValueError, match="use a smaller --batch"):
    measure.check(CONFIG, prompts, settings)


def test_ratio_of_nothing():
  assert arrays.ratio(0.0, 0.0) == 0
  assert arrays.ratio(1.0, 0.0) == float("inf")
  assert arrays.ratio(1.0, 4.0) == 0.25


def sum_by(rows, *keys):
  sums = {}
  for row in rows:
    key = tuple(row[name] for name in keys)
    sums[key] = sums.get(key, 0) + row["value"]
  return sums


@pytest.mark.slow
def test_the_script(tiny, tmp_path):
  """A pruned model with chance beside it; then the dense model against itself.

  Both in this process: the second has the shapes of the first.
  """
  shape = [
    "--groups=2",
    "--interactions=1",
    "--limit=2",
    "--max_new_tokens=3",
    "--options=5,40,63",
    f"--prompts={tiny}/ids.npz",
    "--seeds=0",
  ]
  done = scripts.call(
    "propagation",
    f"--model={tiny}/dense",
    "--cells=magnitude:0.3",
    f"--calibration={tiny}/ids.npz",
    *shape,
    f"--out={tmp_path}/pruned",
  )
  assert done.returncode == 0, done.stderr
  assert "memory: " in done.stderr and "add up" in done.stdout
  summary = json.loads((tmp_path / "pruned/summary.json").read_text())
  assert summary["completeness_error"] < 1e-3 and summary["complete"] is True
  entries = {entry["source"]: entry for entry in summary["models"]}
  assert list(entries) == ["pruned", "random", "noise"]
  records = report.read_records(tmp_path / "pruned")
  whole = [
    row for row in records if "layer" in row and "other_layer" not in row
  ]
  for source, entry in entries.items():
    for metric in ("kl", "log_prob", "option_margin"):
      mine = [
        row
        for row in whole
        if (row["source"], row["metric"]) == (source, metric)
      ]
      # Every prompt has three steps, so a mean over rows is one over prompts.
      count = 6 if source == "pruned" else 2
      change = sum(row["value"] for row in mine) / count
      assert change == pytest.approx(
        entry["change"][metric]["value"], rel=2e-3, abs=1e-6
      )
      assert change == pytest.approx(
        sum(part[metric]["value"] for part in entry["by_sublayer"]), rel=1e-4
      )
    ways = entry["by_arrival"]["kl"]
    assert sum(way["value"] for way in ways.values()) == pytest.approx(
      entry["change"]["kl"]["value"], rel=2e-3
    )
    assert entry["change"]["kl"]["value"] > 0
    assert entry["amplification"]["identity_error"] < 1e-3
  assert all(
    row["cause_step"] <= row["step"] for row in records if "cause_step" in row
  )
  arrived = [row for row in records if "arrival" in row]
  assert sum_by(arrived, "source", "metric", "prompt")[
    "pruned", "kl", 0
  ] == pytest.approx(
    sum_by(
      [row for row in whole if row["source"] == "pruned"],
      "source",
      "metric",
      "prompt",
    )["pruned", "kl", 0]
    / 3,
    rel=2e-3,
  )
  pictures = {path.name for path in (tmp_path / "pruned/figures").iterdir()}
  assert {
    "magnitude_0.3_contributions_kl.svg",
    "magnitude_0.3_time_kl.svg",
    "magnitude_0.3_steps_kl.svg",
    "magnitude_0.3_path_error.svg",
    "magnitude_0.3_rate_mean.svg",
    "magnitude_0.3_pairs.svg",
  } <= pictures
  assert "Against chance" in (tmp_path / "pruned/report.html").read_text()
  assert not (tmp_path / "pruned/work").exists()

  done = scripts.call(
    "propagation",
    f"--dense={tiny}/dense",
    f"--pruned={tiny}/dense",
    "--nocontrols",
    *shape,
    f"--out={tmp_path}/same",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "same/summary.json").read_text())
  assert summary["completeness_error"] == 0
  (entry,) = summary["models"]
  assert (entry["configuration"], entry["source"]) == ("pruned", "pruned")
  for row in report.read_records(tmp_path / "same"):
    if not row["metric"].startswith("path_"):
      assert row["value"] == 0, row


@pytest.mark.slow
def test_bad_input_is_one_line(tiny, tmp_path):
  done = scripts.call(
    "propagation",
    f"--model={tiny}/dense",
    "--groups=3",
    f"--prompts={tiny}/ids.npz",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 1 and "2 layers; use 1 to 2" in done.stderr
  assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
