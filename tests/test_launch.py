"""The start that all scripts share, and the flags that several have."""

import ast
import json
import logging
import sys
from unittest import mock

import pytest
import scripts
from absl import flags

from experiments import flag_groups, launch
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.studies import inputs

# Of another kind under a name that a group has: a list of pruned folders.
OWN = {("retrieval", "pruned")}


@pytest.fixture
def own_flags(monkeypatch):
  """A script's place to define flags: none are there, none stay."""
  values = flags.FlagValues()
  with mock.patch.multiple(flags, FLAGS=values):
    for name in (
      *("string", "integer", "float", "list", "enum", "multi_string"),
      "bool",
    ):
      define = getattr(flags, f"DEFINE_{name}")
      monkeypatch.setattr(
        flags,
        f"DEFINE_{name}",
        lambda *a, define=define, **k: define(*a, flag_values=values, **k),
      )
    alias = flags.DEFINE_alias
    monkeypatch.setattr(
      flags, "DEFINE_alias", lambda *a: alias(*a, flag_values=values)
    )
    yield values


def test_a_group_gives_its_flags_to_the_file_that_calls_it(own_flags):
  group = flag_groups.prompts(limit=3)
  assert [f.name for f in own_flags.get_key_flags_for_module(__name__)] == [
    *("prompts", "limit", "max_new_tokens", "num_prompts")
  ]
  own_flags(["script", "--num_prompts=2", "--prompts=texts.txt"])
  assert group.prompts.value == "texts.txt"
  assert (group.limit.value, group.max_new_tokens.value) == (2, 32)


def test_a_required_flag_has_no_default(own_flags):
  flag_groups.out()
  with pytest.raises(flags.IllegalFlagValueError, match="out"):
    own_flags(["script"])
  own_flags(["script", "--out=here"])


def test_configurations_and_seeds(own_flags):
  names = flag_groups.configurations(["wanda:0.5"])
  seeds = flag_groups.seeds()
  own_flags(["script", "--cells=rtn:4,wanda:2:4"])
  assert names.value == ["rtn:4", "wanda:2:4"] and seeds.value == [0, 1, 2]
  own_flags(["script", "--seeds=4,x"])
  with pytest.raises(ValueError, match="--seeds=4,x: give integers"):
    _ = seeds.value


def test_models_are_opened_by_role(own_flags):
  models = flag_groups.models(dense="pocket", pruned=None, alias=True)
  own_flags(["script"])
  assert list(models.open()) == ["dense"]
  own_flags(["script", "--pruned=pocket", "--model=pocket"])
  assert list(models.open()) == ["dense", "pruned"]


def test_flags_that_a_group_has_are_not_defined_again():
  shared = {
    *("model", "dense", "pruned", "prompts", "limit", "num_prompts"),
    *("max_new_tokens", "batch", "temperature", "analysis_temperature", "lens"),
    *("calibration", "num_samples", "seq_len", "configurations", "cells"),
    *("seeds", "seed", "out"),
  }
  again = set()
  for path in (scripts.ROOT / "experiments").glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("DEFINE")
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value in shared
      ):
        again.add((path.stem, node.args[0].value))
  assert again == OWN


def test_a_study_writes_its_run_and_says_where(tmp_path, capsys, own_flags):
  flag_groups.seed()
  own_flags(["script"])
  source = inputs.open_model("pocket")
  prompts = prompts_lib.Prompts(tokens=((1, 2), (3,)), source="here")
  with (
    mock.patch.object(sys, "argv", ["script", "--seed=0"]),
    mock.patch.object(launch, "_DISTRIBUTED", mock.Mock(value=False)),
    launch.study(
      tmp_path / "out",
      seeds={"bootstrap": 0},
      models={"dense": source, "pruned": None, "other": "a hash"},
      prompts=prompts,
      notes={"further": 1},
    ) as study,
  ):
    study.progress("row", 1).step(0, kl=0.5)
    study.run.write({"kl": 0.5})
    study.finish({"kl": 0.5}, "half a nat", wrote=("summary.json", "figures"))
    assert not capsys.readouterr().out
  folder = tmp_path / "out"
  run = json.loads((folder / "run.json").read_text())
  assert run["checkpoint_hash"].keys() == {"dense", "other"}
  assert run["checkpoint_hash"]["other"] == "a hash"
  assert run["command"] == "script --seed=0"
  assert run["prompts"] == {
    "source": "here",
    "hash": prompts.hash,
    "count": 2,
    "bos": None,
  }
  assert run["further"] == 1 and study.description.items() <= run.items()
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["kl"] == 0.5 and summary["seconds"] > 0
  assert capsys.readouterr().out == (
    f"half a nat\nwrote {folder}/summary.json and {folder}/figures\n"
  )


def test_a_study_that_fails_says_nothing(tmp_path, capsys, own_flags):
  own_flags(["script"])
  with (
    pytest.raises(ValueError, match="broken"),
    mock.patch.object(launch, "_DISTRIBUTED", mock.Mock(value=False)),
    launch.study(tmp_path / "out", seeds={}) as study,
  ):
    study.finish({})
    raise ValueError("broken")
  assert not capsys.readouterr().out


def test_what_the_library_logs_is_said_once(capsys):
  logger = logging.getLogger("jaxprune.checkpoints.source")

  def main():
    for _ in range(2):
      logger.info("%s: without effect: %s", "a/config.json", "x, y")
    logger.debug("never said")

  with (
    mock.patch.object(launch.app, "run", lambda entry, **_: entry(["script"])),
    mock.patch.object(launch, "is_quiet", lambda: False),
    mock.patch.object(launch, "_DISTRIBUTED", mock.Mock(value=False)),
  ):
    launch.run(main)
  captured = capsys.readouterr()
  assert captured.err == "note: a/config.json: without effect: x, y\n"
  assert captured.out == ""
  logger.info("no longer said")
  assert capsys.readouterr().err == ""
  assert logging.getLogger("jaxprune").propagate
