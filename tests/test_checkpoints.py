"""Checkpoints in and out: bit for bit, and as stock transformers sees them."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import checkpoints, files
from jaxprune.checkpoints import huggingface, names, orbax, rows, shards
from jaxprune.models import decoder

D, F, V, L = 24, 40, 48, 3
COMMON = dict(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=F,
  num_hidden_layers=L,
  num_attention_heads=4,
  max_position_embeddings=64,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)


# Case: (transformers class stem, config, torch dtype, shard size).
# "square" has F = D = N*H, where a forgotten transpose keeps every shape.
CASES = {
  "llama_tied": (
    "Llama",
    dict(num_key_value_heads=2, tie_word_embeddings=True),
    "float32",
    "1GB",
  ),
  "llama_bias_untied_sharded": (
    "Llama",
    dict(
      num_key_value_heads=4,
      head_dim=10,
      attention_bias=True,
      mlp_bias=True,
      tie_word_embeddings=False,
    ),
    "float32",
    "9KB",
  ),
  "llama_square": (
    "Llama",
    dict(num_key_value_heads=4, intermediate_size=D, tie_word_embeddings=False),
    "float32",
    "1GB",
  ),
  "mistral_f16": (
    "Mistral",
    dict(num_key_value_heads=1, sliding_window=None),
    "float16",
    "1GB",
  ),
  "qwen2_bf16_sharded": (
    "Qwen2",
    dict(num_key_value_heads=2, tie_word_embeddings=True),
    "bfloat16",
    "9KB",
  ),
  "qwen3_bf16": (
    "Qwen3",
    dict(num_key_value_heads=2, head_dim=10, tie_word_embeddings=False),
    "bfloat16",
    "1GB",
  ),
}


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
  """Build each case once; tests must not write into the folder."""
  folders = {}

  def build(case: str) -> pathlib.Path:
    if case not in folders:
      folders[case] = tmp_path_factory.mktemp(case)
      stem, options, dtype, shard = CASES[case]
      config = getattr(transformers, f"{stem}Config")(**{**COMMON, **options})
      torch.manual_seed(len(case))
      model = getattr(transformers, f"{stem}ForCausalLM")(config)
      with torch.no_grad():
        # Biases start at 0 and scales at 1, which would hide a mix-up.
        for name, parameter in model.named_parameters():
          parameter.normal_(float("norm" in name), 0.2)
      model.to(getattr(torch, dtype)).save_pretrained(
        folders[case], max_shard_size=shard
      )
      (folders[case] / "tokenizer.json").write_text('{"é": 1}', "utf-8")
      (folders[case] / "chat_template.jinja").write_text("{{ x }}")
    return folders[case]

  return build


def raw_tensors(folder) -> dict[str, tuple[str, tuple, bytes]]:
  """Everything in the safetensors of a folder, read by the stock library."""
  result = {}
  for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
    with safetensors.safe_open(path, "numpy") as file:
      for name in file.keys():
        array = file.get_tensor(name)
        result[name] = (str(array.dtype), array.shape, array.tobytes())
  return result


def tree_bits(tree):
  return jax.tree.map(
    lambda a: (str(a.dtype), a.shape, np.asarray(a).tobytes()), tree
  )


def hf_logits(folder, tokens_BT) -> np.ndarray:
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    output_loading_info=True,
    dtype=torch.float32,
    attn_implementation="eager",
  )
  for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not info[key], (key, info[key])
  with torch.no_grad():
    return model(torch.tensor(tokens_BT)).logits.numpy()


TOKENS_BT = np.random.default_rng(0).integers(3, V, (2, 9))


# Reading


@pytest.mark.parametrize("case", CASES)
def test_every_leaf_is_the_right_tensor(hf_folder, case):
  folder = hf_folder(case)
  _, options, _, _ = CASES[case]
  source = checkpoints.open_checkpoint(folder)
  stored = {}
  for path in folder.glob("*.safetensors"):
    stored |= safetensors.numpy.load_file(path)
  used = set()

  def same(leaf, name, transpose=False):
    used.add(name)
    expected = stored[name].T if transpose else stored[name]
    assert leaf.dtype == expected.dtype
    assert leaf.flags.c_contiguous and leaf.flags.owndata
    np.testing.assert_array_equal(
      leaf.astype(np.float32), expected.astype(np.float32)
    )

  def linear(node, name):
    same(node["kernel"], f"{name}.weight", True)
    assert ("bias" in node) == (f"{name}.bias" in stored)
    if "bias" in node:
      same(node["bias"], f"{name}.bias")

  for index in range(L):
    layer, prefix = (
      checkpoints.read_layer(source, index),
      (f"model.layers.{index}"),
    )
    same(layer["attention_norm"]["scale"], f"{prefix}.input_layernorm.weight")
    same(
      layer["mlp_norm"]["scale"], f"{prefix}.post_attention_layernorm.weight"
    )
    attention, mlp = layer["attention"], layer["mlp"]
    for ours, theirs in zip(("query", "key", "value", "output"), "qkvo"):
      linear(attention[ours], f"{prefix}.self_attn.{theirs}_proj")
    for name in ("gate", "up", "down"):
      linear(mlp[name], f"{prefix}.mlp.{name}_proj")
    if case.startswith("qwen3"):
      same(
        attention["query_norm"]["scale"], f"{prefix}.self_attn.q_norm.weight"
      )
      same(attention["key_norm"]["scale"], f"{prefix}.self_attn.k_norm.weight")
    else:
      assert "query_norm" not in attention
  outer = checkpoints.read_outer(source)
  same(outer["embed"]["table"], "model.embed_tokens.weight")
  same(outer["final_norm"]["scale"], "model.norm.weight")
  assert ("head" in outer) != bool(options.get("tie_word_embeddings"))
  if "head" in outer:
    same(outer["head"]["kernel"], "lm_head.weight", True)
  assert used == set(stored)


@pytest.mark.parametrize("case", CASES)
def test_load_params_stacks_the_tree_of_the_decoder(hf_folder, case):
  source = checkpoints.open_checkpoint(hf_folder(case))
  config, params = checkpoints.load_params(source)
  layers = [checkpoints.read_layer(source, index) for index in range(L)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
  expected = checkpoints.read_outer(source) | {"layers": stacked}
  assert tree_bits(params) == tree_bits(expected)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
  abstract = jax.eval_shape(
    lambda: decoder.init(config, jax.random.key(0), jnp.float32)
  )
  chex.assert_trees_all_equal_structs(params, abstract)
  chex.assert_trees_all_equal_shapes(params, abstract)
  assert tuple(names.kernel_shapes(config)) == decoder.KERNELS
  for (group, name), shape in names.kernel_shapes(config).items():
    assert params["layers"][group][name]["kernel"].shape == shape


def test_load_params_casts_once(hf_folder):
  folder = hf_folder("llama_tied")
  _, exact = checkpoints.load_params(folder)
  for dtype in (jnp.bfloat16, "float16", np.float32):
    _, params = checkpoints.load_params(folder, dtype)
    assert tree_bits(params) == tree_bits(
      jax.tree.map(lambda a, d=dtype: a.astype(d), exact)
    )
  with pytest.raises(ValueError, match="int8.*float32"):
    checkpoints.load_params(folder, np.int8)


def test_layers_of_two_dtypes_meet_in_float32(hf_folder, tmp_path):
  folder = shutil.copytree(hf_folder("qwen3_bf16"), tmp_path / "m")
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  name = "model.layers.1.post_attention_layernorm.weight"
  tensors[name] = tensors[name].astype(np.float16)
  safetensors.numpy.save_file(tensors, path)
  source = checkpoints.open_checkpoint(folder)
  _, params = checkpoints.load_params(source)
  leaf = params["layers"]["mlp_norm"]["scale"]
  assert leaf.dtype == jnp.float32
  np.testing.assert_array_equal(leaf[1], tensors[name].astype(np.float32))
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert raw_tensors(out) == raw_tensors(folder)


def test_load_params_sharded_reads_each_slice_once(hf_folder, monkeypatch):
  folder = hf_folder("llama_bias_untied_sharded")
  _, plain = checkpoints.load_params(folder)
  axis_types = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=axis_types)
  P = jax.sharding.PartitionSpec
  specs = {
    "layers/mlp/up/kernel": P(None, "a", "b"),
    "layers/mlp/down/kernel": P(None, "b"),
    "layers/mlp/up/bias": P(None, "b"),
    "embed/table": P("a", "b"),
  }
  seen = {}

  def sharding(path, shape):
    seen[path] = shape
    spec = specs.get(path, P())
    return (
      jax.sharding.NamedSharding(mesh, spec) if "norm" not in path else (None)
    )

  reads = []
  fill = huggingface._fill
  monkeypatch.setattr(
    huggingface,
    "_fill",
    lambda out, tensor, row, name, where: (
      reads.append((name, str(where))),
      fill(out, tensor, row, name, where),
    ),
  )
  _, params = checkpoints.load_params(folder, sharding=sharding)
  assert tree_bits(params) == tree_bits(plain)
  up = params["layers"]["mlp"]["up"]["kernel"]
  assert up.sharding.spec == P(None, "a", "b")
  assert up.addressable_shards[0].data.shape == (L, D // 4, F // 2)
  assert seen["layers/mlp/up/kernel"] == (L, D, F)
  assert len(reads) == len(set(reads))
  down = [
    name for name, _ in reads if name == ("model.layers.0.mlp.down_proj.weight")
  ]
  assert len(down) == 2  # eight devices, two different halves


def test_transposed_copy_is_right_beyond_one_tile(tmp_path):
  rng = np.random.default_rng(0)
  shape = (shards._TILE + 3, 2 * shards._TILE + 5)
  w_OI = rng.normal(size=shape).astype(np.float32)
  shards.write_shard(tmp_path / "a", {"w": w_OI}, {})
  tensor = shards.read_header(tmp_path / "a")[0]["w"]
  out = np.empty(shape[::-1], np.float32)
  source = types.SimpleNamespace(config=None, tensors={"w": tensor})
  row = rows.Row("w", "w", (), True)
  huggingface._fill(out, source, row, "w", ())
  np.testing.assert_array_equal(out, w_OI.T)


def test_unaligned_tensors_are_read(hf_folder, tmp_path):
  """Any header length is legal, so tensors may start at odd offsets."""
  folder = shutil.copytree(hf_folder("llama_tied"), tmp_path / "m")
  path = folder / "model.safetensors"
  data = path.read_bytes()
  length = int.from_bytes(data[:8], "little")
  path.write_bytes(
    (length + 3).to_bytes(8, "little")
    + data[8 : 8 + length]
    + b"   "
    + data[8 + length :]
  )
  _, params = checkpoints.load_params(folder)
  _, expected = checkpoints.load_params(hf_folder("llama_tied"))
  assert tree_bits(params) == tree_bits(expected)


def test_snapshot_of_the_hub_cache(hf_folder, tmp_path):
  """snapshots/REVISION/file -> ../../blobs/HASH, as the hub client lays it."""
  blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
  blobs.mkdir()
  snapshot.mkdir(parents=True)
  for i, path in enumerate(sorted(hf_folder("qwen2_bf16_sharded").iterdir())):
    shutil.copy(path, blobs / f"{i:064x}")
    (snapshot / path.name).symlink_to(f"../../blobs/{i:064x}")
  source = checkpoints.open_checkpoint(snapshot)
  plain = checkpoints.open_checkpoint(hf_folder("qwen2_bf16_sharded"))
  assert checkpoints.checkpoint_hash(source) == checkpoints.checkpoint_hash(
    plain
  )
  _, params = checkpoints.load_params(source)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert (out / "tokenizer.json").read_bytes() == (
    snapshot / "tokenizer.json"
  ).read_bytes()
  assert not (out / "tokenizer.json").is_symlink()


def test_old_buffers_and_a_copied_head_are_ignored(hf_folder, tmp_path):
  folder = shutil.copytree(hf_folder("llama_tied"), tmp_path / "m")
  path = folder / "model.safetensors"
  before = checkpoints.checkpoint_hash(checkpoints.open_checkpoint(folder))
  tensors = safetensors.numpy.load_file(path)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  safetensors.numpy.save_file(tensors, path)
  after = checkpoints.open_checkpoint(folder)
  assert checkpoints.checkpoint_hash(after) == before
  assert "head" not in checkpoints.read_outer(after)
  _, params = checkpoints.load_params(after)
  out = checkpoints.save_params(tmp_path / "out", params, after)
  assert "lm_head.weight" not in raw_tensors(out)


def test_real_checkpoints(shared, tmp_path):
  for folder in (
    shared / "weights" / "stories260K",
    shared / "golden" / "qwen2_random" / "dense",
  ):
    source = checkpoints.open_checkpoint(folder)
    _, params = checkpoints.load_params(source)
    out = checkpoints.save_params(tmp_path / folder.name, params, source)
    assert raw_tensors(out) == raw_tensors(folder)
    for path in folder.glob("*.json"):
      if path.name != "config.json":
        assert (out / path.name).read_bytes() == path.read_bytes()


# Hash


def test_hash_sees_weights_and_not_files(hf_folder, tmp_path):
  folder = hf_folder("qwen2_bf16_sharded")
  one = shutil.copytree(
    folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*")
  )
  tensors = {}
  for path in folder.glob("*.safetensors"):
    tensors |= safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(tensors, one / "model.safetensors")
  source = checkpoints.open_checkpoint(one)
  value = checkpoints.checkpoint_hash(source)
  assert value == checkpoints.checkpoint_hash(
    checkpoints.open_checkpoint(folder)
  )
  name = "model.layers.2.mlp.up_proj.weight"
  with open(source.tensors[name].path, "r+b") as file:
    file.seek(source.tensors[name].end - 1)
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 128]))  # the sign of the last weight
  assert value != checkpoints.checkpoint_hash(checkpoints.open_checkpoint(one))


def test_hash_is_what_its_docstring_says(hf_folder):
  import hashlib

  folder = hf_folder("llama_tied")
  text = b""
  for name, (_, shape, raw) in sorted(raw_tensors(folder).items()):
    text += json.dumps([name, "F32", list(shape)]).encode() + b"\n" + raw
  assert hashlib.sha256(text).hexdigest() == checkpoints.checkpoint_hash(
    checkpoints.open_checkpoint(folder)
  )


# Export


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bit_exact_and_loads_in_transformers(
  hf_folder, tmp_path, case
):
  folder = hf_folder(case)
  source = checkpoints.open_checkpoint(folder)
  config, params = checkpoints.load_params(source)
  out = checkpoints.save_params(
    tmp_path / "out", params, source, provenance={"method": "none"}
  )
  assert raw_tensors(out) == raw_tensors(folder)
  again = checkpoints.open_checkpoint(out)
  assert again.config == config
  assert again.hf["jaxprune"] == {"method": "none"}
  assert (out / "chat_template.jinja").read_text() == "{{ x }}"
  assert not list(tmp_path.glob("*.partial")) and not list(out.glob(".*"))
  assert sorted(out.glob("model*.safetensors*")) == [out / "model.safetensors"]
  expected_BTV = hf_logits(folder, TOKENS_BT)
  np.testing.assert_array_equal(hf_logits(out, TOKENS_BT), expected_BTV)
  _, params = checkpoints.load_params(out, np.float32)
  x_BTD, _ = decoder.forward(config, params, jnp.asarray(TOKENS_BT))
  np.testing.assert_allclose(
    decoder.unembed(config, params, x_BTD), expected_BTV, atol=1e-5, rtol=1e-5
  )


def export_all(folder, source, **options):
  """Export a model as it is."""
  export = checkpoints.start_export(folder, source, **options)
  for index in range(source.config.num_layers):
    layer = checkpoints.read_layer(source, index)
    checkpoints.write_layer(export, index, layer)
  return checkpoints.finish_export(export)


@pytest.mark.parametrize("case", ["llama_tied", "llama_bias_untied_sharded"])
@pytest.mark.parametrize("shard_size", [1, 9_000, 20_000, 10**9])
def test_shards_are_those_of_the_chosen_size(
  hf_folder, tmp_path, case, shard_size
):
  """Full up to the size, all of the model, indexed, hashed, stock-readable."""
  source = checkpoints.open_checkpoint(hf_folder(case))
  out = export_all(tmp_path / "out", source, shard_size=shard_size)
  assert raw_tensors(out) == raw_tensors(source.folder)
  recorded = json.loads((out / "jaxprune_export.json").read_text())["shards"]
  found = sorted(out.glob("*.safetensors"))
  assert sorted(recorded) == [path.name for path in found]
  sizes, listed = [], {}
  for path in found:
    assert recorded[path.name] == {
      "size": path.stat().st_size,
      "sha256": checkpoints.sha256_file(path),
    }
    with safetensors.safe_open(path, "numpy") as file:
      assert file.metadata() == {"format": "pt"}
      listed |= dict.fromkeys(file.keys(), path.name)
    inside = (
      raw_tensors(source.folder).keys()
      & safetensors.numpy.load_file(path).keys()
    )
    sizes.append([len(raw_tensors(source.folder)[n][2]) for n in inside])
  assert all(sum(size) <= shard_size or len(size) == 1 for size in sizes)
  total = sum(map(sum, sizes))
  assert len(sizes) <= 2 * total / shard_size + 1  # none is nearly empty
  if len(found) == 1:
    assert found[0].name == "model.safetensors"
    assert not (out / "model.safetensors.index.json").exists()
  else:
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {
      "metadata": {"total_size": total},
      "weight_map": dict(sorted(listed.items())),
    }
  assert not list(out.glob("*.unfinished"))


def test_wrong_shard_sizes_and_full_disks_are_said_at_once(
  hf_folder, tmp_path, monkeypatch
):
  source = checkpoints.open_checkpoint(hf_folder("llama_tied"))
  with pytest.raises(ValueError, match="shard size is 0 bytes"):
    checkpoints.start_export(tmp_path / "out", source, shard_size=0)

  def full(descriptor, begin, size):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(OSError, match=r"no room for \d+ bytes.*No space"):
    checkpoints.start_export(tmp_path / "out", source)
  assert not list(tmp_path.glob("out.partial/new/*.unfinished"))


def test_what_the_disk_changed_is_found_before_the_folder_has_its_name(
  hf_folder, tmp_path
):
  """One flipped bit: the layer is written again by the next run."""
  source = checkpoints.open_checkpoint(hf_folder("llama_tied"))
  export = checkpoints.start_export(tmp_path / "out", source)
  for index in range(L):
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  path = export.work / "model.safetensors.unfinished"
  begin, _, _ = export.shards[0].tensors["model.layers.1.mlp.up_proj.weight"]
  raw = bytearray(path.read_bytes())
  raw[begin + 5] ^= 1
  path.write_bytes(raw)
  with pytest.raises(ValueError, match="layers.1.mlp.up_proj.*read back"):
    checkpoints.finish_export(export)
  assert not (tmp_path / "out").exists()
  export = checkpoints.start_export(tmp_path / "out", source)
  assert checkpoints.finished_layers(export) == (0, 2)
  checkpoints.write_layer(export, 1, checkpoints.read_layer(source, 1))
  out = checkpoints.finish_export(export)
  assert raw_tensors(out) == raw_tensors(source.folder)


@pytest.mark.parametrize("shape", [(7, 5), (6, 6), (1, 9), (4,), ()])
@pytest.mark.parametrize(
  "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.uint8]
)
def test_any_memory_layout_is_written_as_its_values(tmp_path, shape, dtype):
  rng = np.random.default_rng(0)
  big = rng.integers(0, 200, [2 * n for n in shape]).astype(dtype)
  layouts = {
    "plain": np.ascontiguousarray(big[tuple(slice(n) for n in shape)]),
    "strided": big[(slice(None, None, 2),) * len(shape)],
    "reversed": big[tuple(slice(n - 1, None, -1) for n in shape)],
    "transposed": big[tuple(slice(n) for n in shape)].T,
  }
  path = tmp_path / "a.safetensors"
  sha256 = shards.write_shard(path, layouts, {"a": "b"})
  assert sha256 == checkpoints.sha256_file(path)
  read = safetensors.numpy.load_file(path)
  tensors, metadata = shards.read_header(path)
  assert metadata == {"a": "b"}
  for name, array in layouts.items():
    np.testing.assert_array_equal(read[name], array)
    np.testing.assert_array_equal(shards.view(tensors[name]), array)
    assert read[name].dtype == array.dtype
    assert tensors[name].begin % array.itemsize == 0


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("case", ["llama_tied", "llama_square"])
def test_a_layer_of_any_memory_layout_is_written_right(
  hf_folder, tmp_path, case, fortran
):
  source = checkpoints.open_checkpoint(hf_folder(case))
  export = checkpoints.start_export(tmp_path / "out", source)
  layer = checkpoints.read_layer(source, 1)
  if fortran:
    layer = jax.tree.map(np.asfortranarray, layer)
  checkpoints.write_layer(export, 1, layer)
  [file] = export.work.glob("*.unfinished")
  file.rename(tmp_path / "written.safetensors")
  stored, original = raw_tensors(tmp_path), raw_tensors(source.folder)
  inside = [name for name in original if ".layers.1." in name]
  assert [stored[name] for name in inside] == [original[n] for n in inside]


def test_jax_params_in_float32_go_back_to_the_dtype_of_the_file(
  hf_folder, tmp_path
):
  source = checkpoints.open_checkpoint(hf_folder("qwen3_bf16"))
  _, params = checkpoints.load_params(source, np.float32)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert raw_tensors(out) == raw_tensors(source.folder)


def test_dropped_sublayers_are_an_identity_in_transformers(hf_folder, tmp_path):
  case = "llama_bias_untied_sharded"
  source = checkpoints.open_checkpoint(hf_folder(case))
  config, params = checkpoints.load_params(source)
  out = checkpoints.save_params(
    tmp_path / "out", params, source, drop_attention=[2, 0], drop_mlp=(1,)
  )
  hf = json.loads((out / "config.json").read_text())
  assert hf["drop_attn_list"] == [0, 2] and hf["drop_mlp_list"] == [1]
  stored, original = raw_tensors(out), raw_tensors(source.folder)
  changed = {name for name in stored if stored[name] != original[name]}
  assert changed == {
    f"model.layers.{index}.{name}.{kind}"
    for index, name in (
      (0, "self_attn.o_proj"),
      (2, "self_attn.o_proj"),
      (1, "mlp.down_proj"),
    )
    for kind in ("weight", "bias")
  }
  assert not any(any(stored[name][2]) for name in changed)
  gates = decoder.make_gates(config, attention=(0, 2), mlp=(1,))
  x_BTD, _ = decoder.forward(
    config, params, jnp.asarray(TOKENS_BT), gates=gates
  )
  np.testing.assert_allclose(
    hf_logits(out, TOKENS_BT),
    decoder.unembed(config, params, x_BTD),
    atol=1e-5,
    rtol=1e-5,
  )
  again = checkpoints.open_checkpoint(out)
  assert checkpoints.read_drops(again) == {"attention": (0, 2), "mlp": (1,)}
  # A second drop adds to the first: layer 0 is still zero in the file.
  _, params = checkpoints.load_params(again)
  twice = checkpoints.save_params(
    tmp_path / "twice", params, again, drop_attention=[1]
  )
  assert checkpoints.read_drops(checkpoints.open_checkpoint(twice)) == {
    "attention": (0, 1, 2),
    "mlp": (1,),
  }


def patch_json(path, **values):
  content = json.loads(path.read_text())
  for key, value in values.items():
    content[key] = value
    if value is KeyError:
      del content[key]
  path.write_text(json.dumps(content))


def copy_of(folder, target):
  return pathlib.Path(shutil.copytree(folder, target))


def exported_config(source, tmp_path):
  _, params = checkpoints.load_params(source)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert checkpoints.open_checkpoint(out).config == source.config
  return json.loads((out / "config.json").read_text())


def test_config_gets_the_rope_keys_of_transformers_4(hf_folder, tmp_path):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  yarn = dict(
    rope_type="yarn",
    factor=4.0,
    rope_theta=5e5,
    original_max_position_embeddings=16,
  )
  patch_json(
    folder / "config.json",
    rope_parameters=yarn,
    auto_map=None,
    unsloth_version="kept",
  )
  hf = exported_config(checkpoints.open_checkpoint(folder), tmp_path)
  assert hf["rope_parameters"] == yarn and hf["rope_theta"] == 5e5
  assert hf["rope_scaling"] == {
    key: yarn[key] for key in yarn if key != "rope_theta"
  }
  assert "auto_map" not in hf and hf["unsloth_version"] == "kept"
  # And stock transformers 5 still reads what it wrote itself.
  read = transformers.AutoConfig.from_pretrained(tmp_path / "out")
  assert read.rope_parameters["rope_theta"] == 5e5
  assert read.rope_parameters["factor"] == 4.0


def test_config_of_longrope_has_the_original_length_on_top(hf_folder, tmp_path):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  half = [1.0] * (D // 4 // 2)
  patch_json(
    folder / "config.json",
    rope_parameters=dict(
      rope_type="longrope",
      short_factor=half,
      long_factor=half,
      rope_theta=1e4,
      original_max_position_embeddings=16,
    ),
  )
  hf = exported_config(checkpoints.open_checkpoint(folder), tmp_path)
  assert hf["original_max_position_embeddings"] == 16


def test_config_of_transformers_4_stays_as_it_is(hf_folder, tmp_path):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  patch_json(
    folder / "config.json",
    rope_parameters=KeyError,
    rope_theta=3e4,
    rope_scaling=dict(type="linear", factor=2.0),
  )
  source = checkpoints.open_checkpoint(folder)
  hf = exported_config(source, tmp_path)
  assert hf == {**source.hf, "jaxprune": {}}
  assert "drop_attn_list" not in hf


_LINEAR = dict(type="linear", factor=2.0)
_LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)


@pytest.mark.parametrize(
  "fields, theta, scaling",
  [
    (dict(rope_theta=5e5, rope_parameters=dict(rope_theta=1e4)), 1e4, None),
    (
      dict(rope_theta=5e5, rope_parameters=dict(rope_type="default")),
      5e5,
      None,
    ),
    (
      dict(
        rope_theta=1e4,
        rope_scaling=dict(rope_type="default", rope_theta=7e4),
        rope_parameters=KeyError,
      ),
      7e4,
      None,
    ),
    (
      dict(
        rope_theta=3e4,
        rope_scaling=_LINEAR,
        rope_parameters=dict(rope_type="default", rope_theta=5e5),
      ),
      3e4,
      dict(rope_type="linear", factor=2.0),
    ),
    (
      dict(
        rope_theta=3e4,
        rope_scaling=_LLAMA3,
        rope_parameters=KeyError,
        original_max_position_embeddings=8,
      ),
      3e4,
      dict(_LLAMA3, original_max_position_embeddings=8),
    ),
  ],
)
def test_contradictory_rope_is_written_as_it_was_used(
  hf_folder, tmp_path, fields, theta, scaling
):
  """transformers 4 reads rope_theta and rope_scaling, and nothing else."""
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  patch_json(folder / "config.json", rope_parameters=KeyError)
  content = json.loads((folder / "config.json").read_text())
  content.update({k: v for k, v in fields.items() if v is not KeyError})
  (folder / "config.json").write_text(json.dumps(content))
  source = checkpoints.open_checkpoint(folder)
  hf = exported_config(source, tmp_path)
  assert hf["rope_theta"] == theta and hf["rope_scaling"] == scaling
  # And transformers 5 reads from the copy what it reads from the source.
  before, after = (
    transformers.AutoConfig.from_pretrained(path).rope_parameters
    for path in (folder, tmp_path / "out")
  )
  before.pop("type", None)
  if scaling is not None and "original_max_position_embeddings" in scaling:
    key = "original_max_position_embeddings"
    # Stock moves the outer length inside when the model is built.
    assert hf[key] == after[key] == content[key]
    before[key] = content[key]
  assert before == after


def test_keys_without_effect_are_logged(hf_folder, tmp_path, caplog):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  patch_json(folder / "config.json", is_llama_config=True, neftune_alpha=5)
  with caplog.at_level("INFO", logger="jaxprune"):
    config = checkpoints.open_checkpoint(folder).config
  assert config.ignored == ("is_llama_config", "neftune_alpha")
  (line,) = (record.getMessage() for record in caplog.records)
  assert line == (
    f"{folder / 'config.json'}: without effect, as in stock transformers:"
    " is_llama_config, neftune_alpha"
  )


@pytest.mark.parametrize(
  "value, expected",
  [
    ([True, False, True], (0, 2)),
    ([2, 0, 2], (0, 2)),
    ([], ()),
    (None, ()),
    ([False, False, False], ()),
  ],
)
def test_drop_lists_of_ints_and_of_bools(hf_folder, tmp_path, value, expected):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  patch_json(folder / "config.json", drop_attn_list=value)
  assert checkpoints.read_drops(checkpoints.open_checkpoint(folder)) == {
    "attention": expected,
    "mlp": (),
  }


@pytest.mark.parametrize("value", [[3], [True, False], [True, 1, 0], "0", [-1]])
def test_drop_lists_that_are_neither(hf_folder, tmp_path, value):
  folder = copy_of(hf_folder("llama_tied"), tmp_path / "m")
  patch_json(folder / "config.json", drop_mlp_list=value)
  with pytest.raises(ValueError, match="drop_mlp_list"):
    checkpoints.read_drops(checkpoints.open_checkpoint(folder))


# Streamed export


def test_streamed_export_resumes(hf_folder, tmp_path):
  source = checkpoints.open_checkpoint(hf_folder("qwen2_bf16_sharded"))
  options = dict(provenance={"method": "wanda", "sparsity": 0.5})
  export = checkpoints.start_export(tmp_path / "out", source, **options)
  for index in (2, 0):
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match=r"layers \[1\] are not finished"):
    checkpoints.finish_export(export)
  (export.work / ".model-00002-of-00004.safetensors.77.tmp").write_bytes(b"x")
  (export.work / "log.jsonl").write_bytes(b"mine")

  export = checkpoints.start_export(tmp_path / "out", source, **options)
  assert checkpoints.finished_layers(export) == (0, 2)
  checkpoints.write_layer(export, 1, checkpoints.read_layer(source, 1))
  out = checkpoints.finish_export(export)
  assert raw_tensors(out) == raw_tensors(source.folder)
  assert (out / "log.jsonl").read_bytes() == b"mine"
  assert not list(out.glob("*.tmp")) and not export.work.exists()


@pytest.mark.parametrize("damage", ["cut", "header", "gone", "unrecorded"])
def test_a_layer_that_is_not_whole_is_not_finished(hf_folder, tmp_path, damage):
  """A file in which something else lies takes the layers in it along."""
  source = checkpoints.open_checkpoint(hf_folder("llama_tied"))
  start = lambda: checkpoints.start_export(
    tmp_path / "out", source, shard_size=14_000
  )
  export = start()
  for index in range(L):
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  assert checkpoints.finished_layers(export) == (0, 1, 2)
  name = "model.layers.1.mlp.up_proj.weight"
  [shard] = [shard for shard in export.shards if name in shard.tensors]
  lost = {
    index
    for index in range(L)
    if any(f".layers.{index}." in tensor for tensor in shard.tensors)
  }
  path = export.work / f"{shard.name}.unfinished"
  if damage == "cut":
    path.write_bytes(path.read_bytes()[:-1])
  elif damage == "header":
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
  elif damage == "gone":
    path.unlink()
  else:
    lost = {1}
    progress = json.loads((export.work / "jaxprune_export.json").read_text())
    del progress["layers"]["1"]
    (export.work / "jaxprune_export.json").write_text(json.dumps(progress))
  kept = tuple(sorted({0, 1, 2} - lost))
  assert len(kept) > 0 and checkpoints.finished_layers(export) == kept
  export = start()
  assert checkpoints.finished_layers(export) == kept
  for index in lost:
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  out = checkpoints.finish_export(export)
  assert raw_tensors(out) == raw_tensors(source.folder)


_KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_platforms", "cpu")
from jaxprune import checkpoints
from jaxprune import files
source = checkpoints.open_checkpoint(sys.argv[1])
export = checkpoints.start_export(sys.argv[2], source, provenance={"a": 1})
replace, left = os.replace, int(sys.argv[3])
def killed(old, new):
  global left
  left -= os.path.basename(new) == sys.argv[4]
  if left == 0:
    os.kill(os.getpid(), signal.SIGKILL)
  replace(old, new)
files.os.replace = killed
for index in range(source.config.num_layers):
  layer = checkpoints.read_layer(source, index)
  checkpoints.write_layer(export, index, layer)
checkpoints.finish_export(export)
"""


