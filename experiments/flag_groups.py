"""The flags that several scripts have, defined once and named alike.

A script calls a group where other flags are defined, at its top level:

  PROMPTS = flag_groups.prompts(limit=32, max_new_tokens=64)

The flags become the script's own: its `--help` shows them and run.json holds
them. A group of several flags returns a frozen holder that reads what the flags
name, `PROMPTS.read(source)`; a group of one flag returns absl's holder,
`SEED.value`. Defaults are arguments, and REQUIRED is the default of a flag that
must be given.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints
  from jaxprune.calibration import prompts as prompts_lib
  from jaxprune.calibration import tokens
  from jaxprune.studies import pruned_models
  from jaxprune.studies.tasks import scores

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()

REQUIRED = object()
# What numpy, Python and JAX all take as it is: JAX drops higher bits.
MAX_SEED = 2**31 - 1
MOST_AT_ONCE = 2**16  # items of a batch; more is a slip

_A_MODEL = "a folder, a GGUF file, a hub id, or pocket"
_TEXTS = "pocket, a txt or jsonl file, or an .npz of token ids"


@dataclasses.dataclass(frozen=True)
class Model:
  """The flag --model."""

  model: flags.FlagHolder[str]

  def open(self, *, logits: bool = True) -> "checkpoints.Source":
    """Open the model, checked from its headers.

    Args:
      logits: whether they will be needed, and so an output head.
    """
    from jaxprune.studies import inputs

    return inputs.open_model(self.model.value, logits=logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
  """The flags --dense and --pruned, which name two models of one shape."""

  dense: flags.FlagHolder[str]
  pruned: flags.FlagHolder[str]

  def open(self) -> dict[str, "checkpoints.Source"]:
    """Open the models that are named, by `dense` and `pruned`, in that order.

    Returns:
      The models, checked from their headers. A flag that is None has no entry.
    """
    from jaxprune.studies import inputs

    named = {"dense": self.dense.value, "pruned": self.pruned.value}
    return {
      role: inputs.open_model(name)
      for role, name in named.items()
      if name is not None
    }


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """The flags of models that are compared on what the dense one writes.

  These are --dense, --pruned, those of the prompts, --temperature,
  --analysis_temperature, --lens, --batch and --seed.
  """

  models: Models
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """The flags --calibration, --num_samples and --seq_len."""

  calibration: flags.FlagHolder[str]
  num_samples: flags.FlagHolder[int]
  seq_len: flags.FlagHolder[int]

  def read(
    self,
    source: "checkpoints.Source",
    seed: int,
    *,
    name: str | None = None,
    sampling: str | None = None,
    activations: bool = True,
  ) -> "tokens.Calibration":
    """Read the calibration tokens for a model.

    Args:
      source: the model that reads them.
      seed: of the draw from the text.
      name: another text, in place of --calibration.
      sampling: how sequences are cut from text, see `calibration.tokens`.
      activations: whether those of all sequences will be in memory together.

    Raises:
      ValueError: the sequences are longer than the context of the model, or
        more than fit into the memory.
    """
    from jaxprune.studies import inputs

    return inputs.read_calibration(
      source,
      name or self.calibration.value,
      num_samples=self.num_samples.value,
      seq_len=self.seq_len.value,
      seed=seed,
      sampling=sampling,
      activations=activations,
    )

  def shape(self) -> tuple[int, int]:
    """How many sequences of how many tokens there will be; none is read.

    Raises:
      ValueError: more than the memory holds.
    """
    from jaxprune.studies import inputs

    return inputs.calibration_shape(
      self.calibration.value, self.num_samples.value, self.seq_len.value
    )

  def read_seeds(
    self, source: "checkpoints.Source", seeds: list[int]
  ) -> tuple[dict[int, "tokens.Calibration"], dict[str, Any]]:
    """Read the tokens of several seeds.

    Args:
      source: the model that reads them.
      seeds: one draw each.

    Returns:
      The tokens by seed, and one description of them all for run.json.
    """
    from jaxprune.studies import inputs

    return inputs.read_calibrations(
      source,
      self.calibration.value,
      seeds,
      num_samples=self.num_samples.value,
      seq_len=self.seq_len.value,
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
  named: flags.FlagHolder[list[str]]
  data: flags.FlagHolder[str | None]
  few_shot: flags.FlagHolder[int | None]
  allow_code_execution: flags.FlagHolder[bool]

  def read(self, **others: Any) -> "scores.Tasks":
    """What is asked of a model.

    Args:
      **others: the fields of `scores.Tasks` that these flags do not name.
    """
    from jaxprune.studies.tasks import scores

    return scores.Tasks(
      perplexity=tuple(self.perplexity.value),
      documents=tuple(self.documents.value),
      choice=tuple(self.choice.value),
      generation=tuple(self.generation.value),
      pocket=self.pocket.value,
      limit=self.limit.value,
      chat=self.chat.value,
      named=tuple(self.named.value),
      data=self.data.value,
      few_shot=self.few_shot.value,
      allow_code_execution=self.allow_code_execution.value,
      **others,
    )


@dataclasses.dataclass(frozen=True)
class Seeds:
  """The flag --seeds, a list of integers."""

  seeds: flags.FlagHolder[list[str]]

  @property
  def value(self) -> list[int]:
    """The seeds; a ValueError names the flag if one is no integer."""
    try:
      seeds = [int(seed) for seed in self.seeds.value]
    except ValueError:
      seeds = []
    if not seeds or not all(0 <= seed <= MAX_SEED for seed in seeds):
      raise ValueError(
        f"--seeds={','.join(self.seeds.value)!s:.200}: give integers, divided"
        f" by commas, from 0 to {MAX_SEED}"
      )
    return seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedModels:
  """The flags of a study of one pruned folder, or of models that it prunes.

  These are --dense, --pruned, --configurations, --seeds and those of the
  calibration.
  """

  models: Models
  configurations: flags.FlagHolder[list[str]]
  seeds: Seeds
  calibration: Calibration

  def open(self) -> dict[str, "checkpoints.Source"]:
    """Open the models that are named, by `dense` and `pruned`."""
    return self.models.open()

  def read(
    self,
    sources: "Mapping[str, checkpoints.Source]",
    out: str,
    *,
    target: str,
    group_size: int | None,
    draws: bool = True,
  ) -> "tuple[list[pruned_models.PrunedModel], dict[str, Any] | None]":
    """Say which pruned models there will be.

    Args:
      sources: from `open`.
      out: the run folder, in which models are pruned.
      target: what drop_random, drop_reverse and drop_iterative drop.
      group_size: weights that share a scale, for rtn and awq.
      draws: whether the study itself draws from --seeds, so that it looks at a
        folder once per seed.

    Returns:
      The pruned models, opened when their turn comes; and the description of
      the calibration for run.json, None where nothing is pruned.

    Raises:
      ValueError: a configuration that the model cannot have.
    """
    from jaxprune import staging
    from jaxprune.pruning.checkpoint import sublayers
    from jaxprune.studies import pruned_models
    from jaxprune.studies.sweep import configurations as configurations_lib

    dense, seeds = sources["dense"], self.seeds.value
    if "pruned" in sources:
      return pruned_models.of_folder(
        sources["pruned"], seeds if draws else seeds[:1]
      ), None
    wanted = configurations_lib.read_all(
      self.configurations.value,
      dense.config,
      group_size=group_size,
      target=target,
      earlier=sublayers.dropped_before(dense),
    )
    drawn, description = self.calibration.read_seeds(dense, seeds)
    models = pruned_models.of_configurations(
      dense,
      wanted,
      {seed: calibration.tokens for seed, calibration in drawn.items()},
      staging.stage(out).scaffold / "work",
    )
    return models, description


def model(
  default: Any = "pocket", *, about: str = f"The model: {_A_MODEL}."
) -> Model:
  """Define --model.

  Args:
    default: name of a model, or REQUIRED.
    about: the help text.
  """
  return Model(_define(flags.DEFINE_string, "model", default, about))


def models(
  *,
  dense: Any = REQUIRED,
  pruned: Any = REQUIRED,
  about_dense: str = f"The original model: {_A_MODEL}.",
  about_pruned: str = "The pruned model, of the same shape.",
  alias: bool = False,
) -> Models:
  """Define --dense and --pruned.

  Args:
    dense: name of a model, None where the flag may be left out, or REQUIRED.
    pruned: the same.
    about_dense: the help text of --dense.
    about_pruned: the help text of --pruned.
    alias: whether --model is a second name of --dense.
  """
  holders = Models(
    dense=_define(flags.DEFINE_string, "dense", dense, about_dense),
    pruned=_define(flags.DEFINE_string, "pruned", pruned, about_pruned),
  )
  if alias:
    flags.DEFINE_alias("model", "dense")
  return holders


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
    limit=_limit(limit, about_limit),
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
    models=models(pruned=pruned),
    prompts=prompts(REQUIRED, max_new_tokens=max_new_tokens),
    temperature=temperature(),
    analysis_temperature=analysis_temperature(),
    lens=lens(),
    batch=batch(),
    seed=seed("Seed of sampling and intervals."),
  )


def prompt_file(default: Any, *, about: str) -> flags.FlagHolder[str]:
  """Define --prompts alone, for scripts that fix how many are read.

  Args:
    default: a file or pocket, None where no prompts are needed, or REQUIRED.
    about: the help text.
  """
  return _define(flags.DEFINE_string, "prompts", default, about)


def new_tokens(
  default: int | None, *, about: str = "Most tokens to write."
) -> flags.FlagHolder[int]:
  """Define --max_new_tokens alone, for scripts that read no prompts.

  Args:
    default: how many; None where the script decides.
    about: the help text.
  """
  return flags.DEFINE_integer("max_new_tokens", default, about, lower_bound=1)


def tasks() -> Tasks:
  """Define what names tasks, any of them several times, and --limit.

  The flags are --tasks with --data, --few_shot and --allow_code_execution;
  --perplexity, --documents, --choice, --generation, --chat and --pocket.
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
    limit=_limit(None, "Only the first so many items of each task."),
    chat=chat(
      "auto",
      about="Whether prompts of --generation and of exact --tasks are turns of"
      " a chat",
    ),
    named=flags.DEFINE_list(
      "tasks",
      [],
      "Tasks by name, NAME or NAME:ITEMS, such as arc_easy:200,gsm8k; all of"
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
    allow_code_execution=flags.DEFINE_bool(
      "allow_code_execution",
      False,
      "Run the code that a model writes in --tasks=humaneval and mbpp.",
    ),
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


def limit(
  default: int | None = None,
  *,
  about: str = "Only the first so many items of each task.",
) -> flags.FlagHolder[int | None]:
  """Define --limit alone, for scripts that read no prompts.

  Args:
    default: number of items; None is all.
    about: help text.
  """
  return _limit(default, about)


def calibration(
  default: Any = "pocket",
  *,
  num_samples: int = 32,
  seq_len: int = 128,
  about: str = (
    "Text that the pruning method looks at: a text, jsonl, json.gz or parquet"
    " file, c4, wikitext2, pocket, or an .npz of token ids."
  ),
  about_seq_len: str = "Tokens of a calibration sequence.",
) -> Calibration:
  """Define --calibration, --num_samples and --seq_len.

  Args:
    default: a file or a name, None where no text is needed, or REQUIRED.
    num_samples: default of --num_samples, in sequences.
    seq_len: default of --seq_len, in tokens.
    about: the help text of --calibration.
    about_seq_len: the help text of --seq_len.
  """
  return Calibration(
    calibration=calibration_text(default, about=about),
    num_samples=samples(num_samples),
    seq_len=sequence_length(seq_len, about=about_seq_len),
  )


def calibration_text(default: Any, *, about: str) -> flags.FlagHolder[str]:
  """Define --calibration alone, for scripts that read whole documents.

  Args:
    default: a file or a name, None where no text is needed, or REQUIRED.
    about: the help text.
  """
  return _define(flags.DEFINE_string, "calibration", default, about)


def samples(
  default: int, *, about: str = "Calibration sequences."
) -> flags.FlagHolder[int]:
  """Define --num_samples alone, for scripts that fix the text.

  Args:
    default: how many.
    about: the help text.
  """
  return flags.DEFINE_integer("num_samples", default, about, lower_bound=1)


def sequence_length(
  default: int, *, about: str, least: int = 1
) -> flags.FlagHolder[int]:
  """Define --seq_len alone, for scripts that fix the text.

  Args:
    default: in tokens.
    about: the help text.
    least: the shortest that makes sense, in tokens.
  """
  return flags.DEFINE_integer("seq_len", default, about, lower_bound=least)


def configurations(
  default: list[str],
  *,
  about: str = (
    "Ways to prune, METHOD:AMOUNT, see"
    " jaxprune/studies/sweep/configurations.py."
  ),
) -> flags.FlagHolder[list[str]]:
  """Define --configurations (also --cells).

  Args:
    default: METHOD:AMOUNT each.
    about: the help text.
  """
  holder = flags.DEFINE_list("configurations", default, about)
  flags.DEFINE_alias("cells", "configurations")
  return holder


def survival() -> flags.FlagHolder[float]:
  """Define --survival: how much of the dense score must be left."""
  return flags.DEFINE_float(
    "survival",
    0.9,
    "Part of the dense score that must be left.",
    lower_bound=0.0,
    upper_bound=1.0,
  )


def allow_code_execution() -> flags.FlagHolder[bool]:
  """Define --allow_code_execution."""
  return flags.DEFINE_bool(
    "allow_code_execution", False, "Run what the model wrote, on this machine."
  )


def without_isolation() -> flags.FlagHolder[bool]:
  """Define --without_isolation."""
  return flags.DEFINE_bool(
    "without_isolation",
    False,
    "Run it as an ordinary process of this user: it can read, change and send"
    " whatever that user can.",
  )


def seeds(
  default: tuple[int, ...] = (0, 1, 2), *, about: str = "Of the calibration."
) -> Seeds:
  """Define --seeds.

  Args:
    default: the seeds where none are given.
    about: the help text.
  """
  return Seeds(flags.DEFINE_list("seeds", list(map(str, default)), about))


def pruned_models(
  default: list[str], *, about_seeds: str = "Of the calibration."
) -> PrunedModels:
  """Define the flags of one pruned folder, or of models that are pruned.

  Args:
    default: configurations where none are given.
    about_seeds: the help text of --seeds.
  """
  return PrunedModels(
    models=models(
      dense="pocket",
      pruned=None,
      about_pruned="One pruned folder, instead of --configurations.",
      alias=True,
    ),
    configurations=configurations(default),
    seeds=seeds(about=about_seeds),
    calibration=calibration(),
  )


def seed(about: str = "Seed of every draw.") -> flags.FlagHolder[int]:
  """Define --seed, 0 where it is not given."""
  return flags.DEFINE_integer(
    "seed", 0, about, lower_bound=0, upper_bound=MAX_SEED
  )


def out(
  default: Any = REQUIRED, *, about: str = "Folder to write."
) -> flags.FlagHolder[str]:
  """Define --out, and --overwrite, which `launch` reads.

  Args:
    default: a folder, or REQUIRED.
    about: the help text.
  """
  flags.DEFINE_bool(
    "overwrite", False, "Replace the results of another run in --out."
  )
  return _define(flags.DEFINE_string, "out", default, about)


def mesh(about: str) -> flags.FlagHolder[str | None]:
  """Define --mesh, which `studies.inputs.read_mesh` reads."""
  return flags.DEFINE_string("mesh", None, about)


def shard_size() -> flags.FlagHolder[str]:
  """Define --shard_size, which `studies.inputs.read_size` reads."""
  return flags.DEFINE_string(
    "shard_size",
    "5GB",
    "Bytes of tensors in one safetensors file, such as 5GB or 200MB.",
  )


def batch(
  default: int = 8, *, about: str = "Prompts decoded together."
) -> flags.FlagHolder[int]:
  """Define --batch.

  Args:
    default: how many.
    about: the help text.
  """
  return flags.DEFINE_integer("batch", default, about, 1, MOST_AT_ONCE)


def temperature(
  default: float = 0.0,
  *,
  about: str = "Of sampling; 0 is greedy.",
  least: float = 0.0,
) -> flags.FlagHolder[float]:
  """Define --temperature, of sampling.

  Args:
    default: greedy where it is 0.
    about: the help text.
    least: the lowest that is allowed.
  """
  return flags.DEFINE_float("temperature", default, about, lower_bound=least)


def analysis_temperature(
  about: str = "T of the softmax that is measured.",
) -> flags.FlagHolder[float]:
  """Define --analysis_temperature, 1 where it is not given."""
  return flags.DEFINE_float(
    "analysis_temperature", 1.0, about, lower_bound=1e-3
  )


def lens() -> flags.FlagHolder[str]:
  """Define --lens: how an inner layer is read out."""
  return flags.DEFINE_enum(
    "lens",
    "final_norm",
    ["final_norm", "raw"],
    "Whether inner layers pass the final norm before the LM head.",
  )


class _Several(flags.MultiFlag):
  """A flag whose values are divided by commas, given once or several times."""

  def parse(self, arguments):
    if isinstance(arguments, str):
      arguments = arguments.split(",")
    super().parse(arguments)


def several(
  name: str, default: list[str], choices: list[str], about: str
) -> flags.FlagHolder[list[str]]:
  """Define a flag of some names of a list, NAME,NAME or given several times.

  Args:
    name: of the flag.
    default: the names where none are given.
    choices: all names.
    about: the help text.
  """
  return flags.DEFINE_flag(
    _Several(
      parser=flags.EnumParser(choices),
      serializer=flags.ArgumentSerializer(),
      name=name,
      default=default,
      help_string=about,
    )
  )


def layer_rows() -> flags.FlagHolder[bool]:
  """Define --layer_rows: whether records have rows of inner layers."""
  return flags.DEFINE_bool(
    "layer_rows",
    False,
    "Write a row of records.jsonl for each position, layer and sublayer too:"
    " tens of megabytes.",
  )


def _define(define, name, default, about):
  """Define one flag, required where its default is REQUIRED."""
  if default is REQUIRED:
    return define(name, None, about, required=True)
  return define(name, default, about)


def _limit(default, about):
  return flags.DEFINE_integer("limit", default, about, lower_bound=1)
