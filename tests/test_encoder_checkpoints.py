"""Encoder checkpoints in and out, bit for bit, and what is refused."""

import json
import shutil

import hf_encoders
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from jaxprune import checkpoints
from jaxprune.checkpoints import names
from jaxprune.models import EncoderConfig


def tensors_of(folder):
  found = {}
  for path in sorted(folder.glob("*.safetensors")):
    found |= safetensors.torch.load_file(path)
  return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("bert")
  hf_encoders.save(made)
  return made


@pytest.fixture
def copy(folder, tmp_path):
  """A folder to break, and a function that changes its tensors."""
  place = tmp_path / "copy"
  shutil.copytree(folder, place)

  def change(edit):
    tensors = tensors_of(place)
    edit(tensors)
    safetensors.torch.save_file(
      tensors, place / "model.safetensors", {"format": "pt"}
    )
    return place

  return change


@pytest.mark.parametrize(
  "dtype, pooler", [("float32", True), ("float16", False), ("bfloat16", True)]
)
def test_there_and_back_bit_for_bit(tmp_path, dtype, pooler):
  model = hf_encoders.build(pooler=pooler, intermediate_size=32)
  hf_encoders.save(tmp_path / "in", model.to(getattr(torch, dtype)))
  source = checkpoints.open_checkpoint(tmp_path / "in", EncoderConfig)
  assert source.config.pooler is pooler
  _, params = checkpoints.load_params(source)
  out = checkpoints.save_params(
    tmp_path / "out", params, source, provenance={"a": 1}
  )
  before, after = tensors_of(tmp_path / "in"), tensors_of(out)
  assert before.keys() == after.keys()
  assert all(torch.equal(before[name], after[name]) for name in before)
  again = checkpoints.open_checkpoint(out, EncoderConfig)
  assert checkpoints.checkpoint_hash(again) == checkpoints.checkpoint_hash(
    source
  )
  _, said = transformers.BertModel.from_pretrained(
    out, output_loading_info=True, add_pooling_layer=pooler
  )
  assert not any(
    said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
  )
  config = json.loads((out / "config.json").read_text())
  assert config.pop("jaxprune") == {"a": 1}
  assert config == json.loads((tmp_path / "in" / "config.json").read_text())


def test_minilm_there_and_back(shared, tmp_path):
  source = checkpoints.open_checkpoint(
    shared / "weights" / "minilm", EncoderConfig
  )
  _, params = checkpoints.load_params(source)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  before, after = tensors_of(source.folder), tensors_of(out)
  # An index buffer that the model counts itself.
  assert before.keys() - after.keys() == {"embeddings.position_ids"}
  assert all(torch.equal(before[name], after[name]) for name in after)
  assert checkpoints.read_pooling(out) == checkpoints.Pooling(
    kind="mean", normalise=True
  )
  assert checkpoints.read_pooling(source.folder).normalise


def test_every_tensor_has_its_place(folder):
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  assert names.file_shapes(source.config) == {
    name: tuple(t.shape) for name, t in tensors_of(folder).items()
  }


WEIGHT = "encoder.layer.1.output.dense.weight"


def test_a_missing_tensor(copy):
  place = copy(lambda t: t.pop(WEIGHT))
  with pytest.raises(ValueError, match=rf"{WEIGHT}.*missing.*\[32, 48\]"):
    checkpoints.open_checkpoint(place, EncoderConfig)


def test_an_extra_tensor(copy):
  place = copy(lambda t: t.update({"cls.bias": torch.zeros(2)}))
  with pytest.raises(ValueError, match="model.safetensors.*cls.bias.*extra"):
    checkpoints.open_checkpoint(place, EncoderConfig)


def test_half_a_pooler(copy):
  place = copy(lambda t: t.pop("pooler.dense.bias"))
  with pytest.raises(ValueError, match="pooler.dense.bias.*missing"):
    checkpoints.open_checkpoint(place, EncoderConfig)
  place = copy(lambda t: t.pop("pooler.dense.weight"))
  checkpoints.open_checkpoint(place, EncoderConfig)  # now it has none