@pytest.mark.parametrize(
  "count, kill_at, finished",
  [
    # The record is written before a layer and after it.
    (4, "jaxprune_export.json", (0,)),
    (1, "model.safetensors", (0, 1, 2)),
    (1, "config.json", (0, 1, 2)),
  ],
)
def test_resumes_after_kill_9(hf_folder, tmp_path, count, kill_at, finished):
  folder, out = hf_folder("llama_tied"), tmp_path / "out"
  root = pathlib.Path(checkpoints.__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(_KILLED), folder, out]
    + [str(count), kill_at],
    env={**os.environ, "PYTHONPATH": str(root)},
    capture_output=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert not out.exists()
  assert list(tmp_path.glob("out.partial/*"))  # died while writing
  source = checkpoints.open_checkpoint(folder)
  export = checkpoints.start_export(out, source, provenance={"a": 1})
  assert checkpoints.finished_layers(export) == finished
  for index in set(range(L)) - set(finished):
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  checkpoints.finish_export(export)
  assert raw_tensors(out) == raw_tensors(folder)
  assert not list(out.glob(".*"))


def test_work_of_another_job_is_not_taken_up(hf_folder, tmp_path):
  source = checkpoints.open_checkpoint(hf_folder("llama_tied"))
  other = checkpoints.open_checkpoint(hf_folder("llama_square"))

  def start(source, **options):
    return checkpoints.start_export(tmp_path / "out", source, **options)

  start(source, provenance={"sparsity": 0.5})
  start(source, provenance={"sparsity": 0.5})
  for source_, options, what in (
    (source, dict(provenance={"sparsity": 0.6}), "sparsity was 0.5, now 0.6"),
    (source, dict(provenance={"sparsity": 0.5}, drop_mlp=[1]), "drop_mlp"),
    (other, dict(provenance={"sparsity": 0.5}), "source/config/"),
  ):
    with pytest.raises(ValueError, match=f"another job.*{what}"):
      start(source_, **options)
  shutil.rmtree(tmp_path / "out.partial")
  (tmp_path / "out.partial").mkdir()
  (tmp_path / "out.partial" / "thesis.tex").write_text("mine")
  with pytest.raises(ValueError, match="not the work of a run"):
    start(source)
  assert (tmp_path / "out.partial" / "thesis.tex").exists()


