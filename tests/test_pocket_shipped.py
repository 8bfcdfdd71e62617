"""The pocket model that comes with the package."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.calibration import left_pad
from jaxprune.models import forward, generate, unembed
from jaxprune.pocket import scores, shipped
from jaxprune.pocket import tokenizer as tokenizer_lib


@pytest.fixture(scope="module")
def model():
  return checkpoints.load_params(shipped.FOLDER, jnp.float32)


def test_is_small_and_deep(model):
  config, _ = model
  assert (shipped.FOLDER / "model.safetensors").stat().st_size <= 8e6
  assert config.num_layers >= 12 and config.family == "llama"


def test_calibration_and_prompts_follow_from_the_seed():
  first = shipped.calibration_tokens(3, 64, seed=0)
  assert first.tokens.shape == (3, 64)
  assert first.hash == shipped.calibration_tokens(3, 64, seed=0).hash
  assert first.hash != shipped.calibration_tokens(3, 64, seed=1).hash
  rows = shipped.prompts(7).tokens
  assert len(set(rows)) == 7
  assert shipped.prompts(3).tokens == rows[:3]


def test_card_names_the_items_that_are_scored():
  card = (shipped.FOLDER / "README.md").read_text()
  assert shipped.tasks_hash() in card


def test_a_limit_takes_the_first_items_and_all_passages():
  whole = shipped.items("test")
  few = whole.first(3)
  for name in ("choose", "stories", "generate"):
    assert getattr(few, name) == getattr(whole, name)[:3]
  assert few.retrieve.queries == whole.retrieve.queries[:3]
  assert few.retrieve.relevant == whole.retrieve.relevant[:3]
  assert few.retrieve.passages == whole.retrieve.passages
  assert whole.first(None) == whole


def test_transformers_computes_the_same_logits(model):
  import torch
  import transformers

  config, params = model
  tokens = shipped.calibration_tokens(2, 40, seed=3).tokens
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    shipped.FOLDER, dtype=torch.float32, output_loading_info=True
  )
  assert not any(info.values())
  x, _ = forward(config, params, jnp.asarray(tokens))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  np.testing.assert_allclose(unembed(config, params, x), expected, atol=1e-4)


@pytest.mark.slow
def test_scored_answers_are_what_it_writes(model):
  """Teacher-forced scoring says right exactly where greedy text is right."""
  config, params = model
  reader = tokenizer_lib.load_tokenizer(shipped.FOLDER)
  items = shipped._tasks().generate[::16]
  right = scores.read_answers(config, params, reader, items).greedy
  assert right.mean() >= 0.8
  prompts = tuple(
    (tokenizer_lib.BOS, *tokenizer_lib.encode(reader, item.prompt))
    for item in items
  )
  tokens_BT, valid_BT = left_pad(prompts)
  text = generate(
    config,
    params,
    jnp.asarray(tokens_BT),
    valid_BT=jnp.asarray(valid_BT),
    max_new_tokens=110,
  )
  for row, (item, expected) in enumerate(zip(items, right)):
    written = text.tokens[row, : int(text.lengths[row])].tolist()
    answer = tokenizer_lib.encode(reader, item.answer) + [tokenizer_lib.EOS]
    assert (written == answer) == bool(expected)
