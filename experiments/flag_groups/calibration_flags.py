"""The flags of the text that a pruning method looks at."""

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from .define import MOST_TOKENS, define_flag

if TYPE_CHECKING:  # a script shows its --help without loading JAX
  from jaxprune import checkpoints
  from jaxprune.calibration import tokens
  from jaxprune.studies import self_calibration

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()


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
    num_samples: int | None = None,
    sampling: str | None = None,
    activations: bool = True,
  ) -> "tokens.Calibration":
    """Read the calibration tokens for a model.

    Args:
      source: the model that reads them.
      seed: of the draw from the text.
      name: another text, in place of --calibration.
      num_samples: another number of sequences, in place of --num_samples.
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
      num_samples=num_samples or self.num_samples.value,
      seq_len=self.seq_len.value,
      seed=seed,
      sampling=sampling,
      activations=activations,
    )

  def read_or_plan(
    self,
    source: "checkpoints.Source",
    seed: int,
    *,
    chat_mode: str = "auto",
    num_samples: int | None = None,
    sampling: str | None = None,
    activations: bool = True,
  ) -> "tokens.Calibration | self_calibration.Texts":
    """As `read`; with --calibration=self, what the model is to write.

    Args:
      source: the model that reads the tokens.
      seed: of the draws.
      chat_mode: of --chat.
      num_samples: another number of sequences, in place of --num_samples.
      sampling: how sequences are cut from text.
      activations: whether those of all sequences will be in memory together.

    Raises:
      ValueError: see `read` and `self_calibration.plan`.
    """
    from jaxprune.studies import self_calibration

    if self.calibration.value != self_calibration.SELF:
      return self.read(
        source,
        seed,
        num_samples=num_samples,
        sampling=sampling,
        activations=activations,
      )
    if sampling is not None:
      raise ValueError(
        f"--sampling={sampling}: says how text is cut, but the model writes"
        " whole sequences; leave it out"
      )
    return self_calibration.plan(
      source,
      num_samples=num_samples or self.num_samples.value,
      seq_len=self.seq_len.value,
      seed=seed,
      chat_mode=chat_mode,
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


TEXT_OR_SELF = (
  "Text that the pruning method looks at: a text, jsonl, json.gz or parquet"
  " file, c4, wikitext2, pocket, an .npz of token ids, or self, which the model"
  " writes before it is pruned."
)


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
  return define_flag(flags.DEFINE_string, "calibration", default, about)


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
  return flags.DEFINE_integer("seq_len", default, about, least, MOST_TOKENS)
