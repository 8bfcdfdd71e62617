"""The two processes between which a program is judged.

One holds the program, the other its tests; each runs this file by itself, in
a sandbox of its own, with nothing but the standard library:

  python -I -S -c SOURCE program LIMITS FOLDER PACKAGES IN OUT
  python -I -S -c SOURCE tests LIMITS FOLDER PACKAGES IN OUT VERDICT

What each is to do comes on stdin, limits as JSON, pipes by their numbers.

A test calls the functions of the program through a pair of pipes. Arguments and
results cross as plain data (numbers, texts, bytes, ranges, lists, tuples, sets,
dictionaries), and every operator, builtin and module that a test uses is that
of the tests' own process. Whatever else a function returns stays with the
program, and a test can call it, read its attributes, iterate over it, index it
and ask for its length or truth; it equals only itself. So no answer of the
program decides a comparison. Arguments that the program changed in place
change in the test, too.

Only the process of the tests was ever given the token that says "passed".
"""

import builtins
import importlib
import json
import operator
import os
import resource
import site
import sys
import types
from collections.abc import Callable
from typing import Any, BinaryIO

_LONGEST = 1 << 24  # bytes of one message
_HELLO = "here"


class GoneError(BaseException):
  """The program ended or broke the rules: no test may catch this."""


class AbsentError(GoneError):
  """There never was a program: its sandbox did not start."""


class UnsupportedError(BaseException):
  """The tests want what cannot cross: a fault of theirs."""


class Channel:
  """Messages to the other process and back, one line of JSON each.

  Args:
    lines: a binary file to read from.
    writing: number of the pipe to write to.

  Attributes:
    lost: whether the other side is gone; then nothing can pass any more.
  """

  def __init__(self, lines: BinaryIO, writing: int):
    self._lines = lines
    self._writing = writing
    self.lost = False

  def send(self, line: bytes) -> None:
    try:
      while line:
        line = line[os.write(self._writing, line) :]
    except OSError:
      self.lost = True
      raise GoneError("the program ended early") from None

  def receive(self) -> Any:
    line = self._lines.readline(_LONGEST + 1)
    if not line.endswith(b"\n"):
      self.lost = True
      raise GoneError("the program ended early")
    return json.loads(line)


def pack(message: Any) -> bytes:
  """A message as `Channel.send` wants it.

  Raises:
    OverflowError: it is too long.
  """
  line = json.dumps(message).encode() + b"\n"
  if len(line) > _LONGEST:
    raise OverflowError(f"{len(line)} bytes are too many to hand over")
  return line


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
  """Plain data as JSON; `refer` is given whatever is something else.

  Args:
    value: anything.
    refer: from an object to its JSON.
  """
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return float(value)
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, list):
    return [encode(item, refer) for item in value]
  if isinstance(value, tuple):
    return {"tuple": [encode(item, refer) for item in value]}
  if isinstance(value, (set, frozenset, type({}.keys()))):
    return {"set": [encode(item, refer) for item in value]}
  if isinstance(value, dict):
    return {
      "dict": [
        [encode(key, refer), encode(item, refer)] for key, item in value.items()
      ]
    }
  if isinstance(value, complex):
    return {"complex": [value.real, value.imag]}
  if isinstance(value, (bytes, bytearray)):
    return {"bytes": value.hex()}
  if isinstance(value, range):
    return {"range": [value.start, value.stop, value.step]}
  kind = type(value)
  if (kind.__module__, kind.__name__) in _NUMBERS:
    return {kind.__name__: str(value)}
  if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
    return encode(value.item(), refer)
  return refer(value)


_NUMBERS = (("decimal", "Decimal"), ("fractions", "Fraction"))


def decode(message: Any, refer: Callable[[str, Any], Any]) -> Any:
  """Inverse of `encode`.

  Args:
    message: JSON.
    refer: from a kind and its JSON to the object, for what is no plain data.

  Raises:
    Exception: it is not what `encode` writes.
  """
  if isinstance(message, list):
    return [decode(item, refer) for item in message]
  if not isinstance(message, dict):
    return message
  ((kind, content),) = message.items()
  if kind == "dict":
    return {decode(key, refer): decode(item, refer) for key, item in content}
  if kind in ("tuple", "set"):
    make = {"tuple": tuple, "set": set}[kind]
    return make(decode(item, refer) for item in content)
  if kind == "bytes":
    return bytes.fromhex(content)
  if kind in ("complex", "range"):
    return getattr(builtins, kind)(*content)
  for module, name in _NUMBERS:
    if kind == name:
      return getattr(importlib.import_module(module), name)(content)
  return refer(kind, content)


