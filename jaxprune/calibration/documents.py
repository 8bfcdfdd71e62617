"""Which texts may be looked at? Reads documents from files and from the hub.

| file | one document is |
|---|---|
| .txt | a part, as `division` says |
| .jsonl | the field `text` of a line |
| .json | the same of a list entry; or lines, as in the shards of C4 |
| .parquet | the column `text` of a row (needs pyarrow) |

`.gz` or `.zst` (needs pyarrow) may follow .txt, .json and .jsonl; it is
unpacked as it is read, and refused where it becomes more than text does. An
entry of a JSON list or a line may also be a bare string. The names `c4` and
`wikitext2` are the two data sets of the pruning papers, fetched through
`datasets`; without it, or without a network, give a local copy of the same
file.

Reference: the loaders of SparseGPT (arXiv:2301.00774) and Wanda
(arXiv:2306.11695): first training shard of C4, raw WikiText-2.
Differs from the reference in: nothing is shuffled, and bad input is an error
that names the file, the row and the field.
"""

import contextlib
import gzip
import io
import os
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from jaxprune import devices, files
from jaxprune.calibration import hub

# (name, held out): hub data set, configuration, file of it, split.
_HUB = {
  ("c4", False): (
    "allenai/c4",
    None,
    "en/c4-train.00000-of-01024.json.gz",
    "train",
  ),
  ("c4", True): (
    "allenai/c4",
    None,
    "en/c4-validation.00000-of-00008.json.gz",
    "validation",
  ),
  ("wikitext2", False): (
    "Salesforce/wikitext",
    "wikitext-2-raw-v1",
    None,
    "train",
  ),
  ("wikitext2", True): (
    "Salesforce/wikitext",
    "wikitext-2-raw-v1",
    None,
    "test",
  ),
}
NAMES = ("c4", "wikitext2")
END_OF_TEXT = "<|endoftext|>"
# Text is packed to a third or a tenth of its size, a decompression bomb to a
# thousandth. Below so many bytes any rate is taken.
PACKED_RATE = 100
PACKED_FREE = 1 << 28
FORMATS = (".txt", ".jsonl", ".json", ".parquet")
PACKED = (".gz", ".zst")


def _auto(text: str) -> list[str]:
  if END_OF_TEXT in text:
    parts = text.split(END_OF_TEXT)
  else:
    parts = re.split(r"\n\s*\n", text)
  return [part.strip() for part in parts if part.strip()]


# StringIO divides at newlines only; str.splitlines does at form feeds too.
DIVISIONS: dict[str, Callable[[str], list[str]]] = {
  "auto": _auto,
  "lines": lambda text: [x for x in text.split("\n") if x.strip()],
  "rows": lambda text: [
    line if line.strip() else "" for line in io.StringIO(text)
  ],
  "whole": lambda text: [text],
}


def read_documents(
  source: str | os.PathLike,
  *,
  division: str = "auto",
  field: str = "text",
  held_out: bool = False,
) -> list[str]:
  """Read every document of a source, in its order.

  Args:
    source: a file, or 'c4' or 'wikitext2' (a file of that name is `./c4`).
    division: what one document of a .txt file is. 'auto': what stands between
      `<|endoftext|>` where that occurs, and otherwise between blank lines;
      surrounding blank space is cut. 'lines': each line that is not blank.
      'rows': each line with its line end, blank ones as '', which are the rows
      of the hub's WikiText. 'whole': the file.
    field: name of the text in .json, .jsonl and .parquet files.
    held_out: for 'c4' the validation split and for 'wikitext2' the test split,
      which perplexity is measured on; a file has no splits.

  Returns:
    The documents, as they are: empty ones stay, because the protocols count
    and join rows.

  Raises:
    ValueError: the source is missing, of unknown format, broken, or all blank;
      a row has no such field or no text in it; or a package is not installed.
  """
  if division not in DIVISIONS:
    raise ValueError(
      f"division={division!r}: must be one of {', '.join(DIVISIONS)}"
    )
  name = os.fspath(source)
  if name in NAMES:
    documents = _from_hub(name, held_out)
  else:
    documents = _from_file(pathlib.Path(name), division, field)
  if not any(text.strip() for text in documents):
    raise ValueError(f"{name}: no text in it; give a file with documents")
  return documents


