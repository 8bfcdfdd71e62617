"""Layers that are left out: what stays keeps its kind and its place."""

import json

import numpy as np
import pytest
import transformers

from jaxprune import checkpoints

FIELDS = dict(
  vocab_size=48,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  use_sliding_window=True,
  sliding_window=8,
  max_window_layers=2,
)


@pytest.fixture(scope="module", params=["listed", "counted"])
def source(request, tmp_path_factory):
  """A Qwen2 whose last two layers slide, by a list or by a number."""
  folder = tmp_path_factory.mktemp(request.param)
  config = transformers.Qwen2Config(**FIELDS)
  transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
  hf = json.loads((folder / "config.json").read_text())
  if request.param == "counted":
    del hf["layer_types"]
  hf["drop_mlp_list"] = [1, 3]
  hf["drop_attn_list"] = [False, True, False, False]
  (folder / "config.json").write_text(json.dumps(hf))
  (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
  return checkpoints.open_checkpoint(folder)


@pytest.mark.parametrize("gone", [(1,), (0, 2), (3, 2)])
def test_what_stays_is_as_it_was(source, gone):
  kept = [index for index in range(4) if index not in gone]
  left = checkpoints.without_layers(source, gone)
  assert left.config.num_layers == len(kept)
  assert left.config.sliding_layers == tuple(index >= 2 for index in kept)
  assert left.config.eos_ids == (7, 9)
  assert checkpoints.read_drops(left) == {
    "attention": tuple(kept.index(i) for i in (1,) if i in kept),
    "mlp": tuple(kept.index(i) for i in (1, 3) if i in kept),
  }
  for index, before in enumerate(kept):
    np.testing.assert_array_equal(
      checkpoints.read_layer(left, index)["mlp"]["up"]["kernel"],
      checkpoints.read_layer(source, before)["mlp"]["up"]["kernel"],
    )


def test_stock_reads_the_same_kinds(source, tmp_path):
  left = checkpoints.without_layers(source, [0])
  export = checkpoints.start_export(tmp_path / "out", left)
  for index in range(3):
    layer = checkpoints.read_layer(left, index)
    checkpoints.write_layer(export, index, layer)
  checkpoints.finish_export(export)
  stock = transformers.AutoConfig.from_pretrained(tmp_path / "out")
  assert stock.num_hidden_layers == 3
  assert stock.layer_types == ["full_attention"] + ["sliding_attention"] * 2
  assert checkpoints.open_checkpoint(tmp_path / "out").config == left.config


@pytest.mark.parametrize("gone", [(0, 1, 2, 3), (4,), (-1,)])
def test_what_cannot_be_left_out(source, gone):
  with pytest.raises(ValueError, match=r"cannot be left out of 4"):
    checkpoints.without_layers(source, gone)


def test_nothing_left_out_is_the_source(source):
  assert checkpoints.without_layers(source, ()) is source
