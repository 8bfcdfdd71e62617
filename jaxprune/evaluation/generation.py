"""What does the model write, is it right, and does it still make sense?

Texts (`writing.continue_prompts`) are compared with answers, with the tokens of
a reference model, and with themselves.

  first divergence  tokens that two continuations share from their beginning
  repetition@n      1 - different n-grams / n-grams, of one continuation
  distinct@n        different n-grams / n-grams, over all continuations
  loop              the text ends in the same p tokens again and again

Reference: Cobbe et al., arXiv:2110.14168 (GSM8K); Rajpurkar et al.,
arXiv:1606.05250 (normalised match); Welleck et al., arXiv:1908.04319
(repetition); Li et al., arXiv:1510.03055 (distinct-n).
"""

import decimal
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from jaxprune.evaluation.writing import Continuation as Continuation
from jaxprune.evaluation.writing import Writing as Writing
from jaxprune.evaluation.writing import continue_prompts as continue_prompts
from jaxprune.evaluation.writing import cut_at as cut_at

_NUMBER = re.compile(
  r"-?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def exact_match(
  texts: Sequence[str],
  answers: Sequence[str],
  extract: Callable[[str], str | None],
) -> np.ndarray:
  """Whether what `extract` finds in a text is what it finds in the answer.

  Args:
    texts: written by the model.
    answers: the right ones.
    extract: `final_number`, `normalised`, or any other; None is no answer.

  Returns:
    bool [n]; False where nothing is found in the text.

  Raises:
    ValueError: not one answer for each text, or nothing is found in an answer.
  """
  if len(texts) != len(answers):
    raise ValueError(
      f"{len(texts)} texts for {len(answers)} answers: give one each"
    )
  wanted = [extract(answer) for answer in answers]
  if None in wanted:
    raise ValueError(
      f"answer {wanted.index(None)}: nothing to compare with in"
      f" {answers[wanted.index(None)][:60]!r}; use another extraction"
    )
  return np.array(
    [extract(text) == right for text, right in zip(texts, wanted)], bool
  )


def final_number(text: str) -> str | None:
  """The number after the last `####`, or else the last number; None without.

  Written without thousands separators, currency sign and trailing zeros, so
  that 1,200.0 and $1200 are the same.
  """
  marked = text.rsplit("####", 1)
  numbers = _NUMBER.findall(marked[1])[:1] if len(marked) == 2 else []
  numbers = numbers or _NUMBER.findall(text)[-1:]
  if not numbers:
    return None
  plain = decimal.Decimal(numbers[0].replace(",", "").replace("$", ""))
  return format(plain.normalize(), "f") if plain else "0"


def normalised(text: str) -> str:
  """Lower case, without punctuation, articles and extra spaces."""
  kept = "".join(
    letter for letter in text.lower() if letter not in string.punctuation
  )
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


EXTRACTIONS = {"final_number": final_number, "normalised": normalised}
# When a text is right, in words.
RULES = {
  "final_number": "the last number of the text, or the one after ####, is that"
  " of the answer",
  "normalised": "the text is the answer, without regard to case, punctuation"
  " and articles",
}


def choose_extraction(answers: Sequence[str]) -> str:
  """How texts are compared with answers: by number, if all of them are one.

  Args:
    answers: the right ones; numbers, or solutions with a number after `####`.

  Returns:
    A key of `EXTRACTIONS`.
  """
  numbers = all(
    final_number(answer) is not None
    and ("####" in answer or _NUMBER.fullmatch(answer.strip()))
    for answer in answers
  )
  return "final_number" if numbers else "normalised"


def first_divergence(
  tokens: Sequence[int], reference: Sequence[int]
) -> int | None:
  """Index of the first differing token; None when both are the same.

  Args:
    tokens: ids of one text.
    reference: ids of the other.

  Returns:
    Where one is the beginning of the other, the length of the shorter.
  """
  for index, (token, other) in enumerate(zip(tokens, reference)):
    if token != other:
      return index
  shorter = min(len(tokens), len(reference))
  return None if len(tokens) == len(reference) else shorter


def repetition(tokens: Sequence[int], n: int) -> float:
  """Fraction of n-grams that stood before in the same text; 0 without any.

  Args:
    tokens: ids of the text.
    n: tokens of an n-gram, at least 1.
  """
  grams = _ngrams(tokens, n)
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
  """Different n-grams over all n-grams of all texts; 0 without any.

  Args:
    texts: ids of each.
    n: tokens of an n-gram, at least 1.
  """
  grams = [gram for tokens in texts for gram in _ngrams(tokens, n)]
  return len(set(grams)) / len(grams) if grams else 0.0


def loop_period(
  tokens: Sequence[int], *, times: int = 3, longest: int = 64
) -> int:
  """Tokens of the piece that a text repeats at its end; 0 if it does not.

  Args:
    tokens: ids.
    times: repetitions in a row that make a loop, at least 2.
    longest: period that is looked for.
  """
  if times < 2:
    raise ValueError(f"times={times}: must be at least 2")
  tokens = list(tokens)
  for period in range(1, min(longest, len(tokens) // times) + 1):
    tail = tokens[-period * times :]
    if tail[period:] == tail[:-period]:
      return period
  return 0


def item_rows(
  continuations: Sequence[Continuation],
  *,
  right: np.ndarray | None = None,
  reference: Sequence[Continuation] | None = None,
) -> list[dict[str, float]]:
  """A row per continuation.

  Args:
    continuations: of the prompts in order.
    right: bool [n], from `exact_match`; None leaves it out.
    reference: the dense model's, for `first_divergence` (the whole length
      where both are the same) and `same`.

  Returns:
    `prompt`, `length` in tokens, `ended_eos`, `repetition@1` to `@4`, `loop`;
    and `exact`, `first_divergence`, `same` where asked for.
  """
  rows = []
  for index, written in enumerate(continuations):
    row = {
      "prompt": index,
      "length": float(len(written.tokens)),
      "ended_eos": float(written.ended == "eos"),
    }
    row |= {
      f"repetition@{n}": repetition(written.tokens, n) for n in range(1, 5)
    }
    row["loop"] = float(loop_period(written.tokens) > 0)
    if right is not None:
      row["exact"] = float(right[index])
    if reference is not None:
      parted = first_divergence(written.tokens, reference[index].tokens)
      row["same"] = float(parted is None)
      row["first_divergence"] = float(
        len(written.tokens) if parted is None else parted
      )
    rows.append(row)
  return rows


def _ngrams(tokens, n):
  if n < 1:
    raise ValueError(f"n={n}: must be at least 1")
  return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
