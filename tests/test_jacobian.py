"""The softmax Jacobian: products, worst direction, amplification, rates."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import probes
from jaxprune.probes import jacobian as jacobian_lib

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
quick = hypothesis.settings(
  max_examples=30, deadline=None, derandomize=True, database=None
)
# Jitted for speed: op by op, each new shape compiles a hundred small programs.
apply_jacobian = jax.jit(probes.apply_jacobian)


@jax.jit
def forward_and_reverse(z, v, temperature):
  """J v and v J by differentiating the softmax."""

  def softmax(z):
    return jax.nn.softmax(z / temperature)

  return jax.jvp(softmax, [z], [v])[1], jax.vjp(softmax, z)[1](v)[0]


top_singular = jax.jit(
  probes.top_singular, static_argnames=("max_iterations", "tolerance")
)
softmax_gain = jax.jit(probes.softmax_gain)
rates = jax.jit(jacobian_lib.rates)


def run(function, *arguments, **options):
  with jax.enable_x64(np.asarray(arguments[0]).dtype == np.float64):
    return jax.device_get(function(*arguments, **options))


def jacobian(z, temperature):
  z = z.astype(np.float64) / temperature
  p = np.exp(z - z.max())
  p /= p.sum()
  matrix = -np.outer(p, p)
  # p (1 - p) with 1 - p from the others, which keeps its digits near p = 1.
  others = np.where(np.eye(p.size), 0, p).sum(1)
  np.fill_diagonal(matrix, p * others)
  return p, matrix / temperature


def draw(seed, spread, dtype=np.float64, size=33):
  rng = np.random.default_rng(seed)
  z = (spread * rng.standard_normal(size)).astype(dtype)
  return z, rng.standard_normal(size).astype(dtype)


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  spread=st.floats(0, 8),
  temperature=st.floats(0.3, 3),
)
def test_products_agree(dtype, seed, spread, temperature):
  z, v = draw(seed, spread, dtype)
  _, matrix = jacobian(z, temperature)
  atol = 1e-6 if dtype == "float32" else 1e-14
  closed_form = run(apply_jacobian, z, v, temperature)
  for got in (closed_form, *run(forward_and_reverse, z, v, temperature)):
    np.testing.assert_allclose(
      got, matrix @ v, rtol=1e-5, atol=atol / temperature
    )


def test_closed_form_keeps_digits_of_a_confident_softmax():
  """Where 1 - p is below the float32 epsilon, p (v - <p, v>) still is right."""
  z = np.array([40, 0, 0], np.float32)
  _, v = draw(0, 1, np.float32, size=3)
  s = np.exp(-40.0)
  v = v.astype(float)
  expected = s * np.array([2 * v[0] - v[1] - v[2], v[1] - v[0], v[2] - v[0]])
  got = run(apply_jacobian, z, v.astype("f"), 1.0)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  spread=st.floats(0, 8),
  temperature=st.floats(0.3, 3),
)
def test_worst_direction_is_the_top_eigenvector(
  dtype, seed, spread, temperature
):
  z, _ = draw(seed, spread, dtype)
  p, matrix = jacobian(z, temperature)
  values, vectors = np.linalg.eigh(matrix)
  got = run(top_singular, z, temperature)
  assert got.converged == (got.residual <= 1e-4)
  assert got.converged or got.iterations == 1000
  # What the residual promises, converged or not: an eigenvalue this near.
  near = abs(values - got.value).min()
  rounding = 5e-5 if dtype == "float32" else 1e-7
  assert near <= (got.residual + rounding) * got.value
  assert got.value <= values[-1] * (1 + rounding)
  np.testing.assert_allclose(np.linalg.norm(got.vector), 1, rtol=1e-5)
  assert abs(got.vector.sum()) < 2 * rounding
  # A flat p has its values in a cluster; the iteration is done with it when
  # the value is right, not the vector.
  if values[-2] < 0.9 * values[-1]:
    assert got.converged and got.vector[z.argmax()] > 0
    np.testing.assert_allclose(got.value, values[-1], rtol=rounding)
    assert abs(got.vector @ vectors[:, -1]) > 1 - 1e-5


def test_two_equal_tokens_are_the_worst_case():
  """The largest value softmax can have is 1 / (2T)."""
  z = np.array([9, 9, -300, -300], np.float32)
  got = run(top_singular, z, 0.25)
  np.testing.assert_allclose(got.value, 2.0, rtol=1e-6)
  np.testing.assert_allclose(got.vector, [0.5**0.5, -(0.5**0.5), 0, 0], 1e-6)
  assert got.iterations == 1


@pytest.mark.parametrize("gap", [40.0, 300.0])
def test_confident_softmax_has_a_tiny_value(gap):
  """One token ahead of one other: J = s (1, -1; -1, 1), value 2 s."""
  z = np.array([gap, 0], np.float32)
  got = run(top_singular, z, 0.9)
  assert got.converged
  if gap < 80:
    value = 2 * np.exp(-gap / 0.9) / 0.9
    np.testing.assert_allclose(got.value, value, rtol=1e-5)
    np.testing.assert_allclose(got.vector, [0.5**0.5, -(0.5**0.5)], rtol=1e-5)
  else:
    # The second token is no float32 any more: J is zero, and so is all.
    assert got.value == 0 and np.all(got.vector == 0)


def test_iterations_are_reported():
  z, _ = draw(1, 1.0)
  _, matrix = jacobian(z, 1.0)
  few = run(top_singular, z, 1.0, max_iterations=3, tolerance=1e-12)
  assert not few.converged and few.iterations == 3
  # The residual is the one of the vector that is returned.
  miss = matrix @ few.vector - few.value * few.vector
  np.testing.assert_allclose(
    np.linalg.norm(miss) / few.value, few.residual, rtol=1e-9
  )
  many = run(top_singular, z, 1.0, max_iterations=10_000, tolerance=1e-10)
  assert many.converged and many.iterations > 3 and many.residual <= 1e-10


def test_gain_along_the_worst_direction():
  z, _ = draw(2, 2.0)
  _, matrix = jacobian(z, 0.7)
  vector = np.linalg.eigh(matrix)[1][:, -1]
  got = run(softmax_gain, z, z + 1e-5 * vector, 0.7)
  np.testing.assert_allclose(got.worst_share, 1, rtol=1e-4)
  np.testing.assert_allclose(got.linear_ratio, 1, rtol=1e-4)
  np.testing.assert_allclose(
    got.amplification_centred, got.worst_amplification, rtol=1e-4
  )


def test_gain_in_random_directions():
  """The root mean square over directions is the Frobenius norm's."""
  z, _ = draw(3, 2.0)
  directions_PV = np.random.default_rng(4).standard_normal((4000, 33))
  gains = jax.vmap(softmax_gain, (None, 0))
  with jax.enable_x64(True):
    got = jax.device_get(gains(z, z + 1e-6 * directions_PV))
  chex.assert_tree_shape_prefix(got, (4000,))
  chex.assert_tree_all_finite(got)
  centred = directions_PV - directions_PV.mean(1, keepdims=True)
  weight = (centred**2).sum(1)
  mean = weight @ got.amplification_centred**2 / weight.sum()
  np.testing.assert_allclose(
    np.sqrt(mean), got.random_amplification[0], rtol=0.03
  )
  assert np.all(got.worst_share <= 1 + 1e-9)
  assert np.all(
    got.amplification_centred <= got.worst_amplification * (1 + 1e-4)
  )


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  spread=st.floats(0.1, 5),
  change=st.floats(-5, 0.5).map(lambda e: 10**e),
)
def test_gain_against_equations(dtype, seed, spread, change):
  z, v = draw(seed, spread, dtype)
  zq = (z + change * v).astype(dtype)
  got = run(softmax_gain, z, zq, 0.7)
  p, matrix = jacobian(z, 0.7)
  z64, dz = z.astype(float), zq.astype(float) - z
  x = dz / 0.7
  # q - p = p (e^x - E_p e^x) / E_p e^x, by expm1.
  rise = np.expm1(x - p @ x)
  dp = p * (rise - p @ rise) / (1 + p @ rise)
  norm = np.linalg.norm
  centred = lambda a: a - a.mean()  # noqa: E731
  rtol = 1e-4 if dtype == "float32" else 1e-8
  expected = dict(
    relative_z=norm(dz) / norm(z64),
    relative_z_centred=norm(centred(dz)) / norm(centred(z64)),
    relative_p=norm(dp) / norm(p),
    linear_ratio=norm(matrix @ dz) / norm(dp),
    random_amplification=(
      norm(matrix) / 32**0.5 * norm(centred(z64)) / norm(p)
    ),
    entropy=-p @ np.log(p),
    participation=1 / (p @ p),
  )
  expected["amplification"] = expected["relative_p"] / expected["relative_z"]
  for name, value in expected.items():
    np.testing.assert_allclose(
      getattr(got, name), value, rtol=rtol, err_msg=name
    )


