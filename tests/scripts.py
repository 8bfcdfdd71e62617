"""How do tests run a script: as a process, or within their own?

A process costs some seconds before the script does anything. So every script
is started once for its --help, a few also for their work, and all else is
called here.
"""

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

from absl import flags

from experiments import launch

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
  """What is left of a script; the fields of `subprocess.CompletedProcess`."""

  returncode: int
  stdout: str
  stderr: str


def start(script: str, *arguments: object):
  """Run `experiments.script` in a process of its own and wait for it."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment,
    timeout=900,
    check=False,
  )


def call(script: str, *arguments: object) -> Finished:
  """Run `experiments.script` in this process, warnings being errors."""
  out, err, code = io.StringIO(), io.StringIO(), 0
  argv = [script, *map(str, arguments)]
  with (
    _fresh_flags(),
    _same_logging(),
    mock.patch.object(sys, "argv", argv),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      runpy.run_module(
        f"experiments.{script}", run_name="__main__", alter_sys=True
      )
    except SystemExit as end:
      code = end.code or 0
  return Finished(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@contextlib.contextmanager
def _fresh_flags():
  """Only the flags that all scripts share, and afterwards those of before."""
  values = flags.FLAGS
  hidden = {module: list(found) for module, found in _own_flags()}
  _remove(hidden)
  # A module whose flags were removed stays there with an empty list.
  known = {m for m, found in values.flags_by_module_dict().items() if found}
  try:
    yield
  finally:
    values.unparse_flags()
    _remove(
      {
        module: list(found)
        for module, found in values.flags_by_module_dict().items()
        if module not in known and module.endswith(".py")
      }
    )
    for module, found in hidden.items():
      for flag in found:
        values[flag.name] = flag
        values.register_flag_by_module(module, flag)
        values.register_key_flag_for_module(module, flag)


def _own_flags():
  """Flags of scripts that a test has imported."""
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith("experiments.") and module != launch.__name__:
      yield module, found


def _remove(flags_by_module):
  for found in flags_by_module.values():
    for flag in found:
      delattr(flags.FLAGS, flag.name)


@contextlib.contextmanager
def _same_logging():
  """absl takes over the root logger, and a script quietens JAX's."""
  root, of_jax = logging.getLogger(), logging.getLogger("jax")
  handlers, levels = list(root.handlers), (root.level, of_jax.level)
  try:
    yield
  finally:
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    of_jax.setLevel(levels[1])
