"""Does the code that a model writes pass its tests? Completions and pass@k."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report, statistics
from jaxprune.calibration import encode, load_tokenizer, special_tokens
from jaxprune.evaluation import code_execution, generation, isolation
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.models import Sampling
from jaxprune.statistics import Estimate

FIELDS = {
  "completion": report.Field("text", "", "what the model wrote"),
  "reason": report.Field("text", "", "how the program ended"),
  "sample": report.Field("int", "", "index of the completion, from 0"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How code is written and run.

  Attributes:
    samples: completions of each task; one is greedy, more are drawn.
    k: of pass@k, at most `samples`.
    temperature: of sampling.
    max_new_tokens: most tokens to write.
    seconds: processor time of one program.
    allow_code_execution: whether what the model wrote is run.
    without_isolation: whether it is run as an ordinary process of this user.
    limit: only the first so many tasks; None is all.
    seed: of sampling and of the interval.
  """

  samples: int = 1
  k: int = 1
  temperature: float = 0.8
  max_new_tokens: int = 256
  seconds: int = 10
  allow_code_execution: bool = False
  without_isolation: bool = False
  limit: int | None = None
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tasks:
  """The tasks of one benchmark, encoded for a model.

  Attributes:
    benchmark: HumanEval or MBPP.
    entries: the tasks as they stand in the file.
    tokenizer: of the model.
    prompts: ids of what the model continues, one for each task.
    end_ids: tokens that end a text by the tokenizer's own files.
  """

  benchmark: code_execution.Benchmark
  entries: list[dict[str, Any]]
  tokenizer: Any
  prompts: list[list[int]]
  end_ids: tuple[int, ...] = ()


def read(path: str, source: checkpoints.Source, settings: Settings) -> Tasks:
  """Read and encode the tasks, before the model is loaded.

  Args:
    path: HumanEval or MBPP, json or jsonl.
    source: the model that will write.
    settings: how much it will write, and for how many tasks.

  Raises:
    ValueError: the file is broken, k exceeds the samples, a prompt and its
      completion exceed the context, or code is to be run and cannot be
      isolated here.
  """
  isolation_name(settings)
  if settings.k > settings.samples:
    raise ValueError(
      f"--k={settings.k} is more than --samples={settings.samples}: draw more"
    )
  benchmark, entries = code_execution.read_tasks(path)
  entries = entries[: settings.limit]
  tokenizer = load_tokenizer(source.folder)
  prompts = [encode(tokenizer, benchmark.prompt(entry)) for entry in entries]
  longest = max(map(len, prompts))
  if longest + settings.max_new_tokens > source.config.max_positions:
    raise ValueError(
      f"{path}: a prompt of {longest} tokens and --max_new_tokens="
      f"{settings.max_new_tokens} exceed the context of {source.folder},"
      f" {source.config.max_positions}: lower --max_new_tokens"
    )
  return Tasks(
    benchmark=benchmark,
    entries=entries,
    tokenizer=tokenizer,
    prompts=prompts,
    end_ids=special_tokens(source.folder, tokenizer).end_ids,
  )


def isolation_name(settings: Settings) -> str:
  """What code is isolated by: a name of `isolation.BACKENDS`, or "none".

  Raises:
    ValueError: code is to be run and cannot be isolated here.
  """
  if not settings.allow_code_execution:
    return "none"
  found = isolation.find(without_isolation=settings.without_isolation)
  return found.name


def measure(
  source: checkpoints.Source,
  tasks: Tasks,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
  bookkeeping: Bookkeeping = NO_BOOKKEEPING,
) -> np.ndarray:
  """Write completions, run them where that is allowed, and keep a row of each.

  Args:
    source: the model that writes.
    tasks: what it is asked.
    settings: how.
    run: where the rows go.
    progress: told of each sample that is done.
    bookkeeping: keeps what the model writes, and tells of it.

  Returns:
    How many samples of each task passed, int [tasks]; 0 where nothing ran.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  passed = np.zeros(len(tasks.entries), int)
  sampling = Sampling(
    temperature=settings.temperature if settings.samples > 1 else 0.0
  )
  for sample in range(settings.samples):
    written = generation.continue_prompts(
      config,
      params,
      tasks.tokenizer,
      tasks.prompts,
      generation.Writing(
        stop=tasks.benchmark.stop,
        eos_ids=tasks.end_ids,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed + sample,
        sampling=sampling,
      ),
      bookkeeping=bookkeeping,
    )
    for index, (entry, text) in enumerate(zip(tasks.entries, written)):
      row = {
        "task": str(entry["task_id"]),
        "question": index,
        "sample": sample,
        "completion": text.text,
      }
      if settings.allow_code_execution:
        outcome = code_execution.run_program(
          tasks.benchmark.program(entry, text.text),
          allow_code_execution=True,
          without_isolation=settings.without_isolation,
          limits=code_execution.Limits(seconds=settings.seconds),
        )
        passed[index] += outcome.passed
        row |= {
          "metric": "passed",
          "value": float(outcome.passed),
          "reason": outcome.reason,
        }
      run.write(row)
    progress.step(sample)
  return passed


def summarise(
  passed: np.ndarray, tasks: Tasks, settings: Settings
) -> dict[str, Any]:
  """Estimate pass@k over the tasks, where anything was run.

  Args:
    passed: from `measure`, int [tasks].
    tasks: what was asked.
    settings: how.

  Returns:
    `tasks`, their number, `format`, `executed`, and where it was, `isolation`
    and `pass@K` with an interval over tasks: Wilson's for one sample each, else
    resampling tasks.
  """
  summary = {
    "tasks": len(tasks.entries),
    "format": tasks.benchmark.name,
    "executed": settings.allow_code_execution,
  }
  if settings.allow_code_execution:
    summary["isolation"] = isolation_name(settings)
    chances = np.array(
      [
        code_execution.pass_at_k(settings.samples, int(count), settings.k)
        for count in passed
      ]
    )
    summary[f"pass@{settings.k}"] = (
      statistics.proportion(chances)
      if settings.samples == 1
      else statistics.mean(chances, seed=settings.seed)
    ).to_json()
  return summary


def headline(summary: dict[str, Any]) -> str:
  """One line: pass@k, or how to have it."""
  for name, entry in summary.items():
    if name.startswith("pass@"):
      text = Estimate.from_json(entry).format()
      return f"{name} {text} on {summary['tasks']} tasks"
  return "nothing was run: give --allow_code_execution to score"
