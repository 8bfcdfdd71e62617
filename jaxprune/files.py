"""How does a file or a folder appear whole, or not at all?

A file is written under a temporary name in its own folder, flushed to disk and
then renamed; a folder is filled under another name beside its place and then
renamed. A process killed at any moment leaves the old state or the new one,
and at worst a file called `.NAME.PID.tmp` that no reader looks at.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 22  # bytes read at a time when hashing


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Open a binary file that takes its name when the block ends well.

  If the block raises, the temporary file is removed and whatever had the name
  before still has it.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  _sync_folder(path.parent)


def atomic_write_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Write a file, whole or not at all.

  Args:
    path: the file.
    data: all its bytes.
  """
  with atomic_file(path) as file:
    file.write(data)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
  """Write a file of text, whole or not at all.

  Args:
    path: the file.
    text: all its text, written as UTF-8.
  """
  atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike, value: Any) -> None:
  """Write a file of indented JSON, whole or not at all.

  Args:
    path: the file.
    value: what JSON can hold.

  Raises:
    ValueError: `value` holds NaN or infinity, which JSON does not know.
  """
  text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  atomic_write_text(path, text + "\n")


def publish_folder(work: str | os.PathLike, folder: str | os.PathLike) -> None:
  """Give the finished folder `work` the name `folder`.

  One rename where `folder` is absent or empty. A non-empty `folder` is first
  renamed to `FOLDER.old-PID` and removed when the new one is in place: between
  the two renames there is no `folder`, but both contents exist.

  Args:
    work: a folder on the same file system as `folder`.
    folder: its final name.
  """
  work, folder = pathlib.Path(work), pathlib.Path(folder)
  old = None
  if folder.is_dir() and any(folder.iterdir()):
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    os.rename(folder, old)
  os.rename(work, folder)
  _sync_folder(folder.parent)
  if old is not None:
    shutil.rmtree(old)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Read a JSON object.

  Raises:
    ValueError: the file cannot be read or does not hold a JSON object.
  """
  try:
    value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{path}: not readable as JSON ({error}); copy or download it again"
    ) from error
  if not isinstance(value, dict):
    raise ValueError(
      f"{path}: expected a JSON object, found {type(value).__name__}; copy"
      " or download it again"
    )
  return value


def sha256_file(path: str | os.PathLike) -> str:
  """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def _sync_folder(folder: pathlib.Path) -> None:
  """Flush the names in a folder, without which a rename can be lost."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
