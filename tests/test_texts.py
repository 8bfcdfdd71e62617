"""Dense texts: what is read back, which position predicts what, and the end."""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params, tiny_llama

from jaxprune.models.decoder import final_norm, forward, unembed
from jaxprune.studies import texts

CONFIG = tiny_llama(max_positions=32)
PROMPTS = ((3, 4, 5), (6,), (7, 8))
STEPS = 6


@pytest.fixture(scope="module")
def params():
  return random_params(CONFIG, np.random.default_rng(0), 0.5)


def test_batches_of_one_shape_read_back_what_was_chosen(params):
  writing = texts.Writing(max_new_tokens=STEPS, batch=2)
  first, last = texts.dense_texts(CONFIG, params, PROMPTS, writing)
  for text in (first, last):
    dims = chex.Dimensions(B=2, R=STEPS, S=3 + STEPS - 1, T=3)
    chex.assert_shape(text.chosen, dims["BR"])
    chex.assert_shape(text.rows, dims["BR"])
    chex.assert_shape(text.alive, dims["BR"])
    chex.assert_shape([text.tokens, text.valid], dims["BS"])
    chex.assert_shape([text.prompt_tokens, text.prompt_valid], dims["BT"])
    x_BSD, _ = forward(
      CONFIG, params, jnp.asarray(text.tokens), valid_BT=jnp.asarray(text.valid)
    )
    z_BSV = unembed(CONFIG, params, final_norm(CONFIG, params, x_BSD), "raw")
    predicted_BR = np.take_along_axis(
      np.asarray(z_BSV.argmax(-1)), text.rows, axis=1
    )
    np.testing.assert_array_equal(predicted_BR, text.chosen)
    assert text.alive[: text.count].all() and not text.alive[text.count :].any()
  assert (first.prompts.tolist(), first.count) == ([0, 1], 2)
  assert (last.prompts.tolist(), last.count) == ([2, 2], 1)
  assert first.valid[1].tolist() == [False] * 2 + [True] * STEPS
  assert first.prompt_tokens[0].tolist() == [3, 4, 5]


def test_behind_the_end_of_a_text_nothing_is_alive(params):
  (free,) = texts.dense_texts(
    CONFIG, params, PROMPTS[:1], texts.Writing(max_new_tokens=STEPS, batch=1)
  )
  ends = dataclasses.replace(CONFIG, eos_ids=(int(free.chosen[0, 2]),))
  (text,) = texts.dense_texts(
    ends, params, PROMPTS[:1], texts.Writing(max_new_tokens=STEPS, batch=1)
  )
  end = int(np.argmax(free.chosen[0] == free.chosen[0, 2]))
  assert text.lengths.tolist() == [end + 1]
  assert text.alive[0].tolist() == [step <= end for step in range(STEPS)]


def test_draws_follow_the_seed_and_the_prompt(params):
  def chosen(seed):
    writing = texts.Writing(
      max_new_tokens=STEPS, temperature=1.0, batch=1, seed=seed
    )
    found = texts.dense_texts(CONFIG, params, PROMPTS, writing)
    return [text.chosen.tolist() for text in found]

  assert chosen(0) == chosen(0) != chosen(1)


def test_a_prompt_that_does_not_fit_is_refused(params):
  writing = texts.Writing(max_new_tokens=30)
  with pytest.raises(ValueError, match="exceed the model's 32 positions"):
    next(texts.dense_texts(CONFIG, params, PROMPTS, writing))
