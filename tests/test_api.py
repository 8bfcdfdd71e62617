"""From Python: load, prune and compare, and the kernels of other models."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxprune
from jaxprune import checkpoints
from jaxprune.calibration.statistics import observe_squares
from jaxprune.pocket import shipped
from jaxprune.pruning import pytrees
from jaxprune.pruning.checkpoint import weights
from jaxprune.pruning.methods.wanda import wanda
from jaxprune.pruning.patterns import Levels, NofM, Unstructured, as_pattern

X_BTI = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def test_the_package_is_light_until_it_is_used():
  code = (
    "import sys, jaxprune; print({'jax', 'numpy', 'flax'} & {*sys.modules});"
    " print(jaxprune.load.__module__, 'prune' in dir(jaxprune))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.stdout == "set()\njaxprune.api True\n", done.stderr
  with pytest.raises(AttributeError, match="no attribute 'prun'"):
    _ = jaxprune.prun


@pytest.mark.parametrize(
  "written, method, pattern",
  [
    ("2:4", "wanda", NofM(keep=2, of=4)),
    (0.5, "wanda", Unstructured(sparsity=0.5)),
    ("0.25", "sparsegpt", Unstructured(sparsity=0.25, group="matrix")),
    (4, "rtn", Levels(bits=4)),
    (NofM(keep=1, of=4), "wanda", NofM(keep=1, of=4)),
  ],
)
def test_a_pattern_in_short(written, method, pattern):
  assert as_pattern(written, method) == pattern


@pytest.mark.parametrize("written", ["half", "4:2", "2:x", 1.5, -0.1, None])
def test_a_pattern_that_is_none(written):
  with pytest.raises(ValueError, match="pattern=.*use '2:4'"):
    as_pattern(written, "wanda")


@pytest.mark.slow
def test_a_model_in_memory_is_pruned_as_its_folder_is(two_layers, tmp_path):
  """By FLAP, which writes masks, kernels and a bias that was not there."""
  tokens = shipped.calibration_tokens(2, 16, 0).tokens
  dense = jaxprune.load(two_layers)
  pruned, masks = jaxprune.prune(dense, tokens, "flap", 0.5)
  weights.prune_weights(
    checkpoints.open_checkpoint(two_layers),
    tmp_path / "out",
    method="flap",
    pattern=Unstructured(sparsity=0.5),
    tokens=tokens,
  )
  config, params = checkpoints.load_params(tmp_path / "out", jnp.float32)
  assert pruned.config.mlp_bias == config.mlp_bias
  # The folder is bfloat16, so are its new biases.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6),
    pruned.params["layers"],
    params["layers"],
  )
  keep_LIO = masks["mlp"]["down"]
  assert keep_LIO.dtype == bool and keep_LIO.shape[0] == 2
  zero_LIO = pruned.params["layers"]["mlp"]["down"]["kernel"] == 0
  assert (zero_LIO == ~keep_LIO).all()


@pytest.mark.slow
def test_two_models_in_memory(two_layers):
  dense = jaxprune.load(two_layers)
  pruned, _ = jaxprune.prune(dense, None, "magnitude", "2:4")
  prompts = [[5, 6, 7], [8, 9]]
  said = jaxprune.compare(dense, pruned, prompts, max_new_tokens=3)
  assert said.summary["prompts"] == 2 and (said.output["kl"] > 0).all()
  assert set(said.layers["layer"]) == {0, 1} and len(said.alone["step"])
  assert str(said).startswith("next tokens changed")
  for wrong, message in (
    ("a text", "prompts: give a list"),
    ([], "prompts: give a list"),
    ([[5], [10**6]], r"prompts\[1\]: "),
    ([[5] * 600], r"prompts\[0\]: 600 tokens and max_new_tokens"),
  ):
    with pytest.raises(ValueError, match=message):
      jaxprune.compare(dense, pruned, wrong)
  with pytest.raises(ValueError, match="statistics: float"):
    jaxprune.prune(dense, np.ones((2, 3)), "wanda")
  with pytest.raises(ValueError, match="calibration tokens"):
    jaxprune.prune(dense, None, "wanda")


class Linen(linen.Module):
  @linen.compact
  def __call__(self, x):
    return linen.Dense(4, name="down")(
      linen.relu(linen.Dense(16, name="up")(x))
    )


class Nnx(nnx.Module):
  def __init__(self):
    self.up = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    self.down = nnx.Linear(16, 4, rngs=nnx.Rngs(1))


def of_linen():
  params = jax.jit(Linen().init)(jax.random.key(1), X_BTI)["params"]
  return params, params["up"]["kernel"], params["up"]["bias"]


def of_nnx():
  model = Nnx()
  return nnx.state(model), model.up.kernel[...], model.up.bias[...]


@pytest.mark.parametrize("make", [of_linen, of_nnx])
def test_kernels_of_another_flax_model(make):
  params, up_IO, bias_O = make()
  hidden_BTF = np.maximum(X_BTI @ np.asarray(up_IO), 0)

  def inputs():
    for row in range(2):
      yield {"up": X_BTI[row], "down/kernel": hidden_BTF[row : row + 1]}

  new, masks = jaxprune.prune(params, inputs, "wanda", "2:4")
  assert jax.tree.structure(new) == jax.tree.structure(params)
  assert set(masks) == {"up/kernel", "down/kernel"}
  wanted_IO, mask_IO = wanda(up_IO, observe_squares(X_BTI), NofM(keep=2, of=4))
  assert (masks["up/kernel"] == mask_IO).all() and not mask_IO.all()
  leaves = {
    pytrees.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(new)
  }
  np.testing.assert_array_equal(leaves["up/kernel"], wanted_IO)
  np.testing.assert_array_equal(leaves["up/bias"], bias_O)
  # Without data, every matrix that is called kernel.
  _, masks = jaxprune.prune(params, None, "magnitude", 0.5)
  assert {name: float(m.mean()) for name, m in masks.items()} == {
    "up/kernel": 0.5,
    "down/kernel": 0.5,
  }


def test_what_is_refused_names_the_argument():
  params, *_ = of_linen()
  for arguments, message in (
    ((None, "wanda", "2:4"), "statistics: method wanda looks at"),
    (([], "wanda", "2:4"), "inputs: gave no batch"),
    (([{"up": X_BTI}], "neuron", 0.5), "method='neuron': removes more"),
    (([{"up": X_BTI}], "wando", 0.5), "method 'wando': use one of"),
    (([{"out": X_BTI}], "wanda", "2:4"), r"statistics\['out'\]: params"),
    (([{"up": X_BTI[0, 0]}], "wanda", "2:4"), r"inputs\['up'\]: shape \[8\]"),
    (([{"up": X_BTI}], "wanda", "3:5"), "up/kernel: 3:5 needs a multiple of 5"),
    (([{"up": X_BTI}], "wanda", Levels(bits=4)), "pattern=Levels.*: wanda"),
    (([{"up/bias": X_BTI}], "wanda", 0.5), r"up/bias has shape \[16\]"),
  ):
    with pytest.raises(ValueError, match=message):
      jaxprune.prune(params, *arguments)
