"""Faults made on purpose: changed inputs, kills, full disks.

  python tests/faults.py --kind=mutations --seed=0 --count=20000
  python tests/faults.py --kind=flags --seed=0 --count=3000
  python tests/faults.py --kind=kills --seed=0 --count=200
  python tests/faults.py --kind=points --every=1
  python tests/faults.py --kind=full

`mutations` changes one input at a time (`mutations`, `mutation_judges`),
`flags` the value of a flag (`mutation_flags`).
`points` ends a run in this process at its n-th operation on files, for every n,
and lets another one go on, for each of the `fault_jobs`; `kills` ends real
processes by SIGKILL at uniformly random times; `full` limits the size of files,
as a full disk does (`fault_kills`). In each case the run that goes on must end
with the bytes of one that was left alone. Prints a line per kind; the exit
status is 1 if anything else happened.
"""

import argparse
import builtins
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# Times, memory, paths and the order in which files are written.
_RUN_FILES = (
  "checksums.json",
  "progress.json",
  "records.jsonl",
  "run.json",
  "summary.json",
)


class DeathError(BaseException):
  """The process would be dead from here on."""


@dataclasses.dataclass
class Death:
  """Raises at the n-th operation on files, and at every later one.

  Attributes:
    at: number of the operation, from 1; 0 counts only.
    count: operations so far.
  """

  at: int = 0
  count: int = 0

  def step(self) -> None:
    self.count += 1
    if self.at and self.count >= self.at:
      raise DeathError


def _stepping(death, function):
  def wrapped(*args, **kwargs):
    death.step()
    return function(*args, **kwargs)

  return wrapped


