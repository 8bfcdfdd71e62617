"""What must come of a changed input: what stock makes of it, or one clear line.

A `World` is a folder of inputs, the files of it that are changed, and a judge
that reads them as the scripts do and compares with an independent reading. A
judge returns what is wrong, or nothing; what it raises must be clear. The
worlds are in `mutation_models`, `mutation_texts` and `mutation_runs`; that of
the flags, in `mutation_flags`, changes words instead of files.
"""

import contextlib
import dataclasses
import pathlib
import random
import signal
import traceback
from collections.abc import Callable

import mutations

from experiments import failures

SECONDS = 10.0  # for one input
Judge = Callable[[pathlib.Path], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """Inputs of one kind.

  Attributes:
    name: of the kind.
    files: those that are changed, one at a time.
    judge: reads the world with the changed file; says what is wrong.
  """

  name: str
  files: tuple[pathlib.Path, ...]
  judge: Judge

  def try_one(self, draw: random.Random) -> str | None:
    """Change a file and read it.

    Args:
      draw: what is changed.

    Returns:
      What is wrong; None where all is as it should be.
    """
    file = draw.choice(self.files)
    before = file.read_bytes()
    file.write_bytes(mutations.mutate(before, file.name, draw))
    try:
      with limited():
        wrong = self.judge(file)
    except HangError as error:
      wrong = str(error)
    except BaseException as error:
      wrong = unclear(error, file)
    finally:
      file.write_bytes(before)
    return wrong and f"{self.name}: {file.name}: {wrong}"


class HangError(BaseException):
  """An input took too long."""


def unclear(error: BaseException, file: pathlib.Path) -> str | None:
  """What an error does not say; None where a person knows what to do.

  Args:
    error: that reading raised.
    file: that was changed.
  """
  said = failures.explain(error)
  place = traceback.extract_tb(error.__traceback__)[-1]
  shown = (
    f"{said[:300]!r} at {pathlib.Path(place.filename).name}:{place.lineno}"
  )
  if failures.is_fault(error) or said.startswith("unexpected"):
    return f"unclear: {shown}"
  if "\n" in said.strip() or len(said) > 1500:
    return f"not one line: {shown}"
  named = (file.name, file.parent.name)
  return None if any(n in said for n in named) else f"names no file: {shown}"


@contextlib.contextmanager
def limited(seconds: float = SECONDS):
  """Raise HangError where what is within takes more seconds."""

  def stop(number, frame):
    raise HangError(f"took more than {seconds:.0f} s")

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def make_worlds(home: pathlib.Path) -> list[World]:
  """Write all inputs that are files.

  Args:
    home: an empty folder.
  """
  import mutation_models
  import mutation_runs
  import mutation_texts

  return [
    *mutation_models.make_worlds(home),
    *mutation_texts.make_worlds(home / "texts", home / "model"),
    *mutation_runs.make_worlds(home),
  ]
