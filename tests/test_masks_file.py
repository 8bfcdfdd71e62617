"""Packed masks: every bit back, and nothing but the masks of the model."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import checkpoints
from jaxprune.checkpoints import masks as masks_file
from jaxprune.models.config import ModelConfig

CONFIG = ModelConfig.from_hf(
  dict(
    model_type="llama",
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=16,
    max_position_embeddings=8,
  )
)
SHAPES = {
  "attention": {"query": (2, 8, 8), "key": (2, 8, 4)},
  "mlp": {"up": (2, 8, 6), "down": (2, 6, 8)},
}


def random_masks(shapes=SHAPES, seed=0):
  rng = np.random.default_rng(seed)
  return {
    group: {name: rng.random(shape) < 0.5 for name, shape in kernels.items()}
    for group, kernels in shapes.items()
  }


def assert_same(found, expected):
  assert {g: list(k) for g, k in found.items()} == {
    g: list(k) for g, k in expected.items()
  }
  for group in expected:
    for name, mask in expected[group].items():
      assert found[group][name].dtype == bool
      np.testing.assert_array_equal(found[group][name], mask)


@settings(deadline=None, max_examples=25)
@given(
  shape=st.tuples(*[st.integers(1, 9)] * 3),
  density=st.sampled_from([0.0, 0.3, 1.0]),
  seed=st.integers(0, 99),
)
def test_any_shape_comes_back(tmp_path_factory, shape, density, seed):
  path = tmp_path_factory.mktemp("m") / "masks.safetensors"
  mask = np.random.default_rng(seed).random(shape) < density
  checkpoints.write_masks(path, {"mlp": {"up": mask}}, {"seed": seed})
  found, metadata = checkpoints.read_masks(path)
  assert_same(found, {"mlp": {"up": mask}})
  assert metadata == {"seed": seed}


def test_the_packing_by_hand(tmp_path):
  """Row-major over [I, O], first entry in the highest bit, 1 = keep."""
  path = tmp_path / "masks.safetensors"
  mask_LIO = np.zeros((2, 2, 5), bool)
  mask_LIO[0, 0, 0] = mask_LIO[0, 1, 4] = mask_LIO[1, 1, 2] = True
  checkpoints.write_masks(path, {"mlp": {"down": mask_LIO}}, {"a": [1, "é"]})
  stored = safetensors.numpy.load_file(path)
  np.testing.assert_array_equal(
    stored["mlp.down"], np.array([[128, 64], [1, 0]], np.uint8)
  )
  with safetensors.safe_open(path, "numpy") as file:
    header = file.metadata()
  assert json.loads(header["shapes"]) == {"mlp.down": [2, 2, 5]}
  assert json.loads(header["metadata"]) == {"a": [1, "é"]}
  bits = b'["mlp.down", [2, 2, 5]]\n' + bytes([128, 64, 1, 0])
  assert header["sha256"] == hashlib.sha256(bits).hexdigest()


def test_masks_of_the_model_are_accepted(tmp_path):
  path = tmp_path / "masks.safetensors"
  expected = random_masks()
  checkpoints.write_masks(path, expected, {})
  found, _ = checkpoints.read_masks(path, CONFIG)
  assert_same(found, expected)
  assert path.stat().st_size < 1000


@pytest.mark.parametrize(
  "group, name, shape",
  [
    ("mlp", "up", (2, 6, 8)),
    ("mlp", "up", (3, 8, 6)),
    ("mlp", "gait", (2, 8, 6)),
    ("head", "kernel", (2, 8, 16)),
  ],
)
def test_masks_of_another_model_are_refused(tmp_path, group, name, shape):
  path = tmp_path / "masks.safetensors"
  checkpoints.write_masks(path, {group: {name: np.ones(shape, bool)}}, {})
  checkpoints.read_masks(path)
  with pytest.raises(ValueError, match=f"{group}.{name}.*another model"):
    checkpoints.read_masks(path, CONFIG)


@pytest.mark.parametrize(
  "masks",
  [
    {"mlp": {"up": np.ones((2, 8, 6))}},
    {"mlp": {"up": np.ones((2, 8, 6), np.uint8)}},
    {"mlp": {"up": np.ones((8, 6), bool)}},
    {"mlp": {"up": np.ones((2, 0, 6), bool)}},
    {"mlp": np.ones((2, 8, 6), bool)},
    {"mlp.up": {"kernel": np.ones((2, 8, 6), bool)}},
    {"mlp": {"up": {"kernel": np.ones((2, 8, 6), bool)}}},
  ],
)
def test_what_is_not_a_mask_is_not_written(tmp_path, masks):
  with pytest.raises(ValueError, match="mlp"):
    checkpoints.write_masks(tmp_path / "masks.safetensors", masks, {})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": object()}])
def test_metadata_must_be_json(tmp_path, metadata):
  with pytest.raises(ValueError, match="metadata cannot be written"):
    checkpoints.write_masks(
      tmp_path / "masks.safetensors", random_masks(), metadata
    )
  assert not list(tmp_path.iterdir())


def rewritten(path, change) -> pathlib.Path:
  """Apply `change(tensors, header)` to a mask file."""
  tensors = safetensors.numpy.load_file(path)
  with safetensors.safe_open(path, "numpy") as file:
    header = file.metadata()
  change(tensors, header)
  safetensors.numpy.save_file(tensors, path, header)
  return path


DAMAGE = {
  "another format": (lambda t, h: h.update(format="x"), "format"),
  "no shapes": (lambda t, h: h.pop("shapes"), "damaged"),
  "shapes no JSON": (lambda t, h: h.update(shapes="{"), "damaged"),
  "shapes no object": (lambda t, h: h.update(shapes="[1]"), "damaged"),
  "a mask less": (lambda t, h: t.pop("mlp.up"), "mlp.up.*not in both"),
  "a mask more": (
    lambda t, h: t.update({"mlp.x": t["mlp.up"]}),
    "mlp.x.*not in both",
  ),
  "bytes cut": (
    lambda t, h: t.update({"mlp.up": t["mlp.up"][:, 1:].copy()}),
    r"mlp.up.*expected U8 \[2, 6\].*found U8 \[2, 5\]",
  ),
  "other dtype": (
    lambda t, h: t.update({"mlp.up": t["mlp.up"].astype(np.float32)}),
    "expected U8.*found F32",
  ),
  "negative shape": (
    lambda t, h: h.update(shapes=h["shapes"].replace("[2,", "[-2,")),
    "is not GROUP.KERNEL",
  ),
  "a flipped bit": (
    lambda t, h: np.bitwise_xor.at(t["mlp.up"], (1, 5), 1),
    "not those that were written",
  ),
  "exchanged names": (
    lambda t, h: t.update({"mlp.up": t["mlp.down"], "mlp.down": t["mlp.up"]}),
    "not those that were written",
  ),
  "other axes": (
    lambda t, h: h.update(
      shapes=h["shapes"].replace("[2, 8, 6]", "[2, 6, 8]", 1)
    ),
    "not those that were written",
  ),
  "no hash": (lambda t, h: h.pop("sha256"), "not those that were written"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path, damage):
  path = tmp_path / "masks.safetensors"
  change, message = DAMAGE[damage]
  checkpoints.write_masks(path, random_masks(), {})
  rewritten(path, lambda tensors, header: None)
  checkpoints.read_masks(path)
  with pytest.raises(ValueError, match=message) as caught:
    checkpoints.read_masks(rewritten(path, change))
  assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
  path = tmp_path / "masks.safetensors"
  checkpoints.write_masks(path, random_masks(), {})
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    checkpoints.read_masks(path)


def test_parts_are_joined_in_order(tmp_path):
  # 3 * 5 is no multiple of 8: every layer keeps its own padding.
  masks = random_masks({"mlp": {"up": (4, 3, 5), "down": (4, 5, 3)}})
  parts = []
  for i, layers in enumerate((slice(0, 1), slice(1, 3), slice(3, 4))):
    parts.append(tmp_path / f"part{i}.safetensors")
    part = {name: mask[layers] for name, mask in masks["mlp"].items()}
    checkpoints.write_masks(parts[-1], {"mlp": part}, {"part": i})
  masks_file.merge_masks(tmp_path / "all.safetensors", parts, {"n": 3})
  found, metadata = checkpoints.read_masks(tmp_path / "all.safetensors")
  assert_same(found, masks)
  assert metadata == {"n": 3}
  other = tmp_path / "other.safetensors"
  checkpoints.write_masks(other, random_masks(), {})
  with pytest.raises(ValueError, match="other.safetensors.*kernels"):
    masks_file.merge_masks(tmp_path / "no", [parts[0], other], {})
  assert not (tmp_path / "no").exists()
