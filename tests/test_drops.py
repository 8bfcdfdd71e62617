"""Similarities of sublayers and the choice of which ones leave."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.checkpoints import load_params
from jaxprune.models.decoder import Gates, forward
from jaxprune.pruning.layerwise import drops, similarities

# Outside of jit every operation is a program of its own.
observe_similarity = jax.jit(similarities.observe_similarity)
observe_sublayers = jax.jit(
  similarities.observe_sublayers, static_argnames="residual"
)

# --- similarities -----------------------------------------------------------


def cosine(x, y):
  """Mean-free textbook cosine over the last axis, float64."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  return (
    (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
  )


def hidden_states(seed, layers=4, batch=3, length=5, width=7):
  rng = np.random.default_rng(seed)
  steps = rng.normal(size=(layers + 1, batch, length, width))
  return np.cumsum(steps, axis=0).astype(np.float32)


def test_cosine_by_hand():
  x = jnp.asarray([[[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [2.0, 0.0]]])
  y = jnp.asarray([[[0.0, 9.0], [4.0, 3.0], [1.0, 1.0], [-5.0, 0.0]]])
  # 0, 24/25, 0 for the zero vector, -1.
  found = observe_similarity(x, y)
  np.testing.assert_allclose(found.sum, 0.96 - 1.0, atol=1e-7)
  assert int(found.count) == 4
  np.testing.assert_allclose(found.mean, -0.01, atol=1e-7)


def test_padding_is_left_out_even_when_it_is_nan():
  h = hidden_states(0)
  valid = np.ones(h.shape[1:3], bool)
  valid[0, :2] = valid[2, :4] = False
  x, y = h[0].copy(), h[1].copy()
  x[~valid], y[~valid] = np.nan, np.inf
  found = observe_similarity(jnp.asarray(x), jnp.asarray(y), jnp.asarray(valid))
  np.testing.assert_allclose(
    found.mean, cosine(x[valid], y[valid]).mean(), rtol=1e-6
  )
  assert int(found.count) == valid.sum()


def test_no_tokens_have_no_mean():
  empty = jnp.zeros((1, 2, 3))
  found = observe_similarity(empty, empty, jnp.zeros((1, 2), bool))
  assert np.isnan(float(found.mean)) and int(found.count) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_cosine_is_float32_whatever_comes_in(dtype):
  # 300^2 overflows float16, and bfloat16 sums would keep two digits.
  x = jnp.asarray(300 + hidden_states(1)[0], dtype)
  y = jnp.asarray(300 - hidden_states(1)[1], dtype)
  found = observe_similarity(x, y)
  assert found.sum.dtype == jnp.float32
  np.testing.assert_allclose(
    found.mean,
    cosine(x.astype(jnp.float32), y.astype(jnp.float32)).mean(),
    rtol=1e-6,
  )


@pytest.mark.parametrize("first, second", [(1, 2), (0, 2), (3, 3)])
def test_merging_is_a_monoid(first, second):
  h = jnp.asarray(hidden_states(2, batch=3))
  parts = [h[:, :first], h[:, first:second], h[:, second:]]

  def observe(part):
    return observe_similarity(part[0], part[1])

  a, b, c = map(observe, parts)
  left = similarities.merge(similarities.merge(a, b), c)
  right = similarities.merge(a, similarities.merge(b, c))
  whole = observe(h)
  for found in (left, right):
    assert int(found.count) == int(whole.count)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-6)


