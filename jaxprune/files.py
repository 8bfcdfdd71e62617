"""How does a file appear whole, or not at all?

A file is written under a temporary name in its own folder, flushed to disk and
then renamed. A process killed at any moment leaves the old content or the new
one, and at worst a file called `.NAME.PID.tmp` that no reader looks at.
`staging` does the same for folders.

A folder of results holds `checksums.json`, the sha256 of every file by its path
in the folder. What is read through `read_checked` is compared with it, so that
a flipped bit or an exchanged file is found.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import IO, Any

CHECKSUMS = "checksums.json"
MAX_DEPTH = 64  # levels of lists and objects in JSON
_DEPTH = 3  # folders above a file in which its checksum is looked for
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
  sync_folder(path.parent)


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


def write_signed_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
  """Write a JSON object with the sha256 of the name of the file and itself.

  Args:
    path: the file.
    value: what JSON can hold; no key `sha256`.
  """
  atomic_write_json(path, value | {"sha256": _sign(path, value)})


def read_signed_json(
  path: str | os.PathLike, *, name: str | None = None
) -> dict[str, Any]:
  """Read what `write_signed_json` wrote, or any JSON object without a sha256.

  Args:
    path: the file.
    name: that it was written under; None is the one that it has.

  Raises:
    ValueError: the file is not readable, was changed, or had another name.
  """
  value = read_json(path)
  return check_signed(value, path, name=name) if "sha256" in value else value


def check_signed(
  value: Mapping[str, Any], path: str | os.PathLike, *, name: str | None = None
) -> dict[str, Any]:
  """Compare the sha256 of what `write_signed_json` wrote with its content.

  Args:
    value: from `read_json`, with `sha256`.
    path: the file, for the message.
    name: that it was written under; None is the one that it has.

  Returns:
    The content without `sha256`.

  Raises:
    ValueError: the file was changed, or had another name.
  """
  content = {key: each for key, each in value.items() if key != "sha256"}
  if value["sha256"] != _sign(name or path, content):
    raise ValueError(
      f"{path}: is not what was written under this name (its sha256 is another"
      " one); remove it to make it anew"
    )
  return content


def _sign(path, value) -> str:
  # As it is read back: numbers as keys become text, which sorts otherwise.
  value = json.loads(json.dumps(value, allow_nan=False))
  text = json.dumps(value, sort_keys=True)
  name = pathlib.Path(path).name
  return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Read a JSON object.

  Raises:
    ValueError: the file cannot be read or does not hold a JSON object.
  """
  try:
    value = parse_json(pathlib.Path(path).read_bytes())
  except FileNotFoundError as error:
    raise ValueError(
      f"{path}: no such file; give the folder that has it"
    ) from error
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


def parse_json(text: str | bytes, *, constants: bool = False) -> Any:
  """Parse JSON that somebody else wrote.

  Args:
    text: bytes are UTF-8.
    constants: whether NaN and Infinity are read, which JSON does not know but
      many programs write.

  Raises:
    ValueError: it is no JSON, has a constant that is not read, is nested deeper
      than MAX_DEPTH levels, or has half of a surrogate pair, which is no
      character. The caller names the file.
  """
  if isinstance(text, bytes):
    text = text.decode("utf-8")
  try:
    value = json.loads(text, parse_constant=None if constants else _no_constant)
    if text.count("[") + text.count("{") > MAX_DEPTH:
      _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
      check_characters(value)
  except RecursionError:
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
  return value


def check_characters(value: Any) -> None:
  """Refuse parsed JSON with half of a surrogate pair, which is no character.

  Raises:
    ValueError: a text or a key has one.
  """
  try:
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError:
    raise ValueError(
      "a text has half of a surrogate pair, which is no character"
    ) from None


