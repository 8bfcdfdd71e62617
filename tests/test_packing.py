"""Texts laid out as trees: every text is there, no token is read twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.evaluation import packing
from jaxprune.evaluation.packing import Text


def ancestors(row, slot):
  """Slots that a query reads, itself included: the rule of the mask."""
  return [key for key in range(slot + 1) if slot < row.ends[key]]


def check(texts, rows):
  """Each text stands on a path of one row, and each token once."""
  seen = []
  for row in rows:
    seen += row.requests
    assert len(row.tokens) <= row.length
    prefixes = set()
    for index, (places, targets) in zip(row.requests, row.reads):
      text = texts[index]
      read = text.ids[:-1]
      prefixes |= {read[:end] for end in range(1, len(read) + 1)}
      path = ancestors(row, row.places[places[-1]])
      assert tuple(row.tokens[path]) == read
      assert row.positions[path].tolist() == list(range(len(read)))
      assert row.places[places].tolist() == path[-text.answer :]
      wanted = list(text.ids[-text.answer :])
      assert row.targets[places, targets].tolist() == wanted
    assert len(row.tokens) == len(prefixes)
    assert len(set(row.places)) == len(row.places)
  assert sorted(seen) == list(range(len(texts)))


@st.composite
def requests(draw):
  ids = st.lists(st.integers(0, 2), min_size=2, max_size=9)
  texts = []
  for row in draw(st.lists(ids, min_size=1, max_size=12)):
    answer = draw(st.integers(1, len(row) - 1))
    texts.append(Text(ids=tuple(row), answer=answer, group=len(texts) // 3))
  return texts


@given(requests(), st.sampled_from([16, 40]), st.booleans())
def test_rows_hold_every_text(texts, row_tokens, apart):
  rows = packing.plan(texts, row_tokens, apart=apart)
  check(texts, rows)
  if apart:
    assert len(rows) == len(texts)


def test_options_questions_and_examples_share_what_they_can():
  examples = tuple(range(100, 140))
  texts = [
    Text(ids=(*examples, *question, *option), answer=len(option), group=group)
    for group, question in enumerate([(1, 2, 3), (1, 4, 5, 6), (7, 8)])
    for option in [(9,), (9, 10, 11), (12,), (12,)]
  ]
  (row,) = packing.plan(texts)
  check(texts, [row])
  # Examples; questions, of which two begin alike; the first two tokens of the
  # longer option.
  assert len(row.tokens) == 40 + (3 + 3 + 2) + 3 * 2


def test_a_question_is_not_divided_and_rows_are_full():
  texts = [
    Text(ids=(index, *range(20), option), answer=1, group=index)
    for index in range(100)
    for option in (1, 2)
  ]
  rows = packing.plan(texts, 128)
  check(texts, rows)
  for row in rows:
    assert {index ^ 1 for index in row.requests} == set(row.requests)
  assert len(rows) == 100 // (128 // 21) + 1
  assert {row.length for row in rows} == {128}  # one program


def test_a_long_text_takes_short_ones_with_it():
  texts = [Text(ids=(1,) * 900, answer=1, group=0)] + [
    Text(ids=(2 + index,) * 31, answer=1, group=1 + index) for index in range(4)
  ]
  rows = packing.plan(texts)
  check(texts, rows)
  assert sorted(row.length for row in rows) == [60, 960]


@pytest.mark.parametrize("longest", [7, 16, 17, 100, 513, 5000])
def test_lengths_are_few_and_near(longest):
  lengths = {packing.round_up(length) for length in range(16, longest + 1)}
  for length in range(16, longest + 1):
    assert length <= packing.round_up(length) <= length * 9 / 8
  assert len(lengths) <= 8 * max(1, (longest // 16).bit_length())
