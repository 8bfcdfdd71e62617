"""One function per task: a model and a file in, a number per item out.

`Tasks` says what is asked, `score` asks all of it. Intervals are made in
`summary`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import SpecialTokens, documents, encode
from jaxprune.evaluation import (
  embeddings,
  generation,
  multiple_choice,
  perplexity,
  retrieval,
)
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.models import ModelConfig
from jaxprune.pocket import shipped
from jaxprune.studies import inputs
from jaxprune.studies.tasks import retrieval_data

EXTRACTIONS = {
  "final_number": generation.final_number,
  "normalised": generation.normalised,
}
# The fields that hold a prompt and an answer, in files of different origin.
_PROMPT = ("prompt", "question", "instruction", "text")
_ANSWER = ("answer", "reference", "output")


NO_SPECIALS = SpecialTokens()  # the config alone says what ends a text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
  """What is asked of a model.

  Attributes:
    perplexity: texts that are read in windows: files, wikitext2 or c4.
    documents: files whose documents are each read by themselves.
    choice: jsonl files of multiple-choice questions.
    retrieval: folders of retrieval collections.
    generation: jsonl files of prompts that are continued greedily.
    pocket: whether the tasks of the pocket model's world are asked.
    limit: only the first so many items of each task; None is all.
    seq_len: tokens of a window for perplexity.
    max_new_tokens: most tokens that are written after a prompt.
    extract: what is compared with the answer of a generation item, a key of
      `EXTRACTIONS`, or none.
    pooling: how tokens become the embedding of a text, one of
      `embeddings.POOLINGS`; None is what modules.json of the folder says, or
      else the mean.
    query_prompt: put in front of every query: the name of a prompt of the
      folder, or a text. None is the folder's prompt 'query', if it has one.
    chat: whether the prompts of generation are turns of a conversation, one of
      `chat.CHAT`.
  """

  perplexity: tuple[str, ...] = ()
  documents: tuple[str, ...] = ()
  choice: tuple[str, ...] = ()
  retrieval: tuple[str, ...] = ()
  generation: tuple[str, ...] = ()
  pocket: bool = False
  limit: int | None = None
  seq_len: int = 512
  max_new_tokens: int = 64
  extract: str = "none"
  pooling: str | None = None
  query_prompt: str | None = None
  chat: str = "no"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
  """A loaded model.

  Attributes:
    config: of the model.
    params: its parameters, float32.
    tokenizer: what encodes the texts; two models that are compared share that
      of the dense one.
    specials: what begins and ends a text by that tokenizer's files.
    recipe: how the folder says that texts are embedded; None where it does not.
    template: from the words of a prompt to what is read, see `chat.template`;
      None where they are the same.
    bookkeeping: keeps what the model answers, and tells of it.
  """

  config: ModelConfig
  params: Any
  tokenizer: Any
  specials: SpecialTokens = NO_SPECIALS
  recipe: checkpoints.Recipe | None = None
  template: Callable[[str], str] | None = None
  bookkeeping: Bookkeeping = NO_BOOKKEEPING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
  """What one model scored.

  Attributes:
    task: its name.
    item: what an item is: `question`, `prompt`, `window` or `document`.
    columns: metric to float64 [items].
    weights: what the mean of a column divides by, [items]; None is 1. Of a
      perplexity: tokens, for the column nll.
    traits: what an item is like whatever the model, name to float64 [items].
    detail: what a comparison of two models needs besides.
  """

  task: str
  item: str
  columns: dict[str, np.ndarray]
  weights: np.ndarray | None = None
  traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  detail: Any = None


def check(tasks: Tasks, sources: Sequence[checkpoints.Source]) -> None:
  """Read what the tasks will read, before any model is loaded.

  Args:
    tasks: what will be asked.
    sources: the models that will be asked.

  Raises:
    ValueError: nothing is asked, a file is missing or broken, answers are
      asked for that a file does not hold, a model does not speak the language
      of the pocket tasks, or it lacks the output head that they need.
  """
  if not (
    tasks.perplexity
    or tasks.documents
    or tasks.choice
    or tasks.retrieval
    or tasks.generation
    or tasks.pocket
  ):
    raise ValueError(
      "no task: give at least one, such as --perplexity, --choice,"
      " --generation or --pocket"
    )
  needs_logits = bool(
    tasks.perplexity
    or tasks.documents
    or tasks.choice
    or tasks.generation
    or tasks.pocket
  )
  for source in sources:
    if needs_logits:
      checkpoints.check_head(source)
    if tasks.pocket and not inputs.is_pocket(source):
      raise ValueError(
        f"--pocket: {source.folder} does not speak the pocket model's"
        " language; leave the flag out"
      )
  for path in tasks.choice:
    multiple_choice.read_questions(path)
  for folder in tasks.retrieval:
    retrieval_data.read_collection(folder)
  for path in tasks.generation:
    _, answers = read_pairs(path, None)
    if tasks.extract != "none" and answers is None:
      raise ValueError(
        f"{path}: has no field {' or '.join(_ANSWER)}; use --extract=none"
      )


def load(
  source: checkpoints.Source,
  tokenizer: Any,
  specials: SpecialTokens = NO_SPECIALS,
) -> Model:
  """Load a model for scoring, in float32.

  Args:
    source: its checkpoint.
    tokenizer: what encodes the texts.
    specials: what begins and ends a text by that tokenizer's files.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  return Model(
    config=config,
    params=params,
    tokenizer=tokenizer,
    specials=specials,
    recipe=checkpoints.read_recipe(source.folder),
  )


