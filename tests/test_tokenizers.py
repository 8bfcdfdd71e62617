"""The tokenizer of a folder: ids and special tokens as AutoTokenizer's."""

import json
import pathlib
import shutil

import pytest
import tokenizers

import jaxprune.pocket
from jaxprune.calibration import (
  adds_bos,
  encode,
  load_tokenizer,
  special_tokens,
  tokenizer_classes,
)
from jaxprune.models.config import FAMILIES

BOS = 1
POCKET = pathlib.Path(jaxprune.pocket.__file__).parent / "model"


def dressed(folder, fields, added=None):
  """The pocket tokenizer with another tokenizer_config.json."""
  shutil.copyfile(POCKET / "tokenizer.json", folder / "tokenizer.json")
  (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
  if fields is not None:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
  if added is not None:
    (folder / "special_tokens_map.json").write_text(json.dumps(added))
  return folder


PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
END = {"content": "<pad>", "lstrip": False, "rstrip": False}


@pytest.mark.parametrize(
  "fields, added",
  [
    (PLAIN, None),
    (PLAIN | {"bos_token": "<s>", "eos_token": "</s>"}, None),
    (PLAIN | {"bos_token": "</s>", "eos_token": None}, None),
    (PLAIN | {"eos_token": END | {"__type": "AddedToken"}}, None),
    (PLAIN | {"bos_token": "<s>"}, {"bos_token": "</s>", "eos_token": END}),
    (
      PLAIN | {"bos_token": "<s>", "added_tokens_decoder": {}},
      {"bos_token": "</s>"},
    ),
    ({"tokenizer_class": "LlamaTokenizerFast"}, None),
    ({"tokenizer_class": "LlamaTokenizer", "eos_token": "<pad>"}, None),
    (None, {"eos_token": "</s>"}),
  ],
)
def test_begin_and_end_are_those_of_stock(tmp_path, fields, added):
  transformers = pytest.importorskip("transformers")
  dressed(tmp_path, fields, added)
  stock = transformers.AutoTokenizer.from_pretrained(
    str(tmp_path), local_files_only=True
  )
  got = special_tokens(tmp_path, load_tokenizer(tmp_path))
  assert (got.bos_id, got.eos_id) == (stock.bos_token_id, stock.eos_token_id)


def test_prefix_and_ends(tmp_path):
  dressed(tmp_path, PLAIN | {"eos_token": "</s>"})
  tokenizer = load_tokenizer(tmp_path)
  end = tokenizer.token_to_id("</s>")
  got = special_tokens(tmp_path, tokenizer)
  assert (got.prefix_id, got.end_ids) == (end, (end,))
  (tmp_path / "tokenizer_config.json").unlink()
  got = special_tokens(tmp_path, tokenizer)
  assert (got.prefix_id, got.end_ids) == (None, ())
  (tmp_path / "tokenizer_config.json").write_text("[1]")
  with pytest.raises(ValueError, match="tokenizer_config.json: not a JSON obj"):
    special_tokens(tmp_path, tokenizer)


ODD_TEXTS = (
  *("", "a", " ", " ab", "ab ", "  two  spaces ", "\t", "\ttab\tx", "\n\n\n"),
  *("a\r\nb\r\n", "\r", "\x00", "a\x00b", "\x07\x1b[0m", "\x85", "\ufeffbom"),
  *(
    "😀",
    "👩\u200d👩\u200d👧 fam",
    "漢字かな",
    "한국어",
    "مرحبا",
    "שלום",
    "\U00010348",
  ),
  *("e\u0301 \u00e9", "a\u0300\u0301\u0302", "\u202ertl\u202c", "\u200b\u200d"),
  *("ﬁ ½ ①", "İ ı ß ſ", "\u3000wide\u00a0nbsp", "ไทย", "\ud7ff\ue000"),
  *(
    "1234567890",
    "3.14159e-10",
    "def f(x):\n    return x ** 2\n",
    "don't I'LL",
  ),
  *(
    "<s>",
    "</s>",
    "a<s>b</s> c",
    "<unk>",
    "<pad>",
    "< s >",
    "</s></s>",
    "<mask>",
  ),
  *(
    "<|endoftext|>",
    "a <|im_end|> b",
    "<|padding|>",
    "▁",
    "a▁b",
    "Ġ",
    "<0x0A>",
  ),
  *("x" * 400, "ab " * 50, "a" + "\u0301" * 40),
)


def spaced():
  """BPE on pieces with ▁ for a space and bytes for the rest, as of Llama 2."""
  pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
  pieces += ["▁", *"abcdefst0123.,'<>/", "▁a", "ab", "▁▁", "▁ab"]
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={piece: id_ for id_, piece in enumerate(pieces)},
      merges=[("▁", "a"), ("a", "b"), ("▁", "▁"), ("▁a", "b")],
      unk_token="<unk>",
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  made.add_special_tokens(["<unk>", "<s>", "</s>"])
  made.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Prepend("▁"),
      tokenizers.normalizers.Replace(" ", "▁"),
    ]
  )
  made.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace("▁", " "),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(" ", 1, 0),
    ]
  )
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  return made.to_str()