def test_sublayers_of_a_tape():
  rng = np.random.default_rng(3)
  shape = (2, 3, 5)
  tape = {
    k: rng.normal(size=shape).astype(np.float32)
    for k in (
      "residual_in",
      "residual_mid",
      "residual_out",
      "attention_in",
      "mlp_in",
    )
  }
  start, mid, end = (tape[f"residual_{k}"] for k in ("in", "mid", "out"))
  with_residual = {
    "attention": (start, mid),
    "mlp": (mid, end),
    "block": (start, end),
  }
  without = {
    "attention": (tape["attention_in"], mid - start),
    "mlp": (tape["mlp_in"], end - mid),
    "block": (start, end),
  }
  tape = jax.tree.map(jnp.asarray, tape)
  for residual, pairs in ((True, with_residual), (False, without)):
    found = observe_sublayers(tape, residual=residual)
    chex.assert_shape(jax.tree.leaves(found), ())
    chex.assert_tree_all_finite(found)
    assert set(found) == set(pairs)
    for name, (x, y) in pairs.items():
      np.testing.assert_allclose(
        found[name].mean, cosine(x, y).mean(), rtol=1e-5, atol=1e-6
      )


# --- selection --------------------------------------------------------------

SCORES = {  # ties inside attention, inside MLP, and between the two
  "attention": np.float32([0.5, 0.9, 0.9, 0.1]),
  "mlp": np.float32([0.7, 0.9, 0.2, 0.7]),
  "block": np.float32([0.3, 0.3, 0.8, 0.3]),
}


@pytest.mark.parametrize(
  "target, count, reverse, order",
  [
    ("attention", 0, False, []),
    ("attention", 1, False, ["a1"]),
    ("attention", 3, False, ["a1", "a2", "a0"]),
    ("attention", 4, True, ["a3", "a0", "a1", "a2"]),
    ("mlp", 3, False, ["m1", "m0", "m3"]),
    ("mlp", 2, True, ["m2", "m0"]),
    ("joint", 5, False, ["a1", "a2", "m1", "m0", "m3"]),
    ("joint", 3, True, ["a3", "m2", "a0"]),
    ("joint", 8, False, ["a1", "a2", "m1", "m0", "m3", "a0", "m2", "a3"]),
    ("block", 2, False, ["a2", "m2", "a0", "m0"]),
    ("block", 2, True, ["a0", "m0", "a1", "m1"]),
  ],
)
def test_selection_by_hand(target, count, reverse, order):
  chosen = drops.select(SCORES, count, target, reverse=reverse)
  names = {"a": "attention", "m": "mlp"}
  expected = tuple((names[o[0]], int(o[1])) for o in order)
  assert chosen.order == expected
  for name, gate in chosen.gates.items():
    assert gate.dtype == jnp.float32 and gate.shape == (4,)
    gone = [i for kind, i in expected if kind == name]
    assert np.flatnonzero(np.asarray(gate) == 0).tolist() == sorted(gone)
    assert np.asarray(gate).sum() == 4 - len(gone)
    assert chosen.layers(name) == tuple(gone)


def scores_of(order, num_layers):
  """Scores whose ranking starts with `order`."""
  scores = np.linspace(0.5, 0.1, num_layers).astype(np.float32)
  scores[list(order)] = np.linspace(0.99, 0.9, len(order))
  return scores


@pytest.mark.parametrize(
  "target, num_layers, released",
  [  # LLM-Drop's released lists: Mistral-7B-v0.1 and Llama-2-13B
    ("attention", 32, [25, 26, 24, 22]),
    ("mlp", 32, [26, 27, 25, 24, 23, 22, 29, 28]),
    ("block", 32, [26, 25, 24, 27]),
    ("attention", 40, [33, 32, 35, 30]),
    ("block", 40, [33, 32, 31, 34, 30, 35, 29, 28]),
  ],
)
def test_released_lists_keep_their_order(target, num_layers, released):
  scores = {target: scores_of(released, num_layers)}
  for count in range(len(released) + 1):
    chosen = drops.select(scores, count, target)
    kinds = ("attention", "mlp") if target == "block" else (target,)
    for kind in kinds:
      assert chosen.layers(kind) == tuple(released[:count])
    reserved = np.flatnonzero(np.asarray(chosen.gates[kinds[0]]))
    assert set(reserved) == set(range(num_layers)) - set(released[:count])


