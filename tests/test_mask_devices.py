"""One mask function, however it is run: eager, jit, vmap, pmap, sharded."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import statistics
from jaxprune.pruning.methods.magnitude import magnitude
from jaxprune.pruning.methods.wanda import wanda
from jaxprune.pruning.patterns import NofM, Unstructured, keep_mask

PATTERNS = [
  Unstructured(sparsity=0.5, group="output"),
  Unstructured(sparsity=0.3, group="matrix"),
  NofM(keep=1, of=4),
  NofM(keep=2, of=4),
  NofM(keep=5, of=8),
]
METHODS = {"magnitude": magnitude, "wanda": wanda}


def stack(seed=0):
  """Kernels [8, I, O] with many ties, and statistics of their inputs."""
  draw = np.random.default_rng(seed)
  w_LIO = draw.integers(-3, 4, (8, 16, 6)).astype(np.float32)
  x_LBTI = draw.integers(-2, 3, (8, 3, 5, 16)).astype(np.float32)
  return jnp.asarray(w_LIO), jax.vmap(statistics.observe_squares)(
    jnp.asarray(x_LBTI)
  )


def oracle(score_IO, pattern):
  """Stable sort of each comparison group, lowest first out."""
  keep = np.ones(score_IO.shape, bool)
  if isinstance(pattern, NofM):
    for start in range(0, len(score_IO), pattern.of):
      part = score_IO[start : start + pattern.of]
      out = np.argsort(part, axis=0, kind="stable")[: pattern.of - pattern.keep]
      np.put_along_axis(keep[start : start + pattern.of], out, False, axis=0)
  elif pattern.group == "output":
    count = int(len(score_IO) * pattern.sparsity)
    out = np.argsort(score_IO, axis=0, kind="stable")[:count]
    np.put_along_axis(keep, out, False, axis=0)
  else:
    count = int(score_IO.size * pattern.sparsity)
    keep.ravel()[np.argsort(score_IO.ravel(), kind="stable")[:count]] = False
  return keep


@pytest.mark.parametrize(
  "name, pattern",
  [
    *(("wanda", pattern) for pattern in PATTERNS),
    # Another score; the masks are made of it alike.
    *(("magnitude", pattern) for pattern in PATTERNS[1:3]),
  ],
  ids=str,
)
def test_all_ways_agree_with_the_oracle(name, pattern):
  w_LIO, stats = stack()
  method = functools.partial(METHODS[name], pattern=pattern)
  scale = np.sqrt(np.asarray(stats.sum_squares) / 3)
  expected = np.stack(
    [
      oracle(np.abs(w) * (s[:, None] if name == "wanda" else 1), pattern)
      for w, s in zip(np.asarray(w_LIO), scale.astype(np.float32))
    ]
  )
  first = jax.tree.map(lambda leaf: leaf[0], stats)
  ways = {
    "jit": [m[None] for m in jax.jit(method)(w_LIO[0], first)],
    "jit vmap": jax.jit(jax.vmap(method))(w_LIO, stats),
    "pmap": jax.pmap(method)(w_LIO, stats),
  }
  # Without jit every operation is a program of its own, and a sort of a
  # matrix is many: that one is compared in test_patterns.
  if name == "wanda" and pattern == PATTERNS[2]:
    ways["eager"] = [m[None] for m in method(w_LIO[0], first)]
    ways["vmap"] = jax.vmap(method)(w_LIO, stats)
  assert jax.device_count() == 8
  for way, (pruned, mask) in ways.items():
    count = len(mask)
    np.testing.assert_array_equal(mask, expected[:count], err_msg=way)
    np.testing.assert_array_equal(
      pruned, np.where(expected[:count], w_LIO[:count], 0), err_msg=way
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sharded_over_outputs(pattern):
  scores_IO = jnp.asarray(
    np.random.default_rng(1).integers(0, 9, (16, 24)).astype(np.float32)
  )
  mesh = jax.make_mesh(
    (8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  placed = jax.device_put(
    scores_IO, jax.NamedSharding(mesh, jax.P(None, "model"))
  )
  mask = jax.jit(functools.partial(keep_mask, pattern=pattern))(placed)
  np.testing.assert_array_equal(mask, oracle(np.asarray(scores_IO), pattern))


def test_hand_tables():
  """Ties leave from the lowest index; 1:4 keeps one and zeroes three."""
  keep = jax.jit(keep_mask, static_argnums=1)
  equal = np.ones((4, 2))
  np.testing.assert_array_equal(
    keep(equal, NofM(keep=1, of=4)), [[0, 0], [0, 0], [0, 0], [1, 1]]
  )
  np.testing.assert_array_equal(
    keep(equal, Unstructured(sparsity=0.5, group="output")),
    [[0, 0], [0, 0], [1, 1], [1, 1]],
  )
  np.testing.assert_array_equal(
    keep(equal, Unstructured(sparsity=0.4, group="matrix")),
    [[0, 0], [0, 1], [1, 1], [1, 1]],
  )
  scores = np.array([[3.0, 1], [2, 1], [2, 5], [9, 0]])
  np.testing.assert_array_equal(
    keep(scores, NofM(keep=3, of=4)), [[1, 1], [0, 1], [1, 1], [1, 0]]
  )
  np.testing.assert_array_equal(
    keep(scores, Unstructured(sparsity=0.75, group="output")),
    [[0, 0], [0, 0], [0, 1], [1, 0]],
  )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_one_trace(pattern):
  chex.clear_trace_counter()
  mask = jax.jit(
    chex.assert_max_traces(lambda scores: keep_mask(scores, pattern), n=1)
  )
  for seed in range(3):
    mask_IO = mask(jax.random.normal(jax.random.key(seed), (16, 4)))
    chex.assert_shape(mask_IO, (16, 4))
    chex.assert_type(mask_IO, bool)
