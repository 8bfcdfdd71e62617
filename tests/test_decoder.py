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
from jaxprune.models import attention, blocks, decoder, encoder

ROPES = {
  "linear": dict(rope_type="linear", factor=2.0),
  "dynamic": dict(rope_type="dynamic", factor=2.0),
  "yarn": dict(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=16
  ),
  "longrope": dict(
    rope_type="longrope",
    factor=4.0,
    short_factor=[1.0, 1.1, 1.3, 1.7],
    long_factor=[1.0, 2.0, 3.5, 9.0],
    original_max_position_embeddings=16,
  ),
  "llama3": dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
  ),
}


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


def random_tokens(*shape, seed=0):
  return np.random.default_rng(seed).integers(1, 61, shape, dtype=np.int32)


def left_padded(*lengths):
  return np.arange(max(lengths))[None] >= (
    max(lengths) - np.asarray(lengths)[:, None]
  )


@pytest.fixture(scope="module")
def small():
  return hf_models.build("qwen3")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_equals_stock(family, kv_heads, tied):
  model, config, params = hf_models.build(
    family, num_key_value_heads=kv_heads, tie_word_embeddings=tied
  )
  assert config.num_kv_heads == kv_heads and ("head" in params) != tied
  tokens = random_tokens(2, 9)
  expected = hf_models.logits(model, tokens)
  assert expected.std() > 0.5  # or an absolute tolerance says nothing
  np.testing.assert_allclose(
    logits(config, params, tokens), expected, rtol=1e-5, atol=1e-5
  )


