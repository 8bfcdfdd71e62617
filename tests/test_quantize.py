"""Rounding to few bits, and AWQ: oracles, bounds, bookkeeping."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.calibration import moments, statistics
from jaxprune.pruning import reconstruction
from jaxprune.pruning.methods import awq as awq_lib
from jaxprune.pruning.methods import quantize as quantize_lib

# Jitted for speed: op by op, each new shape compiles dozens of programs.
_OPTIONS = ("bits", "group_size", "symmetric")
round_to_nearest = jax.jit(
  quantize_lib.round_to_nearest, static_argnames=_OPTIONS
)
awq = jax.jit(awq_lib.awq, static_argnames=(*_OPTIONS, "grid"))
dequantize = jax.jit(quantize_lib.dequantize)
layer_error = jax.jit(reconstruction.layer_error)
observe_gram = jax.jit(statistics.observe_gram)
observe_mean_abs = jax.jit(moments.observe_mean_abs)
observe_moments = jax.jit(moments.observe_moments)
merge_moments = jax.jit(moments.merge_moments)


def kernel(seed, inputs=24, outputs=5, dtype=np.float32):
  return (
    np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(dtype)
  )


def loud_inputs(seed, inputs=24):
  """A few inputs are much louder than the rest, all are correlated."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(4, 16, inputs)) @ rng.normal(size=(inputs, inputs))
  x[..., ::7] *= 20
  return jnp.asarray(x, jnp.float32)


