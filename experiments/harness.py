"""What does lm-evaluation-harness say of a model, dense or pruned?

  python -m experiments.harness --model=FOLDER --data=DATA \\
    --task=tinystories_choice --out=OUT
  python -m experiments.harness --model=FOLDER --task=hellaswag --out=OUT

The harness itself is not changed; the model is given to it by
`jaxprune.evaluation.lm_eval_adapter`. Its own tasks fetch their data from the
hub. Tasks of `experiments/lm_eval_tasks` read files below --data (for the word
DATA in the file) and need no network. A yaml file is a task, too. Writes the
harness's metrics with an interval over items where a metric is a mean over
them. Needs the extra `eval`. tinystories_choice takes half a minute on two CPU
cores for a model of 260,000 parameters.
"""

import pathlib
import sys
import time

from absl import flags

from . import launch

_TEMPLATES = pathlib.Path(__file__).parent / "lm_eval_tasks"

_MODEL = flags.DEFINE_string(
  "model", None, "A folder or a hub id, or pocket.", required=True
)
_TASK = flags.DEFINE_multi_string(
  "task", None, "Name of a task, or its yaml file.", required=True
)
_DATA = flags.DEFINE_string("data", None, "Folder that local tasks read from.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_NUM_FEWSHOT = flags.DEFINE_integer(
  "num_fewshot",
  None,
  "Examples before a question; else the task's own.",
  lower_bound=0,
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many items of a task.", lower_bound=1
)
_BATCH = flags.DEFINE_integer("batch", 16, "Requests at a time.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16", "float16"], "Of the weights."
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
_CHAT = flags.DEFINE_bool(
  "chat", False, "Whether the model's chat template is applied."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every draw.")


def main() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.studies import inputs
  from jaxprune.studies.tasks import harness

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  paths, names = harness.find_tasks(_TASK.value, _TEMPLATES, _DATA.value)
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"harness": _SEED.value, "bootstrap": _SEED.value},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
  ) | {"lm_eval": harness.version()}
  options = {
    "dtype": _DTYPE.value,
    "max_length": _MAX_LENGTH.value,
    "add_bos_token": {"yes": True, "no": False}.get(_ADD_BOS.value),
    "batch_size": _BATCH.value,
    "seed": _SEED.value,
  }
  with report.RunFolder(_OUT.value, description) as run:
    results = harness.evaluate(
      source.folder,
      names,
      paths,
      _DATA.value,
      options,
      num_fewshot=_NUM_FEWSHOT.value,
      limit=_LIMIT.value,
      chat=_CHAT.value,
      seed=_SEED.value,
    )
    rows = list(harness.rows(results))
    run.write_all(rows)
    summary = harness.summarise(results, rows, _SEED.value)
    run.write_summary({**summary, "seconds": time.monotonic() - began})
  for name, metrics in summary["tasks"].items():
    for metric, entry in metrics.items():
      said = (
        f" [{entry['low']:.4f}, {entry['high']:.4f}]" if "low" in entry else ""
      )
      print(f"{name}, {metric}: {entry['value']:.4f}{said}")
  print(f"wrote {_OUT.value}/summary.json")


if __name__ == "__main__":
  launch.run(main)
