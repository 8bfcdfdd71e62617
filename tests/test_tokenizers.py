"""The tokenizer of a folder: special tokens, as AutoTokenizer reads them."""

import json
import pathlib
import shutil

import pytest

import jaxprune.pocket
from jaxprune.calibration import load_tokenizer, special_tokens

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
