"""Where are the items of a task? In a folder of data, or on the hub."""

import csv
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from jaxprune.calibration import documents, hub
from jaxprune.evaluation.tasks.table import PERPLEXITY, RETRIEVAL, TASKS


def check_names(names: Iterable[str]) -> None:
  """Refuse names that are not of `TASKS`.

  Raises:
    ValueError: names one and those that there are.
  """
  for name in names:
    if name not in TASKS:
      raise ValueError(
        f"--tasks={name}: unknown; choose from {', '.join(TASKS)}"
      )


def read(
  name: str, data: str | os.PathLike | None, limit: int | None = None
) -> list[Any]:
  """Read the items of a task.

  Args:
    name: of `TASKS`.
    data: folder with the files of the table; None is the hub.
    limit: only the first so many; None is all. Where a pattern names several
      files, they take turns.

  Returns:
    `multiple_choice.Question` of a choice, `Problem` of an exact task, and of
    a code task the entries as they are. Of perplexity and retrieval the path,
    in a list.

  Raises:
    ValueError: no such task, no file of it in the folder, or an entry that is
      not in a known format.
  """
  check_names([name])
  task = TASKS[name]
  if task.kind in (PERPLEXITY, RETRIEVAL):
    return [_path(name, data)]
  place, entries = _entries(name, data)
  items = []
  for index, entry in enumerate(itertools.islice(entries, limit)):
    try:
      items.append(entry if task.read is None else task.read(entry))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
      raise ValueError(
        f"{place}: entry {index} is not in a format of {name}"
        f" ({type(e).__name__}: {e}); get the file again"
      ) from None
  if not items:
    raise ValueError(f"{place}: no entry in it; get the file again")
  return items


def read_examples(
  name: str, data: str | os.PathLike | None, count: int
) -> list[Any]:
  """Solved problems for few-shot prompts.

  Args:
    name: of `TASKS`, an exact task.
    data: folder with the file of the table; None is the hub.
    count: how many.

  Raises:
    ValueError: there are fewer.
  """
  if not count:
    return []
  task = TASKS[name]
  if data is not None:
    path = pathlib.Path(data) / task.examples
    entries = documents.read_entries(path, ("question", "answer"))
    place = str(path)
  else:
    place, entries = _hub("gsm8k", "train")
  from jaxprune.evaluation.tasks import problems

  if len(entries) < count:
    raise ValueError(
      f"{place}: {len(entries)} solved problems for {count} examples; lower"
      " --few_shot"
    )
  return [problems.gsm8k(entry) for entry in entries[:count]]


def _path(name, data) -> str:
  """File or folder of a task that is read as a whole."""
  task = TASKS[name]
  if data is None:
    if task.kind == PERPLEXITY:
      return name  # `perplexity.read_held_out_text` knows it
    raise ValueError(f"--tasks={name}: needs --data, a folder with {name}")
  for file in task.files:
    path = pathlib.Path(data) / file
    if path.exists():
      return str(path)
  raise ValueError(_missing(name, data))


def _missing(name, data) -> str:
  return (
    f"--data={data}: has no {' or '.join(TASKS[name].files)} for"
    f" --tasks={name}; give the folder that has it, or leave --data out to"
    " read the hub"
  )


def _entries(name, data) -> tuple[str, Iterator[Any]]:
  """(where from, entries) of a task."""
  task = TASKS[name]
  if data is None:
    place, entries = _hub(name, task.hub[2])
    return place, iter(entries)
  folder = pathlib.Path(data)
  if not folder.is_dir():
    raise ValueError(f"--data={data}: no such folder; give one that exists")
  for file in task.files:
    if "*" in file:
      paths = sorted(folder.glob(file))
      if paths:
        return str(folder / file), _in_turn(map(_read_csv, paths))
    elif (folder / file).is_file():
      return str(folder / file), iter(documents.read_entries(folder / file, ()))
  raise ValueError(_missing(name, data))


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  """Rows of one subject, which the name of the file tells."""
  subject = path.stem.removesuffix("_test")
  try:
    with open(path, encoding="utf-8", newline="") as lines:
      rows = list(csv.DictReader(lines))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f"{path}: cannot be read ({error}); get the file again"
    ) from error
  return [row | {"subject": subject} for row in rows]


def _in_turn(parts) -> Iterator[Any]:
  """The first of each part, then the second of each, and so on."""
  nothing = object()
  for turn in itertools.zip_longest(*parts, fillvalue=nothing):
    yield from (entry for entry in turn if entry is not nothing)


def _hub(name, split) -> tuple[str, list[Any]]:
  path, configuration, _ = TASKS[name].hub
  rows = hub.load(
    f"--tasks={name}", (path, configuration, split), otherwise="give --data"
  )
  return path, list(rows)
