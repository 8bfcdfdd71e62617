"""Files written whole or not at all, names of the hub, and Orbax trees."""

import os

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_cases import tree_bits
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import checkpoints, files
from jaxprune.checkpoints import orbax, shards


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