def read_rows(path: str | os.PathLike, fields: tuple[str, ...]) -> list[str]:
  """Read one text per entry of a .json or .jsonl file.

  Args:
    path: the file, perhaps with .gz or .zst.
    fields: accepted names of the text; the first that an entry has is read.

  Raises:
    ValueError: the source is missing, of unknown format, broken or all blank.
  """
  path = pathlib.Path(path)
  with _open(path) as file:
    return [
      _text_of(entry, fields, f"{path}: {place}")
      for place, entry in _json_entries(file, path)
    ]


def has_field(path: str | os.PathLike, fields: tuple[str, ...]) -> bool:
  """Whether an entry of a .json or .jsonl file has one of these fields.

  Args:
    path: the file, perhaps with .gz or .zst.
    fields: names.

  Raises:
    ValueError: the file is missing or broken.
  """
  path = pathlib.Path(path)
  with _open(path) as file:
    return any(
      isinstance(entry, dict) and not entry.keys().isdisjoint(fields)
      for _, entry in _json_entries(file, path)
    )


def read_entries(
  path: str | os.PathLike, fields: tuple[str, ...]
) -> list[dict[str, Any]]:
  """Read whole entries of a .json or .jsonl file.

  Args:
    path: the file, perhaps with .gz or .zst.
    fields: that every entry must have.

  Raises:
    ValueError: the file is missing or broken, an entry is no object or lacks a
      field, or there is none.
  """
  path = pathlib.Path(path)
  entries = []
  with _open(path) as file:
    for place, entry in _json_entries(file, path):
      missing = (
        fields
        if not isinstance(entry, dict)
        else [field for field in fields if field not in entry]
      )
      if missing:
        raise ValueError(
          f"{path}: {place}: has no field {', '.join(missing)}; every entry"
          f" needs {', '.join(fields)}"
        )
      entries.append(entry)
  if not entries:
    raise ValueError(f"{path}: no entry in it; give another file")
  return entries


def read_text(path: str | os.PathLike) -> str:
  """Read a UTF-8 text, perhaps packed; line ends become newlines.

  Raises:
    ValueError: the file is missing or broken.
  """
  with _open(pathlib.Path(path)) as file:
    return file.read()


def file_format(path: str | os.PathLike) -> str:
  """The suffix that decides how a file is read, without .gz or .zst."""
  path = pathlib.Path(path)
  return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def _from_file(path: pathlib.Path, division: str, field: str) -> list[str]:
  kind = file_format(path)
  if kind not in FORMATS or kind == ".parquet" and path.suffix in PACKED:
    raise ValueError(
      f"{path}: unknown format {path.suffix!r}; give one of"
      f" {', '.join(FORMATS)}, .gz or .zst of the first three, or a name of"
      f" {', '.join(NAMES)}"
    )
  if kind == ".parquet":
    return _from_parquet(path, field)
  if kind == ".txt":
    return DIVISIONS[division](read_text(path))
  return read_rows(path, (field,))


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[IO[str]]:
  """Open a text; what can go wrong until its end becomes a ValueError."""
  if not path.is_file():
    raise ValueError(
      f"{path}: no such file; give an existing one or a name of"
      f" {', '.join(NAMES)}"
    )
  try:
    with _raw(path) as raw, io.TextIOWrapper(raw, "utf-8-sig") as file:
      yield file
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path}: not UTF-8 ({error.reason}); convert it, e.g. with iconv -t"
      " utf-8"
    ) from error
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(
      f"{path}: cannot be read ({error}); copy or download it again"
    ) from error


def _raw(path: pathlib.Path) -> io.BufferedReader:
  """Open the bytes of a text, of which there may not be too many."""
  size = path.stat().st_size
  memory = devices.host_bytes()
  # A character takes up to four bytes, and there are two copies at a time.
  most = sys.maxsize if memory is None else memory // 8
  if path.suffix not in PACKED:
    if size > most:
      raise ValueError(
        f"{path}: {size} bytes of text do not fit into the memory of this"
        f" machine, which holds {most}; cut the file"
      )
    return open(path, "rb")
  most = min(most, max(PACKED_FREE, PACKED_RATE * size))
  return io.BufferedReader(_Unpacked(path, most), 1 << 20)