def on_bytes():
  return (POCKET / "tokenizer.json").read_text()


@pytest.mark.parametrize(
  "content, family, named, fields",
  [
    (spaced, "llama", "LlamaTokenizer", {}),
    (spaced, "llama", "LlamaTokenizerFast", {"legacy": True}),
    (spaced, "llama", "LlamaTokenizer", {"add_prefix_space": False}),
    (spaced, "llama", "PreTrainedTokenizerFast", {"pad_token": "ab"}),
    (spaced, "llama", None, {}),
    (spaced, "mistral", "LlamaTokenizer", {"eos_token": "</s>"}),
    (spaced, "phi3", "LlamaTokenizer", {}),
    (spaced, "gemma2", "GemmaTokenizer", {"bos_token": "<s>"}),
    (spaced, "gemma3_text", "LlamaTokenizer", {}),
    (spaced, "llama", "TokenizersBackend", {"split_special_tokens": True}),
    (on_bytes, "llama", "LlamaTokenizer", {"bos_token": "<s>"}),
    (on_bytes, "llama", "Qwen2Tokenizer", {}),
    (on_bytes, "qwen2", "PreTrainedTokenizerFast", {"bos_token": None}),
    (on_bytes, "qwen3", "Qwen2TokenizerFast", {"eos_token": "</s>"}),
    (on_bytes, "gpt2", "GPT2Tokenizer", {}),
    (on_bytes, "opt", "GPT2Tokenizer", {"add_prefix_space": True}),
    (on_bytes, "gpt_neox", "GPTNeoXTokenizer", {}),
    (on_bytes, "olmo2", "GPT2Tokenizer", {"extra_special_tokens": ["<mask>"]}),
  ],
)
def test_ids_and_texts_are_those_of_stock(
  tmp_path, content, family, named, fields
):
  transformers = pytest.importorskip("transformers")
  (tmp_path / "tokenizer.json").write_text(content())
  (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
  fields = fields | ({"tokenizer_class": named} if named else {})
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
  stock = transformers.AutoTokenizer.from_pretrained(
    str(tmp_path), local_files_only=True
  )
  own = load_tokenizer(tmp_path)
  for text in ODD_TEXTS:
    ids = stock(text)["input_ids"]
    assert encode(own, text) == ids, text
    plain = stock(text, add_special_tokens=False)["input_ids"]
    assert encode(own, text, add_bos=False) == plain, text
    for skip in (True, False):
      assert own.decode(ids, skip_special_tokens=skip) == stock.decode(
        ids, skip_special_tokens=skip
      ), text
  special = special_tokens(tmp_path, own)
  assert special.bos_id == stock.bos_token_id
  assert special.eos_id == stock.eos_token_id


def test_classes_of_families_are_those_of_stock():
  pytest.importorskip("transformers")
  from transformers.models.auto import tokenization_auto as stock

  for family in {*FAMILIES, *tokenizer_classes.FAMILY_CLASSES}:
    expected = stock.TOKENIZER_MAPPING_NAMES.get(family)
    if expected == "MistralCommonBackend":  # where mistral-common is installed
      expected = "TokenizersBackend"
    assert tokenizer_classes.FAMILY_CLASSES.get(family) == expected, family
    believed = family not in stock.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert (family not in tokenizer_classes.DISBELIEVED) == believed, family


def test_a_missing_file_is_named_with_how_to_make_it(tmp_path):
  (tmp_path / "tokenizer.model").write_bytes(b"x")
  with pytest.raises(ValueError) as caught:
    load_tokenizer(tmp_path)
  said = str(caught.value)
  assert "tokenizer.json: no such file beside tokenizer.model" in said
  assert f"from_pretrained('{tmp_path}').save_pretrained" in said


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}])
def test_special_tokens_as_in_transformers(shared, tmp_path, flags):
  transformers = pytest.importorskip("transformers")
  source = shared / "weights" / "stories260K"
  shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
  content = json.loads((source / "tokenizer_config.json").read_text()) | flags
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
  stock = transformers.AutoTokenizer.from_pretrained(
    str(tmp_path), local_files_only=True
  )
  own = load_tokenizer(tmp_path)
  assert stock("x")["input_ids"][0] == stock.bos_token_id == BOS
  assert adds_bos(own)
  for text in ("Once upon a time", "", " two  spaces\n", "naïve <s> 狐"):
    assert encode(own, text) == stock(text)["input_ids"]
    plain = stock(text, add_special_tokens=False)["input_ids"]
    assert encode(own, text, add_bos=False) == plain
    assert encode(own, text, add_bos=True, bos_id=BOS) == [BOS, *plain]


def test_padding_and_truncation_are_off(shared):
  own = load_tokenizer(shared / "weights" / "minilm")
  assert own.padding is None and own.truncation is None
  assert len(encode(own, "a")) == 3
  assert len(encode(own, "word " * 1000)) == 1002


def test_bad_tokenizers(tmp_path):
  with pytest.raises(ValueError, match="tokenizer.json: no such file"):
    load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="not a tokenizer"):
    load_tokenizer(tmp_path)