def test_a_misshapen_tensor(copy):
  place = copy(lambda t: t.update({WEIGHT: t[WEIGHT].T.contiguous()}))
  with pytest.raises(
    ValueError, match=rf"{WEIGHT}.*expected shape \[32, 48\], found"
  ):
    checkpoints.open_checkpoint(place, EncoderConfig)


def test_a_nan(copy):
  def spoil(tensors):
    tensors[WEIGHT][3, 4] = float("nan")

  place = copy(spoil)
  source = checkpoints.open_checkpoint(place, EncoderConfig)
  with pytest.raises(ValueError, match=f"model.safetensors.*{WEIGHT}.*NaN"):
    checkpoints.read_layer(source, 1)
  checkpoints.read_layer(source, 0)


def test_index_buffers_of_older_files_are_ignored(copy):
  place = copy(
    lambda t: t.update({"embeddings.position_ids": torch.arange(40)[None]})
  )
  checkpoints.open_checkpoint(place, EncoderConfig)


def test_an_encoder_is_no_decoder_and_the_reverse(folder, shared):
  with pytest.raises(ValueError, match="model_type='bert'.*llama"):
    checkpoints.open_checkpoint(folder)
  with pytest.raises(ValueError, match="model_type='llama'.*'bert'"):
    checkpoints.open_checkpoint(
      shared / "weights" / "stories260K", EncoderConfig
    )


def test_masks_of_an_encoder(folder, tmp_path):
  config = EncoderConfig.from_hf(folder)
  masks = {"mlp": {"down": np.ones((3, 48, 32), bool)}}
  checkpoints.write_masks(tmp_path / "m", masks, {})
  got, _ = checkpoints.read_masks(tmp_path / "m", config)
  np.testing.assert_array_equal(got["mlp"]["down"], masks["mlp"]["down"])
  checkpoints.write_masks(
    tmp_path / "n", {"mlp": {"gate": np.ones((3, 32, 48), bool)}}, {}
  )
  with pytest.raises(ValueError, match="no such kernel"):
    checkpoints.read_masks(tmp_path / "n", config)


@pytest.mark.parametrize(
  "pooling, normalise", [("mean", True), ("mean", False), ("cls", True)]
)
def test_pooling_is_read_and_travels(tmp_path, pooling, normalise):
  hf_encoders.save(tmp_path / "in", pooling=pooling, normalise=normalise)
  wanted = checkpoints.Pooling(kind=pooling, normalise=normalise)
  assert checkpoints.read_pooling(tmp_path / "in") == wanted
  source = checkpoints.open_checkpoint(tmp_path / "in", EncoderConfig)
  _, params = checkpoints.load_params(source, jnp.float32)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert checkpoints.read_pooling(out) == wanted


def test_pooling_that_is_not_known(tmp_path, folder):
  with pytest.raises(ValueError, match="modules.json: no such file"):
    checkpoints.read_pooling(tmp_path)
  hf_encoders.save(tmp_path / "max", pooling="max")
  with pytest.raises(ValueError, match="config.json: pooling max_tokens"):
    checkpoints.read_pooling(tmp_path / "max")
  place = tmp_path / "dense"
  shutil.copytree(folder, place)
  modules = place / "modules.json"
  kinds = json.loads(modules.read_text())
  modules.write_text(json.dumps([*kinds, {"type": "a.models.Dense"}]))
  with pytest.raises(ValueError, match="modules.json.*Dense"):
    checkpoints.read_pooling(place)
  modules.write_text("{}")
  with pytest.raises(ValueError, match="only Transformer"):
    checkpoints.read_pooling(place)
  modules.write_text("[1]")
  with pytest.raises(ValueError, match="not a list of modules"):
    checkpoints.read_pooling(place)
  modules.write_text(json.dumps(kinds))
  shutil.rmtree(place / "1_Pooling")
  with pytest.raises(ValueError, match="no 1_Pooling/config.json"):
    checkpoints.read_pooling(place)
