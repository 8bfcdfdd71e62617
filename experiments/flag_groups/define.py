"""How one flag is defined, and what all groups keep to."""

import math
from collections.abc import Callable
from typing import Any

from absl import flags

# The flags belong to the script that calls, not to this file.
flags.disclaim_key_flags()

REQUIRED = object()
# What numpy, Python and JAX all take as it is: JAX drops higher bits.
MAX_SEED = 2**31 - 1
MOST_AT_ONCE = 2**16  # items of a batch; more is a slip
MOST_TOKENS = 2**24  # of a sequence


def define_flag(
  define: Callable[..., flags.FlagHolder], name: str, default: Any, about: str
) -> flags.FlagHolder:
  """Define one flag, required where its default is REQUIRED.

  Args:
    define: of absl, such as `flags.DEFINE_string`.
    name: of the flag.
    default: its value where it is not given, or REQUIRED.
    about: the help text.
  """
  if default is REQUIRED:
    holder = define(name, None, about, required=True)
  else:
    holder = define(name, default, about)
  flags.register_validator(
    holder, _is_not_blank, "is empty; give a value, or leave the flag out"
  )
  return holder


def _is_not_blank(value: Any) -> bool:
  return not isinstance(value, str) or bool(value.strip())


def numbers(
  holder: flags.FlagHolder[list[str]], kind: type[float] | type[int]
) -> tuple[Any, ...]:
  """The numbers that a list of texts holds.

  Args:
    holder: a flag.
    kind: of the numbers.

  Raises:
    ValueError: names the flag; one is no number, or not finite.
  """
  try:
    values = tuple(kind(value) for value in holder.value)
  except ValueError:
    values = (math.nan,)
  if not all(map(math.isfinite, values)):
    raise ValueError(
      f"--{holder.name}={','.join(holder.value):.200}: give numbers, divided by"
      " commas"
    )
  return values


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
