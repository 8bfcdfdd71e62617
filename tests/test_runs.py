"""A run says what it was made from, and mixes no two inputs."""

import json
import shutil

import faults
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints, devices, files
from jaxprune.pruning.checkpoint import resume, weights
from jaxprune.pruning.patterns import Unstructured
from jaxprune.report import records, run_stage

DESCRIPTION = {
  "made_by": "jaxprune",
  "command": "x",
  "flags": {"sparsity": 0.5, "out": "a", "seeds": [0]},
  "seeds": {"calibration": [0]},
  "calibration": {"hash": "a"},
  "versions": {"jax": "1", "numpy": "1"},
  "device": {"platform": "cpu", "kind": "cpu", "devices": 8},
}


def run(out, description=DESCRIPTION, text="x", **options):
  with run_stage.stage_run(out, description, **options) as (stage, resumed):
    with records.RunFolder(stage.new, description, resume=resumed) as folder:
      if text is None:
        raise RuntimeError("late")
      folder.write({"task": text})
      folder.write_summary({"text": text})
  return resumed


def found(out):
  return json.loads((out / "summary.json").read_text())["text"]


def changed(**changes):
  return DESCRIPTION | changes


def test_the_same_run_is_finished(tmp_path):
  out = tmp_path / "out"
  run(out)
  same = changed(
    command="y",
    flags=DESCRIPTION["flags"] | {"out": "b", "overwrite": True},
    versions={"jax": "1", "numpy": "2"},
    device={"platform": "cpu", "kind": "cpu", "devices": 1},
  )
  with pytest.raises(run_stage.FinishedError, match="finished already"):
    run(out, same, "y")
  run(out, same, "y", overwrite=True)
  assert found(out) == "y"
  (out / "records.jsonl").write_text('{"task": "z"}\n')
  with pytest.raises(ValueError, match="records.jsonl: is not what the run"):
    run(out)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
  "change,named",
  [
    ({"flags": {"sparsity": 0.6}}, "flags/seeds was"),
    ({"calibration": {"hash": "b"}}, "calibration/hash was 'a', now 'b'"),
    ({"inputs": {"files": {"x": "1"}}}, "inputs was None"),
    ({"versions": {"jax": "2"}}, "versions/jax was '1', now '2'"),
  ],
)
def test_other_results_are_replaced_only_where_asked(tmp_path, change, named):
  out = tmp_path / "out"
  run(out)
  (out / "mine.txt").write_text("mine")
  with pytest.raises(ValueError, match=f"{named}.*--overwrite"):
    run(out, changed(**change))
  assert found(out) == "x"
  run(out, changed(**change), "y", overwrite=True)
  assert found(out) == "y" and (out / "mine.txt").read_text() == "mine"


def test_a_failing_run_leaves_the_first_report(tmp_path):
  out = tmp_path / "out"
  run(out)
  with pytest.raises(RuntimeError, match="late"):
    run(out, changed(seeds={}), None, overwrite=True)
  assert found(out) == "x"
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rows_of_a_failed_run_stay_beside(tmp_path):
  out = tmp_path / "out"
  with pytest.raises(RuntimeError):
    with run_stage.stage_run(out, DESCRIPTION) as (stage, _):
      with records.RunFolder(stage.new, DESCRIPTION) as folder:
        folder.write({"task": "x"})
        raise RuntimeError
  assert not out.exists() and stage.new.is_dir()
  assert not run(out)
  assert found(out) == "x" and not stage.scaffold.exists()


def test_an_unfinished_run_goes_on(tmp_path):
  out = tmp_path / "out"
  with pytest.raises(RuntimeError):
    with run_stage.stage_run(out, DESCRIPTION, resume=True) as (stage, _):
      with records.RunFolder(stage.new, DESCRIPTION) as folder:
        folder.write({"task": "first"})
        raise RuntimeError
  with pytest.raises(ValueError, match="another job .seeds was"):
    run(out, changed(seeds=1), resume=True)
  assert run(out, resume=True)
  assert (out / "records.jsonl").read_text().count("\n") == 2


def test_a_run_that_fails_with_nothing_finished_leaves_nothing(tmp_path):
  out = tmp_path / "out"
  with pytest.raises(RuntimeError, match="late"):
    run(out, text=None, resume=True)  # run.json and no row
  assert not list(tmp_path.iterdir())
  assert not run(out, changed(seeds=1), resume=True)


def test_a_run_that_grows_is_neither_refused_nor_finished(tmp_path):
  out, grows = tmp_path / "out", ("seeds",)
  run(out, grows=grows)
  more = changed(
    flags=DESCRIPTION["flags"] | {"seeds": [0, 1]},
    seeds={"calibration": [0, 1]},
    calibration={"hash": "a, b"},
  )
  run(out, more, "y", grows=grows)
  assert found(out) == "y"
  with pytest.raises(run_stage.FinishedError):
    run(out, more, "z", grows=grows)


