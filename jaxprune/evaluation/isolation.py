"""How is a process kept apart from the machine it runs on?

By what the system has: bubblewrap, else the namespaces of Linux through
util-linux. Both give a process a file system of its own (the interpreter and
the system's libraries, to read, and an empty folder in memory), no network, no
other process to see or to signal, no privileges, and an end with whoever
started it. Each is tried before it is believed. Started by root, the process
runs as a user that nobody is.

`docs/code_execution.md` says what is and what is not contained.
"""

import dataclasses
import functools
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

_MEGABYTE = 1 << 20
# Where programs and libraries are; links among them stay links.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_LINKER = "/etc/ld.so.cache"
_DEVICES = ("/dev/null", "/dev/urandom")
# Without `.pth` files, which cost most of the start of an interpreter.
PYTHON = (sys.executable, "-I", "-S", "-c")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
  "HOME": "/tmp",
  "LC_ALL": "C.UTF-8",
  "OPENBLAS_NUM_THREADS": "1",  # its threads would exceed the limits
  "PATH": _PATH,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What a program, or its tests, may use.

  Attributes:
    seconds: processor time of a process.
    memory: bytes: address space of a process, and resident in all together.
    file_size: bytes of a file.
    folder_size: bytes of all files together; where it is isolated.
    files: their number; where it is isolated.
    processes: at a time.
    output: bytes on stdout and stderr.
  """

  seconds: int = 10
  memory: int = 512 * _MEGABYTE
  file_size: int = _MEGABYTE
  folder_size: int = 16 * _MEGABYTE
  files: int = 256
  processes: int = 16
  output: int = _MEGABYTE

  @property
  def idle_seconds(self) -> int:
    """In which nothing wants to compute: a busy machine does not count."""
    return self.seconds + 2

  @property
  def wall_seconds(self) -> int:
    """Until all is ended, however busy the machine is."""
    return 30 * self.seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Isolation:
  """A way to start a process.

  Attributes:
    name: 'bubblewrap', 'namespaces' or 'none'.
    folder: where the process may write; None is the folder it is given.
    command: from what runs inside, the limits and an empty folder outside to
      the command that runs it.
  """

  name: str
  folder: str | None
  command: Callable[[Sequence[str], Limits, str], list[str]]


def _bubblewrap(
  inside: Sequence[str], limits: Limits, folder: str
) -> list[str]:
  del folder
  command = ["setpriv", "--pdeathsig", "KILL", "bwrap", "--die-with-parent"]
  for kind in ("ipc", "pid", "net", "uts", "cgroup-try"):
    command.append(f"--unshare-{kind}")
  command += ["--new-session", "--cap-drop", "ALL"]
  if os.getuid():
    command.append("--unshare-user")
  else:  # To become nobody; nothing of it is left then.
    command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
  command += ["--perms", "1777", "--size", str(limits.folder_size)]
  command += ["--tmpfs", "/tmp"]
  for path in (*_visible(), *_DEVICES):
    for parent in [*pathlib.Path(path).parents][-2::-1]:
      command += ["--dir", str(parent)]  # else it would be for its owner only
    if os.path.islink(path):
      command += ["--symlink", os.readlink(path), path]
    else:
      kind = "--dev-bind" if path in _DEVICES else "--ro-bind"
      command += [kind, path, path]
  command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
  return [*command, *_nobody(), *inside]


# Makes the file system, with PID 1 staying outside of it: signals and limits
# do not end a first process, so the program must not be it.
_SCRIPT = """
set -e
root=$1 size=$2 files=$3; shift 3
mount -t tmpfs -o mode=755,size=1m,nosuid tmpfs "$root"
mkdir "$root/tmp" "$root/dev" "$root/etc"
mount -t tmpfs -o "mode=1777,size=$size,nr_inodes=$files,nosuid,nodev" \
  tmpfs "$root/tmp"
while [ "$1" != -- ]; do
  if [ -L "$1" ]; then
    cp -P "$1" "$root$1"
  elif [ -d "$1" ]; then
    mkdir -p "$root$1"
    mount -o bind,ro,nosuid,nodev "$1" "$root$1"
  else
    : > "$root$1"
    mount --bind "$1" "$root$1"
  fi
  shift
