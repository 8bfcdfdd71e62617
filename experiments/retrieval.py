"""What is left of retrieval when a sentence encoder is pruned in many ways?

  jaxprune retrieval --dense=MINILM --collection=CRANFIELD \\
    --sts=sts-test.tsv --method=wanda,magnitude --sparsity=0.3,0.5,0.7 \\
    --drop_attention=1,2,3 --drop_mlp=1,2,3 --out=OUT

MINILM is a BERT in the layout of sentence-transformers. Each pruned model
embeds all queries and documents and ranks the documents by cosine. Sentence
pairs (--sts) are scored by Spearman's correlation with the judgements of
people. Intervals resample queries or pairs; differences from the dense model
are paired.

Reference: He et al., arXiv 2603.24652, Table 1a, which says that retrieval
survives what generation does not.
"""

from absl import flags

from . import flag_groups, launch

_DENSE = flag_groups.dense_model("The dense encoder: a folder or a hub id.")
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
_CALIBRATION = flag_groups.calibration_text(
  "collection",
  about="`collection` for its own documents, or a text, jsonl, json.gz or"
  " parquet file, c4, wikitext2.",
)
_NUM_SAMPLES = flag_groups.samples(128, about="Calibration documents.")
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
_KEEP_MODELS = flags.DEFINE_bool(
  "keep_models", False, "Keep the pruned models in OUT/models."
)
_SEED = flag_groups.seed("Seed of the calibration draw and the intervals.")
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.pruning.checkpoint import sublayers
  from jaxprune.studies.retrieval import (
    encoders,
    measure,
    page,
    reading,
    summary,
  )

  source = encoders.open_encoder(_DENSE.model.value, _MAX_TOKENS.value)
  variants = encoders.variants(_wanted())
  encoders.check(variants, source.config, sublayers.dropped_before(source))
  texts = reading.read_texts(
    source, _COLLECTION.value, _STS.value, _MAX_TOKENS.value
  )
  drawn = dict(num_samples=_NUM_SAMPLES.value, seed=_SEED.value)
  calibration = reading.calibrate(source, _CALIBRATION.value, texts, **drawn)
  with launch.study(
    _OUT.value,
    seeds={"calibration": _SEED.value, "bootstrap": _SEED.value},
    models=source,
    calibration=calibration.description,
  ) as study:
    similarities = measure.similarities(source, variants, calibration)
    progress, measured = study.progress("model", 1 + len(variants)), []
    for model in measure.measure(
      measure.Study(source, texts, calibration, similarities),
      variants,
      study.run,
      keep_models=_KEEP_MODELS.value,
    ):
      progress.step(len(measured), ndcg=model.scores["ndcg@10"].mean())
      measured.append(model)
    numbers = summary.summarise(measured, texts, similarities, _SEED.value)
    protocol = measure.protocol(source, texts)
    page.write_page(study.run, numbers, protocol)
    study.finish(numbers, summary.verdict(numbers).replace("\n\n", "\n"))


def _wanted():
  """The models that the flags ask for."""
  from jaxprune.studies import inputs
  from jaxprune.studies.retrieval import encoders

  return encoders.Wanted(
    methods=tuple(_METHOD.value),
    sparsities=flag_groups.numbers(_SPARSITY, float),
    patterns=tuple(
      inputs.read_pattern(text, 0.0, "output") for text in _PATTERN.value
    ),
    drop_attention=flag_groups.numbers(_DROP_ATTENTION, int),
    drop_mlp=flag_groups.numbers(_DROP_MLP, int),
    folders=tuple(_PRUNED.value),
  )


if __name__ == "__main__":
  launch.run(main)