def test_models_are_not_overwritten_by_measurements(tmp_path):
  out = tmp_path / "out"
  run(out)
  (out / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="holds a model"):
    run(out, changed(seeds=1), overwrite=True)
  with pytest.raises(ValueError, match="holds the model .*, which is read"):
    run(tmp_path, spare=[out])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  return faults.save_model(tmp_path_factory.mktemp("home"), num_hidden_layers=2)


class KilledError(Exception):
  pass


def cut_off(home, out, **options):
  """A run that ends after its first layer."""

  def stop(row):
    raise KilledError

  with pytest.raises(KilledError):
    prune(home, out, on_layer=stop, **options)


def prune(home, out, tokens=None, **options):
  if tokens is None:
    tokens = np.load(home / "ids.npz")["calibration"]
  return weights.prune_weights(
    checkpoints.open_checkpoint(home / "dense"),
    out,
    method="wanda",
    pattern=Unstructured(sparsity=0.5),
    tokens=tokens,
    **options,
  )


def flip(path, at=-1):
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)


def test_a_finished_model_gives_its_log_again(home, tmp_path):
  log = prune(home, tmp_path / "out")
  assert prune(home, tmp_path / "out") == log
  flip(tmp_path / "out" / "model.safetensors")
  with pytest.raises(ValueError, match="safetensors: is not what was written"):
    prune(home, tmp_path / "out")


def test_damaged_state_is_refused(home, tmp_path):
  """A bit of a finished layer, of its masks, of the saved activations."""
  scaffold = tmp_path / "out.partial"
  cut_off(home, tmp_path / "out")
  shutil.copytree(scaffold, tmp_path / "kept")
  header = int.from_bytes(
    next(scaffold.glob("new/*.unfinished")).read_bytes()[:8], "little"
  )
  states = max(
    (p for p in scaffold.glob("states-00001/**/*") if p.is_file()),
    key=lambda path: path.stat().st_size,
  )
  for path, at in (
    (next(scaffold.glob("masks-00000*")), -1),
    (next(scaffold.glob("new/*.unfinished")), None),
    (states, -20),
  ):
    shutil.rmtree(scaffold)
    shutil.copytree(tmp_path / "kept", scaffold)
    if at is None:
      at = _place_of_first_layer(path, header)
    flip(path, at)
    with pytest.raises(ValueError, match="is not what was written.*remove"):
      prune(home, tmp_path / "out")
  assert (scaffold / "new" / resume.PROGRESS).is_file()


def _place_of_first_layer(path, header):
  tensors = json.loads(path.read_bytes()[8 : 8 + header])
  name = next(name for name in tensors if ".layers.0." in name)
  return 8 + header + tensors[name]["data_offsets"][0]


def test_two_inputs_are_not_mixed(home, tmp_path):
  dense = tmp_path / "dense"
  shutil.copytree(home / "dense", dense)
  shutil.copy(home / "ids.npz", tmp_path)
  cut_off(tmp_path, tmp_path / "out")
  other = np.load(home / "ids.npz")["calibration"][:, ::-1]
  with pytest.raises(ValueError, match="another job .provenance/tokens was"):
    prune(tmp_path, tmp_path / "out", tokens=other)
  config = json.loads((dense / "config.json").read_text())
  config["rms_norm_eps"] = 1e-3
  (dense / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="source/config/norm_eps was 1e-06"):
    prune(tmp_path, tmp_path / "out")


def test_other_cores_may_round_differently_and_are_refused(
  home, tmp_path, monkeypatch
):
  cut_off(home, tmp_path / "out")
  cores = devices.machine()["cores"]
  monkeypatch.setattr(devices, "machine", lambda: {"cores": cores + 1})
  with pytest.raises(
    ValueError, match=f"job .cores was {cores}, now {cores + 1}"
  ):
    prune(home, tmp_path / "out")
  with pytest.raises(KeyboardInterrupt):
    with run_stage.stage_run(tmp_path / "run", DESCRIPTION, resume=True):
      raise KeyboardInterrupt
  monkeypatch.setattr(devices, "machine", lambda: {"cores": cores})
  with pytest.raises(ValueError, match="job .cores was"):
    run(tmp_path / "run", resume=True)


def test_a_script_names_the_input_that_changed(home, tmp_path):
  shutil.copytree(home, tmp_path / "home")
  home, out = tmp_path / "home", tmp_path / "out"
  flags = [*faults.prune_flags(home, "magnitude"), f"--out={out}"]
  done = scripts.call("prune", *flags)
  assert done.returncode == 0, done.stderr
  assert f"wrote {out}\n" in done.stdout
  before = faults.contents(out)
  done = scripts.call("prune", *flags)
  assert done.returncode == 0 and "finished already" in done.stdout
  for name, field, value in (
    ("config.json", "rms_norm_eps", 0.1),
    ("generation_config.json", "eos_token_id", 5),
  ):
    path = home / "dense" / name
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {field: value}))
    done = scripts.call("prune", *flags)
    assert done.returncode == 1 and "inputs/models/model/" in done.stderr
    path.write_text(kept)
  assert faults.contents(out) == before
  assert files.read_checked(out / "summary.json")
