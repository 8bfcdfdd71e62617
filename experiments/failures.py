"""What does a script say when something goes wrong?

One line on stderr, for whatever was raised, with the path of a file that holds
the whole traceback. The traceback itself is shown where the fault is one of
this program and not of what it was given.
"""

import os
import pathlib
import shlex
import stat
import sys
import tempfile
import traceback

import jaxprune

from . import command_line

_ROOMS = (
  pathlib.Path(jaxprune.__file__).resolve().parent,
  pathlib.Path(__file__).resolve().parent,
)
# What code raises that is wrong, whatever it was given.
_FAULTS = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  ImportError,
  LookupError,
  NameError,
  NotImplementedError,
  TypeError,
)
_KEPT = 20  # tracebacks of one user


def tell(error: BaseException) -> None:
  """Print what happened in one line, and keep the traceback in a file.

  Args:
    error: what ended the script.
  """
  trace = "".join(traceback.format_exception(error))
  if is_fault(error):
    print(trace, file=sys.stderr, end="")
  path = _keep(trace)
  where = f" (traceback: {path})" if path else ""
  text = f"error: {_one_line(explain(error))}{where}"
  # A name of a file may hold what no terminal can show.
  print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


def is_fault(error: BaseException) -> bool:
  """Whether an exception speaks of this program and not of its input."""
  return isinstance(error, _FAULTS) and not _is_missing_package(error)


def explain(error: BaseException) -> str:
  """Say what happened and what to do.

  Args:
    error: any exception.
  """
  said = str(error)
  if is_fault(error):
    return (
      f"a fault of jaxprune, not of its input: {type(error).__name__}: {said};"
      " please report it with the traceback"
    )
  if _is_missing_package(error):
    return f"{said}; BUILD.md says which extra installs it"
  if isinstance(error, OSError):
    return _explain_system(error)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
    return (
      f"out of memory ({said or type(error).__name__}); use a smaller batch or"
      " shorter texts, or a machine with more memory"
    )
  if isinstance(error, ValueError) and _is_ours(error):
    return said
  return f"unexpected {type(error).__name__}: {said}"


def _is_missing_package(error: BaseException) -> bool:
  """Whether an optional package is not installed."""
  return isinstance(error, ModuleNotFoundError) and not (
    (error.name or "").startswith(("jaxprune", "experiments"))
  )


def _is_ours(error: BaseException) -> bool:
  """Whether the code of this program raised it, and so chose its words."""
  frames = traceback.extract_tb(error.__traceback__)
  last = pathlib.Path(frames[-1].filename) if frames else pathlib.Path()
  return any(last.resolve().is_relative_to(room) for room in _ROOMS)


def _explain_system(error: OSError) -> str:
  """What the system refused, at which file, and which flag names it."""
  if error.filename is None:
    return str(error)
  names = [
    os.fsdecode(name)
    for name in (error.filename, error.filename2)
    if isinstance(name, str | bytes | os.PathLike)
  ]
  for name in names:
    flag = _flag_of(name)
    if flag:
      return f"{flag}: {error.strerror}: {name!r}"
  return f"{' -> '.join(names)}: {error.strerror or type(error).__name__}"


def _flag_of(name: str) -> str | None:
  """The flag whose value is a path, or lies above, below or beside it."""
  wanted = os.path.abspath(name)
  best = None
  for flag in command_line.own_flags():
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    for value in values:
      if not isinstance(value, str) or not value:
        continue
      path = os.path.abspath(os.path.expanduser(value))
      beside = os.path.join(os.path.dirname(path), "." + os.path.basename(path))
      below = path.startswith(wanted.rstrip("/") + "/")
      if (
        below
        or wanted == path
        or wanted.startswith((path + "/", path + ".", beside))
      ):
        if best is None or len(path) > best[0]:
          best = len(path), f"--{flag.name}={value}"
  return best and best[1]


def _one_line(text: str, most: int = 2000) -> str:
  line = " ".join(text.split())
  line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
  return line if len(line) <= most else line[: most - 3] + "..."


def _keep(trace: str) -> pathlib.Path | None:
  """Write a traceback into a folder of this user; None where none can be."""
  try:
    folder = pathlib.Path(tempfile.gettempdir()) / f"jaxprune-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Somebody else's folder, or a link, of that name is not written to.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
      return None
    earlier = sorted(folder.glob("*.txt"), key=lambda p: p.lstat().st_mtime_ns)
    for path in earlier[: max(0, len(earlier) - _KEPT + 1)]:
      path.unlink(missing_ok=True)
    script = command_line.program()[-1].rpartition(".")[2] or "script"
    descriptor, name = tempfile.mkstemp(
      prefix=f"{script}-", suffix=".txt", dir=folder
    )
    with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
      file.write(f"{shlex.join(command_line.command())}\n\n{trace}")
  except OSError:
    return None
  return pathlib.Path(name)
