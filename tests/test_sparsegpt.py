"""SparseGPT and its factor, against the algorithm written out in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import statistics
from jaxprune.calibration.statistics import Gram
from jaxprune.pruning.methods import hessian_inverse
from jaxprune.pruning.methods.sparsegpt import prune_with_factor, sparsegpt
from jaxprune.pruning.methods.wanda import wanda
from jaxprune.pruning.patterns import NofM, Unstructured, removed_count
from jaxprune.pruning.reconstruction import layer_error

# Op by op, each of their operations is a program of its own.
observe_gram = jax.jit(statistics.observe_gram)
inverse_factor = jax.jit(hessian_inverse.inverse_factor)
INPUTS, OUTPUTS, BLOCK = 40, 6, 16  # the last block is short
PATTERNS = [
  Unstructured(sparsity=0.5, group="matrix"),
  Unstructured(sparsity=0.3, group="output"),
  NofM(keep=2, of=4),
  NofM(keep=1, of=4),
  NofM(keep=3, of=8),
]


def problem(seed=0):
  """A kernel and correlated inputs [B, T, I], of which the last is dead."""
  draw = np.random.default_rng(seed)
  mix = draw.standard_normal((INPUTS, INPUTS)) / INPUTS**0.5 + np.eye(INPUTS)
  x_BTI = draw.standard_normal((3, 50, INPUTS)) @ mix
  x_BTI[..., -1] = 0
  w_IO = draw.standard_normal((INPUTS, OUTPUTS))
  return jnp.asarray(w_IO, jnp.float32), jnp.asarray(x_BTI, jnp.float32)


def hessian(x_BTI, damping=0.01):
  x_BTI = np.asarray(x_BTI, np.float64)
  h_II = 2 / len(x_BTI) * np.einsum("BTI,BTJ->IJ", x_BTI, x_BTI)
  diagonal = np.where(np.diag(h_II) == 0, 1, np.diag(h_II))
  np.fill_diagonal(h_II, diagonal + damping * diagonal.mean())
  return h_II


def oracle(w_IO, upper_II, pattern, dead_I):
  """Algorithm 1: every loss is handed on as soon as it happens."""
  w_IO = np.where(dead_I[:, None], 0, np.asarray(w_IO, np.float64))
  inputs, outputs = w_IO.shape
  keep_IO = np.ones(w_IO.shape, bool)
  pivot_I = np.diag(upper_II)
  each = outputs if getattr(pattern, "group", "") == "matrix" else 1

  def choose(start, stop, count):
    """Let `count` of each output, or of all together, leave."""
    score = (w_IO[start:stop] / pivot_I[start:stop, None]) ** 2
    if each == outputs:
      order = np.argsort(score, axis=None, kind="stable")[:count]
      keep_IO[start:stop].ravel()[order] = False
      keep = keep_IO[start:stop].copy()
      keep.ravel()[order] = False
      keep_IO[start:stop] = keep
    else:
      out = np.argsort(score, axis=0, kind="stable")[:count]
      keep = np.ones(score.shape, bool)
      np.put_along_axis(keep, out, False, axis=0)
      keep_IO[start:stop] = keep

  for i in range(inputs):
    if isinstance(pattern, NofM):
      if i % pattern.of == 0:
        choose(i, i + pattern.of, pattern.of - pattern.keep)
    elif i % BLOCK == 0:
      stop = min(i + BLOCK, inputs)
      choose(
        i,
        stop,
        removed_count(stop * each, pattern.sparsity)
        - removed_count(i * each, pattern.sparsity),
      )
    error_O = np.where(keep_IO[i], 0, w_IO[i] / pivot_I[i])
    w_IO[i + 1 :] -= upper_II[i, i + 1 :, None] * error_O[None]
  return np.where(keep_IO, w_IO, 0), keep_IO


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_algorithm(pattern):
  w_IO, x_BTI = problem()
  found = inverse_factor(observe_gram(x_BTI))
  new_IO, mask_IO = jax.jit(
    functools.partial(prune_with_factor, pattern=pattern, block=BLOCK)
  )(w_IO, found)
  expected, keep = oracle(
    w_IO, np.asarray(found.upper, np.float64), pattern, np.asarray(found.dead)
  )
  chex.assert_shape([new_IO, mask_IO], (INPUTS, OUTPUTS))
  chex.assert_tree_all_finite((found.upper, new_IO))
  np.testing.assert_array_equal(mask_IO, keep)
  np.testing.assert_allclose(new_IO, expected, atol=2e-5)
  if isinstance(pattern, Unstructured):
    assert (~keep).sum() == (
      removed_count(INPUTS * OUTPUTS, 0.5)
      if pattern.group == "matrix"
      else OUTPUTS * removed_count(INPUTS, 0.3)
    )


def test_corrections_solve_least_squares():
  """One removed input of one output: the rest is the regression without it."""
  w_IO, x_BTI = problem(1)
  w_I1 = w_IO[:, :1]
  upper = inverse_factor(observe_gram(x_BTI), 1e-4)
  # The first input leaves, because its weight is the smallest of its group.
  w_I1 = w_I1.at[0].set(1e-4).at[1:].add(jnp.sign(w_I1[1:]))
  count = Unstructured(sparsity=1 / INPUTS)
  new_I1, mask_I1 = jax.jit(
    functools.partial(prune_with_factor, pattern=count, block=INPUTS)
  )(w_I1, upper)
  gone = int(np.argmin(np.asarray(mask_I1)[:, 0]))
  h_II = hessian(x_BTI, 1e-4)
  live = np.arange(INPUTS) > gone  # Only inputs after it may answer.
  answer = np.linalg.solve(h_II[np.ix_(live, live)], h_II[live, gone])
  expected = np.asarray(w_I1, np.float64)[live, 0] + answer * w_I1[gone, 0]
  dead = np.asarray(upper.dead)[live]
  np.testing.assert_allclose(
    np.asarray(new_I1)[live, 0][~dead], expected[~dead], atol=2e-5
  )


@pytest.mark.parametrize("inputs", [40, 300])
def test_factor(inputs):
  """U^T U is the inverse, by one panel and by several."""
  draw = np.random.default_rng(2)
  x_BTI = draw.standard_normal((2, 2 * inputs, inputs)).astype(np.float32)
  found = inverse_factor(observe_gram(jnp.asarray(x_BTI)))
  chex.assert_shape(
    [found.upper, found.dead, found.ok], [(inputs,) * 2, (inputs,), ()]
  )
  upper = np.asarray(found.upper, np.float64)
  assert bool(found.ok) and (np.diag(upper) > 0).all()
  np.testing.assert_array_equal(upper, np.triu(upper))
  np.testing.assert_allclose(
    upper.T @ upper @ hessian(x_BTI), np.eye(inputs), atol=2e-4
  )


def test_corrected_is_better_than_masked():
  w_IO, x_BTI = problem(3)
  gram = observe_gram(x_BTI)
  pattern = NofM(keep=2, of=4)
  errors = [
    float(
      jax.jit(layer_error)(
        w_IO,
        jax.jit(method, static_argnums=2)(w_IO, seen, pattern)[0],
        gram.sum_outer,
      )
    )
    for method, seen in ((wanda, gram.squares), (sparsegpt, gram))
  ]
  assert errors[1] < 0.8 * errors[0]


def gram_of(matrix):
  matrix = jnp.asarray(matrix, jnp.float32)
  return Gram(sum_outer=matrix, sequences=jnp.int32(2), tokens=jnp.int32(2))


def test_failed_factor():
  """More damping, said so; nan weights where nobody looks; never identity."""
  # Eigenvalues 1 and -0.1 in units of 2/n: one per cent does not lift that.
  bad = gram_of([[0.45, 0.55], [0.55, 0.45]])
  assert not bool(inverse_factor(bad).ok)
  found, tried = hessian_inverse.inverse_factor_with_retry(bad)
  np.testing.assert_allclose(tried, [0.01, 0.1, 1.0])
  assert bool(found.ok)
  new_IO, _ = jax.jit(sparsegpt, static_argnums=2)(
    jnp.ones((2, 3)), bad, NofM(keep=1, of=2)
  )
  assert np.isnan(np.asarray(new_IO)).all()
  with pytest.raises(ValueError, match="not positive definite"):
    hessian_inverse.inverse_factor_with_retry(gram_of([[0.1, 90], [90, 0.1]]))
  with pytest.raises(ValueError, match="inf or nan"):
    hessian_inverse.inverse_factor_with_retry(gram_of([[np.nan, 0], [0, 1]]))
  with pytest.raises(ValueError, match="saw 0 sequences"):
    hessian_inverse.inverse_factor_with_retry(
      Gram(sum_outer=jnp.eye(2), sequences=jnp.int32(0), tokens=jnp.int32(0))
    )


def test_all_ways_agree():
  """jit = vmap = over eight devices, split over outputs."""
  pattern = NofM(keep=2, of=4)
  w_LIO = jnp.stack([problem(seed)[0] for seed in range(8)])
  x_LBTI = jnp.stack([problem(seed)[1] for seed in range(8)])
  gram = jax.vmap(observe_gram)(x_LBTI)
  method = functools.partial(sparsegpt, pattern=pattern)
  one = jax.jit(method)(w_LIO[0], jax.tree.map(lambda leaf: leaf[0], gram))
  many = jax.jit(jax.vmap(method))(w_LIO, gram)
  mapped = jax.pmap(method)(w_LIO, gram)
  np.testing.assert_array_equal(one[1], many[1][0])
  np.testing.assert_allclose(one[0], many[0][0], atol=1e-5)
  np.testing.assert_array_equal(mapped[1], many[1])
  np.testing.assert_allclose(mapped[0], many[0], atol=1e-5)


@pytest.mark.parametrize(
  "change,words",
  [
    (dict(pattern=Unstructured(sparsity=0.5, group="global")), "global"),
    (dict(pattern=NofM(keep=2, of=7)), "needs a multiple of 7"),
    (dict(block=0), "at least 1"),
    (dict(w_IO=jnp.ones((8, 3))), "needs"),
  ],
)
def test_bad_arguments(change, words):
  w_IO, x_BTI = problem()
  found = inverse_factor(observe_gram(x_BTI))
  options = dict(w_IO=w_IO, factor=found, pattern=NofM(keep=2, of=4)) | change
  with pytest.raises(ValueError, match=words):
    prune_with_factor(**options)
