"""Every number of the official generation log, from our conventions.

`compare_generation_metrics` writes a line per step. The table below says which
of our fields each of its fields is and what the official convention adds: a
factor, or the epsilon inside its logarithm. What has no such switch must agree
as it is. T is 1 in the logs.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.models.decoder import final_norm, forward, unembed
from jaxprune.probes.logit_moments import compare_moments
from jaxprune.probes.position import compare_position
from jaxprune.report import FIELDS

T = 1.0
HALF = 1 / (2 * T**2)
# Theirs: (ours, factor). Estimates are a variance over 2 T^2 on both sides.
LOG = {
  "emb_cos_sim_flat": ("cos_h", 1),
  "logits_cos_sim_flat": ("cos_z", 1),
  "prob_cos_sim_flat": ("cos_p", 1),
  "kl_estimates": ("kl_estimate", 1),
  "cos_estimates": ("one_minus_cos_p_estimate", 1),
  # These carry the 1 / (2 T^2) in their log and not in our records.
  "uniform_var": ("var_uniform", HALF),
  "top5_var": ("var_top5", HALF),
  "top10_var": ("var_top10", HALF),
  # Their L1 is a mean over the vocabulary and a sum over the top 5; their L2
  # is a root mean square in both.
  "global_l1": ("mean_abs_dz", 1),
  "global_l2": ("rms_dz", 1),
  "top5_l1": ("l1_top5", 1),
  "top5_l2": ("l2_top5", 5**-0.5),
}
SUMMARIES = {
  "summary_global_l1_mean": "global_l1",
  "summary_global_l2_mean": "global_l2",
  "summary_top5_l1_mean": "top5_l1",
  "summary_top5_l2_mean": "top5_l2",
}
ELSEWHERE = {
  "kl_divergence_flat",
  "analysis_temperature",
  "dense_tokens",
  "pruned_tokens",
  "pruned_folder",
  "temperature",
  "decoding",
}
EPSILON = 1e-12


@pytest.fixture(scope="module", params=["stories260K", "qwen2_random"])
def runs(request, shared):
  """Logs and, by protocol, our numbers and both logits [steps, V]."""
  golden = shared / "golden" / request.param
  index = json.loads((golden / "index.json").read_text())
  logs = json.loads((golden / "generation.json").read_text())
  config, dense = checkpoints.load_params(
    golden / "dense"
    if request.param == "qwen2_random"
    else (shared / "weights" / request.param)
  )
  _, pruned = checkpoints.load_params(golden / index["analysis_pruned_folder"])
  first = np.load(golden / "tokens.npz")["prompt"].shape[1] - 1

  @jax.jit
  def read(params, tokens):
    x_TD = forward(config, params, tokens[None, :-1])[0][0, first:]
    h_TD = final_norm(config, params, x_TD)
    return h_TD, unembed(config, params, h_TD, "raw")

  @jax.jit
  def measure(h, g, z, y):
    return jax.vmap(
      lambda *row: (
        compare_position(*row, T),
        compare_moments(row[2], row[3], T),
      )
    )(h, g, z, y)

  texts = [
    jnp.asarray(logs["free_running"][f"{name}_tokens"], jnp.int32)
    for name in ("dense", "pruned")
  ]
  h, z = read(dense, texts[0])
  found = {}
  for protocol, text in (
    ("free_running", texts[1]),
    ("teacher_forced", texts[0]),
  ):
    g, y = read(pruned, text)
    position, size = jax.device_get(measure(h, g, z, y))
    found[protocol] = (
      vars(size)
      | vars(position)
      | {"z": np.asarray(z, np.float64), "y": np.asarray(y, np.float64)}
    )
  return logs, found, first


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["free_running", "teacher_forced"])
def test_every_number_of_the_log(runs, protocol):
  logs, found, _ = runs
  theirs, ours = logs[protocol], found[protocol]
  # A field that is in the log and in no table would be forgotten.
  assert set(theirs) <= {*LOG, *SUMMARIES, *ELSEWHERE}
  for field, (name, factor) in LOG.items():
    np.testing.assert_allclose(
      ours[name] * factor,
      np.ravel(theirs[field]),
      rtol=1e-4,
      atol=1e-4,
      err_msg=field,
    )
    assert name in FIELDS
  for field, series in SUMMARIES.items():
    name, factor = LOG[series]
    np.testing.assert_allclose(
      ours[name].mean() * factor, theirs[field], rtol=1e-4, err_msg=field
    )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["free_running", "teacher_forced"])
def test_kl_with_and_without_their_epsilon(runs, protocol):
  """Ours is exact; with 1e-12 inside the logarithms it is theirs."""
  logs, found, _ = runs
  ours = found[protocol]
  log_p, log_q = log_softmax(ours["z"]), log_softmax(ours["y"])
  p, q = np.exp(log_p), np.exp(log_q)
  theirs = (p * (np.log(p + EPSILON) - np.log(q + EPSILON))).sum(-1)
  np.testing.assert_allclose(
    theirs, logs[protocol]["kl_divergence_flat"], rtol=1e-4, atol=1e-4
  )
  exact = (p * (log_p - log_q)).sum(-1)
  np.testing.assert_allclose(ours["kl"], exact, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["free_running", "teacher_forced"])
def test_our_convention_beside_theirs(runs, protocol):
  """Variances without 1 / (2 T^2), under p, r, uniform and top-k weights."""
  _, found, _ = runs
  ours = found[protocol]
  dz, p = ours["y"] - ours["z"], np.exp(log_softmax(ours["z"]))
  r = p**2 / (p**2).sum(-1, keepdims=True)

  def variance(weight):
    weight = weight / weight.sum(-1, keepdims=True)
    mean = (weight * dz).sum(-1, keepdims=True)
    return (weight * (dz - mean) ** 2).sum(-1)

  top = {k: np.where(p >= np.sort(p, -1)[:, -k:][:, :1], p, 0) for k in (5, 10)}
  for name, weight in {
    "var_p": p,
    "var_r": r,
    "var_uniform": np.ones_like(p),
    "var_top5": top[5],
    "var_top10": top[10],
  }.items():
    np.testing.assert_allclose(
      ours[name], variance(weight), rtol=2e-4, atol=1e-6, err_msg=name
    )
  np.testing.assert_allclose(ours["kl_estimate"], ours["var_p"] * HALF)
  np.testing.assert_allclose(
    ours["one_minus_cos_p_estimate"], ours["var_r"] * HALF
  )
  for k in (5, 10):
    largest = np.argsort(-p, axis=-1, kind="stable")[:, :k]
    change = np.take_along_axis(dz, largest, -1)
    np.testing.assert_allclose(
      ours[f"l1_top{k}"], np.abs(change).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(
      ours[f"l2_top{k}"], np.sqrt((change**2).sum(-1)), rtol=1e-4
    )


@pytest.mark.slow
def test_their_texts_are_the_greedy_ones(runs):
  logs, found, first = runs
  ours = found["free_running"]
  for name, logits in (("dense", ours["z"]), ("pruned", ours["y"])):
    text = logs["free_running"][f"{name}_tokens"]
    assert logits.argmax(-1).tolist() == text[first + 1 :]
