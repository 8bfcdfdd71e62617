"""Checkpoints out: bit for bit, and as stock transformers sees them."""

import functools
import json
import os
import pathlib
import shutil

import hf_models
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import transformers
from checkpoint_cases import CASES, TOKENS_BT, D, L, hf_logits, raw_tensors

from jaxprune import checkpoints
from jaxprune.checkpoints import shards
from jaxprune.models import decoder


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
  np.testing.assert_allclose(
    logits(config, params), expected_BTV, atol=1e-5, rtol=1e-5
  )


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, gates=None):
  """Of TOKENS_BT."""
  x_BTD, _ = decoder.forward(
    config, params, jnp.asarray(TOKENS_BT), gates=gates
  )
  return decoder.unembed(config, params, x_BTD)


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
  np.testing.assert_allclose(
    hf_logits(out, TOKENS_BT),
    logits(config, params, gates),
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
_LLAMA3 = hf_models.ROPES["llama3"]


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
