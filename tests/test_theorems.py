"""Theorems 1-3: estimates against exact values, orders, limits and bounds."""

import math

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import probes
from jaxprune.probes import logit_moments, position

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
RTOL = {"float32": 3e-5, "float64": 1e-10}
quick = hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)
# Jitted for speed: op by op, each new shape compiles a hundred small programs.
compare_vectors = jax.jit(probes.compare_vectors)
theorem_1 = jax.jit(probes.theorem_1)
theorem_2 = jax.jit(probes.theorem_2)
theorem_3 = jax.jit(probes.theorem_3)
compare_moments = jax.jit(probes.compare_moments)
check_position = jax.jit(probes.check_position)
compare_position = jax.jit(probes.compare_position)


def run(function, *arguments):
  """The result as NumPy scalars, in float64 if the first argument is."""
  with jax.enable_x64(np.asarray(arguments[0]).dtype == np.float64):
    return jax.device_get(function(*arguments))


def softmax(z):
  p = np.exp(z - z.max())
  return p / p.sum()


def moments(weight, x):
  x = x.astype(np.float64) - weight @ x.astype(np.float64)
  return weight @ x**2, weight @ x**3


def draw(seed, size=33, spread=2.0, change=1.0, dtype=np.float64):
  rng = np.random.default_rng(seed)
  z = (spread * rng.standard_normal(size)).astype(dtype)
  return z, (z + change * rng.standard_normal(size)).astype(dtype)


logits = dict(
  seed=st.integers(0, 2**32 - 1),
  spread=st.floats(0, 6),
  change=st.floats(-5, 1).map(lambda e: 10**e),
  temperature=st.floats(0.3, 3),
)


@DTYPES
@quick
@hypothesis.given(**logits)
def test_estimates_are_the_weighted_variances(
  dtype, seed, spread, change, temperature
):
  z, zq = draw(seed, 33, spread, change, dtype)
  second = run(theorem_2, z, zq, temperature)
  third = run(theorem_3, z, zq, temperature)
  x = (zq.astype(float) - z) / temperature
  p = softmax(z.astype(float) / temperature)
  r = p**2 / (p**2).sum()
  close = lambda a, b, atol=0.0: np.testing.assert_allclose(  # noqa: E731
    a, b, rtol=RTOL[dtype], atol=atol
  )
  for got, weight, factor in (
    (second.third_order, r, 1 / 2),
    (third.third_order, p, 1 / 6),
    (third.third_order_reverse, p, 1 / 3),
  ):
    variance, k3 = moments(weight, x)
    # The cube of the spread is what the third moment may be wrong by.
    close(got, variance / 2 + factor * k3, RTOL[dtype] * variance**1.5)
  close(second.estimate, moments(r, x)[0] / 2)
  close(third.estimate, moments(p, x)[0] / 2)
  close(second.max_abs_x, abs(x - r @ x).max())
  close(third.max_abs_x, abs(x - p @ x).max())
  close(third.bound, np.ptp(x) ** 2 / 8)
  # The exact values are those of the divergences, and errors are signed.
  assert second.error == second.estimate - second.exact
  assert third.error == third.estimate - third.exact
  assert third.error_reverse == third.estimate - third.exact_reverse


@DTYPES
@quick
@hypothesis.given(**logits)
def test_hoeffding_bounds_both_directions(
  dtype, seed, spread, change, temperature
):
  got = run(theorem_3, *draw(seed, 33, spread, change, dtype), temperature)
  assert 0 <= got.exact <= got.bound * (1 + 1e-5)
  assert 0 <= got.exact_reverse <= got.bound * (1 + 1e-5)


def test_hoeffding_is_nearly_reached():
  """Two equal tokens pulled apart a little: KL = range^2 / 8."""
  got = run(theorem_3, np.zeros(2), np.array([0.005, -0.005]), 1.0)
  np.testing.assert_allclose(got.exact, got.bound, rtol=1e-4)


