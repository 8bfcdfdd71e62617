"""Recovery as a user runs it, and the study's choices and tables."""

import dataclasses
import json

import hf_models
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints, report
from jaxprune.pruning.checkpoint import sublayers
from jaxprune.pruning.layerwise import drops
from jaxprune.recovery import Recovery, finetune
from jaxprune.studies.recovery import measure, page, summary, train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama folder with ids to calibrate on."""
  folder = tmp_path_factory.mktemp("model")
  hf_models.save_llama(folder / "dense")
  np.savez(
    folder / "ids.npz",
    calibration=np.random.default_rng(0)
    .integers(3, 96, (12, 16))
    .astype(np.int32),
  )
  return folder


def kernels(folder):
  source = checkpoints.open_checkpoint(folder)
  return checkpoints.load_params(source, jnp.float32)[1]["layers"]


def cut_off(*_, **__):
  raise KeyboardInterrupt


def test_recovered_folder_is_verified_and_the_same_again(
  tiny, tmp_path, monkeypatch
):
  """Once undisturbed, and once cut off and with another rate in between."""
  pruned = tmp_path / "pruned"
  done = scripts.call(
    "prune",
    f"--model={tiny}/dense",
    f"--calibration={tiny}/ids.npz",
    "--pattern=2:4",
    f"--out={pruned}",
  )
  assert done.returncode == 0, done.stderr

  def recover(name, *flags):
    return scripts.call(
      "recover",
      f"--dense={tiny}/dense",
      f"--pruned={pruned}",
      f"--calibration={tiny}/ids.npz",
      "--objective=distill_variance",
      "--steps=3",
      "--batch=4",
      "--learning_rate=5e-4",
      f"--out={tmp_path}/{name}",
      *flags,
    )

  monkeypatch.setattr(finetune, "SAVE_SECONDS", 0.0)
  done = recover("one")
  assert done.returncode == 0, done.stderr
  assert "step 3/3" in done.stderr and "0 s left" in done.stderr
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(train, "write", cut_off)
    recover("two")
  done = recover("two", "--learning_rate=0.1")
  assert "unfinished work of another job" in done.stderr
  done = recover("two")
  assert done.returncode == 0, done.stderr
  assert "step 1/3" not in done.stderr and "step 3/3" in done.stderr
  assert not (tmp_path / "two.partial").exists()
  one, two = tmp_path / "one", tmp_path / "two"
  shards = sorted(one.glob("*.safetensors"))
  assert len(shards) == 2  # the model, the masks
  for shard in shards:
    assert shard.read_bytes() == (two / shard.name).read_bytes()
  before, after = kernels(pruned), kernels(one)
  gone = np.asarray(before["mlp"]["up"]["kernel"]) == 0
  assert gone.mean() == 0.5
  np.testing.assert_array_equal(
    np.asarray(after["mlp"]["up"]["kernel"])[gone], 0
  )
  assert (
    np.asarray(after["mlp"]["up"]["kernel"])[~gone]
    != np.asarray(before["mlp"]["up"]["kernel"])[~gone]
  ).all()
  done = scripts.call("verify", f"--model={one}", f"--out={tmp_path}/sound")
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "sound/summary.json").read_text())[
    "checks"
  ] == dict.fromkeys(("shards", "masks", "pattern", "stock"), True)
  record = json.loads((one / "config.json").read_text())["jaxprune"]
  assert record["method"] == "wanda"
  assert record["recovery"]["objective"] == "distill_variance"
  rows = [
    json.loads(line)
    for line in (one / "records.jsonl").read_text().splitlines()
  ]
  assert {(row["metric"], row["optimiser_step"]) for row in rows} == {
    (metric, step) for metric in ("loss", "kl", "variance") for step in range(3)
  }


@pytest.mark.parametrize("last,lines", [(0.9, 1), (1.0, 2)])
def test_a_training_that_brought_nothing_is_said(last, lines):
  losses = {"loss": np.array([1.0, 2.0, last])}
  said = train.headline(train.summarise(Recovery(steps=3), losses, 0.5))
  assert said.startswith("0.5000 of the kernels is zero, loss 1 to")
  assert len(said.splitlines()) == lines


def test_dropped_sublayers_stay_dropped(tiny, tmp_path):
  source = checkpoints.open_checkpoint(tiny / "dense")
  sublayers.prune_drops(
    source,
    tmp_path / "dropped",
    drops.Drops(num_layers=2, order=(("mlp", 1), ("attention", 0))),
    {},
  )
  pruned = checkpoints.open_checkpoint(tmp_path / "dropped")
  tokens = np.load(tiny / "ids.npz")["calibration"]
  recovery = Recovery(steps=2, batch=4, objective="language", warmup=0.0)
  found, masks = train.train(pruned, None, recovery, tokens)
  out = train.write(tmp_path / "out", pruned, found.params, masks, recovery)
  before, after = kernels(tmp_path / "dropped"), kernels(out)
  np.testing.assert_array_equal(after["mlp"]["down"]["kernel"][1], 0)
  np.testing.assert_array_equal(after["attention"]["output"]["kernel"][0], 0)
  for group, closed in (("mlp", 1), ("attention", 0)):
    for kernel, entry in before[group].items():
      np.testing.assert_array_equal(
        after[group][kernel]["kernel"][closed], entry["kernel"][closed]
      )
      assert (
        after[group][kernel]["kernel"][1 - closed]
        != entry["kernel"][1 - closed]
      ).any()
  assert checkpoints.read_drops(checkpoints.open_checkpoint(out)) == {
    "mlp": (1,),
    "attention": (0,),
  }


def test_what_cannot_be_recovered_is_refused(tiny, tmp_path):
  done = scripts.call(
    "recover",
    f"--pruned={tiny}/dense",
    f"--calibration={tiny}/ids.npz",
    "--batch=4",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 1 and "needs the dense model" in done.stderr
  assert not list(tmp_path.iterdir())


def test_rounded_models_and_foreign_ids_are_refused(tiny):
  source = checkpoints.open_checkpoint(tiny / "dense")
  tokens = np.zeros((8, 16), np.int32)
  rounded = dataclasses.replace(
    source, hf={**source.hf, "jaxprune": {"method": "rtn"}}
  )
  with pytest.raises(ValueError, match="rounded"):
    train.check(rounded, source, Recovery(), tokens)
  with pytest.raises(ValueError, match="ids from 96 to 96"):
    train.check(source, source, Recovery(), tokens + 96)


def study_rows(values):
  """Rows: values [S, N] by (objective, weight, split, metric)."""
  for (objective, weight, split, metric), values_SN in values.items():
    for seed, values_N in enumerate(values_SN):
      for question, value in enumerate(values_N):
        yield {
          "configuration": "c",
          "seed": seed,
          "objective": objective,
          "weight": weight,
          "split": split,
          "task": "generate",
          "metric": metric,
          "question": question,
          "value": float(value),
        }


def test_weight_is_chosen_by_exact_answers_then_kl():
  variance = "distill_variance"
  values = {
    (variance, 0.1, "validation", "exact"): [[1, 0, 0]],
    (variance, 0.1, "validation", "kl"): [[0.1, 0.1, 0.1]],
    (variance, 1.0, "validation", "exact"): [[1, 1, 0]],
    (variance, 1.0, "validation", "kl"): [[0.3, 0.3, 0.3]],
    (variance, 10.0, "validation", "exact"): [[0, 1, 1]],
    (variance, 10.0, "validation", "kl"): [[0.2, 0.2, 0.2]],
    (variance, 0.1, "test", "exact"): [[1, 1, 1]],
  }
  table = report.columns(list(study_rows(values)))
  assert measure.choose_weight(table, "c", 0) == 10.0


def test_summary_of_a_study_by_hand():
  """Two seeds, three items; the weight 2 is tried at the first seed only."""
  none, variance = [[0, 0, 1], [0, 1, 1]], "distill_variance"
  values = {
    ("none", 0.0, "test", "exact"): none,
    ("language", 0.0, "test", "exact"): [[0, 1, 1], [0, 1, 1]],
    ("distill", 0.0, "test", "exact"): [[1, 1, 1], [0, 1, 1]],
    (variance, 1.0, "test", "exact"): [[1, 1, 1], [1, 1, 1]],
    (variance, 2.0, "test", "exact"): [[0, 0, 0]],
    (variance, 1.0, "validation", "exact"): [[1, 1]],
    (variance, 2.0, "validation", "exact"): [[1, 0]],
  }
  values |= {
    (*key[:3], "kl"): (1 - np.array(entry) / 2).tolist()
    for key, entry in values.items()
  }
  rows = [
    {
      "configuration": "dense",
      "seed": 0,
      "objective": "none",
      "weight": 0.0,
      "split": "test",
      "task": "generate",
      "metric": metric,
      "question": i,
      "value": 1.0,
    }
    for metric in ("exact", "kl")
    for i in range(3)
  ]
  rows += study_rows(values)
  for task, metric in (("choose", "acc"), ("retrieve", "ndcg@10")):
    rows += [
      row | {"task": task, "metric": metric}
      for row in rows
      if row["metric"] == "exact"
      and row["task"] == "generate"
      and row["split"] == "test"
    ]
  numbers = summary.summarise(report.columns(rows))
  entry = numbers["configurations"]["c"]
  assert entry["weight"] == 1.0
  scores = {
    name: measures["generate exact"]["value"]
    for name, measures in entry["scores"].items()
  }
  assert scores == pytest.approx(
    {"none": 3 / 6, "language": 4 / 6, "distill": 5 / 6, variance: 1.0}
  )
  assert entry["scores"]["none"]["generate exact"]["seed_low"] == (
    pytest.approx(1 / 3)
  )
  change = entry["differences"]["distill_variance - distill"]
  assert change["generate exact"]["value"] == pytest.approx(1 / 6)
  assert change["generate kl"]["value"] == pytest.approx(-1 / 12)
  assert "the variance term" in summary.verdict(numbers)
  settings = measure.Settings(
    seeds=(0, 1),
    weights=(1.0, 2.0),
    row_len=8,
    num_samples=1,
    seq_len=8,
    recovery=Recovery(),
  )
  html = page.render(numbers, settings, {})
  assert "weights_tried" not in html and "distill_variance" in html
