"""What was measured, and how would somebody measure it again?

A run folder holds `run.json` (what was asked and on what), `records.jsonl` (a
flat row per measured thing), `summary.json` (the scalars), `figures/` and
perhaps `report.html`. Rows are appended whole and flushed, so a killed run
leaves every finished row; other files appear whole or not at all.

A number that is not finite is written as null and counted: JSON has no NaN, a
long run must not die of one row, and a NaN must not pass for a missing field.
The counts stand in `summary.json` under `non_finite`.
"""

import collections
import dataclasses
import difflib
import json
import math
import os
import pathlib
import platform
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import jaxprune
from jaxprune import files
from jaxprune.report.fields import FIELDS, Field
from jaxprune.report.tables import RECORDS, Columns, read_records

RUN, SUMMARY, FIGURES, PAGE = (
  "run.json",
  "summary.json",
  "figures",
  "report.html",
)
# What summary.json holds; anything JSON can hold.
Summary = Mapping[str, Any]
_MAKER = "jaxprune"
_BATCH = ".records.batch"  # where rows begin that are written together
# Settings that may differ between a run and its resumption.
_FREE_FLAGS = ("out", "overwrite", "resume", "verbosity")
# What a description says of how a run was made, not of what is made.
_FREE_ENTRIES = ("command", "extra_fields", "made_by")
_VERSIONS = ("jax", "jaxlib", "jaxprune", "tokenizers")
_DEVICE = ("kind", "platform")


