"""Real processes that end before their time: SIGKILL, and no room for files.

One process imports what the scripts need and starts no backend of JAX; each run
is a fork of it, which does, and which finds its programs compiled. A child that
is killed could leave half a program in the cache of compiled ones, so only the
first run of a script writes there.
"""

import contextlib
import importlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence

import fault_jobs
import faults

_NEVER = 1e9  # seconds of a compilation that is worth keeping
_HANG = 900  # seconds of a run, on a machine however busy


class Server:
  """Starts scripts in forks of this process.

  Attributes:
    home: where the inputs lie; the log of the last child is written there.
  """

  def __init__(self, home: pathlib.Path):
    self.home = home
    self._log, self._modules = home / "log", home / "modules.json"

  def start(
    self, work: Callable[[], str], before: Callable[[], object] = lambda: None
  ) -> int:
    """Start a child in a session of its own; its process id.

    Args:
      work: what it does; returns what went wrong, or "".
      before: is called first.
    """
    pid = os.fork()
    if pid:
      return pid
    said = "escaped"
    try:
      os.setsid()
      signal.alarm(_HANG)
      before()
      said = work()
    except BaseException as error:  # noqa: BLE001
      said = f"escaped: {error!r}"
    finally:
      with contextlib.suppress(OSError):
        self._log.write_text(said)
      os._exit(bool(said))

  def call(
    self, script: str, flags: Sequence[str], name: str
  ) -> Callable[[], str]:
    """What runs a script, as the job `name`, with programs compiled before."""

    def work():
      import jax
      import scripts

      jax.config.update("jax_persistent_cache_min_compile_time_secs", _NEVER)
      with fault_jobs.cheaper(name):
        done = scripts.call(script, *flags)
      return f"{done.stderr} " if done.returncode else ""

    return work

  def run(self, work: Callable[[], str], **options) -> str:
    """Start a child and wait for it; what went wrong, or ""."""
    self._log.write_text("")
    code = finish(self.start(work, **options))
    return f"status {code}: {self._log.read_text()}" if code else ""

  def warm_up(self, work: Callable[[], object]) -> None:
    """Run something for the first time, and import what it needed.

    Args:
      work: may compile; the programs are kept.

    Raises:
      RuntimeError: it fails, or an import has started JAX.
    """
    from jax._src import xla_bridge

    def listed():
      work()
      self._modules.write_text(json.dumps(list(sys.modules)))
      return ""

    said = self.run(listed)
    if said:
      raise RuntimeError(said)
    for name in json.loads(self._modules.read_text()):
      # A script defines its flags when it is run.
      if not name.startswith(("experiments.", "__")):
        with contextlib.suppress(Exception):
          importlib.import_module(name)
    if xla_bridge.backends_are_initialized():
      raise RuntimeError("an import has started JAX: no fork is safe")


def finish(pid: int) -> int:
  """Wait for a process; its exit status, negative for a signal."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kills(
  names: Sequence[str], numbers: range, seed: int, home: pathlib.Path
) -> list[str]:
  """SIGKILL at uniformly random times of the life of a process.

  A process that ends before its time comes does not count: another is started.
  One in three jobs is killed twice.

  Args:
    names: of jobs, see `fault_jobs`; they take turns.
    numbers: of the kills; each depends on its number alone.
    seed: of the times.
    home: an empty folder.

  Returns:
    What went wrong, by number.
  """
  server, wrong = Server(home), []
  server.warm_up(lambda: fault_jobs.make_inputs(home))
  for place, name in enumerate(names):
    chosen = [n for n in numbers if n % len(names) == place]
    found = _kill_job(server, name, chosen, seed) if chosen else []
    wrong += found
    faults.tell(f"{name}: {len(chosen) - len(found)} of {len(chosen)}", found)
  return wrong


def _kill_job(server, name, numbers, seed) -> list[str]:
  out, wrong = server.home / f"out-{name}", []
  script, flags = fault_jobs.flags(server.home, name)
  flags = [*flags, f"--out={out}"]

  def first():
    with fault_jobs.cheaper(name):
      faults.call(script, *flags)

  server.warm_up(first)
  expected, work = fault_jobs.results(out), server.call(script, flags, name)
  shutil.rmtree(out)
  began = time.monotonic()
  wrong += filter(None, [server.run(work)])
  life = time.monotonic() - began
  for number in numbers:
    draw = random.Random(f"{seed} {number}")
    while True:
      shutil.rmtree(out, ignore_errors=True)
      seconds = draw.uniform(0, life)
      if _kill(server, work, seconds):
        break
    half = out.exists() and fault_jobs.results(out) != expected
    said = "half a folder" if half else ""
    if draw.random() < 1 / 3:
      _kill(server, work, draw.uniform(0, life))
    said = said or server.run(work) or _differs(out, expected)
    if said:
      wrong.append(f"{name} {number}, killed after {seconds:.2f} s: {said}")
  shutil.rmtree(out, ignore_errors=True)
  return wrong


def _kill(server, work, seconds: float) -> bool:
  """Kill a run after some seconds; whether it still lived."""
  pid = server.start(work)
  time.sleep(seconds)
  with contextlib.suppress(ProcessLookupError):
    os.killpg(pid, signal.SIGKILL)
  return finish(pid) == -signal.SIGKILL


def _differs(out, expected) -> str:
  """What is not as in a run that was left alone."""
  if not out.is_dir():
    return "there is no folder"
  lacking, beside = faults.missing(out), faults.leftovers(out)
  if lacking or beside:
    return f"lacks {lacking}, has {beside} beside it"
  found = fault_jobs.results(out)
  names = found.keys() | expected.keys()
  other = [n for n in sorted(names) if found.get(n) != expected.get(n)]
  return f"other {other}" if other else ""


def full(sizes: int, home: pathlib.Path) -> list[str]:
  """Files may not grow beyond a limit: one line, and the old model stays.

  Args:
    sizes: how many limits, up to the size of the largest file.
    home: an empty folder.

  Returns:
    What went wrong, by limit.
  """
  server, wrong, out = Server(home), [], home / "out"
  server.warm_up(lambda: faults.save_model(home, num_hidden_layers=2))
  flags = [*faults.prune_flags(home, "wanda"), f"--out={out}"]
  flags.append("--shard_size=2KB")
  server.warm_up(lambda: faults.call("prune", *flags))
  old = faults.contents(out)
  again = [*flags, "--sparsity=0.25", "--overwrite"]
  work = server.call("prune", again, "prune")
  largest = max(path.stat().st_size for path in out.rglob("*"))
  for index in range(sizes):
    limit = 1 + index * largest // sizes
    code = finish(server.start(work, lambda limit=limit: _limit_files(limit)))
    if code == 1 and faults.contents(out) == old:
      continue
    same = faults.contents(out) == old
    wrong.append(f"limit {limit}: status {code} same={same}")
  said = server.run(work)
  if said or faults.contents(out) == old:
    wrong.append(f"with room: {said}")
  if faults.missing(out) or faults.leftovers(out):
    wrong.append(f"with room: {faults.missing(out)} {faults.leftovers(out)}")
  return wrong


def _limit_files(size: int) -> None:
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