@quick
@hypothesis.given(seed=st.integers(0, 2**32 - 1), temperature=st.floats(0.5, 3))
def test_orders_of_the_p_space_theorems(seed, temperature):
  """Estimates miss by O(eps) relatively, with the third order by O(eps^2)."""
  z, zq = draw(seed, 33, 1.0, 1.0)
  at = {}
  for eps in (1e-3, 1e-4):
    second = run(theorem_2, z, z + eps * (zq - z), temperature)
    third = run(theorem_3, z, z + eps * (zq - z), temperature)
    at[eps] = np.array(
      [
        [second.estimate, second.third_order, second.exact],
        [third.estimate, third.third_order, third.exact],
        [third.estimate, third.third_order_reverse, third.exact_reverse],
      ]
    )
    # The leading error is the next term: k3/2, k3/6, k3/3.
    k3 = np.array(
      [
        second.third_cumulant / 2,
        third.third_cumulant / 6,
        third.third_cumulant / 3,
      ]
    )
    leading = at[eps][:, 0] - at[eps][:, 2] + k3
    assert np.all(abs(leading) <= 30 * eps**2 * at[eps][:, 2] / temperature**2)
  for order in (0, 1):
    coarse, fine = (
      abs(at[eps][:, order] / at[eps][:, 2] - 1) for eps in (1e-3, 1e-4)
    )
    # A zero of the coefficient makes the next power lead, which only helps;
    # float64 itself is good to 1e-11 here.
    assert np.all(fine <= 0.2 / 10**order * coarse + 1e-10)


def test_directions_differ_at_third_order():
  z, zq = draw(3)
  ratios = []
  for eps in (1e-2, 1e-3, 1e-4):
    got = run(theorem_3, z, z + eps * (zq - z), 0.8)
    gap = got.exact_reverse - got.exact
    ratios.append(gap / (got.third_cumulant / 6) - 1)
    # Both directions share the leading term ...
    assert abs(got.exact_reverse / got.exact - 1) < 3 * eps
  # ... and part at k3 / 3 - k3 / 6.
  assert abs(ratios[0]) < 0.2 and abs(ratios[2]) < 2e-3
  assert 5 < ratios[0] / ratios[1] < 20


def test_swapping_the_weights_changes_the_estimate():
  """Weights at the pruned side are another number, at third order."""
  z, zq = draw(4)
  forward, swapped = run(theorem_3, z, zq, 1.0), run(theorem_3, zq, z, 1.0)
  assert abs(swapped.estimate / forward.estimate - 1) > 0.05
  np.testing.assert_allclose(swapped.exact, forward.exact_reverse, rtol=1e-9)


def test_integral_identities():
  """KL(p||q) = int (1-t) Var_t dt, KL(q||p) = int t Var_t dt."""
  z, zq = draw(5)
  nodes, weights = np.polynomial.legendre.leggauss(40)
  nodes, weights = (nodes + 1) / 2, weights / 2
  # The library's own variance, along the way from p to q.
  along = np.array(
    [
      2 * run(theorem_3, z + t * (zq - z), zq + t * (zq - z), 0.7).estimate
      for t in nodes
    ]
  )
  got = run(theorem_3, z, zq, 0.7)
  np.testing.assert_allclose(got.exact, weights @ ((1 - nodes) * along))
  np.testing.assert_allclose(got.exact_reverse, weights @ (nodes * along))


@DTYPES
def test_limits(dtype):
  rng = np.random.default_rng(6)
  dz = rng.standard_normal(33).astype(dtype)
  rtol = RTOL[dtype]
  # Uniform p: r = p, and both estimates are the uniform variance.
  z = np.full(33, 2, dtype)
  second = run(theorem_2, z, z + dz, 0.7)
  third = run(theorem_3, z, z + dz, 0.7)
  uniform = (z + dz).astype(float).var() / (2 * 0.7**2)
  np.testing.assert_allclose(second.estimate, uniform, rtol=rtol)
  np.testing.assert_allclose(third.estimate, uniform, rtol=rtol)
  # One-hot p: both vanish, with the truth.
  z = np.where(np.arange(33) == 3, 200, 0).astype(dtype)
  for got in (run(theorem_2, z, z + dz, 0.7), run(theorem_3, z, z + dz, 0.7)):
    assert got.estimate < 1e-30 and got.exact < 1e-30
  # T to infinity: the uniform variance again.
  z = (3 * rng.standard_normal(33)).astype(dtype)
  hot = 1e4
  for function in (theorem_2, theorem_3):
    got = run(function, z, z + dz, hot)
    change = (z + dz).astype(float) - z
    expected = change.var() / (2 * hot**2)
    np.testing.assert_allclose(got.estimate, expected, rtol=3e-3)
    np.testing.assert_allclose(got.exact, expected, rtol=3e-3)


def test_only_ratios_to_temperature_count():
  z, zq = draw(7, dtype=np.float32)
  for function in (theorem_2, theorem_3):
    one, four = run(function, z, zq, 0.5), run(function, 4 * z, 4 * zq, 2.0)
    assert jax.tree.leaves(one) == jax.tree.leaves(four)


def test_deviation_is_not_monotone_in_temperature():
  """1 / T^2 holds at fixed weights; a confident p hides a change."""
  z = np.array([20.0, 0, 0])
  zq = np.array([20.0, 3, -1])
  exact = [run(theorem_3, z, zq, t).exact for t in (0.5, 5.0, 50.0)]
  assert exact[0] < exact[1] > exact[2]