def test_entropy_decides_the_regime():
  """Confident softmax damps, undecided softmax amplifies the same change."""
  z, (_, v) = np.linspace(0, 1, 33), draw(5, 1.0)
  gains = [run(softmax_gain, c * z, c * z + 0.01 * v, 1.0) for c in (10, 400)]
  assert gains[0].entropy > 0.5 and gains[0].amplification > 1
  assert gains[1].entropy < 0.1 and gains[1].amplification < 1
  assert gains[1].worst_amplification < gains[0].worst_amplification


def test_nothing_moves():
  z, _ = draw(6, 2.0, np.float32)
  same = run(softmax_gain, z, z, 1.0)
  assert same.relative_p == same.amplification == same.worst_share == 0
  assert same.linear_ratio == 0 and same.worst.value > 0
  z = np.round(z * 64) / 64
  constant = run(softmax_gain, z, z + 8, 1.0)
  assert constant.relative_z > 0 and constant.relative_p < 1e-6
  assert constant.amplification < 1e-6
  flat = run(softmax_gain, np.zeros(33, "f"), z, 1.0)
  assert flat.relative_z == np.inf and flat.amplification == 0


def test_masked_tokens_are_not_there():
  z, v = draw(7, 2.0, np.float32)
  zq, keep = z + 0.1 * v, np.arange(33) != 5
  got = run(
    softmax_gain, np.where(keep, z, -np.inf), np.where(keep, zq, -np.inf), 1.0
  )
  alone = run(softmax_gain, z[keep], zq[keep], 1.0)
  for name in set(vars(got)) - {"worst"}:
    np.testing.assert_allclose(
      getattr(got, name), getattr(alone, name), rtol=1e-4, err_msg=name
    )
  assert got.worst.vector[5] == 0


