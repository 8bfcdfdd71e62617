"""Cosine, angle and split of a change, and the record of one position."""

import dataclasses
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxprune import probes, report
from jaxprune.probes import position, spaces

RTOL = {"float32": 2e-5, "float64": 1e-12}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
quick = hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)
# Jitted for speed: op by op, each new shape compiles a hundred small programs.
compare = jax.jit(probes.compare_vectors)
compare_logits = jax.jit(probes.compare_logits)
record = jax.jit(probes.compare_position)


def oracle(x, y):
  """alpha, rho, 1 - cos and the angle, in float64, no small difference."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  x, y = x / abs(x).max(), y / abs(x).max()
  unit = x / np.linalg.norm(x)
  alpha = unit @ (y - x) / np.linalg.norm(x)
  across = (y - x) - unit * (unit @ (y - x))
  rho = np.linalg.norm(across) / np.linalg.norm(x)
  angle = math.atan2(rho, 1 + alpha)
  return alpha, rho, 2 * math.sin(angle / 2) ** 2, angle


@pytest.mark.parametrize(
  "x, y, cos, angle, alpha, rho",
  [
    ((1, 0), (1, 1), math.sqrt(0.5), math.pi / 4, 0, 1),
    ((3, 4), (3, 4), 1, 0, 0, 0),
    ((3, 4), (6, 8), 1, 0, 1, 0),
    ((3, 4), (-3, -4), -1, math.pi, -2, 0),
    ((0, 2), (2, 0), 0, math.pi / 2, -1, 1),
    ((2, 0), (4, 3), 0.8, math.atan2(3, 4), 1, 1.5),
    # Zero vectors, as documented.
    ((0, 0), (0, 0), 1, 0, 0, 0),
    ((3, 4), (0, 0), 0, math.pi / 2, -1, 0),
    ((0, 0), (3, 4), 0, math.pi / 2, 0, math.inf),
  ],
)
def test_table(x, y, cos, angle, alpha, rho):
  got = compare(jnp.array(x), jnp.array(y))
  expected = [cos, 1 - cos, angle, alpha, rho]
  np.testing.assert_allclose(
    dataclasses.astuple(got), expected, rtol=1e-6, atol=1e-7
  )


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  size=st.sampled_from([2, 33]),
  change=st.floats(-6, 1.5),
  scale=st.sampled_from([-30, 0, 30]),
)
def test_matches_float64(dtype, seed, size, change, scale):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(size) * 10.0**scale
  y = x + rng.standard_normal(size) * 10.0 ** (scale + change)
  x, y = x.astype(dtype), y.astype(dtype)
  alpha, rho, one_minus_cos, angle = oracle(x, y)
  # A change almost along x leaves few digits for the part across it.
  hypothesis.assume(rho > 0.05 * math.hypot(alpha, rho))
  with jax.enable_x64(dtype == "float64"):
    got = compare(x, y)
  assert got.rho.dtype == dtype
  # The part across is what is left of a difference of entries that are
  # themselves right to 1e-16, in the float64 oracle too.
  rtol = RTOL[dtype] + (1e-15 / min(rho, 1) if dtype == "float64" else 0)
  np.testing.assert_allclose(got.rho, rho, rtol=rtol)
  np.testing.assert_allclose(got.angle, angle, rtol=rtol)
  np.testing.assert_allclose(got.one_minus_cos, one_minus_cos, rtol=2 * rtol)
  np.testing.assert_allclose(got.cos, math.cos(angle), atol=rtol)
  np.testing.assert_allclose(
    got.alpha, alpha, atol=rtol * math.hypot(alpha, rho)
  )


@DTYPES
@quick
@hypothesis.given(
  seed=st.integers(0, 2**32 - 1),
  size=st.sampled_from([1, 33]),
  change=st.floats(-6, 1.5),
)
def test_identities(dtype, seed, size, change):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(size).astype(dtype)
  y = (x + rng.standard_normal(size) * 10.0**change).astype(dtype)
  rtol = RTOL[dtype]
  with jax.enable_x64(dtype == "float64"):
    got = compare(x, y)
  got = jax.device_get(got)
  dx = y.astype(np.float64) - x
  x = x.astype(np.float64)
  relative = (dx @ dx) / (x @ x)
  # |dx|^2 splits into the part along x and the part across it.
  np.testing.assert_allclose(got.alpha**2 + got.rho**2, relative, rtol=rtol)
  # cos = along / length with along = 1 + alpha, length^2 = along^2 + rho^2.
  along, rho = 1 + float(got.alpha), float(got.rho)
  length = math.hypot(along, rho)
  acute = rho**2 / (length * (length + abs(along)))
  again = acute if along > 0 else 2 - acute
  np.testing.assert_allclose(
    again, got.one_minus_cos, rtol=rtol, atol=rtol * rtol * relative
  )
  assert 0 <= got.one_minus_cos <= 2 and -1 <= got.cos <= 1
  if size == 1:
    assert got.rho <= rtol * math.sqrt(relative)


def test_second_order_form():
  """1 - cos = dx' (I - x x'/|x|^2) dx / (2 |x|^2) up to third order."""
  rng = np.random.default_rng(0)
  x, dx = rng.standard_normal((2, 9))
  project = np.eye(9) - np.outer(x, x) / (x @ x)
  misses = []
  with jax.enable_x64(True):
    for size in (1e-2, 1e-3, 1e-4):
      form = size**2 * dx @ project @ dx / (2 * x @ x)
      exact = compare(x, x + size * dx).one_minus_cos
      misses.append(abs(float(exact) / form - 1))
  assert 8 < misses[0] / misses[1] < 12 and 8 < misses[1] / misses[2] < 12


def test_tiny_angle_is_not_rounded_away():
  got = compare(jnp.array([1.0, 0.0]), jnp.array([1.0, 1e-12]))
  np.testing.assert_allclose(got.angle, 1e-12, rtol=1e-6)
  np.testing.assert_allclose(got.one_minus_cos, 5e-25, rtol=1e-6)
  assert got.cos == 1


def test_angle_near_pi():
  got = compare(jnp.array([1.0, 0.0]), jnp.array([-1.0, 1e-3]))
  np.testing.assert_allclose(math.pi - got.angle, 1e-3, rtol=1e-3)
  np.testing.assert_allclose(got.cos, -1 + 5e-7, rtol=1e-7)


def test_short_pruned_vector_keeps_its_direction():
  """1 + alpha is a difference of equal numbers when little is left of x."""
  rng = np.random.default_rng(1)
  x = rng.standard_normal(64).astype(np.float32)
  y = (1e-5 * (x + rng.standard_normal(64))).astype(np.float32)
  cos = (
    x.astype(float)
    @ y
    / (np.linalg.norm(x.astype(float)) * np.linalg.norm(y.astype(float)))
  )
  got = compare(x, y)
  np.testing.assert_allclose(got.cos, cos, rtol=1e-6)


@pytest.mark.parametrize("how", ["eager", "jit", "vmap"])
def test_identical_is_exact(how):
  x_BD = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
  if how == "vmap":
    got = jax.jit(jax.vmap(probes.compare_vectors))(x_BD, x_BD)
  else:
    function = compare if how == "jit" else probes.compare_vectors
    got = function(x_BD[0], x_BD[0])
  assert np.all(got.cos == 1)
  for zero in (got.one_minus_cos, got.angle, got.alpha, got.rho):
    assert np.all(zero == 0)


def test_power_of_two_changes_nothing():
  rng = np.random.default_rng(2)
  x, y = rng.standard_normal((2, 20)).astype(np.float32)
  for power in (-100, 60):
    scaled = compare(np.ldexp(x, power), np.ldexp(y, power))
    plain = dataclasses.astuple(compare(x, y))
    assert dataclasses.astuple(scaled) == plain


@pytest.mark.slow
def test_eager_is_jit_is_vmap():
  rng = np.random.default_rng(3)
  h_BD, hq_BD = rng.standard_normal((2, 3, 10)).astype(np.float32)
  z_BV, zq_BV = rng.standard_normal((2, 3, 30)).astype(np.float32)
  one = h_BD[1], hq_BD[1], z_BV[1], zq_BV[1], 0.7
  eager = probes.compare_position(*one)
  over_batch = jax.jit(
    jax.vmap(
      chex.assert_max_traces(probes.compare_position, n=1), (0, 0, 0, 0, None)
    )
  )
  batch = over_batch(h_BD, hq_BD, z_BV, zq_BV, 0.7)
  over_batch(hq_BD, h_BD, zq_BV, z_BV, 1.0)  # the same program
  chex.assert_tree_shape_prefix(batch, (3,))
  chex.assert_tree_all_finite(batch)
  for other in (record(*one), jax.tree.map(lambda leaf: leaf[1], batch)):
    for field in dataclasses.fields(eager):
      expected = getattr(eager, field.name)
      got = getattr(other, field.name)
      assert got.shape == () and got.dtype == expected.dtype
      np.testing.assert_allclose(got, expected, rtol=3e-6, atol=3e-7)


def test_centred_ignores_constants():
  rng = np.random.default_rng(4)
  z = rng.integers(-64, 64, 50).astype(np.float32) / 8
  zq = z + rng.integers(-16, 16, 50).astype(np.float32) / 8
  plain, centred = compare_logits(z, zq)
  moved_plain, moved_centred = compare_logits(z + 32, zq - 16)
  np.testing.assert_allclose(moved_centred.cos, centred.cos, rtol=1e-6)
  np.testing.assert_allclose(moved_centred.rho, centred.rho, rtol=1e-5)
  assert abs(moved_plain.cos - plain.cos) > 0.1
  z64, zq64 = z.astype(float) - z.mean(), zq.astype(float) - zq.mean()
  cos = z64 @ zq64 / np.linalg.norm(z64) / np.linalg.norm(zq64)
  np.testing.assert_allclose(centred.cos, cos, rtol=1e-6)
  # A constant change is none, and constant logits have no direction left.
  _, centred = compare_logits(z, z + 3)
  assert centred.one_minus_cos < 1e-12 and centred.rho < 1e-6
  _, centred = compare_logits(np.full(50, 0.1), np.full(50, 0.3))
  assert centred.cos == 1


def test_masked_tokens_are_not_there():
  rng = np.random.default_rng(5)
  z, zq = rng.standard_normal((2, 12)).astype(np.float32)
  keep = np.arange(12) != 4
  masked, masked_q = np.where(keep, z, -np.inf), np.where(keep, zq, -np.inf)
  expected = compare_logits(z[keep], zq[keep])
  # On both sides, and on one side only: the common tokens are compared.
  for pair in ((masked, masked_q), (masked, zq), (z, masked_q)):
    got = compare_logits(*pair)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected
    )


def test_nan_is_not_hidden():
  x = np.array([1.0, np.nan, 2.0], np.float32)
  for bad in (x, np.nan_to_num(x, nan=np.inf)):
    got = compare(np.ones(3, np.float32), bad)
    assert np.isnan(got.cos) and np.isnan(got.rho)
  _, centred = compare_logits(np.ones(3, np.float32), x)
  assert np.isnan(centred.cos)


def test_compute_type():
  def out(x, y):
    return jax.eval_shape(probes.compare_vectors, x, y).cos.dtype

  narrow = jnp.ones(4, jnp.bfloat16)
  assert out(narrow, narrow) == "float32"
  assert out(jnp.arange(4), jnp.ones(4)) == "float32"
  with jax.enable_x64(True):
    x = np.ones(4, np.float32)
    assert out(x, x) == "float32"
    assert out(x, x.astype(float)) == "float64"


@pytest.mark.parametrize(
  "x, y", [((3,), (4,)), ((2, 3), (2, 3)), ((), ()), ((0,), (0,))]
)
def test_wrong_shapes(x, y):
  with pytest.raises(ValueError, match="vmap over the other axes"):
    probes.compare_vectors(np.zeros(x), np.zeros(y))


RECORD = (
  "cos_h cos_z cos_z_centred cos_p one_minus_cos_h one_minus_cos_z"
  " one_minus_cos_z_centred one_minus_cos_p alpha_h rho_h alpha_z rho_z"
  " kl kl_reverse js tv kl_estimate one_minus_cos_p_estimate"
  " one_minus_cos_h_estimate one_minus_cos_z_estimate var_p var_r"
  " var_uniform entropy entropy_pruned margin max_abs_dz rms_dz flip"
  " token_dense token_pruned"
).split()


def test_record_fields():
  names = [field.name for field in dataclasses.fields(probes.Position)]
  assert names == RECORD


def test_a_tiny_angle_survives_the_records(tmp_path):
  """1 - cos far below the resolution of a float32 cosine near 1."""
  rng = np.random.default_rng(7)
  h, dh = rng.standard_normal((2, 64)).astype("f")
  z, dz = rng.standard_normal((2, 200)).astype("f")
  size = np.float32(2**-16)
  pairs = ((h, h + size * dh), (z, z + size * dz))
  got = record(*pairs[0], *pairs[1], 1.0)
  with report.RunFolder(tmp_path / "out", {"made_by": "jaxprune"}) as run:
    run.write(
      {
        name: value
        for name, value in position.fields_of(got).items()
        if name.startswith(("cos", "one_minus_cos"))
      }
    )
  (row,) = report.read_records(tmp_path / "out")
  p, q = (np.exp(x.astype(float)) for x in pairs[1])
  for space, (x, y) in {
    "h": pairs[0],
    "z": pairs[1],
    "z_centred": [x.astype(float) - x.mean(dtype=float) for x in pairs[1]],
    "p": (p / p.sum(), q / q.sum()),
  }.items():
    expected = oracle(x, y)[2]
    assert 0 < expected < 1e-9 and row[f"cos_{space}"] == 1
    np.testing.assert_allclose(
      row[f"one_minus_cos_{space}"], expected, rtol=1e-3, err_msg=space
    )
  # Both are positive, so that the point of the scatter plot is drawn.
  assert row["one_minus_cos_p"] > 0 and row["one_minus_cos_p_estimate"] > 0


@DTYPES
def test_record_against_equations(dtype):
  rng = np.random.default_rng(6)
  h, hq = rng.standard_normal((2, 10)).astype(dtype)
  z = (2 * rng.standard_normal(30)).astype(dtype)
  zq = (z + 0.4 * rng.standard_normal(30)).astype(dtype)
  zq[7] = zq.max() + 1
  with jax.enable_x64(dtype == "float64"):
    got = record(h, hq, z, zq, 0.7)
  h, hq, z, zq = (array.astype(np.float64) for array in (h, hq, z, zq))
  cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
  p, q = np.exp(z / 0.7), np.exp(zq / 0.7)
  p, q = p / p.sum(), q / q.sum()
  r = p**2 / (p**2).sum()
  m, dz = (p + q) / 2, zq - z
  var = lambda w: w @ dz**2 - (w @ dz) ** 2  # noqa: E731
  _, rho_h, _, _ = oracle(h, hq)
  alpha_z, rho_z, _, _ = oracle(z, zq)
  ordered = np.sort(z)
  expected = dict(
    cos_h=cos(h, hq),
    cos_z=cos(z, zq),
    cos_z_centred=cos(z - z.mean(), zq - zq.mean()),
    cos_p=cos(p, q),
    one_minus_cos_h=1 - cos(h, hq),
    one_minus_cos_z=1 - cos(z, zq),
    one_minus_cos_z_centred=1 - cos(z - z.mean(), zq - zq.mean()),
    one_minus_cos_p=1 - cos(p, q),
    alpha_h=h @ (hq - h) / (h @ h),
    rho_h=rho_h,
    alpha_z=alpha_z,
    rho_z=rho_z,
    kl=p @ np.log(p / q),
    kl_reverse=q @ np.log(q / p),
    js=p @ np.log(p / m) / 2 + q @ np.log(q / m) / 2,
    tv=abs(p - q).sum() / 2,
    kl_estimate=var(p) / (2 * 0.7**2),
    one_minus_cos_p_estimate=var(r) / (2 * 0.7**2),
    one_minus_cos_h_estimate=rho_h**2 / 2,
    one_minus_cos_z_estimate=rho_z**2 / 2,
    var_p=var(p),
    var_r=var(r),
    var_uniform=dz.var(),
    entropy=-p @ np.log(p),
    entropy_pruned=-q @ np.log(q),
    margin=ordered[-1] - ordered[-2],
    max_abs_dz=abs(dz).max(),
    rms_dz=math.sqrt((dz**2).mean()),
    flip=True,
    token_dense=z.argmax(),
    token_pruned=7,
  )
  for name in RECORD:
    np.testing.assert_allclose(
      getattr(got, name), expected[name], rtol=RTOL[dtype], err_msg=name
    )


def test_record_of_no_change():
  h = np.random.default_rng(7).standard_normal(10).astype(np.float32)
  z = 5 * np.random.default_rng(8).standard_normal(30).astype(np.float32)
  got = record(h, h, z, z, 0.7)
  for name in RECORD:
    value = getattr(got, name)
    if name.startswith("cos"):
      assert value == 1, name
    elif name not in (
      "entropy",
      "entropy_pruned",
      "margin",
      "token_dense",
      "token_pruned",
    ):
      assert value == 0, name
  assert got.entropy == got.entropy_pruned > 0 and got.margin > 0


@pytest.mark.parametrize(
  "values",
  [
    [1.0, 3, 3, 2],
    [-np.inf, -np.inf],
    [0.0, -0.0],
    [1.0, np.nan, 5, np.nan],
    [-np.inf, 2, np.inf, np.inf],
    [7.0],
  ],
)
def test_top_token_is_argmax(values):
  z_V = np.array(values, np.float32)
  assert jax.jit(spaces.top_token)(z_V) == jnp.argmax(z_V)
