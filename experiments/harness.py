"""What does lm-evaluation-harness say of a model, dense or pruned?

  jaxprune harness --model=FOLDER --task=hellaswag --out=OUT
  jaxprune harness --model=FOLDER --data=DATA \\
    --task=tinystories_choice --out=OUT

The harness itself is not changed; `jaxprune.evaluation.lm_eval_adapter` hands
the model to it (extra `eval`). Its own tasks fetch their data from the hub.
Tasks of `experiments/lm_eval_tasks` read files below --data (for the word DATA
in the file) and need no network; a yaml file of your own is a task, too.

Writes the metrics of the harness, with an interval over items where a metric is
a mean over them. tinystories_choice takes half a minute on two CPU cores for a
model of 260,000 parameters.

Tasks of the harness that run what a model wrote isolate nothing. They need
--allow_code_execution, --without_isolation, and the harness's own
HF_ALLOW_CODE_EVAL=1 (docs/code_execution.md).
"""

import pathlib

from absl import flags

from . import flag_groups, launch

_TEMPLATES = pathlib.Path(__file__).parent / "lm_eval_tasks"

_MODEL = flag_groups.model(flag_groups.REQUIRED)
_TASK = flags.DEFINE_multi_string(
  "task", None, "Name of a task, or its yaml file.", required=True
)
_DATA = flags.DEFINE_string("data", None, "Folder that local tasks read from.")
_FEW_SHOT = flags.DEFINE_integer(
  "few_shot",
  None,
  "Examples before a question; else the task's own.",
  lower_bound=0,
)
flags.DEFINE_alias("num_fewshot", "few_shot")  # the word of the harness
_LIMIT = flag_groups.limit(about="Only the first so many items of a task.")
_BATCH = flag_groups.batch(16, about="Texts that are written at a time.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16", "float16"], "Type of the weights."
)
_ADD_BOS = flags.DEFINE_enum(
  "add_bos",
  "tokenizer",
  ["tokenizer", "yes", "no"],
  "Whether a beginning-of-text token is put in front.",
)
_MAX_LENGTH = flags.DEFINE_integer(
  "max_length", None, "Most tokens that are read; else the model's context."
)
_CHAT = flag_groups.chat("no", about="Whether questions are turns of a chat")
_ALLOW = flag_groups.allow_code_execution()
_WITHOUT_ISOLATION = flag_groups.without_isolation()
_SEED = flag_groups.seed()
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.studies.tasks import harness, harness_page

  source = _MODEL.open()
  tasks = harness.find_tasks(_TASK.value, _TEMPLATES, _DATA.value)
  settings = harness.Settings(
    few_shot=_FEW_SHOT.value,
    limit=_LIMIT.value,
    chat=_CHAT.value,
    seed=_SEED.value,
    run_code=_ALLOW.value and _WITHOUT_ISOLATION.value,
    model={
      "dtype": _DTYPE.value,
      "max_length": _MAX_LENGTH.value,
      "add_bos_token": {"yes": True, "no": False}.get(_ADD_BOS.value),
      "batch_size": _BATCH.value,
      "seed": _SEED.value,
    },
  )
  with launch.study(
    _OUT.value,
    seeds={"harness": _SEED.value, "bootstrap": _SEED.value},
    answers=True,
    models=source,
    notes={"lm_eval": harness.version()},
  ) as study:
    results = harness.evaluate(
      source.folder, tasks, settings, study.bookkeeping()
    )
    rows = list(harness.rows(results))
    study.run.write_all(rows)
    summary = harness.summarise(results, rows, _SEED.value)
    study.run.write_page(harness_page.render(summary, study.description))
    study.finish(summary, harness.headline(summary))


if __name__ == "__main__":
  launch.run(main)
