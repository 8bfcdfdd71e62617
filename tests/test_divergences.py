"""Divergences of p and q against their equations, near and far."""

import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import probes
from jaxprune.probes import log_ratio as log_ratio_lib

RTOL = {"float32": 3e-5, "float64": 1e-9}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
quick = hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)
NAMES = ("cos_p", "one_minus_cos_p", "kl", "kl_reverse", "jeffreys", "js", "tv")
# Jitted for speed: op by op, each new shape compiles a hundred small programs.
compare = jax.jit(probes.compare_distributions)
log_ratio_from_logits = jax.jit(probes.log_ratio_from_logits)
concentration = jax.jit(probes.concentration)


def run(z, zq, temperature=1.0):
  """The library's numbers as floats, in float64 if the logits are."""
  with jax.enable_x64(np.asarray(z).dtype == np.float64):
    got = jax.device_get(compare(z, zq, float(temperature)))
  assert got.kl.dtype == np.asarray(z).dtype
  return {name: float(getattr(got, name)) for name in NAMES}


def log_softmax(z):
  z = z - z.max()
  return z - np.log(np.exp(z).sum())


def quadrature(z, zq, temperature, order=60):
  """The divergences as integrals of variances along p_t: nothing cancels.

  KL(p||q) = int (1-t) Var_t, KL(q||p) = int t Var_t; log cos twice the same
  for r at half temperature, folded at t = 1/2.
  """
  z, zq = z.astype(np.float64), zq.astype(np.float64)
  x = (zq - z) / temperature
  nodes, weights = np.polynomial.legendre.leggauss(order)
  nodes, weights = (nodes + 1) / 2, weights / 2

  def variance(logits, x):
    p = np.exp(log_softmax(logits))
    centred = x - p @ x
    return p @ centred**2

  var_p = np.array([variance(z / temperature + t * x, x) for t in nodes])
  kl, kl_reverse = weights @ ((1 - nodes) * var_p), weights @ (nodes * var_p)
  # -log BC(r, s) = int min(t, 1-t) Var_t / 2, on both halves.
  fall = 0
  for start in (0, 0.5):
    ts = start + nodes / 2
    var_r = [variance(2 * (z / temperature + t * x), 2 * x) for t in ts]
    fall += weights / 2 @ (np.minimum(ts, 1 - ts) * var_r) / 2
  return dict(
    kl=kl,
    kl_reverse=kl_reverse,
    jeffreys=weights @ var_p,
    one_minus_cos_p=-np.expm1(-fall),
    cos_p=np.exp(-fall),
  )


def direct(z, zq, temperature):
  """The definitions, in float64; good when p and q differ visibly."""
  log_p = log_softmax(z.astype(np.float64) / temperature)
  log_q = log_softmax(zq.astype(np.float64) / temperature)
  p, q = np.exp(log_p), np.exp(log_q)
  log_m = np.logaddexp(log_p, log_q) - np.log(2)
  lse = lambda x: np.log(np.exp(x - x.max()).sum()) + x.max()  # noqa: E731
  cos = np.exp(lse(log_p + log_q) - lse(2 * log_p) / 2 - lse(2 * log_q) / 2)
  kl, kl_reverse = p @ (log_p - log_q), q @ (log_q - log_p)
  return dict(
    cos_p=cos,
    one_minus_cos_p=1 - cos,
    kl=kl,
    kl_reverse=kl_reverse,
    jeffreys=kl + kl_reverse,
    js=p @ (log_p - log_m) / 2 + q @ (log_q - log_m) / 2,
    tv=abs(p - q).sum() / 2,
  )


def test_table():
  """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), by hand."""
  got = run(np.log([2.0, 1, 1]).astype("f"), np.log([1.0, 2, 1]).astype("f"))
  expected = dict(
    cos_p=5 / 6,
    one_minus_cos_p=1 / 6,
    kl=math.log(2) / 4,
    kl_reverse=math.log(2) / 4,
    jeffreys=math.log(2) / 2,
    js=math.log(4 / 3) / 2 + math.log(2 / 3) / 4,
    tv=1 / 4,
  )
  for name in NAMES:
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)


