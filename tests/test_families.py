"""Every family against stock transformers: one set of checks, one row each.

What a family needs beyond that is in `hf_models`; the four like Llama have
their own checks in test_decoder and its neighbours.
"""

import dataclasses
import functools
import pathlib

import chex
import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import transformers

from jaxprune import checkpoints, models
from jaxprune.calibration.statistics import observe_gram
from jaxprune.checkpoints import tables
from jaxprune.models import decoder, decoder_layer, generation
from jaxprune.probes.decoder import interventions, transitions
from jaxprune.probes.decoder.propagation import path
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import sublayers, weights
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured

# Each family, and each way in which one differs from itself.
MODELS = {
  # Small bounds, so that a forgotten cap shows; windows shorter than a text.
  "gemma2": (
    "gemma2",
    dict(
      sliding_window=5,
      query_pre_attn_scalar=24,
      attn_logit_softcapping=1.5,
      final_logit_softcapping=2.0,
    ),
  ),
  "gemma3_text": (
    "gemma3_text",
    dict(
      head_dim=16,
      sliding_window=5,
      layer_types=["sliding_attention", "full_attention"],
      rope_theta=1e6,
      rope_scaling={"rope_type": "linear", "factor": 8.0},
      query_pre_attn_scalar=24,
    ),
  ),
  "olmo2": ("olmo2", dict(rope_theta=5e5)),
  "phi3": ("phi3", dict(partial_rotary_factor=0.75, sliding_window=6)),
  "gpt2": ("gpt2", {}),
  "gpt_neox": ("gpt_neox", {}),
  "gpt_neox, sequential": (
    "gpt_neox",
    dict(
      use_parallel_residual=False,
      attention_bias=False,
      rotary_pct=1.0,
      rotary_emb_base=100,
    ),
  ),
  "opt": ("opt", {}),
  "qwen3_moe": ("qwen3_moe", {}),
  "qwen3_moe, weights as they are": (
    "qwen3_moe",
    dict(norm_topk_prob=False, num_experts=4, num_experts_per_tok=3),
  ),
  "opt, no bias": ("opt", dict(enable_bias=False)),
}
LENGTHS = (9, 6, 2)


@functools.cache
def built(name):
  family, fields = MODELS[name]
  return hf_models.build(family, **fields)


@pytest.fixture(params=MODELS)
def model(request):
  return built(request.param)


def texts():
  """Tokens [3, 9], and what of them is no padding on the left."""
  tokens = np.random.default_rng(0).integers(1, 61, (3, 9))
  return tokens, np.arange(9)[None] >= 9 - np.asarray(LENGTHS)[:, None]


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, valid=None, gates=None):
  x_BTD, _ = models.forward(config, params, tokens, valid_BT=valid, gates=gates)
  return models.unembed(config, params, x_BTD)


def test_logits_equal_stock_alone_and_in_a_padded_batch(model):
  stock, config, params = model
  tokens, valid = texts()
  ours = np.asarray(logits(config, params, tokens, valid))
  theirs = hf_models.logits(stock, tokens, valid)
  assert theirs.std() > 0.5  # or an absolute tolerance says nothing
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours[valid], theirs[valid], rtol=1e-5, atol=1e-5)
  for row, length in enumerate(LENGTHS):
    alone = hf_models.logits(stock, tokens[row : row + 1, 9 - length :])
    np.testing.assert_allclose(
      ours[row, 9 - length :], alone[0], rtol=1e-5, atol=1e-5
    )


def test_cached_greedy_texts_are_those_of_stock(model):
  stock, config, params = model
  tokens, valid = texts()
  expected = hf_models.greedy(stock, tokens, 8, valid)
  ours = generation.generate(
    config,
    params,
    tokens,
    max_new_tokens=8,
    valid_BT=valid,
    sampling=generation.Sampling(eos_ids=()),
  )
  np.testing.assert_array_equal(ours.tokens, expected)
  assert len(np.unique(expected)) > 2


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_texts_longer_than_the_table_of_positions_are_refused(name):
  _, config, params = built(name)
  tokens = np.ones((1, config.max_positions + 1), int)
  with pytest.raises(ValueError, match="65 tokens: .* 64 positions"):
    models.forward(config, params, tokens)
  with pytest.raises(IndexError):
    hf_models.logits(built(name)[0], tokens)


