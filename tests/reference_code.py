"""The published solutions of HumanEval and MBPP, through the sandbox.

  python tests/reference_code.py --data=DATA --isolation=bubblewrap

DATA has humaneval/HumanEval.jsonl.gz and mbpp/sanitized-mbpp.json. Prints how
many pass, those that do not, and what a program costs in wall and processor
time, all its processes together; the exit status is 1 if one fails.
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import resource
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from jaxprune.evaluation import code_execution, supervision  # noqa: E402
from jaxprune.evaluation import isolation as sandboxes  # noqa: E402

FILES = {
  "humaneval/HumanEval.jsonl.gz": "canonical_solution",
  "mbpp/sanitized-mbpp.json": "code",
}
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: count what a sandbox leaves behind


def outcomes(path: pathlib.Path, backend: sandboxes.Isolation, every: int = 1):
  """Yields the id and the outcome of every n-th task of a file."""
  benchmark, tasks = code_execution.read_tasks(path)
  field = next(FILES[name] for name in FILES if path.name in name)
  for task in tasks[::every]:
    program = benchmark.program(task, task[field])
    yield (
      task["task_id"],
      supervision.supervise(
        backend, program.code, program.request(), sandboxes.Limits()
      ),
    )


def _processor_time() -> float:
  with contextlib.suppress(ChildProcessError):
    while os.waitpid(-1, os.WNOHANG)[0]:
      pass
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime + time.process_time()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  backends = {each.name: each for each in sandboxes.BACKENDS}
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--isolation", choices=backends, default="bubblewrap")
  parser.add_argument("--every", type=int, default=1)
  flags = parser.parse_args()
  ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
  failed = 0
  for name in FILES:
    started, used = time.monotonic(), _processor_time()
    found = dict(
      outcomes(flags.data / name, backends[flags.isolation], flags.every)
    )
    wall = (time.monotonic() - started) / len(found)
    processor = (_processor_time() - used) / len(found)
    wrong = {key: value for key, value in found.items() if not value.passed}
    failed += len(wrong)
    print(
      f"{name}: {len(found) - len(wrong)} of {len(found)} pass,"
      f" {wall:.3f} s and {processor:.3f} s of processor time a program"
    )
    for key, outcome in wrong.items():
      print(f"  {key}: {outcome}")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
