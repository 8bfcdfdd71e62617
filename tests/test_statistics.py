"""Statistics of kernel inputs are monoids and equal their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprune.calibration import statistics
from jaxprune.calibration.statistics import Gram, SquaredNorm

# Outside of jit every operation is a program of its own.
merge = jax.jit(statistics.merge)
observe_gram = jax.jit(statistics.observe_gram)
observe_squares = jax.jit(statistics.observe_squares)
OBSERVERS = (observe_squares, observe_gram)
PLAIN = (statistics.observe_squares, statistics.observe_gram)


def inputs(batch=8, length=5, width=6, seed=0):
  draw = np.random.default_rng(seed).normal(size=(batch, length, width))
  return draw.astype(np.float32)


def assert_close(a, b):
  chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
  chex.assert_trees_all_close(a, b, rtol=1e-6, atol=1e-5)


def test_definitions():
  x_BTI = inputs()
  exact = np.einsum("bti,btj->ij", *[x_BTI.astype(np.float64)] * 2)
  norm, gram = observe_squares(x_BTI), observe_gram(x_BTI)
  np.testing.assert_allclose(norm.sum_squares, np.diag(exact), rtol=1e-6)
  np.testing.assert_allclose(norm.mean, np.diag(exact) / 8, rtol=1e-6)
  np.testing.assert_allclose(gram.sum_outer, exact, rtol=1e-5, atol=1e-5)
  assert (int(norm.sequences), int(norm.tokens)) == (8, 40)
  assert_close(gram.squares, norm)


def test_running_mean_of_the_reference():
  """s <- s n/(n+1) + |x|^2/(n+1), sequence by sequence, is our mean."""
  x_BTI = inputs()
  mean_I = np.zeros(6)
  for n, x_TI in enumerate(x_BTI):
    mean_I = mean_I * n / (n + 1) + np.linalg.norm(x_TI, axis=0) ** 2 / (n + 1)
  np.testing.assert_allclose(observe_squares(x_BTI).mean, mean_I, rtol=1e-5)


@pytest.mark.parametrize("observe", OBSERVERS)
def test_monoid(observe):
  a, b, c = (observe(inputs(batch=n, seed=n)) for n in (1, 3, 4))
  assert_close(merge(merge(a, b), c), merge(a, merge(b, c)))
  assert_close(merge(a, b), merge(b, a))
  zero = jax.tree.map(jnp.zeros_like, a)
  assert_close(merge(zero, a), a)
  assert_close(observe(inputs()[:0]), zero)
  assert_close(observe(inputs()[:, :0]), zero)


@pytest.mark.parametrize("observe", OBSERVERS)
def test_batches_scan_and_devices_agree(observe):
  x_BTI = jnp.asarray(inputs())
  whole = observe(x_BTI)
  halves = merge(observe(x_BTI[:3]), observe(x_BTI[3:]))
  assert_close(halves, whole)

  def step(total, x_TI):
    return merge(total, observe(x_TI[None])), None

  zero = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(observe, x_BTI)
  )
  assert_close(jax.jit(lambda x: jax.lax.scan(step, zero, x)[0])(x_BTI), whole)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

  def sharded(x):
    return jax.tree.map(lambda s: jax.lax.psum(s, "x"), observe(x))

  # Counts do not depend on the data here, so they must be made to vary.
  mapped = jax.shard_map(
    sharded, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False
  )
  assert_close(jax.jit(mapped)(x_BTI), whole)
  summed = jax.pmap(sharded, axis_name="x")(x_BTI[:, None])
  assert_close(jax.tree.map(lambda s: s[0], summed), whole)
  stacked = jax.vmap(observe)(x_BTI[:, None])
  assert_close(jax.tree.map(lambda s: s.sum(0).astype(s.dtype), stacked), whole)


@pytest.mark.parametrize("observe", PLAIN)
def test_shapes_and_one_trace(observe):
  chex.clear_trace_counter()
  compiled = jax.jit(chex.assert_max_traces(observe, n=1))
  for seed in range(3):
    found = compiled(inputs(seed=seed))
    chex.assert_tree_all_finite(found)
    chex.assert_shape((found.sequences, found.tokens), ())
    sums = (
      found.sum_outer
      if observe is statistics.observe_gram
      else found.sum_squares
    )
    chex.assert_shape(sums, (6,) * (1 + (observe is statistics.observe_gram)))
    chex.assert_type([sums, found.tokens], [jnp.float32, jnp.int32])


@pytest.mark.parametrize("observe", OBSERVERS)
def test_padding_does_not_count(observe):
  x_BTI = inputs()
  valid_BT = np.random.default_rng(1).random((8, 5)) < 0.6
  valid_BT[2] = False  # A sequence of padding only.
  padded_BTI = np.where(valid_BT[..., None], x_BTI, np.nan)
  got = jax.jit(observe)(padded_BTI, valid_BT)
  rows = [observe(x[v][None]) for x, v in zip(x_BTI, valid_BT) if v.any()]
  want = rows[0]
  for row in rows[1:]:
    want = merge(want, row)
  assert_close(got, want)
  assert int(got.sequences) == 7
  assert_close(observe(x_BTI, np.ones((8, 5), bool)), observe(x_BTI))


def test_half_precision_is_summed_in_single():
  """256 squares of 300 pass the largest float16 and the digits of bfloat16."""
  for dtype in (jnp.float16, jnp.bfloat16):
    x_BTI = jnp.full((2, 128, 3), 300, dtype)
    value = 256 * float(dtype(300)) ** 2
    np.testing.assert_array_equal(observe_squares(x_BTI).sum_squares, value)
    np.testing.assert_array_equal(observe_gram(x_BTI).sum_outer, value)


def test_long_sums_keep_their_digits():
  x_BTI = inputs(batch=16, length=2048, width=4) + 3
  exact_I = np.square(x_BTI.astype(np.float64)).sum(axis=(0, 1))
  got_I = jax.jit(observe_squares)(x_BTI).sum_squares
  np.testing.assert_allclose(got_I, exact_I, rtol=3e-6)
  got_I = jax.jit(observe_gram)(x_BTI).squares.sum_squares
  np.testing.assert_allclose(got_I, exact_I, rtol=3e-6)


def test_no_tokens_have_a_mean():
  zero = observe_squares(np.zeros((0, 4, 3)))
  np.testing.assert_array_equal(zero.mean, 0)


@pytest.mark.parametrize("observe", OBSERVERS)
def test_refused(observe):
  with pytest.raises(ValueError, match=r"\[4, 3\]; use \[B, T, I\]"):
    observe(np.ones((4, 3)))
  with pytest.raises(ValueError, match=r"valid has shape \[2, 4\]"):
    observe(np.ones((2, 5, 3)), np.ones((2, 4), bool))


def test_pytrees_keep_their_fields():
  assert isinstance(
    jax.tree.map(lambda x: x, observe_squares(inputs())), SquaredNorm
  )
  assert isinstance(jax.jit(observe_gram)(inputs()), Gram)


@pytest.mark.parametrize("observe", PLAIN)
def test_statistics_have_their_shapes_and_one_program_serves_all(observe):
  once = jax.jit(chex.assert_max_traces(observe, n=1))
  found = [once(inputs(seed=seed)) for seed in range(2)]
  chex.assert_trees_all_equal_shapes_and_dtypes(*found)
  chex.assert_tree_all_finite(found)
  width = (
    found[0].sum_outer
    if observe is statistics.observe_gram
    else (found[0].sum_squares)
  )
  chex.assert_shape(
    width, (6, 6) if observe is statistics.observe_gram else (6,)
  )
  chex.assert_type(width, jnp.float32)