def describe_run(
  *,
  flags: Mapping[str, Any],
  command: Sequence[str],
  seeds: Mapping[str, int | None],
  checkpoint_hash: str | Mapping[str, str] | None = None,
  calibration: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The content of run.json: what was asked, and on which machine.

  Args:
    flags: every flag with its resolved value.
    command: the program and its arguments.
    seeds: what was drawn, and from which seed.
    checkpoint_hash: of the model, or by name where there are several.
    calibration: from `calibration.describe`, with its token hash.

  Returns:
    The arguments by name, and the versions, platform and devices of this
    process.
  """
  devices = jax.devices()
  return {
    "made_by": _MAKER,
    "command": shlex.join(map(str, command)),
    "flags": dict(flags),
    "seeds": dict(seeds),
    "checkpoint_hash": checkpoint_hash,
    "calibration": None if calibration is None else dict(calibration),
    "versions": {
      "jaxprune": jaxprune.__version__,
      **{
        name: _version(name)
        for name in ("jax", "jaxlib", "flax", "numpy", "scipy", "tokenizers")
      },
      "python": platform.python_version(),
    },
    "device": {
      "platform": devices[0].platform,
      "kind": devices[0].device_kind,
      "devices": len(devices),
      "processes": jax.process_count(),
      "system": platform.platform(),
    },
  }


def identity(
  description: Mapping[str, Any], grows: Collection[str] = ()
) -> dict[str, Any]:
  """What two runs have in common whose results are the same, as JSON.

  Args:
    description: from `describe_run`, or run.json.
    grows: flags whose values, and what was drawn for them (seeds and
      calibration), may differ.

  Returns:
    Its entries, without those that change no result.

  Raises:
    ValueError: a run.json whose entries are of another kind.
  """
  kept = {k: v for k, v in description.items() if k not in _FREE_ENTRIES}
  for entry in ("flags", "versions", "device"):
    if not isinstance(kept.get(entry) or {}, Mapping):
      raise ValueError(
        f"{RUN} is damaged: {entry} is {kept[entry]!r:.80}, no object; remove"
        " the folder, or copy it again"
      )
  free = {*_FREE_FLAGS, *grows}
  kept["flags"] = {
    name: value
    for name, value in (kept.get("flags") or {}).items()
    if name not in free
  }
  for entry, names in (("versions", _VERSIONS), ("device", _DEVICE)):
    there = kept.get(entry) or {}
    kept[entry] = {name: there[name] for name in names if name in there}
  for name in ("seeds", "calibration") if grows else ():
    kept.pop(name, None)
  return json.loads(json.dumps(_plain(kept)))


def is_run(folder: str | os.PathLike) -> bool:
  """Whether a folder holds a run of this program, finished or not."""
  try:
    run = files.read_json(pathlib.Path(folder) / RUN)
  except ValueError:
    return False
  return run.get("made_by") == _MAKER


class RunFolder:
  """Writes one run folder; a context manager.

  Only the main process touches the disk. The others call the same methods,
  which check their arguments and write nothing.

  A study that has written its rows gets them back as arrays, without reading
  the disk: `run.columns()` has all rows, `run.columns(task="copy")` those whose
  task is copy, `run.columns(absent=["layer"])` those without a layer.

  Attributes:
    folder: path of the folder.
    description: what run.json was made from.
    non_finite: how often each field was not finite so far.
  """

  def __init__(
    self,
    out: str | os.PathLike,
    description: Mapping[str, Any],
    *,
    main_process: bool = True,
    resume: bool = False,
    extra_fields: Mapping[str, Field] | None = None,
  ):
    """Make the folder and write run.json.

    Args:
      out: a folder that does not exist, is empty, or was made here. What an
        earlier run wrote there is removed, and nothing else.
      description: from `describe_run`; anything JSON can hold.
      main_process: whether this process writes.
      resume: keep the rows of an earlier run with the same settings and append
        to them; a row that was cut off is removed.
      extra_fields: columns beside `fields.FIELDS`.

    Raises:
      ValueError: the folder holds something else, or the settings of the run
        to resume differ.
    """
    self.folder = pathlib.Path(out)
    self.description = description
    self.non_finite: dict[str, int] = {}
    extra_fields = dict(extra_fields or {})
    self._fields = {**FIELDS, **extra_fields}
    self._table = Columns()
    self._file = None
    if not main_process:
      return
    _check_folder(self.folder)
    description = json.loads(json.dumps(_plain(description)))
    description["extra_fields"] = {
      name: dataclasses.asdict(field) for name, field in extra_fields.items()
    }
    if resume and (self.folder / RUN).is_file():
      _check_same(self.folder, description)
      _cut_off(self.folder / RECORDS)
      if (self.folder / RECORDS).is_file():
        earlier = read_records(self.folder)
        self._table.extend(earlier)
        self.non_finite = _count_nulls(earlier)
    else:
      _clear(self.folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    files.atomic_write_json(self.folder / RUN, description)
    (self.folder / FIGURES).mkdir(exist_ok=True)
    # A page or summary of fewer rows would contradict the records.
    for name in (SUMMARY, PAGE):
      (self.folder / name).unlink(missing_ok=True)
    self._file = open(self.folder / RECORDS, "a", encoding="utf-8")

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def close(self) -> None:
    """Close the records; later rows are an error."""
    if self._file is not None:
      self._file.close()

  def write(self, row: Mapping[str, Any]) -> None:
    """Append one row.

    Args:
      row: known fields; Python, NumPy or JAX scalars. None leaves a field out.

    Raises:
      ValueError: an unknown field, or a value of another kind.
    """
    self.write_all([row])

  def write_all(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, see `write`, flushed together."""
    checked = [self._checked(row) for row in rows]
    self._table.extend(checked)
    if self._file is not None and checked:
      lines = [json.dumps(row, allow_nan=False) for row in checked]
      mark = self.folder / _BATCH
      if len(lines) > 1:  # killed in between, none of them counts
        mark.write_text(str(os.fstat(self._file.fileno()).st_size))
      self._file.write("\n".join(lines) + "\n")
      self._file.flush()
      if len(lines) > 1:
        mark.unlink()

  def columns(
    self,
    *,
    present: Sequence[str] = (),
    absent: Sequence[str] = (),
    **equal: Any,
  ) -> dict[str, np.ndarray]:
    """Columns of the rows written so far, and of those of a resumed run.

    They are kept in memory, 16 bytes a value, and equal what
    `report.columns(report.read_records(folder))` reads from the same rows. A
    process that is not the main one has the rows that it was given itself.

    Args:
      present: fields that a row must have.
      absent: fields that a row must not have.
      **equal: by field, the value that a row must have, such as
        `protocol="teacher_forced"`.

    Returns:
      Arrays of one length in the order of the rows. Per field that occurs:
      bool or int64 where every row has it; float64, NaN where a row lacks it
      or was not finite; object with None for text.
    """
    return self._table.select(present=present, absent=absent, **equal)

  def write_summary(self, scalars: Mapping[str, Any]) -> None:
    """Write summary.json: `scalars` and the counts of non-finite numbers.

    Args:
      scalars: mappings and lists of numbers and text, nested to any depth. A
        number that is not finite becomes null and is counted under its path,
        such as `tasks.mmlu`.
    """
    counts = dict(self.non_finite)
    content = _finite(_plain(scalars), "", counts)
    content["non_finite"] = counts
    if self._file is not None:
      files.atomic_write_json(self.folder / SUMMARY, content)

  def write_figure(self, name: str, svg: str) -> None:
    """Write figures/NAME.svg.

    Args:
      name: of the file, without .svg.
      svg: the picture.
    """
    if self._file is not None:
      files.atomic_write_text(self.folder / FIGURES / f"{name}.svg", svg)

  def write_page(self, page: str) -> None:
    """Write report.html."""
    if self._file is not None:
      files.atomic_write_text(self.folder / PAGE, page)

  def _checked(self, row):
    return {
      name: _value(name, value, self._fields, self.non_finite)
      for name, value in row.items()
      if value is not None
    }


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def _check_folder(folder: pathlib.Path) -> None:
  """Refuse a folder with somebody's files in it."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--out={folder}: is a file; give a folder")
  if not folder.is_dir() or not any(folder.iterdir()):
    return
  if not is_run(folder):
    raise ValueError(
      f"--out={folder}: is not empty and not a run of jaxprune (no {RUN} that"
      " says so); give a new folder, or empty this one"
    )


def _check_same(folder: pathlib.Path, description: Mapping[str, Any]) -> None:
  before = files.read_json(folder / RUN)
  for name in ("flags", "seeds", "checkpoint_hash", "calibration"):
    old, new = before.get(name), description.get(name)
    if name == "flags":
      old, new = (
        {
          key: value
          for key, value in (flags or {}).items()
          if key not in _FREE_FLAGS
        }
        for flags in (old, new)
      )
    if old != new:
      raise ValueError(
        f"--out={folder}: the run to resume has {name}={old!r}, this one"
        f" {new!r}; give the same settings, or a new folder"
      )


def _clear(folder: pathlib.Path) -> None:
  """Remove what an earlier run wrote, but for run.json, which says so."""
  for name in (files.CHECKSUMS, _BATCH, RECORDS, SUMMARY, PAGE):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / FIGURES, ignore_errors=True)


def _cut_off(path: pathlib.Path) -> None:
  """Remove the last lines that a killed run did not finish."""
  mark = path.with_name(_BATCH)
  if mark.is_file():
    size = mark.read_text()
    if size.isdigit() and path.is_file():
      os.truncate(path, min(int(size), path.stat().st_size))
    mark.unlink()
  if path.is_file():
    content = path.read_bytes()
    if not content.endswith(b"\n"):
      os.truncate(path, content.rfind(b"\n") + 1)


def _count_nulls(rows) -> dict[str, int]:
  """How often each field is not finite."""
  return dict(
    collections.Counter(
      name for row in rows for name, value in row.items() if value is None
    )
  )


def _value(name, value, fields, non_finite):
  """One value as JSON has it, checked against its field."""
  if name not in fields:
    near = difflib.get_close_matches(name, fields, 1)
    hint = f"did you mean {near[0]}? else " if near else ""
    raise ValueError(
      f"record field {name!r} is unknown: {hint}pass it in extra_fields"
    )
  value = _plain(value)
  kind = fields[name].kind
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  good = {
    "text": isinstance(value, str),
    "int": is_number and isinstance(value, int),
    "bool": isinstance(value, bool),
    "float": is_number,
  }[kind]
  if not good:
    raise ValueError(
      f"record field {name}={value!r}: must be a {kind}, not"
      f" {type(value).__name__}"
    )
  if kind == "float":
    return _finite(float(value), name, non_finite)
  return value


def _plain(value):
  """NumPy and JAX values as Python ones, recursively."""
  if isinstance(value, Mapping):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(entry) for entry in value]
  if isinstance(value, (np.generic, np.ndarray, jax.Array)):
    return _plain(np.asarray(value).tolist())
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, str):  # half of a surrogate pair has no UTF-8
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return value


def _finite(value, path, non_finite):
  """Replace what is not finite by None, and count it under its path."""
  if isinstance(value, dict):
    return {
      key: _finite(entry, f"{path}.{key}".lstrip("."), non_finite)
      for key, entry in value.items()
    }
  if isinstance(value, list):
    return [_finite(entry, path, non_finite) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    non_finite[path] = non_finite.get(path, 0) + 1
    return None
  return value
