"""How does a folder appear whole, or not at all, and who may write it?

A run that writes FOLDER works beside it, in `FOLDER.partial`: `new` there is
filled and takes the name FOLDER in one rename; all else there is scaffolding,
which never gets that name. `begun.json` says whose work it is.

A process killed at any moment leaves the old FOLDER or the new one. What lies
in `FOLDER.partial` then is either unfinished work, which the same job takes up,
or a publication that was decided and not ended (`publish.json`), which the next
run ends, or waste, which the next run removes.

Only one run at a time may write FOLDER: it holds a lock on `.FOLDER.lock`
beside it, which the system lets go when the process dies.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import shutil
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jaxprune import files

PARTIAL = ".partial"
_BEGUN, _DECIDED, _WASTE = "begun.json", "publish.json", "discarded.json"
_LATER = ("cores",)
# Silent unless the program asks for it; the scripts do.
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """Where a folder is made.

  Attributes:
    folder: the final place.
    shown: its name as it was given.
  """

  folder: pathlib.Path
  shown: str

  @property
  def scaffold(self) -> pathlib.Path:
    """What is removed at the end: FOLDER.partial."""
    return self.folder.with_name(self.folder.name + PARTIAL)

  @property
  def new(self) -> pathlib.Path:
    """What becomes the folder."""
    return self.scaffold / "new"


def stage(folder: str | os.PathLike) -> Stage:
  """Where `folder` is made; nothing is touched."""
  return Stage(folder=files.resolve(folder), shown=os.fspath(folder))


def check_place(folder: pathlib.Path) -> None:
  """Refuse a place where no folder can get its name by a rename.

  Args:
    folder: the final place, resolved.

  Raises:
    ValueError: a file, a mount point, or what holds the working directory.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; choose another output folder")
  if os.path.ismount(folder):
    raise ValueError(
      f"{folder}: is a mount point, which cannot be replaced; choose a folder"
      " in it"
    )
  here = pathlib.Path.cwd()
  if folder in (here, *here.parents):
    raise ValueError(
      f"{folder}: holds the working directory; choose another output folder"
    )


def begin(stage: Stage, job: Mapping[str, Any], *, resume: bool) -> bool:
  """Prepare the scaffold of a run, once what an earlier one left is settled.

  Args:
    stage: where the run works.
    job: JSON values that say what is made, from which inputs.
    resume: whether unfinished work of the same job is taken up, and that of
      another one spared; else it is removed.

  Returns:
    Whether there is work to take up.

  Raises:
    ValueError: what lies there is no work of a run, or that of another job.
  """
  settle(stage)
  job = json.loads(json.dumps(dict(job), allow_nan=False))
  scaffold = stage.scaffold
  if scaffold.exists():
    earlier = _begun(scaffold)
    if earlier is None:
      _discard(scaffold)
    elif resume and earlier["job"] == _known_to(earlier["job"], job):
      for stale in scaffold.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)
      return True
    elif earlier["resume"]:
      raise ValueError(
        f"{scaffold}: unfinished work of another job"
        f" ({difference(earlier['job'], job)}); finish that job, or remove"
        " the folder to start over"
      )
    else:
      _discard(scaffold)
  scaffold.mkdir(parents=True)
  files.atomic_write_json(scaffold / _BEGUN, {"job": job, "resume": resume})
  files.sync_folder(scaffold.parent)
  return False


def has_work(stage: Stage, besides: Collection[str] = ()) -> bool:
  """Whether anything was finished in the scaffold.

  Args:
    stage: where the run works.
    besides: names of files that say nothing of it.
  """
  return any(
    path.is_file() and path.stat().st_size and path.name not in besides
    for path in stage.scaffold.rglob("*")
    if path.name != _BEGUN
  )


def discard(stage: Stage) -> None:
  """Remove the scaffold and all that is in it."""
  if stage.scaffold.exists():
    _discard(stage.scaffold)


def publish(stage: Stage) -> None:
  """Give `stage.new` the name of the folder, and remove the scaffold.

  What has the name before keeps it until the new folder has it, and is removed
  with the scaffold. One step where the system can exchange two names (Linux,
  most local file systems); else two, the first of which takes the old folder
  away, and the next run does the second if this one is killed in between.

  Args:
    stage: whose `new` is complete.
  """
  for folder, _, names in os.walk(stage.new, topdown=False):
    for name in names:
      if not os.path.islink(os.path.join(folder, name)):
        files.sync(os.path.join(folder, name))
    files.sync_folder(folder)
  files.atomic_write_json(
    stage.scaffold / _DECIDED, {"inode": os.stat(stage.new).st_ino}
  )
  settle(stage)


