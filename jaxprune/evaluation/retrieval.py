"""How well do scores rank the relevant documents of a query?

Q counts queries, A documents, and D is the width of a vector.
Ranks begin at 1; a document is relevant when its relevance is above 0.

  nDCG@k   = sum over ranks r <= k of rel(r) / log2(r + 1), divided by the same
             sum in the best possible order of all judged documents
  recall@k = relevant documents at ranks <= k / all relevant documents
  MRR@k    = 1 / rank of the first relevant document, 0 if that is beyond k
  MAP@k    = sum over relevant ranks r <= k of precision@r / all relevant ones

The gain is the relevance itself, not 2^rel - 1. A query that has judgements but
no relevant document scores 0 in everything; one without judgements has no row.
Documents with equal scores are ranked by their index, so that no result
depends on a sort.

Reference: trec_eval 9 (ndcg_cut, recall, recip_rank, map_cut, map); Jarvelin
and Kekalainen (2002).
Differs from the reference in: trec_eval ranks ties by the name of the document,
the last name first; its recip_rank has no cutoff.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Entries of a block of scores that `search` holds at a time.
_BLOCK = 1 << 22
CUTOFFS = (1, 10, 100)


def ndcg(
  ranked_relevances: np.ndarray, all_relevances: np.ndarray, k: int | None
) -> float:
  """Normalised discounted cumulative gain of one query, in [0, 1].

  Args:
    ranked_relevances: [ranks], relevance of the document at each rank; 0 where
      it was not judged. What is negative counts as 0.
    all_relevances: [judged], of all judged documents, ranked or not.
    k: ranks beyond it do not count; None is all.
  """
  gained = _discounted(np.asarray(ranked_relevances, np.float64)[:k])
  best = np.sort(np.asarray(all_relevances, np.float64))[::-1]
  possible = _discounted(best[:k])
  return gained / possible if possible > 0 else 0.0


def recall(
  ranked_relevances: np.ndarray, all_relevances: np.ndarray, k: int | None
) -> float:
  """Fraction of the relevant documents at ranks up to k.

  Args:
    ranked_relevances: [ranks], relevance of the document at each rank.
    all_relevances: [judged], of all judged documents, ranked or not.
    k: ranks beyond it do not count; None is all.

  Returns:
    In [0, 1]; 0 where nothing is relevant.
  """
  relevant = np.count_nonzero(np.asarray(all_relevances) > 0)
  hits = np.count_nonzero(np.asarray(ranked_relevances)[:k] > 0)
  return hits / relevant if relevant else 0.0


def reciprocal_rank(
  ranked_relevances: np.ndarray, k: int | None = None
) -> float:
  """1 / rank of the first relevant document up to k, else 0.

  Args:
    ranked_relevances: [ranks], relevance of the document at each rank.
    k: ranks beyond it do not count; None is all.
  """
  hits = np.flatnonzero(np.asarray(ranked_relevances)[:k] > 0)
  return 1 / (1 + int(hits[0])) if hits.size else 0.0


def average_precision(
  ranked_relevances: np.ndarray,
  all_relevances: np.ndarray,
  k: int | None = None,
) -> float:
  """Mean over all relevant documents of the precision at each.

  Args:
    ranked_relevances: [ranks], relevance of the document at each rank.
    all_relevances: [judged], of all judged documents, ranked or not.
    k: ranks beyond it count 0; None is all.

  Returns:
    In [0, 1]; 0 where nothing is relevant.
  """
  relevant = np.count_nonzero(np.asarray(all_relevances) > 0)
  hits = np.flatnonzero(np.asarray(ranked_relevances)[:k] > 0)
  precision = np.arange(1, hits.size + 1) / (hits + 1)
  return float(precision.sum() / relevant) if relevant else 0.0


def rank(scores_QA: np.ndarray, k: int | None = None) -> np.ndarray:
  """Order documents by score, the largest first, ties by index.

  Args:
    scores_QA: real [Q, A].
    k: only the first so many; None is all.

  Returns:
    int [Q, min(k, A)], indices of documents.

  Raises:
    ValueError: the scores are no matrix, or not a number somewhere.
  """
  scores_QA = np.asarray(scores_QA)
  if scores_QA.ndim != 2:
    raise ValueError(
      f"scores: shape {list(scores_QA.shape)}; give [queries, documents]"
    )
  if np.isnan(scores_QA).any():
    query, document = np.argwhere(np.isnan(scores_QA))[0]
    raise ValueError(
      f"scores: query {query}, document {document} is not a number; check"
      " the embeddings"
    )
  down_QA = -scores_QA.astype(np.result_type(scores_QA, np.float32))
  return np.argsort(down_QA, axis=1, kind="stable")[:, :k]


def search(
  queries_QD: np.ndarray, documents_AD: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k best documents of each query by dot product, in bounded memory.

  Args:
    queries_QD: float32 [Q, D]; of length 1 for the cosine.
    documents_AD: float32 [A, D], as wide as the queries.
    k: at least 1.

  Returns:
    Indices int [Q, min(k, A)], the best document first, and their scores
    float32 [Q, min(k, A)].

  Raises:
    ValueError: the widths differ, a score is not a number, or k is below 1.
  """
  if k < 1:
    raise ValueError(f"k={k}: must be at least 1")
  if queries_QD.shape[1:] != documents_AD.shape[1:]:
    raise ValueError(
      f"queries of width {queries_QD.shape[1:]} for documents of"
      f" {documents_AD.shape[1:]}; embed both with one model"
    )
  queries = len(queries_QD)
  step = max(1, _BLOCK // max(queries, 1))
  order_QA = np.zeros((queries, 0), np.int64)
  best_QA = np.zeros((queries, 0), np.float32)
  for start in range(0, len(documents_AD), step):
    block_AD = documents_AD[start : start + step]
    scores_QA = np.einsum("QD,AD->QA", queries_QD, block_AD, optimize=True)
    here_QA = rank(scores_QA, k)
    # Earlier documents stand first, so a stable sort keeps ties by index.
    order_QA = np.concatenate([order_QA, start + here_QA], axis=1)
    best_QA = np.concatenate(
      [best_QA, np.take_along_axis(scores_QA, here_QA, axis=1)], axis=1
    )
    pick_QA = rank(best_QA, k)
    order_QA = np.take_along_axis(order_QA, pick_QA, axis=1)
    best_QA = np.take_along_axis(best_QA, pick_QA, axis=1)
  return order_QA, best_QA


def evaluate_ranking(
  scores_QA: np.ndarray,
  qrels: Sequence[Mapping[int, float]],
  *,
  cutoffs: Sequence[int] = CUTOFFS,
) -> list[dict[str, float]]:
  """Rank all documents by their scores and measure each query.

  Args:
    scores_QA: real [Q, A].
    qrels: for each query, document index to relevance.
    cutoffs: k of every measure.

  Returns:
    A row for each query with judgements: `question`, its index; `ndcg@k`,
    `recall@k`, `mrr@k` and `map@k` for every cutoff; `map` and `mrr` without
    one.
  """
  order_QA = rank(scores_QA)
  rows = evaluate_order(order_QA, qrels, cutoffs=cutoffs)
  for row in rows:
    ranked, judged = _relevances(order_QA, qrels, row["question"])
    row["map"] = average_precision(ranked, judged)
    row["mrr"] = reciprocal_rank(ranked)
  return rows


def evaluate_order(
  order_QA: np.ndarray,
  qrels: Sequence[Mapping[int, float]],
  *,
  cutoffs: Sequence[int] = CUTOFFS,
) -> list[dict[str, float]]:
  """Measure a ranking of all documents, or of the best of them.

  Args:
    order_QA: int [Q, A] or fewer columns, indices of documents, the best first.
    qrels: for each query, document index to relevance.
    cutoffs: k of every measure. Where the ranking has fewer than k columns,
      a measure at k counts the documents that it leaves out as not found.

  Returns:
    A row for each query with judgements: `question`, its index, and `ndcg@k`,
    `recall@k`, `mrr@k`, `map@k` for every cutoff.

  Raises:
    ValueError: there are not as many judgements as queries, none at all, or a
      cutoff below 1.
  """
  if len(order_QA) != len(qrels):
    raise ValueError(
      f"qrels: {len(qrels)} entries for {len(order_QA)} queries; give one"
      " mapping each, {} without judgements"
    )
  if not any(qrels):
    raise ValueError("qrels: no query has a judgement; check the ids")
  if min(cutoffs, default=1) < 1:
    raise ValueError(f"cutoffs={tuple(cutoffs)}: must be at least 1")
  rows = []
  for question, judgements in enumerate(qrels):
    if not judgements:
      continue
    ranked, judged = _relevances(order_QA, qrels, question)
    row = {"question": question}
    for k in cutoffs:
      row |= {
        f"ndcg@{k}": ndcg(ranked, judged, k),
        f"recall@{k}": recall(ranked, judged, k),
        f"mrr@{k}": reciprocal_rank(ranked, k),
        f"map@{k}": average_precision(ranked, judged, k),
      }
    rows.append(row)
  return rows


def _relevances(order_QA, qrels, question):
  """Relevance at each rank, and of all judged documents."""
  judgements = qrels[question]
  ranked = np.array(
    [judgements.get(int(index), 0) for index in order_QA[question]], float
  )
  return ranked, np.array(list(judgements.values()), float)


def _discounted(gains: np.ndarray) -> float:
  ranks = np.arange(1, gains.size + 1)
  return float((np.maximum(gains, 0) / np.log2(ranks + 1)).sum())