logits = dict(
  seed=st.integers(0, 2**32 - 1),
  size=st.sampled_from([2, 33]),
  # No subnormal logits: here they are equal, for the oracle they differ.
  spread=st.floats(0, 8).map(lambda s: s if s > 1e-30 else 0.0),
  temperature=st.floats(0.2, 5),
)


def draw(seed, size, spread, change, dtype):
  rng = np.random.default_rng(seed)
  z = (spread * rng.standard_normal(size)).astype(dtype)
  return z, (z + change * rng.standard_normal(size)).astype(dtype)


@DTYPES
@quick
@hypothesis.given(**logits, change=st.floats(0.3, 6))
def test_far_matches_definitions(
  dtype, seed, size, spread, temperature, change
):
  z, zq = draw(seed, size, spread, change, dtype)
  got, expected = run(z, zq, temperature), direct(z, zq, temperature)
  # The definitions cancel: right to 1e-16, not to 1e-16 of the result.
  for name in NAMES:
    np.testing.assert_allclose(
      got[name], expected[name], rtol=RTOL[dtype], atol=1e-14, err_msg=name
    )


@DTYPES
@quick
@hypothesis.given(**logits, change=st.floats(-6, -0.5).map(lambda e: 10**e))
def test_near_matches_quadrature(
  dtype, seed, size, spread, temperature, change
):
  z, zq = draw(seed, size, spread, change, dtype)
  got, expected = run(z, zq, temperature), quadrature(z, zq, temperature)
  for name, value in expected.items():
    np.testing.assert_allclose(
      got[name], value, rtol=RTOL[dtype], atol=1e-30, err_msg=name
    )
  # To second order, JS is an eighth of Jeffreys, and TV half of E|X - E X|.
  if change < 1e-3:
    np.testing.assert_allclose(
      got["js"], expected["jeffreys"] / 8, rtol=1e-2, atol=1e-30
    )
    x = (zq.astype(float) - z) / temperature
    p = np.exp(log_softmax(z.astype(float) / temperature))
    np.testing.assert_allclose(
      got["tv"], p @ abs(x - p @ x) / 2, rtol=3e-2, atol=1e-15
    )


@DTYPES
@quick
@hypothesis.given(**logits, change=st.floats(-6, 1).map(lambda e: 10**e))
def test_bounds_and_symmetry(dtype, seed, size, spread, temperature, change):
  z, zq = draw(seed, size, spread, change, dtype)
  got, back = run(z, zq, temperature), run(zq, z, temperature)
  assert min(got.values()) >= 0
  assert got["cos_p"] <= 1 and got["one_minus_cos_p"] <= 1 and got["tv"] <= 1
  assert got["js"] <= math.log(2)
  # Pinsker, and JS <= Jeffreys / 4.
  assert got["tv"] ** 2 <= got["kl"] / 2 * (1 + 1e-4) + 1e-30
  assert got["js"] <= got["jeffreys"] / 4 * (1 + 1e-4)
  twin = {"kl": "kl_reverse", "kl_reverse": "kl"}
  for name in NAMES:
    np.testing.assert_allclose(
      back[twin.get(name, name)], got[name], rtol=RTOL[dtype], atol=1e-30
    )


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  offset=st.integers(-300, 300),
  offset_change=st.integers(-300, 300),
  power=st.integers(-6, 6),
)
def test_invariances(dtype, seed, offset, offset_change, power):
  """z + c, dz + c' and (c z, c dz, c T) are invisible to softmax."""
  rng = np.random.default_rng(seed)
  # Multiples of 1/64, so that the shifted logits are exact.
  z = (rng.integers(-320, 320, 33) / 64).astype(dtype)
  zq = (z + rng.integers(-64, 64, 33) / 64).astype(dtype)
  reference = run(z, zq, 0.5)
  shifted = run(z + offset, zq + offset + offset_change, 0.5)
  factor = 2.0**power
  scaled = run(z * factor, zq * factor, 0.5 * factor)
  for name in NAMES:
    np.testing.assert_allclose(
      shifted[name], reference[name], rtol=RTOL[dtype], atol=1e-12
    )
    assert scaled[name] == reference[name], name