def test_a_second_save_never_reuses_the_layers_of_a_killed_one(
  hf_folder, tmp_path
):
  source = checkpoints.open_checkpoint(hf_folder("llama_tied"))
  _, params = checkpoints.load_params(source)
  export = checkpoints.start_export(tmp_path / "out", source)
  zeros = jax.tree.map(np.zeros_like, checkpoints.read_layer(source, 0))
  checkpoints.write_layer(export, 0, zeros)
  out = checkpoints.save_params(tmp_path / "out", params, source)
  assert raw_tensors(out) == raw_tensors(source.folder)


def test_output_folder_rules(hf_folder, tmp_path):
  source = checkpoints.open_checkpoint(
    copy_of(hf_folder("llama_tied"), tmp_path / "deep" / "m")
  )
  _, params = checkpoints.load_params(source)
  out = tmp_path / "out"
  out.mkdir()
  checkpoints.save_params(out, params, source)  # empty is fine
  before = raw_tensors(out)
  with pytest.raises(ValueError, match="not empty"):
    checkpoints.save_params(out, params, source)
  doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
  checkpoints.save_params(out, doubled, source, overwrite=True)
  assert raw_tensors(out) != before
  for folder in (source.folder, source.folder.parent):
    with pytest.raises(ValueError, match="holds the source"):
      checkpoints.save_params(folder, params, source, overwrite=True)
  (tmp_path / "home").mkdir()
  (tmp_path / "home" / "thesis.tex").write_text("mine")
  with pytest.raises(ValueError, match="not a model folder"):
    checkpoints.save_params(tmp_path / "home", params, source, overwrite=True)
  with pytest.raises(ValueError, match="is a file"):
    checkpoints.save_params(
      tmp_path / "home" / "thesis.tex", params, source, overwrite=True
    )
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "deep",
    "home",
    "out",
  ]


