"""Written text: where it stops, what is right, and how it repeats itself."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_config import random_params

from jaxprune.calibration import left_pad
from jaxprune.evaluation import generation
from jaxprune.evaluation import writing as writing_lib
from jaxprune.evaluation.generation import Continuation
from jaxprune.models import ModelConfig, Sampling, generate

WORDS = "abcdefghijklmnopqrstuvwxyz."


@pytest.fixture(scope="module")
def reader():
  """Every letter a token: a is 3."""
  vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
  vocabulary |= {letter: 3 + place for place, letter in enumerate(WORDS)}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="<pad>")
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  made.decoder = tokenizers.decoders.Fuse()
  made.add_special_tokens(["<pad>", "<s>", "</s>"])
  return made


@pytest.fixture(scope="module")
def model():
  config = ModelConfig.from_hf(
    dict(
      model_type="llama",
      vocab_size=30,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=64,
      bos_token_id=1,
      eos_token_id=2,
      pad_token_id=0,
    )
  )
  return config, random_params(config, np.random.default_rng(2))


# Two lengths, and one that needs a longer program.
PROMPTS = [[1, 5], [1, 9, 9, 4, 20], [1] + [7] * 40, [1, 3], [1, 28]]


@pytest.fixture(scope="module")
def alone(model):
  """Each prompt continued in a row of its own, to the end of all."""
  tokens, valid = left_pad(PROMPTS)
  found = generate(*model, tokens, valid_BT=valid, max_new_tokens=12)
  return [
    row[:length].tolist()
    for row, length in zip(np.asarray(found.tokens), np.asarray(found.lengths))
  ]


def test_batches_write_what_each_prompt_gives_alone(model, reader, alone):
  got = generation.continue_prompts(
    *model, reader, PROMPTS, generation.Writing(max_new_tokens=12, batch_size=3)
  )
  for written, expected in zip(got, alone):
    ended = expected[-1] == 2
    assert list(written.tokens) == (expected[:-1] if ended else expected)
    assert written.ended == ("eos" if ended else "length")
    assert written.text == reader.decode(expected)


def test_stop_strings_end_the_text(model, reader, alone):
  whole = reader.decode(alone[1])
  stop = whole[3:5]
  got = generation.continue_prompts(
    *model,
    reader,
    PROMPTS[1:2],
    generation.Writing(max_new_tokens=12, stop=(stop, "!")),
  )[0]
  place = whole.index(stop)
  assert 0 < place and got.text == whole[:place] and got.ended == "stop"
  assert list(got.tokens) == alone[1][:place]


@pytest.mark.parametrize(
  "stop, text, tokens",
  [
    (("</s>",), "abc", 3),
    (("c</s>",), "ab", 2),
    (("</s>d",), "abc", 3),
    (("cd",), "ab", 2),  # neighbours in the text without special tokens
    (("e", "</s>"), "abc", 3),
    (("b", "</s>"), "a", 1),
    (("<pad>",), "abcde", 7),
    (("<s>",), "abcde", 7),
  ],
)
def test_stop_strings_may_be_special_tokens(model, reader, stop, text, tokens):
  written = [3, 4, 5, 2, 6, 7, 0]  # a b c </s> d e <pad>
  tokens -= stop == ("<pad>",)
  got = writing_lib._finish(model[0], reader, written, stop, ends=())
  assert (got.text, got.tokens) == (text, tuple(written[:tokens]))
  assert got.ended == ("length" if stop == ("<s>",) else "stop")
  assert got.written == tuple(written)


def test_a_special_stop_and_the_tokenizers_end_end_the_row(
  model, reader, alone
):
  """Token 2 ends nothing by the config; as stop or as own end it does."""
  config, params = model
  endless = dataclasses.replace(config, eos_ids=())
  # Rows that write a token twice go on after the first one.
  row = next(r for r in alone if len(set(r)) < len(r))
  place = next(i for i, token in enumerate(row) if token in row[:i])
  id_, prompt = row[place], PROMPTS[alone.index(row)]
  marked = tokenizers.Tokenizer.from_str(reader.to_str())
  marked.add_special_tokens([reader.id_to_token(id_)])
  first = row.index(id_)
  for options, ended in (
    ({"stop": (reader.id_to_token(id_),)}, "stop"),
    ({"eos_ids": (id_,)}, "eos"),
  ):
    writing = generation.Writing(max_new_tokens=12, **options)
    got = generation.continue_prompts(
      endless, params, marked, [prompt], writing
    )[0]
    assert got.ended == ended and got.tokens == tuple(row[:first])
    assert got.written == tuple(row[: first + 1])


def test_sampling_follows_the_seed(model, reader):
  def write(seed):
    return [
      one.tokens
      for one in generation.continue_prompts(
        *model,
        reader,
        PROMPTS[:2],
        generation.Writing(
          max_new_tokens=12, sampling=Sampling(temperature=2.0), seed=seed
        ),
      )
    ]

  assert write(0) == write(0) != write(1)


@pytest.mark.parametrize(
  "prompts, options, message",
  [
    ([], {}, "at least one"),
    ([[1], []], {}, "each with a token"),
    ([[1]], {"batch_size": 0}, "batch_size=0"),
    ([[1]], {"stop": ("",)}, "no empty text"),
    ([[1] * 60], {}, "exceed the model's 64 positions"),
    ([[30]], {}, "ids from 30 to 30"),
  ],
)
def test_bad_prompts(model, reader, prompts, options, message):
  with pytest.raises(ValueError, match=message):
    generation.continue_prompts(
      *model, reader, prompts, generation.Writing(max_new_tokens=12, **options)
    )


@pytest.mark.parametrize(
  "text, expected",
  [
    ("so 3 + 4 = 7.\n#### 7", "7"),
    ("#### 1,234,567", "1234567"),
    ("It costs $1200.00.", "1200"),
    ("at -5 degrees", "-5"),
    ("-$5", "-5"),
    ("first 3, then .50", "0.5"),
    ("#### none, 12", "12"),
    ("the answer is 8 #### ", "8"),
    ("007", "7"),
    ("0.0", "0"),
    ("12.", "12"),
    ("-0", "0"),
    ("no number", None),
    ("", None),
    ("x #### 3 apples of 9", "3"),
    ("3.25", "3.25"),
    ("100", "100"),
    ("1,2,3", "3"),
    ("1,0000", "0"),
  ],
)
def test_final_number(text, expected):
  assert generation.final_number(text) == expected


@pytest.mark.parametrize(
  "answers, rule",
  [
    (("4", "$1,200", "-3.5"), "final_number"),
    (("two and two is 4 #### 4", "7"), "final_number"),
    (("4", "four"), "normalised"),
    (("there are 4 of them",), "normalised"),
  ],
)
def test_the_answers_say_how_texts_are_scored(answers, rule):
  assert generation.choose_extraction(answers) == rule
  assert rule in generation.RULES


def test_exact_match():
  match = generation.exact_match(
    ["is 7", "7.0", "", "8"], ["#### 7"] * 4, generation.final_number
  )
  assert match.tolist() == [True, True, False, False]
  match = generation.exact_match(
    ["The  Cat!", "a dog", "another"],
    ["cat", "dogs", "other"],
    generation.normalised,
  )
  assert match.tolist() == [True, False, False]
  with pytest.raises(ValueError, match="1 texts for 2"):
    generation.exact_match(["a"], ["a", "b"], generation.normalised)
  with pytest.raises(ValueError, match="answer 0: nothing"):
    generation.exact_match(["a"], ["b"], generation.final_number)


@pytest.mark.parametrize(
  "tokens, reference, expected",
  [
    ([1, 2, 3], [1, 2, 3], None),
    ([1, 2, 3], [1, 5, 3], 1),
    ([4], [5], 0),
    ([1, 2], [1, 2, 3], 2),
    ([1, 2, 3], [1], 1),
    ([], [1], 0),
    ([], [], None),
  ],
)
def test_first_divergence(tokens, reference, expected):
  assert generation.first_divergence(tokens, reference) == expected
  assert generation.first_divergence(reference, tokens) == expected


def test_repetition_by_hand():
  tokens = [1, 2, 1, 2, 1]
  assert generation.repetition(tokens, 1) == 1 - 2 / 5
  assert generation.repetition(tokens, 2) == 1 - 2 / 4
  assert generation.repetition(tokens, 3) == 1 - 2 / 3
  assert generation.repetition(tokens, 5) == 0
  assert generation.repetition(tokens, 6) == 0
  assert generation.distinct([tokens, [1, 3]], 1) == 3 / 7
  assert generation.distinct([tokens, [1, 3]], 2) == 3 / 5
  assert generation.distinct([[1]], 2) == 0
  with pytest.raises(ValueError, match="n=0"):
    generation.repetition(tokens, 0)


@pytest.mark.parametrize(
  "tokens, expected",
  [
    ([5, 1, 1, 1], 1),
    ([5, 1, 1], 0),
    ([1, 2, 3] * 3, 3),
    ([9, 1, 2, 1, 2, 1, 2], 2),
    ([1, 2, 1, 2, 1, 2, 9], 0),
    ([], 0),
    # The shortest period counts, and a loop cut in the middle is one too.
    ([4] * 9, 1),
    ([8, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1], 3),
  ],
)
def test_loops_by_hand(tokens, expected):
  assert generation.loop_period(tokens) == expected


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4))
def test_repetition_is_one_less_distinct(tokens, n):
  grams = len(tokens) - n + 1
  if grams > 0:
    assert generation.repetition(tokens, n) == pytest.approx(
      1 - generation.distinct([tokens], n)
    )
  period = generation.loop_period(tokens)
  if period:
    assert len(tokens) >= 3 * period
    assert generation.loop_period(tokens * 3, times=2) > 0


def test_rows():
  def made(*tokens, ended="length"):
    return Continuation(tokens=tokens, text="", ended=ended)

  rows = generation.item_rows(
    [made(1, 1, 1), made(1, 2, ended="eos")],
    right=np.array([True, False]),
    reference=[made(1, 1, 1), made(1, 3)],
  )
  assert rows[0] == {
    "prompt": 0,
    "length": 3,
    "ended_eos": 0,
    "repetition@1": 1 - 1 / 3,
    "repetition@2": 0.5,
    "repetition@3": 0,
    "repetition@4": 0,
    "loop": 1,
    "exact": 1,
    "same": 1,
    "first_divergence": 3,
  }
  assert rows[1]["first_divergence"] == 1 and rows[1]["same"] == 0
  assert rows[1]["ended_eos"] == 1 and rows[1]["exact"] == 0