class Objects:
  """On the side of the program: what stays with it, by number."""

  def __init__(self):
    self._objects = []

  def encode(self, value: Any) -> Any:
    return encode(value, self._refer)

  def decode(self, message: Any) -> Any:
    return decode(message, lambda kind, content: self._objects[content])

  def _refer(self, value):
    known = (n for n, each in enumerate(self._objects) if each is value)
    number = next(known, len(self._objects))
    if number == len(self._objects):
      self._objects.append(value)
    try:
      truth = bool(value)
    except Exception:  # an array has none
      truth = True
    return {"object": [number, truth]}


def answer(channel: Channel, code: str) -> None:
  """Run the program, then do what the tests ask until they end.

  Args:
    channel: to the process of the tests.
    code: the program.
  """
  module = types.ModuleType("__main__")
  sys.modules["__main__"] = module
  objects = Objects()
  operations = {
    "look up": lambda name: getattr(module, name),
    "call": lambda function, *args, **options: function(*args, **options),
    "attribute": getattr,
    "iterate": iter,
    "next": next,
    "item": operator.getitem,
    "length": len,
    "text": str,
  }
  channel.send(pack(_HELLO))
  try:
    exec(compile(code, "program", "exec"), vars(module))
    line = pack({"value": None})
  except BaseException as error:
    line = pack(_raised(error))
  while True:
    channel.send(line)
    name, args, options = channel.receive()
    try:
      line = pack(_answer(objects, operations[name], args, options))
    except BaseException as error:
      line = pack(_raised(error))


def _answer(objects, operation, args, options):
  values = [objects.decode(arg) for arg in args]
  named = {key: objects.decode(option) for key, option in options.items()}
  result = operation(*values, **named)
  changed = [
    [number, objects.encode(value)]
    for number, value in enumerate(values)
    if isinstance(value, (list, dict, set))
  ]
  return {
    "value": objects.encode(result),
    "changed": [[n, value] for n, value in changed if value != args[n]],
  }


def _raised(error):
  return {"raised": [type(error).__name__, str(error)[:500]]}


class Remote:
  """On the side of the tests: an object of the program, no plain data."""

  def __init__(self, program: "Program", number: int, truth: bool | None):
    vars(self).update(_program=program, _number=number, _truth=truth)

  def __call__(self, *args: Any, **options: Any) -> Any:
    return self._program.ask("call", self, *args, **options)

  def __getattr__(self, name):
    return self._program.ask("attribute", self, name)

  def __iter__(self):
    return self._program.ask("iterate", self)

  def __next__(self):
    return self._program.ask("next", self)

  def __getitem__(self, index):
    return self._program.ask("item", self, index)

  def __len__(self):
    return self._program.ask("length", self)

  def __str__(self):
    return self._program.ask("text", self)

  def __bool__(self):
    return self._truth

  def __eq__(self, other):
    return isinstance(other, Remote) and self._number == other._number

  def __hash__(self):
    return hash(self._number)


class Program:
  """The program as its tests see it."""

  def __init__(self, channel: Channel):
    self._channel = channel
    try:
      channel.receive()  # The hello, before anything of the program ran.
    except GoneError:
      raise AbsentError("the program did not start") from None
    self._reply()

  def ask(self, operation: str, *args: Any, **options: Any) -> Any:
    """Have the program do something.

    Raises:
      Exception: what the program raised, if it is one of Python's own kinds,
        else RuntimeError.
      GoneError: it left, or answered what is no answer.
    """
    encoded = [encode(arg, _refer) for arg in args]
    named = {key: encode(option, _refer) for key, option in options.items()}
    self._channel.send(pack([operation, encoded, named]))
    value, changed = self._reply()
    for number, content in changed:
      _replace(args[number], content)
    return value

  def _reply(self):
    try:
      reply = self._channel.receive()
      raised = [str(text) for text in reply.get("raised", ())]
      changed = [
        [int(n), self._decode(new)] for n, new in reply.get("changed", ())
      ]
      value = self._decode(reply.get("value"))
    except Exception:
      self._channel.lost = True
      raise GoneError("the program sent what is no answer") from None
    if raised:
      _raise(raised[0], raised[-1])
    return value, changed

  def _decode(self, message):
    return decode(message, self._refer)

  def _refer(self, kind, content):
    if kind != "object":
      raise ValueError(kind)
    number, truth = content
    return Remote(self, int(number), bool(truth))


