"""A mixture of experts, pruned expert by expert, against stock Qwen3-MoE.

Logits, texts and folders are checked in test_families, with all families.
"""

import functools

import chex
import hf_models
import jax
import numpy as np
import pytest
import safetensors.torch
import transformers

from jaxprune import checkpoints, models
from jaxprune.calibration.statistics import observe_gram
from jaxprune.models import decoder, experts, generation
from jaxprune.probes.decoder.propagation import path
from jaxprune.pruning import registry
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint import (
  allocation,
  memory,
  sublayers,
  verify,
  weights,
)
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.report import fields
from jaxprune.studies import prune

TOKENS = np.random.default_rng(1).integers(1, 61, (6, 16)).astype(np.int32)
ONE_OF_FOUR = NofM(keep=1, of=4)


@pytest.fixture(scope="module")
def built():
  return hf_models.build("qwen3_moe")


@pytest.fixture(scope="module")
def source(built, tmp_path_factory):
  folder = tmp_path_factory.mktemp("moe")
  built[0].save_pretrained(folder)
  return checkpoints.open_checkpoint(folder)


def stock_of(folder):
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(info.values()), info
  return model.eval()


def kernels_in(folder):
  _, params = checkpoints.load_params(folder)
  return {
    name: np.asarray(params["layers"]["mlp"][name]["kernel"])
    for name in ("gate", "up", "down")
  }


def inputs_of(model, index, tokens):
  """What each expert of a layer reads, from a hook on the stock module.

  Returns:
    {expert: (rows that gate and up read, rows that down reads)}.
  """
  seen = {}

  def hook(module, inputs):
    x_RD, routes_RC, _ = inputs
    for expert in range(module.num_experts):
      own = x_RD[(routes_RC == expert).any(-1)]
      gate, up = (own @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
      seen[expert] = own.numpy(), (module.act_fn(gate) * up).detach().numpy()

  module = model.model.layers[index].mlp.experts
  handle = module.register_forward_pre_hook(hook)
  hf_models.logits(model, tokens)
  handle.remove()
  return seen


def wanda_keep(w_IO, x_RI):
  """The one of four inputs with the largest score."""
  score_IO = (
    np.abs(w_IO.astype(np.float64))
    * np.sqrt((x_RI.astype(np.float64) ** 2).mean(0))[:, None]
  )
  groups = score_IO.reshape(-1, 4, w_IO.shape[1])
  return (groups == groups.max(axis=1, keepdims=True)).reshape(w_IO.shape)


_gram = jax.jit(observe_gram)
_sparsegpt = jax.jit(registry.METHODS["sparsegpt"].apply, static_argnums=2)


def sparsegpt(w_IO, x_RI):
  """SparseGPT on the Gram matrix of the rows x.

  Of as many rows for every expert, or each would be a program of its own.
  """
  valid_R = np.arange(TOKENS.size) < len(x_RI)
  x_RI = np.pad(x_RI, ((0, TOKENS.size - len(x_RI)), (0, 0)))
  gram = _gram(x_RI[None], valid_R[None])
  prepared, _ = registry.METHODS["sparsegpt"].prepare(gram)
  return np.asarray(_sparsegpt(w_IO, prepared, ONE_OF_FOUR)[0])


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params):
  x_BTD, _ = models.forward(config, params, TOKENS)
  return models.unembed(config, params, x_BTD)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_masks_are_those_of_a_walk_over_stock(source, tmp_path, method):
  log = weights.prune_weights(
    source, tmp_path / "out", method=method, pattern=ONE_OF_FOUR, tokens=TOKENS
  )
  assert all(row["experts_without_tokens"] == 0 for row in log)
  assert all(0 < row["layer_error"] < 1 for row in log)
  dense, pruned = kernels_in(source), kernels_in(tmp_path / "out")
  stock, model = stock_of(source.folder), stock_of(tmp_path / "out")
  for index in range(2):
    for expert, (x_RD, x_RF) in inputs_of(stock, index, TOKENS).items():
      for name, w_LEIO in dense.items():
        w_IO = w_LEIO[index, expert]
        x_RI = x_RF if name == "down" else x_RD
        found = pruned[name][index, expert]
        if method == "wanda":
          expected = np.where(wanda_keep(w_IO, x_RI), w_IO, 0)
          np.testing.assert_array_equal(found, expected)
          continue
        expected = sparsegpt(w_IO, x_RI)
        np.testing.assert_array_equal(found != 0, expected != 0)
    stock.model.layers[index].load_state_dict(
      model.model.layers[index].state_dict()
    )
  found = verify.verify(checkpoints.open_checkpoint(tmp_path / "out"))
  assert found.checks["masks"] and found.checks["pattern"]
  assert "mlp/gate/4" in {row["kernel"] for row in found.rows}
  config, params = checkpoints.load_params(tmp_path / "out")
  np.testing.assert_allclose(
    logits(config, params), hf_models.logits(model, TOKENS), atol=1e-5
  )