@pytest.mark.slow
def test_jit_is_vmap():
  z_BV = np.stack([draw(seed, 2.0, "f", 12)[0] for seed in range(3)])
  over_batch = jax.jit(
    jax.vmap(chex.assert_max_traces(probes.top_singular, n=1))
  )
  batch = over_batch(z_BV)
  over_batch(-z_BV)  # the same program
  chex.assert_shape(batch.vector, (3, 12))
  chex.assert_shape([batch.value, batch.residual, batch.iterations], (3,))
  chex.assert_tree_all_finite(batch)
  for row in range(3):
    got = top_singular(z_BV[row])
    np.testing.assert_allclose(got.value, batch.value[row], rtol=1e-5)
    np.testing.assert_allclose(got.vector, batch.vector[row], atol=1e-5)
    assert got.iterations == batch.iterations[row]


def test_rates_of_two_equal_tokens_by_hand():
  """p = (1/2, 1/2), dz = (a, -a): dp = (a, -a) / 2 for T = 1."""
  z = jnp.zeros(2)
  found = rates(z, z, jnp.array([0.3, -0.3]))
  np.testing.assert_allclose(found.p, 0.3, rtol=1e-6)
  np.testing.assert_allclose(found.turn, 0.3, rtol=1e-6)
  np.testing.assert_allclose(found.stretch, 0, atol=1e-8)
  np.testing.assert_allclose(found.entropy, np.log(2), rtol=1e-6)
  assert found.moved_p == found.moved_z_centred == 0
  moved = rates(z, jnp.array([1.0, 0.0]), z)
  q = np.exp([1.0, 0]) / (np.e + 1)
  np.testing.assert_allclose(
    moved.moved_p, np.linalg.norm(q - 0.5) / np.sqrt(0.5), rtol=1e-6
  )
  assert moved.p == moved.turn == moved.stretch == moved.z == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
