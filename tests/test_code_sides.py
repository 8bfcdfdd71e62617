"""What crosses between a program and its tests, in one process."""

import os
import sys
import threading
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from jaxprune.evaluation import code_sides

HELLO = b'"here"\n'
READY = b'{"value": null}\n'
OBJECT = b'{"value": {"object": [0, true]}}\n'


@pytest.fixture(autouse=True)
def keep_main(monkeypatch):
  monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def judge(program, tests, setup=""):
  """The fault that is found, or None.

  Args:
    program: source, or the bytes that it sends instead of answers.
    tests: source that calls f.
    setup: source.
  """
  calls, replies = os.pipe(), os.pipe()

  def answer():
    with os.fdopen(calls[0], "rb") as lines:
      if isinstance(program, bytes):
        os.write(replies[1], program)
        os.close(replies[1])
        lines.read()
      else:
        channel = code_sides.Channel(lines, replies[1])
        with pytest.raises(code_sides.GoneError):
          code_sides.answer(channel, program)
        os.close(replies[1])

  thread = threading.Thread(target=answer, daemon=True)
  thread.start()
  request = {"setup": setup, "functions": ["f"], "tests": tests}
  with os.fdopen(replies[0], "rb") as lines:
    fault = code_sides.judge(code_sides.Channel(lines, calls[1]), request)
    os.close(calls[1])
    thread.join(10)
  assert not thread.is_alive()
  return fault


@pytest.mark.parametrize(
  "value",
  [
    *(
      None,
      True,
      0,
      -(10**40),
      1.5,
      float("inf"),
      -0.0,
      "",
      "\ud800ä\0",
      b"\0",
    ),
    *(1 + 2j, [1, [2]], (1, (2, [3])), {1: {"a": (2,)}, (1, 2): None}),
    *({1, "a"}, frozenset({(1,)}), range(1, 9, 2)),
    *(Decimal("0.1"), Fraction(1, 3), Counter("abb"), {}.keys(), {1: 2}.keys()),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.float64(0.1)),
  ],
)
def test_plain_data_cross_as_they_are(value):
  def refuse(*other):
    raise AssertionError(other)

  found = code_sides.decode(code_sides.encode(value, refuse), refuse)
  assert found == value and repr(found) == repr(
    {Counter: dict, frozenset: set, type({}.keys()): set}.get(
      type(value), lambda x: x.item() if hasattr(x, "item") else x
    )(value)
  )


@pytest.mark.parametrize(
  "program, tests",
  [
    ("def f(x, *, y=1): return x + y", "assert f(1, y=2) == 3 and f(1) == 2"),
    ("def f(x): x.append(1); x[0] = 5", "x = [0]; f(x); assert x == [5, 1]"),
    ("def f(x): x.clear()", "x = {1: 2}; f(x); assert x == {}"),
    ("def f(x): yield from x", "assert list(f([1, 2])) == [1, 2]"),
    ("def f(x): return map(abs, x)", "assert set(f([-1])) == {1}"),
    ("import re\ndef f(x): return re.match('a', x)", "assert f('ab')"),
    ("import re\ndef f(x): return re.match('a', x)", "assert not f('b')"),
    (
      "class f:\n  def __init__(self, x): self.x = x\n"
      "  def more(self, y): return self.x + y",
      "a = f(1); assert a.x == 1 and a.more(2) == 3 and a == a and a != f(1)",
    ),
    (
      "import numpy\ndef f(n): return numpy.arange(n)",
      "assert list(f(3)) == [0, 1, 2] and len(f(3)) == 3 and f(3)[1] == 1",
    ),
    (
      "def f(x): raise ValueError('no')",
      "try: f(1)\nexcept ValueError as e: assert str(e) == 'no'\n"
      "else: assert False",
    ),
    ("def f(x): return type(x) is tuple", "assert f((1,)) and not f([1])"),
    ("def f(x):\n  x = [x]; x.append(x); return 1", "assert f(1) == 1"),
  ],
)
def test_the_tests_see_what_they_would_in_one_process(program, tests):
  assert judge(program, tests) is None
  assert judge(program, tests + "\nassert f is None") is not None


@pytest.mark.parametrize(
  "program, message",
  [
    ("f = 1 / 0", "ZeroDivisionError: division by zero"),
    ("g = 1", "AttributeError: module '__main__' has no attribute 'f'"),
    ("def f(x): return 2", "AssertionError: one"),
    (
      "class E(Exception): pass\ndef f(x): raise E('no')",
      "RuntimeError: E: no",
    ),
    ("def f(x): raise KeyError('k')", "KeyError: \"'k'\""),
    ("def f(x): raise SystemExit(0)", "the program ended early"),
    ("raise KeyboardInterrupt", "the program ended early"),
    ("def f(x):\n  x = []; x.append(x); return x", "RecursionError"),
    ("def f(x): return 'a' * 2**25", "OverflowError"),
  ],
)
def test_faults_are_named(program, message):
  fault = judge(program, "assert f(1) == 1, 'one'")
  assert fault["message"].startswith(message) and not fault.get("absent")


@pytest.mark.parametrize(
  "sent",
  [
    *(b"", b"\n", b"{}", b"1\n", b"[]\n", b"null\n", b"[" * 9999 + b"\n"),
    *(b'{"value": {}}\n', b'{"value": {"a": 1, "b": 2}}\n', b"\xff\n"),
    *(b'{"value": {"module": "unittest.mock"}}\n', b'{"raised": 3}\n'),
    *(b'{"value": {"set": [[1]]}}\n', b'{"raised": ["SystemExit", ""]}\n'),
    *(b'{"value": {"dict": [[{"object": 1}, 2]]}}\n', b'{"raised": 1e999}\n'),
    b'{"value": 1, "changed": [["a", 2]]}\n',
    b'{"value": 1, "changed": [[0, 2], 3]}\n',
  ],
)
def test_what_is_no_answer_is_a_failure(sent):
  tests = "try: assert f(1) == 1\nexcept Exception: pass"
  fault = judge(HELLO + READY + OBJECT + sent, tests)
  assert fault and fault["gone"] and not fault["absent"]


def test_a_program_that_never_was_is_told_from_one_that_left():
  assert judge(b"", "")["absent"]
  assert not judge(HELLO, "")["absent"]


def test_tests_that_cannot_be_judged_say_so():
  fault = judge("def f(x): return 1", "f(lambda: 1)")
  assert fault["unsupported"]
  assert fault["message"] == (
    "UnsupportedError: the tests hand a function to the program"
  )