@contextlib.contextmanager
def dying(death: Death, folder: pathlib.Path):
  """Make every operation that changes files below a folder a place to die.

  Locks go with the process: their files are closed at the end.

  Args:
    death: says where.
    folder: operations elsewhere are left alone.
  """
  locks, flock, opened = [], fcntl.flock, builtins.open
  from jaxprune import staging

  def locking(descriptor, operation):
    flock(descriptor, operation)
    locks.append((descriptor, os.fstat(descriptor).st_ino))

  def opening(file, mode="r", *args, **kwargs):
    inside = isinstance(file, str | os.PathLike) and str(file).startswith(
      str(folder)
    )
    if inside and set(mode) & set("wax+"):
      death.step()
    return opened(file, mode, *args, **kwargs)

  with contextlib.ExitStack() as stack:
    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync"):
      wrapped = _stepping(death, getattr(os, name))
      stack.enter_context(mock.patch.object(os, name, wrapped))
    stack.enter_context(mock.patch.object(builtins, "open", opening))
    stack.enter_context(mock.patch.object(fcntl, "flock", locking))
    exchange = _stepping(death, staging.exchange)
    stack.enter_context(mock.patch.object(staging, "exchange", exchange))
    try:
      yield
    finally:
      for descriptor, inode in locks:
        with contextlib.suppress(OSError):
          if os.fstat(descriptor).st_ino == inode:
            os.close(descriptor)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """What must be the same however often a run was cut off."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name not in _RUN_FILES
  }


def leftovers(folder: pathlib.Path) -> list[str]:
  """What lies beside a folder, or hidden in it, when all is done."""
  beside = [
    path.name
    for path in folder.parent.iterdir()
    if path.name.lstrip(".").startswith(folder.name) and path != folder
  ]
  hidden = (path.name for path in folder.rglob(".*"))
  return beside + [name for name in hidden if name != ".zarray"]  # of orbax


def missing(folder: pathlib.Path) -> list[str]:
  """The files of a run that are not there."""
  return [name for name in _RUN_FILES[2:] if not (folder / name).is_file()]


def every_point(run, out: pathlib.Path, points, contents=contents) -> list[str]:
  """Cut a run off at many points and let it go on.

  Args:
    run: writes `out`; called again it goes on.
    out: the folder.
    points: from the number of operations to those at which to die.
    contents: what must be the same in the end.

  Returns:
    What went wrong, by point.
  """
  death = Death()
  with dying(death, out.parent):
    run()
  expected, wrong = contents(out), []
  for point in points(death.count):
    shutil.rmtree(out)
    try:
      with dying(Death(at=point), out.parent):
        run()
    except DeathError:
      pass
    if out.exists() and contents(out) != expected:
      wrong.append(f"point {point}: half a folder")
      continue
    try:
      run()
    except RuntimeError as error:
      wrong.append(f"point {point}: {error}")
      for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path)
      run()
      continue
    if contents(out) != expected or missing(out) or leftovers(out):
      wrong.append(
        f"point {point}: {missing(out)} {leftovers(out)}"
        f" same={contents(out) == expected}"
      )
  return wrong


def save_model(
  home: pathlib.Path, *, folder: str = "dense", shard: str = "5GB", **fields
) -> pathlib.Path:
  """A tiny random model with ids to calibrate on.

  Args:
    home: where both are written.
    folder: name of the model.
    shard: size of a file of weights.
    **fields: of its configuration.
  """
  import hf_models
  import numpy as np

  small = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 32,
  }
  with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
    model = hf_models.save_llama(home / folder, **small | fields)
    if shard != "5GB":
      (home / folder / "model.safetensors").unlink()
      model.save_pretrained(home / folder, max_shard_size=shard)
  np.savez(
    home / "ids.npz",
    calibration=np.random.default_rng(0).integers(3, 30, (4, 8)),
  )
  return home


def prune_flags(folder: pathlib.Path, method: str) -> list[str]:
  """The flags of `prune` on the model of `save_model`, but for --out."""
  flags = [f"--model={folder}/dense", f"--method={method}"]
  if method != "magnitude":
    flags.append(f"--calibration={folder}/ids.npz")
  return flags


def call(script: str, *flags: str) -> None:
  """Run a script in this process; it must end well."""
  import scripts

  done = scripts.call(script, *flags)
  if done.returncode:
    raise RuntimeError(done.stderr)


def tell(line: str, wrong: Sequence[str] = ()) -> None:
  """Print how far a long run is, and what went wrong there."""
  print("\n".join([*wrong, line]), file=sys.stderr, flush=True)


def mutated(worlds: Sequence[Any], numbers: range, seed: int) -> list[str]:
  """Inputs with one change each: the right result, or one clear line.

  Args:
    worlds: of `mutation_judges` or `mutation_flags`; they take turns.
    numbers: of the inputs; each depends on its number alone.
    seed: of the changes.

  Returns:
    What went wrong, by number.
  """
  wrong: list[str] = []
  began = time.monotonic()
  for number in numbers:
    world = worlds[number % len(worlds)]
    draw = random.Random(f"{seed} {number}")
    found = world.try_one(draw)
    if found:
      wrong.append(f"{number}: {found}")
      tell(wrong[-1])
    if (number + 1) % 1000 == 0:
      seconds = time.monotonic() - began
      tell(f"{number + 1} inputs, {len(wrong)} wrong, {seconds:.0f} s")
  return wrong


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  kinds = ("points", "kills", "full", "mutations", "flags")
  parser.add_argument("--kind", choices=kinds, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--count", type=int, default=200, help="but of points, full"
  )
  parser.add_argument("--first", type=int, default=0, help="number of these")
  parser.add_argument("--scripts", default="", help="jobs of fault_jobs only")
  parser.add_argument("--every", type=int, default=1, help="n-th point only")
  options = parser.parse_args()
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    _surround(pathlib.Path(name) / "caches")
    home = pathlib.Path(name) / "home"
    home.mkdir()
    tried, wrong = _try(options, home)
  print("\n".join(wrong))
  print(
    f"{options.kind}: {tried - len(wrong)} of {tried} as they should be,"
    f" {time.monotonic() - began:.0f} s, of processors"
    f" {_processor_seconds():.0f} s"
  )
  sys.exit(bool(wrong))


def _processor_seconds() -> float:
  """Of this process and those that it waited for."""
  return sum(os.times()[:4])


def _surround(caches: pathlib.Path) -> None:
  """Set the environment of JAX and of datasets, before either is imported."""
  os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_COMPILATION_CACHE_DIR=f"{caches}/jax",
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    XLA_FLAGS="--xla_backend_optimization_level=0",
    HF_HUB_OFFLINE="1",
    HF_HOME=f"{caches}/huggingface",
  )


def _try(options, home: pathlib.Path) -> tuple[int, list[str]]:
  """How many cases of a kind were tried, and what went wrong."""
  numbers = range(options.first, options.first + options.count)
  if options.kind in ("mutations", "flags"):
    import mutation_flags
    import mutation_judges

    kinds = {"mutations": mutation_judges, "flags": mutation_flags}
    worlds = kinds[options.kind].make_worlds(home)
    return len(numbers), mutated(worlds, numbers, options.seed)
  import fault_jobs
  import fault_kills

  names = options.scripts.split(",") if options.scripts else fault_jobs.SCRIPTS
  if options.kind == "points":
    return _points(names, options, home)
  if options.kind == "kills":
    return len(numbers), fault_kills.kills(names, numbers, options.seed, home)
  return 15, fault_kills.full(15, home)


def _points(names, options, home: pathlib.Path) -> tuple[int, list[str]]:
  """Cut every script off at its operations on files."""
  import fault_jobs

  fault_jobs.make_inputs(home)
  tried, wrong = 0, []
  for name in names:
    script, flags = fault_jobs.flags(home, name)
    out, chosen = home / f"out-{name}", []

    def run(script=script, flags=flags, out=out):
      call(script, *flags, f"--out={out}")

    def points(number, chosen=chosen):
      chosen.extend(range(1 + options.seed, number + 1, options.every))
      return chosen

    with fault_jobs.cheaper(name):
      run()  # what is compiled and cached is not counted
      shutil.rmtree(out)
      found = every_point(run, out, points, fault_jobs.results)
    wrong += [f"{name}: {each}" for each in found]
    tried += len(chosen)
    tell(f"{name}: {len(chosen) - len(found)} of {len(chosen)}", found)
  return tried, wrong


if __name__ == "__main__":
  main()
