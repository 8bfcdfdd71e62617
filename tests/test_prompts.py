"""Prompts that are read from a file."""

import numpy as np
import pytest

from jaxprune.calibration import left_pad, read_prompts
from tests.test_tokens import BOS, EOS, words

__all__ = ["words"]  # Fixtures, not leftover imports.


def test_prompts(tmp_path, words):
  (tmp_path / "a.txt").write_text("w1 w2\n\nw3\n")
  (tmp_path / "a.jsonl").write_text(
    '{"prompt": "w1 w2", "text": "w9"}\n{"text": "w3"}\n'
  )
  read = [
    read_prompts(tmp_path / name, words, vocab_size=100)
    for name in ("a.txt", "a.jsonl")
  ]
  assert read[0].tokens == read[1].tokens == ((4, 5), (6,))
  assert read[0].hash == read[1].hash
  assert read_prompts(tmp_path / "a.txt", words, limit=1).tokens == ((4, 5),)
  assert read_prompts(
    tmp_path / "a.txt", words, add_bos=True, bos_id=BOS
  ).tokens[1] == (BOS, 6)
  tokens_BT, valid_BT = left_pad(read[0].tokens, pad_id=EOS)
  np.testing.assert_array_equal(tokens_BT, [[4, 5], [EOS, 6]])
  np.testing.assert_array_equal(valid_BT, [[True, True], [False, True]])


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.txt", "\n \n", "no prompt in it"),
    ("a.jsonl", '{"prompt": "w1"}\n{"prompt": " "}\n', "prompt 1 is blank"),
    ("a.jsonl", '{"question": "w1"}\n', "no field prompt or text .it has que"),
    ("a.txt", "w1\nw98\n", "id 0 at"),
    ("a.csv", "w1\n", "unknown format '.csv'"),
  ],
)
def test_bad_prompts(tmp_path, words, name, content, message):
  (tmp_path / name).write_text(content)
  if "id 0" in message:
    message, vocab_size = "prompt 0 has id 4 .*vocabulary of 2", 2
  else:
    vocab_size = None
  with pytest.raises(ValueError, match=message):
    read_prompts(tmp_path / name, words, vocab_size=vocab_size)


def test_prompt_hash_tells_lengths_apart(tmp_path):
  from jaxprune.calibration import Prompts

  hashes = {
    Prompts(tokens=rows, source="").hash
    for rows in (((1, 2), (3,)), ((1,), (2, 3)), ((1, 2, 3),))
  }
  assert len(hashes) == 3
