"""The number of cores changes no bit of what SparseGPT and AWQ look at."""

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import moments, statistics
from jaxprune.pruning import reconstruction
from jaxprune.pruning.methods import hessian_inverse

INPUTS = 300  # Two panels of the factor, one of them of several leaves.


def inputs():
  return jnp.asarray(
    np.random.default_rng(0).normal(size=(2, 512, INPUTS)), jnp.float32
  )


@jax.jit
def compute(x_BTI):
  gram = statistics.observe_gram(x_BTI)
  factor = hessian_inverse.inverse_factor(gram)
  return {
    "squares": statistics.observe_squares(x_BTI),
    "size": moments.observe_mean_abs(x_BTI),
    "moments": moments.observe_moments(x_BTI),
    "gram": gram,
    "factor": factor,
    "error": reconstruction.output_errors(factor.upper, gram.sum_outer),
  }


def digests():
  return {
    name: hashlib.sha256(
      b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(value))
    ).hexdigest()
    for name, value in compute(inputs()).items()
  }


def test_one_core_gives_the_same_bits():
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip("there is one core only")
  code = f"import os; os.sched_setaffinity(0, {{{cores[0]}}});"
  code += "import tests.test_cores as t; print(t.digests())"
  alone = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert alone.stdout.strip() == str(digests())


def test_the_factor_is_that_of_the_inverse():
  x_BTI = inputs()
  x_RI = np.float64(x_BTI).reshape(-1, INPUTS)
  h_II = x_RI.T @ x_RI  # 2 / n sum x x^T, with n = 2 sequences
  h_II += 0.01 * np.diag(h_II).mean() * np.eye(INPUTS)
  factor = compute(x_BTI)["factor"]
  upper_II = np.float64(factor.upper)
  assert factor.ok
  np.testing.assert_array_equal(upper_II, np.triu(upper_II))
  np.testing.assert_allclose(
    upper_II.T @ upper_II @ h_II, np.eye(INPUTS), atol=1e-4
  )
  bad = statistics.Gram(
    sum_outer=-jnp.eye(INPUTS), sequences=jnp.int32(1), tokens=jnp.int32(1)
  )
  assert not jax.jit(hessian_inverse.inverse_factor)(bad).ok