class _Unpacked(io.RawIOBase):
  """The bytes in a packed file, up to a limit."""

  def __init__(self, path: pathlib.Path, most: int):
    self._path, self._most, self._count = path, most, 0
    self._file = gzip.open(path) if path.suffix == ".gz" else _zstandard(path)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    count = self._file.readinto(buffer)
    self._count += count
    if self._count > self._most:
      raise ValueError(
        f"{self._path}: unpacks to more than {self._most} bytes, the limit for"
        " a file of its size on this machine; text does not: unpack it"
        " yourself if you trust it"
      )
    return count

  def close(self) -> None:
    self._file.close()
    super().close()


def _zstandard(path: pathlib.Path) -> Any:
  """Open the bytes in a .zst file."""
  try:
    import pyarrow
  except ImportError as error:
    raise ValueError(
      f"{path}: .zst files need pyarrow: pip install 'jaxprune[data]', or"
      " unpack the file with zstd -d"
    ) from error
  return pyarrow.input_stream(path, compression="zstd")


def _json_entries(
  file: IO[str], path: pathlib.Path
) -> Iterator[tuple[str, Any]]:
  """Entries of a JSON list or of JSON lines, each with its place."""
  is_first = True
  for number, line in enumerate(file, 1):
    if not line.strip():
      continue
    if is_first and line.lstrip().startswith("["):
      entries = _parse(line + file.read(), f"{path}")
      yield from (
        (f"entry {index}", entry) for index, entry in enumerate(entries)
      )
      return
    is_first = False
    yield f"line {number}", _parse(line, f"{path}: line {number}")


def _parse(text: str, place: str) -> Any:
  try:
    return files.parse_json(text, constants=True)
  except ValueError as error:
    raise ValueError(
      f"{place}: not JSON ({error}); expected one object per line, or one list"
    ) from error


def _text_of(entry: Any, fields: tuple[str, ...], place: str) -> str:
  if isinstance(entry, str):
    return entry
  if not isinstance(entry, dict):
    raise ValueError(
      f"{place}: {type(entry).__name__} is no document; expected an object"
      f" with the field {' or '.join(fields)}"
    )
  for field in fields:
    if field in entry:
      if isinstance(entry[field], str):
        return entry[field]
      raise ValueError(
        f"{place}: field {field} is {type(entry[field]).__name__}, not a"
        " string; remove or mend the row"
      )
  others = ", ".join(sorted(map(str, entry))[:8]) or "none"
  raise ValueError(
    f"{place}: no field {' or '.join(fields)} (it has {others}); rename it or"
    " name another field"
  )


def _from_parquet(path: pathlib.Path, field: str) -> list[str]:
  if not path.is_file():
    raise ValueError(f"{path}: no such file; give an existing one")
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(
      f"{path}: parquet files need pyarrow: pip install 'jaxprune[data]', or"
      " convert the file to .jsonl"
    ) from error
  column, names = [], []
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      names = file.schema_arrow.names
      if field in names:
        column = _column(file, field, path)
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{path}: not readable as parquet ({reason}); copy or download it again"
    ) from error
  if field not in names:
    raise ValueError(
      f"{path}: no column {field} (it has {', '.join(names)}); rename it or"
      " name another field"
    )
  return [
    _text_of({field: text}, (field,), f"{path}: row {row}")
    for row, text in enumerate(column)
  ]


def _column(file, field: str, path: pathlib.Path) -> list[Any]:
  """Read a column piece by piece, up to the limit of `_raw`."""
  size, column = 0, []
  most = max(PACKED_FREE, PACKED_RATE * path.stat().st_size)
  for batch in file.iter_batches(batch_size=1024, columns=[field]):
    size += batch.nbytes
    if size > most:
      raise ValueError(
        f"{path}: column {field} unpacks to more than {most} bytes, the limit"
        " for a file of its size; write it as .jsonl if you trust it"
      )
    column += batch.column(0).to_pylist()
  return column


def _from_hub(name: str, held_out: bool) -> list[str]:
  path, configuration, file, split = _HUB[name, held_out]
  rows = hub.load(
    name,
    (path, configuration, split),
    file=file,
    otherwise=f"give a local copy ({file or 'the raw text'}) instead of {name}",
  )
  return list(rows["text"])
