"""A folder that is written layer by layer, and killed on the way."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from checkpoint_cases import L, raw_tensors

from jaxprune import checkpoints


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
    shutil.copytree(hf_folder("llama_tied"), tmp_path / "deep" / "m")
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
