"""Cached generation against stock transformers, and against no cache."""

import dataclasses
import functools

import chex
import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import left_padded, random_tokens

from jaxprune import models
from jaxprune.models import generation

LONG = dict(
  rope_type="longrope",
  factor=4.0,
  short_factor=[1.0, 1.1, 1.3, 1.7],
  long_factor=[1.0, 2.0, 3.5, 9.0],
  original_max_position_embeddings=12,
  rope_theta=100.0,
)


@pytest.fixture(scope="module")
def small():
  return hf_models.build("llama")


def uncached_greedy(config, params, tokens, steps, valid=None, gates=None):
  """Greedy by a whole forward per token."""
  tokens = np.asarray(tokens)
  batch = len(tokens)
  whole = np.pad(tokens, ((0, 0), (0, steps)))
  shape = (batch, steps)
  # Padding on the right of a causal model changes nothing before it.
  valid = np.concatenate(
    [
      np.ones_like(tokens, bool) if valid is None else valid,
      np.ones(shape, bool),
    ],
    axis=1,
  )
  z_of = jax.jit(
    lambda t: models.unembed(
      config,
      params,
      models.forward(config, params, t, valid_BT=valid, gates=gates)[0],
    )
  )
  for step in range(tokens.shape[1], whole.shape[1]):
    whole[:, step] = np.asarray(z_of(whole)[:, step - 1]).argmax(-1)
  return whole[:, tokens.shape[1] :]


@pytest.mark.parametrize(
  "family, fields",
  [
    ("llama", dict(rope_parameters=LONG)),
    ("mistral", dict(sliding_window=4, tie_word_embeddings=True)),
    (
      "qwen2",
      dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    ("qwen3", dict(num_key_value_heads=1)),
  ],
)
def test_greedy_is_that_of_stock(family, fields):
  """Left-padded batch; windows and the original context are outgrown."""
  model, config, params = hf_models.build(family, **fields)
  lengths = (8, 5, 1)
  tokens, valid = random_tokens(3, 8), left_padded(*lengths)
  ours = models.generate(
    config, params, tokens, valid_BT=valid, max_new_tokens=12
  )
  # One row at a time: stock longrope goes by the longest row of a batch.
  expected = [
    hf_models.greedy(model, row[None, 8 - length :], 12)[0]
    for row, length in zip(tokens, lengths)
  ]
  np.testing.assert_array_equal(ours.tokens, expected)
  np.testing.assert_array_equal(ours.lengths, [12] * 3)


def test_the_configs_end_is_the_default(small):
  _, config, params = small
  tokens = random_tokens(1, 6)
  free = models.generate(config, params, tokens, max_new_tokens=6)
  end = int(free.tokens[0, 2])
  ending = dataclasses.replace(config, eos_ids=(end,), pad_id=None)
  ours = models.generate(ending, params, tokens, max_new_tokens=6)
  assert ours.lengths[0] <= 3
  # Without a pad id the rest is the end itself.
  assert (np.asarray(ours.tokens[0])[int(ours.lengths[0]) - 1 :] == end).all()
  never = models.generate(
    ending,
    params,
    tokens,
    max_new_tokens=6,
    sampling=models.Sampling(eos_ids=()),
  )
  np.testing.assert_array_equal(never.tokens, free.tokens)


def test_the_loop_stops_when_all_have_ended(small):
  """A step that is not run cannot fail: count the ones that are."""
  _, config, params = small
  tokens = random_tokens(2, 6)
  steps = []
  original = generation.choose

  def counting(z_BV, *args, **kwargs):
    jax.debug.callback(lambda: steps.append(1))
    return original(z_BV, *args, **kwargs)

  generation.choose = counting
  try:
    models.generate(
      config,
      params,
      tokens,
      max_new_tokens=9,
      sampling=models.Sampling(eos_ids=tuple(range(config.vocab_size))),
    )
    jax.effects_barrier()
  finally:
    generation.choose = original
  assert len(steps) == 1


@pytest.mark.parametrize(
  "drop", [dict(attention=[0, 1]), dict(attention=[0], mlp=[0]), dict(mlp=[1])]
)
def test_cache_is_right_for_every_drop_list(small, drop):
  _, config, params = small
  gates = models.make_gates(config, **drop)
  tokens, valid = random_tokens(2, 6), left_padded(6, 3)
  ours = models.generate(
    config, params, tokens, valid_BT=valid, max_new_tokens=6, gates=gates
  )
  np.testing.assert_array_equal(
    ours.tokens, uncached_greedy(config, params, tokens, 6, valid, gates)
  )


SLIDING = dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)


@pytest.mark.parametrize(
  "family, fields, separate",
  [("qwen2", SLIDING, False), ("qwen2", SLIDING, True), ("qwen3", {}, True)],
)
def test_steps_give_the_residuals_of_forward(family, fields, separate):
  """Prefill 4, then 1, then 3 at once, in both forms of the layers."""
  _, config, params = hf_models.build(family, **fields)
  tokens, valid = random_tokens(2, 8), left_padded(8, 6)
  observe = lambda tape: tape["down_in"]
  expected, observed = jax.jit(
    lambda params: models.forward(
      config, params, tokens, valid_BT=valid, observe=observe
    )
  )(params)
  form = models.unstack(params) if separate else params

  def run(tokens, valid):
    x_BTD, seen, cache = models.prefill(
      config,
      form,
      tokens[:, :4],
      capacity=9,
      valid_BT=valid[:, :4],
      observe=observe,
    )
    parts = [(x_BTD, seen)]
    for start, end in ((4, 5), (5, 8)):
      x_BTD, seen, cache = models.decode_step(
        config, form, cache, tokens[:, start:end], observe=observe
      )
      parts.append((x_BTD, seen))
    return parts, cache

  parts, cache = jax.jit(run)(tokens, valid)
  x_BTD = np.concatenate([p[0] for p in parts], axis=1)
  seen = np.concatenate([p[1] for p in parts], axis=2)
  np.testing.assert_allclose(x_BTD[valid], expected[valid], atol=1e-5)
  np.testing.assert_allclose(seen[:, valid], observed[:, valid], atol=1e-5)
  assert int(cache.length) == 8
  np.testing.assert_array_equal(cache.valid[:, :8], valid)
  assert not cache.valid[:, 8:].any()
  np.testing.assert_array_equal(cache.positions[1], [0, 0, 0, 1, 2, 3, 4, 5, 0])


