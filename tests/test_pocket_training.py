"""Training, export and scoring of the pocket model, on a tiny one."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxprune import checkpoints
from jaxprune.evaluation import loglikelihoods
from jaxprune.models import decoder
from jaxprune.pocket import documents, export, scores, tasks, training
from jaxprune.pocket import tokenizer as tokenizer_lib
from jaxprune.pocket import world as world_lib

TRAIN = training.TrainConfig(
  steps=4,
  warmup=0.25,
  layout=training.batches.Layout(rows=2, length=96, pairs=3, pair_length=40),
)


@pytest.fixture(scope="module")
def index():
  return documents.make_index(world_lib.make_world(0))


@pytest.fixture(scope="module")
def bpe(index):
  return tokenizer_lib.train_tokenizer(
    index, vocab_size=900, num_documents=3000
  )


@pytest.fixture(scope="module")
def config():
  return dataclasses.replace(
    training.model_config(900),
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    sliding_layers=(False,) * 2,
  )


@pytest.fixture(scope="module")
def params(config):
  return training.initial_params(config, jax.random.key(5))


def read(config, params, ids):
  """Normed states [T, D] and logits [T, V] of one text.

  Padded, so that one program reads all.
  """
  tokens_BT = np.zeros((1, 64), np.int32)
  tokens_BT[0, : len(ids)] = ids
  return [
    np.asarray(each[0, : len(ids)]) for each in _read(config, params, tokens_BT)
  ]


@functools.partial(jax.jit, static_argnums=0)
def _read(config, params, tokens_BT):
  x_BTD, _ = decoder.forward(config, params, tokens_BT)
  return (
    decoder.final_norm(config, params, x_BTD),
    decoder.unembed(config, params, x_BTD),
  )


_loss = jax.jit(training.loss, static_argnums=(0, 1))


def test_shipped_model_is_small_and_deep():
  config = training.model_config(1280)
  shapes = jax.eval_shape(
    lambda: training.initial_params(config, jax.random.key(0))
  )
  assert config.num_layers >= 12
  assert 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 8e6


def test_initial_params(config, params):
  want = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  assert jax.tree.structure(params) == jax.tree.structure(want)
  up = params["layers"]["mlp"]["up"]["kernel"]
  down = params["layers"]["mlp"]["down"]["kernel"]
  assert float(up.std()) == pytest.approx(16**-0.5, rel=0.1)
  assert float(down.std()) == pytest.approx((24 * 4) ** -0.5, rel=0.1)


def test_hidden_states_are_those_of_forward(config, params):
  tokens_BT = jax.random.randint(jax.random.key(1), (3, 17), 0, 900)
  want_BTD, _ = jax.jit(decoder.forward, static_argnums=0)(
    config, params, tokens_BT
  )
  got_BTD = jax.jit(training.hidden_states, static_argnums=0)(
    config, params, tokens_BT
  )
  np.testing.assert_allclose(got_BTD, want_BTD, rtol=1e-5, atol=1e-6)


def test_info_nce_against_numpy():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 5, 7))
  cosines = (
    np.array(
      [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in x]
    )
    / 0.1
  )
  rows = [np.log(np.exp(cosines[i]).sum()) - cosines[i, i] for i in range(5)]
  columns = [
    np.log(np.exp(cosines[:, i]).sum()) - cosines[i, i] for i in range(5)
  ]
  want = (np.mean(rows) + np.mean(columns)) / 2
  got = training.info_nce(
    jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 0.1
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_loss_of_a_uniform_model(config, params, index, bpe):
  """A zero final norm makes every logit zero: log V nats per token."""
  batch = training.batches.make_batch(
    index,
    bpe,
    0,
    0,
    training.batches.Layout(
      rows=2, length=96, pairs=3, pair_length=40, prompt_weight=0.2
    ),
  )
  flat = {**params, "final_norm": {"scale": jnp.full((16,), 1e-12)}}
  _, parts = _loss(config, TRAIN, flat, batch)
  np.testing.assert_allclose(parts["language"], np.log(900), rtol=1e-5)


def test_padding_has_no_influence(config, params, index, bpe):
  batch = training.batches.make_batch(
    index,
    bpe,
    0,
    0,
    training.batches.Layout(
      rows=2, length=96, pairs=3, pair_length=40, prompt_weight=0.2
    ),
  )
  filled = dataclasses.replace(
    batch,
    tokens=np.where(batch.tokens == 0, 77, batch.tokens),
    pair_tokens=np.where(batch.pair_valid, batch.pair_tokens, 77),
  )
  assert (filled.tokens != batch.tokens).any()
  np.testing.assert_allclose(
    _loss(config, TRAIN, params, batch)[0],
    _loss(config, TRAIN, params, filled)[0],
    rtol=1e-6,
  )


@pytest.mark.slow
def test_resumed_run_equals_the_whole_run(config, index, bpe, tmp_path):
  lines = []
  options = dict(save_every=2, report=lines.append)
  for name in ("whole", "cut"):
    (tmp_path / name).mkdir()
  whole = training.run(config, TRAIN, index, bpe, tmp_path / "whole", **options)
  training.run(config, TRAIN, index, bpe, tmp_path / "cut", **options)
  shutil.rmtree(tmp_path / "cut" / "step_000004")
  resumed = training.run(config, TRAIN, index, bpe, tmp_path / "cut", **options)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  first = training.initial_params(config, jax.random.key(TRAIN.seed))
  assert not np.array_equal(first["embed"]["table"], whole["embed"]["table"])
  assert "step 4/4" in lines[-1] and "min left" in lines[-1]
  with pytest.raises(ValueError, match="state of another training"):
    training.run(
      config,
      dataclasses.replace(TRAIN, seed=1),
      index,
      bpe,
      tmp_path / "cut",
      **options,
    )


def test_export_loads_back(config, params, bpe, tmp_path):
  folder = export.write_model(tmp_path / "model", config, params, bpe, "card")
  got_config, got = checkpoints.load_params(folder)
  assert got_config == config
  want = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert tokenizer_lib.load_tokenizer(folder).to_str() == bpe.to_str()
  with pytest.raises(ValueError, match="no tokenizer"):
    tokenizer_lib.load_tokenizer(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_the_export(config, params, bpe, tmp_path):
  import torch
  import transformers

  folder = export.write_model(tmp_path / "model", config, params, bpe, "card")
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  text = "Question: Where does Ada live?\nAnswer:"
  ids = tokenizer(text)["input_ids"]
  assert ids == bpe.encode(text).ids
  with torch.no_grad():
    want_TV = model(torch.tensor([ids])).logits[0].numpy()
  loaded_config, loaded = checkpoints.load_params(folder, dtype="float32")
  _, got_TV = read(loaded_config, loaded, ids)
  np.testing.assert_allclose(got_TV, want_TV, rtol=1e-4, atol=1e-5)


def test_scores_against_one_text_at_a_time(config, params, bpe):
  items = (
    tasks.Choose(
      kind="a",
      prompt="Question: x?\nAnswer:",
      label=1,
      options=(" Ada.", " Ben and Cleo.", " 12.", " the bell."),
    ),
    tasks.Choose(
      kind="a",
      prompt="Story: a longer one.\nAnswer:",
      label=0,
      options=(" 7.", " 8.", " 9.", " 10."),
    ),
  )
  got = scores.option_log_likelihoods(config, params, bpe, items)
  for i, item in enumerate(items):
    head = bpe.encode(item.prompt).ids
    for j, option in enumerate(item.options):
      ids = head + tokenizer_lib.encode(bpe, option)
      _, z_TV = read(config, params, ids)
      logp_TV = scipy.special.log_softmax(z_TV, axis=-1)
      want = sum(
        float(logp_TV[t - 1, ids[t]]) for t in range(len(head), len(ids))
      )
      np.testing.assert_allclose(got[i, j], want, rtol=1e-4)


def test_exact_answers_is_greedy_decoding(config, params, bpe):
  """Greedy text is right exactly when it and its end are read as firsts."""
  prompt = "Problem: a.\nSteps:"
  # Byte tokens only, so that a decoded text encodes to the same ids.
  ids = bpe.encode(prompt).ids
  answer_ids = []
  for _ in range(3):
    _, z_TV = read(config, params, ids + answer_ids)
    answer_ids.append(int(z_TV[-1].argmax()))
  other = [*answer_ids[:-1], (answer_ids[-1] + 1) % 900]
  found = loglikelihoods.loglikelihoods(
    config, params, [(ids, answer_ids), (ids, other)]
  )
  assert found.greedy.tolist() == [True, False]


def test_embeddings_are_mean_pooled(config, params, bpe):
  texts = ["Ada has a bell.", "Question: Where?"]
  got = scores.embed_texts(config, params, bpe, texts)
  for row, text in zip(got, texts):
    ids = bpe.encode(text).ids
    want = read(config, params, ids)[0].mean(0)
    np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-5)


def test_score_reports_each_kind_and_obeys_gates(config, params, index, bpe):
  items = tasks.make_tasks(index, "validation", num_stories=4, num_problems=4)
  items = dataclasses.replace(
    items,
    choose=items.choose[-8:],
    generate=items.generate[:8],
    retrieve=tasks.Retrieve(
      queries=items.retrieve.queries[:9],
      relevant=items.retrieve.relevant[:9],
      passages=items.retrieve.passages,
    ),
  )
  dense = scores.score(config, params, bpe, items)
  assert set(dense) == {"choose", "retrieve", "generate", "stories"} | {
    f"choose/{item.kind}" for item in items.choose
  } | {f"generate/{item.kind}" for item in items.generate}
  assert all(0 <= value <= 1 for value in dense.values())
  gates = decoder.make_gates(config, attention=(0, 1), mlp=(0, 1))
  closed = scores.embed_texts(
    config, params, bpe, items.retrieve.queries, gates
  )
  open_ = scores.embed_texts(config, params, bpe, items.retrieve.queries)
  assert np.abs(closed - open_).max() > 1e-3
