"""The table of declared fields against the installed transformers."""

import json
import pathlib

import stock_fields

from jaxprune.models import ModelConfig, config_keys, encoder_config

FILE = pathlib.Path(config_keys.__file__).with_name("stock_fields.json")
# Undeclared names that stock code reads and that change nothing here.
WITHOUT_EFFECT = {
  "number_of_conv_states",  # of layers that are no attention
  "embedding_size",  # of a BERT trained with ELECTRA's head
  "classifier_dropout",  # these three are of heads for classification
  "hidden_dropout",
  "summary_last_dropout",
}
# Undeclared names that the parsers take themselves.
TAKEN = {
  "llama": {"layer_types", "sliding_window"},
  "mistral": {"layer_types"},
  "qwen2": {"head_dim"},
  # Of the model that reads images too, which is in the same files.
  "gemma3_text": {
    *("image_size", "image_token_id", "layer_norm_eps", "mm_tokens_per_image"),
    *("patch_size", "vision_config"),
  },
  "olmo2": {"head_dim", "layer_types", "sliding_window"},
  "phi3": {"head_dim", "layer_types"},
  # Without RoPE nothing asks for its parameters.
  "gpt2": {"head_dim", "layer_types", "rope_parameters", "sliding_window"},
  "gpt_neox": {"head_dim", "layer_types", "sliding_window"},
  "qwen3_moe": {"head_dim", "layer_types"},
  "opt": {"head_dim", "layer_types", "rope_parameters", "sliding_window"},
}


def test_the_table_is_that_of_the_installed_transformers():
  """If not: python tests/stock_fields.py > jaxprune/models/stock_fields.json

  and look at what the change means for the parsers.
  """
  table, made = json.loads(FILE.read_text()), stock_fields.make()
  for entry in (table, made):
    entry.pop("transformers")
  assert made == table


def test_the_file_is_as_the_command_writes_it():
  text = FILE.read_text()
  assert stock_fields.as_text(json.loads(text)) == text


def test_every_undeclared_name_that_stock_reads_is_decided():
  for family, entry in json.loads(FILE.read_text())["families"].items():
    reads = set(entry["reads"]) - WITHOUT_EFFECT - TAKEN.get(family, set())
    if family == "bert":
      # What the layers of BERT never ask for: its masks and caches are told
      # nothing of windows, and its heads have the quotient as their width.
      reads -= {"head_dim", "layer_types", "sliding_window"}
      refused = config_keys.REFUSED | encoder_config.REFUSED
    else:
      refused = config_keys.REFUSED
    assert reads <= set(refused), (family, reads - set(refused))


def test_every_declared_field_has_its_default_read():
  """A field declared anew is read, inert, or supported at its default."""
  families = json.loads(FILE.read_text())["families"]
  for family in set(families) - {"bert"}:
    defaults = {k: v for k, (_, v) in families[family]["fields"].items()}
    config = ModelConfig.from_hf({"model_type": family, **defaults})
    assert config == ModelConfig.from_hf({"model_type": family})
    assert config.ignored == ()
