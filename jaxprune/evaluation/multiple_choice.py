"""Which option does the model find likeliest, and how sure is it?

Every option is read after the context and scored by its log-likelihood.

  acc       the likeliest option is the answer (the first of equals counts)
  acc_norm  the same after division by the option's length in UTF-8 bytes
  margin    nats of the answer less those of the best other option; > 0 is right
  confidence  largest softmax over the options' nats
  ECE       sum over bins b of (n_b / n) |mean acc - mean confidence|

Flips compare two models item by item: the accuracy can stay while the answers
change.

Reference: lm-evaluation-harness 0.4.13 for acc and acc_norm (its `acc_bytes`;
its own `acc_norm` divides by characters, the same for ASCII); Guo et al.,
arXiv:1706.04599, equation 3, for ECE; Dutta et al., arXiv:2407.09141, for
flips.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxprune import files
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.evaluation.loglikelihoods import encode_pair, loglikelihoods
from jaxprune.models import Gates, ModelConfig

if TYPE_CHECKING:
  import tokenizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question with options.

  Attributes:
    context: what all options follow; empty where `contexts` are given.
    options: texts.
    answer: index of the right option.
    contexts: what each option follows, where they differ in it; else empty.
  """

  options: tuple[str, ...]
  answer: int
  context: str = ""
  contexts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joining:
  """How a context and an option become one text.

  Attributes:
    delimiter: text between them, see `follow`; not part of the option's
      length.
    add_bos: whether BOS stands first; None asks the tokenizer.
    prefix_id: what an empty context is; None is the config's beginning of text,
      or else its end. The tokenizer's files may say another one
      (`calibration.special_tokens`).
  """

  delimiter: str = " "
  add_bos: bool | None = None
  prefix_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
  """What a model says of n questions with at most C options.

  Attributes:
    nats: log-likelihood of each option, float64 [X, C]; -inf where a question
      has fewer options.
    greedy: whether greedy decoding would write the option, bool [X, C].
    bytes: UTF-8 length of each option, int64 [X, C]; 1 where there is none.
    tokens: the same in tokens, int64 [X, C].
    answers: index of the right option, int64 [n].
    cut: questions whose context lost its beginning, bool [n].
  """

  nats: np.ndarray
  greedy: np.ndarray
  bytes: np.ndarray
  tokens: np.ndarray
  answers: np.ndarray
  cut: np.ndarray


def read_questions(
  path: str | os.PathLike, limit: int | None = None
) -> list[Question]:
  """Read a jsonl file with `context`, `options` and `answer` per line.

  Args:
    path: of the file.
    limit: only the first so many questions; None is all.

  Raises:
    ValueError: a line lacks a field, has one option only, or an answer that is
      no index of its options.
  """
  questions = []
  if not os.path.isfile(path):
    raise ValueError(f"{path}: no such file; give a jsonl of questions")
  with open(path, "rb") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip() or len(questions) == limit:
        continue
      try:
        row = files.parse_json(line, constants=True)
        question = Question(
          context=_text(row["context"]),
          options=tuple(map(_text, _listed(row["options"]))),
          answer=row["answer"],
        )
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"{path}: line {number}: {type(error).__name__}: {error!s:.200};"
          " each line needs context, options and answer"
        ) from None
      _check(question, f"{path}: line {number}")
      questions.append(question)
  if not questions:
    raise ValueError(f"{path}: no question in it; write one per line")
  return questions


# When an item is right, in words.
RULES = {
  "acc": "the option with the highest probability is the answer",
  "acc_norm": "the same with the log-probability of an option divided by its"
  " bytes",
}


def follow(context: str, option: str, delimiter: str = " ") -> tuple[str, str]:
  """What is read of a context, and of an option after it.

  There is one delimiter between them, whether the file has written it at the
  end of the context, at the beginning of the option, or not at all.

  Args:
    context: text.
    option: text.
    delimiter: text between them.

  Returns:
    The context, and the option with the delimiter in front.
  """
  if not delimiter:
    return context, option
  while context.endswith(delimiter):
    context = context.removesuffix(delimiter)
  return context, delimiter + option.removeprefix(delimiter)