done
shift
mount -o remount,bind,ro,nosuid "$root"
chroot "$root" "$@"
exit $?
"""


def _namespaces(
  inside: Sequence[str], limits: Limits, folder: str
) -> list[str]:
  command = ["setpriv", "--pdeathsig", "KILL", "unshare"]
  for kind in ("mount", "net", "pid", "ipc", "uts", "cgroup"):
    command.append(f"--{kind}")
  command += ["--fork", "--kill-child"]
  if os.getuid():
    command += ["--user", "--map-root-user"]
  command += ["sh", "-c", _SCRIPT, "sh", folder]
  command += [str(limits.folder_size), str(limits.files + 1)]
  command += [*_visible(), *_DEVICES, "--"]
  return [*command, *_nobody(), *inside]


def _unlimited(inside: Sequence[str], limits: Limits, folder: str) -> list[str]:
  del limits, folder
  return list(inside)


NONE = Isolation(name="none", folder=None, command=_unlimited)
BACKENDS = (
  Isolation(name="bubblewrap", folder="/tmp", command=_bubblewrap),
  Isolation(name="namespaces", folder="/tmp", command=_namespaces),
)
_NEEDS = {
  "bubblewrap": ("bwrap", "setpriv"),
  "namespaces": ("unshare", "mount", "chroot", "setpriv"),
}


def _nobody() -> list[str]:
  """Gives away all privileges, and root its identity."""
  command = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
  if os.getuid():
    return [*command, "--bounding-set=-all"]
  # A number of its own, so that no process of others counts or can be reached.
  user = 40000 + secrets.randbelow(20000)
  return [*command, f"--reuid={user}", f"--regid={user}", "--clear-groups"]


@functools.cache
def _visible() -> tuple[str, ...]:
  """Paths that an interpreter needs, none below another."""
  python = pathlib.Path(sys.executable)
  wanted = [
    *map(pathlib.Path, _SYSTEM),
    pathlib.Path(sys.prefix),
    pathlib.Path(sys.base_prefix),
    pathlib.Path(sys.base_prefix).resolve(),
    python.resolve().parents[1],
  ]
  paths: list[pathlib.Path] = []
  for path in wanted:
    if path.exists() and not any(path.is_relative_to(kept) for kept in paths):
      paths.append(path)
  linker = [_LINKER] if os.path.exists(_LINKER) else []
  return (*map(str, paths), *linker)


# Fails unless the file system, the network and the user are what they should.
_PROBE = """
import os, socket
for path in ("/proc/1", "/sys/kernel", "/dev/shm"):
  assert not os.path.exists(path), f"{path} is there"
open("/tmp/own", "w").close()
for path in ("/own", "/usr/own", "/dev/own"):
  try:
    open(path, "w").close()
  except OSError:
    continue
  raise SystemExit(f"{path} can be written")
try:
  socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
except OSError:
  pass
else:
  raise SystemExit("there is a network")
try:
  os.chroot("/tmp")
except OSError:
  pass
else:
  raise SystemExit("it has privileges")
"""


@functools.cache
def why_not(isolation: Isolation) -> str:
  """Why this isolation does not work on this machine; "" if it does."""
  for name in _NEEDS[isolation.name]:
    if shutil.which(name, path=_PATH) is None:
      return f"{name} is not installed"
  with tempfile.TemporaryDirectory() as folder:
    command = isolation.command([*PYTHON, _PROBE], Limits(), folder)
    try:
      done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
      )
    except subprocess.TimeoutExpired:
      return "it does not end"
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ["it fails"]
    return lines[-1][:200]
  return ""


def find(*, without_isolation: bool = False) -> Isolation:
  """The first isolation that works here.

  Args:
    without_isolation: take none.

  Raises:
    ValueError: this is not Linux, or none works and that was not allowed.
  """
  if os.name != "posix" or not sys.platform.startswith("linux"):
    raise ValueError(
      f"code execution needs limits that {sys.platform} does not have; use"
      " Linux"
    )
  if without_isolation:
    return NONE
  for isolation in BACKENDS:
    if not why_not(isolation):
      return isolation
  reasons = "; ".join(f"{each.name}: {why_not(each)}" for each in BACKENDS)
  raise ValueError(
    f"code cannot be isolated here ({reasons}): install bubblewrap, allow"
    " user namespaces, or say without_isolation (--without_isolation) where the"
    " code may do harm"
  )
