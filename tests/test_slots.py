"""Rows that join and leave: neighbours, order and kills change nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from tiny_config import tiny_llama

from jaxprune.calibration import left_pad
from jaxprune.evaluation import writing as writing_lib
from jaxprune.evaluation.journal import Bookkeeping, Journal
from jaxprune.evaluation.writing import Writing, continue_prompts
from jaxprune.models import Sampling, generate, init


@pytest.fixture(scope="module")
def model():
  config = dataclasses.replace(tiny_llama(1), eos_ids=tuple(range(0, 40, 7)))

  @jax.jit
  def draw():
    params = init(config, jax.random.key(3))
    return jax.tree.map(lambda w: w * 20, params)

  return config, draw()


@pytest.fixture(scope="module")
def reader():
  vocabulary = {"<pad>": 0} | {chr(97 + i): 1 + i for i in range(39)}
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="<pad>")
  )
  made.decoder = tokenizers.decoders.Fuse()
  return made


@pytest.fixture(scope="module")
def prompts():
  """Nine of 1 to 20 tokens; some begin alike, two are the same."""
  draw = np.random.default_rng(0)
  shared = draw.integers(3, 40, 17).tolist()
  found = [draw.integers(3, 40, n).tolist() for n in (1, 4, 9, 20)]
  found += [shared, [*shared, 5], [*shared, 5, 6], shared[:8]]
  return [*found, found[1]]


WRITING = Writing(max_new_tokens=10, batch_size=3)


def tokens(texts):
  return [text.written for text in texts]


def test_rows_write_what_generate_writes(model, reader, prompts):
  got = continue_prompts(*model, reader, prompts, WRITING)
  padded, valid = left_pad(prompts)
  alone = generate(*model, padded, valid_BT=valid, max_new_tokens=10)
  rows, lengths = np.asarray(alone.tokens), np.asarray(alone.lengths)
  for text, row, length in zip(got, rows, lengths):
    assert text.written == tuple(row[:length].tolist())
  assert len({text.ended for text in got}) == 2, "no row made room"


def test_a_row_draws_by_its_number_whatever_its_neighbours(
  model, reader, prompts
):
  writing = dataclasses.replace(
    WRITING, sampling=Sampling(temperature=100.0, top_k=20)
  )
  got = tokens(continue_prompts(*model, reader, prompts, writing))
  assert got[1] != got[8]  # the same prompt, another number
  wide = dataclasses.replace(writing, batch_size=9)
  assert tokens(continue_prompts(*model, reader, prompts, wide)) == got
  few = continue_prompts(*model, reader, prompts[:3], writing)
  assert tokens(few) == got[:3]
  other = dataclasses.replace(writing, seed=1)
  assert tokens(continue_prompts(*model, reader, prompts, other)) != got


def test_a_killed_run_goes_on_and_writes_the_same(
  model, reader, prompts, tmp_path, monkeypatch
):
  whole = continue_prompts(*model, reader, prompts, WRITING)
  told = []

  def die(done, total):
    told.append((done, total))
    if len(told) == 2:
      raise KeyboardInterrupt

  def run(progress):
    with Journal(tmp_path / "journal", {}) as journal:
      keeping = Bookkeeping(journal=journal, progress=progress)
      return continue_prompts(
        *model, reader, prompts, WRITING, bookkeeping=keeping
      )

  with pytest.raises(KeyboardInterrupt):
    run(die)
  assert 0 < told[-1][0] < told[-1][1] == 9
  assert run(None) == whole
  monkeypatch.setattr(writing_lib.slots, "advance", None)  # nothing is left
  assert run(None) == whole


def test_a_stop_string_frees_its_row(model, reader, prompts):
  whole = continue_prompts(*model, reader, prompts, WRITING)
  text = max((text.text for text in whole), key=len)
  stop = text[2:4]
  got = continue_prompts(
    *model, reader, prompts, dataclasses.replace(WRITING, stop=(stop,))
  )
  for before, after in zip(whole, got):
    assert after.text == before.text.split(stop)[0]
    if stop in before.text:
      assert after.ended == "stop"
      # What completes the stop string is the last token that was kept.
      assert reader.decode(list(after.written)).endswith(stop)
    else:
      assert after == before
