"""The flags that name tasks, and whether what a model writes is run."""

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from . import measurement_flags, text_flags

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune.studies.tasks import scores

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedTasks:
  """The flag --tasks, and how those tasks are asked; see `named_tasks`."""

  named: flags.FlagHolder[list[str]]
  data: flags.FlagHolder[str | None]
  few_shot: flags.FlagHolder[int | None]
  allow_code_execution: flags.FlagHolder[bool]
  without_isolation: flags.FlagHolder[bool]

  def read(self, **others: Any) -> "scores.Tasks":
    """What is asked of a model.

    Args:
      **others: the fields of `scores.Tasks` that these flags do not name.
    """
    from jaxprune.studies.tasks import scores

    return scores.Tasks(
      named=tuple(self.named.value),
      data=self.data.value,
      few_shot=self.few_shot.value,
      allow_code_execution=self.allow_code_execution.value,
      without_isolation=self.without_isolation.value,
      **others,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """The flags that name tasks, and --limit."""

  perplexity: flags.FlagHolder[list[str]]
  documents: flags.FlagHolder[list[str]]
  choice: flags.FlagHolder[list[str]]
  generation: flags.FlagHolder[list[str]]
  pocket: flags.FlagHolder[bool]
  limit: flags.FlagHolder[int | None]
  chat: flags.FlagHolder[str]
  by_name: NamedTasks

  def read(self, **others: Any) -> "scores.Tasks":
    """What is asked of a model.

    Args:
      **others: the fields of `scores.Tasks` that these flags do not name.
    """
    return self.by_name.read(
      perplexity=tuple(self.perplexity.value),
      documents=tuple(self.documents.value),
      choice=tuple(self.choice.value),
      generation=tuple(self.generation.value),
      pocket=self.pocket.value,
      limit=self.limit.value,
      chat=self.chat.value,
      **others,
    )


def named_tasks(about: str = "Tasks by name") -> NamedTasks:
  """Define --tasks, --data, --few_shot, and whether code is run.

  That is --allow_code_execution and --without_isolation.

  Args:
    about: the beginning of the help text of --tasks.
  """
  return NamedTasks(
    named=flags.DEFINE_list(
      "tasks",
      [],
      f"{about}, NAME or NAME:ITEMS, such as arc_easy:200,gsm8k; all of"
      " them are in jaxprune/evaluation/tasks/table.py.",
    ),
    data=flags.DEFINE_string(
      "data", None, "Folder with the files of --tasks; by default the hub."
    ),
    few_shot=flags.DEFINE_integer(
      "few_shot",
      None,
      "Solved problems before a prompt without a chat template; by default what"
      " the task says.",
      lower_bound=0,
    ),
    allow_code_execution=allow_code_execution(
      "Run the code that a model writes in --tasks=humaneval and mbpp."
    ),
    without_isolation=without_isolation(),
  )


def tasks() -> Tasks:
  """Define what names tasks, any of them several times, and --limit.

  The flags are --tasks with --data, --few_shot, --allow_code_execution and
  --without_isolation; --perplexity, --documents, --choice, --generation, --chat
  and --pocket.
  """
  return Tasks(
    perplexity=flags.DEFINE_multi_string(
      "perplexity", [], "Text that is read in windows: a file, wikitext2 or c4."
    ),
    documents=flags.DEFINE_multi_string(
      "documents",
      [],
      "Text whose documents are each read alone: a file, wikitext2 or c4.",
    ),
    choice=flags.DEFINE_multi_string(
      "choice", [], "jsonl of multiple-choice questions."
    ),
    generation=flags.DEFINE_multi_string(
      "generation",
      [],
      "jsonl of prompts that are continued greedily; of two models the texts"
      " are compared.",
    ),
    pocket=flags.DEFINE_bool(
      "pocket", False, "The tasks of the pocket model's world."
    ),
    limit=measurement_flags.limit(),
    chat=text_flags.chat(
      "auto",
      about="Whether prompts of --generation and of exact --tasks are turns of"
      " a chat",
    ),
    by_name=named_tasks(),
  )


def allow_code_execution(
  about: str = "Run what the model wrote, on this machine.",
) -> flags.FlagHolder[bool]:
  """Define --allow_code_execution."""
  return flags.DEFINE_bool("allow_code_execution", False, about)


def without_isolation() -> flags.FlagHolder[bool]:
  """Define --without_isolation."""
  return flags.DEFINE_bool(
    "without_isolation",
    False,
    "Run it as an ordinary process of this user: it can read, change and send"
    " whatever that user can.",
  )