def test_biases_equal_stock():
  model, config, params = hf_models.build(
    "llama", attention_bias=True, mlp_bias=True
  )
  assert "bias" in params["layers"]["attention"]["output"]
  assert "bias" in params["layers"]["mlp"]["down"]
  tokens = random_tokens(2, 9)
  np.testing.assert_allclose(
    logits(config, params, tokens),
    hf_models.logits(model, tokens),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("length", [12, 40])
@pytest.mark.parametrize("kind", ROPES)
def test_ropes_equal_stock(kind, length):
  """40 tokens are beyond every original context, 12 are within."""
  model, config, params = hf_models.build(
    "llama",
    max_position_embeddings=16 if kind == "dynamic" else 64,
    rope_parameters=dict(ROPES[kind], rope_theta=100.0),
  )
  tokens = random_tokens(2, length)
  np.testing.assert_allclose(
    logits(config, params, tokens),
    hf_models.logits(model, tokens),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "family, fields",
  [
    ("mistral", dict(sliding_window=4)),
    (
      "qwen2",
      dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    (
      "qwen3",
      dict(
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
      ),
    ),
    ("llama", {}),
  ],
)
def test_windows_and_padding_equal_stock(family, fields):
  model, config, params = hf_models.build(family, **fields)
  tokens, valid = random_tokens(3, 13), left_padded(13, 9, 1)
  ours = logits(config, params, tokens, valid)
  theirs = hf_models.logits(model, tokens, valid)
  np.testing.assert_allclose(ours[valid], theirs[valid], atol=1e-5)
  assert np.isfinite(ours).all()
  alone = logits(config, params, tokens[1:2, 4:])
  np.testing.assert_allclose(ours[1, 4:], alone[0], atol=1e-5)


def test_stories_equal_stock(shared):
  import transformers

  folder = shared / "weights" / "stories260K"
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager"
  )
  config = models.ModelConfig.from_hf(folder)
  params = hf_models.convert(model, config)
  tokens = np.random.default_rng(0).integers(3, 512, (2, 150))
  expected = hf_models.logits(model, tokens)
  np.testing.assert_allclose(
    logits(config, params, tokens), expected, atol=3e-6 * np.abs(expected).max()
  )


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
  _, out = models.forward(config, params, tokens, observe=lambda out: out)
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
  delta = 0.1 * jax.random.normal(
    jax.random.key(1), params["layers"]["mlp"]["down"]["kernel"].shape
  )

  def run(kernel, **change):
    down = {**params["layers"]["mlp"]["down"], "kernel": kernel, **change}
    mlp = {**params["layers"]["mlp"], "down": down}
    tree = {**params, "layers": {**params["layers"], "mlp": mlp}}
    return models.forward(config, tree, tokens)[0]

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
    layer = jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"])
    x_BTD = run(layer, x_BTD, config.sliding_layers[index])
  expected, _ = models.forward(config, params, tokens, valid_BT=valid)
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
  x_BTD, tapes = models.forward(
    config, params, tokens, observe=lambda tape: tape
  )
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


@pytest.mark.parametrize(
  "drop", [dict(attention=[0]), dict(mlp=[1]), dict(attention=[1], mlp=[1])]
)
def test_a_closed_gate_is_a_zeroed_projection(small, drop):
  _, config, params = small
  tokens = random_tokens(2, 6)
  zeroed = jax.tree.map(lambda leaf: leaf, params)
  for group, name in (("attention", "output"), ("mlp", "down")):
    for index in drop.get(group, ()):
      leaf = zeroed["layers"][group][name]
      leaf["kernel"] = leaf["kernel"].at[index].set(0)
  gates = models.make_gates(config, **drop)
  got = logits(config, params, tokens, gates=gates)
  np.testing.assert_allclose(got, logits(config, zeroed, tokens), atol=1e-6)
  assert np.abs(got - logits(config, params, tokens)).max() > 0.1


def test_gates_refuse_layers_that_are_not_there(small):
  _, config, _ = small
  for index in (2, -1):
    with pytest.raises(ValueError, match=f"layer {index} to drop"):
      models.make_gates(config, attention=[index])


def test_candidates_are_vmapped_in_one_trace(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  candidates = [models.make_gates(config, attention=[i]) for i in range(2)]
  gates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def scores(gates, tokens):
    return jax.vmap(
      lambda g: models.forward(config, params, tokens, gates=g)[0]
    )(gates)

  got = scores(gates, tokens)
  scores(jax.tree.map(lambda g: 1 - g, gates), tokens + 0)
  for index, one in enumerate(candidates):
    expected, _ = models.forward(config, params, tokens, gates=one)
    np.testing.assert_allclose(got[index], expected, atol=2e-6)


@pytest.mark.parametrize("sublayer", ["attention", "mlp"])
def test_gates_and_weights_are_differentiable(small, sublayer):
  """jvp, vjp and central differences agree."""
  _, config, params = small
  tokens = random_tokens(1, 5)
  gates = models.make_gates(config)

  def loss(gate_L, kernel_IO):
    layers = jax.tree.map(lambda leaf: leaf, params["layers"])
    layers["mlp"]["up"]["kernel"] = (
      layers["mlp"]["up"]["kernel"].at[1].add(kernel_IO)
    )
    out, _ = models.forward(
      config,
      {**params, "layers": layers},
      tokens,
      gates=models.Gates(
        **{"attention": gates.attention, "mlp": gates.mlp, sublayer: gate_L}
      ),
    )
    return jnp.mean(jnp.square(out))

  at = (jnp.ones(2), jnp.zeros((32, 48)))
  rng = np.random.default_rng(0)
  along = tuple(jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in at)
  _, forward_mode = jax.jit(lambda: jax.jvp(loss, at, along))()
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(*at)
  reverse_mode = sum(jnp.vdot(g, a) for g, a in zip(gradient, along))
  step = 1e-2
  plus, minus = (
    jax.jit(loss)(*(a + s * d for a, d in zip(at, along)))
    for s in (step, -step)
  )
  np.testing.assert_allclose(forward_mode, reverse_mode, rtol=1e-4)
  np.testing.assert_allclose(
    forward_mode, (plus - minus) / (2 * step), rtol=2e-2
  )
  assert np.abs(gradient[0]).min() > 0 and np.abs(gradient[1]).max() > 0


def test_bfloat16_is_near_float32(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  x_BTD, _ = models.forward(config, rounded, tokens)
  z_BTV = logits(config, rounded, tokens)
  assert x_BTD.dtype == jnp.bfloat16 and z_BTV.dtype == jnp.float32
  expected = logits(config, params, tokens)
  error = np.abs(z_BTV - expected).max() / np.abs(expected).max()
  assert 1e-4 < error < 3e-2


def numpy_attention(query, key, value, mask):
  """Softmax(QK / sqrt(H)) V, a loop over rows and heads in float64."""
  batch, length, heads, width = query.shape
  out = np.zeros(query.shape)
  group = heads // key.shape[2]
  for b in range(batch):
    for n in range(heads):
      k, v = key[b, :, n // group], value[b, :, n // group]
      for t in range(length):
        scores = k.astype(np.float64) @ query[b, t, n] / np.sqrt(width)
        scores = np.where(mask[b, t], scores, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v / weights.sum()
  return out


@pytest.mark.parametrize(
  "length, kv_heads", [(1, 2), (64, 2), (130, 4), (130, 2), (130, 1)]
)
def test_forms_of_attention_agree(length, kv_heads):
  """Plain, chunked over two chunks and a rest, and NumPy."""
  rng = np.random.default_rng(0)
  query, key, value = (
    rng.normal(size=(2, length, heads, 8)).astype(np.float32)
    for heads in (4, kv_heads, kv_heads)
  )
  slots = jnp.arange(length)
  mask = attention.allowed(
    slots,
    slots,
    slots[None],
    slots[None],
    jnp.asarray(left_padded(length, max(1, length - 3))),
    40,
    True,
  )
  expected = numpy_attention(query, key, value, np.asarray(mask))
  for form in (attention.plain, attention.chunked):
    np.testing.assert_allclose(
      jax.jit(form)(query, key, value, mask), expected, atol=2e-6
    )
  last = jax.jit(attention.single)(query[:, -1:], key, value, mask[:, -1:])
  np.testing.assert_allclose(last, expected[:, -1:], atol=2e-6)


def test_allowed_by_hand():
  """Four slots, the first is padding, a window of two."""
  slots, positions = jnp.arange(4), jnp.asarray([[0, 0, 1, 2]])
  valid = jnp.asarray([[False, True, True, True]])

  def table(valid, window, sliding):
    mask = attention.allowed(
      slots, slots, positions, positions, valid, window, sliding
    )
    return np.asarray(mask[0], int).tolist()

  every = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
  real = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
  near = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
  assert table(None, None, False) == every
  assert table(valid, None, False) == real
  assert table(valid, 2, False) == real
  assert table(valid, 2, True) == near
  assert table(valid, 2, jnp.asarray(True)) == near
  assert table(valid, 2, jnp.asarray(False)) == real


@pytest.mark.parametrize("padded", [False, True])
def test_long_batches_are_cut_by_rows(small, padded, monkeypatch):
  """Four rows one by one, two by two, and all at once."""
  _, config, params = small
  tokens = random_tokens(4, 10)
  valid = left_padded(10, 9, 4, 1) if padded else None
  observe = lambda tape: (tape["down_in"], tape["key"])
  results = []
  for rows in (1, 20, 40):
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
