"""Masks that no score can beat, in every form of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune.models import EncoderConfig, attention, decoder, encoder
from jaxprune.probes import transitions
from tests.test_decoder import left_padded

LENGTH, HEADS, WIDTH = 5, 2, 4
CAUSAL = np.tril(np.ones((1, LENGTH, LENGTH), bool))


def single(query, key, value, mask):
  """`attention.single` of every position in turn."""
  rows = [
    attention.single(query[:, t : t + 1], key, value, mask[:, t : t + 1])
    for t in range(LENGTH)
  ]
  return jnp.concatenate(rows, axis=1)


def on_history(query, key, value, mask):
  """The same causal attention; the own key is given apart."""
  before = mask & ~np.eye(LENGTH, dtype=bool)[None]
  return transitions.attend_to_history(query, key, value, key, value, before)


# Outside of jit every operation is a program of its own.
_allowed = jax.jit(attention.allowed, static_argnums=5)


FORMS = {
  "plain": attention.plain,
  "chunked": attention.chunked,
  "single": single,
  "history": on_history,
}


def low_scores(magnitude):
  """Queries, keys and values whose scores are all about -magnitude."""
  draw = np.random.default_rng(0)
  shape = (1, LENGTH, HEADS, WIDTH)
  size = np.sqrt(magnitude)
  return (
    np.asarray(size * (1 + draw.random(shape)), np.float32),
    np.asarray(-size * (1 + draw.random(shape)), np.float32),
    draw.normal(size=shape).astype(np.float32),
  )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("magnitude", [1.0, 1e31, 1e44])
def test_no_score_is_lower_than_a_masked_key(name, magnitude):
  """Against NumPy in float64; scores beyond float32 count as its least."""
  query, key, value = low_scores(magnitude)
  scores = np.einsum("BTNH,BSNH->BNTS", *map(np.float64, (query, key))) / 2
  scores = np.maximum(scores, np.finfo(np.float32).min)
  scores = np.where(CAUSAL[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  expected = np.einsum("BNTS,BSNH->BTNH", weights, value)
  np.testing.assert_allclose(
    jax.jit(FORMS[name])(query, key, value, CAUSAL), expected, atol=1e-5
  )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("magnitude", [1e31, 1e44])
def test_derivatives_with_low_scores_are_finite(name, magnitude):
  inputs = low_scores(magnitude)
  read = lambda *args: FORMS[name](*args, jnp.asarray(CAUSAL))

  @jax.jit
  def derivatives(*inputs):
    ones = tuple(map(jnp.ones_like, inputs))
    gradients = jax.grad(lambda *args: read(*args).sum(), (0, 1, 2))(*inputs)
    return *jax.jvp(read, inputs, ones), *gradients

  out, tangent, *gradients = derivatives(*inputs)
  for array in (out, tangent, *gradients):
    assert np.isfinite(array).all()
  # What position 0 reads is the value at 0, whatever the scores.
  np.testing.assert_array_equal(tangent[:, 0], 1.0)


def test_a_row_without_keys_is_finite():
  scores = jnp.asarray([[-1e35, -2e35, 3.0], [1.0, 2.0, 3.0]])
  mask = jnp.asarray([[False, False, False], [True, False, True]])
  weights, tangent = jax.jit(
    lambda scores: jax.jvp(
      lambda scores: attention.softmax(scores, mask),
      (scores,),
      (jnp.ones_like(scores),),
    )
  )(scores)
  assert np.isfinite(weights).all() and np.isfinite(tangent).all()
  np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
  assert weights[1, 1] == 0


def test_encoder_reads_no_padding_however_low_the_scores():
  config = EncoderConfig.from_hf(
    dict(
      model_type="bert",
      vocab_size=9,
      hidden_size=8,
      num_hidden_layers=1,
      num_attention_heads=2,
      intermediate_size=8,
      max_position_embeddings=8,
    )
  )
  module = encoder.Attention(config)
  x_BTD = np.random.default_rng(0).random((2, 4, 8)).astype(np.float32)
  params = jax.jit(module.init)(jax.random.key(0), x_BTD)["params"]
  params = {**params}
  for name, size in (("query", 1e16), ("key", -1e16)):
    params[name] = {**params[name], "kernel": jnp.full((8, 8), size)}
  valid = np.array([[True, True, False, False], [False] * 4])
  other = np.where(valid[..., None], x_BTD, 7.0).astype(np.float32)
  run = jax.jit(module.apply)
  one, two = (run({"params": params}, x, valid)[0] for x in (x_BTD, other))
  np.testing.assert_array_equal(one[0, :2], two[0, :2])
  assert np.isfinite(one).all()


def test_the_decoder_reads_no_future_however_low_the_scores():
  """A later token changes nothing before it, with padding on either side."""
  config = tiny_llama(1)
  params = jax.jit(lambda: decoder.init(config, jax.random.key(0)))()
  attend = dict(params["layers"]["attention"])
  for name, sign in (("query", 1.0), ("key", -1.0)):
    shape = attend[name]["kernel"].shape
    attend[name] = {"kernel": jnp.full(shape, sign * 1e16)}
  params = {**params, "layers": {**params["layers"], "attention": attend}}
  valid = np.array(
    [[True] * 6, [False] * 2 + [True] * 4, [True] * 4 + [False] * 2]
  )
  tokens = np.array([[3, 4, 5, 6, 7, 8]] * 3)
  changed = np.array([[3, 4, 5, 9, 10, 11]] * 3)
  run = jax.jit(
    lambda tokens: decoder.forward(config, params, tokens, valid_BT=valid)[0]
  )
  first, second = run(tokens), run(changed)
  np.testing.assert_array_equal(first[:, :3], second[:, :3])
  assert np.isfinite(first).all()


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
  slots = np.arange(length)
  mask = _allowed(
    slots,
    slots,
    slots[None],
    slots[None],
    left_padded(length, max(1, length - 3)),
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
