"""Every broken checkpoint is refused in one line that says what and where."""

import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxprune import checkpoints

D, F, V, L, KV = 8, 12, 16, 2, 4
CONFIG = dict(
  model_type="llama",
  hidden_size=D,
  intermediate_size=F,
  num_hidden_layers=L,
  num_attention_heads=2,
  num_key_value_heads=1,
  vocab_size=V,
  max_position_embeddings=8,
  tie_word_embeddings=False,
)
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


def tensors_of(dtype=np.float32) -> dict[str, np.ndarray]:
  """A llama, by hand: no transformers, no table of ours."""
  shapes = {
    "model.embed_tokens.weight": (V, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (V, D),
  }
  for index in range(L):
    prefix = f"model.layers.{index}."
    shapes |= {
      f"{prefix}input_layernorm.weight": (D,),
      f"{prefix}post_attention_layernorm.weight": (D,),
      f"{prefix}self_attn.q_proj.weight": (D, D),
      f"{prefix}self_attn.k_proj.weight": (KV, D),
      f"{prefix}self_attn.v_proj.weight": (KV, D),
      f"{prefix}self_attn.o_proj.weight": (D, D),
      f"{prefix}mlp.gate_proj.weight": (F, D),
      f"{prefix}mlp.up_proj.weight": (F, D),
      f"{prefix}mlp.down_proj.weight": (D, F),
    }
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()
  }


def single(folder, tensors=None, **config) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
  safetensors.numpy.save_file(
    tensors_of() if tensors is None else tensors, folder / "model.safetensors"
  )
  return folder


