"""The encoder against stock transformers, and its configuration."""

import dataclasses

import chex
import hf_encoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jaxprune import checkpoints
from jaxprune.checkpoints import names
from jaxprune.models import EncoderConfig, encoder
from jaxprune.models.decoder import Gates

# Outside of jit every operation is a program of its own.
forward = jax.jit(encoder.forward, static_argnums=0, static_argnames="observe")
embed = jax.jit(encoder.embed, static_argnums=0)
block = jax.jit(encoder.block, static_argnums=0)
pool = jax.jit(encoder.pool, static_argnames=("pooling", "normalise"))

draw = np.random.default_rng(0)
TOKENS = draw.integers(4, 61, (3, 11))
TYPES = draw.integers(0, 2, (3, 11))
VALID = np.arange(11)[None] < np.array([11, 7, 1])[:, None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  model = hf_encoders.save(folder)
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  return model, *checkpoints.load_params(source, jnp.float32)


def test_equals_stock(tiny):
  model, config, params = tiny
  got, _ = forward(config, params, TOKENS, valid_BT=VALID, token_types_BT=TYPES)
  want = hf_encoders.hidden(model, TOKENS, VALID, TYPES)
  np.testing.assert_allclose(got[VALID], want[VALID], atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations_equal_stock(activation, tmp_path):
  model = hf_encoders.build(
    hidden_act=activation, num_hidden_layers=1, layer_norm_eps=1e-3
  )
  hf_encoders.save(tmp_path, model)
  source = checkpoints.open_checkpoint(tmp_path, EncoderConfig)
  config, params = checkpoints.load_params(source)
  got, _ = forward(config, params, jnp.asarray(TOKENS))
  np.testing.assert_allclose(got, hf_encoders.hidden(model, TOKENS), atol=1e-5)


def test_minilm_equals_stock(shared):
  import torch

  folder = shared / "weights" / "minilm"
  config, params = checkpoints.load_params(
    checkpoints.open_checkpoint(folder, EncoderConfig), jnp.float32
  )
  model = transformers.BertModel.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  tokens = np.random.default_rng(1).integers(1000, 20000, (2, 24))
  valid = np.arange(24)[None] < np.array([24, 9])[:, None]
  got, _ = forward(
    config, params, jnp.asarray(tokens), valid_BT=jnp.asarray(valid)
  )
  want = hf_encoders.hidden(model, tokens, valid)
  np.testing.assert_allclose(np.asarray(got)[valid], want[valid], atol=1e-5)


def test_a_token_reads_both_ways_but_no_padding(tiny):
  _, config, params = tiny
  x_BTD = embed(config, params, jnp.asarray(TOKENS[:1]))
  layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
  valid_BT = jnp.arange(11)[None] < 8

  def middle(x_BTD):
    return encoder.block(config, layer, x_BTD, valid_BT)[0][0, 4].sum()

  reach_T = jnp.abs(jax.jit(jax.grad(middle))(x_BTD)[0]).max(axis=-1)
  assert (reach_T[:8] > 0).all()
  assert (reach_T[8:] == 0).all()


def test_tape_holds_the_inputs_of_the_kernels(tiny):
  _, config, params = tiny
  layer = jax.tree.map(lambda leaf: leaf[1], params["layers"])
  x_BTD = embed(config, params, jnp.asarray(TOKENS))
  y_BTD, tape = block(config, layer, x_BTD, jnp.asarray(VALID))
  assert set(encoder.KERNEL_INPUTS.values()) <= set(tape)

  def norm(name, x_BTD):
    x_BTD = np.asarray(x_BTD, np.float64)
    x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
    x_BTD = x_BTD / np.sqrt((x_BTD**2).mean(-1, keepdims=True) + 1e-12)
    return x_BTD * np.asarray(layer[name]["scale"]) + np.asarray(
      layer[name]["bias"]
    )

  for group, kernel, start, end in (
    ("attention", "output", "residual_in", "residual_mid"),
    ("mlp", "down", "residual_mid", "residual_out"),
  ):
    dense = layer[group][kernel]
    added = np.einsum(
      "BTI,IO->BTO", tape[encoder.KERNEL_INPUTS[group, kernel]], dense["kernel"]
    ) + np.asarray(dense["bias"])
    np.testing.assert_allclose(
      tape[end], norm(f"{group}_norm", tape[start] + added), atol=1e-5
    )
  np.testing.assert_array_equal(tape["residual_out"], y_BTD)


def test_a_closed_gate_is_the_norm_of_the_residual(tiny):
  _, config, params = tiny
  open_, closed = jnp.ones(3), jnp.zeros(3)
  got, _ = forward(
    config,
    params,
    jnp.asarray(TOKENS),
    gates=Gates(attention=closed, mlp=closed),
  )
  x_BTD = embed(config, params, jnp.asarray(TOKENS))
  for index in range(3):
    for name in ("attention_norm", "mlp_norm"):
      own = {k: v[index] for k, v in params["layers"][name].items()}
      x_BTD = encoder.layer_norm(config).apply({"params": own}, x_BTD)
  np.testing.assert_allclose(got, x_BTD, atol=5e-6)
  same, _ = forward(
    config, params, jnp.asarray(TOKENS), gates=Gates(attention=open_, mlp=open_)
  )
  plain, _ = forward(config, params, jnp.asarray(TOKENS))
  np.testing.assert_array_equal(same, plain)


def test_observe_is_stacked_on_layers(tiny):
  _, config, params = tiny
  out, seen = forward(
    config,
    params,
    jnp.asarray(TOKENS),
    observe=lambda tape: tape["residual_out"].sum(axis=(0, 1)),
  )
  chex.assert_shape(seen, (3, 32))
  np.testing.assert_allclose(seen[-1], out.sum(axis=(0, 1)), rtol=1e-5)


def test_init_has_the_shapes_of_the_table(tiny):
  _, config, _ = tiny
  for pooler in (True, False):
    config = dataclasses.replace(config, pooler=pooler)
    tree = jax.eval_shape(
      lambda: encoder.init_encoder(config, jax.random.key(0))
    )
    leaves = names.flatten(tree)
    wanted = {
      row.path: names.leaf_shape(config, row)
      for row in names.outer_rows(config)
    } | {
      f"layers/{row.path}": (3, *names.leaf_shape(config, row))
      for row in names.layer_rows(config)
    }
    assert {path: leaf.shape for path, leaf in leaves.items()} == wanted
  assert set(names.kernel_shapes(config)) == set(encoder.KERNELS)


@pytest.mark.parametrize("pooling", encoder.POOLINGS)
@pytest.mark.parametrize("normalise", [True, False])
def test_pool(pooling, normalise):
  x_BTD = np.random.default_rng(2).normal(size=(3, 11, 5))
  got = pool(
    jnp.asarray(x_BTD, jnp.float32),
    jnp.asarray(VALID),
    pooling=pooling,
    normalise=normalise,
  )
  for b, length in enumerate((11, 7, 1)):
    want = x_BTD[b, :length].mean(0) if pooling == "mean" else x_BTD[b, 0]
    if normalise:
      want = want / np.sqrt((want**2).sum())
    np.testing.assert_allclose(got[b], want, atol=1e-6)


def test_padding_alone_pools_to_zeros():
  got = pool(jnp.ones((1, 4, 3)), jnp.zeros((1, 4), bool))
  np.testing.assert_array_equal(got, np.zeros((1, 3)))


def test_unknown_pooling_and_too_many_tokens(tiny):
  _, config, params = tiny
  with pytest.raises(ValueError, match="pooling='max'.*mean, cls"):
    pool(jnp.ones((1, 4, 3)), jnp.ones((1, 4), bool), pooling="max")
  with pytest.raises(ValueError, match="41 tokens.*40 positions"):
    forward(config, params, jnp.zeros((1, 41), jnp.int32))


HF = dict(
  model_type="bert",
  hidden_size=32,
  num_attention_heads=4,
  num_hidden_layers=3,
  intermediate_size=48,
  vocab_size=61,
)


def test_config_reads_its_numbers_and_defaults():
  config = EncoderConfig.from_hf(HF)
  assert config == EncoderConfig(
    family="bert",
    num_layers=3,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    vocab_size=61,
    num_token_types=2,
    max_positions=512,
    norm_eps=1e-12,
    activation="gelu",
    pad_id=0,
  )
  assert config.head_dim == 8
  assert hash(config) == hash(EncoderConfig.from_hf(HF))


def test_config_defaults_are_those_of_stock():
  stock = transformers.BertConfig()
  config = EncoderConfig.from_hf({"model_type": "bert"})
  assert config == EncoderConfig.from_hf(stock.to_dict())


@pytest.mark.parametrize(
  "change, words",
  [
    ({"model_type": "roberta"}, "model_type='roberta'"),
    ({"model_type": None}, "model_type=None"),
    ({"hidden_act": "mish"}, "hidden_act='mish'"),
    ({"hidden_size": 30}, "hidden_size=30: must be a multiple"),
    ({"layer_norm_eps": 0}, "layer_norm_eps=0"),
    ({"num_hidden_layers": "3"}, "num_hidden_layers='3'"),
    ({"position_embedding_type": "relative_key"}, "only learned absolute"),
    ({"is_decoder": True}, "is_decoder=True"),
    ({"quantization_config": {"bits": 8}}, "quantization_config"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ({"rope_theta": 10000.0}, "rope_theta=10000.0"),
    ({"is_causal": True}, "is_causal=True"),
    (
      {"hidden_size": 30, "vocab_size": None},
      "hidden_size=30: must be.*; vocab_size=None: must be",
    ),
  ],
)
def test_config_refuses(change, words):
  with pytest.raises(ValueError, match=words):
    EncoderConfig.from_hf({**HF, **change})


def test_config_names_the_keys_without_effect():
  config = EncoderConfig.from_hf(
    {**HF, "new_field": 1, "gradient_checkpointing": False, "use_cache": True}
  )
  assert config == EncoderConfig.from_hf(HF)
  assert config.ignored == ("new_field", "gradient_checkpointing")


def test_config_names_the_file(tmp_path):
  with pytest.raises(ValueError, match="no config.json"):
    EncoderConfig.from_hf(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
  with pytest.raises(ValueError, match="config.json: model_type='gpt2'"):
    EncoderConfig.from_hf(tmp_path)
