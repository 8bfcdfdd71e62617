"""Every script that can be cut off, on inputs so small that it takes no time.

`python tests/faults.py --kind=points` ends each at its operations on files.
"""

import json
import pathlib

import faults
import mutation_judges

SCRIPTS = ("prune", "wanda", "convert", "evaluate", "discrepancy", "recover")
# What differs between two runs whose results are the same.
_VOLATILE = ("seconds", "peak_bytes", "memory")


def make_inputs(home: pathlib.Path) -> None:
  """Write the models and texts that `flags` names.

  Args:
    home: an empty folder.
  """
  faults.save_model(home, num_hidden_layers=2)
  mutation_judges.save_model(home / "model")
  (home / "text.txt").write_text("the cat sat on the mat " * 30)
  asked = [
    {"context": "the cat", "options": ["sat", "mat"], "answer": i % 2}
    for i in range(4)
  ]
  (home / "asked.jsonl").write_text(
    "".join(json.dumps(q) + "\n" for q in asked)
  )
  faults.call(
    "prune", *faults.prune_flags(home, "magnitude"), f"--out={home}/pruned"
  )


def flags(home: pathlib.Path, name: str) -> tuple[str, list[str]]:
  """A script and its flags, but for --out.

  Args:
    home: of `make_inputs`.
    name: one of SCRIPTS.
  """
  if name in ("prune", "wanda"):
    method = "magnitude" if name == "prune" else name
    return "prune", faults.prune_flags(home, method)
  ids = f"--calibration={home}/ids.npz"
  model, asked = f"--model={home}/model", f"--choice={home}/asked.jsonl"
  return name, {
    "convert": [f"--model={home}/dense"],
    "evaluate": [model, asked, f"--perplexity={home}/text.txt", "--seq_len=16"],
    "discrepancy": [
      *(model, asked, ids, "--configurations=magnitude:0.5", "--seeds=0")
    ],
    "recover": [
      *(f"--pruned={home}/pruned", "--objective=language", ids),
      *("--steps=2", "--batch=2"),
    ],
  }[name]


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
