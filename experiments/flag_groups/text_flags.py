"""The flags of the texts that models continue, and how they are measured."""

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from . import measurement_flags, model_flags
from .define import REQUIRED, define_flag

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints
  from jaxprune.calibration import prompts as prompts_lib
  from jaxprune.studies.comparison import asked

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()

_TEXTS = "pocket, a txt or jsonl file, or an .npz of token ids"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """The flags --prompts, --limit and --max_new_tokens."""

  prompts: flags.FlagHolder[str]
  limit: flags.FlagHolder[int | None]
  max_new_tokens: flags.FlagHolder[int]

  def read(
    self,
    source: "checkpoints.Source",
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
  ) -> "prompts_lib.Prompts":
    """Read the prompts for a model.

    Args:
      source: the model that is to continue them.
      limit: how many where --limit says nothing.
      max_new_tokens: how many tokens are decoded where --max_new_tokens says
        nothing.

    Raises:
      ValueError: a prompt and the tokens to be decoded exceed the context.
    """
    from jaxprune.studies import inputs

    return inputs.read_prompts(
      source,
      self.prompts.value,
      limit=self.limit.value or limit,
      max_new_tokens=self.max_new_tokens.value or max_new_tokens,
    )

  def read_or_builtin(
    self, source: "checkpoints.Source", chat_mode: str
  ) -> "asked.Asked":
    """Read the prompts for a model, the built-in ones where none are named.

    Args:
      source: the model that is to continue them.
      chat_mode: of --chat.

    Raises:
      ValueError: see `asked.read`.
    """
    from jaxprune.studies.comparison import asked

    return asked.read(
      source,
      self.prompts.value,
      limit=self.limit.value,
      max_new_tokens=self.max_new_tokens.value,
      chat_mode=chat_mode,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """The flags of models that are compared on what the dense one writes.

  These are --dense, --pruned, those of the prompts, --temperature,
  --analysis_temperature, --lens, --batch and --seed.
  """

  models: model_flags.Models
  prompts: Prompts
  temperature: flags.FlagHolder[float]
  analysis_temperature: flags.FlagHolder[float]
  lens: flags.FlagHolder[str]
  batch: flags.FlagHolder[int]
  seed: flags.FlagHolder[int]

  def open(self) -> "tuple[dict[str, checkpoints.Source], prompts_lib.Prompts]":
    """Open the models, by `dense` and `pruned`, and read the prompts."""
    models = self.models.open()
    return models, self.prompts.read(models["dense"])

  def settings(self, kind: Any, **others: Any) -> Any:
    """How texts are written and compared.

    Args:
      kind: `studies.texts.Comparison`, or what a study makes of it.
      **others: the fields of `kind` that these flags do not name.
    """
    return kind(
      max_new_tokens=self.prompts.max_new_tokens.value,
      temperature=self.temperature.value,
      analysis_temperature=self.analysis_temperature.value,
      lens=self.lens.value,
      batch=self.batch.value,
      seed=self.seed.value,
      **others,
    )


def prompts(
  default: Any = "pocket",
  *,
  limit: int | None = None,
  max_new_tokens: int | None = 32,
  about: str = f"Texts that are continued: {_TEXTS}.",
  about_limit: str = "Only the first so many prompts.",
  about_max_new_tokens: str = "Steps to decode and compare.",
) -> Prompts:
  """Define --prompts, --limit (also --num_prompts) and --max_new_tokens.

  Args:
    default: a file or pocket, None where no prompts are needed, or REQUIRED.
    limit: default of --limit; None is all of a file.
    max_new_tokens: default of --max_new_tokens.
    about: the help text of --prompts.
    about_limit: the help text of --limit.
    about_max_new_tokens: the help text of --max_new_tokens.
  """
  holders = Prompts(
    prompts=prompt_file(default, about=about),
    limit=measurement_flags.limit(limit, about=about_limit),
    max_new_tokens=new_tokens(max_new_tokens, about=about_max_new_tokens),
  )
  flags.DEFINE_alias("num_prompts", "limit")
  return holders


def comparison(*, max_new_tokens: int, pruned: Any = REQUIRED) -> Comparison:
  """Define the flags of models that are compared on texts.

  Args:
    max_new_tokens: default of --max_new_tokens.
    pruned: None where --pruned may be left out, or REQUIRED.
  """
  return Comparison(
    models=model_flags.models(pruned=pruned),
    prompts=prompts(REQUIRED, max_new_tokens=max_new_tokens),
    temperature=measurement_flags.temperature(),
    analysis_temperature=measurement_flags.analysis_temperature(),
    lens=measurement_flags.lens(),
    batch=measurement_flags.batch(),
    seed=measurement_flags.seed("Seed of sampling and intervals."),
  )


def prompt_file(default: Any, *, about: str) -> flags.FlagHolder[str]:
  """Define --prompts alone, for scripts that fix how many are read.

  Args:
    default: a file or pocket, None where no prompts are needed, or REQUIRED.
    about: the help text.
  """
  return define_flag(flags.DEFINE_string, "prompts", default, about)


def new_tokens(
  default: int | None, *, about: str = "Most tokens to write.", least: int = 1
) -> flags.FlagHolder[int]:
  """Define --max_new_tokens alone, for scripts that read no prompts.

  Args:
    default: how many; None where the script decides.
    about: the help text.
    least: the fewest that make sense.
  """
  return flags.DEFINE_integer(
    "max_new_tokens", default, about, lower_bound=least
  )


def chat(default: str, *, about: str) -> flags.FlagHolder[str]:
  """Define --chat.

  Args:
    default: auto, yes or no.
    about: the beginning of the help text.
  """
  return flags.DEFINE_enum(
    "chat",
    default,
    ["auto", "yes", "no"],
    f"{about}, by the model's template; auto is where it has one.",
  )
