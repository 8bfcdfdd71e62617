"""What does one training step read: documents as rows of tokens and weights.

A step's batch is a function of (index, seed, step), so a run can be resumed
anywhere and reads the same rows.
"""

import dataclasses

import jax
import numpy as np
import tokenizers

from jaxprune.pocket import documents
from jaxprune.pocket import tokenizer as tokenizer_lib
from jaxprune.pocket import world as world_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Rows for one step.

  Attributes:
    tokens: int32 [B, T], packed documents, each BOS ... EOS, then padding.
    weights: float32 [B, T], weight of the prediction OF each token; zero at
      BOS and padding.
    pair_tokens: int32 [2P, T'], P questions, then the P passages about them,
      one per row.
    pair_weights: float32 [2P, T'], weight of the prediction of each token.
    pair_valid: bool [2P, T'], True for tokens that the mean pooling counts.
  """

  tokens: np.ndarray
  weights: np.ndarray
  pair_tokens: np.ndarray
  pair_weights: np.ndarray
  pair_valid: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """The shapes of the rows of a batch.

  Attributes:
    rows: B, packed rows.
    length: T.
    pairs: P, a multiple of 3; three facts of each of P/3 entities, so that
      both entity and attribute must be told apart.
    pair_length: T'.
    prompt_weight: loss weight of tokens in prompts; completions have 1.
  """

  rows: int = 24
  length: int = 96
  pairs: int = 24
  pair_length: int = 20
  prompt_weight: float = 0.2


def make_batch(
  index: documents.Index,
  tokenizer: tokenizers.Tokenizer,
  seed: int,
  step: int,
  layout: Layout,
) -> Batch:
  """Draw the batch of one step.

  Args:
    index: the world.
    tokenizer: of the world.
    seed: of the run.
    step: from 0.
    layout: the shapes of the rows.

  Raises:
    ValueError: a document does not fit its row.
  """
  rng = np.random.default_rng([seed, 4, step])
  rows, length, pairs = layout.rows, layout.length, layout.pairs
  tokens, weights = _blank(rows, length)
  ends, misfits = np.zeros(rows, int), 0
  while misfits < rows:  # so many draws fill the gaps
    ids, weight = _encode(
      tokenizer, *documents.sample_document(index, rng), layout.prompt_weight
    )
    if len(ids) > length:
      raise ValueError(
        f"a document of {len(ids)} tokens in rows of {length}: "
        "raise the row length"
      )
    row = int(np.argmax(ends + len(ids) <= length))
    end = ends[row] + len(ids)
    if end > length:
      misfits += 1
      continue
    tokens[row, ends[row] : end] = ids
    weights[row, ends[row] : end] = weight
    ends[row] = end
  pair_tokens, pair_weights = _blank(2 * pairs, layout.pair_length)
  for slot, fact in enumerate(_draw_facts(index, rng, pairs)):
    asked = world_lib.phrasings(index.world, fact, "question", "train")
    texts = (
      (f"Question: {asked[rng.integers(len(asked))]}", ""),
      documents.sample_passage(index, fact, rng),
    )
    for place, text in zip((slot, pairs + slot), texts, strict=True):
      ids, weight = _encode(tokenizer, *text, layout.prompt_weight)
      ids, weight = ids[:-1], weight[:-1]  # pooled texts end without EOS
      if len(ids) > layout.pair_length:
        raise ValueError(
          f"a text of {len(ids)} tokens in pair rows of "
          f"{layout.pair_length}: raise the pair length"
        )
      pair_tokens[place, : len(ids)] = ids
      pair_weights[place, : len(ids)] = weight
  return Batch(
    tokens=tokens,
    weights=weights,
    pair_tokens=pair_tokens,
    pair_weights=pair_weights,
    pair_valid=pair_tokens != tokenizer_lib.PAD,
  )


def _blank(rows, length):
  return (
    np.full((rows, length), tokenizer_lib.PAD, np.int32),
    np.zeros((rows, length), np.float32),
  )


def _encode(tokenizer, prompt, completion, prompt_weight):
  """BOS, prompt, completion, EOS, and the weight of predicting each."""
  head = tokenizer_lib.encode(tokenizer, prompt)
  tail = tokenizer_lib.encode(tokenizer, completion)
  weight = [0.0] + [prompt_weight] * len(head) + [1.0] * (len(tail) + 1)
  return [tokenizer_lib.BOS, *head, *tail, tokenizer_lib.EOS], weight


def _draw_facts(index, rng, pairs):
  """Three different facts of each of pairs/3 different entities."""
  names = list(index.facts_of)
  facts = []
  for place in rng.choice(len(names), pairs // 3, replace=False):
    known = index.facts_of[names[place]]
    facts += [known[i] for i in rng.choice(len(known), 3, replace=False)]
  return facts