def settle(stage: Stage) -> None:
  """End what was decided: a publication, or the removal of the scaffold."""
  scaffold, mark = stage.scaffold, stage.scaffold / _DECIDED
  if mark.is_file():
    inode = files.read_json(mark)["inode"]
    if not _has_inode(stage.folder, inode):
      if not _has_inode(stage.new, inode):
        raise ValueError(
          f"{scaffold}: a publication that was cut off, and what was to become"
          f" {stage.folder} is no longer there; remove {scaffold}"
        )
      _rename(stage)
      files.sync_folder(stage.folder.parent)
    _discard(scaffold)
  elif scaffold.is_dir() and (
    (scaffold / _WASTE).is_file() or not any(scaffold.iterdir())
  ):
    _discard(scaffold)


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
  """Hold the right to write a folder; it goes with the process.

  A file system without locks is said in a line (level INFO), and the run goes
  on without one.

  Args:
    folder: the final place; need not exist.

  Raises:
    ValueError: another run holds it.
  """
  folder = stage(folder).folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  path = folder.with_name(f".{folder.name}.lock")
  descriptor = _locked(path, folder)
  try:
    yield
  finally:
    # Unlinked while it is held: who opened it before finds another file, or
    # none, at this name and tries again.
    path.unlink(missing_ok=True)
    os.close(descriptor)


def difference(earlier: Any, now: Any) -> str:
  """Name the first thing in which two JSON values differ.

  Args:
    earlier: what was written.
    now: what would be written.
  """
  path, before, after = first_difference(earlier, now) or ("", earlier, now)
  return f"{path} was {before!r:.80}, now {after!r:.80}".lstrip()


def first_difference(one: Any, other: Any) -> tuple[str, Any, Any] | None:
  """Find the first thing in which two JSON values differ.

  Args:
    one: a value.
    other: another one.

  Returns:
    The keys that lead there with / between them, and what each has there;
    None where they are equal.
  """
  if one == other:
    return None
  if isinstance(one, dict) and isinstance(other, dict):
    # An entry that is not there and one that is null look alike: the last to be
    # named.
    keys = sorted(
      one.keys() | other.keys(), key=lambda k: (one.get(k) == other.get(k), k)
    )
    for key in keys:
      if key not in one or key not in other or one[key] != other[key]:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
          path, a, b = first_difference(a, b)
          return f"{key}/{path}", a, b
        return key, a, b
  return "", one, other


def _known_to(earlier, job) -> dict[str, Any]:
  """A job, without what was not yet written when an earlier one was begun."""
  return {k: v for k, v in job.items() if k in earlier or k not in _LATER}


def _begun(scaffold: pathlib.Path) -> dict[str, Any] | None:
  """What a scaffold was begun for; None where it is waste."""
  path = scaffold / _BEGUN
  if path.is_file():
    begun = files.read_json(path)
    if begun.keys() != {"job", "resume"}:
      raise ValueError(f"{path}: is damaged; remove {scaffold}")
    return begun
  # Cut off before it was written.
  if scaffold.is_dir() and all(
    path.name.endswith(".tmp") for path in scaffold.iterdir()
  ):
    return None
  raise ValueError(
    f"{scaffold}: not the work of a run; move it away or choose another"
    " output folder"
  )


def _discard(scaffold: pathlib.Path) -> None:
  """Remove a scaffold so that, cut off anywhere, its rest is known as waste."""
  if (scaffold / _BEGUN).is_file():  # a rename works on a full disk, too
    os.replace(scaffold / _BEGUN, scaffold / _WASTE)
  for path in scaffold.iterdir():
    if path.name in (_WASTE, _DECIDED):
      continue
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink()
  # The mark goes first: a mark alone would speak of a folder that is gone.
  for name in (_DECIDED, _WASTE):
    (scaffold / name).unlink(missing_ok=True)
  scaffold.rmdir()


def _has_inode(path: pathlib.Path, inode: int) -> bool:
  try:
    return os.stat(path).st_ino == inode
  except FileNotFoundError:
    return False


def _rename(stage: Stage) -> None:
  """Give `new` the name of the folder, whatever has it now."""
  folder = stage.folder
  if not folder.exists() or not any(folder.iterdir()):
    os.rename(stage.new, folder)
  elif not exchange(stage.new, folder):
    os.rename(folder, stage.scaffold / "old")
    os.rename(stage.new, folder)


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Exchange the names of two folders in one step.

  Args:
    one: a folder.
    other: another one, on the same file system.

  Returns:
    False where the system cannot; then nothing has changed.
  """
  try:
    rename = ctypes.CDLL(None, use_errno=True).renameat2
  except (OSError, AttributeError):
    return False
  current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
  done = rename(
    current_folder,
    os.fsencode(one),
    current_folder,
    os.fsencode(other),
    ctypes.c_uint(exchange),
  )
  if done == 0:
    return True
  number = ctypes.get_errno()
  if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
    return False
  raise OSError(number, os.strerror(number), os.fspath(other))


def _locked(path: pathlib.Path, folder: pathlib.Path) -> int:
  """Open the file of a lock and lock it."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
      os.close(descriptor)
      raise ValueError(
        f"{folder}: another run writes there ({holder or 'unknown'}); wait"
        " for it, or choose another output folder"
      ) from None
    except OSError as error:
      _LOG.info(
        "%s: this file system has no locks (%s); see that no second run"
        " writes to %s",
        folder.parent,
        error.strerror,
        folder,
      )
      return descriptor
    if _has_inode(path, os.fstat(descriptor).st_ino):
      os.ftruncate(descriptor, 0)
      os.write(
        descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode()
      )
      return descriptor
    os.close(descriptor)  # its holder ended in between and removed it
