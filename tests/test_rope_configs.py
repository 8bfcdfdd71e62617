"""Frequencies of RoPE that a configuration asks for."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxprune.models import rope
from tests.test_config import LLAMA3, LONG, SCALINGS, TINY, YARN, read, stock


@pytest.mark.parametrize("value", [None, False])
def test_yarn_without_truncation(value):
  assert read(rope_scaling=dict(YARN, truncate=value)) == read(
    rope_scaling=dict(YARN, truncate=False)
  )


@pytest.mark.parametrize(
  "scaling",
  [
    LLAMA3,
    dict(LONG, factor=2.0, attention_factor=1.25),
    dict(LONG, factor=1.0),
    dict(rope_type="linear", factor=2.5),
  ],
)
def test_original_length_of_zero_on_top(scaling):
  """Stock divides all frequencies of llama3, and takes the long factors."""
  fields = dict(
    TINY,
    max_position_embeddings=256,
    rope_parameters=dict(scaling, rope_theta=5e4),
    original_max_position_embeddings=0,
  )
  ours = read(**fields)
  theirs = stock("llama", json.loads(json.dumps(fields)))
  expected, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
    theirs, torch.device("cpu"), seq_len=1
  )
  np.testing.assert_allclose(rope.inv_freq(ours, 1), expected, rtol=1e-6)
  np.testing.assert_allclose(rope.attention_scale(ours.rope), scale, rtol=3e-7)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [40, 200, 900])
def test_frequencies_are_those_of_transformers(name, length):
  """Relative error of frequencies and of the attention scale below 3e-7."""
  scaling = SCALINGS[name]
  fields = dict(
    TINY,
    max_position_embeddings=256,
    rope_parameters=dict(scaling, rope_theta=5e4),
  )
  theirs = stock("llama", fields)
  expected, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
    theirs, torch.device("cpu"), seq_len=length
  )
  ours = read(**fields)
  for function in (rope.inv_freq, jax.jit(rope.inv_freq, static_argnums=0)):
    np.testing.assert_allclose(
      function(ours, length), expected.numpy(), rtol=1e-6, atol=0
    )
  np.testing.assert_allclose(rope.attention_scale(ours.rope), scale, rtol=3e-7)


def test_long_context_changes_what_it_should():
  """Without this, lengths could be ignored and the test above still pass."""
  for name, scaling in SCALINGS.items():
    config = read(max_position_embeddings=256, rope_parameters=scaling)
    short, long = (np.asarray(rope.inv_freq(config, n)) for n in (40, 900))
    moves = scaling["rope_type"] in ("dynamic", "longrope")
    assert np.array_equal(short, long) == (not moves), name


@pytest.mark.parametrize("name", SCALINGS)
def test_layouts_of_transformers_4_and_5_agree(name):
  scaling = dict(SCALINGS[name])
  new = read(
    max_position_embeddings=256, rope_parameters=dict(scaling, rope_theta=5e4)
  )
  old = read(max_position_embeddings=256, rope_theta=5e4, rope_scaling=scaling)
  oldest = dict(scaling, type=scaling["rope_type"])
  del oldest["rope_type"]
  if oldest["type"] == "longrope":
    oldest["type"] = "su"
  assert (
    new
    == old
    == read(max_position_embeddings=256, rope_theta=5e4, rope_scaling=oldest)
  )


def test_plain_rope_in_every_spelling():
  expected = read().rope
  assert expected.kind == "default" and expected.theta == 10000.0
  for fields in (
    {"rope_theta": 10000},
    {"rope_scaling": None},
    {"rope_parameters": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    {"rope_scaling": {"type": "default", "rope_type": "default"}},
  ):
    assert read(**fields).rope == expected


def test_original_length_of_the_outer_level_wins():
  """As in the reference, which old Phi-3 files rely on."""
  scaling = dict(LONG, original_max_position_embeddings=64)
  config = read(
    rope_scaling=scaling,
    original_max_position_embeddings=32,
    max_position_embeddings=256,
  )
  assert dict(config.rope.scaling)["original_max_position_embeddings"] == 32
