"""May the pruned model still be used, and for what? Two folders, one page.

  jaxprune compare DENSE PRUNED
  jaxprune compare DENSE PRUNED --prompts=FILE --out=OUT

report.html says for which kinds of task the pruned model is fit, how sure that
is, and what both models write. To find out, both models

- continue built-in prompts of five kinds, or those of --prompts: once on the
  dense model's text, once each on its own. Where the folder has a chat template
  a prompt is the turn of a user;
- answer built-in questions with four options, items with one right answer, and
  --tasks;
- read a text, for their perplexity.

A kind of task counts as kept or lost where the interval of the answers says so,
and otherwise where a rule says so that was learnt on other models. Takes three
minutes on two CPU cores for a model of 135 million parameters; the time grows
with the number of parameters.
"""

import pathlib

from absl import flags

from . import flag_groups, launch

_MODELS = flag_groups.models()
_PROMPTS = flag_groups.prompts(
  None, about="Texts to continue, a txt or jsonl file; by default built-in."
)
_CHAT = flag_groups.chat("auto", about="Whether prompts are turns of a chat")
_BATCH = flag_groups.batch(16)
_SEED = flag_groups.seed("Seed of the intervals.")
_TASKS = flag_groups.named_tasks(
  "Tasks beside the built-in ones, by name, also lm-evaluation-harness's"
)
_ATTRIBUTION = flags.DEFINE_string(
  "attribution",
  None,
  "Run folder of propagation on the same pair, or of ablation on the original:"
  " its finding is shown on the page.",
)
_LAYER_ROWS = flag_groups.layer_rows()
_INSIDE = 8  # texts read out after every sublayer, where most time would go
_OUT = flag_groups.out(
  None, about="Folder to write; by default out/compare/PRUNED."
)


def main() -> None:
  from jaxprune.studies.comparison import more_items, overview, page
  from jaxprune.studies.comparison import summary as summary_lib

  sources = _MODELS.open()
  prompts = _PROMPTS.read_or_builtin(sources["dense"], _CHAT.value)
  settings = _settings(len(prompts.kinds))
  more = more_items.read(_TASKS.read(chat=_CHAT.value), sources["dense"])
  name = pathlib.Path(_MODELS.pruned.value).resolve().name
  with launch.study(
    _OUT.value or f"out/compare/{name}",
    seeds={"bootstrap": settings.seed},
    models=sources,
    prompts=prompts.prompts,
    notes={"chat": prompts.chat},
  ) as study:
    found = _read_attribution(study.description)
    models, tables, answers = _measure(study, sources, prompts, settings, more)
    summary = summary_lib.summarise_all(
      tables,
      tuple(sources.values()),
      models,
      attribution=found,
      **overview.summarise(prompts, tables, answers, seed=settings.seed),
    )
    page.write_page(study.run, tables, summary)
    study.finish(summary, overview.headline(summary), then=_next())


def _measure(study, sources, prompts, settings, more):
  """Both models, how they read and write, and what they answer."""
  from jaxprune.calibration import batching
  from jaxprune.studies.comparison import items, measure, overview

  models = measure.load_models(*sources.values())
  launch.say(overview.plan(models[0], prompts, settings))
  batches = batching.number_of_batches(len(prompts.kinds), settings.batch)
  progress = study.progress("batch", batches)
  tables = measure.compare(
    *models, prompts.prompts, settings, study.run, progress, launch.say
  )
  answers = items.ask(
    sources, dict(zip(sources, models)), launch.tell_amount, more
  )
  study.run.write_all(answers.rows())
  return models, tables, answers


def _read_attribution(description):
  """What an earlier run says of the same models, from the flag."""
  from jaxprune.studies.comparison import attribution

  if _ATTRIBUTION.value is None:
    return None
  return attribution.read(_ATTRIBUTION.value, description["checkpoint_hash"])


def _settings(num_prompts):
  """How both models are compared, from the flags."""
  from jaxprune.studies.comparison import measure

  return measure.Settings(
    max_new_tokens=_PROMPTS.max_new_tokens.value,
    batch=min(_BATCH.value, num_prompts),
    seed=_SEED.value,
    layer_rows=_LAYER_ROWS.value,
    inside=None if _LAYER_ROWS.value else _INSIDE,
  )


def _next():
  """The command that says where the change comes from."""
  return (
    "transitions",
    f"--dense={_MODELS.dense.value}",
    f"--pruned={_MODELS.pruned.value}",
    "--prompts=PROMPTS.txt",
    "--out=out/transitions",
  )


if __name__ == "__main__":
  launch.run(main)
