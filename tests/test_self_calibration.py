"""Text that a model writes for its own calibration."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer
from jaxprune.calibration.tokenizer import encode
from jaxprune.models import EncoderConfig, decoder
from jaxprune.studies import self_calibration
from jaxprune.studies.comparison import asked, measure
from jaxprune.studies.kept import Kept


@pytest.fixture(scope="module")
def writer(two_layers):
  source = checkpoints.open_checkpoint(two_layers)
  return source, measure.load_model(source)


def planned(source, num_samples=3, seq_len=12, **options):
  return self_calibration.plan(
    source, **dict(num_samples=num_samples, seq_len=seq_len, seed=0) | options
  )


def test_texts_have_one_length_and_a_seed(writer):
  """Where every token ends a text, the texts go on all the same."""
  source, model = writer
  every = tuple(range(model.config.vocab_size))
  ends = dataclasses.replace(
    model, config=dataclasses.replace(model.config, eos_ids=every)
  )
  told = []
  texts = planned(source)
  ids = self_calibration.write(
    source, ends, texts, lambda done, total: told.append((done, total))
  )
  assert ids.shape == (3, 12) and ids.dtype == np.int32
  assert (ids[:, 0] == source.config.bos_id).all()
  assert len({row.tobytes() for row in ids}) == 3
  assert told[-1] == (3, 3)
  np.testing.assert_array_equal(
    ids, self_calibration.write(source, model, texts)
  )
  other = self_calibration.write(source, model, planned(source, seed=1))
  assert (ids != other).any()


def test_what_was_written_is_kept(writer, tmp_path, monkeypatch):
  """A run that goes on reads its text, and a text that was read stays it."""
  source, model = writer
  texts, path = planned(source), tmp_path / "kept.json"
  first = self_calibration.written(source, texts, Kept(path), model=model)
  monkeypatch.setattr(self_calibration, "write", None)
  again = self_calibration.written(source, texts, Kept(path))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  described = self_calibration.describe(texts)
  assert described.items() <= self_calibration.describe(again).items()
  assert described["sequences"] == 3
  assert self_calibration.written(source, again, Kept(None)) is again


def test_several_processes_do_not_write(writer, monkeypatch):
  source, model = writer
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="--calibration=self: one process"):
    self_calibration.written(source, planned(source), Kept(None), model=model)


def test_an_encoder_writes_nothing(writer):
  config = EncoderConfig(
    **dict(family="bert", num_layers=1, embed_dim=4, mlp_dim=8, num_heads=1),
    **dict(vocab_size=8, num_token_types=2, max_positions=16),
    **dict(norm_eps=1e-6, activation="gelu"),
  )
  with pytest.raises(ValueError, match="an encoder writes no text"):
    planned(dataclasses.replace(writer[0], config=config))


@pytest.mark.slow
def test_a_model_is_pruned_with_its_own_text(two_layers, tmp_path):
  command = (
    *("prune", two_layers, f"--out={tmp_path}/pruned", "--sparsity=0.5"),
    *("--calibration=self", "--num_samples=2", "--seq_len=12"),
  )
  refused = scripts.call(*command, "--sampling=joined")
  assert refused.returncode == 1
  assert "--sampling=joined: says how text is cut" in refused.stderr
  done = scripts.call(*command)
  assert done.returncode == 0, done.stderr
  run = json.loads((tmp_path / "pruned" / "run.json").read_text())
  assert run["calibration"] == {
    **{"source": "self", "sampling": "self", "seed": 0},
    **{"sequences": 2, "length": 12},
  }


def test_the_first_token_is_drawn_at_temperature_one(writer):
  """Frequencies of 512 draws lie within five standard errors of p."""
  source, model = writer
  count = 512
  ids = self_calibration.write(
    source, model, planned(source, num_samples=count, seq_len=2)
  )

  @jax.jit
  def probabilities(params, token):
    x_BTD, _ = decoder.forward(model.config, params, token)
    return jax.nn.softmax(decoder.unembed(model.config, params, x_BTD[0, 0]))

  p_V = np.asarray(probabilities(model.params, ids[:1, :1]), float)
  seen_V = np.bincount(ids[:, 1], minlength=len(p_V)) / count
  error_V = np.sqrt(p_V * (1 - p_V) / count)
  assert p_V.max() < 0.9  # one sure token would show no temperature
  assert (np.abs(seen_V - p_V) < 5 * error_V + 1 / count).all()


@pytest.mark.parametrize(
  "before, begins", [("the sun ", True), ("", False)], ids=["turn", "none"]
)
def test_a_conversation_begins_before_the_words_of_the_user(
  writer, monkeypatch, before, begins
):
  source, _ = writer
  monkeypatch.setattr(
    asked, "template", lambda *_: lambda words: f"{before}{words} is"
  )
  ids = encode(load_tokenizer(source.folder), before, False)
  start = tuple(ids) if begins else (source.config.bos_id,)
  assert planned(source).start == start
  assert len(start) >= 1


def test_a_template_that_changes_the_words(writer, monkeypatch):
  source, _ = writer
  monkeypatch.setattr(asked, "template", lambda *_: str.upper)
  with pytest.raises(ValueError, match="changes what a user says.*--chat=no"):
    planned(source)


@pytest.mark.parametrize(
  "changes, options, said",
  [
    ({}, {"seq_len": 10**6}, "--seq_len=1000000 is longer than the context"),
    ({}, {"seq_len": 1}, "--seq_len=1: every text begins with 1 tokens"),
    ({"bos_id": None, "eos_ids": ()}, {}, "names no bos_token_id"),
  ],
  ids=["long", "short", "no beginning"],
)
def test_what_cannot_be_written(writer, changes, options, said):
  source, _ = writer
  changed = dataclasses.replace(
    source, config=dataclasses.replace(source.config, **changes)
  )
  with pytest.raises(ValueError, match=said):
    planned(changed, **options)


def test_a_text_ends_where_another_begins(writer):
  """Where no token begins a text, the one that ends it does."""
  source, _ = writer
  config = dataclasses.replace(source.config, bos_id=None, eos_ids=(7, 3))
  changed = dataclasses.replace(source, config=config)
  assert planned(changed).start == (7,)
