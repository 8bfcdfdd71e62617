"""Decoders that embed texts, as sentence-transformers runs the same folder."""

import json

import numpy as np
import pytest
import tokenizers

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer
from jaxprune.evaluation import embeddings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["abc", "  a bad cab ", "bead " * 20, "d"]
PROMPTS = {"query": "Instruct: abc\nQuery: ", "document": ""}


def save(folder, pooling="lasttoken", side="left", **sizes):
  """A tiny Mistral without head, as E5-Mistral is published."""
  torch.manual_seed(0)
  config = transformers.MistralConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    initializer_range=0.4,
  )
  transformers.MistralModel(config).save_pretrained(folder)
  pieces = ["<unk>", "<s>", "</s>", *" abcdeIQunsrtcy:\n"]
  reader = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {piece: id_ for id_, piece in enumerate(dict.fromkeys(pieces))},
      unk_token="<unk>",
    )
  )
  reader.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  reader.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
  )
  reader.add_special_tokens(["<unk>", "<s>", "</s>"])
  reader.save(str(folder / "tokenizer.json"))
  names = ("Transformer", "Pooling", "Normalize")
  files = {
    "tokenizer_config.json": {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "pad_token": "</s>",
      "padding_side": side,
    },
    "modules.json": [
      {
        "idx": index,
        "name": str(index),
        "path": f"{index}_{name}" if index else "",
        "type": f"sentence_transformers.models.{name}",
      }
      for index, name in enumerate(names)
    ],
    "1_Pooling/config.json": {
      "word_embedding_dimension": 16,
      f"pooling_mode_{pooling}": True,
      **(
        {} if pooling == "mean_tokens" else {"pooling_mode_mean_tokens": False}
      ),
      "pooling_mode_cls_token": False,
    },
    "sentence_bert_config.json": {"max_seq_length": 48, **sizes},
    "config_sentence_transformers.json": {
      "prompts": PROMPTS,
      "default_prompt_name": None,
    },
  }
  (folder / "1_Pooling").mkdir()
  (folder / "2_Normalize").mkdir()
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content))
  return folder


def ours(folder, texts, *names):
  config, params = checkpoints.load_params(folder)
  recipe = checkpoints.read_recipe(folder)
  return embeddings.embed_texts(
    config,
    params,
    load_tokenizer(folder),
    texts,
    recipe,
    prompt=recipe.prompt(*names),
  )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
  "pooling, side",
  [
    ("lasttoken", "left"),
    ("mean_tokens", "left"),
    ("weightedmean_tokens", "right"),
  ],
)
def test_vectors_are_those_of_sentence_transformers(tmp_path, pooling, side):
  library = pytest.importorskip("sentence_transformers")
  folder = save(tmp_path, pooling, side)
  model = library.SentenceTransformer(str(folder), device="cpu")
  for encode, name in (
    (model.encode_query, "query"),
    (model.encode_document, "document"),
  ):
    np.testing.assert_allclose(
      ours(folder, TEXTS, name), encode(TEXTS), rtol=1e-4, atol=2e-5
    )


def test_a_long_text_keeps_its_end_token(tmp_path):
  folder = save(tmp_path, max_seq_length=8)
  recipe = checkpoints.read_recipe(folder)
  assert recipe.max_tokens == 8
  cut, same, other = ours(folder, ["abcdeabcde", "abcdea", "abcdeb"])
  np.testing.assert_allclose(cut, same, atol=1e-6)
  assert abs(cut - other).max() > 0.01


def test_recipes(tmp_path):
  assert checkpoints.read_recipe(tmp_path) is None
  folder = save(tmp_path)
  recipe = checkpoints.read_recipe(folder)
  assert recipe.pooling == checkpoints.Pooling(kind="last", normalise=True)
  assert recipe.prompt("query") == PROMPTS["query"]
  assert recipe.prompt("other") == ""
  path = folder / "config_sentence_transformers.json"
  path.write_text(
    json.dumps({"prompts": {"s": "Say: "}, "default_prompt_name": "s"})
  )
  recipe = checkpoints.read_recipe(folder)
  assert recipe.prompt("query") == recipe.prompt("document") == "Say: "


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
    ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length"),
    ("sentence_bert_config.json", [], "expected a JSON object"),
    ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts"),
    (
      "config_sentence_transformers.json",
      {"prompts": {}, "default_prompt_name": "a"},
      "default_prompt_name='a'",
    ),
    (
      "1_Pooling/config.json",
      {"pooling_mode_lasttoken": True, "include_prompt": False},
      "include_prompt=false",
    ),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
  ],
)
def test_what_is_not_done_is_refused(tmp_path, name, content, words):
  folder = save(tmp_path)
  (folder / name).write_text(json.dumps(content))
  with pytest.raises(ValueError, match=words) as caught:
    checkpoints.read_recipe(folder)
  assert "\n" not in str(caught.value)


def test_the_recipe_goes_with_the_pruned_model(tmp_path):
  folder = save(tmp_path)
  source = checkpoints.open_checkpoint(folder)
  _, params = checkpoints.load_params(source)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert checkpoints.read_recipe(out) == checkpoints.read_recipe(folder)
  np.testing.assert_array_equal(
    ours(out, TEXTS, "query"), ours(folder, TEXTS, "query")
  )
