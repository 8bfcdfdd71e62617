"""Exact counts, ties by index, and one answer however the work is laid out."""

import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.pruning import order_statistics
from jaxprune.pruning.patterns import (
  NofM,
  Unstructured,
  check_shape,
  keep_mask,
  keep_mask_count,
  removed_count,
)

# Shapes on both sides of every change in how inputs are counted: one row a
# stretch, several, the longest, and inputs that stretches do not divide.
SHAPES = ((1, 1), (3, 5), (16, 2), (81, 3), (173, 4), (701, 2))


def lose_first(scores_IO, removed):
  """Oracle: a stable ascending sort along the inputs loses its first."""
  mask_IO = np.ones(scores_IO.shape, bool)
  order_IO = np.argsort(scores_IO, axis=0, kind="stable")
  np.put_along_axis(mask_IO, order_IO[:removed], False, axis=0)
  return mask_IO


def oracle(scores_IO, removed, group):
  if group == "output":
    return lose_first(scores_IO, removed)
  return lose_first(scores_IO.reshape(-1, 1), removed).reshape(scores_IO.shape)


def oracle_nm(scores_IO, keep, of):
  groups = np.split(scores_IO, scores_IO.shape[0] // of)
  return np.concatenate([lose_first(g, of - keep) for g in groups])


@jax.jit
def by_output(scores_IO, removed):
  return keep_mask_count(scores_IO, removed)


@jax.jit
def by_matrix(scores_IO, removed):
  return keep_mask_count(scores_IO, removed, "matrix")


def tied(shape, seed=0, values=3):
  """Scores with many ties of either sign."""
  draw = np.random.default_rng(seed).integers(-values, values + 1, shape)
  return draw.astype(np.float32)


# Hand-sized tables -----------------------------------------------------------

# One output over eight inputs; 1 is the kept.
TABLE = (
  ([4, 1, 3, 2, 8, 5, 7, 6], "2:4", [1, 0, 1, 0, 1, 0, 1, 0]),
  # 1:4 keeps one; read as "one removed" it would keep three.
  ([4, 1, 3, 2, 8, 5, 7, 6], "1:4", [1, 0, 0, 0, 1, 0, 0, 0]),
  ([4, 1, 3, 2, 8, 5, 7, 6], "3:4", [1, 0, 1, 1, 1, 0, 1, 1]),
  ([4, 1, 3, 2, 8, 5, 7, 6], "1:2", [1, 0, 1, 0, 1, 0, 1, 0]),
  ([4, 1, 3, 2, 8, 5, 7, 6], "4:8", [0, 0, 0, 0, 1, 1, 1, 1]),
  # Ties: the lowest index leaves first.
  ([1, 1, 1, 1, 2, 1, 2, 1], "2:4", [0, 0, 1, 1, 1, 0, 1, 0]),
  ([1, 1, 1, 1, 2, 2, 2, 1], "1:4", [0, 0, 0, 1, 0, 0, 1, 0]),
  ([5, 5, 5, 5, 5, 5, 5, 5], 0.5, [0, 0, 0, 0, 1, 1, 1, 1]),
  ([0, 0, 1, 0, 1, 0, 0, 0], 0.5, [0, 0, 1, 0, 1, 0, 1, 1]),
  # -0 ties with 0.
  ([0.0, -0.0, 0.0, -0.0, 1, 1, 1, 1], 0.25, [0, 0, 1, 1, 1, 1, 1, 1]),
  ([-0.0, 0.0, -0.0, 0.0, 0, 0, 0, -0.0], "2:4", [0, 0, 1, 1, 0, 0, 1, 1]),
  # Infinities are the ends of the order; negative scores are scores.
  (
    [np.inf, 1, -np.inf, 2, -1, 0, -np.inf, np.inf],
    0.5,
    [1, 1, 0, 1, 0, 0, 0, 1],
  ),
  (
    [np.inf, np.inf, -np.inf, 2, -3, -2, -1, -4],
    "2:4",
    [1, 1, 0, 0, 0, 1, 1, 0],
  ),
  # A nan is the lowest, below -inf, whatever its sign.
  ([np.nan, 1, -np.inf, 2, -np.nan, 0, 3, 4], 0.25, [0, 1, 1, 1, 0, 1, 1, 1]),
  (
    [9, np.nan, 9, 9, np.nan, np.nan, np.nan, 9],
    "2:4",
    [0, 0, 1, 1, 0, 0, 1, 1],
  ),
  # The smallest numbers there are, flushed to zero by some hardware.
  ([2e-45, 1e-45, 4e-45, 3e-45, 1, 1, 1, 1], 0.25, [0, 0, 1, 1, 1, 1, 1, 1]),
  # Floors: 8 * 0.3 = 2.4, 8 * 0.99 = 7.92, 8 * 0.1 = 0.8.
  ([4, 1, 3, 2, 8, 5, 7, 6], 0.3, [1, 0, 1, 0, 1, 1, 1, 1]),
  ([4, 1, 3, 2, 8, 5, 7, 6], 0.99, [0, 0, 0, 0, 1, 0, 0, 0]),
  ([4, 1, 3, 2, 8, 5, 7, 6], 0.1, [1, 1, 1, 1, 1, 1, 1, 1]),
  ([4, 1, 3, 2, 8, 5, 7, 6], 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
)


def parse(pattern, group="output"):
  if isinstance(pattern, float):
    return Unstructured(sparsity=pattern, group=group)
  keep, of = (int(n) for n in pattern.split(":"))
  return NofM(keep=keep, of=of)


@pytest.mark.parametrize("pattern", sorted({str(p) for _, p, _ in TABLE}))
def test_tables(pattern):
  """All rows of one pattern side by side, as the outputs of one kernel."""
  rows = [(s, m, p) for s, p, m in TABLE if str(p) == pattern]
  scores_IO = np.array([s for s, _, _ in rows], np.float32).T
  want_IO = np.array([m for _, m, _ in rows], bool).T
  f = jax.jit(keep_mask, static_argnums=1)
  whole = parse(rows[0][2])
  np.testing.assert_array_equal(f(scores_IO, whole), want_IO)
  tiny = (np.abs(scores_IO) < 1e-40) & (scores_IO != 0)
  if not tiny.any():
    low_IO = scores_IO.astype(jnp.bfloat16)
    np.testing.assert_array_equal(f(low_IO, whole), want_IO)
  if isinstance(whole, Unstructured):
    # One output is a matrix, so the groups agree on it.
    value = parse(rows[0][2], "matrix")
    for o in range(len(rows)):
      np.testing.assert_array_equal(
        f(scores_IO[:, o : o + 1], value), want_IO[:, o : o + 1]
      )


def test_matrix_ties_are_row_major():
  """Ties run along the outputs of an input first, as [I, O] lies in memory."""
  keep = jax.jit(keep_mask, static_argnums=1)
  scores_IO = jnp.array([[2, 1, 2], [1, 1, 2], [2, 1, 3]], jnp.float32)
  pattern = Unstructured(sparsity=0.34, group="matrix")  # 3 of 9
  want_IO = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
  np.testing.assert_array_equal(keep(scores_IO, pattern), want_IO)
  pattern = Unstructured(sparsity=0.67, group="matrix")  # 6: four 1s, two 2s
  want_IO = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1]], bool)
  np.testing.assert_array_equal(keep(scores_IO, pattern), want_IO)


