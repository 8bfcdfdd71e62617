"""Tokenizers from the metadata of GGUF files: the ids of stock transformers."""

import json
import os
import pathlib
import unicodedata

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping as stock

from jaxprune.checkpoints import gguf_file, gguf_tokenizer

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [
  *(ROOT / "README.md").read_text().splitlines()[:60],
  "",
  " ",
  "  two   three\t\t",
  "\n\n \t x\r\ny",
  "don't I'LL we're",
  "12345 3.14159 1,000 ½ ² Ⅷ ٣٤ \n 7",
  "é e\u0301 ﬁ Å",
  "日本語 中文 한국어 ไทย עברית",
  "👩‍👩‍👧 \u200b\u00a0",
  "<|end|> hi<|end|><think>  <think>",
  "<s> </s> <unk> <0x0A> ▁ Ġ",
  "CamelCaseAndSNAKE_CASE x**2  # ok",
]
CONTROL, USER_DEFINED, BYTE, UNKNOWN = 3, 4, 6, 2


@pytest.fixture(scope="module")
def byte_level():
  """A byte-level vocabulary of 420 tokens: tokens, kinds, merges."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS, trainer)
  vocabulary = tokenizer.get_vocab()
  tokens = sorted(vocabulary, key=vocabulary.get)
  merges = [
    " ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]
  ]
  kinds = [1] * len(tokens)
  return {
    "model": "gpt2",
    "tokens": [*tokens, "<|end|>", "<think>"],
    "token_type": [*kinds, CONTROL, USER_DEFINED],
    "merges": merges,
    "bos_token_id": len(tokens),
    "eos_token_id": len(tokens),
  }


@pytest.fixture(scope="module")
def sentencepiece():
  """A SentencePiece vocabulary: bytes, letters, and words by their scores."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
  tokenizer.train_from_iterator(TEXTS[:60], trainer)
  vocabulary = tokenizer.get_vocab()
  words = sorted(vocabulary, key=vocabulary.get)
  data = [f"<0x{value:02X}>" for value in range(256)]
  first = ["<unk>", "<s>", "</s>"]
  return {
    "model": "llama",
    "tokens": [*first, *data, *words, "<think>"],
    "token_type": [UNKNOWN, CONTROL, CONTROL]
    + [BYTE] * 256
    + [1] * len(words)
    + [USER_DEFINED],
    "scores": [0.0] * 259 + [-float(i) for i in range(len(words) + 1)],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
  }


def build(fields, architecture="llama"):
  """Ours, from metadata."""
  metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
  return gguf_tokenizer.build_tokenizer(
    {"general.architecture": architecture, **metadata}
  )


def build_stock(fields, architecture="llama"):
  """Theirs, from the same."""
  renamed = {
    new: fields[old.removeprefix("ggml.")]
    for old, new in stock.GGUF_TOKENIZER_MAPPING["tokenizer"].items()
    if old.removeprefix("ggml.") in fields
  }
  return stock.convert_gguf_tokenizer(architecture, renamed)[0]


def assert_same(found, expected, change=lambda text: text):
  for text in TEXTS:
    ids = found.encode(text, add_special_tokens=False).ids
    theirs = expected.encode(change(text), add_special_tokens=False).ids
    assert ids == theirs, text
    assert found.decode(ids) == expected.decode(theirs), text


@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe", "tekken", "qwen2"])
def test_byte_level(byte_level, cut):
  fields = byte_level | {"pre": cut}
  tokenizer, why = build(fields)
  assert not why
  # Qwen composes characters first; its stock class does, this converter not.
  compose = lambda text: unicodedata.normalize("NFC", text)
  assert_same(
    tokenizer,
    build_stock(fields),
    compose if cut == "qwen2" else lambda text: text,
  )


def test_smollm_cuts_out_digits(byte_level):
  """As its own tokenizer.json does; stock does not know the name."""
  fields = byte_level | {"pre": "smollm"}
  expected = build_stock(fields)
  expected.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  assert_same(build(fields)[0], expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sentencepiece(sentencepiece, architecture):
  fields = dict(sentencepiece)
  if architecture == "gemma2":
    fields["tokens"] = [*fields["tokens"], "  ", "   "]
    fields["token_type"] = [*fields["token_type"], 1, 1]
    fields["scores"] = [*fields["scores"], -1000.0, -1000.0]
  found, why = build(fields, architecture)
  assert not why
  assert_same(found, build_stock(fields, architecture))


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True])
def test_ends_of_a_text(sentencepiece, bos, eos):
  """A SentencePiece text begins with a token unless the file says not."""
  fields = dict(sentencepiece)
  if bos is not None:
    fields["add_bos_token"] = bos
  if eos is not None:
    fields["add_eos_token"] = eos
  tokenizer, _ = build(fields)
  plain = tokenizer.encode("ab", add_special_tokens=False).ids
  first, last = [1] if bos in (None, True) else [], [2] if eos else []
  assert tokenizer.encode("ab").ids == [*first, *plain, *last]
  other = tokenizer.encode("c", add_special_tokens=False).ids
  both = tokenizer.encode("ab", "c").ids
  assert both == [*first, *plain, *last, *first, *other, *last]


@pytest.mark.parametrize(
  "change, why",
  [
    ({"pre": "mystery"}, "'mystery'"),
    ({"pre": None}, "cut by None"),
    ({"pre": "gpt-2", "merges": None}, "no merges"),
    ({"model": "t5"}, "kind 't5'"),
    ({"tokens": None}, "no tokens"),
    ({"model": "llama", "merges": None}, "neither scores nor merges"),
  ],
)
def test_what_is_not_known_gives_none(byte_level, change, why):
  tokenizer, reason = build(byte_level | change)
  assert tokenizer is None and why in reason


@pytest.mark.parametrize("name", ["smollm2", "qwen05"])
def test_a_real_file(name):
  """Against the folder that transformers made of it, with AutoTokenizer."""
  home = pathlib.Path(os.environ.get("JAXPRUNE_REAL", ""))
  file = home / "gguf" / f"{name}.gguf"
  if not os.environ.get("JAXPRUNE_REAL") or not file.is_file():
    pytest.skip("JAXPRUNE_REAL is not set, or has no gguf/: no real GGUF files")
  tokenizer, why = gguf_tokenizer.build_tokenizer(
    gguf_file.read_header(file)[0]
  )
  assert not why
  import transformers

  expected = transformers.AutoTokenizer.from_pretrained(home / name)
  for text in TEXTS:
    if name == "smollm2" and any(map(str.isnumeric, text)):
      continue  # see test_smollm_cuts_out_digits
    assert tokenizer.encode(text).ids == expected(text).input_ids, text