@DTYPES
@pytest.mark.parametrize("spread", [0, 1, 30])
def test_equal_logits_are_exact(dtype, spread):
  z, _ = draw(0, 33, spread, 1, dtype)
  for zq in (z, z + np.asarray(4, dtype) if spread == 0 else z):
    got = run(z, zq, 0.7)
    assert got.pop("cos_p") == 1
    assert set(got.values()) == {0.0}


def test_constant_change_is_rounding_only():
  z, _ = draw(1, 33, 3, 1, np.float32)
  got = run(z, z + np.float32(0.1))
  assert got["cos_p"] == 1 and got["kl"] < 1e-12 and got["tv"] < 1e-6


@quick
@hypothesis.given(**logits, change=st.floats(0.1, 4))
def test_cosine_identities(seed, size, spread, temperature, change):
  """cos = E_r[e^X] / sqrt(E_r[e^2X]), r = p^2 / sum p^2 = softmax(2z / T)."""
  z, zq = draw(seed, size, spread, change, np.float64)
  p = np.exp(log_softmax(z / temperature))
  r = p**2 / (p**2).sum()
  np.testing.assert_allclose(
    r, np.exp(log_softmax(2 * z / temperature)), rtol=1e-10, atol=1e-300
  )
  # Shifted by its largest, as the cosine does not see it.
  x = (zq - z) / temperature
  x -= x.max()
  moment, square = r @ np.exp(x), r @ np.exp(2 * x)
  hypothesis.assume(square > 1e-200)
  got = run(z, zq, temperature)
  np.testing.assert_allclose(got["cos_p"], moment / square**0.5, rtol=1e-9)
  cv_square = r @ (np.exp(x) - moment) ** 2 / moment**2
  np.testing.assert_allclose(
    got["one_minus_cos_p"],
    1 - 1 / math.sqrt(1 + cv_square),
    rtol=1e-7,
    atol=1e-15,
  )


@DTYPES
@quick
@hypothesis.given(**logits, change=st.floats(-6, 1.5).map(lambda e: 10**e))
def test_log_ratio(dtype, seed, size, spread, temperature, change):
  """D_j = dz_j / T - log E_p[e^(dz / T)], small or large."""
  z, zq = draw(seed, size, spread, change, dtype)
  with jax.enable_x64(dtype == "float64"):
    got = jax.device_get(log_ratio_from_logits(z, zq, temperature))
  z, zq = z.astype(np.float64), zq.astype(np.float64)
  x = (zq - z) / temperature
  log_p = log_softmax(z / temperature)
  log_ratio = log_softmax(zq / temperature) - log_p
  rtol = 1e-5 if dtype == "float32" else 1e-12
  size = abs(x).max()
  # The difference of two log-probabilities rounds like the larger of them,
  # and the oracle's own exponents like the logits.
  rounding = 16 * np.finfo(np.float64).eps * (1 + abs(z / temperature).max())
  np.testing.assert_allclose(
    got.log_ratio, log_ratio, rtol=rtol, atol=rtol * size + rounding
  )
  reference = x - x[z.argmax()]
  shift = reference.max()
  log_mean = np.log(np.exp(log_p) @ np.exp(reference - shift)) + shift
  np.testing.assert_allclose(
    got.log_mean, log_mean, rtol=rtol, atol=rtol * size + rounding
  )
  np.testing.assert_allclose(
    got.log_p, log_p, rtol=rtol, atol=rtol * abs(z / temperature).max()
  )
  # q - p, of each token by the smaller factor, to the error of D.
  p, q = np.exp(log_p), np.exp(log_softmax(zq / temperature))
  larger = np.maximum(p, q)
  change = np.where(log_ratio > 0, -q, p) * np.expm1(-abs(log_ratio))
  np.testing.assert_allclose(got.p, p, rtol=20 * rtol, atol=1e-37)
  error = abs(got.change - change)
  allowed = larger * (rtol * size + rounding) + 20 * rtol * abs(change)
  assert np.all(error <= allowed + 1e-37), (error / allowed).max()


