"""Do answer options move less than the rest of the vocabulary?

  jaxprune subspace --pruned=PRUNED --out=OUT
  jaxprune subspace --dense=FOLDER --pruned=PRUNED \\
    --items=QUESTIONS.jsonl --answer_as=letter --out=OUT

Each line of QUESTIONS.jsonl has `context`, `options` and `answer`. At the
position where the options part, both models are compared on the whole
vocabulary, on the first tokens of the options, and on random sets of tokens of
about the same probability. The options themselves are compared by the
log-probability of all their tokens and spellings. --answer_as=letter lists the
options below the context and reads A, B, ... after --cue; an empty --cue= gives
none, as in the paper.

Writes run.json, records.jsonl, summary.json, figures/ and report.html. A minute
or two on two CPU cores for a small model, most of it compilation.

Reference: He et al., arXiv 2603.24652, section 7 and Fig 8.
"""

from absl import flags

from . import flag_groups, launch

_MODELS = flag_groups.models(dense="pocket")
_ITEMS = flags.DEFINE_string(
  "items", "pocket", "jsonl of questions, or pocket for those of its world."
)
_LIMIT = flag_groups.limit(about="Only the first so many questions.")
_ANSWER_AS = flags.DEFINE_enum(
  "answer_as", "text", ["text", "letter"], "What the model answers with."
)
_CUE = flags.DEFINE_string(
  "cue", "Answer:", "Last line of the context of --answer_as=letter."
)
_ANALYSIS_TEMPERATURE = flag_groups.analysis_temperature()
_NUM_SUBSETS = flags.DEFINE_integer(
  "num_subsets", 16, "Random token sets of each question.", lower_bound=1
)
_BATCH = flag_groups.batch(about="Questions compared together.")
_SEED = flag_groups.seed("Seed of the random sets and the intervals.")
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.calibration import batching, load_tokenizer
  from jaxprune.studies.comparison import measure as comparison
  from jaxprune.studies.subspace import items as items_lib
  from jaxprune.studies.subspace import measure, page
  from jaxprune.studies.subspace import summary as summary_lib

  models = _MODELS.open()
  tokenizer = load_tokenizer(models["dense"].folder)
  items = items_lib.open_items(
    models["dense"],
    tokenizer,
    _ITEMS.value,
    limit=_LIMIT.value,
    answer_as=_ANSWER_AS.value,
    cue=_CUE.value,
  )
  settings = _settings(len(items))
  with launch.study(
    _OUT.value,
    seeds={"subsets": _SEED.value, "bootstrap": _SEED.value},
    models=models,
    notes={"items": items_lib.describe(items, _ITEMS.value)},
  ) as study:
    pair = comparison.load_models(models["dense"], models["pruned"])
    batches = batching.number_of_batches(len(items), settings.batch)
    progress = study.progress("batch", batches)
    tables = measure.compare_items(*pair, items, settings, study.run, progress)
    summary = summary_lib.summarise(tables, settings)
    study.finish(summary, summary_lib.headline(summary))
    page.write_page(
      study.run,
      tables,
      summary,
      settings,
      lambda token: tokenizer.decode([token], skip_special_tokens=False),
    )


def _settings(questions):
  """How `questions` questions are compared, from the flags."""
  from jaxprune.studies.subspace import measure

  return measure.Settings(
    answer_as=_ANSWER_AS.value,
    cue=_CUE.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    num_subsets=_NUM_SUBSETS.value,
    batch=min(_BATCH.value, questions),
    seed=_SEED.value,
  )


if __name__ == "__main__":
  launch.run(main)
