"""Faults made on purpose: changed inputs, kills, full disks.

  python tests/faults.py --kind=mutations --seed=0 --count=20000
  python tests/faults.py --kind=kills --seed=0 --count=200
  python tests/faults.py --kind=points --every=1
  python tests/faults.py --kind=full

`mutations` changes one input at a time (`mutations`, `mutation_judges`).
`points` ends a run in this process at its n-th operation on files, for every n,
and lets another one go on (`fault_jobs`); `kills` ends real processes by
SIGKILL at uniformly random times; `full` limits the size of files, as a full
disk does. In each case the run that goes on must end with the bytes of one that
was left alone. Prints a line per kind; the exit status is 1 if anything else
happened.
"""

import argparse
import builtins
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
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
    run()
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


def _child(script, flags, before=lambda: None, log=None):
  """Start a script in a forked process, which has loaded everything."""
  pid = os.fork()
  if pid:
    return pid
  try:
    import scripts

    before()
    done = scripts.call(script, *flags)
    if log is not None:
      log.write_text(done.stderr)
    os._exit(done.returncode)
  except BaseException as error:  # noqa: BLE001
    if log is not None:
      log.write_text(f"escaped: {error!r}")
    os._exit(99)


def _must_succeed(home, flags) -> None:
  log = home / "log"
  if _finish(_child("prune", flags, log=log)):
    raise RuntimeError(log.read_text())


def _finish(pid) -> int:
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kills(count: int, seed: int, home: pathlib.Path) -> list[str]:
  """SIGKILL at uniformly random times, for pruning with and without data."""
  draw, wrong = random.Random(seed), []
  out = home / "out"
  for method in ("magnitude", "wanda"):
    shutil.rmtree(out, ignore_errors=True)
    flags = [*prune_flags(home, method), f"--out={out}"]
    began = time.monotonic()
    _must_succeed(home, flags)
    seconds, expected = time.monotonic() - began, contents(out)
    for index in range(count // 2):
      shutil.rmtree(out)
      for _ in range(draw.choice((1, 1, 2))):
        pid = _child("prune", flags)
        time.sleep(draw.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
        _finish(pid)
      log = home / "log"
      code = _finish(_child("prune", flags, log=log))
      if code or contents(out) != expected or missing(out) or leftovers(out):
        wrong.append(f"{method} {index}: status {code} {log.read_text()!r}")
  return wrong


def full(sizes: int, home: pathlib.Path) -> list[str]:
  """Files may not grow beyond a limit: one line, and the old model stays."""
  wrong, out, log = [], home / "out", home / "log"
  flags = [*prune_flags(home, "wanda"), f"--out={out}", "--shard_size=2KB"]
  _must_succeed(home, flags)
  old = contents(out)
  flags += ["--sparsity=0.25", "--overwrite"]
  largest = max(path.stat().st_size for path in out.rglob("*"))
  for index in range(sizes):
    limit = 1 + index * largest // sizes

    def before(limit=limit):
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = _finish(_child("prune", flags, before))
    if code == 1 and contents(out) == old:
      continue
    wrong.append(f"limit {limit}: status {code} same={contents(out) == old}")
  code = _finish(_child("prune", flags, log=log))
  if code or contents(out) == old or missing(out) or leftovers(out):
    wrong.append(f"with room: status {code} {log.read_text()!r}")
  return wrong


def mutated(
  home: pathlib.Path, count: int, seed: int, first: int = 0
) -> list[str]:
  """Inputs with one change each: the right result, or one clear line.

  Args:
    home: an empty folder.
    count: of inputs.
    seed: of the changes.
    first: number of the first input; each depends on its number alone.

  Returns:
    What went wrong, by number.
  """
  import mutation_judges

  worlds, wrong = mutation_judges.make_worlds(home), []
  began = time.monotonic()
  for number in range(first, first + count):
    world = worlds[number % len(worlds)]
    draw = random.Random(f"{seed} {number}")
    found = mutation_judges.try_one(world, draw)
    if found:
      wrong.append(f"{number}: {found}")
      print(wrong[-1], file=sys.stderr, flush=True)
    if (number + 1) % 1000 == 0:
      seconds = time.monotonic() - began
      print(
        f"{number + 1} inputs, {len(wrong)} wrong, {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
      )
  return wrong


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  kinds = ("points", "kills", "full", "mutations")
  parser.add_argument("--kind", choices=kinds, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--count", type=int, default=200, help="kills, mutations")
  parser.add_argument("--first", type=int, default=0, help="of mutations")
  parser.add_argument(
    "--scripts",
    default="prune,wanda,convert,evaluate,discrepancy,recover",
    help="whose points are tried",
  )
  parser.add_argument("--every", type=int, default=1, help="n-th point only")
  options = parser.parse_args()
  os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1")
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    tried, wrong = _try(options, pathlib.Path(name))
  print("\n".join(wrong))
  print(
    f"{options.kind}: {tried - len(wrong)} of {tried} as they should be,"
    f" {time.monotonic() - began:.0f} s"
  )
  sys.exit(bool(wrong))


def _try(options, home: pathlib.Path) -> tuple[int, list[str]]:
  """How many cases of a kind were tried, and what went wrong."""
  if options.kind == "mutations":
    return options.count, mutated(
      home, options.count, options.seed, options.first
    )
  if options.kind == "points":
    return _points(options, home)
  save_model(home, num_hidden_layers=2)
  _load()
  if options.kind == "kills":
    return options.count // 2 * 2, kills(options.count, options.seed, home)
  return 15, full(15, home)


def _points(options, home: pathlib.Path) -> tuple[int, list[str]]:
  """Cut every script off at its operations on files."""
  import fault_jobs

  fault_jobs.make_inputs(home)
  tried, wrong = 0, []
  for name in options.scripts.split(","):
    script, flags = fault_jobs.flags(home, name)
    out, chosen = home / f"out-{name}", []

    def run(script=script, flags=flags, out=out):
      call(script, *flags, f"--out={out}")

    def points(number, chosen=chosen):
      chosen.extend(range(1 + options.seed, number + 1, options.every))
      return chosen

    run()  # what is compiled and cached is not counted
    shutil.rmtree(out)
    found = every_point(run, out, points, fault_jobs.results)
    wrong += [f"{name}: {each}" for each in found]
    tried += len(chosen)
    print(
      f"{name}: {len(chosen) - len(found)} of {len(chosen)}",
      file=sys.stderr,
      flush=True,
    )
  return tried, wrong


def _load() -> None:
  """Import what a script needs, without starting JAX, before forking."""
  import scripts  # noqa: F401

  from jaxprune.pruning.checkpoint import weights  # noqa: F401
  from jaxprune.report import run_stage  # noqa: F401
  from jaxprune.studies import prune  # noqa: F401


if __name__ == "__main__":
  main()
