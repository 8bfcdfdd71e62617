"""What a run has measured, in a file: a run that was killed goes on."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxprune import files


class Kept:
  """JSON values by key, each computed once.

  The file is written after each value. It lies in the scaffold of a run, which
  only the same command on the same inputs takes up.
  """

  def __init__(self, path: str | os.PathLike | None):
    """Read what is there.

    Args:
      path: of the file; None keeps nothing beyond this object.

    Raises:
      ValueError: the file was changed.
    """
    self._path = None if path is None else pathlib.Path(path)
    self._values: dict[str, Any] = {}
    if self._path is not None and self._path.is_file():
      self._values = files.read_signed_json(self._path)["values"]

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def get(self, key: str, compute: Callable[[], Any]) -> Any:
    """The value of a key, computed and kept where it is not there.

    Args:
      key: names what is measured.
      compute: makes it; a JSON value.
    """
    if key not in self._values:
      # As a later run reads it: lists for tuples, text for keys.
      self._values[key] = json.loads(json.dumps(compute()))
      if self._path is not None:
        files.write_signed_json(self._path, {"values": self._values})
    return self._values[key]
