"""The spectrum of a head, and how a change lies against it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import probes

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
spectrum = jax.jit(
  probes.spectrum,
  static_argnames=("num_directions", "oversampling", "num_iterations"),
)
head_gain = jax.jit(probes.head_gain)


def matrix_with(values, vocab_size, seed=0):
  """A [D, V] matrix with these singular values, and its left vectors."""
  rng = np.random.default_rng(seed)
  values = np.asarray(values, np.float64)
  left, _ = np.linalg.qr(rng.standard_normal((values.size, values.size)))
  right, _ = np.linalg.qr(rng.standard_normal((vocab_size, values.size)))
  return left * values @ right.T, left


def run(kernel, *arguments, **options):
  with jax.enable_x64(kernel.dtype == np.float64):
    return jax.device_get(spectrum(kernel, *arguments, **options))


@DTYPES
@pytest.mark.parametrize(
  "values",
  [
    2.0 ** -np.arange(24),  # fast
    1 / (1 + np.arange(24)),  # slow
    np.where(np.arange(24) < 3, 100, 1.0),  # massive directions
  ],
  ids=["geometric", "harmonic", "steps"],
)
def test_known_spectrum(dtype, values):
  kernel, left = matrix_with(values, 80)
  got = run(kernel.astype(dtype), jax.random.key(0), 6, num_iterations=12)
  dims = chex.Dimensions(D=len(kernel), P=6)
  chex.assert_shape([got.values, got.residual], dims["P"])
  chex.assert_shape(got.directions, dims["DP"])
  chex.assert_tree_all_finite(got)
  rtol = 2e-5 if dtype == "float32" else 1e-6
  atol = 3e-7 if dtype == "float32" else 0
  np.testing.assert_allclose(
    got.values, values[:6], rtol=rtol, atol=atol * values[0]
  )
  np.testing.assert_allclose(
    got.directions.T @ got.directions, np.eye(6), atol=3e-6
  )
  np.testing.assert_allclose(
    got.frobenius, np.sqrt((values**2).sum()), rtol=1e-6
  )
  # The first three directions span what the first three left vectors span.
  cosines = np.linalg.svd(left[:, :3].T @ got.directions[:, :3])[1]
  assert cosines.min() > 1 - 1e-4


def test_residual_bounds_the_error():
  """Some singular value lies within the residual, and iterating shrinks it."""
  values = np.linspace(1, 0.5, 40)
  kernel, _ = matrix_with(values, 90, seed=1)
  residuals = []
  for count in (0, 4, 40):
    got = run(kernel, jax.random.key(1), 5, num_iterations=count)
    residuals.append(got.residual[0])
    for value, residual in zip(got.values, got.residual, strict=True):
      assert abs(values - value).min() <= residual * got.values[0] + 1e-12
    # Values come from inside the range: never too large.
    assert np.all(got.values <= values[:5] * (1 + 1e-12))
  assert residuals[0] > 2 * residuals[1] > 4 * residuals[2] > 0


def test_every_direction_and_low_rank():
  values = np.array([3.0, 2, 1, 0, 0])
  kernel, _ = matrix_with(values, 7, seed=3)
  got = run(kernel.astype("f"), jax.random.key(0), 5)
  np.testing.assert_allclose(got.values, values, atol=3e-6)
  assert np.all(got.residual < 1e-5)
  got = run(np.zeros((5, 7), "f"), jax.random.key(0), 2)
  assert np.all(got.values == 0) and np.all(np.isfinite(got.directions))


def test_key_decides():
  kernel = matrix_with(np.linspace(1, 0.5, 40), 90, seed=1)[0]
  one, same, other = (
    run(kernel, jax.random.key(seed), 5, num_iterations=0) for seed in (0, 0, 1)
  )
  assert np.array_equal(one.directions, same.directions)
  assert not np.allclose(one.directions, other.directions, atol=1e-3)


def test_table():
  """A diagonal head: |W x| = 4, 2, 1 along the axes."""
  kernel = np.diag([4.0, 2, 1]).astype("f")
  head = run(kernel, jax.random.key(0), 3, num_iterations=12)
  h, hq = np.array([1, 0, 0], "f"), np.array([1, 0.1, 0], "f")
  got = head_gain(h, hq, kernel, head)
  np.testing.assert_allclose(got.gain_h, 4, rtol=1e-6)
  np.testing.assert_allclose(got.gain_dh, 2, rtol=1e-6)
  np.testing.assert_allclose(got.attenuation, 0.5, rtol=1e-6)
  np.testing.assert_allclose(got.gain_random, np.sqrt(21 / 3), rtol=1e-6)
  np.testing.assert_allclose(got.energy_h, [1, 1, 1], atol=1e-6)
  np.testing.assert_allclose(got.energy_dh, [0, 1, 1], atol=1e-6)
  np.testing.assert_allclose(got.energy_random, [1 / 3, 2 / 3, 1], rtol=1e-6)
  # z = (4, 0, 0): a third of its square is the mean, two thirds are left.
  np.testing.assert_allclose(got.offset_z, 1 / 3, rtol=1e-6)
  np.testing.assert_allclose(got.gain_h_centred, np.sqrt(32 / 3), rtol=1e-6)


def test_gains_against_equations():
  rng = np.random.default_rng(4)
  kernel = rng.standard_normal((20, 50)) + 0.5
  h = rng.standard_normal(20)
  hq = h + 0.1 * rng.standard_normal(20)
  with jax.enable_x64(True):
    head = spectrum(kernel, jax.random.key(0), 8, num_iterations=200)
    got = jax.device_get(head_gain(h, hq, kernel, head))
  norm, dh = np.linalg.norm, hq - h
  z, dz = h @ kernel, dh @ kernel
  left = np.linalg.svd(kernel)[0]
  centred = lambda a: a - a.mean()  # noqa: E731
  expected = dict(
    gain_h=norm(z) / norm(h),
    gain_dh=norm(dz) / norm(dh),
    gain_random=norm(kernel) / 20**0.5,
    attenuation=norm(dz) / norm(dh) / norm(z) * norm(h),
    gain_h_centred=norm(centred(z)) / norm(h),
    gain_dh_centred=norm(centred(dz)) / norm(dh),
    energy_h=np.cumsum((left[:, :8].T @ h) ** 2) / (h @ h),
    energy_dh=np.cumsum((left[:, :8].T @ dh) ** 2) / (dh @ dh),
    offset_z=50 * z.mean() ** 2 / (z @ z),
    offset_dz=50 * dz.mean() ** 2 / (dz @ dz),
  )
  for name, value in expected.items():
    np.testing.assert_allclose(
      getattr(got, name), value, rtol=1e-6, atol=1e-9, err_msg=name
    )
  # A constant and its rest share the square of z.
  np.testing.assert_allclose(
    got.gain_dh_centred**2 / got.gain_dh**2 + got.offset_dz, 1, rtol=1e-5
  )


def test_random_direction_statistics():
  """Mean and deviation of the energy, and the gain, over real random dh."""
  kernel = matrix_with(1.0 / (1 + np.arange(16)), 40)[0].astype("f")
  head = run(kernel, jax.random.key(0), 4, num_iterations=12)
  dh_PD = np.random.default_rng(5).standard_normal((5000, 16)).astype("f")
  zero = np.zeros(16, "f")
  gains = jax.jit(jax.vmap(probes.head_gain, (None, 0, None, None)))
  got = jax.device_get(gains(zero, dh_PD, kernel, head))
  np.testing.assert_allclose(
    got.energy_dh.mean(0), got.energy_random[0], rtol=0.05
  )
  np.testing.assert_allclose(
    got.energy_dh.std(0), got.energy_random_std[0], rtol=0.05
  )
  dims = chex.Dimensions(N=5000, P=4)
  chex.assert_shape([got.gain_dh, got.attenuation, got.offset_dz], dims["N"])
  chex.assert_shape([got.energy_dh, got.energy_random], dims["NP"])
  weight = (dh_PD**2).sum(1)
  mean = weight @ got.gain_dh**2 / weight.sum()
  np.testing.assert_allclose(np.sqrt(mean), got.gain_random[0], rtol=0.05)
  # A zero vector has no gain and no energy.
  assert np.all(got.gain_h == 0) and np.all(got.energy_h == 0)
  assert np.all(got.offset_z == 0)


def test_centred_head_is_what_softmax_sees():
  rng = np.random.default_rng(6)
  kernel = (rng.standard_normal((8, 30)) + 2).astype("f")
  h = rng.standard_normal(8).astype("f")
  centred = kernel - kernel.mean(axis=1, keepdims=True)
  np.testing.assert_allclose(
    jax.nn.softmax(h @ kernel), jax.nn.softmax(h @ centred), rtol=1e-4
  )
  np.testing.assert_allclose(np.sum(centred, axis=1), 0, atol=1e-4)
  head = run(centred, jax.random.key(0), 4)
  got = head_gain(h, 1.5 * h, centred, head)
  assert got.offset_z < 1e-10 and got.offset_dz < 1e-10
  np.testing.assert_allclose(got.gain_h, got.gain_h_centred, rtol=1e-5)
  # dh along h: no attenuation at all.
  np.testing.assert_allclose(got.attenuation, 1, rtol=1e-5)


def test_narrow_kernel_is_widened():
  kernel = matrix_with(2.0 ** -np.arange(8), 20)[0]
  narrow = jnp.asarray(kernel, jnp.bfloat16)
  got = spectrum(narrow, jax.random.key(0), 3)
  assert got.values.dtype == jnp.float32
  exact = np.linalg.svd(np.asarray(narrow, np.float64))[1][:3]
  np.testing.assert_allclose(got.values, exact, rtol=1e-4)


def test_errors():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r"give \[D, V\]"):
    probes.spectrum(np.zeros(3, "f"), key, 1)
  for count in (0, 4):
    with pytest.raises(ValueError, match=f"num_directions={count}"):
      probes.spectrum(np.zeros((3, 5), "f"), key, count)
  head = run(np.eye(3, 5, dtype="f"), key, 2)
  with pytest.raises(ValueError, match="first axes must agree"):
    # A tied table [V, D] given as it is.
    probes.head_gain(np.ones(3, "f"), np.ones(3, "f"), np.eye(5, 3), head)
