"""Who has the last word where a process of a pod is ended from below Python?

When a process of a pod dies, the runtime of JAX ends the others by SIGABRT, out
of C++, at any moment, with a stack trace. So a process of a pod forks before
JAX is loaded. The child does the work. The parent passes signals on, holds back
what the runtime writes, and when the child did not end by itself, says in one
line why, with the exit status 1.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
from typing import Any

from absl import logging

from . import interrupts

# From a signal to the end of the process, whatever the child does.
_PATIENCE = 28
# A line of the log of C++: its level and the file that it comes from.
_LOGGED = re.compile(rb"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] ")
_HELD = (b"client.", b"coordination_service", b"preemption_")
_LOST = re.compile(r"stopped sending heartbeats\):\n((?:\S*\d+\n)+)")


class Channel:
  """The child's end of the connection with its parent."""

  def __init__(self, connection: socket.socket):
    self._connection = connection

  def tell(self, **what: Any) -> None:
    """Tell the parent, for when the child is gone.

    Args:
      **what: `kept`, what an interrupted script leaves; `status`, the exit
        status of a child that needs no more explanation; `line`, its last.
    """
    with contextlib.suppress(OSError):  # no parent: the child ends, too
      self._connection.sendall(json.dumps(what).encode() + b"\n")

  def wait_for_signal(self) -> int | None:
    """The number of a signal that the parent gets; None when it is gone."""
    with contextlib.suppress(ConnectionError):  # it left things unread
      return next(iter(self._connection.recv(1)), None)
    return None


def fork() -> Channel:
  """Go on in a child; its parent does not return, it exits after it."""
  ours, theirs = socket.socketpair()
  read_end, write_end = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  stops = {signal.SIGINT, signal.SIGTERM}
  signal.pthread_sigmask(signal.SIG_BLOCK, stops)
  child = os.fork()
  if child:
    theirs.close()
    os.close(write_end)
    sys.exit(_Parent(child, ours).attend(read_end, stops))
  ours.close()
  os.close(read_end)
  os.setpgid(0, 0)  # a terminal interrupts the parent only, which passes it on
  # What Python writes goes where it went before; the pipe is for C++.
  sys.stderr = os.fdopen(
    os.dup(2),
    "w",
    buffering=1,
    encoding=sys.stderr.encoding,
    errors="backslashreplace",
  )
  os.dup2(write_end, 2)
  os.close(write_end)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
  channel = Channel(theirs)
  interrupts.watch_kept(lambda kept: channel.tell(kept=kept))
  return channel


class _Parent:
  """What the parent knows of its child."""

  def __init__(self, child: int, connection: socket.socket):
    self._child, self._connection = child, connection
    self._signal: int | None = None
    self._held: list[bytes] = []

  def attend(self, read_end: int, stops: set[signal.Signals]) -> int:
    """Wait for the child and give the exit status."""
    for number in stops:
      signal.signal(number, self._pass_on)
    signal.signal(signal.SIGALRM, self._kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    reader = threading.Thread(target=self._relay, args=(read_end,), daemon=True)
    reader.start()
    _, status = os.waitpid(self._child, 0)
    for number in (*stops, signal.SIGALRM):
      signal.signal(number, signal.SIG_IGN)
    reader.join(1)  # processes that the child began may live on
    return self._close(os.waitstatus_to_exitcode(status))

  def _pass_on(self, number, frame):
    del frame
    self._signal = self._signal or number
    with contextlib.suppress(OSError):
      self._connection.send(bytes([number]), socket.MSG_DONTWAIT)
    os.kill(self._child, number)
    signal.alarm(_PATIENCE)

  def _kill(self, number, frame):
    del number, frame
    os.kill(self._child, signal.SIGKILL)

  def _relay(self, read_end):
    """Pass on what C++ writes, but for the end of the runtime."""
    holding = False
    with os.fdopen(read_end, "rb") as pipe:
      for line in pipe:
        logged = _LOGGED.match(line)
        if logged:
          holding = logged[1] == b"F" or logged[2].startswith(_HELD)
        if holding:
          self._held.append(line)
        else:
          os.write(2, line)

  def _close(self, code) -> int:
    """Say why the child ended where it has not, and give the exit status."""
    said = self._read()
    if "status" in said or code == 0:
      self._show_held(logging.get_verbosity() >= logging.DEBUG)
      if "line" in said:
        print(said["line"], file=sys.stderr, flush=True)
      return said.get("status", 0)
    held = b"".join(self._held).decode("utf-8", "replace")
    cause = _cause(held)
    self._show_held(cause is None or logging.get_verbosity() >= logging.DEBUG)
    if code > 0:
      return code
    status = 1
    if cause is None and self._signal is not None:
      status = 128 + self._signal
    elif cause is None:
      cause = f"this process was ended by {signal.Signals(-code).name}"
      if code == -signal.SIGKILL:
        cause += " (by hand, or out of memory)"
    interrupts.keep(said.get("kept"))
    print(interrupts.closing_line(cause), file=sys.stderr, flush=True)
    return status

  def _read(self) -> dict[str, Any]:
    """What the child has told."""
    told: dict[str, Any] = {}
    self._connection.setblocking(False)
    raw = b""
    with contextlib.suppress(OSError):
      while part := self._connection.recv(1 << 16):
        raw += part
    for line in raw.splitlines():
      told.update(json.loads(line))
    return told

  def _show_held(self, wanted: bool) -> None:
    if wanted:
      os.write(2, b"".join(self._held))


def _cause(log: str) -> str | None:
  """What the runtime says of its end; None where it is not the pod."""
  down = "no longer answers (killed, or its machine or network is down)"
  lost = _LOST.search(log)
  if lost:
    numbers = re.findall(r"(\d+)$", lost[1], re.MULTILINE)
    return f"process {', '.join(sorted(numbers, key=int))} {down}"
  if "JAX distributed service" not in log:
    return None
  if "Failed to send RPC to coordination service" in log:
    return f"process 0 {down}"
  status = log.partition("absl::Status: ")[2].partition("\n")[0]
  reasons = {
    "DEADLINE_EXCEEDED": "not all processes of the pod came in time",
    "ALREADY_EXISTS": "another process came with the number of this one",
  }
  return reasons.get(status.partition(":")[0], f"the pod ended: {status}")