def test_both_forms_generate_the_same(small, monkeypatch):
  """Separate layers, and the stack that accelerators decode with."""
  _, config, params = small
  tokens = random_tokens(2, 6)
  run = functools.partial(
    models.generate, config, tokens_BT=tokens, max_new_tokens=5
  )
  expected = run(params)
  chex.assert_trees_all_equal(run(models.unstack(params)), expected)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  ends = models.Sampling(eos_ids=(60, 60))
  chex.assert_trees_all_equal(run(params, sampling=ends), expected)


def test_unstacked_layers_are_views():
  """One copy of the weights; 32 * 48 floats keep every layer aligned."""
  _, config, params = hf_models.build("llama")
  separate = models.unstack(params)
  assert models.unstack(separate) is separate
  for index, layer in enumerate(separate["layers"]):
    chex.assert_trees_all_equal(
      layer, jax.tree.map(lambda leaf: leaf[index], params["layers"])
    )
    whole = params["layers"]["mlp"]["up"]["kernel"]
    part = layer["mlp"]["up"]["kernel"]
    assert part.unsafe_buffer_pointer() == (
      whole.unsafe_buffer_pointer() + index * part.nbytes
    )


def test_one_trace_for_one_shape():
  _, config, params = hf_models.build("llama", num_hidden_layers=1)
  tokens = random_tokens(2, 6)
  traced = generation._generate._cache_size
  models.generate(config, params, tokens, max_new_tokens=4)
  before = traced()
  models.generate(config, params, tokens + 1, max_new_tokens=4)
  assert traced() == before
  run = functools.partial(
    models.generate, config, params, tokens, max_new_tokens=4
  )
  sampled = functools.partial(models.Sampling, temperature=0.5)
  run(sampling=sampled(top_k=3), key=jax.random.key(0))
  assert traced() == before + 1
  run(
    sampling=models.Sampling(temperature=0.9, top_p=0.5), key=jax.random.key(1)
  )
  assert traced() == before + 1
  for end in (7, 8):
    run(sampling=models.Sampling(eos_ids=(end,)))
  assert traced() == before + 2
  for drop in ({"attention": [0]}, {"mlp": [0]}):
    run(gates=models.make_gates(config, **drop))
  assert traced() == before + 3


def test_bfloat16_generates(small):
  _, config, params = small
  rounded = jax.tree.map(
    lambda leaf: jnp.asarray(np.asarray(leaf).astype(jnp.bfloat16)), params
  )
  tokens = random_tokens(2, 6)
  ours = models.generate(config, rounded, tokens, max_new_tokens=3)
  np.testing.assert_array_equal(
    ours.tokens, uncached_greedy(config, rounded, tokens, 3)
  )


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(max_new_tokens=59), "exceed the model's 64 positions"),
    (dict(max_new_tokens=0), "max_new_tokens=0"),
    (dict(tokens_BT=[[61]]), "vocabulary has 61"),
    (dict(tokens_BT=[[-1]]), "vocabulary has 61"),
    (dict(tokens_BT=[1, 2]), "shape"),
    (dict(tokens_BT=np.zeros((1, 0), int)), "shape"),
    (dict(valid_BT=np.ones((2, 5), bool)), "valid of shape"),
    (dict(valid_BT=np.arange(6)[None] < [[6], [3]]), "pad on the left"),
    (dict(valid_BT=np.zeros((2, 6), bool)), "pad on the left"),
    (dict(sampling=models.Sampling(temperature=1.0)), "key=jax.random.key"),
  ],
)
def test_generate_refuses(small, fields, words):
  _, config, params = small
  fields = {"tokens_BT": random_tokens(2, 6), "max_new_tokens": 4, **fields}
  with pytest.raises(ValueError) as caught:
    models.generate(config, params, **fields)
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_padding_does_not_count_as_positions(small):
  """6 slots, 3 tokens: 61 more fit into 64 positions."""
  _, config, params = small
  with pytest.raises(ValueError, match="exceed"):
    models.generate(
      config,
      params,
      random_tokens(1, 6),
      max_new_tokens=59,
      valid_BT=left_padded(6),
    )
  generation._checked_prompts(
    config, random_tokens(1, 6), np.arange(6)[None] >= 3, 61
  )
  with pytest.raises(ValueError, match="prompt of 3 tokens"):
    generation._checked_prompts(
      config, random_tokens(1, 6), np.arange(6)[None] >= 3, 62
    )


def test_a_prompt_longer_than_the_cache_is_refused(small):
  _, config, params = small
  with pytest.raises(ValueError, match="capacity=3"):
    models.prefill(config, params, random_tokens(1, 4), capacity=3)
