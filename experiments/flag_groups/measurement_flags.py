"""Flags of one value each that say how something is measured."""

from absl import flags

from .define import MAX_SEED, MOST_AT_ONCE

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()


def batch(
  default: int = 8, *, about: str = "Prompts decoded together."
) -> flags.FlagHolder[int]:
  """Define --batch.

  Args:
    default: how many.
    about: the help text.
  """
  return flags.DEFINE_integer("batch", default, about, 1, MOST_AT_ONCE)


def micro_batch(about: str) -> flags.FlagHolder[int]:
  """Define --micro_batch, 8 where it is not given."""
  return flags.DEFINE_integer("micro_batch", 8, about, 1, MOST_AT_ONCE)


def seed(about: str = "Seed of every draw.") -> flags.FlagHolder[int]:
  """Define --seed, 0 where it is not given."""
  return flags.DEFINE_integer(
    "seed", 0, about, lower_bound=0, upper_bound=MAX_SEED
  )


def temperature(
  default: float = 0.0,
  *,
  about: str = "Temperature of sampling; 0 is greedy.",
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
  about: str = "Temperature T of the softmax that is measured.",
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


def layer_rows() -> flags.FlagHolder[bool]:
  """Define --layer_rows: whether records have rows of inner layers."""
  return flags.DEFINE_bool(
    "layer_rows",
    False,
    "Write a row of records.jsonl for each position, layer and sublayer too:"
    " tens of megabytes.",
  )


def survival() -> flags.FlagHolder[float]:
  """Define --survival: how much of the dense score must be left."""
  return flags.DEFINE_float(
    "survival",
    0.9,
    "Part of the dense score that must be left.",
    lower_bound=0.0,
    upper_bound=1.0,
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
  return flags.DEFINE_integer("limit", default, about, lower_bound=1)