def test_rates_equal_finite_differences_and_the_identity(scale, temperature):
  rng = np.random.default_rng(0)
  start, z, dz = rng.normal(size=(3, 40)) * [[scale], [scale], [1.0]]

  def p(t):
    x = (z + t * dz) / temperature
    x = np.exp(x - x.max())
    return x / x.sum()

  step = 1e-4
  speed = (p(step) - p(-step)) / (2 * step)
  along = p(0) / np.linalg.norm(p(0))
  stretch = along @ speed
  turn = np.linalg.norm(speed - stretch * along)
  with jax.enable_x64():
    found = rates(start, z, dz, temperature)
    size = np.linalg.norm(p(0))
    np.testing.assert_allclose(found.p, np.linalg.norm(speed) / size, rtol=1e-6)
    np.testing.assert_allclose(found.turn, turn / size, rtol=1e-6)
    np.testing.assert_allclose(found.stretch, stretch / size, rtol=1e-5)
    np.testing.assert_allclose(
      found.p**2, found.turn**2 + found.stretch**2, rtol=1e-10
    )
    np.testing.assert_allclose(
      found.z, np.linalg.norm(dz) / np.linalg.norm(z), rtol=1e-12
    )
    np.testing.assert_allclose(
      found.moved_z_centred, np.std(z - start) / np.std(start), rtol=1e-12
    )


def test_the_turns_add_up_to_no_less_than_the_angle():
  """The integral of `turn` is the length of the way of p on the sphere."""
  rng = np.random.default_rng(1)
  z, end = rng.normal(size=(2, 30)) * 3
  places, weights = np.polynomial.legendre.leggauss(40)
  with jax.enable_x64():
    turns = jax.vmap(lambda t: rates(z, z + t * (end - z), end - z).turn)(
      jnp.asarray((places + 1) / 2)
    )
  p, q = (np.exp(2 * x) / np.exp(2 * x).sum() for x in (z, end))
  angle = np.arccos(np.sqrt(p * q).sum())  # sqrt of p^2 is p, so r gives cos
  assert angle <= np.asarray(turns) @ weights / 2 <= 2 * angle


def test_rates_ignore_a_constant_and_are_exact_when_confident():
  z, dz = jnp.array([30.0, 1.0, 0.0]), jnp.array([1.0, 2.0, 1.5])
  found, moved = (rates(z, z, change) for change in (dz, dz + 1024))
  np.testing.assert_allclose(moved.p, found.p, rtol=1e-6)
  np.testing.assert_allclose(moved.turn, found.turn, rtol=1e-6)
  # dp is p (dz - dz of the top) at the rest: e^-29 and half of e^-30.
  np.testing.assert_allclose(
    found.turn, np.hypot(np.exp(-29.0), np.exp(-30.0) / 2), rtol=1e-5
  )
