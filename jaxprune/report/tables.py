"""What did a run measure? Reads records back, as rows, arrays or CSV."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune import files
from jaxprune.report.fields import FIELDS

RECORDS = "records.jsonl"


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Read the rows of a run folder, or of a .jsonl file.

  A last line without a line end was cut off and is left out.

  Raises:
    ValueError: the file is missing, or a line is no JSON object.
  """
  path = pathlib.Path(path)
  path = path / RECORDS if path.is_dir() else path
  if not path.is_file():
    raise ValueError(f"{path}: no such file; give a run folder")
  rows = []
  for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(
        f"{path}: line {number}: not JSON ({error}); remove it"
      ) from error
    if not isinstance(row, dict):
      raise ValueError(f"{path}: line {number}: not an object; remove it")
    rows.append(row)
  return rows


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Turn rows into arrays of one length.

  Returns:
    Per field that occurs: bool or int64 where every row has it; float64, NaN
    where a row lacks it; object with None for text.
  """
  names = dict.fromkeys(name for row in rows for name in row)
  return {name: _column([row.get(name) for row in rows]) for name in names}


def write_csv(
  rows: Sequence[Mapping[str, Any]], path: str | os.PathLike
) -> None:
  """Write rows as a table: fields in the order of `fields.FIELDS`, then others.

  What a row lacks stays empty; booleans are true and false; numbers keep all
  their digits.
  """
  found = dict.fromkeys(name for row in rows for name in row)
  names = [name for name in FIELDS if name in found]
  names += [name for name in found if name not in FIELDS]
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(names)
  for row in rows:
    values = (row.get(name) for name in names)
    table.writerow(
      [
        str(value).lower() if isinstance(value, bool) else value
        for value in values
      ]
    )
  files.atomic_write_text(path, text.getvalue())


def _column(values) -> np.ndarray:
  known = [value for value in values if value is not None]
  if any(isinstance(value, str) for value in known):
    return np.array(values, object)
  if len(known) == len(values):
    if all(isinstance(value, bool) for value in known):
      return np.array(values, bool)
    if all(isinstance(value, int) for value in known):
      return np.array(values, np.int64)
  return np.array(
    [math.nan if value is None else value for value in values], np.float64
  )