@settings(max_examples=30, deadline=None)
@given(data=st.data(), num_layers=st.integers(1, 6))
def test_joint_is_the_top_of_both_lists(data, num_layers):
  levels = st.sampled_from([0.1, 0.5, 0.9])
  draw = st.lists(levels, min_size=num_layers, max_size=num_layers)
  scores = {k: np.float32(data.draw(draw)) for k in ("attention", "mlp")}
  count = data.draw(st.integers(0, 2 * num_layers))
  joint = [
    (-s, i) for i, s in enumerate([*scores["attention"], *scores["mlp"]])
  ]
  expected = [
    ("mlp", i - num_layers) if i >= num_layers else ("attention", i)
    for _, i in sorted(joint)[:count]
  ]
  assert drops.select(scores, count, "joint").order == tuple(expected)


def test_consecutive_selection():
  nan = np.nan
  similarity = np.float32(
    [
      [0.90, 0.50, 0.40, 0.1],
      [0.80, 0.70, 0.45, nan],
      [0.90, 0.75, nan, nan],
      [0.85, nan, nan, nan],
    ]
  )
  starts = {}
  for count in range(1, 5):
    scores_W = similarity[: 5 - count, count - 1]
    chosen = drops.select_window(scores_W, 4, count)
    starts[count] = chosen.layers("mlp")
    assert chosen.layers("attention") == chosen.layers("mlp")
    assert len(chosen.order) == 2 * count
  # A tie at one block; the last window at two and three; all at four.
  assert starts == {1: (0,), 2: (2, 3), 3: (1, 2, 3), 4: (0, 1, 2, 3)}
  assert drops.select_window(np.zeros(0), 4, 0).order == ()
  window = drops.select_window(np.float32([0.1, 0.3, 0.3]), 4, 2)
  assert window.layers("attention") == (1, 2)


def test_random_is_a_control_with_a_key():
  counts = [
    drops.select_random(jax.random.key(7), 5, n, "joint").order
    for n in range(11)
  ]
  for shorter, longer in zip(counts, counts[1:]):
    assert longer[: len(shorter)] == shorter  # nested
    assert len(set(longer)) == len(shorter) + 1  # without replacement
  again = drops.select_random(jax.random.key(7), 5, 10, "joint").order
  assert again == counts[-1]
  others = {
    drops.select_random(jax.random.key(s), 5, 3, "attention").order
    for s in range(20)
  }
  assert len(others) > 5
  assert {kind for order in others for kind, _ in order} == {"attention"}
  block = drops.select_random(jax.random.key(1), 5, 2, "block")
  assert block.layers("attention") == block.layers("mlp")


@pytest.mark.parametrize(
  "target, most", [("attention", 4), ("mlp", 4), ("block", 4), ("joint", 8)]
)
def test_counts_out_of_range_name_the_numbers(target, most):
  choices = [
    lambda n: drops.select(SCORES, n, target),
    lambda n: drops.select_random(jax.random.key(0), 4, n, target),
    lambda n: drops.select_iterative(lambda gates: SCORES, 4, n, target),
    lambda n: drops.choose_drops(lambda gates: SCORES, 4, n, target=target),
    lambda n: drops.choose_drops(None, 4, n, target=target, selection="random"),
  ]
  if target == "block":
    choices += [lambda n: drops.select_window(np.ones(3), 4, n)]
  for choose in choices:
    for count in (-1, most + 1):
      with pytest.raises(ValueError, match=rf"{count}.*{most}"):
        choose(count)


