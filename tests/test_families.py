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
from jaxprune.checkpoints import tables
from jaxprune.models import decoder, decoder_layer, generation
from jaxprune.probes.decoder import interventions, transitions
from jaxprune.probes.decoder.propagation import path

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


@pytest.mark.parametrize(
  "name",
  # The second models of a family, OLMo 2 beside the Llama of test_generation
  # and GPT-2 beside OPT differ in a layer, not in what is kept of it.
  [
    name
    for name, (family, _) in MODELS.items()
    if name == family and name not in ("olmo2", "gpt2")
  ],
)
def test_cached_greedy_texts_are_those_of_stock(name):
  stock, config, params = built(name)
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
  h, g = transitions.compare_transitions(
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
  h, g = jax.device_get((h, g))
  context = jax.jit(models.make_context, static_argnums=(0, 1))(
    config, 9, valid
  )
  x = jax.jit(models.embed, static_argnums=0)(
    config, params, tokens, context.positions
  )
  block = jax.jit(
    functools.partial(decoder_layer.block, config), static_argnames="sliding"
  )

  def run(index, group=None):
    layer = {
      key: jax.tree.map(
        lambda leaf: np.asarray(leaf)[index],
        (pruned if key == group else params)["layers"][key],
      )
      for key in params["layers"]
    }
    sliding = config.sliding_layers[index]
    return block(layer, x, context, sliding=sliding)[1]

  for index in range(2):
    dense = run(index)
    attention, mlp = run(index, "attention"), run(index, "mlp")
    for found, expected in (
      (h[index, 0], dense["residual_mid"]),
      (h[index, 1], dense["residual_out"]),
      (g[index, 0], attention["residual_mid"]),
      (g[index, 1], mlp["residual_out"]),
    ):
      np.testing.assert_allclose(found, np.asarray(expected)[:, -2:], atol=1e-5)
    x = dense["residual_out"]


def test_interventions_end_at_the_two_models():
  """Of Gemma 3; what a parallel layer adds is in the test above."""
  _, config, params = built("gemma3_text")
  pruned = changed(params)
  tokens, valid = (jnp.asarray(each) for each in texts())

  @jax.jit
  def last_two(tree):
    x_BTD, _ = models.forward(config, tree, tokens, valid_BT=valid)
    return decoder.final_norm(config, params, x_BTD[:, -2:])

  ends = {"dense": last_two(params), "pruned": last_two(pruned)}
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
