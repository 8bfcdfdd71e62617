"""How every script starts, keeps its run, tells where it is, and ends.

Leftover arguments are refused, and whatever goes wrong is one line on stderr
with exit status 1, see `failures`. `--verbosity=1` shows the whole traceback.
Ctrl-C and SIGTERM end a script with a line that says what is kept and how to go
on, and the exit status 130 or 143.

A script that measures something does it within `study`, which opens the run
folder, writes run.json, and at the end says where the results are; one that
writes a model does it within `place`. Both work beside --out, under a lock, and
give the results that name when all went well.
"""

import contextlib
import functools
import logging as python_logging
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging

import jaxprune

from . import command_line, descriptions, failures, interrupts, pod_parent, pods
from .progress import Progress, is_quiet, say, tell_amount

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import report, staging
  from jaxprune.evaluation import journal

_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Join the processes of a pod first. A TPU, Slurm or Kubernetes tells them"
  " of each other; elsewhere set --coordinator, --num_processes and"
  " --process_id.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes of the pod."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process, from 0."
)


class _Clock:
  """Seconds since the script began, of which a process may run several."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    self._began = time.monotonic()

  def seconds(self) -> float:
    return time.monotonic() - self._began


_clock = _Clock()


def run(main: Callable[[], None]) -> None:
  """Parse the flags, join the pod if there is one, call `main()`, exit."""

  def entry(argv: list[str]) -> None:
    del argv  # no word is left over
    # Without this absl shows what JAX logs about every accelerator that is
    # absent.
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)
    if logging.get_verbosity() == logging.INFO:  # and each step of orbax
      logging.set_verbosity(logging.WARNING)
    pod = _pod()
    _clock.restart()
    try:
      with _telling("jaxprune"), interrupts.as_exceptions(), pod:
        try:
          main()
        except _FinishedError as finished:
          if not is_quiet():
            print(finished)
    except interrupts.SignalError as error:
      print(interrupts.closing_line(error.reason), file=sys.stderr)
      sys.exit(128 + error.number)
    except (SystemExit, GeneratorExit, KeyboardInterrupt):
      raise
    except BaseException as error:  # a panic of Rust code is no Exception
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      failures.tell(error)
      sys.exit(1)

  app.run(entry, flags_parser=functools.partial(command_line.parse, main))


class _FinishedError(Exception):
  """The results of this command are there already."""


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
  """Print what the logger `name` is told from INFO on, each line once."""
  lines: set[str] = set()

  class Handler(python_logging.Handler):
    def emit(self, record: python_logging.LogRecord) -> None:
      line = " ".join(record.getMessage().split())
      if line not in lines:
        lines.add(line)
        say(f"note: {line}")

  logger, handler = python_logging.getLogger(name), Handler()
  before = logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(python_logging.INFO)
  logger.propagate = False  # absl would print the message again
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


def _pod() -> contextlib.AbstractContextManager:
  """Where a script is a process of a pod; in a child of this process."""
  if not _DISTRIBUTED.value:
    return contextlib.nullcontext()
  return pods.member(
    pod_parent.fork(),
    pods.Address(
      coordinator=_COORDINATOR.value,
      processes=_NUM_PROCESSES.value,
      index=_PROCESS_ID.value,
    ),
    {
      "program": command_line.program(),
      "flags": descriptions.flag_values()
      | {"num_processes": _NUM_PROCESSES.value},
      "versions": {"jaxprune": jaxprune.__version__},
    },
  )


class Study:
  """What a script does with its open run folder; made by `study`.

  Attributes:
    run: the run folder; measurements write their rows to it.
    description: what run.json says; a page shows it.
    stage: where the folder is made, and its final name.
  """

  def __init__(
    self,
    run: "report.RunFolder",
    description: Mapping[str, Any],
    stage: "staging.Stage",
  ):
    self.run = run
    self.description = description
    self.stage = stage
    self._closing: str | None = None
    self._journals: list[journal.Journal] = []

  def progress(self, unit: str, total: int) -> Progress:
    """Make a display of how much is done.

    Args:
      unit: what is counted, such as `batch`.
      total: how many there are.
    """
    return Progress(unit, total)

  def bookkeeping(self, role: str = "model") -> "journal.Bookkeeping":
    """Keep what a model answers, and tell of it.

    The same command finds the answers again after it was killed, within
    `study(..., answers=True)`.

    Args:
      role: of the model in run.json, where there are several.
    """
    import jax

    from jaxprune.evaluation import journal

    hashes = self.description["checkpoint_hash"]
    kept = None
    # The processes of a pod would not all know the same answers.
    if jax.process_count() == 1:
      origin = {
        "model": hashes[role] if isinstance(hashes, Mapping) else hashes,
        "jaxprune": self.description["versions"]["jaxprune"],
      }
      kept = journal.Journal(
        self.stage.scaffold / f"answers-{role}.jsonl", origin
      )
      self._journals.append(kept)
      if len(kept):
        say(f"{role}: {len(kept)} answers of an unfinished run are kept")
    return journal.Bookkeeping(journal=kept, progress=tell_amount(role))

  def finish(
    self,
    summary: Mapping[str, Any],
    headline: str = "",
    *,
    wrote: Sequence[str] = ("report.html",),
    then: Sequence[str] = (),
  ) -> None:
    """Write summary.json, with the seconds since the script began.

    Args:
      summary: what was found; anything JSON can hold.
      headline: what the script prints at its end, in one or more lines.
      wrote: files and folders of the run folder that the last line names; ""
        is the folder itself.
      then: words of the command that is natural next; () for none.
    """
    self.run.write_summary({**summary, "seconds": _clock.seconds()})
    names = [f"{self.stage.shown}/{name}".rstrip("/") for name in wrote]
    lines = [headline, f"wrote {' and '.join(names)}"]
    if then:
      lines.append(f"next: {shlex.join((command_line.PROGRAM, *then))}")
    self._closing = "\n".join(filter(None, lines))

  def close_journals(self) -> None:
    """Close what `bookkeeping` has opened."""
    for kept in self._journals:
      kept.close()

  def close(self) -> None:
    """Print what `finish` was told, once for a whole pod."""
    if self._closing is not None and not is_quiet():
      print(self._closing)


@contextlib.contextmanager
def study(
  out: str | os.PathLike,
  *,
  extra_fields: "Mapping[str, report.Field] | None" = None,
  resume: bool = False,
  answers: bool = False,
  grows: Sequence[str] = (),
  **about: Any,
) -> Iterator[Study]:
  """Open a run folder, with everything in run.json that repeats the run.

  Products of float32 are computed in float32 from here on. `Study.finish` is
  called within the context. The folder gets its name when it ends well.

  Args:
    out: the folder; the results of another run there are refused, or with
      --overwrite replaced at the end.
    extra_fields: columns of the records beside `report.FIELDS`.
    resume: keep the rows of an earlier run with the same settings that did not
      end.
    answers: keep what `Study.bookkeeping` keeps of a run that did not end; the
      rows are written again.
    grows: flags whose values may become more from run to run.
    **about: what run.json says, see `descriptions.describe`.

  Raises:
    ValueError: the folder holds something else, another run writes to it, or
      unfinished work of another run lies beside it.
  """
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")
  description = descriptions.describe(**about)
  with (
    place(
      out,
      description,
      models=about.get("models"),
      resume=resume or answers or bool(grows),
      grows=grows,
    ) as (stage, resumed),
    records(
      stage, description, resume=resume and resumed, extra_fields=extra_fields
    ) as opened,
  ):
    try:
      yield opened
    finally:
      opened.close_journals()
  opened.close()


@contextlib.contextmanager
def place(
  out: str | os.PathLike,
  description: Mapping[str, Any],
  *,
  models: "descriptions.Models" = None,
  resume: bool = False,
  model: bool = False,
  grows: Sequence[str] = (),
  spare: Sequence[pathlib.Path] = (),
) -> "Iterator[tuple[staging.Stage, bool]]":
  """Open the place where --out is made; see `run_stage.stage_run`.

  Args:
    out: the final folder.
    description: from `descriptions.describe`.
    models: that are read; --out may not hold them.
    resume: whether unfinished work is taken up.
    model: whether a model folder is written.
    grows: flags whose values may become more from run to run.
    spare: other inputs that --out may not hold.

  Yields:
    The stage, whose `new` is to be filled, and whether there is earlier work.

  Raises:
    ValueError: the folder may not be written.
  """
  from jaxprune.report import records as records_lib
  from jaxprune.report import run_stage

  pods.agree("inputs", records_lib.identity(description))
  kept = False
  try:
    with run_stage.stage_run(
      out,
      description,
      overwrite=overwrites(),
      resume=resume,
      model=model,
      grows=grows,
      spare=[
        *spare,
        *(source.folder for source in descriptions.opened(models).values()),
      ],
    ) as opened:
      if resume:
        interrupts.keep(f"what was finished is kept in {opened[0].scaffold}")
      yield opened
    kept = True
  except run_stage.FinishedError:
    end_as_finished(out)
  finally:
    if kept:
      interrupts.keep(None)


@contextlib.contextmanager
def records(
  stage: "staging.Stage",
  description: Mapping[str, Any],
  *,
  resume: bool = False,
  extra_fields: "Mapping[str, report.Field] | None" = None,
) -> Iterator[Study]:
  """Write run.json and records into the folder that a script fills.

  Args:
    stage: from `place`.
    description: from `descriptions.describe`.
    resume: keep the rows that are there.
    extra_fields: columns of the records beside `report.FIELDS`.
  """
  from jaxprune import files, report

  if not is_quiet() and stage.new.is_dir() and not resume:
    # With run.json in it, a run may write to the folder of a model.
    files.atomic_write_json(stage.new / "run.json", {"made_by": "jaxprune"})
  with report.RunFolder(
    stage.new,
    description,
    main_process=not is_quiet(),
    resume=resume,
    extra_fields=extra_fields,
  ) as run:
    yield Study(run, description, stage)


def end_as_finished(out: str | os.PathLike) -> NoReturn:
  """End the script well: its results are there already."""
  raise _FinishedError(
    f"{os.fspath(out)}: finished already, by the same command; add --overwrite"
    " to run it again"
  )


def overwrites() -> bool:
  """Whether the results of another run may be replaced."""
  return "overwrite" in flags.FLAGS and bool(flags.FLAGS["overwrite"].value)
