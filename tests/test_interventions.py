"""Parts of a change of logits, and restorations, against NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.probes import divergences, interventions
from jaxprune.pruning import controls

KEY = jax.random.key(3)


def logits(seed, size=12, scale=3.0):
  rng = np.random.default_rng(seed)
  z_V = rng.normal(0, scale, size)
  return z_V, z_V + rng.normal(0.7, 1, size)


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


# Compiled whole: one by one, the operations take ten times as long.
split_change = jax.jit(interventions.split_change, static_argnames="top")
_replace = jax.jit(
  functools.partial(interventions.replace_change, top=4),
  static_argnames="temperature",
)
_restorations = jax.jit(
  interventions.restorations, static_argnames=("temperature", "temperatures")
)
_divergences = jax.jit(divergences.compare_distributions)
random_control = jax.jit(controls.random_control)


def kl(z, y):
  return float(_divergences(jnp.asarray(z), jnp.asarray(y)).kl)


def test_parts_by_hand():
  z, y = np.array([4.0, 0, 3]), np.array([6.0, 1, 3])  # dz = 2, 1, 0
  parts = split_change(z, y, top=1)
  # <z, dz> / |z|^2 = 8 / 25.
  np.testing.assert_allclose(parts["parallel"], [1.28, 0, 0.96], rtol=1e-6)
  np.testing.assert_allclose(parts["orthogonal"], [0.72, 1, -0.96], rtol=1e-6)
  np.testing.assert_allclose(parts["offset"], [1, 1, 1], rtol=1e-6)
  np.testing.assert_allclose(parts["centred"], [1, 0, -1], atol=1e-7)
  np.testing.assert_array_equal(parts["top"], [2, 0, 0])
  np.testing.assert_array_equal(parts["tail"], [0, 1, 0])


def test_one_position_has_logits_for_every_name():
  z, y = logits(0)
  by_name = {
    **replaced(z, y),
    **_restorations(z, y, temperature=1.0, temperatures=(0.5, 2.0)),
  }
  chex.assert_shape(list(by_name.values()), z.shape)
  chex.assert_tree_all_finite(by_name)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def mix(use_dense_L):
    return interventions.mix_layers(
      use_dense_L, {"w": jnp.ones((3, 2))}, {"w": jnp.zeros((3, 2))}
    )

  # Which layers are dense is data: another mix takes no new program.
  for mask_L in interventions.first_layers(3):
    np.testing.assert_array_equal(
      mix(mask_L)["w"], np.repeat(mask_L[:, None], 2, axis=1)
    )


@given(seed=st.integers(0, 10**6), top=st.sampled_from([1, 4, 12]))
@settings(max_examples=25)
def test_each_pair_adds_up(seed, top):
  z, y = logits(seed)
  with jax.enable_x64():
    parts = split_change(z, y, top=top)
    assert set(parts) == set(interventions.PARTS) == set(interventions.OTHER)
    for one, other in interventions.PAIRS:
      np.testing.assert_allclose(
        parts[one] + parts[other], y - z, rtol=1e-12, atol=1e-12
      )
      assert interventions.OTHER[one] == other
    assert abs(float(parts["orthogonal"] @ z)) < 1e-10
    assert abs(float(parts["centred"].sum())) < 1e-12
  order = np.argsort(-z)
  # Exactly dz on the right tokens, exactly nothing elsewhere.
  parts = split_change(z, y, top=top)
  assert not np.asarray(parts["top"])[order[top:]].any()
  assert not np.asarray(parts["tail"])[order[:top]].any()
  np.testing.assert_array_equal(
    parts["top"] + parts["tail"],
    np.asarray(y, np.float32) - np.asarray(z, np.float32),
  )


def test_zero_logits_have_no_direction():
  parts = split_change(np.zeros(3), np.arange(3.0), top=1)
  assert not np.asarray(parts["parallel"]).any()
  np.testing.assert_array_equal(parts["orthogonal"], [0, 1, 2])
  np.testing.assert_array_equal(  # the lowest id among equals
    interventions.top_tokens(np.zeros(3), 2), [True, True, False]
  )


@pytest.mark.parametrize("top", [0, 13])
def test_top_out_of_range(top):
  with pytest.raises(ValueError, match=f"top={top}: must be between 1"):
    interventions.split_change(*logits(0), top=top)


def replaced(z, y, **options):
  return {
    name: np.asarray(value)
    for name, value in _replace(z, y, KEY, **options).items()
  }


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_softmax_is_blind_to_the_offset(seed):
  with jax.enable_x64():
    z, y = logits(seed)
    found = replaced(z, y)
    assert kl(z, found["keep_offset"]) < 1e-14
    np.testing.assert_allclose(
      softmax(found["keep_centred"]), softmax(y), rtol=1e-12
    )
    # Removing a part is keeping the other one.
    for one, other in interventions.PAIRS:
      parts = split_change(z, y, top=4)
      np.testing.assert_allclose(
        found[f"keep_{other}"], y - parts[one], rtol=1e-12, atol=1e-12
      )


def test_both_ends_are_exact():
  z, y = (np.asarray(each, np.float32) for each in logits(1))
  found = replaced(z, y)
  np.testing.assert_array_equal(found["dense"], z)
  np.testing.assert_array_equal(found["pruned"], y)
  assert kl(z, found["dense"]) == 0
  for name, value in {**replaced(z, z), **_restorations(z, z)}.items():
    # Without a change there is nothing to keep, to add or to restore, and what
    # shifts all logits is not seen.
    assert kl(z, value) < 1e-12, name
    if name not in ("centred_logits", "variance_of_z"):
      np.testing.assert_array_equal(value, z, err_msg=name)


def test_what_is_parallel_is_a_temperature():
  with jax.enable_x64():
    z, y = logits(2)
    share = z @ (y - z) / (z @ z)
    assert share > -1
    np.testing.assert_allclose(
      softmax(replaced(z, y)["keep_parallel"]),
      softmax(z * (1 + share)),
      rtol=1e-10,
    )


def test_controls_have_the_size_of_their_part():
  with jax.enable_x64():
    z, y = logits(4)
    found, parts = replaced(z, y), split_change(z, y, top=4)
    parts = {name: np.asarray(value) for name, value in parts.items()}
    directions = []
    for name, part in {"all": y - z, **parts}.items():
      added = found[f"add_random_{name}"] - z
      np.testing.assert_allclose(
        np.linalg.norm(added), np.linalg.norm(part), rtol=1e-12
      )
      np.testing.assert_allclose(
        found[f"remove_random_{name}"], y - added, rtol=1e-12
      )
      directions.append(added / np.linalg.norm(added))
      if name in ("top", "tail"):
        assert not added[parts[interventions.OTHER[name]] != 0].any()
    cosines = np.abs(np.array(directions) @ np.array(directions).T)
    assert (cosines[np.triu_indices(len(cosines), 1)] < 0.95).all()
    np.testing.assert_allclose(
      np.sort(found["shuffled"] - z), np.sort(y - z), atol=1e-12
    )


def variance(weight, x):
  return weight @ (x - weight @ x) ** 2


def test_direction_and_variance_are_crossed():
  with jax.enable_x64():
    z, y = logits(5)
    found, p = replaced(z, y), softmax(z)
    random = found["add_random_all"] - z
    kept, other = (
      found[name] - z for name in ("direction_kept", "variance_kept")
    )
    np.testing.assert_allclose(variance(p, kept), variance(p, random))
    np.testing.assert_allclose(variance(p, other), variance(p, y - z))
    for a, b in ((kept, y - z), (other, random)):
      np.testing.assert_allclose(
        a @ b, np.linalg.norm(a) * np.linalg.norm(b), rtol=1e-12
      )


def test_restorations_by_numpy():
  with jax.enable_x64():
    z, y = logits(6)
    for T in (1.0, 0.6):
      p, found = (
        softmax(z / T),
        _restorations(z, y, temperature=T, temperatures=(0.5, 2.0)),
      )
      np.testing.assert_allclose(found["half"], (z + y) / 2)
      stretched = np.asarray(found["variance_of_z"])
      np.testing.assert_allclose(variance(p, stretched), variance(p, z))
      np.testing.assert_allclose(p @ stretched, p @ y)
      assert abs(p @ (np.asarray(found["centred_by_p"]) - z)) < 1e-12
      assert abs(np.mean(found["centred_logits"])) < 1e-12
      for other in (0.5, 2.0):
        np.testing.assert_allclose(
          softmax(np.asarray(found[f"temperature_{other:g}"]) / T),
          softmax(y / other),
        )
      for name in (
        "variance_of_z",
        "centred_by_p",
        "centred_logits",
        "temperature_0.5",
        "temperature_2",
      ):
        assert np.argmax(found[name]) == np.argmax(y), name


def test_logits_without_variance_stay():
  z, flat = np.arange(4.0), np.full(4, 2.0)
  np.testing.assert_array_equal(_restorations(z, flat)["variance_of_z"], flat)


def test_layers_are_mixed_one_by_one():
  dense = {"w": jnp.ones((3, 2, 2)), "b": jnp.ones((3, 2))}
  pruned = jax.tree.map(jnp.zeros_like, dense)
  for k, use_L in enumerate(interventions.first_layers(3)):
    mixed = interventions.mix_layers(use_L, dense, pruned)
    for leaf in mixed.values():
      by_layer = np.asarray(leaf).reshape(3, -1)
      np.testing.assert_array_equal(by_layer[:k], 1)
      np.testing.assert_array_equal(by_layer[k:], 0)


def control_layers():
  rng = np.random.default_rng(0)

  def leaf(inputs, outputs):
    return {"kernel": jnp.asarray(rng.normal(size=(3, inputs, outputs)))}

  dense = {
    "attention": {"query": leaf(6, 4), "output": leaf(4, 6)},
    "mlp": {"down": leaf(8, 6), "up": leaf(6, 8)},
    "mlp_norm": {"scale": jnp.ones((3, 6))},
  }
  pruned = jax.tree.map(
    lambda w: w * (rng.random(w.shape) < 0.6) if w.ndim == 3 else w, dense
  )
  pruned["attention"] = {
    **dense["attention"],
    "output": {"kernel": dense["attention"]["output"]["kernel"].at[1].set(0)},
  }
  return dense, pruned


def test_control_is_as_large_and_elsewhere():
  dense, pruned = control_layers()
  seen = set()
  for seed in range(6):
    found = random_control(jax.random.key(seed), dense, pruned)
    for name in ("down", "up"):
      w, v, r = (
        np.asarray(tree["mlp"][name]["kernel"])
        for tree in (dense, pruned, found)
      )
      np.testing.assert_array_equal((r == 0).sum(1), (v == 0).sum(1))
      assert ((r == 0) != (v == 0)).any()
      np.testing.assert_array_equal(r[r != 0], w[r != 0])
    out = np.asarray(found["attention"]["output"]["kernel"])
    gone = (out == 0).all((1, 2))
    assert gone.sum() == 1 and (out[~gone] != 0).all()
    seen.add(int(np.flatnonzero(gone)[0]))
    np.testing.assert_array_equal(
      found["attention"]["query"]["kernel"],
      dense["attention"]["query"]["kernel"],
    )
  assert len(seen) > 1
  same = random_control(KEY, dense, dense)
  jax.tree.map(np.testing.assert_array_equal, same, dense)