def test_estimate_of_the_cosine_is_unbounded():
  z, zq = draw(8, change=20.0, spread=0.5)
  got = run(theorem_2, z, zq, 1.0)
  assert got.estimate > 1 >= got.exact and got.error > 0


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1), eps=st.floats(-4, 1).map(lambda e: 10**e)
)
def test_theorem_1(dtype, seed, eps):
  x, y = draw(seed, 33, 1.0, eps, dtype)
  deviation = run(compare_vectors, x, y)
  with jax.enable_x64(dtype == "float64"):
    got = jax.device_get(theorem_1(deviation))
  assert got.exact == deviation.one_minus_cos
  np.testing.assert_allclose(got.estimate, deviation.rho**2 / 2, rtol=1e-6)
  np.testing.assert_allclose(
    got.error, got.estimate - got.exact, rtol=1e-6, atol=0
  )
  # 1 - cos = 1 - 1 / sqrt(1 + 2 corrected), so `corrected` is an upper bound
  # whenever the angle is acute.
  if 1 + got.alpha > 0:
    t = 2 * got.corrected.astype(float)
    exact = -np.expm1(-np.log1p(t) / 2)
    np.testing.assert_allclose(got.exact, exact, rtol=20 * RTOL[dtype])


@pytest.mark.parametrize("alpha", [-0.4, 0.0, 0.5])
def test_theorem_1_drops_the_parallel_part(alpha):
  """Too high where alpha > 0, too low where alpha < 0, by (1 + alpha)^2."""
  x = np.array([1.0, 0])
  deviation = run(compare_vectors, x, np.array([1 + alpha, 1e-4]))
  with jax.enable_x64(True):
    got = jax.device_get(theorem_1(deviation))
  np.testing.assert_allclose(got.estimate / got.exact, (1 + alpha) ** 2, 1e-6)
  np.testing.assert_allclose(got.corrected, got.exact, rtol=1e-6)
  if alpha:
    assert np.sign(got.error) == np.sign(alpha)


def test_theorem_1_order():
  x, y = draw(9)
  misses = []
  for eps in (1e-2, 1e-3, 1e-4):
    deviation = run(compare_vectors, x, x + eps * (y - x))
    misses.append(deviation.rho**2 / 2 / deviation.one_minus_cos - 1)
  assert 8 < misses[0] / misses[1] < 12 and 9 < misses[1] / misses[2] < 11


def test_nothing_left_of_the_vector():
  got = theorem_1(compare_vectors(np.ones(3, "f"), np.zeros(3, "f")))
  assert got.corrected == np.inf and got.exact == 1 and got.error == -1
  got = theorem_1(compare_vectors(np.zeros(3, "f"), np.ones(3, "f")))
  assert got.estimate == got.corrected == got.error == np.inf


def test_no_change_has_no_error():
  z, _ = draw(10, dtype=np.float32)
  second, third = theorem_2(z, z, 1.0), theorem_3(z, z, 1.0)
  assert all(value == 0 for value in jax.tree.leaves((second, third)))


def test_lost_support_is_infinite_and_not_nan():
  z, zq = draw(11, dtype=np.float32)
  lost = np.where(np.arange(33) == 2, -np.inf, zq).astype("f")
  third = theorem_3(z, lost, 1.0)
  assert third.exact == third.estimate == third.third_order == np.inf
  assert third.error == 0 and third.error_reverse == np.inf
  assert third.third_cumulant == -np.inf and third.max_abs_x == np.inf
  second = theorem_2(z, lost, 1.0)
  assert second.estimate == np.inf and 0 < second.exact < 1
  sizes = compare_moments(z, lost, 1.0)
  assert sizes.var_p == sizes.var_uniform == sizes.rms_dz == np.inf
  # Won support carries no dense weight.
  sizes = compare_moments(lost, z, 1.0)
  assert np.isfinite(sizes.var_p) and sizes.var_uniform == np.inf
  assert not any(np.isnan(value) for value in jax.tree.leaves(sizes))
  # Masked on both sides: not there.
  keep = np.arange(33) != 2
  both = compare_moments(np.where(keep, z, -np.inf), lost, 1.0)
  alone = compare_moments(z[keep], zq[keep], 1.0)
  np.testing.assert_allclose(
    jax.tree.leaves(both), jax.tree.leaves(alone), rtol=1e-5
  )


