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
from jaxprune.calibration import documents, load_tokenizer, tokens
from jaxprune.evaluation import retrieval, sentences
from jaxprune.models import EncoderConfig
from jaxprune.probes import spaces
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import layer, sublayers, weights
from jaxprune.pruning.checkpoint.streaming import PaddedTokens
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies.tasks import retrieval_data

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
DENSE = "dense"
_compare = jax.jit(jax.vmap(spaces.compare_vectors))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One model to measure.

  Attributes:
    name: of it, also of its folder.
    settings: record fields that identify it.
    pattern: what is removed in each kernel; None for drops and given models.
    folder: a model that exists already.
  """

  name: str
  settings: dict[str, Any]
  pattern: Unstructured | NofM | None = None
  folder: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """The models that are asked for; each method with each amount.

  Attributes:
    methods: weight methods.
    sparsities: fractions removed.
    patterns: n:m patterns.
    drop_attention: counts of attention sublayers to drop.
    drop_mlp: counts of MLP sublayers to drop.
    folders: models that were pruned elsewhere.
  """

  methods: tuple[str, ...] = ()
  sparsities: tuple[float, ...] = ()
  patterns: tuple[NofM, ...] = ()
  drop_attention: tuple[int, ...] = ()
  drop_mlp: tuple[int, ...] = ()
  folders: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
  """Everything that is embedded, as ids, and what it is judged by.

  Attributes:
    collection: queries, documents and judgements.
    pairs: sentence pairs; None has none.
    ids: of `documents`, `queries`, and of the `first` and `second` sentences.
    max_tokens: to which texts were cut.
  """

  collection: retrieval_data.Collection
  pairs: retrieval_data.Pairs | None
  ids: dict[str, list[list[int]]]
  max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
  """Padded calibration sequences.

  Attributes:
    tokens: int32 [X, T].
    valid: bool [X, T].
    description: for run.json.
  """

  tokens: np.ndarray
  valid: np.ndarray
  description: dict[str, Any]

  @property
  def padded(self) -> PaddedTokens:
    """The sequences as pruning takes them."""
    return PaddedTokens(ids=self.tokens, valid=self.valid)


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


def open_encoder(name: str, max_tokens: int) -> checkpoints.Source:
  """Open an encoder: a folder or a hub id.

  Args:
    name: of it.
    max_tokens: to which texts will be cut.

  Raises:
    ValueError: it is no encoder, or has fewer positions.
  """
  source = checkpoints.open_checkpoint(
    checkpoints.resolve_model(name), EncoderConfig
  )
  if max_tokens > source.config.max_positions:
    raise ValueError(
      f"--max_tokens={max_tokens} is more than the"
      f" {source.config.max_positions} positions of the encoder"
    )
  return source


def variants(wanted: Wanted) -> list[Variant]:
  """The models that are asked for: weights first, then drops, then folders.

  Raises:
    ValueError: there is none, or two have the same name.
  """
  models = []
  for method in wanted.methods:
    group = registry.default_group(method)
    for pattern in (
      *(Unstructured(sparsity=s, group=group) for s in wanted.sparsities),
      *wanted.patterns,
    ):
      text = (
        f"{pattern.keep}:{pattern.of}"
        if isinstance(pattern, NofM)
        else "unstructured"
      )
      size = text if isinstance(pattern, NofM) else f"{pattern.sparsity:g}"
      models.append(
        Variant(
          name=f"{method}-{size.replace(':', 'of')}",
          pattern=pattern,
          settings={"method": method, "pattern": text},
        )
      )
  for kind, counts in (
    ("attention", wanted.drop_attention),
    ("mlp", wanted.drop_mlp),
  ):
    models += [
      Variant(
        name=f"drop_{kind}-{count}",
        settings={"method": f"drop_{kind}", "drop_count": count},
      )
      for count in counts
    ]
  models += [
    Variant(
      name=pathlib.Path(folder).name,
      folder=pathlib.Path(folder),
      settings={"method": "given"},
    )
    for folder in wanted.folders
  ]
  names = [variant.name for variant in models]
  if not names or len({DENSE, *names}) <= len(names):
    raise ValueError(
      f"models to compare: {', '.join(names) or 'none'}; ask for at least"
      " one, none twice, and none called dense"
    )
  return models


def check(
  wanted: Sequence[Variant], config: EncoderConfig, earlier: Drops | None = None
) -> None:
  """Refuse, before any work, a model that cannot be made.

  Args:
    wanted: from `variants`.
    config: of the dense encoder.
    earlier: what was dropped before, `sublayers.dropped_before`.

  Raises:
    ValueError: a method or pattern that is not for encoders, or more drops than
      sublayers are left.
  """
  for variant in wanted:
    method = variant.settings["method"]
    if variant.pattern is not None:
      if method not in weights.encoder_methods():
        raise ValueError(
          f"--method={method}: is not for encoders; use some of"
          f" {', '.join(weights.encoder_methods())}"
        )
      weights.check_job(config, method, variant.pattern, tokens=True)
    if "drop_count" in variant.settings:
      try:
        drops.check_count(
          config.num_layers,
          variant.settings["drop_count"],
          method.removeprefix("drop_"),
          earlier=earlier,
        )
      except ValueError as error:
        raise ValueError(f"--{method}: {error}") from error


def read_texts(
  source: checkpoints.Source,
  collection: str,
  pairs: str | None,
  max_tokens: int,
) -> Texts:
  """Read and tokenise all texts, the same for all models.

  Args:
    source: the dense encoder.
    collection: folder of queries, documents and judgements.
    pairs: file of sentence pairs; None reads none.
    max_tokens: a longer text loses its end.
  """
  read = retrieval_data.read_collection(collection)
  sentence_pairs = None if pairs is None else retrieval_data.read_pairs(pairs)
  texts = {"documents": read.documents, "queries": read.queries}
  if sentence_pairs is not None:
    texts |= {"first": sentence_pairs.first, "second": sentence_pairs.second}
  tokenizer = load_tokenizer(source.folder)
  return Texts(
    collection=read,
    pairs=sentence_pairs,
    max_tokens=max_tokens,
    ids={
      name: sentences.tokenise(tokenizer, lines, max_tokens)
      for name, lines in texts.items()
    },
  )


def calibrate(
  source: checkpoints.Source,
  name: str,
  texts: Texts,
  *,
  num_samples: int,
  seed: int,
) -> Calibration:
  """Draw the beginnings of random documents, without replacement.

  Args:
    source: the dense encoder.
    name: `collection` for its documents, else a text file or data set.
    texts: of the study.
    num_samples: documents.
    seed: of the draw.

  Raises:
    ValueError: there are fewer documents with text.
  """
  lines = (
    texts.collection.documents
    if name == "collection"
    else documents.read_documents(name)
  )
  lines = [line for line in lines if line.strip()]
  if len(lines) < num_samples:
    raise ValueError(
      f"{name}: {len(lines)} documents with text, fewer than --num_samples="
      f"{num_samples}; use more text or fewer samples"
    )
  chosen = np.random.default_rng(seed).choice(
    len(lines), num_samples, replace=False
  )
  ids = sentences.tokenise(
    load_tokenizer(source.folder),
    [lines[index] for index in chosen],
    texts.max_tokens,
  )
  rows, valid = sentences.pad(
    ids, max(map(len, ids)), source.config.pad_id or 0
  )
  return Calibration(
    tokens=rows,
    valid=valid,
    description={
      "source": name,
      "sampling": "beginnings of random documents",
      "seed": seed,
      "sequences": num_samples,
      "length": rows.shape[1],
      "tokens": int(valid.sum()),
      "hash": tokens.token_hash(rows),
    },
  )


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
