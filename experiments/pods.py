"""How do the processes of a pod begin together, and end together?

They compare their flags as they meet, and their inputs before work begins. The
first that fails says so to all, in the key-value store of JAX's coordination
service, and each ends with a line that names it. A process that is killed is
missed by its heartbeats; `pod_parent` says what the runtime makes of that.
SIGTERM on any process ends all after the same layer, by JAX's preemption sync.
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from . import failures, interrupts, pod_parent

# Seconds. A dead process is missed within _HEARTBEAT and the second or two that
# the service takes; 30 in all is what docs/runs.md promises.
_HEARTBEAT = 20
_GRACE = 20  # from a signal to the end of a pod that reaches no layer's end
_FAREWELL = 5  # for the others to hear why one ends
_WAITING = 10  # before a process says for whom it waits
_MEETING = 300
_FAILED, _TOLD = "jaxprune/failed", "jaxprune/told"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
  """How the processes find each other; all None where the cluster says it.

  Attributes:
    coordinator: host:port of process 0.
    processes: how many there are.
    index: of this one.
  """

  coordinator: str | None = None
  processes: int | None = None
  index: int | None = None


_member: "_Member | None" = None


@contextlib.contextmanager
def member(
  channel: pod_parent.Channel, address: Address, facts: Mapping[str, Any]
) -> Iterator[None]:
  """Be a process of a pod, whose end is that of the others.

  Args:
    channel: to the parent of this process.
    address: of the pod.
    facts: JSON values that all processes must have in common.

  Raises:
    ValueError: there is no such pod, or another process has other facts.
  """
  global _member
  _member = _Member(channel, address)
  try:
    _member.join()
    _member.agree("command", facts)
    yield
  except BaseException as error:
    _member.leave_by(error)
    raise
  _member.leave()


def index() -> int:
  """The number of this process in its pod; 0 outside of one."""
  return 0 if _member is None else _member.index


def agree(name: str, facts: Mapping[str, Any]) -> None:
  """Go on when all processes are here with the same facts.

  Every process of a pod calls it in the same order; elsewhere it does nothing.

  Args:
    name: what the facts are about, for those who wait.
    facts: JSON values.

  Raises:
    ValueError: in each process that has other facts than process 0.
  """
  if _member is not None:
    _member.agree(name, facts)


def leave_if_told() -> None:
  """After a layer: end where any process was told to, all after the same.

  Every process of a pod calls it as often; elsewhere it does nothing.

  Raises:
    SignalError: of SIGTERM.
  """
  if _member is not None:
    _member.leave_if_told()


class _Member:
  """This process, among those of its pod."""

  def __init__(self, channel: pod_parent.Channel, address: Address):
    self._channel, self._address = channel, address
    self.index = address.index or 0
    self._client: Any = None
    self._steps = itertools.count()
    self._meetings = itertools.count()
    # Who holds it speaks for the process and ends it.
    self._ending = threading.Lock()
    self._together = False

  def join(self) -> None:
    """Meet the others, and make the devices of all visible."""
    self._start(self._await_signal)
    import jax

    # There is no public name for the key-value store.
    from jax._src import distributed

    met = threading.Event()
    self._start(self._say_waiting, distributed.global_state, met)
    address = self._address
    place = _free_place(address)
    try:
      jax.distributed.initialize(
        address.coordinator,
        address.processes,
        address.index,
        coordinator_bind_address=place,
        initialization_timeout=_MEETING,
        heartbeat_timeout_seconds=_HEARTBEAT,
      )
    except (ValueError, RuntimeError) as error:
      raise ValueError(
        "--coordinator, --num_processes, --process_id: are needed where no TPU,"
        f" Slurm or Kubernetes tells the processes of each other ({error})"
      ) from error
    finally:
      met.set()
    state = distributed.global_state
    self.index, self._processes = state.process_id, state.num_processes
    self._client = state.client
    self._watcher = self._start(self._await_failure)

  def agree(self, name: str, facts: Mapping[str, Any]) -> None:
    """See `agree` of this file."""
    from jaxprune import staging

    where = f"jaxprune/{next(self._meetings)}"
    mine = json.loads(json.dumps(facts))
    others = range(1, self._processes)

    def missing():
      return sorted({*others} - self._numbers(f"{where}/here")) or [0]

    if self.index:
      theirs = self._get(f"{where}/0", name, lambda: [0])
      different = staging.first_difference(json.loads(theirs), mine)
      if different:
        path, there, here = different
        raise ValueError(
          f"{path.replace('flags/', '--')} is {here!r:.80} in process"
          f" {self.index} and {there!r:.80} in process 0; start all processes"
          " with the same flags and inputs"
        )
      self._client.key_value_set(f"{where}/here/{self.index}", "")
    else:
      self._client.key_value_set(f"{where}/0", json.dumps(mine))
      for other in others:
        self._get(f"{where}/here/{other}", name, missing)
      self._client.key_value_set(f"{where}/all", "")
    self._get(f"{where}/all", name, missing)

  def leave_if_told(self) -> None:
    """See `leave_if_told` of this file."""
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(next(self._steps)):
      self._together = True
      told = ", ".join(map(str, sorted(self._numbers(_TOLD)))) or "of the pod"
      raise interrupts.SignalError(
        signal.SIGTERM, f"process {told} was told to end (SIGTERM)"
      )

  def leave(self) -> None:
    """End well, when all others do."""
    import jax

    self._ending.acquire()  # a signal comes too late
    self._channel.tell(status=0)
    jax.distributed.shutdown()
    self._watcher.join(_FAREWELL)

  def leave_by(self, error: BaseException) -> None:
    """Say to the others why this process ends, and have it end soon."""
    if _is_of_runtime(error):
      # Most often because another process is gone: its name comes by heartbeat.
      time.sleep(_HEARTBEAT + _FAREWELL)
    self._ending.acquire()
    status = 1
    if isinstance(error, interrupts.SignalError):
      status = 128 + error.number
    self._channel.tell(status=status)
    if self._client is not None and not self._together:
      self._say_failed(_text(error))
    atexit.register(self._end, status)  # when all is said here, too

  def _end(self, status: int) -> NoReturn:
    """End at once, but not before the others know why."""
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    if self._client is not None:
      with contextlib.suppress(RuntimeError):  # not all of them come
        self._client.wait_at_barrier("jaxprune/end", _FAREWELL * 1000)
    os._exit(status)

  def _end_with(self, line: str, status: int) -> NoReturn:
    """End while the main thread may wait for something that never comes.

    Or still write: the line is the last, since the parent writes it.
    """
    self._channel.tell(status=status, line=line)
    self._end(status)

  def _say_failed(self, text: str) -> None:
    with contextlib.suppress(RuntimeError):  # somebody else was first
      self._client.key_value_set(_FAILED, f"process {self.index} {text}")

  def _start(self, target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread

  def _await_failure(self) -> None:
    """End this process when another one has said that it fails."""
    while True:
      try:
        reason = self._client.blocking_key_value_get(_FAILED, 3_600_000)
        break
      except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          return  # the pod has ended
    self._ending.acquire()
    self._end_with(interrupts.closing_line(reason), 1)

  def _await_signal(self) -> None:
    """End this process when it is told to and does not get to it."""
    number = self._channel.wait_for_signal()
    if number is None:  # there is no parent any more
      os._exit(1)
    name = signal.Signals(number).name
    if self._client is not None:
      self._client.key_value_set(f"{_TOLD}/{self.index}", name)
      time.sleep(_GRACE)
    self._ending.acquire()
    reason = f"was told to end ({name})"
    if self._client is not None:
      self._say_failed(reason)
      reason = f"process {self.index} {reason}"
    self._end_with(interrupts.closing_line(reason), 128 + number)

  def _say_waiting(self, state: Any, met: threading.Event) -> None:
    """Say for whom this process waits, until all have met."""
    seconds = _WAITING
    while not met.wait(seconds):
      seconds *= 2
      where = state.coordinator_address
      if state.client is None or not where:
        continue  # the cluster is still asked
      others = range(1, state.num_processes)
      if state.process_id == 0:
        missing = ", ".join(map(str, others))
        text = f"process {missing} to join it at {where}"
      elif _answers(where):
        missing = ", ".join(str(i) for i in others if i != state.process_id)
        text = f"process {missing}; process 0 is there"
      else:
        text = f"process 0 at {where}, which does not answer"
      _say(f"process {state.process_id} waits for {text}")

  def _get(self, key: str, name: str, missing: Callable[[], list[int]]) -> str:
    """Wait for a value, and now and then say for whom."""
    seconds = _WAITING
    while True:
      try:
        return self._client.blocking_key_value_get(key, seconds * 1000)
      except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise
      seconds *= 2
      numbers = ", ".join(map(str, missing()))
      _say(f"process {self.index} waits for process {numbers} ({name})")

  def _numbers(self, folder: str) -> set[int]:
    """The processes that have a key in a folder of the store."""
    pairs = self._client.key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]) for key, _ in pairs}


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _free_place(address: Address) -> str | None:
  """Where the service of process 0 listens; None where JAX decides.

  Raises:
    ValueError: the port is no port, or another program has it, with which the
      runtime would crash.
  """
  if address.coordinator is None:
    return None
  _, colon, port = address.coordinator.rpartition(":")
  if not colon or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ValueError(f"--coordinator={address.coordinator}: give host:port")
  if address.index != 0:
    return None
  with socket.socket() as ours:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      ours.bind(("0.0.0.0", int(port)))
    except OSError as error:
      raise ValueError(
        f"--coordinator={address.coordinator}: {error.strerror}; give another"
        " port to all processes"
      ) from error
  return f"0.0.0.0:{port}"


def _answers(where: str) -> bool:
  host, _, port = where.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), 2).close()
  except OSError:
    return False
  return True


def _is_of_runtime(error: BaseException) -> bool:
  import jax

  return isinstance(error, jax.errors.JaxRuntimeError) and (
    "RESOURCE_EXHAUSTED" not in str(error)
  )


def _text(error: BaseException) -> str:
  """How the others say why this process ends."""
  if isinstance(error, interrupts.SignalError):
    return f"was told to end ({error})"
  return f"ended by an error: {' '.join(failures.explain(error).split())}"
