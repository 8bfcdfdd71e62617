"""Where RoPE depends on the length, a row of a batch is the row alone.

The oracle is stock transformers, one text at a time.
"""

import hf_models
import jax
import numpy as np
import pytest
import torch

from jaxprune import evaluation
from jaxprune.calibration import left_pad
from jaxprune.evaluation import embeddings, loglikelihoods
from jaxprune.models import decoding, forward, generation, unembed
from jaxprune.studies.subspace import items

ORIGINAL = 9
LENGTHS = (3, 8, 9, 10, 11, 16)  # below, at, and above the original context


@pytest.fixture(scope="module")
def long():
  """A model of one layer with longrope: stock, configuration, parameters."""
  return hf_models.build(
    "llama",
    num_hidden_layers=1,
    rope_parameters=dict(
      rope_type="longrope",
      rope_theta=10000.0,
      factor=4.0,
      short_factor=[1.0, 1.1, 1.3, 1.7],
      long_factor=[1.0, 2.0, 3.5, 9.0],
      original_max_position_embeddings=ORIGINAL,
    ),
  )


def texts():
  draw = np.random.default_rng(0)
  return [tuple(draw.integers(1, 61, size=n).tolist()) for n in LENGTHS]


def alone(model, text):
  """Stock logits float64 [T, V] of one text."""
  with torch.no_grad():
    return model(torch.tensor([text])).logits[0].double().numpy()


def log_softmax(z_TV):
  z_TV = z_TV - z_TV.max(axis=-1, keepdims=True)
  return z_TV - np.log(np.exp(z_TV).sum(axis=-1, keepdims=True))


def nats(model, text):
  """Stock nats of what follows the first token, from the tokens before it."""
  log_p_TV = log_softmax(alone(model, text[:-1]))
  return -log_p_TV[np.arange(len(text) - 1), text[1:]].sum()


def test_logits_of_unequal_rows_padded_on_either_side(long):
  model, config, params = long
  rows = texts()
  tokens, valid = left_pad(rows)
  right = np.zeros_like(tokens)
  for index, row in enumerate(rows):
    right[index, : len(row)] = row
  tokens = np.concatenate([tokens, right])
  valid = np.concatenate([valid, valid[:, ::-1]])
  got = jax.jit(
    lambda tokens, valid: unembed(
      config, params, forward(config, params, tokens, valid_BT=valid)[0]
    )
  )(tokens, valid)
  for index, row in enumerate([*rows, *rows]):
    np.testing.assert_allclose(
      got[index][valid[index]], alone(model, row), atol=2e-5
    )
  # Without this the factors could be equal and the test still pass.
  assert (
    abs(alone(model, rows[-1])[:3] - alone(model, rows[-1][:3])).max() > 0.01
  )


def test_scores_do_not_depend_on_padding_and_neighbours(long):
  model, config, params = long
  rows = texts()
  expected = [nats(model, row) for row in rows]
  got = evaluation.score_documents(config, params, rows, 64)
  np.testing.assert_allclose(got.nll, expected, rtol=1e-5)
  requests = [(row[:1], row[1:]) for row in rows]
  got = loglikelihoods.loglikelihoods(config, params, requests)
  np.testing.assert_allclose(-got.nats, expected, rtol=1e-5)


def test_embeddings_do_not_depend_on_padding_and_neighbours(long):
  model, config, params = long
  got = embeddings.embed_tokens(config, params, texts(), normalise=False)
  for vector_D, row in zip(got, texts()):
    with torch.no_grad():
      h_TD = model.model(torch.tensor([row])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(vector_D, h_TD.mean(axis=0), atol=2e-5)


def test_texts_do_not_depend_on_neighbours(long):
  """Greedy, across the original context; stock continues one at a time."""
  model, config, params = long
  rows, steps = texts(), 6
  tokens, valid = left_pad(rows)
  got = generation.generate(
    config, params, tokens, valid_BT=valid, max_new_tokens=steps
  )
  for index, row in enumerate(rows):
    want = model.generate(
      torch.tensor([row]), max_new_tokens=steps, do_sample=False
    )[0, len(row) :]
    np.testing.assert_array_equal(got.tokens[index], want.numpy())


def test_phi3_reads_a_row_again_when_it_outgrows_the_original_context():
  """Stock forgets the cache at that step; here each row at its own."""
  model, config, params = hf_models.build(
    "phi3",
    num_hidden_layers=1,
    original_max_position_embeddings=ORIGINAL,
    rope_parameters=dict(
      rope_type="longrope",
      rope_theta=10000.0,
      short_factor=[1.0, 1.1, 1.3, 1.7],
      long_factor=[1.0, 20.0, 35.0, 90.0],
      original_max_position_embeddings=ORIGINAL,
    ),
  )
  tokens, valid = left_pad(texts())
  got = generation.generate(
    config, params, tokens, valid_BT=valid, max_new_tokens=8
  )
  for tokens_R, row in zip(got.tokens, texts()):
    want = model.generate(
      torch.tensor([row]), max_new_tokens=8, do_sample=False
    )[0, len(row) :]
    np.testing.assert_array_equal(tokens_R, want.numpy())


def test_a_prompt_whose_last_token_is_read_again(long):
  """The keys before it have the rotation of the whole prompt, as in stock."""
  model, config, params = long
  tokens, valid = left_pad(texts())

  @jax.jit
  def run(tokens, valid):
    _, _, cache = decoding.prefill(
      config, params, tokens, valid_BT=valid, capacity=tokens.shape[1]
    )
    cache = decoding.step_back(cache)
    x, _, cache = decoding.decode_step(config, params, cache, tokens[:, -1:])
    return unembed(config, params, x[:, 0]), cache.valid

  got, after = run(tokens, valid)
  np.testing.assert_array_equal(after, valid)
  for z_V, row in zip(got, texts()):
    np.testing.assert_allclose(z_V, alone(model, row)[-1], atol=2e-5)


def test_options_are_read_apart_where_the_length_counts():
  """Spellings of one and three tokens after a head of two."""
  item = items.Item(
    head=(5, 6), spellings=(((7,),), ((8, 9, 10), (8, 11))), answer=0
  )
  shared = items.make_arrays([item])
  assert shared.tokens.tolist() == [[[5, 6, 8, 9]]]
  assert shared.lengths.tolist() == [[4]]
  assert shared.row.tolist() == [[[0, 0], [0, 0]]]
  apart = items.make_arrays([item], apart=True)
  assert apart.tokens.tolist() == [[[5, 6, 0, 0], [5, 6, 8, 0], [5, 6, 8, 9]]]
  assert apart.lengths.tolist() == [[2, 3, 4]]
  assert apart.row.tolist() == [[[0, 0], [2, 1]]]
