"""The tasks that are known by name: a model in, a number per item out.

`prompts_of` says what a model reads and what stands in the data as a right
text, for those who measure along it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import encode
from jaxprune.evaluation import code_execution, generation, isolation
from jaxprune.evaluation import tasks as tasks_lib
from jaxprune.evaluation.tasks import items as items_lib
from jaxprune.evaluation.tasks import problems
from jaxprune.evaluation.tasks.table import (
  CHOICE,
  CODE,
  EXACT,
  RETRIEVAL,
  TASKS,
)
from jaxprune.studies.tasks.asked import Model, Scored, Tasks, choose

WRITTEN = EXACT, CODE
_BENCHMARKS = {
  benchmark.name.lower(): benchmark for benchmark in code_execution.BENCHMARKS
}


def names(tasks: Tasks) -> list[tuple[str, int | None]]:
  """(name, items) of every task, None for all items.

  Args:
    tasks: of which `named` is read.

  Raises:
    ValueError: an unknown name, one that comes twice, or no number of items.
  """
  pairs = []
  for text in tasks.named:
    name, _, count = text.partition(":")
    items_lib.check_names([name])
    if count and not (count.isdecimal() and int(count)):
      raise ValueError(
        f"--tasks={text}: {count!r} is no number of items; write {name}:200"
      )
    pairs.append((name, int(count) if count else tasks.limit))
  found = [name for name, _ in pairs]
  for name in found:
    if found.count(name) > 1:
      raise ValueError(f"--tasks: {name} comes twice; name it once")
  return pairs


def needs_logits(tasks: Tasks) -> bool:
  """Whether a named task needs an output head."""
  return any(TASKS[name].kind != RETRIEVAL for name, _ in names(tasks))


def check(tasks: Tasks, sources: Sequence[checkpoints.Source]) -> None:
  """Read the data, before any model is loaded.

  Args:
    tasks: what will be asked.
    sources: the models that will be asked.

  Raises:
    ValueError: a task is unknown, its data is missing or broken, it would run
      code and that is not allowed or cannot be isolated here, or nothing fits
      the context of a model.
  """
  for name, limit in names(tasks):
    task = TASKS[name]
    if task.kind == CODE and not tasks.allow_code_execution:
      raise ValueError(
        f"--tasks={name}: runs the code that the model writes; add"
        " --allow_code_execution, or leave the task out"
      )
    if task.kind == CODE:
      isolation.find(without_isolation=tasks.without_isolation)
    read(tasks, name, limit)
    if task.kind == EXACT:
      items_lib.read_examples(name, tasks.data, _few_shot(tasks, name))
    for source in sources if task.kind in WRITTEN else ():
      if task.max_new_tokens >= source.config.max_positions:
        raise ValueError(
          f"--tasks={name}: writes {task.max_new_tokens} tokens, and the"
          f" context of {source.folder} is {source.config.max_positions}; leave"
          " the task out"
        )


def read(tasks: Tasks, name: str, limit: int | None) -> list[Any]:
  """The items of a task, see `evaluation.tasks.read`.

  Args:
    tasks: where the data is.
    name: of the task.
    limit: only the first so many; None is all.
  """
  return tasks_lib.read(name, tasks.data, limit)


def score(model: Model, name: str, limit: int | None, tasks: Tasks) -> Scored:
  """Score a task in which the model chooses or writes.

  Args:
    model: who answers.
    name: of the task.
    limit: only the first so many items; None is all.
    tasks: where the data is, and how texts are written.

  Raises:
    ValueError: a prompt and what is to be written exceed the context.
  """
  if TASKS[name].kind == CHOICE:
    return _choose(model, name, read(tasks, name, limit))
  return _write(model, name, read(tasks, name, limit), tasks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """What a model reads in one item of a task in which it writes.

  Attributes:
    ids: of the prompt.
    reference: ids of a right text after it; empty where there is none.
  """

  ids: list[int]
  reference: list[int]


def prompts_of(
  model: Model, name: str, limit: int | None, tasks: Tasks
) -> list[Prompt]:
  """What a model reads in a task in which it writes.

  Args:
    model: whose tokenizer and template make the ids.
    name: of the task, exact or code.
    limit: only the first so many items; None is all.
    tasks: where the data is, and how many examples stand in front.
  """
  return _prompts(model, name, read(tasks, name, limit), tasks)


def _prompts(model, name, items, tasks) -> list[Prompt]:
  task, tokenizer = TASKS[name], model.tokenizer
  if task.kind == CODE:
    benchmark = _BENCHMARKS[name]
    prompts = [(benchmark.prompt(item), _solution(item)) for item in items]
    render = None  # the tests call what the prompt itself begins
  else:
    render = model.template
    count = 0 if render else _few_shot(tasks, name)
    examples = items_lib.read_examples(name, tasks.data, count)
    prompts = [
      (
        problems.with_examples(
          item, examples, task.instruction if render else ""
        ),
        item.reference,
      )
      for item in items
    ]
  encoded = []
  for text, reference in prompts:
    whole = text if render is None else render(text)
    ids = encode(tokenizer, whole, None if render is None else False)
    if render is not None:
      reference = reference.lstrip()
    encoded.append(
      Prompt(ids=ids, reference=encode(tokenizer, reference, False))
    )
  return encoded


def _few_shot(tasks, name) -> int:
  return TASKS[name].few_shot if tasks.few_shot is None else tasks.few_shot


def _solution(item) -> str:
  return item.get("canonical_solution") or item.get("code") or ""


def _choose(model, name, questions) -> Scored:
  """Choose among options; and whether the model would write the right one."""
  choices, columns = choose(model, questions)
  items = np.arange(len(questions))
  columns["writes"] = choices.greedy[items, choices.answers].astype(float)
  return Scored(
    task=name, item="question", columns=columns, detail=choices, named=name
  )


def _write(model, name, items, tasks) -> Scored:
  """Write texts, and compare or run them."""
  task = TASKS[name]
  prompts = [prompt.ids for prompt in _prompts(model, name, items, tasks)]
  is_code = task.kind == CODE
  stop = _BENCHMARKS[name].stop if is_code else task.stop
  if model.template is not None and not is_code:
    stop = ()  # the template has an end of its own
  _check_lengths(model, name, prompts)
  written = generation.continue_prompts(
    model.config,
    model.params,
    model.tokenizer,
    prompts,
    generation.Writing(
      max_new_tokens=task.max_new_tokens,
      eos_ids=model.specials.end_ids,
      stop=stop,
    ),
    bookkeeping=model.bookkeeping,
  )
  texts = [text.text for text in written]
  if is_code:
    right = np.array(
      [
        code_execution.run_program(
          _BENCHMARKS[name].program(item, text),
          allow_code_execution=tasks.allow_code_execution,
          without_isolation=tasks.without_isolation,
        ).passed
        for item, text in zip(items, texts)
      ],
      float,
    )
  else:
    right = generation.exact_match(
      texts, [item.answer for item in items], generation.final_number
    ).astype(float)
  columns = {
    column: np.array([row[column] for row in generation.item_rows(written)])
    for column in ("length", "ended_eos", "repetition@4", "loop")
  }
  return Scored(
    task=name,
    item="prompt",
    columns={task.metric: right} | columns,
    detail=written,
    named=name,
  )


def _check_lengths(model, name, prompts) -> None:
  longest, room = max(map(len, prompts)), TASKS[name].max_new_tokens
  if longest + room > model.config.max_positions:
    raise ValueError(
      f"--tasks={name}: a prompt of {longest} tokens and {room} to write exceed"
      f" the context, {model.config.max_positions}: lower --few_shot, or leave"
      " the task out"
    )
