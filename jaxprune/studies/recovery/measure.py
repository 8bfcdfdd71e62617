"""Models are pruned, trained, written, read back and scored."""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import batching
from jaxprune.evaluation import generation, loglikelihoods
from jaxprune.models import ModelConfig, decoder
from jaxprune.pocket import scores as pocket_scores
from jaxprune.pocket import shipped, tasks
from jaxprune.pocket import tokenizer as tokenizer_lib
from jaxprune.probes import divergences, log_ratio
from jaxprune.recovery import Recovery
from jaxprune.studies import inputs
from jaxprune.studies.recovery import train
from jaxprune.studies.sweep import configurations

FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or dense"),
  "objective": report.Field("text", "", "what was minimised, or none"),
  "weight": report.Field("float", "", "factor of the variance"),
  "split": report.Field("text", "", "validation or test"),
}
_ROWS = 64  # of a batch of texts
_NEW_TOKENS = 48  # the longest answer has 45
_EVERY = 3  # of the choose items, which every model here has right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How models are pruned and trained.

  Attributes:
    seeds: of calibration, training text and order.
    weights: factors of the variance to choose from.
    row_len: tokens of a row in training.
    num_samples: sequences to prune with.
    seq_len: tokens of each.
    recovery: the training; objective, weight and seed are set for each model.
  """

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
    tokens: int [X, T], prompt and the dense model's text, padded on the right.
    inside: bool [X, T], positions whose next token is of that text.
    logits: float32 [batches, rows, T, V], of the dense model.
  """

  requests: list[tuple[list[int], list[int]]]
  tokens: np.ndarray
  inside: np.ndarray
  logits: list[np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One model to score: how it was pruned and trained.

  Attributes:
    configuration: METHOD:AMOUNT, or dense.
    seed: of calibration, training text and order.
    objective: what was minimised, or none.
    weight: factor of the variance.
  """

  configuration: str
  seed: int
  objective: str = "none"
  weight: float = 0.0


def check(source: checkpoints.Source) -> None:
  """Refuse a model that does not speak the pocket model's language.

  Raises:
    ValueError: says so.
  """
  if not inputs.is_pocket(source):
    raise ValueError(
      f"--model: {source.folder}: the study asks the pocket model's questions;"
      " use jaxprune recover and jaxprune evaluate for another model"
    )


def count(
  wanted: Sequence[configurations.Configuration], settings: Settings
) -> int:
  """How many models are scored.

  Args:
    wanted: ways to prune.
    settings: says how often each is trained.
  """
  each = 4 * len(settings.seeds) + len(settings.weights) - 1
  return 1 + len(wanted) * each


def measure(
  source: checkpoints.Source,
  wanted: Sequence[configurations.Configuration],
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> dict[str, np.ndarray]:
  """Write the rows of all models that the run folder does not have yet.

  Args:
    source: the dense model.
    wanted: ways to prune.
    settings: how to train.
    run: where the rows go, and where those of an earlier run are.
    progress: told of each model that is done.

  Returns:
    The columns of all rows.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  texts = {
    split: dense_texts(config, params, split)
    for split in ("validation", "test")
  }
  done = _done(run)
  steps = itertools.count()

  def score(job, make, splits=("test",)):
    if job not in done:
      run.write_all(
        dataclasses.asdict(job) | row for row in _score(texts, make(), splits)
      )
    progress.step(next(steps))

  first = settings.seeds[0]
  score(Job(configuration="dense", seed=first), lambda: source)
  for configuration in wanted:
    best = None
    for seed in settings.seeds:
      with tempfile.TemporaryDirectory() as folder:
        pruned = functools.cache(
          functools.partial(
            _prune, source, configuration, settings, seed, folder
          )
        )
        for job in _jobs(settings, configuration.name, seed, best):
          chosen_on = (
            ("validation", "test")
            if job.objective == "distill_variance" and seed == first
            else ("test",)
          )
          score(
            job,
            functools.partial(_train, source, pruned, settings, job, folder),
            chosen_on,
          )
      if best is None:
        best = choose_weight(run.columns(), configuration.name, first)
  return run.columns()


def choose_weight(
  table: dict[str, np.ndarray], configuration: str, seed: int
) -> float:
  """The weight with the most exact answers on the validation split.

  Equal ones: the one with the lower KL there.

  Args:
    table: columns of all rows.
    configuration: the way to prune.
    seed: the one at which weights are tried.
  """
  tried = (table["configuration"] == configuration) & (table["seed"] == seed)
  tried &= table["objective"] == "distill_variance"
  tried &= table["split"] == "validation"

  def mean(weight, metric):
    chosen = tried & (table["weight"] == weight) & (table["metric"] == metric)
    return np.mean(table["value"][chosen])

  return min(
    dict.fromkeys(table["weight"][tried].tolist()),
    key=lambda weight: (-mean(weight, "exact"), mean(weight, "kl")),
  )


def _done(run) -> set[Job]:
  """The models whose rows are there from an earlier run."""
  table = run.columns()
  if not table:
    return set()
  names = [field.name for field in dataclasses.fields(Job)]
  rows = zip(*(table[name].tolist() for name in names))
  return {Job(**dict(zip(names, row))) for row in rows}


def _jobs(settings, configuration, seed, best) -> list[Job]:
  """What is trained at a seed; `best` is the weight, once it is chosen."""
  job = functools.partial(Job, configuration=configuration, seed=seed)
  weights = settings.weights if best is None else (best,)
  return [
    job(),
    job(objective="language"),
    job(objective="distill"),
    *(job(objective="distill_variance", weight=weight) for weight in weights),
  ]


def _prune(source, configuration, settings, seed, folder):
  calibration = inputs.read_calibration(
    source,
    "pocket",
    num_samples=settings.num_samples,
    seq_len=settings.seq_len,
    seed=seed,
  )
  out = f"{folder}/pruned"
  configurations.prune(source, configuration, calibration.tokens, seed, out)
  return checkpoints.open_checkpoint(out)


def _train(source, pruned, settings, job, folder) -> checkpoints.Source:
  """Train one model, and open what a user would load."""
  if job.objective == "none":
    return pruned()
  recovery = dataclasses.replace(
    settings.recovery, objective=job.objective, weight=job.weight, seed=job.seed
  )
  # Other text than the model was pruned with.
  count = recovery.steps * recovery.batch
  tokens = shipped.calibration_tokens(count, settings.row_len, 1000 + job.seed)
  train.check(pruned(), source, recovery, tokens.tokens)
  recovered, masks = train.train(pruned(), source, recovery, tokens.tokens)
  out = train.write(
    f"{folder}/recovered",
    pruned(),
    recovered.params,
    masks,
    recovery,
    overwrite=True,
  )
  return checkpoints.open_checkpoint(out)


def dense_texts(config: ModelConfig, params: Any, split: str) -> Texts:
  """The dense model's greedy texts for the generate items of a split.

  Args:
    config: the dense model.
    params: its parameters.
    split: `validation` or `test`.
  """
  requests = shipped.generate_requests(split)
  reader = tokenizer_lib.load_tokenizer(shipped.FOLDER)
  prompts = [head for head, _ in requests]
  written = generation.continue_prompts(
    config,
    params,
    reader,
    prompts,
    generation.Writing(max_new_tokens=_NEW_TOKENS, batch_size=_ROWS),
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
    asked = texts[split]
    scores = {
      ("generate", "exact"): loglikelihoods.loglikelihoods(
        config, params, asked.requests
      ).greedy,
      ("generate", "kl"): mean_kl(config, params, asked),
    }
    if split == "test":
      items = shipped.items("test")
      choose = items.choose[::_EVERY]
      right = tasks.choose_correct(
        pocket_scores.option_log_likelihoods(config, params, reader, choose),
        [item.label for item in choose],
      )
      queries_QD, passages_AD = (
        pocket_scores.embed_texts(config, params, reader, lines)
        for lines in (items.retrieve.queries, items.retrieve.passages)
      )
      scores |= {
        ("choose", "acc"): right,
        ("retrieve", "ndcg@10"): tasks.ndcg(
          queries_QD @ passages_AD.T, items.retrieve.relevant
        ),
      }
    for (task, metric), values in scores.items():
      for question, value in enumerate(values):
        yield {
          "split": split,
          "task": task,
          "metric": metric,
          "question": question,
          "value": float(value),
        }


def mean_kl(config: ModelConfig, params: Any, texts: Texts) -> np.ndarray:
  """KL(dense||model) of each text, mean over its positions.

  Args:
    config: the model.
    params: its parameters.
    texts: from `dense_texts`.

  Returns:
    float64 [n], nats.
  """
  parts = [
    np.asarray(_kl(config, params, rows, z_BTV))
    for rows, z_BTV in zip(_batches(texts.tokens), texts.logits, strict=True)
  ]
  kl_XT = np.concatenate(parts)[: len(texts.tokens)].astype(np.float64)
  return (kl_XT * texts.inside).sum(1) / texts.inside.sum(1)


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
      lambda z_V, zq_V: divergences.kl_of(log_ratio.from_logits(z_V, zq_V))[0]
    )
  )(z_BTV, _logits(config, params, tokens_BT))