def test_confident_dense_side():
  """Two tokens, p = 1 - s with s far below the float32 epsilon."""
  # 5.6 / 0.3 is no float32: a compiler that fuses the division with the
  # difference to the largest logit must not leave its rounding there.
  for gap, change, temperature in (
    (30.0, 0.5, 1.0),
    (25.0, -0.25, 1.0),
    (80.0, 1.0, 1.0),
    (5.6, 0.1, 0.3),
    (7.7, -0.1, 0.3125),
  ):
    z = np.array([gap, 0], np.float32)
    zq = np.array([gap, change], np.float32)
    s = math.exp(-float(z[0]) / temperature)
    # KL = s (e^D - 1 - D) to first order in s, D = change / T.
    change = float(zq[1]) / temperature
    expected = s * (math.expm1(change) - change)
    got = run(z, zq, temperature)
    np.testing.assert_allclose(got["kl"], expected, rtol=1e-5 + 2 * s)
    tv = s * abs(math.expm1(change))
    np.testing.assert_allclose(got["tv"], tv, rtol=1e-5 + 2 * s)
  entropy = concentration(np.array([30, 0], np.float32)).entropy
  np.testing.assert_allclose(entropy, 31 * math.exp(-30), rtol=1e-5)


def test_huge_divergence():
  got = run(np.array([0, 500], "f"), np.array([500, 0], "f"))
  np.testing.assert_allclose(got["kl"], 500, rtol=1e-6)
  np.testing.assert_allclose(got["jeffreys"], 1000, rtol=1e-6)
  np.testing.assert_allclose(got["js"], math.log(2), rtol=1e-6)
  assert got["cos_p"] == 0 and got["one_minus_cos_p"] == 1 and got["tv"] == 1
  # A tail token that jumps: E_p[e^X] is far from E_p[X] without overflow.
  got = run(np.array([0, -90], "f"), np.array([0, 60], "f"))
  np.testing.assert_allclose(got["kl"], 60, rtol=1e-6)
  np.testing.assert_allclose(got["kl_reverse"], 90, rtol=1e-6)


def test_large_vocabulary():
  rng = np.random.default_rng(0)
  z = (3 * rng.standard_normal(150_000)).astype("f")
  zq = z + (0.01 * rng.standard_normal(150_000)).astype("f")
  got, expected = run(z, zq, 0.7), quadrature(z, zq, 0.7, order=6)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_cosine_where_the_length_of_p_changes_most():
  """Half of p is spread thin: |q| - |p| is 30 times the part that turns."""
  z = np.zeros(4001, "f")
  z[0] = math.log(4000)
  for change in (1e-4, -0.01, 0.1):
    zq = z + np.where(np.arange(4001) > 0, change, 0).astype("f")
    got, expected = run(z, zq), quadrature(z, zq, 1, order=6)
    for name, value in expected.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)


def test_masked_on_both_sides_is_removed():
  z, zq = draw(3, 33, 2, 1, np.float32)
  keep = ~np.isin(np.arange(33), [0, 5, z.argmax()])
  got = run(np.where(keep, z, -np.inf), np.where(keep, zq, -np.inf))
  expected = direct(z[keep], zq[keep], 1)
  for name in NAMES:
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-5)
  pair = log_ratio_from_logits(
    *(np.where(keep, each, -np.inf) for each in (z, zq))
  )
  assert not np.any(pair.log_ratio[~keep]) and not np.any(pair.change[~keep])
  shape = concentration(np.where(keep, z, -np.inf))
  p = np.exp(log_softmax(z[keep].astype(float)))
  np.testing.assert_allclose(shape.entropy, -p @ np.log(p), rtol=1e-5)


