"""No path of a checkpoint leads out of its folder."""

import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxprune import checkpoints
from tests.test_bad_checkpoints import UP, refused, sharded, single, tensors_of

ESCAPES = {
  "parent": "../outside.safetensors",
  "deep": "a/../../outside.safetensors",
  "folder": "sub/model.safetensors",
  "absolute": "{absolute}",
  "backslash": "..\\outside.safetensors",
  "dots": "..",
  "empty": "",
  "number": 7,
  "none": None,
  "list": ["model-00001-of-00002.safetensors"],
  "pickle": "model.bin",
  "null byte": "\0.safetensors",
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_index_may_not_lead_out_of_the_folder(tmp_path, kind):
  outside = tmp_path / "outside.safetensors"
  safetensors.numpy.save_file({UP: tensors_of()[UP]}, outside)
  name = ESCAPES[kind]
  if kind == "absolute":
    name = str(outside)
  folder = sharded(tmp_path / "m", lambda m: m.update({UP: name}))
  (folder / "sub").mkdir()
  shutil.copy(outside, folder / "sub" / "model.safetensors")
  (folder / "a").mkdir()
  message = refused(folder)
  assert "not a plain file name" in message or (
    "not a .safetensors file name" in message
  )


def test_links_may_not_lead_out_of_the_folder(tmp_path):
  folder = single(tmp_path / "m")
  (folder / "config.json").rename(tmp_path / "config.json")
  (folder / "config.json").symlink_to(tmp_path / "config.json")
  refused(folder, "config.json", "leads out of its folder")


def test_weights_may_be_kept_elsewhere(tmp_path):
  """A link to any file of tensors; a device or a FIFO is none."""
  folder = single(tmp_path / "m")
  path = folder / "model.safetensors"
  _, expected = checkpoints.load_params(folder)
  path.rename(tmp_path / "large")
  path.symlink_to(tmp_path / "large")
  _, params = checkpoints.load_params(folder)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  path.unlink()
  path.symlink_to("/dev/zero")
  refused(folder, "no ordinary file")


def test_a_cache_snapshot_may_reach_its_own_blobs_only(tmp_path):
  folder = single(tmp_path / "model" / "snapshots" / "abc")
  blobs = tmp_path / "model" / "blobs"
  blobs.mkdir()
  path = folder / "config.json"
  path.rename(blobs / "1234")
  path.symlink_to("../../blobs/1234")
  checkpoints.load_params(folder)
  (blobs / "1234").rename(tmp_path / "1234")
  path.unlink()
  path.symlink_to("../../../1234")
  refused(folder, "leads out of its folder")
  # "blobs" beside a folder that is no snapshot is nothing special.
  plain = single(tmp_path / "other" / "plain" / "m")
  (tmp_path / "other" / "blobs").mkdir()
  path = plain / "config.json"
  path.rename(tmp_path / "other" / "blobs" / "1")
  path.symlink_to("../../blobs/1")
  refused(plain, "leads out of its folder")


def test_a_link_inside_the_folder_is_fine(tmp_path):
  folder = single(tmp_path / "m")
  (folder / "model.safetensors").rename(folder / "weights")
  (folder / "model.safetensors").symlink_to("weights")
  checkpoints.load_params(folder)


def test_a_dangling_link(tmp_path):
  folder = single(tmp_path / "m")
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors").symlink_to("weights")
  refused(folder, "no such file", "incomplete")