def score(
  model: Model,
  tasks: Tasks,
  references: Mapping[str, list[generation.Continuation]] | None,
) -> list[Scored]:
  """Ask one model everything.

  Args:
    model: who answers.
    tasks: what is asked.
    references: by task, what the model is compared with; None for none.

  Raises:
    ValueError: two files give tasks of the same name, or a prompt does not fit
      the context.
  """
  scored = [
    *(score_perplexity(model, text, tasks) for text in tasks.perplexity),
    *(score_documents(model, path, tasks) for path in tasks.documents),
    *(score_choice(model, path, tasks.limit) for path in tasks.choice),
    *(score_retrieval(model, folder, tasks) for folder in tasks.retrieval),
    *(
      score_generation(model, path, tasks, references)
      for path in tasks.generation
    ),
    *(score_pocket(model) if tasks.pocket else ()),
  ]
  if len({entry.task for entry in scored}) < len(scored):
    raise ValueError(
      "two files of one task have the same name: rename one of them"
    )
  return scored


def score_perplexity(model: Model, source: str, tasks: Tasks) -> Scored:
  """Read a joined text in windows, as the pruning papers do.

  Args:
    model: who reads.
    source: a file, wikitext2 or c4.
    tasks: says how long a window is, and how many are read.
  """
  text = perplexity.read_held_out_text(source)
  windows = perplexity.score_windows(
    model.config,
    model.params,
    encode(model.tokenizer, text),
    tasks.seq_len,
    max_windows=tasks.limit,
  )
  return Scored(
    task=f"perplexity {_stem(source)}",
    item="window",
    columns={"nll": windows.nll},
    weights=windows.tokens,
  )


def score_documents(model: Model, source: str, tasks: Tasks) -> Scored:
  """Read every document by itself, each token predicted exactly once.

  Args:
    model: who reads.
    source: a file, wikitext2 or c4.
    tasks: says how many tokens a prediction may see, and how many documents
      are read.

  Raises:
    ValueError: no document has two tokens.
  """
  read = documents.read_documents(source, held_out=True)
  ids = [encode(model.tokenizer, text) for text in read if text.strip()]
  ids = [tokens for tokens in ids if len(tokens) > 1][: tasks.limit]
  scored = perplexity.score_documents(
    model.config, model.params, ids, tasks.seq_len
  )
  return Scored(
    task=f"documents {_stem(source)}",
    item="document",
    columns={"nll": scored.nll},
    weights=scored.tokens,
  )


def score_choice(model: Model, path: str, limit: int | None) -> Scored:
  """Choose among options by log-likelihood.

  Args:
    model: who chooses.
    path: jsonl of questions.
    limit: only the first so many; None is all.
  """
  questions = multiple_choice.read_questions(path, limit)
  choices = multiple_choice.score_questions(
    model.config,
    model.params,
    model.tokenizer,
    questions,
    joining=multiple_choice.Joining(prefix_id=model.specials.prefix_id),
    bookkeeping=model.bookkeeping,
  )
  return Scored(
    task=f"choice {_stem(path)}",
    item="question",
    columns=_columns(multiple_choice.item_rows(choices), "question"),
    detail=choices,
  )


