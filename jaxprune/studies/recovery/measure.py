"""The rows of `recovery_study`: prune, train, write, read back, score."""

import dataclasses
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import batching
from jaxprune.evaluation import generation, loglikelihoods
from jaxprune.models import decoder
from jaxprune.pocket import scores, shipped, tasks
from jaxprune.pocket import tokenizer as tokenizer_lib
from jaxprune.probes import divergences, log_ratio
from jaxprune.recovery import Recovery
from jaxprune.studies import inputs
from jaxprune.studies.recovery import train
from jaxprune.studies.sweep import configurations

FIELDS = {
  "cell": report.Field("text", "", "METHOD:AMOUNT, or dense"),
  "objective": report.Field("text", "", "what was minimised, or none"),
  "weight": report.Field("float", "", "factor of the variance"),
  "split": report.Field("text", "", "validation or test"),
}
_ROWS = 64  # of a batch of texts
_NEW_TOKENS = 48  # the longest answer has 45
_EVERY = 3  # of the choose items, which every model here has right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The flags of `recovery_study`; objective, weight and seed are set here."""

  seeds: tuple[int, ...]
  weights: tuple[float, ...]
  row_len: int
  num_samples: int
  seq_len: int
  recovery: Recovery


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """What both models read for the KL.

  Attributes:
    requests: ids of prompt and answer, see `shipped.generate_requests`.
    tokens: int [n, T], prompt and the dense model's text, padded on the right.
    inside: bool [n, T], positions whose next token is of that text.
    logits: float32 [batches, rows, T, V], of the dense model.
  """

  requests: list[tuple[list[int], list[int]]]
  tokens: np.ndarray
  inside: np.ndarray
  logits: list[np.ndarray]


def count(cells: list[configurations.Cell], settings: Settings) -> int:
  """Models that are scored."""
  return 1 + len(cells) * (4 * len(settings.seeds) + len(settings.weights) - 1)


