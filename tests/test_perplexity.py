"""Perplexity against its definition and against stock transformers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import random_params

from jaxprune import checkpoints, statistics
from jaxprune.calibration import encode, load_tokenizer, read_documents
from jaxprune.evaluation import perplexity
from jaxprune.models import ModelConfig, forward, init, make_gates, unembed


def tiny(**changes):
  config = ModelConfig.from_hf(
    dict(
      model_type="llama",
      vocab_size=40,
      hidden_size=16,
      intermediate_size=24,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=64,
    )
  )
  return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def model():
  config = tiny()
  # Larger weights than at initialisation, so that contexts matter.
  return config, random_params(config, np.random.default_rng(0))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens_BT, gates):
  x_BTD, _ = forward(config, params, tokens_BT, gates=gates)
  return unembed(config, params, x_BTD)


def direct(model, ids, gates=None):
  """Every logit at once, float64 softmax; nll of tokens 1.. of one row."""
  # One length for all, so one program; what is added is never looked at.
  padded_BT = np.pad(ids, (0, 64 - len(ids)))[None]
  z_BTV = logits(*model, padded_BT, gates)
  z_TV = np.asarray(z_BTV[0, : len(ids)], np.float64)
  z_TV = z_TV - z_TV.max(-1, keepdims=True)
  log_p_TV = z_TV - np.log(np.exp(z_TV).sum(-1, keepdims=True))
  return -log_p_TV[np.arange(len(ids) - 1), np.asarray(ids)[1:]]


def ids_of(seed, count):
  return np.random.default_rng(seed).integers(0, 40, count)


@pytest.mark.parametrize("budget", [1, 40 * 3 * 5])
def test_token_nll_is_the_definition_in_any_chunks(model, monkeypatch, budget):
  monkeypatch.setattr(perplexity, "_LOGITS", budget)
  tokens_BT = ids_of(0, 3 * 14).reshape(3, 14)
  config, params = model
  got = jax.jit(lambda tokens: perplexity.token_nll(config, params, tokens))(
    tokens_BT
  )
  assert got.shape == (3, 13) and got.dtype == jnp.float32
  expected = np.stack([direct(model, row) for row in tokens_BT])
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
  # A test that shuffles predictions would notice: they differ widely.
  assert expected.std() > 0.5


def test_logits_are_never_whole(model, monkeypatch):
  config, params = model
  monkeypatch.setattr(perplexity, "_LOGITS", 2 * 4 * config.vocab_size)
  text = str(
    jax.make_jaxpr(lambda tokens: perplexity.token_nll(config, params, tokens))(
      jnp.zeros((2, 33), jnp.int32)
    )
  )
  assert "f32[2,4,40]" in text
  assert "f32[2,32,40]" not in text and "f32[2,33,40]" not in text


@pytest.mark.parametrize("batch_size", [2, 8])
def test_windows(model, batch_size):
  ids = ids_of(1, 5 * 12 + 11)
  got = perplexity.score_windows(*model, ids, 12, batch_size=batch_size)
  expected = [direct(model, ids[12 * w : 12 * w + 12]).sum() for w in range(5)]
  assert np.ptp(expected) > 1
  np.testing.assert_allclose(got.nll, expected, rtol=1e-5)
  assert got.tokens.tolist() == [11] * 5
  # The formula of the reference, whose two factors T cancel.
  losses = np.array(expected) / 11
  np.testing.assert_allclose(
    got.perplexity, np.exp((losses * 12).sum() / (5 * 12)), rtol=1e-5
  )
  first = perplexity.score_windows(
    *model, ids, 12, batch_size=batch_size, max_windows=2
  )
  np.testing.assert_allclose(first.nll, expected[:2], rtol=1e-5)


def test_documents_predict_every_token_but_the_first_once(model):
  lengths = [2, 3, 33, 34, 41, 60, 130, 30]
  documents = [ids_of(index, n).tolist() for index, n in enumerate(lengths)]
  got = perplexity.score_documents(*model, documents, 40, batch_size=3)
  assert got.tokens.tolist() == [n - 1 for n in lengths]
  for index, document in enumerate(documents):
    pieces = [
      direct(model, document[start : start + 41])
      for start in range(0, len(document) - 1, 40)
    ]
    assert sum(map(len, pieces)) == len(document) - 1
    np.testing.assert_allclose(
      got.nll[index], np.concatenate(pieces).sum(), rtol=1e-5
    )
  np.testing.assert_allclose(
    got.perplexity, np.exp(got.nll.sum() / (sum(lengths) - 8))
  )
  # The interval over documents that goes with it.
  estimate = statistics.ratio(got.nll, got.tokens, transform=np.exp)
  assert estimate.value == got.perplexity
  assert estimate.low < got.perplexity < estimate.high


def test_gates_reach_the_model(model):
  config, _ = model
  ids = ids_of(2, 24)
  gates = make_gates(config, attention=[0], mlp=[1])
  got = perplexity.score_windows(*model, ids, 24, gates=gates)
  np.testing.assert_allclose(
    got.nll, [direct(model, ids, gates).sum()], rtol=1e-5
  )
  assert abs(got.nll[0] - direct(model, ids).sum()) > 0.1


def test_few_programs_are_compiled(model):
  perplexity._token_nll.clear_cache()
  documents = [ids_of(n, n) for n in range(2, 66)]
  perplexity.score_documents(*model, documents, 64, batch_size=4)
  assert perplexity._token_nll._cache_size() == 2  # 32 and 64


def test_sharded_batches(model):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
  ids = ids_of(3, 11 * 16)
  plain = perplexity.score_windows(*model, ids, 16)
  spread = perplexity.score_windows(
    *model, ids, 16, batch_size=8, sharding=sharding
  )
  np.testing.assert_allclose(spread.nll, plain.nll, rtol=1e-5)


def test_uniform_model_has_perplexity_of_its_vocabulary():
  config = tiny()
  params = jax.tree.map(
    jnp.zeros_like, jax.eval_shape(lambda: init(config, jax.random.key(0)))
  )
  got = perplexity.score_windows(config, params, ids_of(4, 40), 10)
  np.testing.assert_allclose(got.perplexity, 40, rtol=1e-6)
  huge = perplexity.Scores(nll=np.array([1e4]), tokens=np.array([1]))
  assert huge.perplexity == np.inf


@pytest.mark.parametrize(
  "name, ids, options, message",
  [
    ("windows", [1] * 9, dict(seq_len=10), "9 tokens, fewer than seq_len=10"),
    ("windows", [1] * 99, dict(seq_len=65), "the model's context, 64"),
    ("windows", [1] * 9, dict(seq_len=1), "seq_len=1"),
    ("windows", [40] * 9, dict(seq_len=4), "ids: id 40 is outside"),
    ("windows", [-1] * 9, dict(seq_len=4), "ids: id -1 is outside"),
    ("windows", [0.5] * 9, dict(seq_len=4), "ids: float64"),
    ("windows", [1] * 9, dict(seq_len=4, batch_size=0), "batch_size=0"),
    ("windows", [1] * 9, dict(seq_len=4, max_windows=0), "max_windows=0"),
    ("documents", [], dict(seq_len=4), "no documents"),
    ("documents", [[1, 2], [1]], dict(seq_len=4), "document 1 has 1 tokens"),
    ("documents", [[1, 2], []], dict(seq_len=4), "document 1 has 0 tokens"),
    ("documents", [[1, 40]], dict(seq_len=4), "document 0: id 40"),
  ],
)
def test_bad_arguments(model, name, ids, options, message):
  with pytest.raises(ValueError, match=message):
    getattr(perplexity, f"score_{name}")(*model, ids, **options)


def test_held_out_text(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text(" = A = \n \nb \n")
  assert perplexity.read_held_out_text(tmp_path / "a.txt") == (
    " = A = \n\n\n\n\nb \n"
  )
  monkeypatch.setattr(
    perplexity, "read_documents", lambda *args, **options: ["x"] * 2000
  )
  assert perplexity.read_held_out_text("c4") == " ".join(["x"] * 1100)


@pytest.mark.slow
def test_equals_stock_transformers(shared):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder = shared / "weights" / "stories260K"
  stock = transformers.AutoModelForCausalLM.from_pretrained(
    str(folder), local_files_only=True
  ).eval()
  config, params = checkpoints.load_params(folder)
  tokenizer = load_tokenizer(folder)
  text = perplexity.read_held_out_text(
    shared / "data" / "wikitext2" / "test.txt"
  )[:10000]
  ids = encode(tokenizer, text)

  def stock_loss(row):
    row = torch.tensor([row])
    with torch.no_grad():
      return float(stock(row, labels=row).loss)

  windows = 4
  got = perplexity.score_windows(config, params, ids, 256, max_windows=windows)
  total = sum(
    stock_loss(ids[256 * w : 256 * w + 256]) * 256 for w in range(windows)
  )
  np.testing.assert_allclose(
    got.perplexity, np.exp(total / (windows * 256)), rtol=1e-4
  )

  stories = read_documents(
    shared / "data" / "tinystories" / "valid_30KB.txt", division="lines"
  )
  documents = [encode(tokenizer, story) for story in stories]
  documents = [row for row in documents if len(row) <= 512][:6]
  assert len(documents) >= 3
  scores = perplexity.score_documents(config, params, documents, 512)
  expected = [stock_loss(row) * (len(row) - 1) for row in documents]
  np.testing.assert_allclose(scores.nll, expected, rtol=1e-4)
  # Text that the model was made for: far below the other one.
  assert scores.perplexity < 0.1 * got.perplexity


def test_nll_has_its_shape_and_one_program_serves_all_batches(model):
  config, params = model
  score = jax.jit(
    chex.assert_max_traces(
      lambda tokens_BT: perplexity.token_nll(config, params, tokens_BT), n=1
    )
  )
  for seed in range(2):
    tokens_BT = np.random.default_rng(seed).integers(
      0, config.vocab_size, (3, 7)
    )
    nll_BT = score(tokens_BT)
    chex.assert_shape(nll_BT, (3, 6))
    chex.assert_type(nll_BT, jnp.float32)
    chex.assert_tree_all_finite(nll_BT)
