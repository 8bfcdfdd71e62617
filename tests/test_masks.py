"""Masks combine as sets do."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.pruning import masks as masks_lib
from jaxprune.pruning.patterns import NofM, keep_mask

A = np.array([[1, 1, 0], [1, 0, 0]], bool)
B = np.array([[1, 0, 0], [1, 1, 0]], bool)
pairs = st.tuples(*[hnp.arrays(bool, (2, 3, 4))] * 3)
settings = hypothesis.settings(deadline=None, max_examples=25)


def test_table():
  """|A| = 3, |B| = 3, both 2, either 4, differing 2 of 6."""
  np.testing.assert_array_equal(masks_lib.union(A, B), [[1, 1, 0], [1, 1, 0]])
  np.testing.assert_array_equal(
    masks_lib.intersection(A, B), [[1, 0, 0], [1, 0, 0]]
  )
  assert masks_lib.density(A) == 0.5
  assert masks_lib.overlap(A, B) == 0.5
  np.testing.assert_allclose(masks_lib.distance(A, B), 2 / 6, rtol=1e-6)


def test_trees_and_stacks():
  """Per matrix of a stacked leaf, or every entry alike over all."""
  a = {"big": np.stack([A, B, ~A]), "small": np.ones((1, 2), bool), "no": None}
  b = {"big": np.stack([A, A, A]), "small": np.zeros((1, 2), bool), "no": None}
  got = jax.jit(masks_lib.overlap)(a, b)
  np.testing.assert_array_equal(got["big"], [1.0, 0.5, 0.0])
  assert got["small"] == 0 and got["no"] is None
  got = masks_lib.density(a)
  np.testing.assert_array_equal(got["big"], [0.5, 0.5, 0.5])
  assert got["small"] == 1
  # 9 of 18 and 2 of 2; not the mean of the two leaves.
  np.testing.assert_allclose(masks_lib.density(a, per="all"), 11 / 20)
  # Both keep 3 + 2 + 0, either keeps 3 + 4 + 6 + 2.
  np.testing.assert_allclose(masks_lib.overlap(a, b, per="all"), 5 / 15)
  np.testing.assert_allclose(
    masks_lib.distance(a, b, per="all"), (0 + 2 + 6 + 2) / 20
  )


@settings
@hypothesis.given(pairs)
def test_laws(masks):
  a, b, c = masks
  union, both = masks_lib.union, masks_lib.intersection
  np.testing.assert_array_equal(union(a, b), union(b, a))
  np.testing.assert_array_equal(both(a, union(a, b)), a)  # Absorption.
  np.testing.assert_array_equal(  # De Morgan.
    ~np.asarray(union(a, b)), both(~a, ~b)
  )
  np.testing.assert_array_equal(
    both(a, union(b, c)), union(both(a, b), both(a, c))
  )
  # |a| + |b| = |a or b| + |a and b|.
  np.testing.assert_allclose(
    masks_lib.density(a) + masks_lib.density(b),
    masks_lib.density(union(a, b)) + masks_lib.density(both(a, b)),
    atol=1e-6,
  )


@settings
@hypothesis.given(pairs)
def test_distances(masks):
  """Hamming and Jaccard distances are metrics, tied to the densities."""
  a, b, c = masks
  far = masks_lib.distance
  assert np.all(far(a, a) == 0) and np.all(masks_lib.overlap(a, a) == 1)
  np.testing.assert_array_equal(far(a, b), far(b, a))
  assert np.all(far(a, c) <= far(a, b) + far(b, c) + 1e-6)

  def jaccard(x, y):
    return 1 - masks_lib.overlap(x, y)

  assert np.all(jaccard(a, c) <= jaccard(a, b) + jaccard(b, c) + 1e-6)
  either = masks_lib.density(masks_lib.union(a, b))
  np.testing.assert_allclose(far(a, b), jaccard(a, b) * either, atol=1e-6)


def test_shapes_and_one_trace():
  """A number per matrix of a stack, or one; every set a mask."""
  a = {"q": np.stack([A, B]), "k": A}
  b = {"q": np.stack([B, B]), "k": B}
  chex.assert_trees_all_equal_shapes_and_dtypes(
    masks_lib.union(a, b),
    masks_lib.intersection(a, b),
    jax.tree.map(np.asarray, a),
  )
  for function in (masks_lib.overlap, masks_lib.distance):
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(function, n=1))
    for pair in ((a, b), (b, a), (a, a)):
      numbers = compiled(*pair)
      chex.assert_shape([numbers["q"], numbers["k"]], [(2,), ()])
      chex.assert_type(list(numbers.values()), jnp.float32)
      chex.assert_tree_all_finite(numbers)
    chex.assert_shape(function(a, b, per="all"), ())


def test_nothing_kept():
  none = np.zeros((2, 3), bool)
  assert (
    masks_lib.overlap(none, none) == 1 and masks_lib.distance(none, none) == 0
  )
  assert masks_lib.density(none) == 0
  assert masks_lib.overlap(none, A) == 0
  assert masks_lib.density({}, per="all") == 1


def test_counts_are_exact_where_float32_is_not():
  """A float32 sum of ones stops at 2^24; 2^24 + 3 of them are counted here."""
  mask = jnp.zeros((4097, 8192), bool)
  mask = mask.at[:2048].set(True).at[2048, :3].set(True)
  got = masks_lib.density(mask) * mask.size
  np.testing.assert_allclose(got, 2**24 + 3, atol=2)
  assert jnp.float32(2**24 + 4) == masks_lib._count(mask)  # Rounded once.


def test_verify_nm():
  scores_LIO = np.random.default_rng(0).normal(size=(3, 8, 5))
  pattern = NofM(keep=1, of=4)
  masks_LIO = np.array(jax.vmap(lambda s: keep_mask(s, pattern))(scores_LIO))
  verify = jax.jit(
    masks_lib.verify_nm, static_argnums=1, static_argnames="exact"
  )
  assert verify({"w": masks_LIO}, pattern)["w"].shape == (3,)
  assert verify(masks_LIO, pattern).all()
  # 1:4 is within 2:4 and 4:8 but does not fill them; 3:4 keeps too many.
  for other in (NofM(keep=2, of=4), NofM(keep=4, of=8)):
    assert not verify(masks_LIO, other).any()
    assert verify(masks_LIO, other, exact=False).all()
  assert not verify(~masks_LIO, pattern, exact=False).any()
  # Not a divisor: no group to obey.
  assert not verify(masks_LIO, NofM(keep=1, of=3), exact=False).any()
  masks_LIO[1, 0:4, 2] = False  # One group of one output of one layer.
  np.testing.assert_array_equal(verify(masks_LIO, pattern), [1, 0, 1])
  assert verify(masks_LIO, pattern, exact=False).all()
  masks_LIO[1, 0:2, 2] = True
  np.testing.assert_array_equal(
    verify(masks_LIO, pattern, exact=False), [1, 0, 1]
  )


@pytest.mark.parametrize(
  "f",
  (
    masks_lib.union,
    masks_lib.intersection,
    masks_lib.overlap,
    masks_lib.distance,
  ),
)
def test_refused(f):
  with pytest.raises(ValueError, match=r"\['w'\] have shapes \[2, 3\]"):
    f({"w": A}, {"w": A[:1]})
  with pytest.raises(ValueError, match="trees differ"):
    f({"w": A}, {"v": A})
  with pytest.raises(ValueError, match="per is 'layer'"):
    masks_lib.density(A, per="layer")
