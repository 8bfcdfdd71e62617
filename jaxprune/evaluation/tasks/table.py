"""The tasks, one row each.

| kind | an item is | it is right when |
|---|---|---|
| choice | a question with options | the likeliest option is the answer |
| exact | a problem | the number in the text is the answer's |
| code | a function to write | its tests pass |
| perplexity | a window of a text | (nats) |
| retrieval | a query | (nDCG@10) |
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxprune.evaluation.tasks import choices, problems

CHOICE, EXACT, CODE = "choice", "exact", "code"
PERPLEXITY, RETRIEVAL = "perplexity", "retrieval"
# What kinds mean for a user: the model picks, ranks or writes.
USE = {CHOICE: "choice", RETRIEVAL: "retrieval", EXACT: "generation"}
USE |= {CODE: "generation", PERPLEXITY: "perplexity"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A task that is known by name.

  Attributes:
    kind: of the table above.
    metric: the column of the scores that counts.
    files: where the entries are in a folder of data, the first that exists;
      a pattern may name several, whose entries are taken in turn.
    hub: (data set, configuration, split) on the hub.
    read: from an entry to an item; None where the entries are the items.
    chance: what guessing scores.
    examples: file of solved problems for few-shot prompts; empty for none.
    few_shot: how many of them stand in front where no chat template is used.
    instruction: what a chat prompt asks for, after the question.
    stop: texts that end what is written.
    max_new_tokens: most tokens that are written.
  """

  kind: str
  metric: str
  files: tuple[str, ...]
  hub: tuple[str, str | None, str]
  read: Callable[[Any], Any] | None = None
  chance: float = 0.0
  examples: str = ""
  few_shot: int = 0
  instruction: str = ""
  stop: tuple[str, ...] = ()
  max_new_tokens: int = 256


_MATHS = (
  "Solve it in as few steps as you can. End with #### and the number alone."
)


def _choice(
  metric: str,
  options: int,
  files: tuple[str, ...],
  hub: tuple[str, str | None, str],
  read: Callable[[Any], Any],
) -> Task:
  """A task whose items have so many options each."""
  return Task(
    kind=CHOICE,
    metric=metric,
    chance=1 / options,
    files=files,
    hub=hub,
    read=read,
  )


_GSM8K = dict(
  files=("gsm8k/test.jsonl", "gsm8k.jsonl"),
  hub=("openai/gsm8k", "main", "test"),
)
# Problems whose answer is a number, with the prompts of GSM8K.
_ARITHMETIC = dict(
  kind=EXACT,
  metric="exact",
  examples="gsm8k/train.jsonl",
  few_shot=5,
  instruction=_MATHS,
  stop=("Question:",),
)

TASKS = {
  "mmlu": _choice(
    "acc",
    4,
    ("mmlu/test/*_test.csv", "mmlu.jsonl"),
    ("cais/mmlu", "all", "test"),
    choices.mmlu,
  ),
  "arc_easy": _choice(
    "acc",
    4,
    ("qa/ARC-Easy/test.json", "arc_easy.jsonl"),
    ("allenai/ai2_arc", "ARC-Easy", "test"),
    choices.arc,
  ),
  "arc_challenge": _choice(
    "acc_norm",
    4,
    ("qa/ARC-Challenge/test.json", "arc_challenge.jsonl"),
    ("allenai/ai2_arc", "ARC-Challenge", "test"),
    choices.arc,
  ),
  "openbookqa": _choice(
    "acc_norm",
    4,
    ("qa/openbookqa/test.json", "openbookqa.jsonl"),
    ("allenai/openbookqa", "main", "test"),
    choices.openbookqa,
  ),
  "piqa": _choice(
    "acc",
    2,
    ("qa/piqa/test.json", "piqa.jsonl"),
    ("baber/piqa", None, "validation"),
    choices.piqa,
  ),
  "winogrande": _choice(
    "acc",
    2,
    ("qa/winogrande/test.json", "winogrande.jsonl"),
    ("allenai/winogrande", "winogrande_xl", "validation"),
    choices.winogrande,
  ),
  "hellaswag": _choice(
    "acc_norm",
    4,
    ("hellaswag/test.jsonl", "hellaswag.jsonl"),
    ("Rowan/hellaswag", None, "validation"),
    choices.hellaswag,
  ),
  "boolq": _choice(
    "acc",
    2,
    ("boolq/test.jsonl", "boolq.jsonl"),
    ("aps/super_glue", "boolq", "validation"),
    choices.boolq,
  ),
  "gsm8k": Task(**_ARITHMETIC, **_GSM8K, read=problems.gsm8k),
  # A control: the solutions of gsm8k as options, as long as what is written.
  "gsm8k_choice": _choice("acc", 4, **_GSM8K, read=choices.solution_of_gsm8k),
  "svamp": Task(
    **_ARITHMETIC,
    files=("qa/SVAMP/test.json", "svamp.jsonl"),
    hub=("ChilleD/SVAMP", None, "test"),
    read=problems.svamp,
    max_new_tokens=192,
  ),
  "humaneval": Task(
    kind=CODE,
    metric="passed",
    files=("humaneval/HumanEval.jsonl.gz", "humaneval.jsonl"),
    hub=("openai/openai_humaneval", None, "test"),
  ),
  "mbpp": Task(
    kind=CODE,
    metric="passed",
    files=("mbpp/sanitized-mbpp.json", "mbpp.jsonl"),
    hub=("google-research-datasets/mbpp", "sanitized", "test"),
  ),
  "wikitext2": Task(
    kind=PERPLEXITY,
    metric="nll",
    files=("wikitext2/test.txt", "wikitext2/wiki.test.raw"),
    hub=("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
  ),
  "c4": Task(
    kind=PERPLEXITY,
    metric="nll",
    files=("c4/c4_demo.json", "c4/c4-validation.00000-of-00008.json.gz"),
    hub=("allenai/c4", None, "validation"),
  ),
  "cranfield": Task(
    kind=RETRIEVAL, metric="ndcg@10", files=("cranfield",), hub=("", None, "")
  ),
}
