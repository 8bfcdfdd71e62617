"""Which answers are there already, of a run that was killed?

Every finished batch is one line of a file, appended and flushed to disk, with a
checksum in front. A line that was cut off or changed is forgotten with all
behind it, and what they held is computed again.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


class Journal:
  """Answers by key; a context manager."""

  def __init__(self, path: str | os.PathLike, origin: Mapping[str, Any]):
    """Open a journal, and read it where it has the same origin.

    Args:
      path: of the file; one of another origin is begun anew.
      origin: what the answers depend on beside their key, such as the hash of
        the model; anything JSON can hold.
    """
    self._path = pathlib.Path(path)
    self._answers: dict[str, Any] = {}
    head = json.dumps({"origin": origin}, sort_keys=True)
    kept = 0
    if self._path.is_file():
      kept = self._read(self._path.read_bytes(), _signed(head.encode()))
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self._path, "r+b" if kept else "wb")
    self._file.truncate(kept)
    self._file.seek(kept)
    if not kept:
      self._write(head)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def __len__(self) -> int:
    return len(self._answers)

  def get(self, key: str) -> Any:
    """The answer under a key; None where there is none."""
    return self._answers.get(key)

  def add(self, answers: Mapping[str, Any]) -> None:
    """Keep the answers of a finished batch, together.

    Args:
      answers: by key; anything JSON can hold.
    """
    self._answers |= answers
    self._write(json.dumps(answers))

  def close(self) -> None:
    """Close the file; nothing can be added after it."""
    self._file.close()

  def _write(self, line):
    self._file.write(_signed(line.encode()) + b"\n")
    self._file.flush()
    os.fsync(self._file.fileno())

  def _read(self, content, head) -> int:
    """Take answers over; how many bytes of the file are whole."""
    lines = content.split(b"\n")
    if lines[0] != head or len(lines) < 2:
      return 0
    kept = len(head) + 1
    for line in lines[1:-1]:  # the last one is empty or was cut off
      answers = line.partition(b" ")[2]
      if line != _signed(answers):
        break
      self._answers |= json.loads(answers)
      kept += len(line) + 1
    return kept


def _signed(line: bytes) -> bytes:
  digest = hashlib.blake2b(line, digest_size=8).hexdigest()
  return digest.encode() + b" " + line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bookkeeping:
  """What is told and kept while a model answers.

  Attributes:
    journal: keeps finished answers, and knows those of a run that was killed;
      None keeps none.
    progress: called with (done, all) after every batch, in tokens or prompts;
      what the journal had already does not count.
  """

  journal: Journal | None = None
  progress: Callable[[float, float], None] | None = None

  def known(self, keys: Iterable[str]) -> list[Any] | None:
    """The answers under all of these keys; None where one is missing."""
    if self.journal is None:
      return None
    answers = [self.journal.get(key) for key in keys]
    return None if None in answers else answers

  def finish(
    self, answers: Mapping[str, Any], done: float, total: float
  ) -> None:
    """Keep a batch and tell of it.

    Args:
      answers: by key.
      done: how much is done.
      total: of how much.
    """
    if self.journal is not None:
      self.journal.add(answers)
    if self.progress is not None:
      self.progress(done, total)


NO_BOOKKEEPING = Bookkeeping()


def key_of(*parts: Sequence[int] | str) -> str:
  """A key for a request.

  Args:
    *parts: texts, or token ids.
  """
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    data = (
      part.encode()
      if isinstance(part, str)
      else np.asarray(part, np.int64).tobytes()
    )
    digest.update(len(data).to_bytes(8, "little") + data)
  return digest.hexdigest()
