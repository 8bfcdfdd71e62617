"""From an entry of a published data set to a multiple-choice question.

An entry is read in the public format of its set, or as an instruction: one
string that holds the question and its numbered options, with the name of the
right one as `answer` (`answer3`, `option1`). Both give the same question, in
the words of lm-evaluation-harness.

Reference: lm-evaluation-harness 0.4.13, the tasks of the same names; Hu et al.,
LLM-Adapters, arXiv:2304.01933, for the instructions.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxprune.evaluation.multiple_choice import Question

Entry = Mapping[str, Any]

_LETTERS = "ABCDEFGHIJ"
_OPTION = re.compile(r"(?:^|\s)(?:Answer|Solution|Option|Ending)(\d+):\s?")
_FORMAT = "Answer format:"


def arc(entry: Entry) -> Question:
  """ARC (Easy or Challenge): options are texts after `Answer:`."""
  question, options, answer = _read(
    entry, lambda: (entry["question"], *_lettered(entry))
  )
  return _answered(question, options, answer)


def openbookqa(entry: Entry) -> Question:
  """OpenBookQA: options complete the question."""
  question, options, answer = _read(
    entry, lambda: (entry["question_stem"], *_lettered(entry))
  )
  return Question(context=question, options=tuple(options), answer=answer)


def piqa(entry: Entry) -> Question:
  """PIQA: two solutions of a goal."""
  return _answered(
    *_read(
      entry,
      lambda: (
        entry["goal"],
        (entry["sol1"], entry["sol2"]),
        int(entry["label"]),
      ),
    )
  )


def winogrande(entry: Entry) -> Question:
  """WinoGrande: how likely the rest of the sentence is after each name."""
  sentence, options, answer = _read(
    entry,
    lambda: (
      entry["sentence"],
      (entry["option1"], entry["option2"]),
      int(entry["answer"]) - 1,
    ),
  )
  before, blank, after = sentence.partition("_")
  if not blank:
    raise ValueError("the sentence has no blank, _")
  return Question(
    contexts=tuple(before + option for option in options),
    options=(after.strip(),) * len(options),
    answer=answer,
  )


def hellaswag(entry: Entry) -> Question:
  """HellaSwag: which ending follows."""
  text = f"{entry['ctx_a']} {entry['ctx_b'].capitalize()}"
  return Question(
    context=_cleaned(f"{entry['activity_label']}: {text}"),
    options=tuple(map(_cleaned, entry["endings"])),
    answer=int(entry["label"]),
  )


def boolq(entry: Entry) -> Question:
  """BoolQ: no or yes after a passage."""
  right = entry["answer"] if "answer" in entry else entry["label"]
  return Question(
    context=f"{entry['passage']}\nQuestion: {entry['question']}?\nAnswer:",
    options=("no", "yes"),
    answer=int(right),
  )


def mmlu(entry: Entry) -> Question:
  """MMLU: the letter of the right option, by its subject."""
  options = (
    entry["choices"] if "choices" in entry else [entry[x] for x in "ABCD"]
  )
  right = str(entry["answer"])
  answer = _LETTERS.index(right) if right in _LETTERS else int(right)
  subject = str(entry["subject"]).replace("_", " ")
  lines = "\n".join(
    f"{letter}. {option}" for letter, option in zip(_LETTERS, options)
  )
  return Question(
    context="The following are multiple choice questions (with answers) about"
    f" {subject}.\n\n{str(entry['question']).strip()}\n{lines}\nAnswer:",
    options=tuple(_LETTERS[: len(options)]),
    answer=answer,
  )


def solution_of_gsm8k(entry: Entry) -> Question:
  """GSM8K as a choice: the published solution among three false ones.

  The false ones are the same text with other results, each the same wherever it
  stands, so that options are as long as what a model has to write, and nothing
  but the arithmetic tells them apart. A control for the length of generation.
  """
  question, right = entry["question"], _CALCULATOR.sub("", entry["answer"])
  false = [_disturbed(right, shift) for shift in (1, 2, 3)]
  answer = len(question) % 4
  options = [*false[:answer], right, *false[answer:]]
  return Question(
    context=f"Question: {question}\nAnswer:",
    options=tuple(options),
    answer=answer,
  )


_CALCULATOR = re.compile(r"<<.*?>>")
_RESULT = re.compile(r"(?:=\s*\$?|#### )(-?[\d,]*\d)")
_NUMBER = re.compile(r"\d[\d,]*(?<!,)")


def _disturbed(text: str, shift: int) -> str:
  """The text with other results, each the same wherever it stands."""

  def moved(number):
    value = int(number.replace(",", ""))
    return str(value + shift * max(1, value // 10))

  results = {result.lstrip("-") for result in _RESULT.findall(text)}
  return _NUMBER.sub(
    lambda match: moved(match[0]) if match[0] in results else match[0], text
  )


def _answered(question, options, answer) -> Question:
  return Question(
    context=f"Question: {question}\nAnswer:",
    options=tuple(options),
    answer=answer,
  )


def _lettered(entry):
  """(options, index of the right one) where letters name them."""
  choices = entry["choices"]
  return choices["text"], choices["label"].index(entry["answerKey"].strip())


def _read(entry, public):
  """(question, options, answer) of an instruction, or by `public`."""
  return _instruction(entry) if "instruction" in entry else public()


def _instruction(entry: Entry) -> tuple[str, list[str], int]:
  """(question, options, index of the right one) of an instruction."""
  text, _, names = entry["instruction"].rpartition(_FORMAT)
  head, *parts = _OPTION.split(text)
  names = [name.strip() for name in names.split("/")]
  numbers, options = parts[::2], [part.strip() for part in parts[1::2]]
  if [int(number) for number in numbers] != list(range(1, len(names) + 1)):
    raise ValueError(f"options numbered {', '.join(numbers)} for {names}")
  if entry["answer"] not in names:
    raise ValueError(f"answer {entry['answer']!r} is not one of {names}")
  question = head.partition(": ")[2].strip()
  return question, options, names.index(entry["answer"])


def _cleaned(text: str) -> str:
  """HellaSwag's texts without the marks of their source."""
  text = text.strip().replace(" [title]", ". ")
  return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