def test_an_expert_without_tokens_is_pruned_by_magnitude(source, tmp_path):
  """One token reaches two of the five experts of a layer."""
  one = TOKENS[:1, :1]
  log = weights.prune_weights(
    source, tmp_path / "out", method="wanda", pattern=ONE_OF_FOUR, tokens=one
  )
  assert [row["experts_without_tokens"] for row in log] == [3, 3]
  assert set(log[0]) <= {*fields.FIELDS, *prune.FIELDS}  # the script writes it
  dense, pruned = kernels_in(source), kernels_in(tmp_path / "out")
  reached = 0
  for expert, (x_RD, x_RF) in inputs_of(
    stock_of(source.folder), 0, one
  ).items():
    for name, w_LEIO in dense.items():
      w_IO = w_LEIO[0, expert]
      x_RI = x_RF if name == "down" else x_RD
      if not len(x_RI):
        x_RI = np.ones((1, len(w_IO)))
      np.testing.assert_array_equal(
        pruned[name][0, expert] != 0, wanda_keep(w_IO, x_RI)
      )
    reached += bool(len(x_RD))
  assert reached == 2


@pytest.mark.parametrize("method", ["neuron", "flap", "awq"])
def test_other_methods_write_what_stock_runs(source, tmp_path, method):
  from jaxprune.pruning.methods.quantize import Levels

  rounds = registry.METHODS[method].rounds
  weights.prune_weights(
    source,
    tmp_path / "out",
    method=method,
    pattern=Levels(bits=3, group_size=8)
    if rounds
    else Unstructured(sparsity=0.5),
    tokens=TOKENS,
    output=weights.Output(slim=method == "neuron"),
  )
  config, params = checkpoints.load_params(tmp_path / "out")
  assert config.mlp_dim == (12 if method == "neuron" else 24)
  np.testing.assert_allclose(
    logits(config, params),
    hf_models.logits(stock_of(tmp_path / "out"), TOKENS),
    atol=1e-5,
  )


def test_a_dropped_mixture_adds_nothing(built, source, tmp_path):
  chosen = drops.Drops(order=(("mlp", 1),), num_layers=2)
  sublayers.prune_drops(source, tmp_path / "out", chosen, {})
  handle = (
    built[0]
    .model.layers[1]
    .mlp.register_forward_hook(lambda module, inputs, output: output * 0)
  )
  expected = hf_models.logits(built[0], TOKENS)
  handle.remove()
  found = hf_models.logits(stock_of(tmp_path / "out"), TOKENS)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_both_forms_are_one_function(built):
  """Few rows pick kernels, many rows meet every expert."""
  _, config, params = built
  apply = jax.jit(experts.Experts(config).apply)
  mlp = jax.tree.map(lambda leaf: leaf[0], params["layers"]["mlp"])
  y_BTD = jax.random.normal(jax.random.key(0), (1, 6, 32))
  many, out = apply({"params": mlp}, y_BTD)
  assert out["down_in"].shape == (1, 6, 2, 24)
  for index in range(6):
    one, own = apply({"params": mlp}, y_BTD[:, index : index + 1])
    np.testing.assert_allclose(one[:, 0], many[:, index], atol=1e-5)
    np.testing.assert_array_equal(own["routes"][:, 0], out["routes"][:, index])
    np.testing.assert_allclose(
      own["down_in"][:, 0], out["down_in"][:, index], atol=1e-5
    )


