"""Exports that cannot be written leave nothing."""

import os

import jax
import numpy as np
import pytest

from jaxprune import checkpoints
from tests.test_bad_checkpoints import D, L, V, single, tensors_of


def spoil(params, kind):
  layers = dict(params["layers"])
  if kind == "nan in the last layer":
    scale = np.array(layers["mlp_norm"]["scale"])
    scale[-1, 0] = np.nan
    layers["mlp_norm"] = {"scale": scale}
  elif kind == "missing leaf":
    del layers["mlp_norm"]
  elif kind == "extra leaf":
    layers["gate"] = {"scale": np.zeros((L, D), np.float32)}
  elif kind == "transposed":
    up_LIO = layers["mlp"]["up"]["kernel"]
    layers["mlp"] = {
      **layers["mlp"],
      "up": {"kernel": np.swapaxes(up_LIO, 1, 2)},
    }
  elif kind == "integers":
    layers["mlp_norm"] = {"scale": np.ones((L, D), np.int32)}
  elif kind == "a layer less":
    layers = jax.tree.map(lambda leaf: leaf[1:], layers)
  elif kind == "bad head":
    return {**params, "head": {"kernel": np.full((D, V), np.inf, np.float32)}}
  return {**params, "layers": layers}


@pytest.mark.parametrize(
  "kind, message",
  [
    ("nan in the last layer", "mlp_norm/scale.*layers.1.*NaN or infinite"),
    ("missing leaf", "mlp_norm/scale.*missing or extra"),
    ("extra leaf", "gate/scale.*missing or extra"),
    ("transposed", r"mlp/up/kernel.*expected floats \[8, 12\].*\[12, 8\]"),
    ("integers", "mlp_norm/scale.*int32"),
    ("a layer less", "expected 2 layers"),
    ("bad head", "head/kernel.*NaN or infinite"),
  ],
)
def test_a_failed_export_leaves_nothing(tmp_path, kind, message):
  source = checkpoints.open_checkpoint(single(tmp_path / "m"))
  _, params = checkpoints.load_params(source)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(ValueError, match=message) as caught:
    checkpoints.save_params(tmp_path / "out", spoil(params, kind), source)
  assert "\n" not in str(caught.value)
  assert sorted(tmp_path.iterdir()) == before


def test_too_large_for_the_dtype_of_the_file_is_not_written(tmp_path):
  source = checkpoints.open_checkpoint(
    single(tmp_path / "m", tensors_of(np.float16))
  )
  export = checkpoints.start_export(tmp_path / "out", source)
  layer = checkpoints.read_layer(source, 0)
  layer["mlp_norm"] = {"scale": np.full(D, 1e6, np.float32)}
  with pytest.raises(ValueError, match="mlp_norm/scale.*as float16"):
    checkpoints.write_layer(export, 0, layer)
  assert checkpoints.finished_layers(export) == ()
  with pytest.raises(ValueError, match="no layer 2"):
    checkpoints.write_layer(export, 2, layer)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(drop_attention=[L]), r"drop_attention=\[2\].*layers 0..1"),
    (dict(drop_mlp=[-1]), r"drop_mlp=\[-1\].*layers 0..1"),
    (dict(provenance={"a": float("inf")}), "provenance.*JSON"),
    (dict(provenance={"a": object()}), "provenance.*JSON"),
  ],
)
def test_bad_arguments_of_an_export(tmp_path, options, message):
  source = checkpoints.open_checkpoint(single(tmp_path / "m"))
  with pytest.raises(ValueError, match=message):
    checkpoints.start_export(tmp_path / "out", source, **options)
  assert os.listdir(tmp_path) == ["m"]


def test_a_tokenizer_that_leads_out_is_not_copied(tmp_path):
  """Or a folder from elsewhere could publish any file of this machine."""
  folder = single(tmp_path / "m")
  (tmp_path / "secret").write_text("secret")
  (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
  source = checkpoints.open_checkpoint(folder)
  with pytest.raises(ValueError, match="tokenizer.json: leads out"):
    checkpoints.start_export(tmp_path / "out", source)  # before any work
  assert sorted(os.listdir(tmp_path)) == ["m", "secret"]
