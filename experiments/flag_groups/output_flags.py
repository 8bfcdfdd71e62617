"""The flags of what is written: --out, and how a model is laid out."""

from typing import Any

from absl import flags

from .define import REQUIRED, define_flag

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()


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
  return define_flag(flags.DEFINE_string, "out", default, about)


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
