"""The decoder against stock transformers, and against what it must obey."""

import dataclasses
import doctest
import functools

import chex
import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from jaxprune.models import blocks, decoder, encoder


def logits(config, params, tokens_BT, valid_BT=None, gates=None):
  """Logits; tied and untied models share one compiled residual."""
  layers = {name: params[name] for name in ("embed", "layers")}
  x_BTD = _residual(
    dataclasses.replace(config, tie_embeddings=True),
    layers,
    tokens_BT,
    valid_BT,
    gates,
  )
  return models.unembed(config, params, x_BTD)


@functools.partial(jax.jit, static_argnums=0)
def _residual(config, params, tokens_BT, valid_BT, gates):
  return models.forward(
    config, params, tokens_BT, valid_BT=valid_BT, gates=gates
  )[0]


# Outside of jit every call would compile the loop over layers anew.
_forward = jax.jit(
  models.forward, static_argnums=0, static_argnames=("observe", "remat")
)


def random_tokens(*shape, seed=0):
  return np.random.default_rng(seed).integers(1, 61, shape, dtype=np.int32)


def left_padded(*lengths):
  return np.arange(max(lengths))[None] >= (
    max(lengths) - np.asarray(lengths)[:, None]
  )


@pytest.fixture(scope="module")
def small():
  return hf_models.build("qwen3")


def test_parameter_tree_is_the_one_of_the_checkpoint(small):
  _, config, params = small
  for kv_heads in (1, 4):
    for fields in (dict(), dict(attention_bias=True)):
      _, config, params = hf_models.build(
        "qwen3", num_key_value_heads=kv_heads, **fields
      )
      declared = jax.eval_shape(
        functools.partial(models.init, config), jax.random.key(0)
      )
      chex.assert_trees_all_equal_shapes_and_dtypes(declared, params)


def test_module_tree_is_spelled_out(small):
  """The names and shapes of checkpoints, with all that a family may add."""
  _, config, _ = small
  config = dataclasses.replace(
    config,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=True,
    tie_embeddings=False,
  )
  L, D, F = config.num_layers, config.embed_dim, config.mlp_dim
  H, V = config.head_dim, config.vocab_size
  query, key = config.num_heads * H, config.num_kv_heads * H
  dense = lambda I, O: {"kernel": (L, I, O), "bias": (L, O)}
  tokens = jnp.zeros((2, 3), jnp.int32)
  tree = jax.eval_shape(models.Decoder(config).init, jax.random.key(0), tokens)
  assert jax.tree.map(jnp.shape, tree) == {
    "params": {
      "embed": {"table": (V, D)},
      "final_norm": {"scale": (D,)},
      "head": {"kernel": (D, V)},
      "layers": {
        "attention_norm": {"scale": (L, D)},
        "attention": {
          "query": dense(D, query),
          "key": dense(D, key),
          "value": dense(D, key),
          "output": dense(query, D),
          "query_norm": {"scale": (L, H)},
          "key_norm": {"scale": (L, H)},
        },
        "mlp_norm": {"scale": (L, D)},
        "mlp": {"gate": dense(D, F), "up": dense(D, F), "down": dense(F, D)},
      },
    }
  }
  half = models.Decoder(config, jnp.bfloat16)
  tree = jax.eval_shape(half.init, jax.random.key(0), tokens)
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {
    jnp.dtype("bfloat16")
  }
  table = models.Decoder(config).tabulate(
    jax.random.key(0), tokens, console_kwargs=dict(width=240)
  )
  for name in ("layers/attention/query", "layers/mlp/down", "head"):
    assert name in table


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_the_example_of_the_module_runs(small, name):
  if name == "decoder":
    config, module = small[1], decoder
  else:
    module = encoder
    config = models.EncoderConfig(
      family="bert",
      vocab_size=61,
      embed_dim=16,
      num_layers=2,
      num_heads=2,
      mlp_dim=24,
      max_positions=8,
      num_token_types=2,
      norm_eps=1e-12,
      activation="gelu",
      pad_id=0,
      pooler=True,
    )
  names = vars(module) | dict(config=config, tokens=jnp.ones((2, 5), int))
  (example,) = doctest.DocTestFinder(recurse=False).find(
    module, globs=dict(names)
  )
  outcome = doctest.DocTestRunner().run(example)
  assert outcome.attempted >= 4 and not outcome.failed


