"""Methods that do more than zero single entries, through the driver."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.models import KERNELS
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint import allocation, layer, memory, weights
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured
from tests.test_prune_weights import TOKENS, logits, tiny, torch_logits

__all__ = ["tiny"]  # A fixture, not a leftover import.
SLIM = weights.Output(slim=True)


def mlp_of(folder):
  _, params = checkpoints.load_params(folder)
  return params["layers"]["mlp"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neuron", "flap"])
def test_slim_is_masked(tiny, tmp_path, method):
  """The slimmer model is the masked one, also to stock transformers."""
  options = dict(
    method=method, pattern=Unstructured(sparsity=0.3), tokens=TOKENS
  )
  weights.prune_weights(tiny, tmp_path / "masked", **options)
  weights.prune_weights(tiny, tmp_path / "slim", output=SLIM, **options)
  assert not (tmp_path / "slim" / "masks.safetensors").exists()
  config = json.loads((tmp_path / "slim" / "config.json").read_text())
  assert config["intermediate_size"] == 48 - 14  # floor(48 * 0.3) = 14
  assert mlp_of(tmp_path / "slim")["up"]["kernel"].shape == (3, 32, 34)
  masked = logits(tmp_path / "masked", TOKENS)
  for folder in ("masked", "slim"):
    np.testing.assert_allclose(
      torch_logits(tmp_path / folder, TOKENS), masked, rtol=1e-5, atol=1e-5
    )
  np.testing.assert_allclose(
    logits(tmp_path / "slim", TOKENS), masked, rtol=1e-5, atol=1e-5
  )


def test_flap_moves_the_means_into_a_bias(tiny, tmp_path):
  """The mean over tokens of what `down` adds in the first layer stays."""
  weights.prune_weights(
    tiny,
    tmp_path / "out",
    method="flap",
    pattern=Unstructured(sparsity=0.5),
    tokens=TOKENS,
  )
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["mlp_bias"] is True
  mlp = mlp_of(tmp_path / "out")
  assert np.abs(mlp["down"]["bias"]).max() > 0
  assert not np.any(mlp["up"]["bias"]) and not np.any(mlp["gate"]["bias"])

  from jaxprune.models import forward

  means = []
  for folder in (tiny.folder, tmp_path / "out"):
    config, params = checkpoints.load_params(folder)
    run = jax.jit(forward, static_argnums=0, static_argnames="observe")
    _, added = run(
      config,
      params,
      TOKENS,
      observe=lambda tape: (tape["residual_out"] - tape["residual_mid"]).mean(
        axis=(0, 1)
      ),
    )
    means.append(np.asarray(added)[0])
  np.testing.assert_allclose(*means, atol=1e-5)


@pytest.mark.slow
def test_official_neurons(shared, tmp_path):
  golden = shared / "golden" / "qwen2_random"
  weights.prune_weights(
    checkpoints.open_checkpoint(golden / "dense"),
    tmp_path / "out",
    method="neuron",
    pattern=Unstructured(sparsity=0.5),
    tokens=np.load(golden / "tokens.npz")["calibration"],
  )
  ours, theirs = mlp_of(tmp_path / "out"), mlp_of(golden / "neuron_50")
  for kernel in ("gate", "up", "down"):
    np.testing.assert_array_equal(
      ours[kernel]["kernel"], theirs[kernel]["kernel"]
    )


def test_sparsity_by_layer(tiny, tmp_path):
  shares = allocation.allocate(tiny, "linear", 0.5, spread=0.25)
  np.testing.assert_allclose(shares, (0.25, 0.5, 0.75))
  log = weights.prune_weights(
    tiny,
    tmp_path / "out",
    method="magnitude",
    pattern=[Unstructured(sparsity=share) for share in shares],
  )
  np.testing.assert_allclose([row["sparsity"] for row in log], shares)
  with pytest.raises(ValueError, match="2 patterns for 3 layers"):
    weights.prune_weights(
      tiny,
      tmp_path / "x",
      method="magnitude",
      pattern=[Unstructured(sparsity=0.5)] * 2,
    )


def test_owl_counts_outliers_of_the_dense_model(tiny):
  """Against scores of whole sequences, all layers at once."""
  from jaxprune.models import KERNEL_INPUTS, forward

  config, params = checkpoints.load_params(tiny)
  run = jax.jit(forward, static_argnums=0, static_argnames="observe")
  _, tape = run(
    config,
    params,
    TOKENS,
    observe=lambda tape: {
      key: tape[key] for key in set(KERNEL_INPUTS.values())
    },
  )
  expected = []
  for index in range(config.num_layers):
    scores = []
    for group, kernel in KERNELS:
      x_NI = np.asarray(tape[KERNEL_INPUTS[group, kernel]])[index]
      x_NI = x_NI.reshape(-1, x_NI.shape[-1])
      w_IO = np.asarray(params["layers"][group][kernel]["kernel"])[index]
      scores.append(
        np.abs(w_IO) * np.sqrt((x_NI**2).sum(axis=0) / len(TOKENS))[:, None]
      )
    flat = np.concatenate([s.ravel() for s in scores])
    expected.append((flat > 5 * flat.mean()).mean())
  found = allocation.outlier_fractions(
    tiny, TOKENS, memory=Memory(micro_batch=3)
  )
  assert max(expected) > 0
  np.testing.assert_allclose(found, expected, atol=2e-4)
  shares = allocation.allocate(tiny, "owl", 0.5, tokens=TOKENS)
  np.testing.assert_allclose(np.mean(shares), 0.5)
  np.testing.assert_allclose(np.ptp(shares), 0.16)


@pytest.mark.slow
def test_rounding(tiny, tmp_path):
  levels = Levels(bits=3, group_size=16)
  logs = {}
  for method in ("rtn", "awq"):
    logs[method] = weights.prune_weights(
      tiny, tmp_path / method, method=method, pattern=levels, tokens=TOKENS
    )
    assert not (tmp_path / method / "masks.safetensors").exists()
  w_IO = np.asarray(mlp_of(tmp_path / "rtn")["up"]["kernel"][0])
  values = {len(np.unique(w_IO[:16, output])) for output in range(48)}
  assert max(values) <= 8 and min(values) > 2
  # The grid of AWQ holds plain rounding, and measures on all these tokens.
  rtn, awq = (logs[m][0]["layer_error"] for m in ("rtn", "awq"))
  assert awq < rtn


@pytest.mark.parametrize(
  "change,words",
  [
    (dict(method="rtn"), "does not take Unstructured"),
    (dict(method="neuron", pattern=NofM(keep=2, of=4)), "does not take NofM"),
    (dict(method="awq", pattern=Levels(bits=4)), "group_size 128"),
    (dict(method="wanda", output=SLIM), "no MLP becomes slimmer"),
    (dict(method="flap", tokens=None), "looks at calibration"),
    (
      dict(
        method="neuron",
        output=SLIM,
        pattern=[Unstructured(sparsity=s) for s in (0.1, 0.2, 0.3)],
      ),
      "several widths",
    ),
  ],
)
def test_jobs_that_cannot_be_done(tiny, tmp_path, change, words):
  options = dict(pattern=Unstructured(sparsity=0.5), tokens=TOKENS) | change
  with pytest.raises(ValueError, match=words):
    weights.prune_weights(tiny, tmp_path / "out", **options)
  assert not list(tmp_path.iterdir())


def test_zeros_are_counted_beyond_int32():
  """2^32 zeros, which XLA counts without holding them."""

  @jax.jit
  def count():
    return layer.count_zeros([jnp.zeros((1 << 17, 1 << 15), jnp.int8)])

  [(high, low)] = count()
  assert (int(high), int(low)) == (1 << 20, 0)
  w_LIO = np.random.default_rng(0).integers(0, 3, (5, 70, 90))
  [(high, low)] = layer.count_zeros([jnp.asarray(w_LIO)])
  assert 4096 * int(high) + int(low) == (w_LIO == 0).sum() > 4096


def test_estimate_by_hand(tiny):
  """32 wide, 48 hidden, 2 of 4 key heads: a layer has 7680 weights."""
  found = memory.estimate_bytes(
    tiny.config,
    Change(method="wanda"),
    sequences=6,
    length=24,
    memory=Memory(micro_batch=3),
  )
  size = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
  assert found.layer == 4 * (2 * size + 4 * 32 * 48)
  assert found.activations == 4 * 6 * 24 * 32
  # Inputs of attention, its output, MLP, down.
  assert found.statistics == 4 * 4 * (32 + 32 + 32 + 48)
  assert found.device == (
    found.layer + found.statistics + found.activations + found.working
  )
  on_host = memory.estimate_bytes(
    tiny.config,
    Change(method="wanda"),
    sequences=6,
    length=24,
    memory=Memory(micro_batch=3, offload=True),
  )
  assert found.device - on_host.device == found.activations
  assert on_host.host - found.host == found.activations


def test_what_cannot_fit_is_refused(tiny, monkeypatch):
  found = memory.estimate_bytes(
    tiny.config,
    Change(method="sparsegpt"),
    sequences=6,
    length=24,
    memory=Memory(),
  )
  memory.check_fits(found)
  monkeypatch.setattr(memory.devices, "available_bytes", lambda: (1000, 1000))
  with pytest.raises(ValueError, match="fewer or shorter calibration"):
    memory.check_fits(found)
