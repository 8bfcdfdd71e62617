"""Pruning on many devices and in many processes gives what one device gives."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import cut_runs
import jax
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune import devices as devices_lib
from jaxprune.models import KERNELS
from jaxprune.pruning.checkpoint import resume, streaming, sublayers, weights
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.patterns import NofM, Unstructured

ROOT = pathlib.Path(__file__).parents[1]
TOKENS = np.random.default_rng(0).integers(3, 90, (8, 24)).astype(np.int32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama of 3 layers as a Hugging Face folder."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    # As wide as the stream: fewer shapes, each of which is compiled for.
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
  )
  folder = tmp_path_factory.mktemp("tiny")
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  np.savez(folder / "ids.npz", calibration=TOKENS)
  return checkpoints.open_checkpoint(folder)


def kernels(folder):
  _, params = checkpoints.load_params(folder)
  for group, kernel in KERNELS:
    yield np.asarray(params["layers"][group][kernel]["kernel"])


def assert_same(one, many, ties=0):
  """Masks equal but for counted ties, kept weights to 3e-5."""
  different = 0
  for x_LIO, y_LIO in zip(kernels(one), kernels(many)):
    different += ((x_LIO != 0) != (y_LIO != 0)).sum()
    both = (x_LIO != 0) & (y_LIO != 0)
    np.testing.assert_allclose(x_LIO[both], y_LIO[both], atol=3e-5)
  assert different <= ties


def test_meshes():
  mesh = devices_lib.make_mesh({"data": 4, "model": 2})
  assert dict(mesh.shape) == {"data": 4, "model": 2}
  with pytest.raises(ValueError, match="there are 8"):
    devices_lib.make_mesh({"data": 3})
  with pytest.raises(ValueError, match="axes data and model"):
    devices_lib.make_mesh({"data": 4, "tensor": 2})
  # 8 sequences over 4 devices: 4 or 8 at a time, never 1.
  assert Memory(micro_batch=1, mesh=mesh).size(8) == 4
  with pytest.raises(ValueError, match="6 calibration sequences"):
    Memory(mesh=mesh).size(6)


def test_where_things_lie():
  mesh = devices_lib.make_mesh({"data": 4, "model": 2})
  w_IO = devices_lib.place_leaf(np.ones((6, 8), np.float16), mesh)
  assert w_IO.dtype == np.float32
  assert {s.data.shape for s in w_IO.addressable_shards} == {(6, 4)}
  odd_IO = devices_lib.place_leaf(np.ones((6, 7)), mesh)
  assert {s.data.shape for s in odd_IO.addressable_shards} == {(6, 7)}
  w_LIO = devices_lib.place_leaf(np.ones((5, 6, 8)), mesh)
  assert {s.data.shape for s in w_LIO.addressable_shards} == {(5, 6, 4)}
  for size, rows in ((16, 2), (6, 3), (7, 7)):
    spec = devices_lib.statistic_spec((size, size), mesh)
    gram_II = devices_lib.place(np.ones((size, size)), mesh, spec)
    assert {s.data.shape for s in gram_II.addressable_shards} == {(rows, size)}
  x_BTD = devices_lib.place_batch(np.ones((8, 3, 6)), mesh)
  assert {s.data.shape for s in x_BTD.addressable_shards} == {(2, 3, 6)}


@pytest.mark.slow
@pytest.mark.parametrize(
  "method,pattern,offload",
  [
    # A Gram and moments; the squares of Wanda are the diagonal of the Gram.
    ("sparsegpt", NofM(keep=1, of=4), True),
    ("flap", Unstructured(sparsity=0.25), False),
  ],
)
def test_eight_devices_are_one(tiny, tmp_path, method, pattern, offload):
  mesh = devices_lib.make_mesh({"data": 4, "model": 2})
  options = dict(method=method, pattern=pattern, tokens=TOKENS)
  one = weights.prune_weights(tiny, tmp_path / "one", **options)
  many = weights.prune_weights(
    tiny,
    tmp_path / "many",
    memory=Memory(mesh=mesh, offload=offload),
    **options,
  )
  assert_same(tmp_path / "one", tmp_path / "many")
  for a, b in zip(one, many):
    np.testing.assert_allclose(a["layer_error"], b["layer_error"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_resumed_on_eight_devices(tiny, tmp_path, offload):
  """Activations stay split over the mesh on disk and back; the same bits."""
  mesh = devices_lib.make_mesh({"data": 4, "model": 2})
  options = dict(
    method="wanda",
    pattern=Unstructured(sparsity=0.5),
    tokens=TOKENS,
    memory=Memory(micro_batch=4, mesh=mesh, offload=offload),
  )
  weights.prune_weights(tiny, tmp_path / "whole", **options)
  for _ in range(2):
    cut_runs.prune_a_layer(tiny, tmp_path / "cut", **options)
  export = checkpoints.start_export(
    tmp_path / "cut",
    tiny,
    provenance={
      "method": "wanda",
      "slim": False,
      "pattern": dataclasses.asdict(options["pattern"]),
      "tokens": streaming.token_hash(TOKENS),
    },
  )
  like = streaming.shapes_of_states(tiny.config, TOKENS, options["memory"])
  states = resume.read_states(export, 2, like)
  assert len(states.batches) == 2
  for x_BTD in states.batches:
    assert x_BTD.shape == (4, 24, 32)
    if not offload:
      assert {s.data.shape for s in x_BTD.addressable_shards} == {(1, 24, 32)}
  left, _ = cut_runs.go_on(tiny, tmp_path / "cut", **options)
  assert left == [2]
  for path in (tmp_path / "whole").glob("*.safetensors"):
    assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_scores_on_eight_devices(tiny):
  mesh = devices_lib.make_mesh({"data": 8})
  one = sublayers.score_sublayers(tiny, TOKENS, window=2)
  many = sublayers.score_sublayers(
    tiny, TOKENS, window=2, memory=Memory(mesh=mesh)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), one, many
  )


def start(*arguments, devices=1):
  """Start `prune` in a process that keeps no compiled programs.

  Two processes would write the same at the same time.
  """
  flags = (  # of two the last one counts
    os.environ["XLA_FLAGS"]
    + f" --xla_force_host_platform_device_count={devices}"
  )
  environment = dict(
    os.environ,
    JAX_ENABLE_COMPILATION_CACHE="false",
    JAX_PLATFORMS="cpu",
    PYTHONPATH=str(ROOT),
    XLA_FLAGS=flags,
  )
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.prune", *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=environment,
  )


@pytest.mark.slow
def test_two_processes_are_one(tiny, tmp_path):
  flags = [
    f"--model={tiny.folder}",
    f"--calibration={tiny.folder}/ids.npz",
    "--method=sparsegpt",
    "--pattern=2:4",
  ]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  pod = [
    start(
      *flags,
      f"--out={tmp_path}/two",
      "--mesh=data:2,model:2",
      "--distributed",
      f"--coordinator=127.0.0.1:{port}",
      "--num_processes=2",
      f"--process_id={i}",
      devices=2,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=300) for process in pod]
  assert [process.returncode for process in pod] == [0, 0], said
  assert "layer 3/3" in said[0][1]
  assert "3/3" not in said[1][1] and "wrote" not in said[1][0]
  weights.prune_weights(
    tiny,
    tmp_path / "one",
    method="sparsegpt",
    pattern=NofM(keep=2, of=4),
    tokens=TOKENS,
  )
  assert_same(tmp_path / "one", tmp_path / "two")
  summary = json.loads((tmp_path / "two" / "summary.json").read_text())
  assert summary["sparsity"] == 0.5