def sharded(folder, change_map=None) -> pathlib.Path:
  """Two shards; `change_map` edits the weight_map."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(CONFIG))
  tensors, weight_map = tensors_of(), {}
  for shard in (1, 2):
    name = f"model-0000{shard}-of-00002.safetensors"
    part = {
      key: value
      for key, value in tensors.items()
      if (".layers.1." in key) == (shard == 2)
    }
    safetensors.numpy.save_file(part, folder / name)
    weight_map |= dict.fromkeys(part, name)
  if change_map is not None:
    change_map(weight_map)
  (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
  return folder


def refused(folder, *parts) -> str:
  """Open a folder, expect one line with all of `parts`, change nothing."""
  before = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
  with pytest.raises(ValueError) as caught:
    checkpoints.open_checkpoint(folder)
  message = str(caught.value)
  assert "\n" not in message
  assert str(folder) in message
  for part in parts:
    assert part in message, message
  after = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
  assert before == after
  return message


def test_the_unbroken_ones_are_accepted(tmp_path):
  one = checkpoints.open_checkpoint(single(tmp_path / "one"))
  two = checkpoints.open_checkpoint(sharded(tmp_path / "two"))
  assert checkpoints.checkpoint_hash(one) == checkpoints.checkpoint_hash(two)
  checkpoints.load_params(one)


# Folder and files


def test_missing_folder(tmp_path):
  refused(tmp_path / "nope", "no such folder", "give a local")


def test_a_file_instead_of_a_folder(tmp_path):
  refused(single(tmp_path / "m") / "config.json", "no such folder")


def test_missing_config(tmp_path):
  folder = single(tmp_path / "m")
  (folder / "config.json").unlink()
  refused(folder, "no config.json")


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff\xfe{"])
def test_broken_config(tmp_path, text):
  folder = single(tmp_path / "m")
  (folder / "config.json").write_text(text, "latin1")
  refused(folder, "config.json", "JSON")


def test_config_of_a_model_that_is_not_known(tmp_path):
  refused(single(tmp_path / "m", model_type="bloom"), "config.json", "'bloom'")


def test_no_safetensors(tmp_path):
  folder = single(tmp_path / "m")
  (folder / "model.safetensors").unlink()
  refused(folder, "no model.safetensors and no", INDEX)


@pytest.mark.parametrize(
  "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"]
)
def test_pickled_weights_are_never_opened(tmp_path, name):
  folder = single(tmp_path / "m")
  (folder / "model.safetensors").unlink()
  (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
  refused(folder, name, "can run code", "save_pretrained")
  assert not pathlib.Path("pwned").exists()


def test_two_layouts_at_once(tmp_path):
  folder = sharded(tmp_path / "m")
  single(folder)
  refused(folder, "both model.safetensors and", "remove")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated(tmp_path, keep):
  path = single(tmp_path / "m") / "model.safetensors"
  path.write_bytes(path.read_bytes()[:keep])
  refused(path.parent, "model.safetensors: not a whole safetensors file")


def raw_file(header: bytes, data: bytes = b"") -> bytes:
  return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
  "content",
  [
    raw_file(b"{"),
    raw_file(b"\xff\xff"),
    raw_file(b"[]"),
    (1 << 62).to_bytes(8, "little") + b"{}",
    raw_file(
      b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"
    ),
    raw_file(
      b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234"
    ),
    raw_file(
      b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345678"
    ),
    raw_file(b'{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    # A name twice: readers differ in which one they take.
    raw_file(
      b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
      b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      b"1234",
    ),
  ],
  ids=[
    "brace",
    "no utf8",
    "no object",
    "long header",
    "size",
    "negative",
    "trailing",
    "dtype",
    "twice",
  ],
)
def test_malformed_header(tmp_path, content):
  folder = single(tmp_path / "m")
  (folder / "model.safetensors").write_bytes(content)
  refused(folder, "model.safetensors: not a whole safetensors file", "again")


# Tensors


def test_wrong_shape(tmp_path):
  tensors = tensors_of()
  tensors[UP] = np.ascontiguousarray(tensors[UP].T)
  refused(
    single(tmp_path / "m", tensors),
    "model.safetensors",
    repr(UP),
    f"expected shape [{F}, {D}], found [{D}, {F}]",
    "config.json",
  )


def test_missing_tensor(tmp_path):
  tensors = tensors_of()
  del tensors[UP]
  refused(
    single(tmp_path / "m", tensors), f"{UP!r} missing", f"shape [{F}, {D}]"
  )


def test_extra_tensor(tmp_path):
  tensors = tensors_of()
  tensors["model.layers.2.mlp.up_proj.weight"] = tensors[UP]
  refused(
    single(tmp_path / "m", tensors),
    f"'model.layers.2.mlp.up_proj.weight' [{F}, {D}] is extra",
  )


def test_a_bias_that_the_config_denies_is_extra(tmp_path):
  tensors = tensors_of()
  name = "model.layers.0.self_attn.q_proj.bias"
  tensors[name] = np.zeros(D, np.float32)
  refused(single(tmp_path / "m", tensors), f"{name!r} [{D}] is extra")
  refused(
    single(tmp_path / "n", tensors, attention_bias=True),
    "'model.layers.1.self_attn.q_proj.bias' missing",
  )


@pytest.mark.parametrize(
  "dtype, name",
  [
    (np.float64, "F64"),
    (np.int8, "I8"),
    (np.uint8, "U8"),
    (bool, "BOOL"),
    (np.int64, "I64"),
  ],
)
def test_dtype_that_is_no_weight(tmp_path, dtype, name):
  tensors = tensors_of()
  tensors[UP] = np.zeros((F, D), dtype)
  refused(
    single(tmp_path / "m", tensors),
    repr(UP),
    f"expected dtype F32, F16, BF16, found {name}",
  )


def test_everything_wrong_is_said_at_once(tmp_path):
  tensors = tensors_of()
  del tensors["model.norm.weight"]
  tensors["extra"] = np.zeros(1, np.float32)
  tensors[UP] = np.zeros((1, 2), np.int64)
  message = refused(
    single(tmp_path / "m", tensors),
    "'model.norm.weight' missing",
    "'extra' [1] is extra",
    "found [1, 2]",
    "found I64",
  )
  assert "more" not in message
  message = refused(
    single(tmp_path / "n", {"extra": np.zeros(1, np.float32)}), "; and "
  )
  assert f"and {3 + 9 * L + 1 - 5} more" in message and len(message) < 1000


def test_config_with_more_layers_than_the_file(tmp_path):
  refused(
    single(tmp_path / "m", num_hidden_layers=3), "model.layers.2.", "missing"
  )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "name",
  [
    UP,
    "model.norm.weight",
    "model.layers.1.input_layernorm.weight",
    "lm_head.weight",
  ],
)
def test_not_finite(tmp_path, dtype, value, name):
  tensors = tensors_of(dtype)
  tensors[name].flat[-1] = value
  source = checkpoints.open_checkpoint(single(tmp_path / "m", tensors))
  match = f"model.safetensors: tensor '{name}' has NaN or infinite"
  with pytest.raises(ValueError, match=match):
    checkpoints.load_params(source)
  with pytest.raises(ValueError, match=match):
    if ".layers." in name:
      checkpoints.read_layer(source, 1)
    else:
      checkpoints.read_outer(source)
  if ".layers." in name:
    checkpoints.read_layer(source, 0)  # the others are still fine
    checkpoints.read_outer(source)


def test_a_signalling_nan_is_reported_whatever_the_dtype(tmp_path):
  tensors = tensors_of(ml_dtypes.bfloat16)
  tensors[UP].view(np.uint16)[0, 0] = 0x7F81
  source = checkpoints.open_checkpoint(single(tmp_path / "m", tensors))
  for dtype in (None, np.float32, np.float16):
    with pytest.raises(ValueError, match=f"{UP}' has NaN"):
      checkpoints.load_params(source, dtype)
  layer = jax.tree.map(
    lambda leaf: leaf.astype(np.float32), checkpoints.read_layer(source, 0)
  )
  layer["mlp_norm"]["scale"].view(np.uint32)[0] = 0x7F800001
  export = checkpoints.start_export(tmp_path / "out", source)
  with pytest.raises(ValueError, match="mlp_norm/scale.*NaN"):
    checkpoints.write_layer(export, 0, layer)


def test_too_large_for_float16_is_not_called_damaged(tmp_path):
  tensors = tensors_of()
  tensors[UP][0, 0] = 1e6
  folder = single(tmp_path / "m", tensors)
  with pytest.raises(ValueError, match=f"{UP}.*too large for float16"):
    checkpoints.load_params(folder, np.float16)
  checkpoints.load_params(folder, ml_dtypes.bfloat16)


def test_a_tied_model_with_another_head(tmp_path):
  source = checkpoints.open_checkpoint(
    single(tmp_path / "m", tie_word_embeddings=True)
  )
  for read in (checkpoints.read_outer, checkpoints.load_params):
    with pytest.raises(ValueError, match="lm_head.weight.*differs from"):
      read(source)
  tensors = tensors_of()
  tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
  refused(
    single(tmp_path / "n", tensors, tie_word_embeddings=True),
    f"expected shape [{V}, {D}], found [{V - 1}, {D}]",
  )


def test_negative_zero_in_a_tied_head_is_a_difference(tmp_path):
  """0 == -0, but a checkpoint is compared by its bits."""
  tensors = tensors_of()
  tensors["model.embed_tokens.weight"][0, 0] = 0.0
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  checkpoints.read_outer(
    checkpoints.open_checkpoint(
      single(tmp_path / "m", tensors, tie_word_embeddings=True)
    )
  )
  tensors["lm_head.weight"][0, 0] = -0.0
  with pytest.raises(ValueError, match="differs from"):
    checkpoints.read_outer(
      checkpoints.open_checkpoint(
        single(tmp_path / "n", tensors, tie_word_embeddings=True)
      )
    )


@pytest.mark.parametrize("index", [-1, L, 99])
def test_no_such_layer(tmp_path, index):
  source = checkpoints.open_checkpoint(single(tmp_path / "m"))
  with pytest.raises(ValueError, match=f"no layer {index}; give one of 0..1"):
    checkpoints.read_layer(source, index)


def test_a_file_that_changes_under_a_reader(tmp_path):
  folder = single(tmp_path / "m")
  source = checkpoints.open_checkpoint(folder)
  checkpoints.read_layer(source, 0)
  tensors = tensors_of()
  tensors["a" * 999] = np.zeros(1, np.float32)  # shifts every offset
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  with pytest.raises(ValueError, match="was changed while in use"):
    checkpoints.read_layer(source, 0)


# Index


def test_index_names_a_missing_shard(tmp_path):
  folder = sharded(tmp_path / "m")
  (folder / "model-00002-of-00002.safetensors").unlink()
  refused(folder, "model-00002-of-00002.safetensors: no such file")


def test_tensor_listed_for_a_shard_that_lacks_it(tmp_path):
  shard = "model-00001-of-00002.safetensors"
  refused(
    sharded(tmp_path / "m", lambda m: m.update({UP: shard})),
    INDEX,
    f"{UP!r} listed for {shard} but not in it",
    f"{UP!r} in model-00002-of-00002.safetensors but not listed for it",
  )


def test_tensor_that_the_index_does_not_list(tmp_path):
  refused(
    sharded(tmp_path / "m", lambda m: m.pop(UP)),
    INDEX,
    f"{UP!r} in model-00002-of-00002.safetensors but not listed",
  )


@pytest.mark.parametrize(
  "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}']
)
def test_broken_index(tmp_path, text):
  folder = sharded(tmp_path / "m")
  (folder / INDEX).write_text(text)
  refused(folder, INDEX)


# Nothing half-written