@pytest.mark.parametrize("token", [2, "top"])
def test_masked_on_one_side(token):
  z, zq = draw(4, 33, 2, 0.5, np.float32)
  token = int(z.argmax()) if token == "top" else token
  lost = np.where(np.arange(33) == token, -np.inf, zq).astype("f")
  got = run(z, lost)
  p = np.exp(log_softmax(z.astype(float)))
  q = np.exp(log_softmax(lost.astype(float)))
  assert got["kl"] == got["jeffreys"] == math.inf
  keep = q > 0
  m = (p + q) / 2
  expected = dict(
    kl_reverse=q[keep] @ np.log(q[keep] / p[keep]),
    tv=abs(p - q).sum() / 2,
    js=p @ np.log(p / m) / 2 + q[keep] @ np.log(q[keep] / m[keep]) / 2,
    cos_p=p @ q / np.linalg.norm(p) / np.linalg.norm(q),
  )
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5)
  won = run(lost, z)
  assert won["kl_reverse"] == math.inf
  np.testing.assert_allclose(won["kl"], expected["kl_reverse"], rtol=1e-5)
  np.testing.assert_allclose(won["js"], expected["js"], rtol=1e-5)
  # Nothing in common.
  apart = run(np.array([0, -np.inf], "f"), np.array([-np.inf, 0], "f"))
  assert apart["cos_p"] == 0 and apart["tv"] == 1 and apart["kl"] == math.inf


def test_not_a_number_is_not_hidden():
  z = np.zeros(33, np.float32)
  for bad in (np.nan, np.inf):
    zq = np.where(np.arange(33) == 1, bad, z).astype("f")
    for got in (run(z, zq), run(zq, z)):
      assert all(math.isnan(value) for value in got.values())


def test_one_token():
  got = run(np.array([3], "f"), np.array([-2], "f"))
  assert got.pop("cos_p") == 1 and set(got.values()) == {0.0}
  shape = concentration(np.array([3], "f"))
  assert shape.entropy == 0 and shape.participation == 1
  assert shape.margin == np.inf


@quick
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_gradient_is_finite_and_right(seed):
  """d KL / d z_pruned = (q - p) / T, from tiny changes to none."""
  z, zq = draw(seed, 5, 2, 10.0 ** -(seed % 8), np.float64)
  zq = z if seed % 3 == 0 else zq
  with jax.enable_x64(True):
    slope = np.asarray(kl_slope(z, zq, 0.7))
  p, q = np.exp(log_softmax(z / 0.7)), np.exp(log_softmax(zq / 0.7))
  np.testing.assert_allclose(slope, (q - p) / 0.7, rtol=1e-6, atol=1e-14)


kl_slope = jax.jit(
  jax.grad(lambda z, zq, t: probes.compare_distributions(z, zq, t).kl, 1)
)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, [1.0]])
def test_wrong_temperature(temperature):
  z = np.zeros(3, np.float32)
  for function in (probes.compare_distributions, probes.theorem_2):
    with pytest.raises(ValueError, match="must be a positive number"):
      function(z, z, np.asarray(temperature))


def test_log_softmax_normalises():
  z = np.array([-200, 0, 100, 99.5], np.float64)
  with jax.enable_x64(True):
    log_p, log_normaliser = log_ratio_lib.log_softmax(z)
    np.testing.assert_allclose(np.exp(np.asarray(log_p)).sum(), 1, rtol=1e-14)
    np.testing.assert_allclose(z - log_normaliser, log_p, rtol=1e-12)
