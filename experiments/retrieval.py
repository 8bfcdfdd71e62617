"""Prune a sentence encoder in many ways and see what retrieval keeps.

  python -m experiments.retrieval --model=MINILM --collection=CRANFIELD \\
    --sts=sts-test.tsv --method=wanda,magnitude --sparsity=0.3,0.5,0.7 \\
    --drop_attention=1,2,3 --drop_mlp=1,2,3 --out=OUT

MINILM is a BERT in the layout of sentence-transformers. Each model is pruned,
embeds all queries and documents, and ranks them by cosine; the sentence pairs
are scored by Spearman's rho against the judgements of people. Intervals
resample queries or pairs, differences to the dense model are paired.

Reference: He et al., arXiv 2603.24652, Table 1a, which says that retrieval
survives what generation does not.
"""

import sys
import time

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", None, "The dense encoder: a folder or a hub id.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_COLLECTION = flags.DEFINE_string(
  "collection",
  None,
  "Folder of queries, documents and judgements: Cranfield, or the layout of"
  " BEIR.",
  required=True,
)
_STS = flags.DEFINE_string(
  "sts",
  None,
  "Sentence pairs: a tab-separated file with score, sent1 and sent2.",
)
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  "collection",
  "`collection` for its own documents, or a text, jsonl, json.gz or parquet"
  " file, c4, wikitext2.",
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 128, "Calibration documents.", lower_bound=1
)
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 256, "Texts are cut to so many tokens.", lower_bound=3
)
_METHOD = flags.DEFINE_list(
  "method", ["wanda"], "Weight methods, any number; empty for none."
)
_SPARSITY = flags.DEFINE_list(
  "sparsity", ["0.5"], "Fractions removed, each by each method."
)
_PATTERN = flags.DEFINE_list(
  "pattern", [], "Also n:m patterns, n kept out of m, by each method."
)
_DROP_ATTENTION = flags.DEFINE_list(
  "drop_attention", [], "Counts of attention sublayers to drop."
)
_DROP_MLP = flags.DEFINE_list(
  "drop_mlp", [], "Counts of MLP sublayers to drop."
)
_PRUNED = flags.DEFINE_list(
  "pruned", [], "Folders of models pruned elsewhere, of the same shape."
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the calibration draw and the intervals."
)
_KEEP_MODELS = flags.DEFINE_bool(
  "keep_models", False, "Keep the pruned models in OUT/models."
)