def _no_constant(name: str):
  raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
  """Refuse what is nested so deep that comparing or writing it would fail."""
  level = [value]
  for _ in range(MAX_DEPTH + 1):
    level = [
      inner
      for outer in level
      if isinstance(outer, list | dict)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
    if not level:
      return
  raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def expand(path: str | os.PathLike) -> pathlib.Path:
  """Replace `~` and `~user` at the beginning of a path.

  Raises:
    ValueError: there is no such user, or the path has a NUL.
  """
  if "\0" in os.fspath(path):
    raise ValueError(f"{os.fspath(path)!r}: no path, it has a NUL in it")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError:
    raise ValueError(
      f"{os.fspath(path)!r}: no such user; write ./ in front where the name"
      " begins with ~"
    ) from None


def resolve(path: str | os.PathLike) -> pathlib.Path:
  """The absolute path without links.

  Raises:
    ValueError: links lead in a circle, or see `expand`.
  """
  try:
    return expand(path).resolve()
  except (OSError, RuntimeError) as error:
    raise ValueError(
      f"{os.fspath(path)!r}: cannot be followed ({error}); remove the link"
    ) from None


def write_checksums(
  folder: str | os.PathLike, known: Mapping[str, str] | None = None
) -> None:
  """Write `checksums.json` for all files that are in a folder.

  Args:
    folder: complete.
    known: sha256 by path in the folder, of files that need not be read again.
  """
  folder, known = pathlib.Path(folder), known or {}
  sums = {}
  for path in sorted(folder.rglob("*")):
    name = path.relative_to(folder).as_posix()
    if path.is_file() and name != CHECKSUMS:
      sums[name] = known.get(name) or sha256_file(path)
  atomic_write_json(folder / CHECKSUMS, {"sha256": sums})


def read_checksums(folder: str | os.PathLike) -> dict[str, str]:
  """The sha256 of every file of a folder; {} where none were written.

  Raises:
    ValueError: `checksums.json` is damaged.
  """
  path = pathlib.Path(folder) / CHECKSUMS
  sums = read_json(path).get("sha256") if path.is_file() else {}
  if not isinstance(sums, dict):
    raise ValueError(f"{path}: is damaged; copy the folder again")
  return sums


def check_folder(folder: str | os.PathLike) -> None:
  """Compare every file of a folder with its checksum.

  Args:
    folder: that a run wrote; without checksums nothing is compared.

  Raises:
    ValueError: a file is missing or another one.
  """
  for name, expected in read_checksums(folder).items():
    path = pathlib.Path(folder) / name
    if not path.is_file() or sha256_file(path) != expected:
      raise _changed(path)


def read_checked(path: str | os.PathLike) -> bytes:
  """Read a file, compared with its checksum if its folder has one.

  Args:
    path: in a folder of results, or up to two folders below it.

  Raises:
    ValueError: it is not what was written.
  """
  path = pathlib.Path(path)
  content = path.read_bytes()
  for folder in list(path.absolute().parents)[:_DEPTH]:
    if (folder / CHECKSUMS).is_file():
      name = path.absolute().relative_to(folder).as_posix()
      expected = read_checksums(folder).get(name)
      if expected not in (None, hashlib.sha256(content).hexdigest()):
        raise _changed(path)
      break
  return content


def _changed(path: pathlib.Path) -> ValueError:
  return ValueError(
    f"{path}: is not what the run wrote (its sha256 is not that in"
    f" {CHECKSUMS}); copy the folder again or run it anew, or remove"
    f" {CHECKSUMS} to read it as it is"
  )


def sha256_file(path: str | os.PathLike) -> str:
  """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def sha256_tree(folder: str | os.PathLike) -> str:
  """Return the sha256 over the names and bytes of all files in a folder."""
  folder = pathlib.Path(folder)
  digest = hashlib.sha256()
  for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    line = json.dumps([path.relative_to(folder).as_posix(), sha256_file(path)])
    digest.update(line.encode("utf-8") + b"\n")
  return digest.hexdigest()


def sync(path: str | os.PathLike) -> None:
  """Flush the content of a file to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_folder(folder: str | os.PathLike) -> None:
  """Flush the names in a folder, without which a rename can be lost."""
  sync(folder)


def remove_tree(folder: str | os.PathLike) -> None:
  """Remove a folder whose name says that it is whole.

  It loses the name first: a removal that is cut off leaves no half of it there.

  Args:
    folder: may be absent.
  """
  folder = pathlib.Path(folder)
  rest = folder.with_name(f".{folder.name}.removed")
  shutil.rmtree(rest, ignore_errors=True)
  if folder.exists():
    folder.rename(rest)
    shutil.rmtree(rest)


def reason(error: BaseException) -> str:
  """What an error says, on one line of at most 200 letters."""
  return " ".join(str(error).split())[:200]