def rounded(w, bits, size, symmetric):
  """One group at a time, float64."""
  w = np.asarray(w, np.float64)
  out = np.empty_like(w)
  levels = 2**bits
  for o in range(w.shape[1]):
    for g in range(0, w.shape[0], size):
      v = w[g : g + size, o]
      if symmetric:
        scale = np.abs(v).max() / (levels // 2 - 1) or 1.0
        out[g : g + size, o] = np.round(v / scale) * scale
      else:
        top, bottom = max(v.max(), 0), min(v.min(), 0)
        scale = (top - bottom) / (levels - 1) or 1.0
        zero = np.round(-bottom / scale)  # codes 0..levels-1
        codes = np.clip(np.round(v / scale) + zero, 0, levels - 1)
        out[g : g + size, o] = (codes - zero) * scale
  return out


@pytest.mark.parametrize("bits, size", [(2, 6), (4, 1), (4, None), (8, 6)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_against_one_group_at_a_time(bits, size, symmetric):
  w = kernel(0)
  found, codes = round_to_nearest(
    jnp.asarray(w), bits=bits, group_size=size, symmetric=symmetric
  )
  expected = rounded(w, bits, size or 24, symmetric)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  chex.assert_type([codes.codes, codes.zeros], jnp.int8)
  chex.assert_shape([codes.scales, codes.zeros], (24 // (size or 24), 5))
  chex.assert_shape([found, codes.codes], (24, 5))
  chex.assert_tree_all_finite((found, codes.scales))
  np.testing.assert_array_equal(dequantize(codes), found)
  assert int(codes.codes.max()) <= 2 ** (bits - 1) - 1
  assert int(codes.codes.min()) >= -(2 ** (bits - 1))


def test_symmetric_by_hand():
  w = jnp.asarray([[7.0], [-3.4], [0.5], [1.5], [-7.0], [0.0]])
  found, q = round_to_nearest(w, bits=4, group_size=None, symmetric=True)
  np.testing.assert_allclose(q.scales, [[1.0]])
  # Halves go to the even level.
  assert q.codes[:, 0].tolist() == [7, -3, 0, 2, -7, 0]
  assert found[:, 0].tolist() == [7, -3, 0, 2, -7, 0]


def test_asymmetric_by_hand():
  w = jnp.asarray([[0.0, 2.0], [3.0, 5.0], [-12.0, 17.0], [0.4, 0.0]])
  found, q = round_to_nearest(w, bits=4, group_size=4, symmetric=False)
  np.testing.assert_allclose(q.scales, [[1.0, 17 / 15]], rtol=1e-6)
  assert q.zeros.tolist() == [[4, -8]]
  assert q.codes.tolist() == [[4, -6], [7, -4], [-8, 7], [4, -8]]
  np.testing.assert_allclose(
    found, [[0, 34 / 15], [3, 68 / 15], [-12, 17], [0, 0]], rtol=1e-6
  )


@settings(max_examples=25, deadline=None)
@given(
  seed=st.integers(0, 10**6),
  bits=st.integers(2, 8),
  symmetric=st.booleans(),
  exponent=st.integers(-30, 30),
)
def test_half_a_step_at_most_and_zeros_stay(seed, bits, symmetric, exponent):
  w = kernel(seed, 8, 3) * np.float32(2.0**exponent)
  w[::3] = 0
  if seed % 2:
    w = np.abs(w)  # one-signed groups
  found, q = quantize_lib.round_to_nearest(  # bits are data here
    jnp.asarray(w), bits=bits, group_size=4, symmetric=symmetric
  )
  step = np.repeat(np.asarray(q.scales), 4, axis=0)
  assert (np.abs(found - w) <= step * (0.5 + 1e-4)).all()
  assert (np.asarray(found)[::3] == 0).all()
  assert (np.asarray(q.scales) > 0).all()


def test_groups_are_alone_and_zeros_are_safe():
  w = kernel(1, 8, 2)
  w[4:] = 0
  found, q = round_to_nearest(jnp.asarray(w), bits=4, group_size=4)
  assert (q.scales[1] == 1).all() and (found[4:] == 0).all()
  louder = w.copy()
  louder[4:] = 1000
  again, _ = round_to_nearest(jnp.asarray(louder), bits=4, group_size=4)
  np.testing.assert_array_equal(found[:4], again[:4])


def test_rounding_twice_changes_nothing():
  w = jnp.asarray(kernel(2))
  once, _ = round_to_nearest(w, bits=4, group_size=8, symmetric=True)
  twice, _ = round_to_nearest(once, bits=4, group_size=8, symmetric=True)
  np.testing.assert_allclose(once, twice, rtol=1e-6)


@pytest.mark.parametrize(
  "bits, size, words",
  [(4, 128, "128.*172"), (4, 0, "0"), (1, 4, "1"), (9, 4, "9")],
)
def test_what_does_not_fit_is_refused(bits, size, words):
  with pytest.raises(ValueError, match=words):
    round_to_nearest(jnp.ones((172, 2)), bits=bits, group_size=size)


def test_dtype_is_kept_and_levels_are_float32():
  w = jnp.asarray(kernel(3), jnp.bfloat16)
  found, q = round_to_nearest(w, bits=8, group_size=8)
  assert found.dtype == jnp.bfloat16 and q.scales.dtype == jnp.float32
  np.testing.assert_array_equal(found, dequantize(q).astype(jnp.bfloat16))


def methods():
  x = loud_inputs(4)
  gram, loud = observe_gram(x), observe_mean_abs(x)
  return gram, {
    "rtn": lambda w: quantize_lib.round_to_nearest(
      w, gram, bits=4, group_size=8
    ),
    "awq": lambda w: awq_lib.awq(w, gram, mean_abs=loud, bits=4, group_size=8),
    "awq, by gram alone": lambda w: awq_lib.awq(w, gram, bits=4, group_size=8),
  }


@pytest.mark.parametrize("name", ["rtn", "awq", "awq, by gram alone"])
def test_compiled_and_mapped_agree(name):
  method = methods()[1][name]
  w_LIO = jnp.stack([jnp.asarray(kernel(seed)) for seed in range(3)])
  mapped, codes = jax.jit(jax.vmap(method))(w_LIO)
  assert codes.bits == 4
  compiled = jax.jit(method)
  for w_IO, found in zip(w_LIO, mapped):
    np.testing.assert_allclose(compiled(w_IO)[0], found, atol=1e-5)


@pytest.mark.parametrize("bits, symmetric", [(4, False), (4, True), (3, False)])
def test_awq_never_errs_more_than_rounding(bits, symmetric):
  wins = 0
  options = dict(bits=bits, group_size=8, symmetric=symmetric)
  method = functools.partial(awq, **options)
  for seed in range(5):
    x = loud_inputs(seed)
    gram = observe_gram(x)
    w = jnp.asarray(kernel(seed))
    plain, _ = round_to_nearest(w, **options)
    for loud in (None, observe_mean_abs(x)):
      better, q = method(w, gram, mean_abs=loud)
      before, after = (
        float(layer_error(w, v, gram.sum_outer)) for v in (plain, better)
      )
      assert after <= before * (1 + 1e-5)
      wins += after < 0.9 * before
      np.testing.assert_allclose(dequantize(q), better, rtol=1e-6)
  assert wins > 2  # it does more than fall back


def test_awq_is_the_best_of_its_grid():
  x, w = loud_inputs(6), kernel(6)
  loud = np.abs(np.asarray(x, np.float64)).mean((0, 1))
  x_NI = np.asarray(x, np.float64).reshape(-1, 24)
  errors, kernels = [], []
  for alpha in np.linspace(0, 1, 11):
    s = (loud / loud.max()) ** alpha
    kernels.append(rounded(w * s[:, None], 4, 8, False) / s[:, None])
    errors.append(np.sum((x_NI @ (kernels[-1] - w)) ** 2))
  best = int(np.argmin(errors))
  assert 0 < best < 10  # else the test could not tell
  found, q = awq(
    jnp.asarray(w),
    observe_gram(x),
    mean_abs=observe_mean_abs(x),
    group_size=8,
    grid=10,
  )
  np.testing.assert_allclose(
    q.input_scales, (loud / loud.max()) ** (best / 10), rtol=1e-4
  )
  np.testing.assert_allclose(found, kernels[best], atol=1e-4)


def test_awq_folds_its_scales_into_the_kernel():
  x, w = loud_inputs(7), jnp.asarray(kernel(7))
  found, q = awq(w, observe_gram(x), bits=4, group_size=8)
  assert float(q.input_scales.min()) < 1  # it did scale
  bare = dataclasses.replace(q, input_scales=jnp.ones(24))
  np.testing.assert_allclose(  # (x / s) Q(s W) = x W'
    (x / q.input_scales[None, None]) @ dequantize(bare),
    x @ found,
    rtol=1e-4,
    atol=1e-3,
  )
  expected = jax.jit(quantize_lib.quantize, static_argnames=_OPTIONS)(
    w * q.input_scales[:, None], bits=4, group_size=8, symmetric=False
  )
  np.testing.assert_array_equal(q.codes, expected.codes)


def test_loudness_has_no_unit_and_silence_is_plain_rounding():
  loud = jnp.asarray([0.0, 1.0, 4.0])
  np.testing.assert_allclose(
    awq_lib.input_scales(loud, jnp.float32(0.5)), [1e-2, 0.5, 1.0], rtol=1e-6
  )
  np.testing.assert_allclose(
    awq_lib.input_scales(loud * 1e3, jnp.float32(0.5)),
    awq_lib.input_scales(loud, jnp.float32(0.5)),
    rtol=1e-6,
  )
  assert (awq_lib.input_scales(loud, jnp.float32(0.0)) == 1).all()
  assert (awq_lib.input_scales(jnp.zeros(3), jnp.float32(0.7)) == 1).all()
  w = jnp.asarray(kernel(8))
  silent, q = awq(w, observe_gram(jnp.zeros((1, 2, 24))), group_size=8)
  plain, _ = round_to_nearest(w, group_size=8)
  np.testing.assert_array_equal(silent, plain)
  with pytest.raises(ValueError, match="grid is 0"):
    awq(w, observe_gram(jnp.zeros((1, 2, 24))), group_size=8, grid=0)


# --- moments ----------------------------------------------------------------


def test_moments_and_mean_abs_are_monoids():
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, size=(5, 7, 4)).astype(np.float32)
  valid = rng.random((5, 7)) < 0.7
  valid[2] = False
  x[~valid] = np.nan
  pieces = [
    (jnp.asarray(x[s]), jnp.asarray(valid[s]))
    for s in (slice(0, 1), slice(1, 3), slice(2, 2), slice(3, 5))
  ]
  kept = x[valid].astype(np.float64)

  a, b, c, d = (observe_moments(*p) for p in pieces)
  merge = merge_moments
  for found in (
    merge(merge(merge(a, b), c), d),
    merge(a, merge(b, merge(c, d))),
    merge(merge(d, c), merge(b, a)),
    observe_moments(jnp.asarray(x), jnp.asarray(valid)),
  ):
    assert float(found.tokens) == valid.sum()
    np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance, kept.var(0, ddof=1), rtol=1e-5)

  a, b, c, d = (observe_mean_abs(*p) for p in pieces)
  merge = statistics.merge
  for found in (
    merge(merge(a, b), merge(c, d)),
    merge(a, merge(merge(b, c), d)),
    observe_mean_abs(jnp.asarray(x), jnp.asarray(valid)),
  ):
    np.testing.assert_allclose(found.mean, np.abs(kept).mean(0), rtol=1e-5)


def test_variance_survives_a_large_mean():
  x = np.random.default_rng(1).normal(1000, 0.01, size=(8, 64, 3))
  x = jnp.asarray(x, jnp.float32)
  truth = np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1)
  parts = [observe_moments(x[i : i + 1]) for i in range(8)]
  found = parts[0]
  for part in parts[1:]:
    found = merge_moments(found, part)
  # A sum of squares would have nothing left of 1e-4 beside 1e6.
  np.testing.assert_allclose(found.variance, truth, rtol=0.02)
  naive = jnp.mean(x**2, (0, 1)) - jnp.mean(x, (0, 1)) ** 2
  assert (np.abs(np.asarray(naive) - truth) > 0.5 * truth).any()


def test_nothing_seen_is_neutral():
  x = jnp.asarray(kernel(9)[None])
  none = observe_moments(x, jnp.zeros((1, 24), bool))
  some = observe_moments(x)
  for merged in (merge_moments(none, some), merge_moments(some, none)):
    jax.tree.map(np.testing.assert_array_equal, merged, some)
  both = merge_moments(none, none)
  assert (both.mean == 0).all() and (both.variance == 0).all()
