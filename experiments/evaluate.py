"""What do one or two models score on tasks, with intervals over the items?

  jaxprune evaluate --model=pocket --pocket --out=OUT
  jaxprune evaluate --dense=FOLDER --pruned=PRUNED \\
    --tasks=arc_easy:200,gsm8k:150 --out=OUT
  jaxprune evaluate --dense=FOLDER --pruned=PRUNED \\
    --choice=QUESTIONS.jsonl --generation=PROMPTS.jsonl \\
    --perplexity=TEXT --retrieval=FOLDER --out=OUT

--tasks asks benchmarks by name, the other task flags your own files; each may
be given several times. A choice file holds context, options and answer; a
generation file prompt (or question), and perhaps answer, by which the texts are
then scored; a retrieval folder is laid out as BEIR or Cranfield.

Writes the estimate of each score with its 95 % interval, with two models also
the paired difference (pruned less dense), under `rules` when an item counts as
right, and a row per item. A run that was killed goes on with the same command.
A minute or two on two CPU cores for a small model and some hundred items, most
of it compilation. docs/evaluation.md explains the tasks.
"""

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(
  None, about="One model: a folder, a hub id, or pocket."
)
_MODELS = flag_groups.models(
  dense=None,
  pruned=None,
  about_dense="The original of two models.",
  about_pruned="The pruned of two models.",
)
_TASKS = flag_groups.tasks()
_RETRIEVAL = flags.DEFINE_multi_string(
  "retrieval", [], "Folder of a retrieval collection."
)
_EXTRACT = flags.DEFINE_enum(
  "extract",
  "auto",
  ["auto", "none", "final_number", "normalised"],
  "What is compared with the answer of a generation item; auto is final_number"
  " where all answers of the file are numbers, else normalised, and none where"
  " it has no answers.",
)
_POOLING = flags.DEFINE_enum(
  "pooling",
  None,
  ["last", "mean", "weighted_mean"],
  "How tokens become the embedding of a text; by default what modules.json"
  " says, or else mean.",
)
_QUERY_PROMPT = flags.DEFINE_string(
  "query_prompt",
  None,
  "Text before every query, or the name of a prompt of the folder; by"
  " default its prompt `query`.",
)
_SEQ_LEN = flag_groups.sequence_length(
  512, about="Tokens of a window for perplexity.", least=2
)
_MAX_NEW_TOKENS = flag_groups.new_tokens(64)
_OUT = flag_groups.out()
_SEED = flag_groups.seed("Seed of the intervals.")


def main() -> None:
  from jaxprune.studies.tasks import measure, page, scores, summary

  sources = measure.open_models(
    _MODEL.model.value, _MODELS.dense.value, _MODELS.pruned.value
  )
  tasks = _TASKS.read(
    retrieval=tuple(_RETRIEVAL.value),
    extract=_EXTRACT.value,
    pooling=_POOLING.value,
    query_prompt=_QUERY_PROMPT.value,
    seq_len=_SEQ_LEN.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  scores.check(tasks, list(sources.values()))
  with launch.study(
    _OUT.value,
    seeds={"bootstrap": _SEED.value},
    answers=True,
    models=sources,
    extra_fields=measure.FIELDS,
  ) as study:
    measured = measure.measure(
      sources,
      tasks,
      study.run,
      study.progress("model", len(sources)),
      study.bookkeeping,
    )
    numbers = summary.summarise(measured, _SEED.value)
    study.run.write_page(page.render(numbers, study.description))
    study.finish(numbers, summary.headline(numbers))


if __name__ == "__main__":
  launch.run(main)