def test_eager_is_jit():
  """Of one output and of a matrix; n:m is in test_mask_devices."""
  scores_IO = jnp.asarray(tied((12, 3)))
  for pattern in (parse(0.5), parse(0.5, "matrix")):
    chex.assert_trees_all_equal(
      keep_mask(scores_IO, pattern),
      jax.jit(lambda s, p=pattern: keep_mask(s, p))(scores_IO),
    )


# Against the oracle ----------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", (0, 2, 10**6))
def test_counts_and_ties(shape, values):
  scores_IO = tied(shape, values=values)
  inputs, size = shape[0], shape[0] * shape[1]
  for removed in sorted({0, 1, inputs // 2, inputs - 1, inputs}):
    np.testing.assert_array_equal(
      by_output(scores_IO, removed), oracle(scores_IO, removed, "output")
    )
  for removed in sorted({0, 1, size // 3, size - 1, size}):
    np.testing.assert_array_equal(
      by_matrix(scores_IO, removed), oracle(scores_IO, removed, "matrix")
    )


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.data())
def test_any_floats(data):
  """Any bits of float32, nan aside, in any count."""
  floats = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf]),
  )
  flat = data.draw(st.lists(floats, min_size=12, max_size=12))
  scores_IO = np.array(flat, np.float32).reshape(6, 2)
  removed = data.draw(st.integers(0, 12))
  np.testing.assert_array_equal(
    by_matrix(scores_IO, removed), oracle(scores_IO, removed, "matrix")
  )
  removed = min(removed, 6)
  np.testing.assert_array_equal(
    by_output(scores_IO, removed), oracle(scores_IO, removed, "output")
  )


