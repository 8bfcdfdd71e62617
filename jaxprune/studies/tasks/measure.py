"""One or two models are asked everything, item by item."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxprune import checkpoints, report
from jaxprune.calibration import load_tokenizer, special_tokens
from jaxprune.evaluation import chat
from jaxprune.evaluation.journal import NO_BOOKKEEPING, Bookkeeping
from jaxprune.models import ModelConfig
from jaxprune.studies import inputs
from jaxprune.studies.tasks import scores
from jaxprune.studies.tasks.scores import Scored, Tasks

FIELDS = {
  "window": report.Field("int", "", "index of the window of text, from 0")
}


def open_models(
  model: str | None, dense: str | None, pruned: str | None
) -> dict[str, checkpoints.Source]:
  """Open one model, or a dense and a pruned one.

  Args:
    model: a folder, a hub id or pocket; None where there are two models.
    dense: the original of two models.
    pruned: the pruned of two models.

  Returns:
    By name: `model`, or `dense` and `pruned`.

  Raises:
    ValueError: neither one model nor two are named, one is an encoder, or the
      two read different ids.
  """
  pair = dense, pruned
  if (model is None) == (None in pair) or (model is not None and any(pair)):
    raise ValueError("give either --model, or both --dense and --pruned")
  names = {"model": model} if model is not None else {}
  names = names or {"dense": dense, "pruned": pruned}
  sources = {
    name: inputs.open_model(where, logits=False)
    for name, where in names.items()
  }
  for source in sources.values():
    if not isinstance(source.config, ModelConfig):
      raise ValueError(f"{source.folder}: is an encoder; give a decoder")
  if len({source.config.vocab_size for source in sources.values()}) > 1:
    raise ValueError(
      "--dense and --pruned have vocabularies of different sizes; give two"
      " models that read the same ids"
    )
  return sources


def measure(
  sources: Mapping[str, checkpoints.Source],
  tasks: Tasks,
  run: report.RunFolder,
  progress: Any,
  keep: Callable[[str], Bookkeeping] = lambda name: NO_BOOKKEEPING,
) -> dict[str, dict[str, Scored]]:
  """Score every model and write a row per item and metric.

  Args:
    sources: the models by name, the dense one first; all read the ids of its
      tokenizer.
    tasks: what is asked.
    run: where the rows go.
    progress: told of each model that is done.
    keep: by the name of a model, what keeps its answers.

  Returns:
    Scores by model and task.

  Raises:
    ValueError: two files give tasks of the same name, or a prompt does not fit
      the context.
  """
  folder = next(iter(sources.values())).folder
  tokenizer = load_tokenizer(folder)
  specials = special_tokens(folder, tokenizer)
  template = chat.template(folder, tasks.chat) if tasks.writes else None
  by_model: dict[str, dict[str, Scored]] = {}
  for index, (name, source) in enumerate(sources.items()):
    references = None
    if "dense" in by_model:
      references = {
        task: scored.detail for task, scored in by_model["dense"].items()
      }
    model = dataclasses.replace(
      scores.load(source, tokenizer, specials),
      template=template,
      bookkeeping=keep(name),
    )
    scored = scores.score(model, tasks, references)
    by_model[name] = {entry.task: entry for entry in scored}
    for entry in scored:
      run.write_all(item_rows(entry, name))
    progress.step(index)
  return by_model


def item_rows(scored: Scored, name: str) -> Iterator[dict[str, Any]]:
  """Make a flat row per item and metric.

  Args:
    scored: what one model scored on one task.
    name: of the model.
  """
  for metric, values in scored.columns.items():
    for index, value in enumerate(values):
      row = {
        "model": name,
        "task": scored.task,
        scored.item: index,
        "metric": metric,
        "value": value,
      }
      if scored.weights is not None:
        row["tokens"] = int(scored.weights[index])
      yield row