# Files, hub, orbax


def test_atomic_file_keeps_the_old_content_on_failure(tmp_path):
  path = tmp_path / "a.txt"
  files.atomic_write_text(path, "old é")
  with pytest.raises(RuntimeError), files.atomic_file(path) as file:
    file.write(b"new")
    raise RuntimeError
  assert path.read_text("utf-8") == "old é"
  assert os.listdir(tmp_path) == ["a.txt"]
  with pytest.raises(ValueError):
    files.atomic_write_json(path, {"a": float("nan")})
  assert path.read_text("utf-8") == "old é"
  files.atomic_write_bytes(path, b"new")
  assert path.read_bytes() == b"new"
  assert files.sha256_file(path) == (
    "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
  )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@given(data=st.data())
def test_all_finite_is_isfinite(dtype, data):
  dtype = np.dtype(dtype)
  bits = data.draw(
    st.lists(
      st.integers(0, 2 ** (8 * dtype.itemsize) - 1), min_size=1, max_size=9
    )
  )
  array = np.array(bits, f"u{dtype.itemsize}").view(dtype)
  with np.errstate(invalid="ignore"):  # casting a signalling NaN
    expected = np.isfinite(array.astype(np.float64)).all()
  assert shards.all_finite(array) == bool(expected)


@pytest.mark.parametrize("at", [0, shards._SCAN - 1, shards._SCAN, -1])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_all_finite_looks_everywhere(at, value):
  array = np.zeros(2 * shards._SCAN + 5, np.float16)
  assert shards.all_finite(array)
  array[at] = value
  assert not shards.all_finite(array)