def test_counts_per_output():
  scores_IO = tied((50, 4))
  removed_O = np.array([0, 7, 49, 50], np.int32)
  got_IO = by_output(scores_IO, removed_O)
  for o, removed in enumerate(removed_O):
    np.testing.assert_array_equal(
      got_IO[:, o : o + 1], oracle(scores_IO[:, o : o + 1], removed, "output")
    )


def test_counts_out_of_range_are_clipped():
  scores_IO = tied((5, 3))
  assert by_output(scores_IO, -1).all() and not by_output(scores_IO, 99).any()
  assert by_matrix(scores_IO, -1).all() and not by_matrix(scores_IO, 99).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_sort_equals_counting(shape):
  """What a GPU does and what a CPU does."""
  keys_IO = np.asarray(order_statistics.ordered_keys(jnp.asarray(tied(shape))))
  size = shape[0] * shape[1]
  counting, sorting = (
    jax.jit(function, static_argnums=2)
    for function in (
      order_statistics._kth_by_counting,
      order_statistics._kth_by_sorting,
    )
  )
  for group, counts in (
    ("output", (0, 1, shape[0] // 2, shape[0], shape[0] + 3)),
    ("matrix", (0, 1, size // 2, size, size + 3)),
  ):
    for removed in counts:
      count = np.int32(removed)
      low = np.asarray(counting(keys_IO, count, group))
      high = np.asarray(sorting(keys_IO, count, group))
      if removed <= (shape[0] if group == "output" else size):
        np.testing.assert_array_equal(low, high)
      else:  # Past the end they differ, and both lose everything.
        assert (low >= keys_IO.max()).all() and (high >= keys_IO.max(0)).all()


@pytest.mark.parametrize(
  "keep,of", ((1, 2), (1, 4), (3, 4), (4, 8), (5, 16), (7, 20), (1, 64))
)
def test_nm(keep, of):
  scores_IO = tied((of * 5, 6), values=of // 4)
  pattern = NofM(keep=keep, of=of)
  got_IO = jax.jit(lambda s: keep_mask(s, pattern))(scores_IO)
  np.testing.assert_array_equal(got_IO, oracle_nm(scores_IO, keep, of))
  assert (got_IO.reshape(5, of, 6).sum(axis=1) == keep).all()


# However the work is laid out ------------------------------------------------

PATTERNS = (parse(0.6), parse(0.6, "matrix"), parse("1:4"), parse("9:20"))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_vmap_and_pmap(pattern):
  scores_LIO = jnp.asarray(tied((8, 60, 8)))

  def f(s):
    return keep_mask(s, pattern)

  want_LIO = np.stack([jax.jit(f)(s) for s in scores_LIO])
  np.testing.assert_array_equal(jax.jit(jax.vmap(f))(scores_LIO), want_LIO)
  np.testing.assert_array_equal(jax.pmap(f)(scores_LIO), want_LIO)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_shard_map_and_sharded_jit(pattern):
  scores_IO = jnp.asarray(tied((60, 16)))
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  spec = P(None, "x")

  def f(s):
    return keep_mask(s, pattern)

  want_IO = jax.jit(f)(scores_IO)
  placed_IO = jax.device_put(scores_IO, NamedSharding(mesh, spec))
  np.testing.assert_array_equal(jax.jit(f)(placed_IO), want_IO)
  if getattr(pattern, "group", "output") == "output":
    mapped = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(mapped)(placed_IO), want_IO)


def test_sparsities_are_data():
  scores_IO = jnp.asarray(tied((40, 3)))
  removed_P = jnp.array([0, 10, 39])
  masks_PIO = jax.vmap(by_output, in_axes=(None, 0))(scores_IO, removed_P)
  for mask_IO, removed in zip(masks_PIO, removed_P):
    np.testing.assert_array_equal(mask_IO, oracle(scores_IO, removed, "output"))


def test_one_trace_for_all_counts():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def f(scores_IO, removed):
    return keep_mask_count(scores_IO, removed)

  for removed in (1, 2, 3):
    f(jnp.ones((4, 2)), removed)
  chex.clear_trace_counter()


# Counts, values, errors ------------------------------------------------------


@pytest.mark.parametrize(
  "size,sparsity,removed",
  (
    (10, 0.7, 7),
    (10, 0.3, 3),
    (100, 0.29, 29),
    (1000, 0.001, 1),
    (100000, 1e-05, 1),
    (3, 0.5, 1),
    (7, 0.0, 0),
    (7, 0, 0),
    (10, np.float32(0.7), 7),
    (10, np.float64(0.7), 7),
    (2**40, 0.1, 2**40 // 10),
  ),
)
def test_removed_count_reads_the_decimal(size, sparsity, removed):
  assert removed_count(size, sparsity) == removed


@pytest.mark.parametrize(
  "make,words",
  (
    (lambda: Unstructured(sparsity=1.0), "sparsity is 1.0"),
    (lambda: Unstructured(sparsity=-0.1), "sparsity is -0.1"),
    (lambda: Unstructured(sparsity=50), "sparsity is 50"),
    (lambda: Unstructured(sparsity=float("nan")), "sparsity is nan"),
    (lambda: Unstructured(sparsity=0.5, group="row"), "group is 'row'"),
    (lambda: NofM(keep=4, of=4), "4:4 keeps"),
    (lambda: NofM(keep=0, of=4), "0:4 keeps"),
    (lambda: NofM(keep=-1, of=4), "-1:4 keeps"),
    (lambda: NofM(keep=5, of=4), "5:4 keeps"),
    (lambda: NofM(keep=2.0, of=4), "keep is 2.0"),
    (lambda: NofM(keep=True, of=4), "keep is True"),
    (lambda: check_shape((172, 64), NofM(keep=4, of=8)), r"\[172, 64\]"),
    (lambda: keep_mask(np.ones((6, 2)), NofM(keep=2, of=4)), "multiple of 4"),
    (lambda: keep_mask(np.ones((2, 4, 2)), NofM(keep=2, of=4)), "vmap"),
    (lambda: keep_mask(np.ones(4), Unstructured(sparsity=0.5)), r"\[4\]"),
    (lambda: keep_mask(np.ones((0, 4)), Unstructured(sparsity=0.5)), "empty"),
    (lambda: keep_mask(np.ones((4, 4)), parse(0.5, "global")), "'global'"),
  ),
)
def test_refused(make, words):
  with pytest.raises(ValueError, match=words) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_values_are_frozen_and_hashable():
  pattern = Unstructured(sparsity=0.5)
  assert {pattern: 1}[Unstructured(sparsity=0.5)] == 1
  assert len({NofM(keep=2, of=4), NofM(keep=2, of=4), pattern}) == 2
  with pytest.raises(dataclasses.FrozenInstanceError):
    pattern.sparsity = 0.6