def _refer(value):
  if isinstance(value, Remote):
    return {"object": value._number}
  raise UnsupportedError(
    f"the tests hand a {type(value).__name__} to the program"
  )


def _replace(argument, content) -> None:
  """Give a mutable argument the content that the program left in it."""
  if isinstance(argument, list) and isinstance(content, list):
    argument[:] = content
  elif isinstance(argument, (dict, set)) and type(argument) is type(content):
    argument.clear()
    argument.update(content)


def _raise(name: str, text: str) -> None:
  kind = getattr(builtins, name, None)
  known = isinstance(kind, type) and issubclass(kind, BaseException)
  if known and not issubclass(kind, Exception):
    raise GoneError("the program ended early")
  try:
    error = kind(text)
  except Exception:
    error = RuntimeError(f"{name}: {text}")
  raise error


def judge(channel: Channel, request: dict) -> dict | None:
  """Run the tests of the program on the other side.

  Args:
    channel: to the program.
    request: `setup`, source that runs before; `functions`, the names that are
      the program's; `tests`, source.

  Returns:
    None if all went well, else `message`, the exception in one line, and
    perhaps `gone`, `absent` or `unsupported`, each True.
  """
  namespace = {"__name__": "__main__"}
  try:
    program = Program(channel)
    exec(compile(request["setup"], "setup", "exec"), namespace)
    for name in request["functions"]:
      namespace[name] = program.ask("look up", name)
    exec(compile(request["tests"], "tests", "exec"), namespace)
    if channel.lost:
      raise GoneError("the program ended early")
  except GoneError as error:
    absent = isinstance(error, AbsentError)
    return {"message": str(error), "gone": True, "absent": absent}
  except BaseException as error:
    text = " ".join(str(error).split())[:500]
    name = type(error).__name__
    return {
      "message": f"{name}: {text}" if text else name,
      "unsupported": isinstance(error, UnsupportedError),
    }
  return None


def restrict(limits: dict) -> None:
  """Give this process, and what it starts, no more than the limits."""
  for name, limit, more in (
    ("CPU", limits["seconds"], 1),
    ("AS", limits["memory"], 0),
    ("FSIZE", limits["file_size"], 0),
    ("CORE", 0, 0),
    ("NPROC", limits["processes"], 0),
    ("NOFILE", 64, 0),
    ("MSGQUEUE", 0, 0),
    ("MEMLOCK", 0, 0),
  ):
    kind = getattr(resource, f"RLIMIT_{name}", None)
    if kind is None:
      continue
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY or hard > limit + more:
      hard = limit + more
    resource.setrlimit(kind, (min(limit, hard), hard))


def main(argv: list[str]) -> None:
  """One side, see the module."""
  side, limits, folder, packages, *fds = argv
  os.chdir(folder)
  restrict(json.loads(limits))
  sys.set_int_max_str_digits(0)
  sys.path.append(packages)
  site.setquit()
  with open(0, encoding="utf-8", closefd=False) as file:
    request = json.load(file)
  nothing = os.open(os.devnull, os.O_RDONLY)
  os.dup2(nothing, 0)
  os.close(nothing)
  del sys.argv[1:]
  sys.orig_argv[:] = sys.orig_argv[:1]
  reading, writing, *verdict = map(int, fds)
  channel = Channel(os.fdopen(reading, "rb"), writing)
  if side == "program":
    try:
      answer(channel, request["code"])
    except GoneError:  # The tests are over.
      os._exit(0)
  fault = judge(channel, request)
  text = json.dumps(fault) if fault else request["token"]
  os.write(verdict[0], text.encode())
  os._exit(0)


if __name__ == "__main__":
  main(sys.argv[1:])