def test_resolve_model(hf_folder, tmp_path, monkeypatch):
  import huggingface_hub

  calls = []

  def download(name, *, allow_patterns):
    calls.append((name, allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  folder = hf_folder("llama_tied")
  assert checkpoints.resolve_model(folder) == folder
  assert not calls
  assert checkpoints.resolve_model("org/name-1.5B") == tmp_path
  ((name, patterns),) = calls
  assert name == "org/name-1.5B"
  assert not any(
    pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns
  )
  for wrong in ("nope", "./a/b", "/a/b", "../a", "a/b/c", "a\\b", "", "a/"):
    with pytest.raises(ValueError, match="no such folder"):
      checkpoints.resolve_model(wrong)
  assert len(calls) == 1

  def offline(name, *, allow_patterns):
    raise OSError("no route\nto host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(
    ValueError, match="'org/name': no such folder.*no route to host"
  ):
    checkpoints.resolve_model("org/name")


def test_resolve_model_without_a_network():
  with pytest.raises(ValueError, match="not to be had from the hub") as caught:
    checkpoints.resolve_model("no-such-org/no-such-model")
  assert "\n" not in str(caught.value)


def test_orbax_round_trip(tmp_path):
  mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
  tree = {
    "layers": {
      "w": jax.device_put(
        jnp.arange(32, dtype=jnp.bfloat16).reshape(8, 4), rows
      )
    },
    "mask": np.array([True, False]),
    "list": [jnp.float32(2.5), None, 3],
  }
  orbax.save_tree(tmp_path / "t", tree, {"method": "wanda", "sparsity": 0.5})
  plain, metadata = orbax.load_tree(tmp_path / "t")
  assert metadata == {"method": "wanda", "sparsity": 0.5}
  chex.assert_trees_all_equal(plain, tree)
  assert plain["layers"]["w"].dtype == jnp.bfloat16
  assert plain["mask"].dtype == bool and plain["list"][2] == 3
  assert len(plain["layers"]["w"].sharding.device_set) == 1
  like, _ = orbax.load_tree(tmp_path / "t", tree)
  chex.assert_trees_all_equal(like, tree)
  assert like["layers"]["w"].sharding == rows
  with pytest.raises(ValueError, match="exists"):
    orbax.save_tree(tmp_path / "t", tree, {})


def test_orbax_trees_larger_than_what_is_in_work(tmp_path, monkeypatch):
  """Leaves above the limit of bytes in flight, in many chunks."""
  monkeypatch.setattr(orbax, "_IN_WORK", 1 << 10)
  monkeypatch.setattr(orbax, "_CHUNK", 1 << 8)
  rng = np.random.default_rng(0)
  tree = {
    "a": jnp.asarray(rng.random((3, 40, 30)), jnp.bfloat16),
    "b": {"c": jnp.asarray(rng.random((17, 5)), jnp.float32), "d": jnp.ones(3)},
  }
  orbax.save_tree(tmp_path / "t", tree, {})
  found, _ = orbax.load_tree(tmp_path / "t", tree)
  assert tree_bits(found) == tree_bits(tree)
  part = {"b": {"c": tree["b"]["c"]}}
  found, _ = orbax.load_tree(tmp_path / "t", part, partial=True)
  assert tree_bits(found) == tree_bits(part)


def test_orbax_refuses_another_tree(tmp_path):
  tree = {"a": jnp.zeros((4, 2)), "b": {"c": jnp.ones(3)}}
  orbax.save_tree(tmp_path / "t", tree, {})
  for like, what in (
    ({"a": tree["a"]}, r"leaves \['b/c'\]"),
    ({**tree, "d": tree["a"]}, r"leaves \['d'\]"),
    ({**tree, "a": jnp.zeros((2, 2))}, r"'a' was saved with shape \(4, 2\)"),
  ):
    with pytest.raises(ValueError, match=what):
      orbax.load_tree(tmp_path / "t", like)
  with pytest.raises(ValueError, match="no such folder"):
    orbax.load_tree(tmp_path / "nope")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="not a saved tree"):
    orbax.load_tree(tmp_path / "empty")
