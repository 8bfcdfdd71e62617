"""From an entry of a published data set to a problem with one answer.

Reference: Cobbe et al., GSM8K, arXiv:2110.14168; Patel et al., SVAMP,
arXiv:2103.07191; the prompts without chat are those of lm-evaluation-harness
0.4.13, `gsm8k`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CALCULATOR = re.compile(r"<<.*?>>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """What a model has to answer in words of its own.

  Attributes:
    prompt: what it reads, without examples.
    answer: what its text is compared with.
    reference: a right text as it was published; empty where there is none.
  """

  prompt: str
  answer: str
  reference: str = ""


def gsm8k(entry: Mapping[str, Any]) -> Problem:
  """GSM8K: the reference is the published solution without calculator marks."""
  return Problem(
    prompt=f"Question: {entry['question']}\nAnswer:",
    answer=entry["answer"],
    reference=" " + _CALCULATOR.sub("", entry["answer"]),
  )


def svamp(entry: Mapping[str, Any]) -> Problem:
  """SVAMP: the answer is a number; its set has no solutions in words."""
  if "instruction" in entry:
    question, answer = entry["instruction"], entry["answer"]
  else:
    question = f"{entry['Body'].strip().rstrip('.')}. {entry['Question']}"
    answer = entry["Answer"]
  return Problem(prompt=f"Question: {question}\nAnswer:", answer=str(answer))


def with_examples(
  problem: Problem, examples: Sequence[Problem], instruction: str
) -> str:
  """The prompt after solved examples and what is to be done.

  Args:
    problem: to be solved.
    examples: solved, each with a reference.
    instruction: what is to be done, at the end; empty for none.
  """
  solved = "".join(
    f"{example.prompt}{example.reference}\n\n" for example in examples
  )
  if not instruction:
    return solved + problem.prompt
  question = problem.prompt.removesuffix("\nAnswer:")
  return f"{solved}{question.removeprefix('Question: ')}\n{instruction}"