def test_intermediates_have_their_shapes(small):
  _, config, params = small
  tokens = random_tokens(2, 5)
  _, out = _forward(config, params, tokens, observe=lambda out: out)
  B, T, L, D = 2, 5, config.num_layers, config.embed_dim
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  shapes = dict.fromkeys(
    ("residual_in", "attention_in", "residual_mid", "mlp_in", "residual_out"),
    (L, B, T, D),
  ) | {
    "output_in": (L, B, T, N * H),
    "down_in": (L, B, T, config.mlp_dim),
    "key": (L, B, T, K, H),
    "value": (L, B, T, K, H),
  }
  assert jax.tree.map(jnp.shape, out) == shapes
  chex.assert_tree_all_finite(out)


def test_rematerialised_gradients_are_the_same(small):
  """`remat` stores less for the backward pass and changes no number."""
  _, config, params = small
  tokens = random_tokens(2, 6)

  @functools.partial(jax.jit, static_argnums=1)
  @chex.assert_max_traces(n=2)
  def slopes(params, remat):
    return jax.grad(
      lambda params: jnp.mean(
        jnp.square(models.forward(config, params, tokens, remat=remat)[0])
      )
    )(params)

  plain, again = slopes(params, False), slopes(params, True)
  chex.assert_tree_all_finite(plain)
  chex.assert_trees_all_close(plain, again, atol=1e-6)


def test_a_change_beside_a_kernel_is_applied_by_position(small):
  """Coefficient 0 is the model, 1 the changed one, position by position."""
  _, config, params = small
  tokens = random_tokens(1, 4)
  shape = params["layers"]["mlp"]["down"]["kernel"].shape
  delta = np.random.default_rng(1).normal(0, 0.1, shape).astype(np.float32)

  def run(kernel, **change):
    down = {**params["layers"]["mlp"]["down"], "kernel": kernel, **change}
    mlp = {**params["layers"]["mlp"], "down": down}
    tree = {**params, "layers": {**params["layers"], "mlp": mlp}}
    return _forward(config, tree, tokens)[0]

  kernel = params["layers"]["mlp"]["down"]["kernel"]
  old, new = run(kernel), run(kernel + delta)
  for value, expected in ((0.0, old), (1.0, new)):
    coefficient = jnp.full((config.num_layers, 1), value)
    got = run(kernel, delta=delta, coefficient=coefficient)
    np.testing.assert_allclose(got, expected, atol=1e-5)
  # No position reads what comes after it, so the first ones stay as they were.
  late = jnp.tile(jnp.arange(4) >= 2, (config.num_layers, 1)).astype(
    jnp.float32
  )
  got = run(kernel, delta=delta, coefficient=late)
  np.testing.assert_allclose(got[:, :2], old[:, :2], atol=1e-5)
  assert np.abs(got[:, 2:] - old[:, 2:]).max() > 1e-2


def test_flax_module_computes_forward(small):
  _, config, params = small
  tokens = random_tokens(2, 5)
  x_BTD, tape = models.Decoder(config).apply({"params": params}, tokens)
  expected, _ = models.forward(config, params, tokens)
  chex.assert_trees_all_equal(x_BTD, expected)
  assert tape == {}
  fresh = models.Decoder(config).init(jax.random.key(0), tokens)["params"]
  scales = fresh["layers"]["mlp_norm"]["scale"]
  kernel = fresh["layers"]["mlp"]["up"]["kernel"]
  assert (scales == 1).all() and 0.015 < kernel.std() < 0.025
  assert not np.array_equal(kernel, fresh["layers"]["mlp"]["gate"]["kernel"])


def test_eager_is_jit(small):
  _, config, params = small
  tokens, valid = random_tokens(2, 6), left_padded(6, 4)
  eager = models.unembed(
    config, params, models.forward(config, params, tokens, valid_BT=valid)[0]
  )
  np.testing.assert_allclose(
    eager, logits(config, params, tokens, valid), atol=2e-6
  )


