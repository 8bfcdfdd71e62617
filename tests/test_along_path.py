"""The decoder along the path, and pairs of its sublayers, against float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.probes import logit_moments, propagation
from jaxprune.probes.decoder.propagation import (
  along_path,
  interactions,
  read_outs,
)
from jaxprune.probes.decoder.propagation import path as decoder_path
from tests.test_propagation import (  # noqa: F401  (fixtures)
  ALIVE,
  CONFIG,
  LENGTH,
  log_prob,
  models,
  oracle,
  path,
)

LINES = propagation.sublayer_directions(2, LENGTH)
EVERYWHERE = np.ones((2, 2, LENGTH))


@pytest.fixture(scope="module")
def top(models):  # noqa: F811
  return oracle(*models, 0 * EVERYWHERE).argmax(-1)


def test_predictions_are_as_good_as_their_order(path):  # noqa: F811
  """Halving t leaves a quarter of the first error, an eighth of the second."""
  grid = jnp.array([0.04, 0.08, 1.0])
  scan = along_path.scan_path(CONFIG, path, grid)
  chex.assert_shape(
    jax.tree.leaves((scan.truth, scan.error)), (3, *ALIVE.shape)
  )
  chex.assert_tree_all_finite(scan)
  alive = np.asarray(ALIVE)
  for order, error in enumerate(scan.error, 1):
    ratio = np.sum(error[1]) / np.sum(error[0])
    np.testing.assert_allclose(ratio, 2.0 ** (order + 1), rtol=0.2)
    assert not np.asarray(error)[:, ~alive].any()
  np.testing.assert_allclose(np.asarray(scan.truth["dz"])[2], ALIVE, atol=1e-5)
  # First-order logits are linear in t.
  dz_nBR = np.asarray(scan.predicted[0]["dz"])
  np.testing.assert_allclose(dz_nBR[0] * 25, dz_nBR[2], rtol=1e-3, atol=1e-5)


def test_rates_are_those_of_the_true_logits(models, path):  # noqa: F811
  t, step = 0.4, 1e-5
  found = along_path.rates(CONFIG, path, jnp.array([t, 0.9]))
  chex.assert_shape(list(found.values()), (2, *ALIVE.shape))
  chex.assert_tree_all_finite(found)
  z, up, down = (
    oracle(*models, (t + s) * EVERYWHERE) for s in (0, step, -step)
  )
  dz = (up - down) / (2 * step)
  p = np.exp(z - z.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = p * (dz - (p * dz).sum(-1, keepdims=True))
  norm = lambda x: np.linalg.norm(x, axis=-1)
  for name, truth in (("p", norm(dp) / norm(p)), ("z", norm(dz) / norm(z))):
    np.testing.assert_allclose(
      found[name][0], np.where(ALIVE, truth, 0), rtol=2e-3, atol=1e-5
    )
  np.testing.assert_allclose(
    np.square(found["p"]),
    np.square(found["turn"]) + np.square(found["stretch"]),
    rtol=1e-4,
  )


def test_curvature_of_kl_is_symmetric_and_adds_up(path):  # noqa: F811
  """Its sum is Var_p of the first-order change of the logits."""
  found = np.asarray(
    interactions.curvature_of_kl(CONFIG, path, LINES, batch_size=4)
  )
  np.testing.assert_allclose(found, found.swapaxes(0, 1), rtol=1e-4, atol=1e-6)
  assert not found[1].any()  # The MLP of layer 0 is unchanged.
  assert not found[..., 1, 3].any()  # An output that does not count.
  _, dh_BRD = decoder_path.move_at(CONFIG, path, jnp.float32(0))
  table_DV = path.params["embed"]["table"].T
  z_V, dz_V = (each_BRD[0, 2] @ table_DV for each_BRD in (path.start, dh_BRD))
  variance = jax.jit(logit_moments.compare_moments)(z_V, z_V + dz_V).var_p
  np.testing.assert_allclose(found[..., 0, 2].sum(), variance, rtol=1e-3)


def test_second_order_of_pairs(models, path, top):  # noqa: F811
  """Against finite differences in float64, both ways round, and the KL's."""
  pairs = np.array([(0, 2), (2, 0), (3, 3)])
  found = interactions.second_order(
    CONFIG, path, LINES[pairs[:, 0]], LINES[pairs[:, 1]]
  )
  for name in read_outs.METRICS:
    np.testing.assert_allclose(
      found[name][0], found[name][1], rtol=1e-3, atol=1e-4, err_msg=name
    )
  step = 1e-3
  for number, (i, j) in enumerate(pairs):
    corners = [
      a
      * b
      * log_prob(
        oracle(
          *models, step * (a * np.asarray(LINES[i]) + b * np.asarray(LINES[j]))
        ),
        top,
      )
      for a in (1, -1)
      for b in (1, -1)
    ]
    np.testing.assert_allclose(
      found["log_prob"][number],
      np.where(ALIVE, sum(corners) / (4 * step**2), 0),
      rtol=5e-3,
      atol=2e-3,
    )
  curvature = np.asarray(
    interactions.curvature_of_kl(CONFIG, path, LINES, batch_size=4)
  )
  np.testing.assert_allclose(
    found["kl"], curvature[pairs[:, 0], pairs[:, 1]], rtol=2e-3, atol=1e-4
  )


def test_alone_is_the_model_with_one_change(models, path, top):  # noqa: F811
  found = interactions.alone(CONFIG, path, LINES)
  dense = log_prob(oracle(*models, 0 * EVERYWHERE), top)
  for index, line in enumerate(np.asarray(LINES)):
    np.testing.assert_allclose(
      found["log_prob"][index],
      np.where(ALIVE, log_prob(oracle(*models, line), top) - dense, 0),
      rtol=2e-3,
      atol=1e-4,
    )


def test_option_margin(models):  # noqa: F811
  """Best dense option over the second, of three; refused for one."""
  dense, pruned = models
  params = decoder_path.add_delta(CONFIG, dense, CONFIG, pruned)
  make = lambda options: decoder_path.make_path(
    CONFIG,
    params,
    jnp.ones((1, 3), int),
    jnp.ones((1, 3), bool),
    jnp.ones((1, 1), bool),
    options=options,
  )
  found = make((4, 9, 17))
  z, y = (
    np.asarray(each)[0, 0] @ dense["embed"]["table"].T
    for each in (found.start, found.end)
  )
  first, second = np.array([4, 9, 17])[np.argsort(-z[np.array([4, 9, 17])])][:2]
  read = read_outs.read_out(CONFIG, found, found.end)
  np.testing.assert_allclose(
    read["option_margin"][0, 0], y[first] - y[second], rtol=1e-4
  )
  for wrong in ((3,), (3, 20)):
    with pytest.raises(ValueError, match="two token ids or more"):
      make(wrong)
