"""How every script starts, tells where it is, and ends on bad input.

Leftover arguments are refused, and an error that the user can mend is one
line on stderr with exit status 1. `--verbosity=1` shows the whole traceback.
"""

import logging as python_logging
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the processes of a pod first. A TPU, Slurm or Kubernetes tells them"
  " of each other; elsewhere set --coordinator, --num_processes and"
  " --process_id.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the pod.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process.")


def run(main: Callable[[], None]) -> None:
  """Parse the flags, join the pod if there is one, call `main()`, exit."""

  def entry(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # absl shows what JAX logs of every accelerator that is not there.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)
    try:
      if _DISTRIBUTED.value:
        _join()
      main()
    except (ValueError, OSError) as error:
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      print("error: " + " ".join(str(error).split()), file=sys.stderr)
      sys.exit(1)

  app.run(entry)


def _join() -> None:
  """Make the devices of all processes visible, before any is used."""
  import jax

  if _COORDINATOR.value is None:
    jax.distributed.initialize()
    return
  port = _COORDINATOR.value.rpartition(":")[2]
  jax.distributed.initialize(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    coordinator_bind_address=(
      f"0.0.0.0:{port}" if _PROCESS_ID.value == 0 else None
    ),
  )


def is_quiet() -> bool:
  """Whether another process of the pod speaks."""
  if not _DISTRIBUTED.value:
    return False
  import jax

  return jax.process_index() != 0


def say(text: str) -> None:
  """Print a line for the person who waits, once for a whole pod."""
  if not is_quiet():
    print(text, file=sys.stderr, flush=True)


def flag_values() -> dict[str, Any]:
  """The script's own flags with their resolved values, for run.json."""
  own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  return {flag.name: flag.value for flag in own}


class Progress:
  """A line per finished unit with the time left; a bar on a terminal."""

  def __init__(self, unit: str, total: int):
    self._unit, self._total, self._done = unit, total, 0
    self._began = time.monotonic()
    self._bar = None
    if sys.stderr.isatty() and not is_quiet():
      import tqdm

      self._bar = tqdm.tqdm(total=total, unit=unit, leave=False)

  def step(self, index: int, **numbers: float | None) -> None:
    """Tell that unit `index` is finished, with what was measured there."""
    if is_quiet():
      return
    self._done += 1  # not index + 1: a resumed run begins in the middle
    shown = {k: f"{v:.4g}" for k, v in numbers.items() if v is not None}
    if self._bar is not None:
      self._bar.update(index + 1 - self._bar.n)
      self._bar.set_postfix(shown)
      return
    spent = time.monotonic() - self._began
    left = spent / self._done * (self._total - 1 - index)
    words = " ".join(f"{k}={v}" for k, v in shown.items())
    say(
      f"{self._unit} {index + 1}/{self._total} {words} "
      f"{spent:.1f} s, {max(left, 0):.0f} s left"
    )
