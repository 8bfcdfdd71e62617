"""What is pruned, measured, summarised and shown by `retrieval`.

Every model is written as a folder first and read back, so that what is
measured is what a user gets, rounded to the dtype of the checkpoint.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report, statistics
from jaxprune.calibration import documents, tokens
from jaxprune.evaluation import retrieval, sentences
from jaxprune.models import EncoderConfig
from jaxprune.probes import spaces
from jaxprune.pruning.checkpoint import encoder, sublayers
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.report import figures, page
from jaxprune.studies.tasks import retrieval_data

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")
STS = "spearman"
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
class Texts:
  """Everything that is embedded, as ids, and what it is judged by."""

  collection: retrieval_data.Collection
  pairs: retrieval_data.Pairs | None
  ids: dict[str, list[list[int]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """Padded calibration sequences.

  Attributes:
    tokens: int32 [n, T].
    valid: bool [n, T].
    description: for run.json.
  """

  tokens: np.ndarray
  valid: np.ndarray
  description: dict[str, Any]


def variants(
  methods, sparsities, patterns, attention_counts, mlp_counts, folders
) -> list[Variant]:
  """The grid that the flags span, weights first, then drops, then folders."""
  found = []
  for method in methods:
    group = "matrix" if method == "sparsegpt" else "output"
    for pattern in (
      *(Unstructured(sparsity=s, group=group) for s in sparsities),
      *patterns,
    ):
      text = (
        f"{pattern.keep}:{pattern.of}"
        if isinstance(pattern, NofM)
        else "unstructured"
      )
      size = text if isinstance(pattern, NofM) else f"{pattern.sparsity:g}"
      found.append(
        Variant(
          name=f"{method}-{size.replace(':', 'of')}",
          pattern=pattern,
          settings={"method": method, "pattern": text},
        )
      )
  for kind, counts in (("attention", attention_counts), ("mlp", mlp_counts)):
    found += [
      Variant(
        name=f"drop_{kind}-{count}",
        settings={"method": f"drop_{kind}", "drop_count": count},
      )
      for count in counts
    ]
  found += [
    Variant(
      name=pathlib.Path(folder).name,
      folder=pathlib.Path(folder),
      settings={"method": "given"},
    )
    for folder in folders
  ]
  names = [variant.name for variant in found]
  if not names or len({"dense", *names}) <= len(names):
    raise ValueError(
      f"models to compare: {', '.join(names) or 'none'}; ask for at least"
      " one, none twice, and none called dense"
    )
  return found


def tokenised(tokenizer, collection, pairs, max_tokens) -> Texts:
  """Ids of all texts, the same for all models."""
  texts = {"documents": collection.documents, "queries": collection.queries}
  if pairs is not None:
    texts |= {"first": pairs.first, "second": pairs.second}
  return Texts(
    collection=collection,
    pairs=pairs,
    ids={
      name: sentences.tokenise(tokenizer, own, max_tokens)
      for name, own in texts.items()
    },
  )


def calibrate(
  tokenizer, source, texts: list[str], config, *, num_samples, max_tokens, seed
) -> Calibration:
  """The beginnings of random documents, drawn without replacement."""
  texts = [text for text in texts if text.strip()]
  if len(texts) < num_samples:
    raise ValueError(
      f"{source}: {len(texts)} documents with text, fewer than --num_samples="
      f"{num_samples}; use more text or fewer samples"
    )
  chosen = np.random.default_rng(seed).choice(
    len(texts), num_samples, replace=False
  )
  ids = sentences.tokenise(
    tokenizer, [texts[index] for index in chosen], max_tokens
  )
  rows, valid = sentences.pad(ids, max(map(len, ids)), config.pad_id or 0)
  return Calibration(
    tokens=rows,
    valid=valid,
    description={
      "source": source,
      "sampling": "beginnings of random documents",
      "seed": seed,
      "sequences": num_samples,
      "length": rows.shape[1],
      "tokens": int(valid.sum()),
      "hash": tokens.token_hash(rows),
    },
  )


def calibration_texts(name: str, collection) -> list[str]:
  """Documents of the collection, or of a text file or data set."""
  if name == "collection":
    return collection.documents
  return documents.read_documents(name)


def make_model(source, variant, calibration, scores, folder) -> pathlib.Path:
  """Prune, unless it exists already; returns the folder of the model."""
  if variant.folder is not None:
    return variant.folder
  provenance = {**variant.settings, "calibration": calibration.description}
  if variant.pattern is not None:
    encoder.prune_encoder(
      source,
      folder,
      method=variant.settings["method"],
      pattern=variant.pattern,
      tokens=calibration.tokens,
      valid=calibration.valid,
      provenance=provenance,
    )
    return folder
  kind = variant.settings["method"].removeprefix("drop_")
  chosen = drops.select(scores, variant.settings["drop_count"], kind)
  sublayers.prune_drops(source, folder, chosen, scores, provenance=provenance)
  return folder


def embed(folder, pooling, texts: Texts, dense_config=None):
  """Vectors of all texts, sparsity of the kernels, and dropped sublayers."""
  source = checkpoints.open_checkpoint(folder, EncoderConfig)
  config, params = checkpoints.load_params(source, jnp.float32)
  if dense_config is not None and config != dense_config:
    raise ValueError(
      f"{folder}: is not of the shape of the dense model; compare models of"
      " one architecture"
    )
  vectors = {
    name: sentences.embed_texts(config, params, ids, pooling)
    for name, ids in texts.ids.items()
  }
  return (
    vectors,
    encoder.sparsity(params["layers"]),
    checkpoints.read_drops(source),
  )


def measure(vectors, texts: Texts) -> dict[str, Any]:
  """Scores of each query, and the cosine of each pair."""
  rows = retrieval.evaluate_ranking(
    np.einsum(
      "QD,ND->QN", *(_unit(vectors[name]) for name in ("queries", "documents"))
    ),
    texts.collection.qrels,
    cutoffs=(10, 100),
  )
  found = {name: np.array([row[name] for row in rows]) for name in METRICS}
  found["question"] = np.array([row["question"] for row in rows])
  if texts.pairs is not None:
    found["cosine"] = np.sum(
      _unit(vectors["first"]) * _unit(vectors["second"]), axis=1
    )
  return found


def cosines(dense, pruned) -> dict[str, np.ndarray]:
  """Cosine of the embeddings h of the same text by two models."""
  return {
    name: np.asarray(_compare(dense[name], pruned[name]).cos) for name in dense
  }


def rows(task, variant, reached, found, dense, cos_h):
  """Flat records of one model."""
  common = {"model": variant.name, **variant.settings, "sparsity": reached}
  for metric in METRICS:
    for question, value, reference in zip(
      found["question"], found[metric], dense[metric]
    ):
      yield common | {
        "task": task,
        "metric": metric,
        "question": int(question),
        "value": value,
        "reference": reference,
      }
  if "cosine" in found:
    for index, (value, reference) in enumerate(
      zip(found["cosine"], dense["cosine"])
    ):
      yield common | {
        "task": "sts",
        "metric": "cosine",
        "question": index,
        "value": value,
        "reference": reference,
      }
  for name, field in (("queries", "question"), ("documents", "document")):
    for index, value in enumerate(cos_h[name]):
      yield common | {"task": task, field: index, "cos_h": value}


def summarise(found, dense, cos_h, pairs, seed) -> dict[str, Any]:
  """Means with intervals over queries or pairs, and paired differences."""
  summary: dict[str, Any] = {}
  for metric in METRICS:
    summary[metric] = _both(
      report.mean_interval(found[metric], seed=seed),
      report.mean_interval(found[metric] - dense[metric], seed=seed),
    )
  if pairs is not None:
    columns = np.stack(
      [np.array(pairs.scores), dense["cosine"], found["cosine"]], axis=1
    )

    def rho(column):
      return lambda part: statistics.rank_correlation(
        part[:, 0], part[:, column]
      )

    summary[STS] = _both(
      report.statistic_interval(rho(2), columns, seed=seed),
      report.statistic_interval(
        lambda part: rho(2)(part) - rho(1)(part), columns, seed=seed
      ),
    )
  for name, values in cos_h.items():
    found_h = report.mean_interval(values, seed=seed)
    summary[f"cos_h_{name}"] = {
      "value": found_h.estimate,
      "low": found_h.low,
      "high": found_h.high,
      "min": float(values.min()),
    }
  return summary


def _both(value, difference) -> dict[str, float]:
  return {
    "value": value.estimate,
    "low": value.low,
    "high": value.high,
    "difference": difference.estimate,
    "difference_low": difference.low,
    "difference_high": difference.high,
  }


def verdict(summary: dict[str, Any], main: str = "ndcg@10") -> str:
  """What the numbers say, in plain words."""
  dense = summary["dense"][main]["value"]
  kept, lost = [], []
  for name, entry in summary["models"].items():
    share = entry[main]["value"] / dense if dense else float("nan")
    text = f"{name} ({100 * share:.0f} %)"
    (kept if entry[main]["difference_high"] >= 0 else lost).append(text)
  return (
    f"The dense encoder reaches nDCG@10 {dense:.3f} on"
    f" {summary['queries']} queries. Not measurably worse (the 95 % interval"
    f" of the paired difference reaches 0): {', '.join(kept) or 'none'}."
    f"\n\nWorse: {', '.join(lost) or 'none'}. In brackets, the share of the"
    " dense nDCG@10 that is left.\n\nOne collection and one model: whether"
    " retrieval survives pruning is a statement about how much is removed"
    " and of what, not about retrieval as such."
  )


def sections(
  summary: dict[str, Any], run: report.RunFolder
) -> list[page.Section]:
  """Table and figure of the page; the figure is also written."""
  measures = [*METRICS, *([STS] if STS in summary["dense"] else [])]
  table = []
  for name, entry in {"dense": summary["dense"], **summary["models"]}.items():
    table.append(
      (
        name,
        entry["sparsity"],
        *(
          f"{entry[m]['value']:.3f} [{entry[m]['low']:.3f},"
          f" {entry[m]['high']:.3f}]"
          for m in measures
        ),
        *(entry[f"cos_h_{t}"]["value"] for t in ("queries", "documents")),
      )
    )
  models = summary["models"].values()
  at = np.array([1 - entry["cos_h_documents"]["value"] for entry in models])
  order = np.argsort(at)

  def line(measure):
    reference = summary["dense"][measure]["value"]
    scale = np.array(
      [
        [
          1 + entry[measure][end] / reference
          for end in ("difference", "difference_low", "difference_high")
        ]
        for entry in models
      ]
    )[order]
    return figures.Series(
      x=at[order], y=scale[:, 0], low=scale[:, 1], high=scale[:, 2]
    )

  shown = ["ndcg@10", *measures[len(METRICS) :]]
  drawn = figures.lines(
    {m: line(m) for m in shown},
    x="1 − cosine of h, documents",
    y="share of the dense score",
  )
  run.write_figure("kept", drawn)
  return [
    page.Section(
      title="Scores",
      tables=[
        page.Table(
          caption="Mean with a 95 % interval over queries (sentence pairs for"
          " Spearman); sparsity is the fraction of zeros in the kernels; cosine"
          " of h compares the embeddings of the same text by both models.",
          columns=(
            "model",
            "sparsity",
            *measures,
            "cosine of h, queries",
            "cosine of h, documents",
          ),
          rows=table,
        )
      ],
      figures=[
        page.Figure(
          png=drawn,
          caption="What is left of the dense score against how far the"
          " embeddings moved, over all models; bands are 95 % intervals of the"
          " paired difference.",
          alt="Lines of relative nDCG and Spearman over the deviation of h.",
        )
      ],
    )
  ]


def _unit(vectors):
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)