def study(
  source: checkpoints.Source,
  cells: list[configurations.Cell],
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> None:
  """Write the rows of all models that the run folder does not have yet."""
  config, params = checkpoints.load_params(source, jnp.float32)
  scorer = functools.partial(
    _score,
    {
      split: dense_texts(config, params, split)
      for split in ("validation", "test")
    },
  )
  done = {_key(row): row for row in report.read_records(run.folder)}
  index = 0

  def add(rows):
    nonlocal index
    rows = list(rows)
    if rows:
      run.write_all(rows)
      done.update((_key(row), row) for row in rows)
    progress.step(index)
    index += 1

  first = settings.seeds[0]
  add(
    _tag(scorer(source, ("test",)), "dense", first, "none", 0.0)
    if ("dense", first, "none", 0.0) not in done
    else ()
  )
  for cell in cells:
    best = None
    for seed in settings.seeds:
      with tempfile.TemporaryDirectory() as folder:
        jobs = _jobs(settings, seed, best)
        pruned = (
          _prune(source, cell, settings, seed, folder)
          if any((cell.name, seed, *job) not in done for job in jobs)
          else None
        )
        for job in jobs:
          new = (cell.name, seed, *job) not in done
          add(
            _tag(
              _one(source, pruned, settings, seed, job, folder, scorer),
              cell.name,
              seed,
              *job,
            )
            if new
            else ()
          )
      if best is None:
        best = choose_weight(report.read_records(run.folder), cell.name, first)


def _jobs(settings, seed, best):
  """(objective, weight) of what is trained at a seed."""
  weights = settings.weights if best is None else (best,)
  return [
    ("none", 0.0),
    ("language", 0.0),
    ("distill", 0.0),
    *(("distill_variance", weight) for weight in weights),
  ]


def choose_weight(rows: list[dict[str, Any]], cell: str, seed: int) -> float:
  """The weight with the most exact answers on the validation split.

  Equal ones: the one with the lower KL there.
  """
  found: dict[float, dict[str, list[float]]] = {}
  for row in rows:
    if (row["cell"], row["seed"], row["objective"], row["split"]) == (
      cell,
      seed,
      "distill_variance",
      "validation",
    ):
      found.setdefault(row["weight"], {}).setdefault(row["metric"], []).append(
        row["value"]
      )
  return min(
    found,
    key=lambda weight: (
      -np.mean(found[weight]["exact"]),
      np.mean(found[weight]["kl"]),
    ),
  )


def _key(row):
  return row["cell"], row["seed"], row["objective"], row["weight"]


def _tag(rows, cell, seed, objective, weight):
  for row in rows:
    yield {
      "cell": cell,
      "seed": seed,
      "objective": objective,
      "weight": weight,
    } | row


def _prune(source, cell, settings, seed, folder):
  calibration = inputs.read_calibration(
    source,
    "pocket",
    num_samples=settings.num_samples,
    seq_len=settings.seq_len,
    seed=seed,
  )
  out = f"{folder}/pruned"
  configurations.prune(source, cell, calibration.tokens, seed, out)
  return checkpoints.open_checkpoint(out)


def _one(source, pruned, settings, seed, job, folder, scorer):
  """Train one model, and score what a user would load."""
  objective, weight = job
  if objective == "none":
    yield from scorer(pruned, ("test",))
    return
  recovery = dataclasses.replace(
    settings.recovery, objective=objective, weight=weight, seed=seed
  )
  # Text of its own: not what the model was pruned with.
  rows = recovery.steps * recovery.batch
  tokens = shipped.calibration_tokens(rows, settings.row_len, 1000 + seed)
  train.check(pruned, source, recovery, tokens.tokens)
  found, masks = train.train(
    pruned, source, recovery, tokens.tokens, lambda line: None
  )
  out = train.write(
    f"{folder}/recovered", pruned, found.params, masks, recovery, overwrite=True
  )
  choosing = objective == "distill_variance" and seed == settings.seeds[0]
  yield from scorer(
    checkpoints.open_checkpoint(out),
    ("validation", "test") if choosing else ("test",),
  )


def dense_texts(config, params, split: str) -> Texts:
  """The dense model's greedy texts for the generate items of a split."""
  requests = shipped.generate_requests(split)
  reader = tokenizer_lib.load_tokenizer(shipped.FOLDER)
  prompts = [head for head, _ in requests]
  written = generation.continue_prompts(
    config,
    params,
    reader,
    prompts,
    max_new_tokens=_NEW_TOKENS,
    batch_size=_ROWS,
  )
  rows = [
    [*head, *text.tokens] for head, text in zip(prompts, written, strict=True)
  ]
  length = max(map(len, rows))
  tokens = np.zeros((len(rows), length), np.int32)
  inside = np.zeros((len(rows), length), bool)
  for index, (head, row) in enumerate(zip(prompts, rows, strict=True)):
    tokens[index, : len(row)] = row
    inside[index, len(head) - 1 : len(row)] = True
  return Texts(
    requests=requests,
    tokens=tokens,
    inside=inside,
    logits=[
      np.asarray(_logits(config, params, rows)) for rows in _batches(tokens)
    ],
  )


def _score(texts, source, splits):
  """Rows of one model: KL and exact answers, on the test split all tasks."""
  config, params = checkpoints.load_params(source, jnp.float32)
  reader = tokenizer_lib.load_tokenizer(shipped.FOLDER)
  for split in splits:
    own = texts[split]
    found = {
      ("generate", "exact"): loglikelihoods.loglikelihoods(
        config, params, own.requests, batch_size=_ROWS
      ).greedy,
      ("generate", "kl"): mean_kl(config, params, own),
    }
    if split == "test":
      items = shipped.items("test")
      choose = items.choose[::_EVERY]
      right = tasks.choose_correct(
        scores.option_log_likelihoods(config, params, reader, choose),
        [item.label for item in choose],
      )
      queries_QD, passages_PD = (
        scores.embed_texts(config, params, reader, lines)
        for lines in (items.retrieve.queries, items.retrieve.passages)
      )
      found |= {
        ("choose", "acc"): right,
        ("retrieve", "ndcg@10"): tasks.ndcg(
          queries_QD @ passages_PD.T, items.retrieve.relevant
        ),
      }
    for (task, metric), values in found.items():
      for question, value in enumerate(values):
        yield {
          "split": split,
          "task": task,
          "metric": metric,
          "question": question,
          "value": float(value),
        }


def mean_kl(config, params, texts: Texts) -> np.ndarray:
  """KL(dense||this) of each text, mean over its positions, nats [n]."""
  found = [
    np.asarray(_kl(config, params, rows, z_BTV))
    for rows, z_BTV in zip(_batches(texts.tokens), texts.logits, strict=True)
  ]
  kl_NT = np.concatenate(found)[: len(texts.tokens)].astype(np.float64)
  return (kl_NT * texts.inside).sum(1) / texts.inside.sum(1)


def _batches(tokens):
  """Batches of equal shape; the last repeats its last row."""
  for pick, _ in batching.batches(len(tokens), _ROWS):
    yield tokens[pick]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_BT):
  return decoder.unembed(
    config, params, decoder.forward(config, params, tokens_BT)[0]
  )


@functools.partial(jax.jit, static_argnums=0)
def _kl(config, params, tokens_BT, z_BTV):
  return jax.vmap(
    jax.vmap(
      lambda z_V, zq_V: divergences.kl_of(log_ratio.tilt_logits(z_V, zq_V))[0]
    )
  )(z_BTV, _logits(config, params, tokens_BT))