@DTYPES
def test_compare_moments(dtype):
  z, zq = draw(12, dtype=dtype)
  got = run(compare_moments, z, zq, 0.7)
  dz = zq.astype(float) - z
  p = softmax(z.astype(float) / 0.7)
  expected = dict(
    var_p=moments(p, dz)[0],
    var_r=moments(p**2 / (p**2).sum(), dz)[0],
    var_uniform=dz.var(),
    max_abs_dz=abs(dz).max(),
    mean_abs_dz=abs(dz).mean(),
    rms_dz=math.sqrt((dz**2).mean()),
  )
  for k in (5, 10):
    top = np.argsort(-p)[:k]
    expected[f"var_top{k}"] = moments(p[top] / p[top].sum(), dz[top])[0]
    expected[f"l1_top{k}"] = abs(dz[top]).sum()
    expected[f"l2_top{k}"] = np.linalg.norm(dz[top])
  assert set(expected) == set(vars(got))
  for name, value in expected.items():
    np.testing.assert_allclose(
      getattr(got, name), value, rtol=RTOL[dtype], err_msg=name
    )


def test_compare_moments_of_few_tokens_and_of_a_constant():
  z = np.array([1, 2, 4], np.float32)
  got = compare_moments(z, z + np.array([1, 0, 2], np.float32), 1.0)
  p = softmax(z.astype(float))
  for value in (got.var_top5, got.var_top10, got.var_p):
    np.testing.assert_allclose(value, moments(p, np.array([1, 0, 2]))[0], 1e-5)
  assert got.l1_top5 == got.l1_top10 == 3
  # A constant offset has a size but no variance.
  got = compare_moments(z, z + 16, 1.0)
  assert got.var_p == got.var_r == got.var_uniform == got.var_top5 == 0
  assert got.rms_dz == got.max_abs_dz == got.mean_abs_dz == 16


def test_variance_is_blind_to_a_large_constant():
  weight = softmax(draw(0, spread=1.0)[0]).astype(np.float32)
  x = (np.arange(33) % 5 / 1024).astype(np.float32)
  variance = jax.jit(logit_moments.variance)
  assert variance(weight, np.full(33, 1000.1, np.float32)) == 0
  np.testing.assert_allclose(
    variance(weight, x + np.float32(1000)),
    moments(weight.astype(float) / weight.sum(dtype=float), x)[0],
    rtol=1e-3,
  )


def test_checks_say_where_the_estimates_hold():
  """The next order decides, and the exact values agree with it."""
  rng = np.random.default_rng(3)
  h, dh = rng.standard_normal((2, 20))
  z, dz = rng.standard_normal((2, 50)) * [[2.0], [1.0]]
  with jax.enable_x64(True):
    for size, holds in ((1e-3, True), (3.0, False)):
      pair = (h, h + size * dh, z, z + size * dz)
      found = jax.device_get(check_position(*pair, 0.7))
      record = jax.device_get(compare_position(*pair, 0.7))
      for valid in ("1_valid", "1_valid_z", "2_valid", "3_valid"):
        assert getattr(found, f"theorem_{valid}") == holds, valid
      for truth in (
        "one_minus_cos_h",
        "one_minus_cos_z",
        "one_minus_cos_p",
        "kl",
      ):
        estimate = getattr(record, f"{truth}_estimate")
        exact = getattr(record, truth)
        corrected = estimate + getattr(found, f"{truth}_next_order")
        if holds:  # the next order explains nearly all of the error
          assert abs(corrected - exact) < 0.05 * abs(estimate - exact), truth
      assert record.kl <= found.kl_bound
      chex.assert_tree_all_finite((found, record))


def test_checks_of_equal_and_of_masked_logits():
  rng = np.random.default_rng(4)
  h, z = rng.standard_normal(5), rng.standard_normal(9)
  found = jax.device_get(check_position(h, h, z, z, 1.0))
  for name, value in position.fields_of(found).items():
    assert value == name.startswith("theorem"), name
  # A token that only the pruned side masks has an infinite change.
  lost = np.where(np.arange(9) == 3, -np.inf, z)
  found = check_position(h, h, z, lost, 1.0)
  assert not found.theorem_2_valid and not found.theorem_3_valid
  assert found.kl_bound == np.inf


def test_checks_are_scalars_and_compile_once():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def batch(*arrays):
    return jax.vmap(probes.check_position, (0, 0, 0, 0, None))(*arrays)

  for seed in range(2):
    rng = np.random.default_rng(seed)
    h, g = rng.standard_normal((2, 4, 5)).astype("f")
    z, y = rng.standard_normal((2, 4, 9)).astype("f")
    found = batch(h, g, z, y, 1.0 + seed)
  chex.assert_tree_shape_prefix(found, (4,))
