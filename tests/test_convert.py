"""Hugging Face folder to Orbax and back: bit for bit, on any mesh, in parts."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from orbax.checkpoint import v1 as ocp

from jaxprune import checkpoints, devices
from jaxprune.checkpoints import names, orbax_folder
from tests import hf_models, scripts

ROOT = pathlib.Path(__file__).parents[1]


def raw_tensors(folder):
  """All tensors of a folder, read by the stock library."""
  found = {}
  for path in sorted(pathlib.Path(folder).glob("model*.safetensors")):
    with safetensors.safe_open(path, "pt") as file:
      found |= {name: file.get_tensor(name) for name in file.keys()}
  return {
    name: (
      str(tensor.dtype),
      tensor.flatten().view(dtype=hf_models.torch.uint8),
    )
    for name, tensor in found.items()
  }


def assert_same_tensors(found, expected):
  assert found.keys() == expected.keys()
  for name in expected:
    assert found[name][0] == expected[name][0], name
    assert found[name][1].equal(expected[name][1]), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny pruned Llama: bfloat16 with a float32 norm, tokenizer and masks."""
  folder = tmp_path_factory.mktemp("convert") / "hf"
  model = hf_models.save_llama(folder, attention_bias=True)
  model.to(hf_models.torch.bfloat16)
  model.model.norm.to(hf_models.torch.float32)
  model.save_pretrained(folder)
  source = checkpoints.open_checkpoint(folder)
  rng = np.random.default_rng(0)
  masks = {group: {} for group in ("attention", "mlp")}
  for (group, kernel), shape in names.kernel_shapes(source.config).items():
    masks[group][kernel] = rng.random(shape) < 0.5
  checkpoints.write_masks(folder / "masks.safetensors", masks, {"a": [1]})
  hf = json.loads((folder / "config.json").read_text())
  hf["jaxprune"] = {"method": "wanda"}
  (folder / "config.json").write_text(json.dumps(hf))
  (folder / "tokenizer.json").write_text('{"é": 1}', "utf-8")
  return folder


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
  """The folder, spread over eight devices."""
  mesh = devices.make_mesh({"data": 2, "model": 4})
  return orbax_folder.write_orbax(
    checkpoints.open_checkpoint(folder),
    tmp_path_factory.mktemp("converted") / "orbax",
    mesh=mesh,
  )


def bits(tree):
  return {
    path: (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())
    for path, leaf in names.flatten(tree).items()
  }


def test_there_and_back_is_bit_for_bit(folder, converted, tmp_path):
  opened = orbax_folder.open_orbax(converted)
  out = orbax_folder.write_huggingface(opened, tmp_path / "hf", shard_size=9999)
  assert len(list(out.glob("model-*.safetensors"))) > 2
  assert_same_tensors(raw_tensors(out), raw_tensors(folder))
  for name in ("config.json", "tokenizer.json", "generation_config.json"):
    assert (out / name).read_bytes() == (folder / name).read_bytes()
  masks, metadata = checkpoints.read_masks(out / "masks.safetensors")
  expected, _ = checkpoints.read_masks(folder / "masks.safetensors")
  assert bits(masks) == bits(expected) and metadata == {"a": [1]}
  assert opened.record["provenance"] == {"method": "wanda"}
  assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.parametrize("sizes", [None, {"data": 8}, {"data": 4, "model": 2}])
def test_any_mesh_reads_it(folder, converted, sizes):
  mesh = None if sizes is None else devices.make_mesh(sizes)
  found = orbax_folder.restore_params(converted, mesh=mesh)
  _, expected = checkpoints.load_params(folder)
  assert bits(found) == bits(expected)
  masks = orbax_folder.restore_masks(converted, mesh=mesh)
  assert bits(masks) == bits(
    checkpoints.read_masks(folder / "masks.safetensors")[0]
  )
  up = found["layers"]["mlp"]["up"]["kernel"]  # [2, 32, 48]
  split = mesh.shape if mesh is not None else {"data": 1, "model": 1}
  part = (2, 32 // split["data"], 48 // split["model"])
  assert {shard.data.shape for shard in up.addressable_shards} == {part}
  assert masks["mlp"]["up"].sharding.is_equivalent_to(up.sharding, 3)


def test_any_program_reads_the_parameters(folder, converted):
  """By Orbax alone."""
  tree = ocp.load(
    converted / "params",
    jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        sharding=jax.sharding.SingleDeviceSharding(jax.devices()[3]),
      ),
      ocp.metadata(converted / "params").metadata,
    ),
  )
  assert bits(tree) == bits(checkpoints.load_params(folder)[1])


def test_parts_are_read_alone(folder, converted):
  whole = names.flatten(checkpoints.load_params(folder)[1])
  mesh = devices.make_mesh({"model": 8})
  found = names.flatten(
    orbax_folder.restore_params(
      converted, mesh=mesh, parts=["layers/mlp/", "embed"], layers=[1]
    )
  )
  wanted = {
    path
    for path in whole
    if path.startswith("layers/mlp/") or path.startswith("embed/")
  }
  assert found.keys() == wanted
  for path in wanted:
    expected = np.asarray(whole[path])
    expected = expected[[1]] if path.startswith("layers/") else expected
    np.testing.assert_array_equal(np.asarray(found[path]), expected)
  part = {
    s.data.shape for s in found["layers/mlp/up/kernel"].addressable_shards
  }
  assert part == {(1, 32, 6)}
  with pytest.raises(ValueError, match="no leaf begins with 'layers/ml'"):
    orbax_folder.restore_params(converted, parts=["layers/ml"])
  with pytest.raises(ValueError, match=r"no layers \[2\].*0..1"):
    orbax_folder.restore_params(converted, layers=[0, 2])


