"""What did a run measure? Its rows as columns, as CSV, and read back.

A study that has just written its rows takes their columns from
`RunFolder.columns`; `read_records` and `columns` are for reading a folder that
another process wrote.
"""

import array
import csv
import io
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
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
      row = files.parse_json(line)
    except ValueError as error:
      raise ValueError(
        f"{path}: line {number}: not JSON ({error}); remove it"
      ) from error
    if not isinstance(row, dict):
      raise ValueError(f"{path}: line {number}: not an object; remove it")
    rows.append(row)
  return rows


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Turn rows into arrays of one length.

  Returns:
    Per field that occurs: bool or int64 where every row has it; float64, NaN
    where a row lacks it; object with None for text.
  """
  table = Columns()
  table.extend(rows)
  return table.select()


class Columns:
  """Rows kept column by column: 16 bytes for each value that a row has.

  Attributes:
    count: number of rows.
  """

  def __init__(self):
    self.count = 0
    self._columns: dict[str, _Column] = {}

  def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows of bool, int, float, text and None."""
    for row in rows:
      for name, value in row.items():
        if name not in self._columns:
          self._columns[name] = _Column()
        self._columns[name].append(self.count, value)
      self.count += 1

  def select(
    self,
    *,
    present: Sequence[str] = (),
    absent: Sequence[str] = (),
    **equal: Any,
  ) -> dict[str, np.ndarray]:
    """The columns of some rows; without arguments, of all.

    Args:
      present: fields that a row must have.
      absent: fields that a row must not have.
      **equal: by field, the value that a row must have.

    Returns:
      Arrays of one length in the order of the rows. Per field that occurs:
      bool or int64 where every row has it; float64, NaN where a row lacks it;
      object with None for text.
    """
    chosen = np.ones(self.count, bool)
    for name in (*present, *absent, *equal):
      has = np.zeros(self.count, bool)
      column = self._columns.get(name)
      if column is not None:
        rows, values = column.arrays()
        has[rows] = values == equal[name] if name in equal else True
      chosen &= ~has if name in absent else has
    place = np.cumsum(chosen) - 1
    selected = {}
    for name, column in self._columns.items():
      rows, values = column.arrays()
      kept = chosen[rows]
      if kept.any():
        selected[name] = _spread(
          values[kept], place[rows[kept]], int(chosen.sum())
        )
    return selected


def write_csv(
  rows: Sequence[Mapping[str, Any]], path: str | os.PathLike
) -> None:
  """Write rows as a table: fields in the order of `fields.FIELDS`, then others.

  Args:
    rows: flat rows, from `read_records`. What a row lacks stays empty;
      booleans are true and false; numbers keep all their digits.
    path: of the .csv file, which appears whole or not at all.
  """
  occurring = dict.fromkeys(name for row in rows for name in row)
  names = [name for name in FIELDS if name in occurring]
  names += [name for name in occurring if name not in FIELDS]
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


class _Column:
  """The values of one field and the rows that have them."""

  def __init__(self):
    self._rows = array.array("q")
    self._values: array.array | list | None = None

  def append(self, row: int, value: Any) -> None:
    self._rows.append(row)
    code = _code(value)
    if self._values is None:
      self._values = array.array(code) if code else []
    have = getattr(self._values, "typecode", "")
    if have and code != have:
      self._widen(have, code)
    if value is None and isinstance(self._values, array.array):
      value = math.nan
    self._values.append(value)

  def _widen(self, have: str, code: str) -> None:
    """Hold text, or the wider of two kinds of number."""
    if not code:
      to_value = bool if have == "b" else lambda value: value
      self._values = [
        None if value != value else to_value(value) for value in self._values
      ]
    elif _WIDTHS.index(code) > _WIDTHS.index(have):
      self._values = array.array(code, self._values)

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows, ascending int64 [n], and values [n]; None is NaN or None."""
    rows = np.array(self._rows, np.int64)
    if isinstance(self._values, list):
      return rows, np.array(self._values, object)
    kind = {"b": bool, "q": np.int64, "d": np.float64}[self._values.typecode]
    return rows, np.array(self._values, kind)


_WIDTHS = "bqd"  # codes of bool, int and float in an array.array


def _code(value: Any) -> str:
  """How `array.array` holds a value; '' if it does not."""
  if isinstance(value, bool):
    return "b"
  if isinstance(value, int):
    return "q"
  if value is None or isinstance(value, float):
    return "d"
  return ""


def _spread(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
  """Values at their rows of a column of `count` rows."""
  if len(rows) == count:
    return values
  if values.dtype == object:
    column = np.full(count, None, object)
  else:
    column = np.full(count, math.nan)
  column[rows] = values
  return column
