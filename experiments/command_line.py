"""What does the command line say, and what does --help say of a script?

A script is started as `jaxprune NAME` (`console`) or as
`python -m experiments.NAME`. Words without a dash are the values of the
required flags that are not given by name, in the order of their definition.
"""

import itertools
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import flags

PROGRAM = "jaxprune"
_HELP = ("help", "h", "?", "helpshort")
_WIDTH = 80
_LONGEST = 800  # characters of an error
# What absl adds to the help of a flag.
_REPEATED = ";\n    repeat this option"


def program() -> list[str]:
  """The words that start this script, before its flags."""
  name = _subcommand()
  if name is not None:
    return [PROGRAM, name]
  spec = getattr(sys.modules.get("__main__"), "__spec__", None)
  if spec is not None and spec.name.rpartition(".")[0] == __package__:
    return ["python", "-m", spec.name]
  return [sys.argv[0]]


def command() -> list[str]:
  """The whole command, to be typed again."""
  return [*program(), *sys.argv[1:]]


def own_flags() -> list[flags.Flag]:
  """The flags of the script itself, in the order of their definition."""
  name = _subcommand()
  # absl keeps the flags of a module under its name, of __main__ under argv[0].
  module = sys.argv[0] if name is None else f"{__package__}.{name}"
  return flags.FLAGS.get_key_flags_for_module(module)


def parse(main: Callable[[], None], argv: Sequence[str]) -> list[str]:
  """Parse the flags of a script; on --help say what there are, and exit.

  Args:
    main: of the script; the docstring of its file is part of the help.
    argv: the program, then words.

  Returns:
    The program alone: no word is left over.
  """
  if any(word.lstrip("-") in _HELP for word in argv[1:] if word[:1] == "-"):
    print(_help_text(sys.modules[main.__module__].__doc__ or ""))
    sys.exit(0)
  try:
    left = flags.FLAGS([argv[0], *_named(argv[1:])])
    _check_values()
    return left
  except flags.Error as error:
    fail(f"{error}; see {' '.join(program())} --help")


def _check_values() -> None:
  """Refuse what absl lets pass: NaN, infinity, and nothing in a list."""
  for flag in own_flags():
    several = isinstance(flag.value, list)
    for value in flag.value if several else [flag.value]:
      if isinstance(value, float) and not math.isfinite(value):
        raise flags.Error(f"flag --{flag.name}={value}: must be finite")
      if several and isinstance(value, str) and not value.strip():
        raise flags.Error(f"flag --{flag.name}: one of its values is empty")


def fail(message: str) -> NoReturn:
  """End with one line on stderr, and exit status 1."""
  line = " ".join(message.split())
  if len(line) > _LONGEST:  # a value that is a whole file
    line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
  print(f"error: {line}", file=sys.stderr)
  sys.exit(1)


def _subcommand() -> str | None:
  """The script that the console command runs; None without it."""
  first, _, name = sys.argv[0].partition(" ")
  return name if first == PROGRAM and name else None


def _is_required(flag: flags.Flag) -> bool:
  # Bounds of a number are a validator too, which admits None.
  return flag.default is None and any(
    not validator.checker(None) for validator in flag.validators
  )


def _named(words: Sequence[str]) -> list[str]:
  """The words as flags: those in place of a required flag get its name."""
  options, places, given, rest = [], [], set(), iter(words)
  for word in rest:
    if word == "--":
      places += rest
    elif word[:1] != "-":
      places.append(word)
    else:
      options.append(word)
      name, equals, _ = word.lstrip("-").partition("=")
      given.add(name)
      known = name in flags.FLAGS
      if known and not equals and not flags.FLAGS[name].boolean:
        options += itertools.islice(rest, 1)
  required = [flag.name for flag in own_flags() if _is_required(flag)]
  open_ = [name for name in required if name not in given]
  if len(places) > len(open_):
    raise flags.Error(f"unexpected arguments: {' '.join(places[len(open_) :])}")
  if len(places) < len(open_):
    missing = " and ".join(f"--{name}" for name in open_[len(places) :])
    raise flags.Error(
      f"{missing} missing: {' '.join(program())} {_places(required)}"
    )
  return [*options, *(f"--{name}={word}" for name, word in zip(open_, places))]


def _places(names: Sequence[str]) -> str:
  return " ".join(name.upper() for name in names)


def _help_text(document: str) -> str:
  """What the script does, how it is called, and its flags."""
  first, _, rest = document.strip().partition("\n")
  shown = [flag for flag in own_flags() if not _is_alias(flag)]
  required = [flag for flag in shown if _is_required(flag)]
  usage = " ".join(
    filter(
      None,
      (
        *program(),
        _places([flag.name for flag in required]),
        "[--FLAG=VALUE ...]",
      ),
    )
  )
  lines = [first, "", f"usage: {usage}", "", rest.strip("\n")]
  if required:
    lines += ["", "required, in this order or by name:"]
    lines += itertools.chain.from_iterable(map(_described, required))
  lines += ["", "flags:"]
  for flag in shown:
    if flag not in required:
      lines += _described(flag)
  return "\n".join([*lines, "", "--helpfull lists what all scripts share."])


def _is_alias(flag: flags.Flag) -> bool:
  return (flag.help or "").startswith("Alias for --")


def _described(flag: flags.Flag) -> Iterator[str]:
  """A flag with its default, and what it means below."""
  values = getattr(flag.parser, "enum_values", None)
  if flag.boolean:
    head = f"  --[no]{flag.name}"
  else:
    head = f"  --{flag.name}={_shown_default(flag)}"
  yield head
  text = " ".join((flag.help or "").partition(_REPEATED)[0].split())
  # absl puts the values of an enum before its help.
  text = text.partition(">: ")[2] if text.startswith("<") else text
  if values:
    text += f" One of: {', '.join(values)}."
  yield from textwrap.wrap(
    text, _WIDTH, initial_indent="      ", subsequent_indent="      "
  )


def _shown_default(flag: flags.Flag) -> str:
  default = flag.default
  if isinstance(default, list | tuple):
    default = ",".join(map(str, default))
  if default is None or default == "":
    kind = flag.flag_type().split()[-1]
    return "NUMBER" if kind in ("int", "float") else "TEXT"
  return str(default)