def test_block_by_block_is_forward(small):
  _, config, params = small
  tokens, valid = random_tokens(2, 6), left_padded(6, 4)

  @functools.partial(jax.jit, static_argnums=2)
  def run(layer, x_BTD, sliding):
    context = models.make_context(config, 6, valid)
    return models.block(config, layer, x_BTD, context, sliding=sliding)[0]

  x_BTD = models.embed(config, params, tokens)
  for index in range(config.num_layers):
    layer = jax.tree.map(
      lambda leaf, i=index: np.asarray(leaf)[i], params["layers"]
    )
    x_BTD = run(layer, x_BTD, config.sliding_layers[index])
  expected, _ = _forward(config, params, tokens, valid_BT=valid)
  np.testing.assert_allclose(x_BTD, expected, atol=2e-6)


def test_stacked_and_separate_layers_agree(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  observe = lambda tape: tape["residual_mid"][:, -1]
  gates = models.make_gates(config, mlp=[0])
  run = jax.jit(
    lambda params: models.forward(
      config, params, tokens, gates=gates, observe=observe
    )
  )
  stacked, separate = run(params), run(models.unstack(params))
  chex.assert_shape(stacked[1], (2, 2, 32))
  chex.assert_trees_all_close(stacked, separate, atol=2e-6)


def test_tape_holds_the_inputs_of_the_kernels(small):
  """Redo every kernel from the tape in NumPy."""
  _, config, params = small
  tokens = random_tokens(2, 6)
  x_BTD, tapes = _forward(config, params, tokens, observe=lambda tape: tape)
  layers = jax.tree.map(np.asarray, params["layers"])
  tapes = jax.tree.map(np.asarray, tapes)
  silu = lambda x: x / (1 + np.exp(-x))
  for index in range(config.num_layers):
    tape = {name: leaf[index] for name, leaf in tapes.items()}

    def apply(kernel, index=index, tape=tape):
      group, name = kernel
      return (
        tape[decoder.KERNEL_INPUTS[kernel]]
        @ (layers[group][name]["kernel"][index])
      )

    residual_mid = tape["residual_in"] + apply(("attention", "output"))
    np.testing.assert_allclose(tape["residual_mid"], residual_mid, atol=2e-6)
    down_in = silu(apply(("mlp", "gate"))) * apply(("mlp", "up"))
    np.testing.assert_allclose(tape["down_in"], down_in, atol=5e-6)
    residual_out = residual_mid + apply(("mlp", "down"))
    np.testing.assert_allclose(tape["residual_out"], residual_out, atol=1e-5)
    np.testing.assert_allclose(
      tape["value"].reshape(2, 6, -1), apply(("attention", "value")), atol=2e-6
    )
    if index:
      np.testing.assert_array_equal(
        tape["residual_in"], tapes["residual_out"][index - 1]
      )
  np.testing.assert_array_equal(x_BTD, tapes["residual_out"][-1])
  np.testing.assert_array_equal(
    tapes["residual_in"][0], params["embed"]["table"][tokens]
  )
  assert set(decoder.KERNELS) == set(decoder.KERNEL_INPUTS)


def test_lenses(small):
  _, config, params = small
  x_BD = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
  norm_BD = (
    x_BD
    / np.sqrt((x_BD**2).mean(-1, keepdims=True) + config.norm_eps)
    * np.asarray(params["final_norm"]["scale"])
  )
  kernel_DV = np.asarray(params["head"]["kernel"])
  np.testing.assert_allclose(
    models.final_norm(config, params, x_BD), norm_BD, atol=2e-6
  )
  np.testing.assert_allclose(
    models.unembed(config, params, x_BD), norm_BD @ kernel_DV, atol=1e-5
  )
  np.testing.assert_allclose(
    models.unembed(config, params, x_BD, "raw"), x_BD @ kernel_DV, atol=1e-5
  )
  with pytest.raises(ValueError, match="lens='both'"):
    models.unembed(config, params, x_BD, "both")


@pytest.mark.parametrize("name", ["llama", "window"])
def test_causality_by_gradient(name):
  """What position 5 says depends on 0..5, or on the window, and no more."""
  fields = dict(sliding_window=3, num_hidden_layers=1)
  _, config, params = (
    hf_models.build("llama")
    if name == "llama"
    else hf_models.build("mistral", **fields)
  )
  x_BTD = jnp.asarray(
    np.random.default_rng(0).normal(size=(1, 8, 32)), jnp.float32
  )
  context = models.make_context(config, 8)

  def at_five(x_BTD):
    for index in range(config.num_layers):
      layer = jax.tree.map(lambda leaf: leaf[index], params["layers"])
      x_BTD, _ = models.block(
        config, layer, x_BTD, context, sliding=config.sliding_layers[index]
      )
    return x_BTD[0, 5].sum()

  reach_T = np.abs(jax.jit(jax.grad(at_five))(x_BTD)).sum((0, 2)) > 0
  first = 0 if name == "llama" else 3
  assert reach_T.tolist() == [first <= t <= 5 for t in range(8)]


def test_padding_is_not_read(small):
  _, config, params = small
  valid = left_padded(7, 4)
  one, other = random_tokens(2, 7), random_tokens(2, 7, seed=1)
  other[valid] = one[valid]
  first, second = (logits(config, params, t, valid) for t in (one, other))
  np.testing.assert_array_equal(first[valid], second[valid])


def test_bfloat16_is_near_float32(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  rounded = jax.tree.map(
    lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params
  )
  x_BTD, _ = _forward(config, rounded, tokens)
  z_BTV = logits(config, rounded, tokens)
  assert x_BTD.dtype == jnp.bfloat16 and z_BTV.dtype == jnp.float32
  expected = logits(config, params, tokens)
  error = np.abs(z_BTV - expected).max() / np.abs(expected).max()
  assert 1e-4 < error < 3e-2


@pytest.mark.parametrize("padded, cut", [(False, 20), (True, 1)])
def test_long_batches_are_cut_by_rows(small, padded, cut, monkeypatch):
  """Four rows two by two, or one by one, and all at once."""
  _, config, params = small
  tokens = random_tokens(4, 10)
  valid = left_padded(10, 9, 4, 1) if padded else None
  observe = lambda tape: (tape["down_in"], tape["key"])
  results = []
  for rows in (cut, 40):
    monkeypatch.setattr(blocks, "ROWS", rows)
    results.append(
      jax.jit(
        lambda t: models.forward(
          config, params, t, valid_BT=valid, observe=observe
        )
      )(tokens)
    )
  chex.assert_shape(results[0][1][0], (2, 4, 10, 48))
  chex.assert_trees_all_close(*results, atol=2e-6)


def test_off_the_cpu_the_same_comes_out(small, monkeypatch):
  """The forms for accelerators, run here."""
  _, config, params = small
  tokens, valid = random_tokens(2, 70), left_padded(70, 66)
  monkeypatch.setattr(blocks, "ROWS", 70)
  run = lambda: jax.jit(
    lambda t: models.forward(config, params, t, valid_BT=valid)[0]
  )(tokens)
  here = run()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  np.testing.assert_allclose(here, run(), atol=1e-5)


@pytest.mark.parametrize("rows", [(2,), (3, 4), (33,)])
def test_a_tied_head_reads_few_rows_as_it_reads_many(small, rows):
  """A CPU turns the product round for few rows: the same logits and slopes."""
  _, config, params = small
  config = dataclasses.replace(config, tie_embeddings=True)
  table_VD = params["embed"]["table"]
  h = (
    np.random.default_rng(0)
    .standard_normal((*rows, table_VD.shape[1]))
    .astype("f")
  )

  def read(h):
    return decoder.unembed(config, params, h, "raw")

  z, dz = jax.jvp(jax.jit(read), (h,), (2 * h,))
  expected = h.astype(float) @ np.asarray(table_VD, float).T
  chex.assert_trees_all_close(z, expected.astype("f"), rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(dz, 2 * z, rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(jax.vmap(read)(h), z, rtol=1e-5, atol=1e-5)
