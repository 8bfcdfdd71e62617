"""Pruning of every family, beside a walk over the stock model."""

import hf_models
import numpy as np
import pytest

from jaxprune import checkpoints, models
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured
from tests.test_families import built, folders, logits, stock_of, texts

__all__ = ["folders"]  # A fixture, not a leftover import.
OLD, NEW = (
  ("gpt2", "gpt_neox", "opt"),
  ("gemma2", "gemma3_text", "olmo2", "phi3"),
)


TOKENS = np.random.default_rng(1).integers(1, 61, (6, 16)).astype(np.int32)


def kernels_in(folder):
  _, params = checkpoints.load_params(folder)
  return {
    (group, name): np.asarray(params["layers"][group][name]["kernel"])
    for group, name in models.kernels_of(params["layers"])
  }


def inputs_of(model, family, index):
  """What the kernels of a layer read of TOKENS, from hooks: [B * T, I]."""
  seen, hooks = {}, []
  for key, module in hf_models.modules(model, family, index).items():

    def keep(module, inputs, key=key):
      seen[key] = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()

    hooks.append(module.register_forward_pre_hook(keep))
  hf_models.logits(model, TOKENS)
  for hook in hooks:
    hook.remove()
  return seen


@pytest.mark.parametrize(
  "family",
  [
    # What enters the kernels is another in each; Wanda looks at it. Gemma 2
    # caps scores besides, which the tests of its logits see.
    family
    for family in OLD + NEW
    if family != "gemma2"
  ],
)
def test_masks_are_those_of_a_walk_over_stock(folders, tmp_path, family):
  """Layer by layer, on the inputs that stock modules see."""
  weights.prune_weights(
    checkpoints.open_checkpoint(folders(family)),
    tmp_path / "out",
    method="wanda",
    pattern=NofM(keep=1, of=4),
    tokens=TOKENS,
  )
  dense, pruned = kernels_in(folders(family)), kernels_in(tmp_path / "out")
  stock, model = stock_of(folders(family)), stock_of(tmp_path / "out")
  layers = hf_models.path_of_layers(family)
  for index in range(2):
    inputs = inputs_of(stock, family, index)
    for key, w_LIO in dense.items():
      w_IO, x_RI = w_LIO[index], inputs[key]
      score_IO = np.abs(w_IO.astype(np.float64))
      score_IO *= np.sqrt((x_RI.astype(np.float64) ** 2).mean(0))[:, None]
      groups = score_IO.reshape(-1, 4, w_IO.shape[1])
      keep = groups == groups.max(axis=1, keepdims=True)
      np.testing.assert_array_equal(
        pruned[key][index], np.where(keep.reshape(w_IO.shape), w_IO, 0)
      )
    # The next layer sees what this one is now.
    stock.get_submodule(layers)[index].load_state_dict(
      model.get_submodule(layers)[index].state_dict()
    )
  tokens, _ = texts()
  config, params = checkpoints.load_params(tmp_path / "out")
  np.testing.assert_allclose(
    logits(config, params, tokens), hf_models.logits(model, tokens), atol=1e-5
  )


@pytest.mark.parametrize(
  "family, method",
  [
    # Which weights a method removes, no family changes; how it corrects a
    # bias, moves a scale or names the hidden units, it does.
    # GPT-2's kernels lie the other way round, Phi-3's are parts of one; the
    # biases of GPT-NeoX and OPT are written as GPT-2's are.
    *(("gpt2", method) for method in ("neuron", "flap", "awq")),
    *(("phi3", "neuron"), ("phi3", "awq")),
    *(("gemma3_text", "rtn"), ("olmo2", "flap")),
  ],
)
def test_every_method_writes_what_stock_runs(folders, tmp_path, family, method):
  pattern = Unstructured(sparsity=0.5)
  if registry.METHODS[method].rounds:
    pattern = Levels(bits=3, group_size=16)
  weights.prune_weights(
    checkpoints.open_checkpoint(folders(family)),
    tmp_path / "out",
    method=method,
    pattern=pattern,
    tokens=TOKENS,
    output=weights.Output(slim=method == "neuron"),
  )
  tokens, _ = texts()
  config, params = checkpoints.load_params(tmp_path / "out")
  ours = logits(config, params, tokens)
  theirs = hf_models.logits(stock_of(tmp_path / "out"), tokens)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  assert config.mlp_dim == (24 if method == "neuron" else 48)


def outputs_of(stock, family, zero=()):
  """Logits of TOKENS, and what each sublayer of each layer adds.

  Args:
    stock: the model.
    family: its family.
    zero: pairs (sublayer, index) whose outputs are replaced by 0.
  """
  added, hooks = {}, []
  for index in range(2):
    found = hf_models.modules(stock, family, index)
    for sublayer, name in (("attention", "output"), ("mlp", "down")):

      def hook(module, inputs, output, key=(sublayer, index)):
        added[key] = output.reshape(*TOKENS.shape, -1).numpy()
        return output * 0 if key in zero else output

      hooks.append(found[sublayer, name].register_forward_hook(hook))
  z_BTV = hf_models.logits(stock, TOKENS)
  for hook in hooks:
    hook.remove()
  return z_BTV, added


@pytest.mark.parametrize(
  "name, sublayer",
  [
    *((name, "block") for name in OLD + NEW),
    # Its sublayers read the same.
    *(("gpt_neox", part) for part in ("attention", "mlp")),
  ],
)
def test_drops_are_stock_without_these_outputs(
  folders, tmp_path, name, sublayer
):
  parts = ("attention", "mlp") if sublayer == "block" else (sublayer,)
  source = checkpoints.open_checkpoint(folders(name))
  chosen = drops.Drops(order=tuple((part, 1) for part in parts), num_layers=2)
  sublayers.prune_drops(source, tmp_path / "out", chosen, {})
  expected, _ = outputs_of(built(name)[0], name, [(part, 1) for part in parts])
  _, config, params = built(name)
  gates = models.make_gates(config, **{part: [1] for part in parts})
  gated = logits(config, params, TOKENS, gates=gates)
  np.testing.assert_allclose(gated, expected, atol=1e-5)
  stock = stock_of(tmp_path / "out")
  np.testing.assert_allclose(
    hf_models.logits(stock, TOKENS), expected, atol=1e-5
  )


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_similarities_are_of_what_each_sublayer_reads(folders, name):
  """In a parallel layer the MLP reads, and adds to, the layer's input."""
  stock, config, params = built(name)
  _, added = outputs_of(stock, name)
  found = sublayers.score_sublayers(
    checkpoints.open_checkpoint(folders(name)), TOKENS
  )
  x = np.asarray(models.embed(config, params, TOKENS), np.float64)

  def cosine(x, y):
    return np.mean(
      (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    )

  for index in range(2):
    a, m = added["attention", index], added["mlp", index]
    read = x if config.parallel_residual else x + a
    for key, expected in (
      ("attention", cosine(x, x + a)),
      ("mlp", cosine(read, read + m)),
      ("block", cosine(x, x + a + m)),
    ):
      np.testing.assert_allclose(found[key][index], expected, atol=1e-5)
    x = x + a + m