def score_questions(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: "tokenizers.Tokenizer",
  questions: Sequence[Question],
  *,
  joining: Joining = Joining(),
  gates: Gates | None = None,
  sharding: jax.sharding.Sharding | None = None,
  bookkeeping: Bookkeeping = NO_BOOKKEEPING,
) -> Choices:
  """Read every context once, and every option after it.

  Args:
    config: the model.
    params: its parameters.
    tokenizer: the model's, from `calibration.load_tokenizer`.
    questions: at least one.
    joining: how context and option become one text.
    gates: which sublayers stay; None is all.
    sharding: of the batch, over its first axis.
    bookkeeping: keeps every finished batch, and tells of it.

  Raises:
    ValueError: no question; one lacks a part, has an id outside the
      vocabulary, or an option that exceeds the model's context.
  """
  for index, question in enumerate(questions):
    _check(question, f"question {index}")
  candidates = (joining.prefix_id, config.bos_id, *config.eos_ids)
  empty = next((id_ for id_ in candidates if id_ is not None), None)
  requests = [
    encode_pair(
      tokenizer,
      *follow(context, option, joining.delimiter),
      add_bos=joining.add_bos,
      bos_id=config.bos_id,
      empty_context=empty,
    )
    for question in questions
    for context, option in zip(_contexts(question), question.options)
  ]
  scores = loglikelihoods(
    config,
    params,
    requests,
    gates=gates,
    sharding=sharding,
    bookkeeping=bookkeeping,
  )
  counts = [len(question.options) for question in questions]

  def table(flat, fill):
    rows = np.split(np.asarray(flat), np.cumsum(counts)[:-1])
    return np.stack(
      [
        np.pad(row, (0, max(counts) - len(row)), constant_values=fill)
        for row in rows
      ]
    )

  return Choices(
    nats=table(scores.nats, -np.inf),
    greedy=table(scores.greedy, False),
    bytes=table(
      [
        len(option.removeprefix(joining.delimiter).encode())
        for question in questions
        for option in question.options
      ],
      1,
    ),
    tokens=table(scores.tokens, 1),
    answers=np.array([question.answer for question in questions]),
    cut=table(scores.cut, False).any(axis=1),
  )


def predictions(choices: Choices, normalise: bool = False) -> np.ndarray:
  """The likeliest option of each question.

  Args:
    choices: what a model says.
    normalise: whether log-likelihoods are divided by bytes.

  Returns:
    int [n], the first of equals.
  """
  nats_XC = choices.nats / choices.bytes if normalise else choices.nats
  return nats_XC.argmax(axis=1)


def correct(choices: Choices, normalise: bool = False) -> np.ndarray:
  """Whether the prediction is the answer; bool [n].

  Args:
    choices: what a model says.
    normalise: whether log-likelihoods are divided by bytes.
  """
  return predictions(choices, normalise) == choices.answers


def margins(choices: Choices) -> np.ndarray:
  """Nats of the answer less the best of the others; float64 [n]."""
  index_X1 = choices.answers[:, None]
  right_X = np.take_along_axis(choices.nats, index_X1, axis=1)[:, 0]
  others_XC = choices.nats.copy()
  np.put_along_axis(others_XC, index_X1, -np.inf, axis=1)
  return right_X - others_XC.max(axis=1)


def confidences(choices: Choices) -> np.ndarray:
  """Probability of the prediction among the options; float64 [n]."""
  shifted_XC = choices.nats - choices.nats.max(axis=1, keepdims=True)
  return 1 / np.exp(shifted_XC).sum(axis=1)


def calibration_error(
  confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> float:
  """Expected calibration error with bins of equal width, (low, high].

  Args:
    confidence: [n] in [0, 1].
    right: bool [n].
    bins: of equal width over [0, 1]; a confidence of 0 is in the first.
  """
  if bins < 1:
    raise ValueError(f"bins={bins}: must be at least 1")
  place = np.clip(
    np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1
  )
  gap = np.bincount(
    place, np.asarray(right, float) - confidence, minlength=bins
  )
  return float(np.abs(gap).sum() / len(place))


def flips(dense: Choices, pruned: Choices) -> dict[str, np.ndarray]:
  """How the pruned model's answers differ, item by item.

  Args:
    dense: what the dense model says.
    pruned: what the pruned model says of the same questions.

  Returns:
    bool [n] each: `changed` another option; `lost` right to wrong; `gained`
    wrong to right.

  Raises:
    ValueError: the two were asked different questions.
  """
  if not np.array_equal(dense.answers, pruned.answers):
    raise ValueError("flips: the models were asked different questions")
  was, now = correct(dense), correct(pruned)
  return {
    "changed": predictions(dense) != predictions(pruned),
    "lost": was & ~now,
    "gained": ~was & now,
  }


def item_rows(choices: Choices) -> list[dict[str, float]]:
  """A row per question: question, acc, acc_norm, margin, confidence."""
  columns = {
    "question": np.arange(len(choices.answers)),
    "acc": correct(choices).astype(float),
    "acc_norm": correct(choices, normalise=True).astype(float),
    "margin": margins(choices),
    "confidence": confidences(choices),
  }
  return [
    dict(zip(columns, row))
    for row in zip(*(column.tolist() for column in columns.values()))
  ]


def _listed(value: Any) -> list[Any]:
  if not isinstance(value, list):
    raise TypeError(f"options are {value!r:.40}, no list")
  return value


def _text(value: Any) -> str:
  """A text, or a number as one."""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise TypeError(f"{value!r:.40} is no text")
  return str(value)


def _check(question: Question, place: str) -> None:
  count = len(question.options)
  answer = question.answer
  if (
    count < 2
    or isinstance(answer, bool)
    or not isinstance(answer, int)
    or (not 0 <= answer < count)
  ):
    raise ValueError(
      f"{place}: {count} options and answer {answer!r}; need at least two"
      " options and an index among them"
    )
  if not all(question.options):
    raise ValueError(f"{place}: an option is empty; give it some text")
  if question.contexts and len(question.contexts) != count:
    raise ValueError(
      f"{place}: {len(question.contexts)} contexts for {count} options; give"
      " one each"
    )


def _contexts(question: Question) -> tuple[str, ...]:
  """What stands before each option."""
  return question.contexts or (question.context,) * len(question.options)
