"""Answers of finished batches, whatever the moment a run was killed."""

import pytest

from jaxprune.evaluation.journal import Bookkeeping, Journal, key_of

ORIGIN = {"model": "a"}


def fill(path):
  with Journal(path, ORIGIN) as journal:
    journal.add({"x": [1.5, True], "y": [2.0, False]})
    journal.add({"z": [0.1 + 0.2, True]})
  return path.read_bytes()


def test_answers_come_back_bit_for_bit(tmp_path):
  path = tmp_path / "run" / "journal"
  fill(path)
  with Journal(path, ORIGIN) as journal:
    assert len(journal) == 3
    assert journal.get("z") == [0.1 + 0.2, True] and journal.get("w") is None
    keeping = Bookkeeping(journal=journal)
    assert keeping.known(["x", "y"]) == [[1.5, True], [2.0, False]]
    assert keeping.known(["x", "w"]) is None


def test_a_line_that_was_cut_off_is_forgotten_whole(tmp_path):
  path = tmp_path / "journal"
  whole = fill(path)
  lines = whole.splitlines(keepends=True)
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with Journal(path, ORIGIN) as journal:
      ends = [sum(map(len, lines[:count])) for count in (1, 2, 3)]
      expected = (0, 0, 2, 3)[sum(size >= end for end in ends)]
      assert len(journal) == expected
      journal.add({"w": 1})
    with Journal(path, ORIGIN) as journal:
      assert len(journal) == expected + 1


def test_another_model_begins_anew(tmp_path):
  path = tmp_path / "journal"
  fill(path)
  with Journal(path, {"model": "b"}) as journal:
    assert len(journal) == 0
  with Journal(path, ORIGIN) as journal:
    assert len(journal) == 0


def test_nothing_is_kept_without_a_journal():
  told = []
  keeping = Bookkeeping(progress=lambda *numbers: told.append(numbers))
  keeping.finish({"x": 1}, 3, 4)
  assert keeping.known(["x"]) is None and told == [(3, 4)]


@pytest.mark.parametrize(
  "one, other",
  [
    (([1, 2], [3]), ([1], [2, 3])),
    (("ab", "c"), ("a", "bc")),
    (([1], [2]), ([2], [1])),
  ],
)
def test_keys_tell_requests_apart(one, other):
  assert key_of(*one) == key_of(*one) != key_of(*other)
