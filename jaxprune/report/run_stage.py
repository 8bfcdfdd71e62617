"""How do the results of a run appear whole, and never over those of another?

A run works beside its folder (`staging`), under a lock, and its results get
their place at the end, in one step, with the checksum of every file. A folder
that holds results is only replaced where the caller says so; what other
programs put into it is carried along. The same run once more finds that it is
finished.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxprune import devices, files, staging
from jaxprune.checkpoints import export_job
from jaxprune.report import records
from jaxprune.report.tables import RECORDS

_NEW, _RESUMED, _FINISHED = "new", "resumed", "finished"
# What runs wrote before their folders had checksums.
_KNOWN = (records.RUN, records.SUMMARY, records.PAGE, records.FIGURES, RECORDS)


class FinishedError(Exception):
  """The folder holds what the same run has finished."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(f"{folder}: finished already, by the same run")


@contextlib.contextmanager
def stage_run(
  out: str | os.PathLike,
  description: Mapping[str, Any],
  *,
  overwrite: bool = False,
  resume: bool = False,
  model: bool = False,
  grows: Collection[str] = (),
  spare: Sequence[pathlib.Path] = (),
) -> Iterator[tuple[staging.Stage, bool]]:
  """Open the place where a run works; its folder appears when all went well.

  Every process of a pod enters and leaves the block; the writer alone touches
  the disk.

  Args:
    out: the final folder.
    description: from `records.describe_run`, with every input.
    overwrite: replace the results of another run.
    resume: unfinished work of the same run is taken up, and kept if this one
      ends early, once there is any.
    model: the run writes a model folder, and may replace one.
    grows: flags of which a run may have more values than the one whose results
      it adds to.
    spare: folders of the inputs.

  Yields:
    The stage, whose `new` is to be filled, and whether there is earlier work.

  Raises:
    FinishedError: the same run has finished.
    ValueError: another run writes to the folder, it holds something else, or
      unfinished work of another run lies beside it.
  """
  stage = staging.stage(out)
  job = records.identity(description, grows)
  with contextlib.ExitStack() as stack:

    def start():
      staging.check_place(stage.folder)
      _check_spared(stage, spare)
      stack.enter_context(staging.lock(stage.folder))
      staging.settle(stage)
      if _is_finished(stage.folder, description, overwrite, model, grows):
        return _FINISHED
      begun = job | devices.machine()
      return _RESUMED if staging.begin(stage, begun, resume=resume) else _NEW

    state = devices.ask_writer(start)
    if state == _FINISHED:
      raise FinishedError(stage.folder)
    try:
      yield stage, state == _RESUMED
    except BaseException as error:
      if devices.is_writer():
        with contextlib.suppress(OSError):
          if not _is_worth_keeping(stage, error, resume):
            staging.discard(stage)
      raise
    devices.wait_for_all("measured")
    if devices.is_writer():
      _carry_over(stage, model)
      shards = export_job.recorded_shards(stage.new)
      files.write_checksums(
        stage.new, {name: entry["sha256"] for name, entry in shards.items()}
      )
      staging.publish(stage)
    devices.wait_for_all("published")


def _is_worth_keeping(stage, error, resume) -> bool:
  """Whether a run that ended early leaves what is of use to anybody."""
  if not resume:
    rows = stage.new / RECORDS
    return rows.is_file() and rows.stat().st_size > 0
  # What ends a run from outside finds its scaffold again.
  return not isinstance(error, Exception) or staging.has_work(
    stage, besides={records.RUN}
  )


def _check_spared(stage, spare) -> None:
  for folder in spare:
    folder = folder.resolve()
    for place in (stage.folder, stage.scaffold):
      if place in (folder, *folder.parents):
        raise ValueError(
          f"--out={stage.folder}: holds the model {folder}, which is read;"
          " choose another output folder"
        )


def _is_finished(folder, description, overwrite, model, grows) -> bool:
  """Whether the same run has finished; refuses what may not be replaced."""
  if not folder.is_dir() or not any(folder.iterdir()):
    return False
  has_model = (folder / "config.json").is_file()
  if not records.is_run(folder):
    if not (model and has_model and overwrite):
      raise ValueError(
        f"--out={folder}: is not empty and not a run of jaxprune (no"
        f" {records.RUN} that says so); give a new folder, or empty this one"
      )
    return False
  if has_model and not model:
    raise ValueError(
      f"--out={folder}: holds a model; choose another output folder"
    )
  if overwrite:
    return False
  earlier = files.read_json(folder / records.RUN)
  refuse_another(folder, earlier, description, grows)
  if not (folder / records.SUMMARY).is_file():
    raise ValueError(
      f"--out={folder}: holds a run that was not finished; choose another"
      " output folder, or add --overwrite"
    )
  if records.identity(earlier) != records.identity(description):
    return False  # it grows
  files.check_folder(folder)
  return True


def refuse_another(
  folder: pathlib.Path,
  earlier: Mapping[str, Any],
  description: Mapping[str, Any],
  free: Collection[str] = (),
) -> None:
  """Refuse a folder that holds another run.

  Args:
    folder: of the earlier run.
    earlier: its description.
    description: of the run that is to write there.
    free: flags that may have other values.

  Raises:
    ValueError: the runs are not the same; says in what.
  """
  before, now = (records.identity(d, free) for d in (earlier, description))
  if before != now:
    raise ValueError(
      f"--out={folder}: holds the results of another run"
      f" ({staging.difference(before, now)}); choose another output folder, or"
      " add --overwrite"
    )


def _carry_over(stage, model) -> None:
  """Give the new folder the files of the old one that no run wrote."""
  old = stage.folder
  if not old.is_dir():
    return
  written = files.read_checksums(old)
  if model and not written:
    return
  for path in old.rglob("*"):
    name = path.relative_to(old)
    known = name.as_posix() in written or (
      not written and name.parts[0] in _KNOWN
    )
    target = stage.new / name
    if path.is_dir() or known or name.as_posix() == files.CHECKSUMS:
      continue
    if not os.path.lexists(target):
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(path, target, follow_symlinks=False)
