"""One function per task: a model and a file in, a number per item out.

`Tasks` says what is asked, `score` asks all of it. Intervals are made in
`summary`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
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
from jaxprune.evaluation.tasks import table
from jaxprune.pocket import shipped
from jaxprune.studies import inputs
from jaxprune.studies.tasks import named, retrieval_data
from jaxprune.studies.tasks.asked import NO_SPECIALS, Model, choose, columns_of
from jaxprune.studies.tasks.asked import Scored as Scored
from jaxprune.studies.tasks.asked import Tasks as Tasks

# The fields that hold a prompt and an answer, in files of different origin.
_PROMPT = ("prompt", "question", "instruction", "text")
_ANSWER = ("answer", "reference", "output")


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
    or tasks.named
    or tasks.pocket
  ):
    raise ValueError(
      "no task: give at least one, such as --tasks=arc_easy, --perplexity,"
      " --choice, --generation or --pocket"
    )
  needs_logits = bool(
    tasks.perplexity
    or tasks.documents
    or tasks.choice
    or tasks.generation
    or named.needs_logits(tasks)
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
  named.check(tasks, sources)
  for text in (*tasks.perplexity, *tasks.documents):
    if text not in documents.NAMES:
      documents.read_documents(text, held_out=True)
  for path in tasks.choice:
    multiple_choice.read_questions(path)
  for folder in tasks.retrieval:
    retrieval_data.read_collection(folder)
  for path in tasks.generation:
    _, answers = read_pairs(path, None)
    if tasks.extract not in ("auto", "none") and answers is None:
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
    *(score_pocket(model, tasks.limit) if tasks.pocket else ()),
    *(
      score_named(model, name, limit, tasks)
      for name, limit in named.names(tasks)
    ),
  ]
  if len({entry.task for entry in scored}) < len(scored):
    raise ValueError(
      "two files of one task have the same name: rename one of them"
    )
  return scored


def score_named(
  model: Model, name: str, limit: int | None, tasks: Tasks
) -> Scored:
  """Score a task of `evaluation.tasks`.

  Args:
    model: who answers.
    name: of the task.
    limit: only the first so many items; None is all.
    tasks: where the data is, and how texts are written and embedded.
  """
  task = table.TASKS[name]
  chosen = dataclasses.replace(tasks, limit=limit)
  if task.kind == table.PERPLEXITY:
    scored = score_perplexity(model, *named.read(tasks, name, limit), chosen)
  elif task.kind == table.RETRIEVAL:
    scored = score_retrieval(model, *named.read(tasks, name, limit), chosen)
  else:
    return named.score(model, name, limit, tasks)
  return dataclasses.replace(scored, task=name, named=name)


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
  choices, columns = choose(model, questions)
  return Scored(
    task=f"choice {_stem(path)}",
    item="question",
    columns=columns,
    detail=choices,
    rules=dict(multiple_choice.RULES),
    chance=float(np.mean([1 / len(each.options) for each in questions])),
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
    columns=columns_of(rows, "question"),
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
    path: jsonl of prompts, and answers where texts are compared with them.
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
  right, extract, rules = None, tasks.extract, {}
  if extract == "auto":
    extract = generation.choose_extraction(answers) if answers else "none"
  if extract != "none":
    right = generation.exact_match(
      [continuation.text for continuation in written],
      answers,
      generation.EXTRACTIONS[extract],
    )
    rules = {"exact": generation.RULES[extract]}
  task = f"generation {_stem(path)}"
  reference = None if references is None else references.get(task, written)
  rows = generation.item_rows(written, right=right, reference=reference)
  return Scored(
    task=task,
    item="prompt",
    columns=columns_of(rows, "prompt"),
    detail=written,
    rules=rules,
  )


def score_pocket(model: Model, limit: int | None) -> list[Scored]:
  """The pocket model's own tasks, and how likely the right answers are.

  `pocket answers` is the teacher-forced side of `pocket generate`: perplexity
  of the very texts that have to be written.

  Args:
    model: the model.
    limit: of the items of each task; None is all.
  """
  metric = {"retrieve": "ndcg@10", "generate": "exact"}
  answers = shipped.read_answers(model.config, model.params, limit=limit)
  tokens = answers.tokens.astype(float)
  items = shipped.item_scores(model.config, model.params, answers, limit=limit)
  return [
    Scored(
      task=f"pocket {name}",
      item="question",
      columns={metric.get(name, "acc"): values},
      traits={"answer_tokens": tokens} if name == "generate" else {},
      chance=shipped.CHANCE.get(name, 0.0),
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

  Raises:
    ValueError: a row has no prompt, or no answer where others have one.
  """
  prompts = documents.read_rows(path, _PROMPT)[:limit]
  if not documents.has_field(path, _ANSWER):
    return prompts, None
  return prompts, documents.read_rows(path, _ANSWER)[:limit]


def _stem(path: str) -> str:
  return path.rsplit("/", 1)[-1].split(".")[0]
