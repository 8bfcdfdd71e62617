"""May this one pruned model still be used, by a rule that was learnt before?"""

import pathlib
from typing import Any

import numpy as np

from jaxprune import checkpoints, files, report
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.probes.decoder import sequences
from jaxprune.studies.guidance import rules
from jaxprune.studies.guidance.fit import Settings
from jaxprune.studies.guidance.sweeps import Sweeps
from jaxprune.studies.sweep import measure as sweep_measure
from jaxprune.studies.tasks import scores as task_scores

MADE_BY = "jaxprune guidance"
RULE = "rule.json"


def read_rule(path: str) -> dict[str, Any]:
  """Read what `guidance --sweeps` wrote as rule.json.

  Raises:
    ValueError: the file is missing, is no such rule, or was changed.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"--rule={path}: no such file; learn one with --sweeps")
  try:
    rule = files.read_json(file)
    if rule.get("made_by") != MADE_BY:
      raise ValueError("not written by jaxprune guidance")
    if "sha256" not in rule:
      raise ValueError("has no sha256 of its own; learn it again with --sweeps")
    return files.check_signed(rule, file, name=RULE)
  except ValueError as error:
    raise ValueError(f"--rule={path}: {error}") from error


def write_rule(
  folder: pathlib.Path,
  sweeps: Sweeps,
  tasks: dict[str, Any],
  settings: Settings,
) -> None:
  """Write rule.json.

  Args:
    folder: of the run.
    sweeps: the pruned models that were learnt from, or held out.
    tasks: from `fit.fit`.
    settings: how it was learnt.
  """
  files.write_signed_json(
    folder / RULE,
    {
      "made_by": MADE_BY,
      "keep": settings.keep,
      "sources": sweeps.sources,
      "configurations_hash": sweeps.hash,
      "seed": settings.seed,
      "fingerprints": sweeps.fingerprints,
      "tasks": tasks,
    },
  )


def measure(
  dense: checkpoints.Source,
  pruned: checkpoints.Source,
  prompts: prompts_lib.Prompts,
  steps: int,
  run: report.RunFolder,
) -> dict[str, np.ndarray]:
  """Both models read what the dense one writes after each prompt, T = 1.

  Args:
    dense: the original model.
    pruned: of the same shape.
    prompts: which the dense model continues.
    steps: tokens to write; what comes after an end of text does not count.
    run: gets a row per position.

  Returns:
    Columns over positions, see `sweep.measure.measure_output`.
  """
  sequences.check_same_shape(dense.config, pruned.config)
  columns = sweep_measure.measure_output(
    *(task_scores.load(source, None) for source in (dense, pruned)),
    prompts,
    steps,
  )
  names = [name for name in columns if name in report.FIELDS]
  run.write_all(
    {"protocol": "teacher_forced"} | {name: columns[name][i] for name in names}
    for i in range(len(columns["kl"]))
  )
  return columns


def judge(
  rule: dict[str, Any],
  dense_hash: str,
  prompts_hash: str,
  steps: int,
  measurements: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Answer for every task of the rule, and say what makes it doubtful.

  Args:
    rule: from `read_rule`.
    dense_hash: of the checkpoint of the dense model.
    prompts_hash: of the prompts that were measured on.
    steps: that were measured.
    measurements: from `measure`.

  Returns:
    `tested`, whether the rule knows the dense model; `doubts`, a line each;
    `answers` by task, see `rules.verdict`; `positions` and `prompts`, how many
    were measured; and the `features`.
  """
  measured = rules.features(measurements)
  known = {source["checkpoint_hash"] for source in rule["sources"]}
  doubts = []
  if dense_hash not in known:
    doubts.append(
      "UNTESTED: the rule was learnt on other dense models"
      f" ({', '.join(sorted(each[:12] for each in known))}) and never checked"
      f" on this one ({dense_hash[:12]}); thresholds need not carry over"
    )
  seen = {(source["prompts"] or {}).get("hash") for source in rule["sources"]}
  if prompts_hash not in seen:
    doubts.append("measured on other prompts than the rule was learnt from")
  if steps not in {source["steps"] for source in rule["sources"]}:
    doubts.append(
      f"measured over {steps} steps, not as many as the rule was learnt from"
    )
  answers = [
    rules.verdict(task, entry, measured)
    for task, entry in rule["tasks"].items()
  ]
  return {
    "tested": dense_hash in known,
    "doubts": doubts,
    "answers": answers,
    "positions": len(measurements["kl"]),
    "prompts": len(np.unique(measurements["prompt"])),
    "features": measured,
  }


def headline(judged: dict[str, Any]) -> str:
  """Doubts first, then a line per task."""
  mark = "" if judged["tested"] else "untested: "
  return "\n".join(
    [f"warning: {doubt}" for doubt in judged["doubts"]]
    + [mark + answer["text"] for answer in judged["answers"]]
  )


def learnt_with(rule: dict[str, Any]) -> tuple[int, int]:
  """How many steps and prompts a rule was learnt with."""
  first = rule["sources"][0]
  return first["steps"], first["num_prompts"]
