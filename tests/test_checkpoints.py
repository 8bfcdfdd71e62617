"""Checkpoints in: bit for bit, and as stock transformers sees them."""

import json
import os
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoint_cases import CASES, D, F, L, raw_tensors, tree_bits

from jaxprune import checkpoints
from jaxprune.checkpoints import huggingface, names, rows, shards
from jaxprune.models import decoder


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
