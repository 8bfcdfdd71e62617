"""Every script that can be cut off, on inputs so small that it takes no time.

`python tests/faults.py --kind=points` ends each at its operations on files,
`--kind=kills` at any time. `convert` and `transitions` begin anew then, as all
scripts do that are not listed; the others go on.
"""

import contextlib
import json
import pathlib
from unittest import mock

import faults
import jax
import mutation_models
import numpy as np

from jaxprune.studies.comparison import more_items

SCRIPTS = (
  "prune",
  "wanda",
  "drop",
  "evaluate",
  "discrepancy",
  "code_tasks",
  "harness",
  "convert",
  "recover",
  "transitions",
  "recovery_study",
  "plan",
)
# What differs between two runs whose results are the same.
_VOLATILE = ("seconds", "peak_bytes", "memory")
MADE = more_items.Kind(
  use="generation", metric="exact match", rule="", chance=0.0
)
_TASK = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{home}/asked.jsonl"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def make_inputs(home: pathlib.Path) -> None:
  """Write the models and texts that `flags` names.

  Args:
    home: an empty folder.
  """
  import pocket_models

  faults.save_model(home, num_hidden_layers=2)
  mutation_models.save_model(home / "model")
  # Of the forms that a token may have, the harness reads only plain text.
  (home / "model" / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
      }
    )
  )
  pocket_models.save_cut(home / "pocket", layers=1)
  (home / "text.txt").write_text("the cat sat on the mat " * 30)
  _write_rows(
    home / "asked.jsonl",
    [
      {"context": "the cat", "options": ["sat", "mat"], "answer": i % 2}
      for i in range(4)
    ],
  )
  _write_rows(home / "prompts.jsonl", [{"prompt": "the cat"}] * 2)
  _write_rows(
    home / "code.jsonl",
    [
      {
        "task_id": f"own/{i}",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(f):\n  assert f() == 1",
      }
      for i in range(2)
    ],
  )
  (home / "own.yaml").write_text(_TASK.format(home=home))
  faults.call(
    "prune", *faults.prune_flags(home, "magnitude"), f"--out={home}/pruned"
  )
  faults.call(
    *("prune", f"--model={home}/model", "--method=magnitude"),
    f"--out={home}/model-pruned",
  )


def _write_rows(path: pathlib.Path, rows) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flags(home: pathlib.Path, name: str) -> tuple[str, list[str]]:
  """A script and its flags, but for --out.

  Args:
    home: of `make_inputs`.
    name: one of SCRIPTS.
  """
  if name in ("prune", "wanda"):
    method = "magnitude" if name == "prune" else name
    return "prune", faults.prune_flags(home, method)
  if name == "drop":
    method = faults.prune_flags(home, "drop_attention")
    return "prune", [*method, "--drop_count=1"]
  ids = f"--calibration={home}/ids.npz"
  model, asked = f"--model={home}/model", f"--choice={home}/asked.jsonl"
  return name, {
    "convert": [f"--model={home}/dense"],
    "evaluate": [
      *(model, asked, f"--generation={home}/prompts.jsonl"),
      *(f"--perplexity={home}/text.txt", "--seq_len=16", "--max_new_tokens=4"),
    ],
    "discrepancy": [
      *(model, asked, ids, "--configurations=magnitude:0.5", "--seeds=0")
    ],
    "code_tasks": [model, f"--tasks={home}/code.jsonl", "--max_new_tokens=4"],
    "harness": [model, f"--task={home}/own.yaml"],
    "recovery_study": [
      *(f"--model={home}/pocket", "--configurations=magnitude:0.5"),
      *("--seeds=0", "--weights=1", "--steps=1", "--batch=1", "--row_len=8"),
      *("--num_samples=2", "--seq_len=8"),
    ],
    "plan": [
      *(f"--model={home}/pocket", "--methods=wanda", "--allocations=uniform"),
      *("--keep=0.9", "--measurements=1", "--recover=1"),
      *("--num_samples=2", "--seq_len=16", "--limit=1", "--max_new_tokens=2"),
    ],
    "recover": [
      *(f"--pruned={home}/pruned", "--objective=language", ids),
      *("--steps=3", "--batch=2"),
    ],
    "transitions": [
      *(f"--dense={home}/model", f"--pruned={home}/model-pruned"),
      *(f"--prompts={home}/prompts.jsonl", "--max_new_tokens=2"),
    ],
  }[name]


@contextlib.contextmanager
def cheaper(name: str):
  """Leave out what costs time and touches no result, as long as this lasts.

  The pocket model is asked little, in `plan` nothing, and the harness does not
  list what is installed.

  Args:
    name: one of SCRIPTS.
  """
  from jaxprune.pocket import shipped, tasks

  items, requests = shipped.items, shipped.generate_requests

  def few(split):
    found = items(split)
    retrieve = found.retrieve
    return tasks.Tasks(
      split=split,
      choose=found.choose[:9],
      stories=found.stories[:2],
      generate=found.generate[:2],
      retrieve=tasks.Retrieve(
        queries=retrieve.queries[:2],
        passages=tuple(retrieve.passages[i] for i in retrieve.relevant[:2]),
        relevant=(0, 1),
      ),
    )

  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    enter(mock.patch.object(shipped, "items", few))
    enter(
      mock.patch.object(
        shipped, "generate_requests", lambda split: requests(split)[:2]
      )
    )
    if name == "plan":
      enter(mock.patch("jaxprune.studies.comparison.items.ask_one", answer))
    if name == "recover":  # keeps its state after the first step
      enter(mock.patch("jaxprune.recovery.finetune.SAVE_SECONDS", 0.0))
    if name == "harness":
      enter(mock.patch("lm_eval.evaluator.add_env_info", lambda results: None))
    yield


def answer(source, model, name, tell, uses):
  """Answers to 100 made items, fewer of them right the more weights are zero.

  Of those, 33 % cost nothing. In place of `items.ask_one`, which says what the
  arguments are.
  """
  kernels = [
    leaf for leaf in jax.tree.leaves(model.params["layers"]) if leaf.ndim > 2
  ]
  zeros = np.mean([float((kernel == 0).mean()) for kernel in kernels])
  right = round(100 * (1.0 - max(0.0, 2 * (zeros - 0.33))))
  values = (np.arange(100) < right).astype(float)
  return {"made": more_items.Scores(kind=MADE, values=values)}


def results(folder: pathlib.Path) -> dict[str, object]:
  """What must be the same however often a run was cut off."""
  found = dict(faults.contents(folder))
  # A page shows times, and orbax writes them.
  for name in list(found):
    if name == "report.html" or "_METADATA" in name:
      del found[name]
  rows = (folder / "records.jsonl").read_text().splitlines()
  found["records"] = [_without_times(json.loads(row)) for row in rows]
  found["summary"] = _without_times(
    json.loads((folder / "summary.json").read_text())
  )
  return found


def _without_times(value):
  if not isinstance(value, dict):
    return value
  return {
    name: _without_times(entry)
    for name, entry in value.items()
    if not name.endswith(_VOLATILE)
  }
