"""Trained language models, where JAXPRUNE_REAL names a folder of them."""

import os
import pathlib

import numpy as np
import pytest

from jaxprune.calibration import encode, load_tokenizer
from tests.test_lm_eval_folders import instances
from tests.test_tokenizers import ODD_TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def folder_of(name):
  """One model's folder, or the reason why there is none."""
  root = os.environ.get("JAXPRUNE_REAL", "")
  folder = pathlib.Path(root) / name
  if not root or not (folder / "config.json").is_file():
    pytest.skip(f"JAXPRUNE_REAL is not set, or has no {name}/")
  return folder


@pytest.mark.parametrize("name", ["smollm2", "qwen05", "gemma3"])
def test_ids_and_texts_are_those_of_stock(name):
  transformers = pytest.importorskip("transformers")
  folder = folder_of(name)
  stock = transformers.AutoTokenizer.from_pretrained(
    str(folder), local_files_only=True
  )
  own = load_tokenizer(folder)
  for text in ODD_TEXTS:
    ids = stock(text)["input_ids"]
    assert encode(own, text) == ids, text
    assert own.decode(ids) == stock.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("name", ["smollm2", "qwen05"])
def test_answers_are_those_of_the_hf_backend(name):
  """A chat, whose turn ends with a special token, scored and written."""
  folder = folder_of(name)
  huggingface = pytest.importorskip("lm_eval.models.huggingface")
  from jaxprune.evaluation.lm_eval_adapter import JaxpruneLM

  theirs = huggingface.HFLM(
    pretrained=str(folder), dtype="float32", device="cpu", logits_cache=False
  )
  ours = JaxpruneLM(folder)
  assert ours.prefix_token_id == theirs.prefix_token_id
  assert ours.eot_token_id == theirs.eot_token_id
  turn = [{"role": "user", "content": "What is 2 + 2? Answer with a number."}]
  chat = theirs.apply_chat_template(turn)
  assert ours.apply_chat_template(turn) == chat

  def answers(kind, arguments):
    return (
      getattr(model, kind)(instances(kind, arguments), disable_tqdm=True)
      for model in (ours, theirs)
    )

  pairs = [(chat, "4"), (chat, "Four of them"), ("", "Paris is"), ("A ", "b")]
  got, expected = answers("loglikelihood", pairs)
  np.testing.assert_allclose(got, expected, atol=5e-3)
  got, expected = answers("loglikelihood_rolling", [("The sky is blue.",)])
  np.testing.assert_allclose(got, expected, atol=5e-3)
  options = {"max_gen_toks": 16, "do_sample": False}
  written = [
    (chat, options | {"until": ["<|im_end|>"]}),
    ("def add(a, b):", options | {"until": ["\n\n", "<|endoftext|>"]}),
    ("One, two,", options | {"until": []}),
  ]
  got, expected = answers("generate_until", written)
  assert got == expected
