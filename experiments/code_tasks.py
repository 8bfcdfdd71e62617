"""Does the code that a model writes pass its tests? HumanEval and MBPP.

  jaxprune code_tasks --model=FOLDER \\
    --tasks=HumanEval.jsonl.gz --allow_code_execution --out=OUT

Code that a model wrote is not to be trusted. Without --allow_code_execution the
programs are written to the records and nothing is run. With it, every program
runs in a sandbox with limits; where the system has none (bubblewrap, or Linux
namespaces), nothing is run unless --without_isolation is given as well.
docs/code_execution.md says what is and what is not contained.

Writes a row per program, and pass@k over the tasks with its 95 % interval. One
sample per task is greedy; several are drawn at --temperature. The format of
--tasks is told by its fields: HumanEval has prompt, test and entry_point, MBPP
has prompt and test_list.
"""

from absl import flags

from . import flag_groups, launch

_MODEL = flag_groups.model(flag_groups.REQUIRED)
_TASKS = flags.DEFINE_string(
  "tasks", None, "HumanEval or MBPP, json or jsonl, perhaps .gz.", required=True
)
_ALLOW = flag_groups.allow_code_execution()
_WITHOUT_ISOLATION = flag_groups.without_isolation()
_SAMPLES = flags.DEFINE_integer(
  "samples", 1, "Completions of each task.", lower_bound=1
)
_K = flags.DEFINE_integer(
  "k", 1, "The k of pass@k, at most --samples.", lower_bound=1
)
_TEMPERATURE = flag_groups.temperature(
  0.8, about="Temperature of sampling; a single sample is greedy.", least=1e-3
)
_MAX_NEW_TOKENS = flag_groups.new_tokens(256)
_SECONDS = flags.DEFINE_integer(
  "seconds",
  10,
  "Processor time of one program.",
  lower_bound=1,
  upper_bound=3600,
)
_LIMIT = flag_groups.limit(about="Only the first so many tasks.")
_SEED = flag_groups.seed("Seed of sampling and of the interval.")
_OUT = flag_groups.out()


def main() -> None:
  from jaxprune.studies.tasks import code, code_page

  settings = code.Settings(
    samples=_SAMPLES.value,
    k=_K.value,
    temperature=_TEMPERATURE.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
    seconds=_SECONDS.value,
    allow_code_execution=_ALLOW.value,
    without_isolation=_WITHOUT_ISOLATION.value,
    limit=_LIMIT.value,
    seed=_SEED.value,
  )
  source = _MODEL.open()
  tasks = code.read(_TASKS.value, source, settings)
  with launch.study(
    _OUT.value,
    seeds={"sampling": _SEED.value, "bootstrap": _SEED.value},
    answers=True,
    models=source,
    extra_fields=code.FIELDS,
  ) as study:
    progress = study.progress("sample", _SAMPLES.value)
    passed = code.measure(
      source, tasks, settings, study.run, progress, study.bookkeeping()
    )
    summary = code.summarise(passed, tasks, settings)
    ends = study.run.columns().get("reason", [])
    study.run.write_page(code_page.render(summary, ends, study.description))
    study.finish(summary, code.headline(summary))


if __name__ == "__main__":
  launch.run(main)