def test_bad_scores_are_named():
  with pytest.raises(ValueError, match="heads"):
    drops.select(SCORES, 1, "heads")
  broken = SCORES | {"mlp": np.float32([0, 1, np.nan, 0])}
  with pytest.raises(ValueError, match=r"mlp.*\[2\]"):
    drops.select(broken, 1, "joint")
  assert drops.select(broken, 1, "attention").order == (("attention", 1),)
  with pytest.raises(ValueError, match=r"mlp.*\(3,\).*\(4,\)"):
    drops.select(SCORES | {"mlp": np.ones(3)}, 1, "joint")
  with pytest.raises(ValueError, match="per_round is 0"):
    drops.select_iterative(lambda g: SCORES, 4, 1, "mlp", per_round=0)
  with pytest.raises(ValueError, match=r"windows.*\(2,\).*\(3,\)"):
    drops.select_window(np.ones(2), 4, 2)


# --- on a trained model -----------------------------------------------------


def golden(shared, name):
  folder = shared / "golden" / name
  weights = shared / "weights" / name
  weights = weights if weights.is_dir() else folder / "dense"
  config, params = load_params(weights)
  tokens = np.load(folder / "tokens.npz")["calibration"]
  expected = json.loads((folder / "similarities.json").read_text())
  return config, params, jnp.asarray(tokens), expected


def test_golden_similarities(shared):
  config, params, tokens, expected = golden(shared, "qwen2_random")

  @jax.jit
  def observe(tokens_BT):
    def look(tape):
      with_residual = similarities.observe_sublayers(tape)
      without = similarities.observe_sublayers(tape, residual=False)
      return with_residual, without, tape["residual_in"]

    x, (with_residual, without, h) = forward(
      config, params, tokens_BT, observe=look
    )
    h_LBTD = jnp.concatenate([h, x[None]])
    windows = {
      (i, j - i - 1): similarities.observe_similarity(h_LBTD[i], h_LBTD[j])
      for i in range(len(h))
      for j in range(i + 1, len(h_LBTD))
    }
    return with_residual, without, windows

  half = len(tokens) // 2
  parts = [observe(tokens[:half]), observe(tokens[half:])]
  with_residual, without, windows = jax.tree.map(
    similarities.merge,
    *parts,
    is_leaf=lambda s: isinstance(s, similarities.Similarity),
  )
  for short, kind in (("attn", "attention"), ("mlp", "mlp")):
    np.testing.assert_allclose(
      with_residual[kind].mean, expected[f"{short}_residual"], atol=1e-5
    )
    np.testing.assert_allclose(
      without[kind].mean, expected[f"{short}_no_residual"], atol=1e-5
    )
  np.testing.assert_allclose(
    with_residual["block"].mean, expected["block"], atol=1e-5
  )
  for (i, gap), window in windows.items():
    np.testing.assert_allclose(
      window.mean, expected["consecutive"][i][gap], atol=1e-5
    )
  np.testing.assert_allclose(
    [windows[i, 0].mean for i in range(config.num_layers)],
    with_residual["block"].mean,
    atol=1e-6,
  )


def test_similarity_is_the_effect_of_dropping_that_sublayer_alone(shared):
  config, params, tokens, _ = golden(shared, "stories260K")
  tokens = tokens[:2, :64]

  @jax.jit
  def run(gates):
    return forward(
      config,
      params,
      tokens,
      gates=gates,
      observe=lambda tape: (tape, similarities.observe_sublayers(tape)),
    )

  ones = jnp.ones(config.num_layers)
  _, (dense, scores) = run(Gates(attention=ones, mlp=ones))
  ends = {"attention": "residual_mid", "mlp": "residual_out"}
  for kind, end in ends.items():
    for i in range(config.num_layers):
      gates = Gates(attention=ones, mlp=ones)
      gates = dataclasses.replace(gates, **{kind: ones.at[i].set(0.0)})
      _, (tape, seen) = run(gates)
      np.testing.assert_allclose(
        scores[kind].mean[i],
        cosine(dense[end][i], tape[end][i]).mean(),
        atol=1e-5,
      )
      np.testing.assert_allclose(seen[kind].mean[i], 1.0, atol=1e-6)
