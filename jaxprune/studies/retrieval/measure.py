"""Encoders are pruned, embed all texts, and rank and compare them.

Every model is written as a folder first and read back, so that what is
measured is what a user gets, rounded to the dtype of the checkpoint.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.evaluation import retrieval, sentences
from jaxprune.models import EncoderConfig
from jaxprune.probes import spaces
from jaxprune.pruning.checkpoint import layer, sublayers, weights
from jaxprune.pruning.layerwise import drops
from jaxprune.studies.retrieval.encoders import DENSE, Variant
from jaxprune.studies.retrieval.reading import Calibration, Texts

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
_compare = jax.jit(jax.vmap(spaces.compare_vectors))


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """What all models are made from and asked.

  Attributes:
    source: the dense encoder.
    texts: what is embedded.
    calibration: what the methods look at.
    similarities: what drops are chosen by, from `similarities`.
  """

  source: checkpoints.Source
  texts: Texts
  calibration: Calibration
  similarities: dict[str, np.ndarray] | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
  """What one model does.

  Attributes:
    variant: the model.
    sparsity: fraction of zeros in its kernels.
    dropped: the sublayers that it lacks, by kind.
    scores: of each query, metric to float [queries]; `question`, their
      indices; and `cosine` of each sentence pair, where there are pairs.
    deviations: of the embeddings h from those of the dense model, for each
      kind of text: arrays [texts].
  """

  variant: Variant
  sparsity: float
  dropped: dict[str, list[int]]
  scores: dict[str, np.ndarray]
  deviations: dict[str, spaces.Deviation]


def similarities(
  source: checkpoints.Source,
  wanted: Sequence[Variant],
  calibration: Calibration,
) -> dict[str, np.ndarray] | None:
  """What drops are chosen by: [L] by kind; None where nothing is dropped.

  Args:
    source: the dense encoder.
    wanted: from `variants`.
    calibration: what is looked at.
  """
  if not any("drop_count" in variant.settings for variant in wanted):
    return None
  return sublayers.score_sublayers(source, calibration.padded)


def measure(
  study: Study,
  wanted: Sequence[Variant],
  run: report.RunFolder,
  *,
  keep_models: bool = False,
) -> Iterator[Measured]:
  """Make and measure every model, and write its rows.

  Args:
    study: what is pruned and embedded.
    wanted: from `variants`.
    run: where the rows go.
    keep_models: whether the pruned models stay, in `models` of the run folder.

  Yields:
    The dense model first.
  """
  source, texts = study.source, study.texts
  pooling = checkpoints.read_pooling(source.folder)
  dense = Variant(name=DENSE, settings={"method": "none"}, folder=source.folder)
  dense_vectors = dense_scores = None
  with _home(run.folder / "models", keep_models) as home:
    for variant in (dense, *wanted):
      folder = make_model(study, variant, home / variant.name)
      opened, sparsity, vectors = embed(folder, pooling, texts, source.config)
      scores = score(vectors, texts)
      if dense_vectors is None:
        dense_vectors, dense_scores = vectors, scores
      measured = Measured(
        variant=variant,
        sparsity=sparsity,
        dropped=checkpoints.read_drops(opened),
        scores=scores,
        deviations={
          name: jax.tree.map(
            np.asarray, _compare(dense_vectors[name], vectors[name])
          )
          for name in vectors
        },
      )
      run.write_all(rows(texts.collection.name, measured, dense_scores))
      if not keep_models and variant.folder is None:
        shutil.rmtree(folder)
      yield measured


def protocol(source: checkpoints.Source, texts: Texts) -> dict[str, Any]:
  """How texts became vectors, for the page.

  Args:
    source: the dense encoder.
    texts: what was embedded.
  """
  pooling = checkpoints.read_pooling(source.folder)
  return {
    "Tokens of a text, at most": texts.max_tokens,
    "Pooling": pooling.kind,
    "Normalised": pooling.normalise,
  }


def make_model(
  study: Study, variant: Variant, folder: pathlib.Path
) -> pathlib.Path:
  """Prune, unless the model exists already; returns its folder.

  Args:
    study: what is pruned, and what the methods look at.
    variant: the model.
    folder: where a new one is written.
  """
  source, calibration = study.source, study.calibration
  scores = study.similarities
  if variant.folder is not None:
    return variant.folder
  provenance = {**variant.settings, "calibration": calibration.description}
  if variant.pattern is not None:
    weights.prune_weights(
      source,
      folder,
      method=variant.settings["method"],
      pattern=variant.pattern,
      tokens=calibration.padded,
      output=weights.Output(provenance=provenance),
    )
    return folder
  kind = variant.settings["method"].removeprefix("drop_")
  chosen = drops.select(
    scores,
    variant.settings["drop_count"],
    kind,
    earlier=sublayers.dropped_before(source),
  )
  sublayers.prune_drops(
    source, folder, chosen, scores, output=weights.Output(provenance=provenance)
  )
  return folder


def embed(
  folder: pathlib.Path,
  pooling: checkpoints.Pooling,
  texts: Texts,
  dense_config: EncoderConfig,
) -> tuple[checkpoints.Source, float, dict[str, np.ndarray]]:
  """Embed all texts with one model.

  Args:
    folder: of the model.
    pooling: of the dense encoder.
    texts: what is embedded.
    dense_config: the shape that the model must have.

  Returns:
    The opened model, the fraction of zeros in its kernels, and vectors float32
    [texts, D] by kind of text.

  Raises:
    ValueError: the model has another shape.
  """
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  config, params = checkpoints.load_params(source, jnp.float32)
  if config != dense_config:
    raise ValueError(
      f"{folder}: is not of the shape of the dense model; compare models of"
      " one architecture"
    )
  vectors = {
    name: sentences.embed_texts(config, params, ids, pooling)
    for name, ids in texts.ids.items()
  }
  return source, layer.sparsity(params["layers"]), vectors


def score(
  vectors: dict[str, np.ndarray], texts: Texts
) -> dict[str, np.ndarray]:
  """Scores of each query, and the cosine of each pair.

  Args:
    vectors: from `embed`.
    texts: what was embedded.

  Returns:
    float64 [queries] by name of a metric of `METRICS`; `question`, int, the
    index of each query; and with pairs `cosine` [pairs] in [-1, 1].
  """
  queries = retrieval.evaluate_ranking(
    np.einsum(
      "QD,AD->QA", *(_unit(vectors[name]) for name in ("queries", "documents"))
    ),
    texts.collection.qrels,
    cutoffs=(10, 100),
  )
  scores = {name: np.array([row[name] for row in queries]) for name in METRICS}
  scores["question"] = np.array([row["question"] for row in queries])
  if texts.pairs is not None:
    scores["cosine"] = np.sum(
      _unit(vectors["first"]) * _unit(vectors["second"]), axis=1
    )
  return scores


def rows(
  task: str, measured: Measured, dense_scores: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
  """Make the flat records of one model.

  Args:
    task: name of the collection.
    measured: the model.
    dense_scores: of the dense model, by the same names.
  """
  variant, scores = measured.variant, measured.scores
  common = {
    "model": variant.name,
    **variant.settings,
    "sparsity": measured.sparsity,
  }
  for metric in METRICS:
    for question, value, reference in zip(
      scores["question"], scores[metric], dense_scores[metric]
    ):
      yield common | {
        "task": task,
        "metric": metric,
        "question": int(question),
        "value": value,
        "reference": reference,
      }
  if "cosine" in scores:
    for index, (value, reference) in enumerate(
      zip(scores["cosine"], dense_scores["cosine"])
    ):
      yield common | {
        "task": "sts",
        "metric": "cosine",
        "question": index,
        "value": value,
        "reference": reference,
      }
  for name, field in (("queries", "question"), ("documents", "document")):
    for index, value in enumerate(measured.deviations[name].cos):
      yield common | {"task": task, field: index, "cos_h": value}


@contextlib.contextmanager
def _home(folder: pathlib.Path, keep: bool) -> Iterator[pathlib.Path]:
  """Where models are written: a folder that stays, or a temporary one."""
  if keep:
    # What an earlier run with these flags left there is out of date.
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    return
  with tempfile.TemporaryDirectory() as temporary:
    yield pathlib.Path(temporary)


def _unit(vectors):
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)