def score_retrieval(model: Model, folder: str, tasks: Tasks) -> Scored:
  """Retrieve by pooled embeddings; a long text loses its end.

  Args:
    model: who embeds.
    folder: of the collection.
    tasks: says how tokens are pooled, and how many queries are asked.
  """
  collection = retrieval_data.read_collection(folder)
  limit, recipe = tasks.limit, _recipe(model, tasks)
  asked = tasks.query_prompt
  asked = recipe.prompt("query") if asked is None else asked
  queries_QD, documents_AD = (
    embeddings.embed_texts(
      model.config, model.params, model.tokenizer, texts, recipe, prompt=prompt
    )
    for texts, prompt in (
      (collection.queries[:limit], recipe.prompts.get(asked, asked)),
      (collection.documents, recipe.prompt("document", "passage", "corpus")),
    )
  )
  order_QA, _ = retrieval.search(queries_QD, documents_AD, 100)
  rows = retrieval.evaluate_order(
    order_QA, collection.qrels[:limit], cutoffs=(10, 100)
  )
  return Scored(
    task=f"retrieval {collection.name}",
    item="question",
    columns=_columns(rows, "question"),
  )


def _recipe(model: Model, tasks: Tasks) -> checkpoints.Recipe:
  """How texts become vectors: what the tasks say goes before the folder."""
  plain = checkpoints.Pooling(kind=tasks.pooling or "mean", normalise=True)
  if model.recipe is None:
    return checkpoints.Recipe(pooling=plain)
  if tasks.pooling is None:
    return model.recipe
  return dataclasses.replace(model.recipe, pooling=plain)


def score_generation(
  model: Model,
  path: str,
  tasks: Tasks,
  references: Mapping[str, list[generation.Continuation]] | None,
) -> Scored:
  """Write greedy texts: right or not, and what became of them.

  Args:
    model: who writes.
    path: jsonl of prompts, and answers unless `tasks.extract` is none.
    tasks: says how much is written, and what is compared with the answer.
    references: texts of the dense model by task, to compare with. A task that
      is not among them is compared with itself; None compares nothing.

  Raises:
    ValueError: a prompt and what is to be written exceed the context.
  """
  texts, answers = read_pairs(path, tasks.limit)
  config, max_new_tokens = model.config, tasks.max_new_tokens
  if model.template is None:
    prompts = [encode(model.tokenizer, text) for text in texts]
  else:  # the template has written the special tokens already
    prompts = [
      encode(model.tokenizer, model.template(text), False) for text in texts
    ]
  longest = max(map(len, prompts))
  if longest > config.max_positions - max_new_tokens:
    raise ValueError(
      f"{path}: a prompt of {longest} tokens and --max_new_tokens="
      f"{max_new_tokens} exceed the context, {config.max_positions}:"
      " shorten one of them"
    )
  written = generation.continue_prompts(
    config,
    model.params,
    model.tokenizer,
    prompts,
    generation.Writing(
      max_new_tokens=max_new_tokens, eos_ids=model.specials.end_ids
    ),
    bookkeeping=model.bookkeeping,
  )
  right = None
  if tasks.extract != "none":
    right = generation.exact_match(
      [continuation.text for continuation in written],
      answers,
      EXTRACTIONS[tasks.extract],
    )
  task = f"generation {_stem(path)}"
  reference = None if references is None else references.get(task, written)
  rows = generation.item_rows(written, right=right, reference=reference)
  return Scored(
    task=task, item="prompt", columns=_columns(rows, "prompt"), detail=written
  )


def score_pocket(model: Model) -> list[Scored]:
  """The pocket model's own tasks, and how likely the right answers are.

  `pocket answers` is the teacher-forced side of `pocket generate`: perplexity
  of the very texts that have to be written.
  """
  metric = {"retrieve": "ndcg@10", "generate": "exact"}
  answers = shipped.read_answers(model.config, model.params)
  tokens = answers.tokens.astype(float)
  items = shipped.item_scores(model.config, model.params, answers)
  return [
    Scored(
      task=f"pocket {name}",
      item="question",
      columns={metric.get(name, "acc"): values},
      traits={"answer_tokens": tokens} if name == "generate" else {},
    )
    for name, values in items.items()
  ] + [
    Scored(
      task="pocket answers",
      item="question",
      columns={"nll": -answers.nats},
      weights=tokens,
    )
  ]


def read_pairs(
  path: str, limit: int | None
) -> tuple[list[str], list[str] | None]:
  """Read prompts, and answers where the file has them.

  Args:
    path: jsonl.
    limit: only the first so many; None is all.
  """
  prompts = documents.read_rows(path, _PROMPT)[:limit]
  try:
    answers = documents.read_rows(path, _ANSWER)[:limit]
  except ValueError:
    return prompts, None
  return prompts, answers if len(answers) == len(prompts) else None


def _columns(rows, item) -> dict[str, np.ndarray]:
  return {
    name: np.array([row[name] for row in rows], float)
    for name in rows[0]
    if name != item
  }


def _stem(path: str) -> str:
  return path.rsplit("/", 1)[-1].split(".")[0]
