"""May this one pruned model still be used, by a rule that was learnt before?"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.probes.decoder import sequences
from jaxprune.report import page
from jaxprune.studies.comparison import measure as measure_lib
from jaxprune.studies.guidance import rules

MADE_BY = "jaxprune guidance"


def read_rule(path: str) -> dict[str, Any]:
  """Read what `guidance --grids` wrote as rule.json.

  Raises:
    ValueError: the file is missing or is no such rule.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f"--rule={path}: no such file; learn one with --grids")
  try:
    rule = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"--rule={path}: not JSON ({error})") from error
  if not isinstance(rule, dict) or rule.get("made_by") != MADE_BY:
    raise ValueError(f"--rule={path}: not written by experiments.guidance")
  return rule


def measure(
  dense: checkpoints.Source,
  pruned: checkpoints.Source,
  prompts: prompts_lib.Prompts,
  steps: int,
) -> dict[str, np.ndarray]:
  """Both models read what the dense one writes after each prompt, T = 1.

  Args:
    dense: the original model.
    pruned: of the same shape.
    prompts: to continue.
    steps: tokens to write; what comes after an end of text does not count.

  Returns:
    Columns over positions: prompt, step, and the fields of
    `probes.position.Position` at the output.
  """
  sequences.check_same_shape(dense.config, pruned.config)
  tokens_BT, valid_BT = prompts_lib.left_pad(
    prompts.tokens, dense.config.pad_id or 0
  )
  _, output, lengths_B = measure_lib.one_pass(
    checkpoints.load_params(dense, jnp.float32),
    checkpoints.load_params(pruned, jnp.float32),
    tokens_BT,
    valid_BT,
    jax.random.key(0),
    measure_lib.Settings(max_new_tokens=steps, batch=len(tokens_BT)),
  )
  prompt, step = np.nonzero(np.arange(steps) < lengths_B[:, None])
  return {"prompt": prompt, "step": step} | {
    field.name: np.asarray(getattr(output, field.name))[prompt, step]
    for field in dataclasses.fields(output)
  }


def judge(
  rule: dict[str, Any],
  dense_hash: str,
  prompts_hash: str,
  steps: int,
  measurements: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Answer for every task of the rule, and say what makes it doubtful."""
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


def lines(found: dict[str, Any]) -> list[str]:
  """Doubts first, then a line per task."""
  mark = "" if found["tested"] else "untested: "
  return [f"warning: {doubt}" for doubt in found["doubts"]] + [
    mark + answer["text"] for answer in found["answers"]
  ]


def render(found: dict[str, Any], description: dict[str, Any]) -> str:
  """report.html."""
  return page.render_page(
    title="What this pruned model may be used for",
    verdict="\n\n".join(lines(found)),
    sections=[
      page.Section(
        title="Measured",
        tables=[
          page.Table(
            caption=f"At {found['positions']} positions of {found['prompts']}"
            " prompts that the dense model continues; no labels were used.",
            columns=("feature", "value"),
            rows=list(found["features"].items()),
          )
        ],
      )
    ],
    run=description,
  )