def test_new_parameters_have_the_tree_of_a_checkpoint(model):
  _, config, params = model
  declared = jax.eval_shape(
    functools.partial(models.init, config), jax.random.key(0)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(declared, params)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The folder of a model as stock transformers writes it."""
  made = {}

  def folder(name):
    if name not in made:
      made[name] = tmp_path_factory.mktemp("model")
      built(name)[0].save_pretrained(made[name])
    return made[name]

  return folder


def tensors_of(folder):
  """Name -> dtype, shape and bytes of all tensors of a folder."""
  found = {}
  for file in pathlib.Path(folder).glob("*.safetensors"):
    with safetensors.safe_open(file, "numpy") as opened:
      for name in opened.keys():
        array = opened.get_tensor(name)
        found[name] = (str(array.dtype), array.shape, array.tobytes())
  return found


def stock_of(folder):
  """The stock model of a folder, of which every tensor was found."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(info.values()), info
  return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_bit_for_bit(folders, tmp_path, name):
  _, config, params = built(name)
  source = checkpoints.open_checkpoint(folders(name))
  assert source.config == config
  _, read = checkpoints.load_params(source)
  chex.assert_trees_all_equal(read, params)
  checkpoints.save_params(tmp_path / "out", read, source)
  assert tensors_of(tmp_path / "out") == tensors_of(folders(name))
  for index in range(config.num_layers):
    chex.assert_trees_all_equal(
      checkpoints.read_layer(source, index),
      jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"]),
    )
  stock_of(tmp_path / "out")
  again = checkpoints.open_checkpoint(tmp_path / "out")
  assert again.config == config


def test_parts_of_a_shared_tensor_are_read_by_the_devices_that_hold_them(
  folders,
):
  mesh = jax.make_mesh((4, 2), ("data", "model"))

  def sharding(leaf, shape):
    axes = [None] * len(shape)
    if leaf.startswith("layers") and leaf.endswith("kernel"):
      axes[-2:] = "data", "model"
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  _, split = checkpoints.load_params(folders("phi3"), sharding=sharding)
  key = split["layers"]["attention"]["key"]["kernel"]
  assert key.addressable_shards[0].data.shape == (2, 8, 8)
  chex.assert_trees_all_equal(split, built("phi3")[2])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_names_without_the_prefix(folders, tmp_path, name):
  """The published GPT-2 is so: a model saved without its head, with buffers."""
  bare, prefix = tmp_path / "bare", tables.TABLES[name].prefix
  bare.mkdir()
  (bare / "config.json").write_bytes(
    (folders(name) / "config.json").read_bytes()
  )
  whole = safetensors.numpy.load_file(folders(name) / "model.safetensors")
  tensors = {k.removeprefix(prefix): v for k, v in whole.items()}
  written = dict(tensors)
  if name == "gpt2":
    written["h.0.attn.bias"] = np.tri(64, dtype=np.float32)[None, None]
  safetensors.numpy.save_file(written, bare / "model.safetensors")
  source = checkpoints.open_checkpoint(bare)
  config, params = checkpoints.load_params(source)
  chex.assert_trees_all_equal(params, built(name)[2])
  assert config == built(name)[1]
  checkpoints.save_params(tmp_path / "out", params, source)
  assert set(tensors_of(tmp_path / "out")) == set(tensors)
  stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  tokens, _ = texts()
  np.testing.assert_allclose(
    logits(config, params, tokens), hf_models.logits(stock, tokens), atol=1e-5
  )


TOKENS = np.random.default_rng(1).integers(1, 61, (6, 16)).astype(np.int32)
OLD, NEW = (
  ("gpt2", "gpt_neox", "opt"),
  ("gemma2", "gemma3_text", "olmo2", "phi3"),
)


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


def sparsegpt(w_IO, x_RI):
  """SparseGPT on the Gram matrix of the rows x."""
  prepared, _ = registry.METHODS["sparsegpt"].prepare(observe_gram(x_RI[None]))
  return _sparsegpt(w_IO, prepared, NofM(keep=1, of=4))[0]


_sparsegpt = jax.jit(registry.METHODS["sparsegpt"].apply, static_argnums=2)


@pytest.mark.parametrize(
  "family, method",
  [
    # What enters the kernels is another in each; Wanda looks at it.
    *((family, "wanda") for family in OLD + NEW),
    *((family, "sparsegpt") for family in ("gpt2", "phi3")),
    ("phi3", "magnitude"),
  ],
)
def test_masks_are_those_of_a_walk_over_stock(
  folders, tmp_path, family, method
):
  """Layer by layer, on the inputs that stock modules see."""
  weights.prune_weights(
    checkpoints.open_checkpoint(folders(family)),
    tmp_path / "out",
    method=method,
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
      if method == "sparsegpt":
        expected = sparsegpt(w_IO, x_RI)
        np.testing.assert_array_equal(pruned[key][index] != 0, expected != 0)
        np.testing.assert_allclose(pruned[key][index], expected, atol=1e-3)
        continue
      score_IO = np.abs(w_IO.astype(np.float64))
      if method == "wanda":
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
    *((family, method) for family in OLD for method in ("neuron", "flap")),
    ("gpt2", "awq"),
    *(("phi3", "neuron"), ("phi3", "awq")),
    *(("gemma2", "ria"), ("gemma3_text", "rtn"), ("olmo2", "flap")),
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


def changed(params):
  """The same model with all kernels of its layers moved a little."""
  layers = jax.tree.map(lambda leaf: leaf, params["layers"])
  for group, name in models.kernels_of(layers):
    leaf = layers[group][name]
    noise = np.random.default_rng(len(name)).normal(size=leaf["kernel"].shape)
    layers[group][name] = {**leaf, "kernel": leaf["kernel"] + 0.02 * noise}
  return {**params, "layers": layers}


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3_text"])
def test_replaced_sublayers_are_those_of_a_block(name):
  _, config, params = built(name)
  if name == "gemma3_text":  # all that differs from Llama in one model
    caps = dict(score_cap=1.5, logit_cap=2.0)
    config = dataclasses.replace(config, **caps)
  pruned = changed(params)
  tokens, valid = texts()
  states = transitions.compare_transitions(
    config,
    params,
    pruned,
    tokens,
    valid,
    transitions.Measurement(
      history="pruned", measure=lambda h, g, z, y, t: (h, g)
    ),
    num_steps=2,
  )
  context = models.make_context(config, 9, valid)
  x = models.embed(config, params, tokens, context.positions)

  def run(index, group=None):
    layer = {
      key: jax.tree.map(
        lambda leaf: leaf[index],
        (pruned if key == group else params)["layers"][key],
      )
      for key in params["layers"]
    }
    sliding = config.sliding_layers[index]
    return decoder_layer.block(config, layer, x, context, sliding=sliding)[1]

  for index in range(2):
    dense = run(index)
    attention, mlp = run(index, "attention"), run(index, "mlp")
    for found, expected in (
      (states[0][index, 0], dense["residual_mid"]),
      (states[0][index, 1], dense["residual_out"]),
      (states[1][index, 0], attention["residual_mid"]),
      (states[1][index, 1], mlp["residual_out"]),
    ):
      np.testing.assert_allclose(found, expected[:, -2:], atol=1e-5)
    x = dense["residual_out"]


@pytest.mark.parametrize("name", ["gpt_neox", "opt", "gemma3_text"])
def test_interventions_end_at_the_two_models(name):
  _, config, params = built(name)
  pruned = changed(params)
  tokens, valid = (jnp.asarray(each) for each in texts())
  ends = {
    end: decoder.final_norm(
      config,
      params,
      models.forward(config, tree, tokens, valid_BT=valid)[0][:, -2:],
    )
    for end, tree in (("dense", params), ("pruned", pruned))
  }
  pair = interventions.make_pair(config, params, config, pruned)
  text = interventions.Text(
    tokens=tokens,
    valid=valid,
    target=tokens[:, -2:],
    alive=jnp.ones((3, 2), bool),
  )
  found = interventions.patched(config, pair, text, jax.random.key(0))
  for end, expected in ends.items():
    np.testing.assert_allclose(found[end][0], expected, atol=1e-5)
  moved = path.add_delta(config, params, config, pruned)
  for coefficient, end in ((0.0, "dense"), (1.0, "pruned")):
    h_BRD = path.hidden(
      config,
      moved,
      tokens,
      valid,
      jnp.full((2, 2, 9), coefficient),
      num_steps=2,
    )
    np.testing.assert_allclose(h_BRD, ends[end], atol=1e-5)
