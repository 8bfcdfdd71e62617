"""Strict surroundings for every test.

Eight host devices, rank promotion raises, matmul precision highest, no
network. Warnings are errors (setup.cfg).
"""

import os
import tempfile

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  # Four fifths of the suite is compilation; this leaves out what makes the
  # machine code fast, not what XLA makes of the program.
  + " --xla_backend_optimization_level=0"
  # The other way to machine code needs a quarter of the time for the same
  # fusions. An XLA that no longer has it ends the process and names the flag.
  + " --xla_cpu_use_fusion_emitters=false"
  # One part instead of many for each program: a quarter less.
  + " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# One thread for each worker: of two, PyTorch's second waits by spinning, which
# took a quarter of the processor time of the tests against stock.
os.environ["OMP_NUM_THREADS"] = "1"
# Each worker keeps what it compiled, for tests that compile the same program
# and for the scripts that it starts. Not for all workers: JAX writes the files
# in place, and another process could read half of one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(
  prefix="jaxprune-tests-"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"

import functools
import gc
import pathlib
import shutil
import socket

import hypothesis
import jax
import pytest
from hypothesis.internal.conjecture import providers
from jax._src.interpreters import mlir

# JAX makes a new context for every program, which is a sixth of the time where
# programs are small; they can share one.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# No test cuts the power, which is all that a flush to the disk is for; the
# tests would wait for thousands of them.
os.fsync = lambda descriptor: None

# Hypothesis draws numbers that it reads in the modules imported so far, which
# another order of the tests changes: what fails must fail again.
providers._get_local_constants = lambda: providers._local_constants

# A busy machine is no failed property, and a failure must come back on rerun.
hypothesis.settings.register_profile(
  "jaxprune",
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxprune")

# Measured, not guessed; BUILD.md says how the list is made.
_SLOW = frozenset(
  pathlib.Path(__file__).with_name("slow_tests.txt").read_text().split()
)


# They take longest and hold few tests: begun last, they would run alone. Pods
# mostly wait, while the other worker computes.
_FIRST = ("test_pods", "test_prune_mesh", "test_scripts")


def pytest_collection_modifyitems(items):
  """Leave what takes more than a second out of the quick subset.

  Files that start scripts come first (setup.cfg keeps xdist from sorting the
  files by their number of tests).
  """
  items.sort(
    key=lambda item: (
      not (item.path.stem in _FIRST or item.path.stem.endswith("_script"))
    )
  )
  for item in items:
    name = item.nodeid.partition("[")[0]
    if name in _SLOW or name.partition("::")[0] in _SLOW:
      item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
  """Let the collector of garbage pass over what the imports made.

  Half a million objects stay to the end; looking at them again and again took
  a thirtieth of the time.
  """
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure():
  """Remove the programs; a worker of xdist runs no exit handlers."""
  folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
  shutil.rmtree(folder, ignore_errors=True)


# Linux gives a process 65,530; the rest is room for one file of tests.
_MANY_MAPPINGS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
  """Forget compiled programs before the process runs out of memory mappings.

  XLA maps a few regions for every program. At the limit of the kernel
  (vm.max_map_count) the next one ends the process without a message.
  """
  yield
  mappings = pathlib.Path("/proc/self/maps")
  if mappings.exists() and mappings.read_text().count("\n") > _MANY_MAPPINGS:
    jax.clear_caches()


_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  """Let a socket reach this machine only."""
  connect = socket.socket.connect

  def guarded(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
      raise OSError(f"tests may not reach the network: {address}")
    return connect(self, address)

  monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real checkpoints, data and golden outputs."""
  name = os.environ.get("JAXPRUNE_SHARED", "")
  if not name:
    pytest.skip("JAXPRUNE_SHARED is not set: no real checkpoints to test on")
  folder = pathlib.Path(name)
  if not (folder / "weights").is_dir():
    pytest.skip(f"JAXPRUNE_SHARED={folder} has no folder weights/")
  return folder


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory) -> pathlib.Path:
  """The pocket model cut to two layers: it knows nothing, but is soon compiled.

  For scripts whose numbers do not matter, with the texts of `pocket`.
  """
  import pocket_models

  return pocket_models.save_cut(
    tmp_path_factory.mktemp("pocket") / "model", layers=2
  )


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
  """From a key of `checkpoint_cases.CASES` to its folder, made once."""
  import checkpoint_cases

  return checkpoint_cases.folders_of(tmp_path_factory)
