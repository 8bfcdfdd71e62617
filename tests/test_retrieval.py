"""Ranking measures against hand tables and trec_eval; pooled embeddings."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_config import random_params

from jaxprune.evaluation import embeddings, retrieval
from jaxprune.models import ModelConfig, final_norm, forward, make_gates

# Ranked relevances, judged relevances, and by hand at k = 3 and over all:
# nDCG, recall, MRR, MAP.
TABLE = {
  "perfect": ([1, 1, 0, 0], [1, 1], (1, 1, 1, 1), (1, 1, 1, 1)),
  "late": ([0, 0, 0, 1], [1], (0, 0, 0, 0), (1 / np.log2(5), 1, 1 / 4, 1 / 4)),
  "two of three": (
    [0, 1, 1, 0],
    [1, 1, 1],
    *[
      (
        (1 / np.log2(3) + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2),
        2 / 3,
        1 / 2,
        (1 / 2 + 2 / 3) / 3,
      )
    ]
    * 2,
  ),
  "graded": (
    [1, 0, 3],
    [3, 1, 0],
    *[((1 + 3 / 2) / (3 + 1 / np.log2(3)), 1, 1, (1 + 2 / 3) / 2)] * 2,
  ),
  # What is negative is neither a gain nor relevant.
  "negative": ([-2, 1], [-2, 1], *[(1 / np.log2(3), 1, 1 / 2, 1 / 2)] * 2),
  "none relevant": ([0, 0], [0, 0], (0, 0, 0, 0), (0, 0, 0, 0)),
  "more relevant than k": (
    [1, 1, 1, 1],
    [1] * 4,
    (1, 3 / 4, 1, 3 / 4),
    (1, 1, 1, 1),
  ),
}


@pytest.mark.parametrize("name", TABLE)
def test_measures_by_hand(name):
  ranked, judged, *expected = TABLE[name]
  for k, values in zip((3, None), expected):
    found = (
      retrieval.ndcg(ranked, judged, k),
      retrieval.recall(np.array(ranked), np.array(judged), k),
      retrieval.reciprocal_rank(np.array(ranked), k),
      retrieval.average_precision(np.array(ranked), np.array(judged), k),
    )
    np.testing.assert_allclose(found, values, rtol=1e-12, err_msg=str(k))


def test_ties_go_by_index():
  scores_QD = np.array([[0.5, 1, 0.5, 1, 0.5], [0, 0, 0, 0, 0.0]])
  assert retrieval.rank(scores_QD).tolist() == [
    [1, 3, 0, 2, 4],
    [0, 1, 2, 3, 4],
  ]
  assert retrieval.rank(scores_QD, 2).tolist() == [[1, 3], [0, 1]]
  assert retrieval.rank(np.array([[False, True]])).tolist() == [[1, 0]]
  rows = retrieval.evaluate_ranking(
    scores_QD, [{2: 1}, {4: 2, 0: 1}], cutoffs=(1, 4)
  )
  assert [row["question"] for row in rows] == [0, 1]
  assert rows[0]["mrr"] == 1 / 4 and rows[0]["ndcg@1"] == 0
  assert rows[0]["map@4"] == 1 / 4 and rows[0]["recall@4"] == 1
  assert rows[1]["recall@4"] == 1 / 2 and rows[1]["map"] == (1 + 2 / 5) / 2
  assert rows[1]["ndcg@1"] == 1 / 2


def test_queries_without_judgements_have_no_row():
  rows = retrieval.evaluate_ranking(np.eye(3), [{0: 1}, {}, {1: 0}])
  assert [row["question"] for row in rows] == [0, 2]
  assert rows[0]["ndcg@10"] == 1 and rows[1]["ndcg@10"] == 0


@given(st.integers(0, 2**16), st.integers(1, 9))
def test_search_is_rank_in_any_blocks(seed, k):
  rng = np.random.default_rng(seed)
  # Few values, so that many scores tie.
  queries_QE = rng.integers(-1, 2, (3, 4)).astype(np.float32)
  documents_DE = rng.integers(-1, 2, (17, 4)).astype(np.float32)
  scores_QD = queries_QE @ documents_DE.T
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(retrieval, "_BLOCK", 3 * int(rng.integers(1, 20)))
    order_QK, best_QK = retrieval.search(queries_QE, documents_DE, k)
  np.testing.assert_array_equal(order_QK, retrieval.rank(scores_QD, k))
  np.testing.assert_array_equal(
    best_QK, np.take_along_axis(scores_QD, order_QK, axis=1)
  )


def test_equals_trec_eval():
  pytrec_eval = pytest.importorskip("pytrec_eval")
  rng = np.random.default_rng(0)
  queries, documents = 20, 40
  scores_QD = (
    rng.permuted(np.tile(np.arange(documents), (queries, 1)), axis=1) / 7
  )  # no ties
  qrels = [
    {int(d): int(rng.integers(0, 4)) for d in rng.choice(documents, 12)}
    for _ in range(queries)
  ]
  qrels[3] = dict.fromkeys(qrels[3], 0)
  evaluator = pytrec_eval.RelevanceEvaluator(
    {
      str(q): {str(d): r for d, r in row.items()} for q, row in enumerate(qrels)
    },
    {"ndcg_cut.1,10", "recall.1,10", "map_cut.1,10", "map", "recip_rank"},
  )
  theirs = evaluator.evaluate(
    {
      str(q): {str(d): float(s) for d, s in enumerate(row)}
      for q, row in enumerate(scores_QD)
    }
  )
  for row in retrieval.evaluate_ranking(scores_QD, qrels, cutoffs=(1, 10)):
    expected = theirs[str(row["question"])]
    for ours, name in (
      ("ndcg@1", "ndcg_cut_1"),
      ("ndcg@10", "ndcg_cut_10"),
      ("recall@10", "recall_10"),
      ("map@10", "map_cut_10"),
      ("map", "map"),
      ("mrr", "recip_rank"),
    ):
      assert row[ours] == pytest.approx(expected[name], abs=1e-6), ours


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: retrieval.rank(np.zeros(3)), r"shape \[3\]"),
    (lambda: retrieval.rank(np.array([[0, np.nan]])), "query 0, document 1"),
    (lambda: retrieval.search(np.eye(2), np.eye(3), 1), "width"),
    (lambda: retrieval.search(np.eye(2), np.eye(2), 0), "k=0"),
    (lambda: retrieval.evaluate_ranking(np.eye(2), [{0: 1}]), "1 entries for"),
    (lambda: retrieval.evaluate_ranking(np.eye(2), [{}, {}]), "no query has"),
    (
      lambda: retrieval.evaluate_ranking(np.eye(1), [{0: 1}], cutoffs=(0,)),
      r"cutoffs=\(0,\)",
    ),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.fixture(scope="module")
def model():
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
  return config, random_params(config, np.random.default_rng(0))


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens_BT, gates):
  x_BTD, _ = forward(config, params, tokens_BT, gates=gates)
  return final_norm(config, params, x_BTD)


def direct(model, text, pooling, gates=None):
  """Pooled by hand; one length for all, what is added is never looked at."""
  padded_BT = np.pad(text, (0, 64 - len(text)))[None]
  x_TD = np.asarray(hidden(*model, padded_BT, gates)[0, : len(text)], float)
  if pooling == "last":
    return x_TD[-1]
  weights = (
    np.ones(len(text)) if pooling == "mean" else 1 + np.arange(len(text))
  )
  return np.average(x_TD, axis=0, weights=weights)


@pytest.mark.parametrize("pooling", embeddings.POOLINGS)
def test_embeddings_by_hand(model, pooling):
  rng = np.random.default_rng(1)
  texts = [rng.integers(0, 40, n).tolist() for n in (1, 5, 32, 2, 33, 64, 7)]
  got = embeddings.embed_tokens(
    *model, texts, pooling=pooling, normalise=False, batch_size=2
  )
  expected = np.stack([direct(model, text, pooling) for text in texts])
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, expected, atol=2e-5)


def test_unit_embeddings_and_gates(model):
  texts = [[1, 2, 3], [4, 5]]
  gates = make_gates(model[0], mlp=[0])
  got = embeddings.embed_tokens(*model, texts, gates=gates)
  expected = np.stack([direct(model, text, "mean", gates) for text in texts])
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
  "texts, options, message",
  [
    ([[1]], {"pooling": "max"}, "pooling='max'"),
    ([], {}, "0 texts"),
    ([[1], []], {}, "text 1 has 0 tokens"),
    ([[1] * 65], {}, "text 0 has 65 tokens"),
    ([[40]], {}, "ids from 40 to 40"),
    ([[1]], {"batch_size": 0}, "batch_size=0"),
  ],
)
def test_bad_texts(model, texts, options, message):
  with pytest.raises(ValueError, match=message):
    embeddings.embed_tokens(*model, texts, **options)


@pytest.mark.parametrize("pooling", embeddings.POOLINGS)
def test_pooled_vectors_have_their_shape_and_ignore_padding(pooling):
  dims = chex.Dimensions(B=2, T=5, D=4)
  x_BTD = jax.random.normal(jax.random.key(0), dims["BTD"], jnp.bfloat16)
  lengths_B = jnp.array([2, 5])
  pooled_BD = embeddings.pool(x_BTD, lengths_B, pooling)
  chex.assert_shape(pooled_BD, dims["BD"])
  chex.assert_type(pooled_BD, jnp.float32)
  chex.assert_trees_all_close(
    embeddings.pool(x_BTD.at[0, 2:].set(7.0), lengths_B, pooling), pooled_BD
  )
