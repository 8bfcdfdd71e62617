"""How well does a model do the tasks: from items to scores.

Works for any parameters of the decoder, so a pruned model is scored the same
way. Nothing is sampled.
"""

from collections.abc import Sequence

import numpy as np
import tokenizers
from einops import rearrange

from jaxprune.evaluation import embeddings, loglikelihoods
from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.pocket import tasks as tasks_lib
from jaxprune.pocket import tokenizer as tokenizer_lib

_ROWS = 64  # per call: small enough for one core's cache, large enough to fill


def score(
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  tasks: tasks_lib.Tasks,
  *,
  gates: decoder.Gates | None = None,
) -> dict[str, float]:
  """Score a model on all items of a split.

  Args:
    config, params, tokenizer: the model, computed in the dtype of params.
    tasks: items.
    gates: which sublayers stay; None is all.

  Returns:
    Means in [0, 1]: 'choose', 'retrieve' (nDCG@10), 'generate', 'stories',
    and 'choose/KIND', 'generate/KIND' for each kind of item.
  """
  items = item_scores(config, params, tokenizer, tasks, gates=gates)
  scores = {name: float(values.mean()) for name, values in items.items()}
  for name, asked in (("choose", tasks.choose), ("generate", tasks.generate)):
    kinds = np.array([item.kind for item in asked])
    for kind in sorted(set(kinds.tolist())):
      scores[f"{name}/{kind}"] = float(items[name][kinds == kind].mean())
  return scores


def item_scores(
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  tasks: tasks_lib.Tasks,
  *,
  gates: decoder.Gates | None = None,
  answers: loglikelihoods.LogLikelihoods | None = None,
) -> dict[str, np.ndarray]:
  """Score every item of a split, see `score`.

  Args:
    config, params, tokenizer: the model, computed in the dtype of params.
    tasks: items.
    gates: which sublayers stay; None is all.
    answers: from `read_answers`, where they are known already.

  Returns:
    float64 [items] in [0, 1] under 'choose', 'retrieve', 'generate' and
    'stories', in the order of the items.
  """
  chosen, followed = (
    tasks_lib.choose_correct(
      option_log_likelihoods(config, params, tokenizer, items, gates),
      [item.label for item in items],
    )
    for items in (tasks.choose, tasks.stories)
  )
  retrieve = tasks.retrieve
  queries_QD, passages_AD = (
    embed_texts(config, params, tokenizer, texts, gates)
    for texts in (retrieve.queries, retrieve.passages)
  )
  nearest = tasks_lib.ndcg(queries_QD @ passages_AD.T, retrieve.relevant)
  answers = answers or read_answers(
    config, params, tokenizer, tasks.generate, gates
  )
  return {
    "choose": chosen.astype(float),
    "retrieve": nearest,
    "generate": answers.greedy.astype(float),
    "stories": followed.astype(float),
  }


def option_log_likelihoods(
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  items: Sequence[tasks_lib.Choose],
  gates: decoder.Gates | None = None,
) -> np.ndarray:
  """Read each option after its prompt.

  Args:
    config, params, tokenizer: the model.
    items: n questions.
    gates: which sublayers stay; None is all.

  Returns:
    Nats, summed over the tokens of an option, [n, 4].
  """
  requests = [
    (_head(tokenizer, item.prompt), tokenizer_lib.encode(tokenizer, option))
    for item in items
    for option in item.options
  ]
  read = loglikelihoods.loglikelihoods(config, params, requests, gates=gates)
  return rearrange(read.nats, "(X C) -> X C", X=len(items))


def read_answers(
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  items: Sequence[tasks_lib.Generate],
  gates: decoder.Gates | None = None,
) -> loglikelihoods.LogLikelihoods:
  """Read every right answer, and the end of the text after it.

  Greedy decoding leaves the answer at the first token whose largest logit is
  another one, so reading the answer once (teacher-forced) decides whether it
  writes exactly the answer and then stops: `greedy`. The text itself needs
  `jaxprune.models.generation`.

  Args:
    config, params, tokenizer: the model.
    items: prompts with their answers.
    gates: which sublayers stay; None is all.
  """
  requests = [
    (
      _head(tokenizer, item.prompt),
      [*tokenizer_lib.encode(tokenizer, item.answer), tokenizer_lib.EOS],
    )
    for item in items
  ]
  return loglikelihoods.loglikelihoods(config, params, requests, gates=gates)


def embed_texts(
  config: ModelConfig,
  params: decoder.Params,
  tokenizer: tokenizers.Tokenizer,
  texts: Sequence[str],
  gates: decoder.Gates | None = None,
) -> np.ndarray:
  """Unit vectors: mean over BOS and all tokens of the normed hidden states.

  Args:
    config, params, tokenizer: the model.
    texts: n of them.
    gates: which sublayers stay; None is all.

  Returns:
    float32 [X, D].
  """
  return embeddings.embed_tokens(
    config,
    params,
    [_head(tokenizer, text) for text in texts],
    pooling="mean",
    gates=gates,
    batch_size=_ROWS,
  )


def _head(tokenizer, text):
  return [tokenizer_lib.BOS, *tokenizer_lib.encode(tokenizer, text)]
