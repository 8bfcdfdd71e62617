"""Told to end, a script says what is kept and how to go on."""

import os
import pathlib
import signal
import subprocess
import sys

import faults
import pytest
import scripts

_SLOW_LAYER = """
import os, runpy, signal, sys
from jaxprune.pruning.checkpoint import resume
save = resume.save_layer
def stopped(*args):
  save(*args)
  os.kill(os.getpid(), signal.SIGINT)
resume.save_layer = stopped
sys.argv[0] = "prune"
runpy.run_module("experiments.prune", run_name="__main__", alter_sys=True)
"""


def test_one_line_and_the_command_that_goes_on(tmp_path):
  """Of SIGINT; test_pods sends SIGTERM."""
  home = faults.save_model(tmp_path, num_hidden_layers=2)
  flags = [*faults.prune_flags(home, "magnitude"), f"--out={home}/out"]
  done = subprocess.run(
    [sys.executable, "-c", _SLOW_LAYER, *flags],
    capture_output=True,
    text=True,
    cwd=scripts.ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(scripts.ROOT)),
  )
  assert done.returncode == 130, done.stderr
  assert "Traceback" not in done.stderr
  last = done.stderr.splitlines()[-1]
  scaffold = pathlib.Path(f"{home}/out.partial")
  assert last.startswith(f"stopped: what was finished is kept in {scaffold};")
  assert f"go on with: python -m experiments.prune {flags[0]}" in last
  assert scaffold.is_dir()
  done = scripts.call("prune", *flags)
  assert done.returncode == 0 and "layer 1/2" not in done.stderr
  assert not scaffold.exists()


def test_what_is_not_taken_up_is_removed(tmp_path, monkeypatch):
  from experiments import interrupts
  from jaxprune.report import run_stage

  description = {"made_by": "jaxprune", "flags": {}}
  with pytest.raises(interrupts.SignalError):
    with interrupts.as_exceptions():
      with run_stage.stage_run(tmp_path / "out", description):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
  assert not list(tmp_path.iterdir())
  monkeypatch.setattr(sys, "argv", ["x", "--out=a b"])
  assert interrupts.closing_line().startswith("stopped: nothing is kept; begin")
  assert interrupts.closing_line().endswith("'--out=a b'")
