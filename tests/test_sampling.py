"""How a token is chosen: draws, ends and penalties."""

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import random_tokens

from jaxprune import models
from jaxprune.models import generation


@pytest.fixture(scope="module")
def small():
  """Of one layer, since decoding compiles each."""
  return hf_models.build("llama", num_hidden_layers=1)


def test_ends_are_those_of_stock(small):
  """Rows that end at different steps, and one that does not."""
  model, config, params = small
  tokens = random_tokens(4, 6)
  free = np.asarray(
    models.generate(config, params, tokens, max_new_tokens=10).tokens
  )
  ends = (int(free[0, 3]), int(free[1, 6]))
  expected = hf_models.greedy(model, tokens, 10, eos=list(ends))
  ours = models.generate(
    config,
    params,
    tokens,
    max_new_tokens=10,
    sampling=models.Sampling(eos_ids=ends),
  )
  width = expected.shape[1]
  np.testing.assert_array_equal(ours.tokens[:, :width], expected)
  for row, (tokens_M, length) in enumerate(
    zip(np.asarray(ours.tokens), np.asarray(ours.lengths))
  ):
    first = [m for m in range(10) if free[row, m] in ends]
    assert length == (first[0] + 1 if first else 10)
    np.testing.assert_array_equal(tokens_M[:length], free[row, :length])
    assert (tokens_M[length:] == config.pad_id).all()
  assert ours.lengths.min() <= 4 < ours.lengths.max()


def test_repetition_penalty_is_that_of_stock(small):
  """Every token of the row counts, padding does not."""
  torch = pytest.importorskip("torch")
  model, config, params = small
  prompts = np.array([[5, 9, 9, 30, 7], [11, 4, 8, 2, 6]])
  valid = np.array([[False, False, True, True, True], [True] * 5])
  for penalty in (1.7, 0.6):
    expected = [
      model.generate(
        torch.tensor(row[real][None]),
        max_new_tokens=8,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=0,
      )[0, real.sum() :].tolist()
      for row, real in zip(prompts, valid)
    ]
    sampling = generation.Sampling(repetition_penalty=penalty, eos_ids=())
    got = generation.generate(
      config,
      params,
      prompts,
      max_new_tokens=8,
      valid_BT=valid,
      sampling=sampling,
    )
    assert got.tokens.tolist() == expected


def test_sampling_is_repeatable_and_follows_the_key(small):
  _, config, params = small
  tokens = random_tokens(2, 6)
  sample = lambda seed: np.asarray(
    models.generate(
      config,
      params,
      tokens,
      max_new_tokens=8,
      sampling=models.Sampling(temperature=1.5),
      key=jax.random.key(seed),
    ).tokens
  )
  np.testing.assert_array_equal(sample(0), sample(0))
  assert (sample(0) != sample(1)).any()
  greedy = models.generate(config, params, tokens, max_new_tokens=8)
  for limits in (dict(top_k=1), dict(top_p=1e-6)):
    narrow = models.generate(
      config,
      params,
      tokens,
      max_new_tokens=8,
      sampling=models.Sampling(temperature=1.5, **limits),
      key=jax.random.key(0),
    )
    np.testing.assert_array_equal(narrow.tokens, greedy.tokens)


def test_choose_takes_the_first_of_equals():
  z_BV = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
  assert models.choose(z_BV).tolist() == [1, 0]


@pytest.mark.parametrize(
  "limits, kept",
  [
    (dict(), [0, 1, 2, 3]),
    (dict(top_k=2), [0, 1]),
    (dict(top_k=3), [0, 1, 2, 3]),  # 2 and 3 tie
    (dict(top_k=9), [0, 1, 2, 3]),
    (dict(top_p=0.39), [0]),
    (dict(top_p=0.41), [0, 1]),
    (dict(top_p=0.71), [0, 1, 2, 3]),
    (dict(top_k=2, top_p=0.56), [0]),  # 0.4 / 0.7 reaches it
    (dict(top_k=2, top_p=0.58), [0, 1]),
  ],
)
def test_choose_draws_from_what_is_kept(limits, kept):
  """Frequencies over p = .4 .3 .15 .15, renormalised, within 4 deviations."""
  p_V = np.array([0.4, 0.3, 0.15, 0.15])
  z_BV = jnp.broadcast_to(2.0 * jnp.log(jnp.asarray(p_V)), (20000, 4))
  tokens = models.choose(
    z_BV.astype(jnp.float32), jax.random.key(0), temperature=2.0, **limits
  )
  expected = np.where(np.isin(np.arange(4), kept), p_V, 0)
  expected = expected / expected.sum()
  counts = np.bincount(np.asarray(tokens), minlength=4) / 20000
  deviation = np.sqrt(expected * (1 - expected) / 20000)
  assert (np.abs(counts - expected) <= 4 * deviation).all(), counts


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(temperature=-1.0), "temperature=-1.0"),
    (dict(top_k=-1), "top_k=-1"),
    (dict(top_p=0.0), "top_p=0.0"),
    (dict(top_p=1.5), "top_p=1.5"),
  ],
)
def test_sampling_refuses(fields, words):
  with pytest.raises(ValueError) as caught:
    models.Sampling(**fields)
  assert words in str(caught.value) and "\n" not in str(caught.value)
