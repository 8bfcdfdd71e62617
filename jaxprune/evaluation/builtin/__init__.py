"""What can any language model be asked, without a file of its user?

Made for this project, in plain English, and read from the files of this folder:

  prompts.jsonl  16 texts to continue, of five kinds
  paper_prompts.jsonl  12 texts to continue, after what Table 3 of He et al.,
                 arXiv 2603.24652, asks: four choices without an answer cue,
                 four word problems, four longer texts; the wording is ours
  choice.jsonl   48 questions with four options; whoever guesses has a quarter
  exact.jsonl    40 items with one right answer, to be written out: sums,
                 copies, next items of lists, facts of a text
  text.txt       a text of 600 words, for the perplexity

The items are easy, so that a small model is well above chance: they show what a
model loses, and do not rank good models.
"""

import dataclasses
import json
import pathlib

from jaxprune.evaluation.multiple_choice import Question, read_questions

FOLDER = pathlib.Path(__file__).parent
CHOICE_CHANCE = 0.25
EXACT_CHANCE = 0.0
# Every answer of exact.jsonl has fewer tokens, in any vocabulary of words.
MAX_NEW_TOKENS = 24
STOP = "\n"  # ends an answer: all of them are one line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A text to continue, and of what kind it is."""

  kind: str
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """A prompt with two solved examples, and what has to follow it."""

  kind: str
  prompt: str
  answer: str


def prompts() -> list[Prompt]:
  """Texts to continue: instruction, question, code, story and list."""
  return [
    Prompt(kind=row["kind"], text=row["prompt"])
    for row in _rows("prompts.jsonl")
  ]


def questions() -> list[Question]:
  """Questions of general knowledge with four options each."""
  return read_questions(FOLDER / "choice.jsonl")


def items() -> list[Item]:
  """Items to write out: arithmetic, copy, list and extraction."""
  return [Item(**row) for row in _rows("exact.jsonl")]


def text() -> list[str]:
  """The paragraphs of a text."""
  whole = (FOLDER / "text.txt").read_text(encoding="utf-8")
  return whole.strip().split("\n\n")


def _rows(name: str) -> list[dict[str, str]]:
  lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]