def test_another_dtype(folder, tmp_path):
  source = checkpoints.open_checkpoint(folder)
  wide = orbax_folder.write_orbax(source, tmp_path / "a", dtype="float32")
  opened = orbax_folder.open_orbax(wide)
  assert opened.record["checkpoint_hash"] is None
  out = orbax_folder.write_huggingface(opened, tmp_path / "b")
  assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
  _, expected = checkpoints.load_params(folder, jnp.float32)
  assert bits(checkpoints.load_params(out)[1]) == bits(expected)
  # The float32 norm was rounded nowhere; everything else came from bfloat16.
  narrow = orbax_folder.write_huggingface(
    opened, tmp_path / "c", dtype="bfloat16"
  )
  stored, before = raw_tensors(narrow), raw_tensors(folder)
  assert {dtype for dtype, _ in stored.values()} == {"torch.bfloat16"}
  del stored["model.norm.weight"], before["model.norm.weight"]
  assert_same_tensors(stored, before)


def test_a_changed_weight_is_noticed(converted, tmp_path):
  copy = shutil.copytree(converted, tmp_path / "copy")
  tree = orbax_folder.restore_params(copy)
  table = tree["embed"]["table"]
  tree["embed"]["table"] = table.at[3, 4].add(1)
  shutil.rmtree(copy / "params")
  ocp.save(copy / "params", tree)
  with pytest.raises(ValueError, match="Orbax folder was changed"):
    orbax_folder.write_huggingface(
      orbax_folder.open_orbax(copy), tmp_path / "out"
    )
  assert os.listdir(tmp_path) == ["copy"]


def test_the_script_both_ways(folder, tmp_path):
  """The input decides; each error is one line and leaves nothing."""
  there, back = tmp_path / "orbax", tmp_path / "hf"
  run = lambda model, out, *more: scripts.call(
    "convert", f"--model={model}", f"--out={out}", *more
  )
  done = run(folder, there, "--mesh=data:4,model:2")
  assert done.returncode == 0, done.stderr
  assert "Orbax checkpoint" in done.stdout
  done = run(there, back, "--shard_size=10KB")
  assert done.returncode == 0, done.stderr
  assert_same_tensors(raw_tensors(back), raw_tensors(folder))
  assert "run.json" in os.listdir(back) and "run.json" in os.listdir(there)
  before = sorted(os.listdir(tmp_path))
  for model, out, more, message in (
    (tmp_path, tmp_path / "x", (), "no config.json"),
    (folder, back, (), "add --overwrite"),
    (folder, tmp_path / "x", ("--mesh=data:3",), "needs 3 devices"),
    (folder, tmp_path / "x", ("--mesh=rows:8",), "axes data and model"),
    (there, tmp_path / "x", ("--mesh=model:8",), "leave them out"),
    (there, tmp_path / "x", ("--shard_size=5 pages",), "'5 pages' is no size"),
  ):
    done = run(model, out, *more)
    assert done.returncode == 1, (message, done.stdout)
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
  assert sorted(os.listdir(tmp_path)) == before
  done = run(folder, back, "--overwrite")
  assert done.returncode == 0, done.stderr
  assert orbax_folder.is_orbax_folder(back)


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda record: record.update(format="x"), "expected format"),
    (lambda record: record["tensors"].popitem(), "not those of config.json"),
  ],
)
def test_damaged_records_are_refused(converted, tmp_path, damage, message):
  copy = shutil.copytree(converted, tmp_path / "copy")
  path = copy / orbax_folder.RECORD
  record = json.loads(path.read_text())
  damage(record)
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=message):
    orbax_folder.open_orbax(copy)
  with pytest.raises(ValueError, match="no jaxprune_orbax.json"):
    orbax_folder.open_orbax(tmp_path)


def test_what_a_killed_conversion_left_is_replaced(folder, tmp_path):
  source = checkpoints.open_checkpoint(folder)
  work = tmp_path / "out.partial"
  work.mkdir()
  (work / "mine.txt").write_text("keep")
  with pytest.raises(ValueError, match="not the work of a run"):
    orbax_folder.write_orbax(source, tmp_path / "out")
  assert (work / "mine.txt").read_text() == "keep"
  (work / "begun.json").write_text(
    '{"job": {"made_from": "x"}, "resume": false}'
  )
  orbax_folder.write_orbax(source, tmp_path / "out")
  assert os.listdir(tmp_path) == ["out"]
  assert not (tmp_path / "out" / "mine.txt").exists()


@pytest.mark.slow
def test_two_processes_are_one(folder, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
  # Both would write the same programs at the same time.
  environment = dict(
    os.environ,
    JAX_ENABLE_COMPILATION_CACHE="false",
    PYTHONPATH=str(ROOT),
    XLA_FLAGS=flags,
  )
  pod = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "experiments.convert", f"--model={folder}"),
        *(f"--out={tmp_path}/two", "--mesh=data:2,model:2", "--distributed"),
        *(f"--coordinator=127.0.0.1:{port}", "--num_processes=2"),
        f"--process_id={index}",
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=environment,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=300) for process in pod]
  assert [process.returncode for process in pod] == [0, 0], said
  found = orbax_folder.restore_params(tmp_path / "two")
  assert bits(found) == bits(checkpoints.load_params(folder)[1])
  assert orbax_folder.restore_masks(tmp_path / "two") is not None
