"""Does the code that a model writes pass its tests? HumanEval and MBPP.

  python -m experiments.code_tasks --model=FOLDER \\
    --tasks=HumanEval.jsonl.gz --allow_code_execution --out=OUT

Code of a model is untrusted: without --allow_code_execution the completions are
written to the records and nothing is run. With it every program runs in a
process of its own with limits on time, memory, files and network; read
`jaxprune.evaluation.code_execution` for what that stops and what not.

The format is told by the fields: HumanEval has prompt, test and entry_point,
MBPP has prompt and test_list. Writes a row per task with the fraction of right
samples and pass@k, and the mean with a 95 % interval that resamples the tasks.
One sample is greedy; more are drawn at --temperature.
"""

import sys
import time

from absl import flags

from . import launch

_MODEL = flags.DEFINE_string(
  "model", None, "A folder, a hub id, or pocket.", required=True
)
_TASKS = flags.DEFINE_string(
  "tasks", None, "HumanEval or MBPP, json or jsonl, perhaps .gz.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_ALLOW = flags.DEFINE_bool(
  "allow_code_execution", False, "Run what the model wrote, on this machine."
)
_SAMPLES = flags.DEFINE_integer(
  "samples", 1, "Completions of each task.", lower_bound=1
)
_K = flags.DEFINE_integer(
  "k", 1, "Of pass@k, at most --samples.", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.8, "Of sampling; one sample is greedy.", lower_bound=1e-3
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 256, "Most tokens to write.", lower_bound=1
)
_SECONDS = flags.DEFINE_integer(
  "seconds", 5, "Processor time of one program.", lower_bound=1
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many tasks.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling and of the intervals.")


def main() -> None:
  import jax
  import jax.numpy as jnp

  from jaxprune import checkpoints, report
  from jaxprune.calibration import encode, load_tokenizer
  from jaxprune.evaluation import code_execution, generation
  from jaxprune.studies import inputs

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  if _K.value > _SAMPLES.value:
    raise ValueError(
      f"--k={_K.value} is more than --samples={_SAMPLES.value}: draw more"
    )
  source = inputs.open_model(_MODEL.value)
  kind, tasks = code_execution.read_tasks(_TASKS.value)
  tasks = tasks[: _LIMIT.value]
  tokenizer = load_tokenizer(source.folder)
  prompts = [encode(tokenizer, kind.prompt(task)) for task in tasks]
  longest = max(map(len, prompts))
  if longest + _MAX_NEW_TOKENS.value > source.config.max_positions:
    raise ValueError(
      f"{_TASKS.value}: a prompt of {longest} tokens and --max_new_tokens="
      f"{_MAX_NEW_TOKENS.value} exceed the context of {source.folder},"
      f" {source.config.max_positions}: lower --max_new_tokens"
    )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"sampling": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
  )
  fields = {
    "completion": report.Field("text", "", "what the model wrote"),
    "reason": report.Field("text", "", "how the program ended"),
    "sample": report.Field("int", "", "index of the completion, from 0"),
  }
  config, params = checkpoints.load_params(source, jnp.float32)
  right = [0] * len(tasks)
  with report.RunFolder(_OUT.value, description, extra_fields=fields) as run:
    progress = launch.Progress("sample", _SAMPLES.value)
    for sample in range(_SAMPLES.value):
      written = generation.continue_prompts(
        config,
        params,
        tokenizer,
        prompts,
        stop=kind.stop,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        seed=_SEED.value + sample,
        temperature=_TEMPERATURE.value if _SAMPLES.value > 1 else 0.0,
      )
      for index, (task, text) in enumerate(zip(tasks, written)):
        row = {
          "task": str(task["task_id"]),
          "question": index,
          "sample": sample,
          "completion": text.text,
        }
        if _ALLOW.value:
          outcome = code_execution.run_program(
            kind.program(task, text.text),
            allow_code_execution=True,
            limits=code_execution.Limits(seconds=_SECONDS.value),
          )
          right[index] += outcome.passed
          row |= {
            "metric": "passed",
            "value": float(outcome.passed),
            "reason": outcome.reason,
          }
        run.write(row)
      progress.step(sample)
    summary = {
      "tasks": len(tasks),
      "format": kind.name,
      "executed": _ALLOW.value,
      "seconds": time.monotonic() - began,
    }
    if _ALLOW.value:
      found = report.mean_interval(
        [
          code_execution.pass_at_k(_SAMPLES.value, count, _K.value)
          for count in right
        ],
        seed=_SEED.value,
      )
      summary[f"pass@{_K.value}"] = {
        "mean": found.estimate,
        "low": found.low,
        "high": found.high,
      }
      print(
        f"pass@{_K.value} {found.estimate:.4f} [{found.low:.4f},"
        f" {found.high:.4f}] on {len(tasks)} tasks"
      )
    else:
      print("nothing was run: give --allow_code_execution to score")
    run.write_summary(summary)
  print(f"wrote {_OUT.value}/records.jsonl")


if __name__ == "__main__":
  launch.run(main)
