"""The script `transitions` as a user runs it, and its page."""

import json

import hf_models
import numpy as np
import pytest
import scripts

from jaxprune import report
from jaxprune.report import figures
from jaxprune.studies.transitions import summary as summary_lib


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama folder, one with other kernels, and ids to continue."""
  import torch

  folder = tmp_path_factory.mktemp("model")
  model = hf_models.save_llama(folder / "dense")
  with torch.no_grad():
    for weight in model.model.layers.parameters():
      weight *= weight.abs() > 0.1
  model.save_pretrained(folder / "pruned")
  np.savez(
    folder / "ids.npz",
    prompt=np.random.default_rng(0).integers(3, 96, (3, 7)).astype(np.int32),
  )
  return folder


def run(tiny, what, out):
  """Of one shape, so that its programs are compiled once."""
  done = scripts.call(
    "transitions",
    f"--dense={tiny}/dense",
    what,
    f"--prompts={tiny}/ids.npz",
    "--max_new_tokens=5",
    "--batch=2",
    "--temperature=1",
    "--limit=3",
    "--analysis_temperature=0.7",
    "--lens=raw",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--pruned", "--drop"])
def test_rows_summary_and_page(tiny, tmp_path, change):
  out = tmp_path / "out"
  what = "--drop" if change == "--drop" else f"--pruned={tiny}/pruned"
  run(tiny, what, out)
  rows = report.read_records(out)
  table = report.columns(rows)
  assert set(table["sublayer"]) == {"attention", "mlp"}
  assert set(table["layer"]) == {0, 1} and set(table["prompt"]) == {0, 1, 2}
  assert set(table["intervention"]) == {
    "dropped" if change == "--drop" else "pruned"
  }
  assert set(table["lens"]) == {"raw"} and set(table["history"]) == {"dense"}
  # Every prompt has its steps from 0 to its end, each with every sublayer.
  for prompt in range(3):
    steps = table["step"][table["prompt"] == prompt]
    np.testing.assert_array_equal(
      np.bincount(steps), np.full(steps.max() + 1, 4)
    )
  np.testing.assert_allclose(
    table["kl_estimate"], table["var_p"] / (2 * 0.7**2), rtol=1e-5
  )
  assert (table["kl"] > 0).all()
  summary = json.loads((out / "summary.json").read_text())
  assert summary["prompts"] == 3 and summary["non_finite"] == {}
  for entry in summary["by_sublayer"]:
    at = (table["layer"] == entry["layer"]) & (
      table["sublayer"] == entry["sublayer"]
    )
    assert entry["cos_h"]["value"] == pytest.approx(table["cos_h"][at].mean())
    assert entry["kl"]["max"] == table["kl"][at].max()
    assert entry["kl"]["low"] <= entry["kl"]["value"] <= entry["kl"]["high"]
  assert summary["estimates"]["kl"]["rows"] == len(rows)
  # The head of the raw lens reads the residual itself.
  ratio = table["head_gain_dh"] / table["head_gain_h"]
  np.testing.assert_allclose(table["attenuation"], ratio, rtol=1e-5)
  assert ((table["head_energy_dh"] > 0) & (table["head_energy_dh"] <= 1)).all()
  head = summary["head"]
  assert (np.diff(head["values"]) <= 0).all() and head["gain_random"] > 0
  names = {path.stem for path in (out / "figures").iterdir()}
  assert {
    "cosines",
    "kl_layers",
    "relative_change_layer_1",
    "kl_layer_1",
    "cos_p_layer_1",
    "kl_estimate",
  } <= names
  page = (out / "report.html").read_text()
  turned = summary["orderings"]["attention"]["cos_z_above_cos_h"]
  assert f"<h1>Logits turn less than h in {turned} of 2 attention" in page


@pytest.mark.slow
def test_dense_against_itself_is_zero_in_every_row(tiny, tmp_path):
  run(tiny, f"--pruned={tiny}/dense", tmp_path / "out")
  rows = report.read_records(tmp_path / "out")
  assert {row["prompt"] for row in rows} == {0, 1, 2}
  for row in rows:
    for name in (
      "kl",
      "kl_reverse",
      "js",
      "tv",
      "rho_h",
      "rho_z",
      "alpha_h",
      "kl_estimate",
      "var_r",
      "max_abs_dz",
      "one_minus_cos_p",
    ):
      assert row[name] == 0, name
    assert row["cos_h"] == row["cos_z"] == row["cos_p"] == 1
    assert row["flip"] is False


def test_one_change_must_be_named(tiny, tmp_path):
  for change in ([], ["--drop", f"--pruned={tiny}/dense"]):
    done = scripts.call(
      "transitions",
      f"--dense={tiny}/dense",
      *change,
      "--prompts=x.txt",
      f"--out={tmp_path}/out",
    )
    assert done.returncode == 1
    assert "--pruned and --drop: give one of them" in done.stderr
    assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


def test_bars_of_the_mean_are_drawn():
  def series(y, spread):
    y = np.array([y, y])
    return figures.Series(x=np.arange(2), y=y, low=y - spread, high=y + spread)

  panel = {"cos_h": series(0.5, 0.2)}
  bare = figures.lines_by_sublayer(panel, panel)
  bars = {"cos_h": series(0.5, 0.05)}
  with_bars = figures.lines_by_sublayer(panel, panel, intervals=(bars, bars))
  assert bare != with_bars
  assert with_bars == figures.lines_by_sublayer(
    panel, panel, intervals=(bars, bars)
  )
  none = {"cos_h": series(0.5, np.nan)}  # one prompt has no interval
  assert bare == figures.lines_by_sublayer(panel, panel, intervals=(none, none))


def test_how_an_estimate_is_compared():
  truth = np.array([1.0, 2.0, 0.0, 4.0, np.nan])
  estimate = np.array([2.0, 2.0, 0.5, 16.0, 1.0])
  found = summary_lib.compare_estimate(truth, estimate)
  assert found["rows"] == 4 and found["rows_with_ratio"] == 3
  assert found["sum_ratio"] == pytest.approx(20 / 7)
  assert found["median_ratio"] == 2
  # Ranks 1 2 0 3 against 1.5 1.5 0 3.
  assert found["spearman"] == pytest.approx(4.5 / np.sqrt(5 * 4.5))
  flat = summary_lib.compare_estimate(np.zeros(3), np.zeros(3))
  assert flat["spearman"] is None and flat["sum_ratio"] is None


def test_orders_of_the_paper_are_counted():
  def entry(sublayer, layer, h, z, p, kl):
    means = {
      "cos_h": h,
      "cos_z": z,
      "cos_z_centred": h,
      "cos_p": p,
      "kl": kl,
      "rho_h": 1 - h,
      "rho_z": 1 - z,
      "attenuation": 2 * z,
      "head_energy_h": h,
      "head_energy_dh": z,
    } | dict.fromkeys(
      ("head_gain_h", "head_gain_dh", "attenuation_centred", "offset_dz"), 1
    )
    return {"sublayer": sublayer, "layer": layer} | {
      name: {"value": value} for name, value in means.items()
    }

  found = summary_lib.orderings(
    [
      entry("attention", 0, 0.2, 0.1, 0.9, 0.3),
      entry("attention", 1, 0.9, 0.99, 0.95, 0.1),
      entry("attention", 2, 0.9, 0.99, 0.8, 0.2),
      entry("mlp", 0, 0.5, 0.6, 0.6, 1.0),
    ]
  )
  assert found["attention"] == {
    "layers": 3,
    "cos_z_above_cos_h": 2,
    "cos_z_centred_above_cos_h": 0,
    "cos_p_below_cos_z": 2,
    "cos_p_below_cos_h": 1,
    "rho_z_below_rho_h": 2,
    "energy_dh_below_h": 1,
    "attenuation_below_1": 1,
    "rank_correlation_depth_kl": pytest.approx(-0.5),
  }
  assert found["mlp"]["rank_correlation_depth_kl"] is None