def test_a_single_text_is_that_of_stock(built):
  stock, config, params = built
  ours = generation.generate(
    config,
    params,
    TOKENS[:1],
    max_new_tokens=6,
    sampling=generation.Sampling(eos_ids=()),
  )
  np.testing.assert_array_equal(
    ours.tokens, hf_models.greedy(stock, TOKENS[:1], 6)
  )


def test_the_fused_layout_is_read_and_the_published_one_written(
  built, source, tmp_path
):
  """Both are read by stock; a file of either has the same tensors inside."""
  stock, _, params = built
  fused = tmp_path / "fused"
  fused.mkdir()
  (fused / "config.json").write_bytes(
    (source.folder / "config.json").read_bytes()
  )
  tensors = {k: v.contiguous() for k, v in stock.state_dict().items()}
  assert "model.layers.0.mlp.experts.gate_up_proj" in tensors
  safetensors.torch.save_file(
    tensors, fused / "model.safetensors", {"format": "pt"}
  )
  np.testing.assert_array_equal(
    hf_models.logits(stock_of(fused), TOKENS), hf_models.logits(stock, TOKENS)
  )
  opened = checkpoints.open_checkpoint(fused)
  _, read = checkpoints.load_params(opened)
  chex.assert_trees_all_equal(read, params)
  assert checkpoints.checkpoint_hash(opened) == checkpoints.checkpoint_hash(
    source
  )
  checkpoints.save_params(tmp_path / "out", read, opened)
  out = checkpoints.open_checkpoint(tmp_path / "out")
  assert out.tensors.keys() == source.tensors.keys()
  assert "model.layers.1.mlp.experts.4.up_proj.weight" in out.tensors


def test_what_does_not_fit_is_refused(built):
  stock, config, params = built
  fields = stock.config.to_dict() | {"dtype": "float32"}
  for changes, word in (
    (dict(mlp_only_layers=[0]), "mlp_only_layers"),
    (dict(decoder_sparse_step=2), "decoder_sparse_step"),
    (dict(num_experts_per_tok=6), "num_experts_per_tok"),
  ):
    with pytest.raises(ValueError, match=word) as caught:
      models.ModelConfig.from_hf(fields | changes)
    assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match="experts"):
    path.add_delta(config, params, config, params)


def test_outliers_and_memory_count_every_expert(source):
  shares = allocation.allocate(source, "owl", 0.5, spread=0.1, tokens=TOKENS)
  assert len(shares) == 2 and abs(np.mean(shares) - 0.5) < 1e-3
  count = memory.estimate_bytes(
    source.config,
    Change(method="sparsegpt"),
    sequences=6,
    length=16,
    memory=memory.Memory(),
  )
  # Attention reads 32 and 4 heads of 8, the five experts 32 and 24.
  widths = [32, 32] + [32, 24] * 5
  squares = sum(width**2 for width in widths)
  assert count.statistics == 4 * (2 * squares + 2 * 32**2)


def test_weights_of_one_expert_reach_its_tokens_only(built):
  """A change of expert 0 leaves the tokens of the others as they are."""
  _, config, params = built
  forward = jax.jit(
    decoder.forward, static_argnums=0, static_argnames="observe"
  )
  routes = lambda out: out["routes"]
  x_BTD, out = forward(config, params, TOKENS[:1], observe=routes)
  layers = jax.tree.map(lambda leaf: leaf, params["layers"])
  down = layers["mlp"]["down"]["kernel"]
  double = np.ones_like(down)
  double[1, 0] = 2
  layers["mlp"]["down"] = {"kernel": np.asarray(down) * double}
  y_BTD, _ = forward(
    config, {**params, "layers": layers}, TOKENS[:1], observe=routes
  )
  moved_BT = np.abs(np.asarray(y_BTD) - np.asarray(x_BTD)).max(-1) > 1e-6
  np.testing.assert_array_equal(moved_BT, (out[1] == 0).any(-1))
