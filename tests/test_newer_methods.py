"""RIA, OWL, allocations, swaps, FLAP and the layer error they share."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import statistics
from jaxprune.checkpoints import load_params
from jaxprune.models.decoder import forward
from jaxprune.pruning import reconstruction
from jaxprune.pruning.methods import ria, sparse_swaps
from jaxprune.pruning.patterns import NofM, Unstructured, keep_mask

HALF = Unstructured(sparsity=0.5)
# One compilation per shape for all tests; max_swaps is data.
REFINE = jax.jit(sparse_swaps.refine, static_argnames=("of", "all_pairs"))
SWAPS = jax.jit(sparse_swaps.sparse_swaps, static_argnums=2)
observe_gram = jax.jit(statistics.observe_gram)
observe_squares = jax.jit(statistics.observe_squares)
KEEP = jax.jit(keep_mask, static_argnums=1)
layer_error = jax.jit(reconstruction.layer_error)
output_errors = jax.jit(reconstruction.output_errors)
ria_scores = jax.jit(ria.ria_scores, static_argnames="power")
RIA = jax.jit(ria.ria, static_argnums=2)


def case(seed, inputs=12, outputs=5, tokens=40):
  """A kernel and correlated inputs of very different size."""
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(inputs, inputs)) * np.exp(rng.normal(size=inputs))
  x = rng.normal(size=(2, tokens, inputs)) @ mix
  w = rng.normal(size=(inputs, outputs))
  return jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)


def same_compiled_mapped(method, *stacked):
  """Method on three layers of arguments: one by one, and all at once."""

  def layer(tree, i):
    return jax.tree.map(lambda a: a[i], tree)

  def same(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)

  mapped = jax.jit(jax.vmap(method))(*stacked)
  chex.assert_tree_all_finite(mapped)
  chex.clear_trace_counter()
  compiled = jax.jit(chex.assert_max_traces(method, n=1))
  for i in range(3):
    same(compiled(*(layer(s, i) for s in stacked)), layer(mapped, i))


# --- layer error ------------------------------------------------------------


def test_layer_error_is_the_error_of_the_outputs():
  w, x = case(0)
  new = w + 0.1 * jnp.asarray(case(1)[0])
  gram = observe_gram(x).sum_outer
  x64, w64, new64 = (np.asarray(a, np.float64) for a in (x, w, new))
  moved = np.sum((x64 @ (new64 - w64)) ** 2, axis=(0, 1))
  np.testing.assert_allclose(output_errors(new - w, gram), moved, rtol=1e-4)
  expected = moved.sum() / np.sum((x64 @ w64) ** 2)
  for scale in (1.0, 1e-6, 1e6):  # a sum, a mean or a Hessian
    for dtype in (jnp.float32, jnp.float16):
      np.testing.assert_allclose(
        layer_error(w.astype(dtype), new.astype(dtype), gram * scale),
        expected,
        rtol=1e-4 if dtype == jnp.float32 else 1e-2,
      )


def test_layer_error_ends():
  w, x = case(2)
  gram = observe_gram(x).sum_outer
  error = layer_error
  assert float(error(w, w, gram)) == 0
  np.testing.assert_allclose(error(w, 0 * w, gram), 1, rtol=1e-6)
  zero = jnp.zeros_like(w)
  assert float(error(zero, zero, gram)) == 0
  assert float(error(zero, w, gram)) == np.inf
  assert float(error(w, zero, 0 * gram)) == 0  # nothing was seen


def test_layer_error_is_never_negative():
  rng = np.random.default_rng(3)
  x = rng.normal(size=(1, 3, 40)) * 1e3  # rank 3 of 40
  gram = observe_gram(jnp.asarray(x, jnp.float32)).sum_outer
  _, _, nullspace = np.linalg.svd(x[0])
  delta = jnp.asarray(nullspace[3:].T, jnp.float32)
  found = np.asarray(output_errors(delta, gram))
  assert (found >= 0).all()
  raw = np.asarray((delta * (gram @ delta)).sum(0))
  assert (raw < 0).any()  # else the clip was not needed
  size = np.asarray((jnp.abs(delta) * (jnp.abs(gram) @ jnp.abs(delta))).sum(0))
  assert (found <= 1e-6 * size).all()


# --- RIA --------------------------------------------------------------------


def squares(values):
  return observe_squares(jnp.sqrt(jnp.asarray([[values]], jnp.float32)))


def test_ria_by_hand():
  w = jnp.asarray([[1.0, -1.0], [3.0, 0.0], [0.0, 1.0]])
  # Sums into the outputs 4, 2; out of the inputs 2, 3, 1.
  share = np.array(
    [[1 / 4 + 1 / 2, 1 / 2 + 1 / 2], [3 / 4 + 1, 0], [0, 1 / 2 + 1]]
  )
  seen = squares([16.0, 1.0, 0.0])  # norms 4, 1, 0: square roots 2, 1, 0
  np.testing.assert_allclose(
    ria_scores(w, seen), share * [[2], [1], [0]], rtol=1e-6
  )
  np.testing.assert_allclose(ria.ria_scores(w, seen, power=0.0), share)
  np.testing.assert_allclose(
    ria_scores(w, seen, power=1.0), share * [[4], [1], [0]], rtol=1e-6
  )


def test_ria_against_loops():
  w, x = case(4)
  seen = observe_squares(x)
  w64 = np.abs(np.asarray(w, np.float64))
  norm = np.sqrt((np.asarray(x, np.float64) ** 2).sum((0, 1)) / 2)
  expected = np.empty_like(w64)
  for i, o in np.ndindex(w64.shape):
    expected[i, o] = (
      w64[i, o] / w64[:, o].sum() + w64[i, o] / w64[i].sum()
    ) * norm[i] ** 0.5
  np.testing.assert_allclose(ria.ria_scores(w, seen), expected, rtol=1e-5)
  new, mask = RIA(w, seen, HALF)
  order = np.argsort(expected, axis=0, kind="stable")
  for o in range(w.shape[1]):
    assert set(np.flatnonzero(~np.asarray(mask[:, o]))) == set(order[:6, o])
  np.testing.assert_array_equal(new, np.where(mask, w, 0))


def test_ria_ties_and_silent_rows():
  w = jnp.ones((4, 3)).at[:, 2].set(0)  # all equal; an output of zeros
  new, mask = RIA(w, squares([1.0] * 4), HALF)
  assert mask.tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
  assert np.isfinite(np.asarray(new)).all()
  wide = RIA(w.astype(jnp.bfloat16), squares([1.0] * 4), NofM(keep=1, of=4))
  assert wide[0].dtype == jnp.bfloat16 and wide[1].sum(0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("pattern", [HALF, NofM(keep=1, of=4)])
def test_ria_compiled_mapped(pattern):
  w, x = (jnp.stack(a) for a in zip(*(case(s) for s in range(3))))
  seen = jax.vmap(observe_squares)(x)
  same_compiled_mapped(lambda w, s: ria.ria(w, s, pattern), w, seen)


# --- swaps ------------------------------------------------------------------


def removed_error(w_I, keep_I, gram_II):
  d = np.where(keep_I, 0, w_I)
  return d @ gram_II @ d


def swap_once(w_I, keep_I, gram_II, of):
  """Best swap of one output by trying every pair; None if none helps."""
  before = removed_error(w_I, keep_I, gram_II)
  best, change = None, 0.0
  for p in np.flatnonzero(keep_I):  # lowest removed first, then restored
    for u in np.flatnonzero(~keep_I):
      if p // of != u // of:
        continue
      trial = keep_I.copy()
      trial[p], trial[u] = False, True
      gain = removed_error(w_I, trial, gram_II) - before
      if gain < change:
        best, change = trial, gain
  return best


def whole_numbers(seed, inputs=12, outputs=4):
  """Small integers: float32 is exact, and ties are real ties."""
  rng = np.random.default_rng(seed)
  x = rng.integers(-2, 3, size=(1, 9, inputs)).astype(np.float32)
  w = rng.integers(-3, 4, size=(inputs, outputs)).astype(np.float32)
  keep = np.argsort(rng.random((inputs, outputs)), axis=0) < inputs // 2
  return w, keep, x[0].T @ x[0]


@pytest.mark.parametrize("of", [12, 6, 4, 2])
def test_each_swap_is_the_best_of_all_pairs(of):
  moved = 0
  for seed in range(3):
    w, keep, gram = whole_numbers(seed)
    expected = keep.copy()
    for count in range(8):
      found = np.asarray(REFINE(w, keep, gram, of=of, max_swaps=count))
      np.testing.assert_array_equal(found, expected)
      for o in range(w.shape[1]):
        better = swap_once(w[:, o], expected[:, o], gram, of)
        if better is not None:
          expected[:, o] = better
          moved += 1
  assert moved > 10


@pytest.mark.parametrize("all_pairs", [True, False])
def test_swaps_only_ever_help(all_pairs):
  for seed in range(4):
    w, x = case(seed)
    gram = observe_gram(x).sum_outer
    rng = np.random.default_rng(seed)
    keep = rng.random(w.shape) < 0.5  # uneven counts, which must stay
    last = output_errors(jnp.where(keep, 0.0, w), gram)
    first = last
    for count in (0, 1, 2, 3, 5, 1000):
      mask = np.asarray(
        REFINE(w, keep, gram, max_swaps=count, all_pairs=all_pairs)
      )
      np.testing.assert_array_equal(mask.sum(0), keep.sum(0))
      assert (np.sum(mask & ~keep, axis=0) <= count).all()
      now = output_errors(jnp.where(mask, 0.0, w), gram)
      # One by one the errors fall; each is computed afresh here.
      assert (now <= last * (1 + 1e-5)).all() and (now <= first).all()
      last = now
    assert float(now.sum()) < 0.9 * float(first.sum())
    again = REFINE(w, mask, gram, max_swaps=1000, all_pairs=all_pairs)
    np.testing.assert_array_equal(again, mask)


def test_after_all_pairs_no_swap_is_left():
  for seed in range(4):
    w, x = case(seed)
    gram64 = np.einsum("bti,btj->ij", *[np.asarray(x, np.float64)] * 2)
    keep = np.asarray(KEEP(jnp.abs(w), HALF))
    mask = np.asarray(
      REFINE(w, jnp.asarray(keep), jnp.asarray(gram64, jnp.float32))
    )
    for o in range(w.shape[1]):
      column = np.asarray(w[:, o], np.float64)
      here = removed_error(column, mask[:, o], gram64)
      best = min(
        removed_error(column, np.isin(range(12), kept), gram64)
        for kept in itertools.combinations(range(12), 6)
      )
      assert here >= best * (1 - 1e-9)
      better = swap_once(column, mask[:, o], gram64, 12)
      if better is not None:
        start = removed_error(column, keep[:, o], gram64)
        gain = here - removed_error(column, better, gram64)
        assert gain <= 2e-6 * start  # within what counts as rounding


def test_swaps_repair_a_planted_mistake():
  # Inputs 0 and 1 are the same signal, so w0 and w1 cancel: removing both
  # costs nothing, though both look large. Wanda removes the small ones.
  base = np.random.default_rng(0).normal(size=(1, 64, 3))
  x = jnp.asarray(base[..., [0, 0, 1, 2]], jnp.float32)
  w = jnp.asarray([[5.0], [-5.0], [1.0], [1.0]])
  gram = observe_gram(x)
  start = KEEP(jnp.abs(w), HALF)
  assert start[:, 0].tolist() == [True, True, False, False]
  new, mask = SWAPS(w, gram, HALF)
  assert layer_error(w, new, gram.sum_outer) <= (
    layer_error(w, jnp.where(start, w, 0), gram.sum_outer)
  )
  # Two swaps at once would be needed, and one swap alone is no gain: kept.
  np.testing.assert_array_equal(mask, start)
  half = jnp.asarray([[False], [True], [True], [False]])
  fixed = REFINE(w, half, gram.sum_outer)
  assert fixed[:, 0].tolist() == [False, False, True, True]


def test_sparse_swaps_starts_from_wanda_or_any_mask():
  w, x = case(3)
  gram = observe_gram(x)
  norm = np.sqrt(np.diagonal(np.asarray(gram.sum_outer)))
  wanda = KEEP(jnp.abs(w) * norm[:, None], HALF)
  new, mask = SWAPS(w, gram, HALF)
  np.testing.assert_array_equal(mask, REFINE(w, wanda, gram.sum_outer))
  np.testing.assert_array_equal(new, np.where(mask, w, 0))
  first = np.asarray(output_errors(jnp.where(wanda, 0.0, w), gram.sum_outer))
  last = np.asarray(output_errors(new - w, gram.sum_outer))
  assert (last <= first).all() and last.sum() < 0.8 * first.sum()
  pattern = NofM(keep=1, of=4)
  start = jnp.asarray(
    np.tile([True, False, False, False], 3)[:, None] & np.ones((1, 5), bool)
  )
  low, mask = SWAPS(w.astype(jnp.bfloat16), gram, pattern, mask_IO=start)
  assert low.dtype == jnp.bfloat16
  assert (np.asarray(mask).reshape(3, 4, 5).sum(1) == 1).all()
  assert (np.asarray(mask) != np.asarray(start)).any()
  with pytest.raises(ValueError, match="5.*12"):
    sparse_swaps.refine(w, wanda, gram.sum_outer, of=5)


def test_swaps_do_nothing_where_nothing_can_be_won():
  w, x = case(6)
  gram = observe_gram(x).sum_outer
  for keep in (jnp.ones(w.shape, bool), jnp.zeros(w.shape, bool)):
    np.testing.assert_array_equal(REFINE(w, keep, gram), keep)
  keep = KEEP(jnp.abs(w), HALF)
  np.testing.assert_array_equal(REFINE(w, keep, 0 * gram), keep)
  # Independent inputs: what Wanda removes is already best.
  diagonal = jnp.diag(jnp.arange(1.0, 13.0))
  keep = KEEP(jnp.abs(w) * jnp.sqrt(jnp.arange(1.0, 13.0))[:, None], HALF)
  np.testing.assert_array_equal(REFINE(w, keep, diagonal), keep)


def test_rounding_cannot_make_swaps_harm():
  # Rank one beside tiny noise: every error is a difference of large numbers.
  rng = np.random.default_rng(7)
  x = np.ones((1, 50, 20)) * 1e3 + rng.normal(size=(1, 50, 20)) * 1e-2
  gram = observe_gram(jnp.asarray(x, jnp.float32)).sum_outer
  w = jnp.asarray(rng.normal(size=(20, 30)), jnp.float32)
  keep = jnp.asarray(np.argsort(rng.random((20, 30)), axis=0) < 10)
  mask = REFINE(w, keep, gram)
  before, after = (
    np.asarray(output_errors(jnp.where(m, 0.0, w), gram)) for m in (keep, mask)
  )
  assert (after <= before).all() and after.sum() < before.sum()


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [HALF, NofM(keep=2, of=4)])
def test_swaps_compiled_mapped(pattern):
  w, x = (jnp.stack(a) for a in zip(*(case(s) for s in range(3))))
  seen = jax.vmap(observe_gram)(x)
  same_compiled_mapped(
    lambda w, s: sparse_swaps.sparse_swaps(w, s, pattern), w, seen
  )


def test_outputs_can_live_on_different_devices():
  w, x = case(8, outputs=8)
  gram = observe_gram(x).sum_outer
  keep = KEEP(jnp.abs(w), HALF)
  mesh = jax.make_mesh((8,), ("O",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.P(None, "O")
  spread = jax.jit(
    jax.shard_map(
      sparse_swaps.refine,
      mesh=mesh,
      in_specs=(spec, spec, jax.P()),
      out_specs=spec,
    )
  )
  np.testing.assert_array_equal(spread(w, keep, gram), REFINE(w, keep, gram))


# --- on a trained model -----------------------------------------------------


def test_swaps_on_a_trained_layer(shared):
  """At 50 % on real inputs: swaps well below Wanda, Wanda below magnitude."""
  config, params = load_params(shared / "weights" / "stories260K")
  tokens = np.load(shared / "golden" / "stories260K" / "tokens.npz")[
    "calibration"
  ][:4]

  @jax.jit
  def grams(tokens):
    return forward(
      config, params, tokens, observe=lambda tape: observe_gram(tape["mlp_in"])
    )[1]

  gram = jax.tree.map(lambda a: a[0], grams(jnp.asarray(tokens))).sum_outer
  for name in ("gate", "up"):
    w = params["layers"]["mlp"][name]["kernel"][0]
    norm_I = jnp.sqrt(jnp.diagonal(gram))
    masks = {
      "magnitude": KEEP(jnp.abs(w), HALF),
      "wanda": KEEP(jnp.abs(w) * norm_I[:, None], HALF),
    }
    masks["swaps"] = REFINE(w, masks["wanda"], gram)
    error = {
      k: float(layer_error(w, jnp.where(m, w, 0), gram))
      for k, m in masks.items()
    }
    assert error["swaps"] < 0.8 * error["wanda"]
    assert error["wanda"] < error["magnitude"]