def main() -> None:
  import pathlib
  import shutil
  import tempfile

  import jax

  from jaxprune import checkpoints, report
  from jaxprune.calibration import tokenizer as tokenizers
  from jaxprune.models import EncoderConfig
  from jaxprune.pruning.checkpoint import encoder
  from jaxprune.report import page
  from jaxprune.studies.retrieval import measure as study
  from jaxprune.studies.tasks import retrieval_data

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = checkpoints.open_checkpoint(
    checkpoints.resolve_model(_MODEL.value), EncoderConfig
  )
  pooling = checkpoints.read_pooling(source.folder)
  if _MAX_TOKENS.value > source.config.max_positions:
    raise ValueError(
      f"--max_tokens={_MAX_TOKENS.value} is more than the"
      f" {source.config.max_positions} positions of the encoder"
    )
  wanted = _wanted(source.config)
  tokenizer = tokenizers.load_tokenizer(source.folder)
  collection = retrieval_data.read_collection(_COLLECTION.value)
  pairs = retrieval_data.read_pairs(_STS.value) if _STS.value else None
  texts = study.tokenised(tokenizer, collection, pairs, _MAX_TOKENS.value)
  calibration = study.calibrate(
    tokenizer,
    _CALIBRATION.value,
    study.calibration_texts(_CALIBRATION.value, collection),
    source.config,
    num_samples=_NUM_SAMPLES.value,
    max_tokens=_MAX_TOKENS.value,
    seed=_SEED.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
    calibration=calibration.description,
  )
  with report.RunFolder(_OUT.value, description) as run:
    if _KEEP_MODELS.value:
      # What an earlier run with these flags left there is stale.
      shutil.rmtree(run.folder / "models", ignore_errors=True)
    scores = None
    if any("drop_count" in variant.settings for variant in wanted):
      scores = encoder.score_encoder(
        source, calibration.tokens, calibration.valid
      )
    dense = study.Variant(
      name="dense", settings={"method": "none"}, folder=source.folder
    )
    progress = launch.Progress("model", 1 + len(wanted))
    summary = {
      "queries": sum(map(bool, collection.qrels)),
      "documents": len(collection.documents),
      "pairs": 0 if pairs is None else len(pairs.scores),
      "models": {},
    }
    dense_vectors = dense_found = None
    with tempfile.TemporaryDirectory() as temporary:
      home = (
        run.folder / "models" if _KEEP_MODELS.value else pathlib.Path(temporary)
      )
      for index, variant in enumerate([dense, *wanted]):
        folder = study.make_model(
          source, variant, calibration, scores, home / variant.name
        )
        vectors, reached, dropped = study.embed(
          folder, pooling, texts, source.config
        )
        found = study.measure(vectors, texts)
        if index == 0:
          dense_vectors, dense_found = vectors, found
        cos_h = study.cosines(dense_vectors, vectors)
        run.write_all(
          study.rows(
            collection.name, variant, reached, found, dense_found, cos_h
          )
        )
        entry = {
          "sparsity": reached,
          "dropped": dropped,
          **variant.settings,
        } | study.summarise(found, dense_found, cos_h, pairs, _SEED.value)
        if index == 0:
          summary["dense"] = entry
        else:
          summary["models"][variant.name] = entry
        if not _KEEP_MODELS.value and variant.folder is None:
          shutil.rmtree(folder)
        progress.step(
          index,
          ndcg=entry["ndcg@10"]["value"],
          spearman=entry.get(study.STS, {}).get("value"),
        )
    summary["seconds"] = time.monotonic() - began
    if scores is not None:
      summary["similarity"] = {k: v.tolist() for k, v in scores.items()}
    run.write_summary(summary)
    run.write_page(
      page.render_page(
        title="Retrieval by a pruned encoder",
        verdict=study.verdict(summary),
        sections=study.sections(summary, run),
        run=description,
        protocol={
          "Collection": collection.name,
          "Queries": summary["queries"],
          "Documents": summary["documents"],
          "Tokens of a text, at most": _MAX_TOKENS.value,
          "Pooling": pooling.kind,
          "Normalised": pooling.normalise,
        },
      )
    )
  print(study.verdict(summary).replace("\n\n", "\n"))
  print(f"wrote {_OUT.value}/report.html")


def _wanted(config):
  """The models that the flags ask for, checked."""
  from jaxprune.pruning.checkpoint import encoder, weights
  from jaxprune.studies import inputs
  from jaxprune.studies.retrieval import measure as study

  for method in _METHOD.value:
    if method not in encoder.METHODS:
      raise ValueError(
        f"--method={method}: is not for encoders; use some of"
        f" {', '.join(encoder.METHODS)}"
      )
  wanted = study.variants(
    _METHOD.value,
    _numbers("sparsity", _SPARSITY.value, float),
    [inputs.read_pattern(p, 0.0, "output") for p in _PATTERN.value],
    *(
      _numbers(name, counts, int)
      for name, counts in (
        ("drop_attention", _DROP_ATTENTION.value),
        ("drop_mlp", _DROP_MLP.value),
      )
    ),
    _PRUNED.value,
  )
  for variant in wanted:
    if variant.pattern is not None:
      weights.check_job(
        config, variant.settings["method"], variant.pattern, tokens=True
      )
    if variant.settings.get("drop_count", 0) > config.num_layers:
      raise ValueError(
        f"--{variant.settings['method']}: {variant.settings['drop_count']}"
        f" sublayers of {config.num_layers} layers; use fewer"
      )
  return wanted


def _numbers(name, values, kind):
  try:
    return [kind(value) for value in values]
  except ValueError:
    raise ValueError(
      f"--{name}={','.join(values)}: give numbers, divided by commas"
    ) from None


if __name__ == "__main__":
  launch.run(main)
