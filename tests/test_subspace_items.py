"""Questions as token ids: spellings, shared beginnings, rows, refusals."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from jaxprune.evaluation import multiple_choice
from jaxprune.evaluation.loglikelihoods import encode_pair
from jaxprune.studies.subspace import items as items_lib
from jaxprune.studies.subspace.items import Question


@pytest.fixture(scope="module")
def tokenizer():
  """One id per character, but ' A' is one token and ':(' merges."""
  characters = sorted(set(" ABCDabcdefghijklmnopqrstuvwxyz.:?\n()"))
  vocab = {c: i for i, c in enumerate(characters)}
  vocab |= {" A": len(vocab), ":(": len(vocab) + 1}
  made = tokenizers.Tokenizer(models.BPE(vocab, [(" ", "A"), (":", "(")]))
  made.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
  return made


def read(tokenizer, *questions, answer_as="text", cue="Answer:", longest=99):
  return items_lib.read_items(
    questions,
    tokenizer,
    answer_as=answer_as,
    cue=cue,
    bos_id=None,
    longest=longest,
    source="file.jsonl",
  )


def text(tokenizer, ids):
  return tokenizer.decode(list(ids)).replace(" ", "")


def ids(tokenizer, *parts):
  return tuple(tokenizer.token_to_id(part) for part in parts)


def test_text_options_begin_where_they_part(tokenizer):
  question = Question(
    context="who? ", options=("the cat.", "the cow.", "the dog."), answer=2
  )
  (item,) = read(tokenizer, question)
  joined = tokenizer.encode("who? the ").ids
  assert list(item.head) == joined and item.answer == 2
  assert item.spellings == (
    (ids(tokenizer, *"cat."),),
    (ids(tokenizer, *"cow."),),
    (ids(tokenizer, *"dog."),),
  )


def test_the_same_ids_are_scored_as_choices(tokenizer):
  """One question has one score, however a file writes the space between."""
  options = ("the cat.", "the cow.", "the dog.")
  for context, begin in (("who?", ""), ("who? ", ""), ("who?", " ")):
    question = Question(
      context=context, options=tuple(begin + o for o in options), answer=2
    )
    (item,) = read(tokenizer, question)
    for option, (way,) in zip(question.options, item.spellings):
      pair = encode_pair(
        tokenizer, *multiple_choice.follow(question.context, option)
      )
      assert (*item.head, *way) == (*pair[0], *pair[1])
      space = tokenizer.token_to_id(" ")
      whole = item.head + way
      assert (space, space) not in zip(whole, whole[1:])


def test_letters_have_several_spellings(tokenizer):
  """' A' is a token of its own; '(A)' merges with the colon and is left out."""
  question = Question(context="who?", options=("cat", "dog"), answer=0)
  (item,) = read(tokenizer, question, answer_as="letter")
  assert (
    list(item.head) == tokenizer.encode("who?\nA. cat\nB. dog\nAnswer:").ids
  )
  assert set(item.spellings[0]) == {
    ids(tokenizer, " A"),
    ids(tokenizer, "A"),
    ids(tokenizer, *" (A)"),
  }
  assert set(item.spellings[1]) == {
    ids(tokenizer, *" B"),
    ids(tokenizer, "B"),
    ids(tokenizer, *" (B)"),
  }
  (bare,) = read(tokenizer, question, answer_as="letter", cue="")
  assert list(bare.head) == tokenizer.encode("who?\nA. cat\nB. dog").ids
  assert ids(tokenizer, *"(A)") in bare.spellings[0]  # nothing to merge with


def test_arrays(tokenizer):
  """Rows hold every spelling but its last token, and no row is read twice."""
  items = [
    items_lib.Item(
      head=(1, 2), answer=0, spellings=(((5,), (6, 7)), ((8, 9, 3),))
    ),
    items_lib.Item(head=(4,), answer=1, spellings=(((5,),), ((6,),), ((7,),))),
  ]
  arrays = items_lib.make_arrays(items)
  assert arrays.tokens.tolist() == [
    [[1, 2, 8, 9], [1, 2, 6, 0]],
    [[4, 0, 0, 0], [0, 0, 0, 0]],
  ]
  assert arrays.start.tolist() == [1, 0]
  assert arrays.ids[0, 0, 1].tolist() == [6, 7, 0]
  assert arrays.live[0].any(-1).tolist() == [
    [True, True],
    [True, False],
    [False, False],
  ]
  assert arrays.row[0, 0].tolist() == [0, 1] and arrays.row[0, 1, 0] == 0
  assert arrays.first.tolist() == [[5, 6, 8], [5, 6, 7]]
  assert arrays.first_live.all()
  for n, item in enumerate(items):
    for c, option in enumerate(item.spellings):
      for s, way in enumerate(option):
        row = arrays.tokens[n, arrays.row[n, c, s]]
        before = row[: arrays.start[n] + len(way)].tolist()
        assert before == [*item.head, *way[:-1]]
        assert arrays.ids[n, c, s][arrays.live[n, c, s]].tolist() == list(way)


def test_padding_of_first_tokens():
  items = [
    items_lib.Item(head=(1,), answer=0, spellings=(((5, 2),), ((6,),))),
    items_lib.Item(head=(1,), answer=0, spellings=(((5,),), ((6,),), ((7,),))),
  ]
  arrays = items_lib.make_arrays(items)
  assert arrays.first[0].tolist() == [5, 6, 6]
  assert arrays.first_live[0].tolist() == [True, True, False]


def test_items_hash_sees_order_and_answer():
  one = items_lib.Item(head=(1,), answer=0, spellings=(((5,),), ((6,),)))
  two = items_lib.Item(head=(1,), answer=1, spellings=(((5,),), ((6,),)))
  hashes = {
    items_lib.items_hash(items)
    for items in ([one], [two], [one, two], [two, one])
  }
  assert len(hashes) == 4


@pytest.mark.parametrize(
  "question, options, match",
  [
    ("who?", ("cat", "cats"), "begins with another"),
    ("who?", ("cat.", "cat."), "begins with another"),
    ("who?" + "a" * 120, ("cat.", "dog."), "more than the context"),
  ],
)
def test_refusals_name_the_question(tokenizer, question, options, match):
  good = Question(context="who?", options=("cat.", "dog."), answer=0)
  bad = Question(context=question, options=options, answer=0)
  with pytest.raises(ValueError, match=f"file.jsonl: question 1.*{match}"):
    read(tokenizer, good, bad)


def test_an_option_that_merges_with_the_context_is_refused(tokenizer):
  """Read after ' ', 'A' would become ' A'."""
  question = Question(context="who:", options=("(a", "(b"), answer=0)
  made = tokenizers.Tokenizer(
    models.BPE(tokenizer.get_vocab() | {": ": 50}, [(":", " ")])
  )
  made.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
  with pytest.raises(ValueError, match="merges option ' .a' with the end"):
    read(made, question)


def test_pocket_questions_are_mixed_and_stable():
  some, more = (items_lib.pocket_questions(n) for n in (5, 12))
  assert some == more[:5]
  assert all(len(q.options) == 4 and 0 <= q.answer < 4 for q in more)
  assert len({q.context for q in more}) == 12
  assert np.unique([q.answer for q in more]).size > 1
