"""Undo a part of what pruning did, and see how much of the damage goes.

  python -m experiments.interventions --model=pocket --answers=pocket \\
    --cells=wanda:0.5,drop_attention:4 --seeds=0,1,2 --out=OUT
  python -m experiments.interventions --dense=FOLDER --pruned=PRUNED \\
    --prompts=FILE --answers=none --out=OUT

Prunes the model once per cell and calibration seed (or takes one --pruned
folder), and makes beside each a control as large that removes at random. Every
intervention is measured on the dense model's greedy text, where h, z and p are
compared with the dense ones:

  freeze_first, freeze_last   the first k layers dense and the others pruned, or
                              the first k pruned and the others dense
  patch_pruned, patch_dense   the dense h given to the pruned run after k
                              layers, or the pruned h to the dense run, at the
                              position that is read only
  keep_PART                   only this part of the change of the logits
  half, temperature_T, ...    rescues (`probes.interventions.RESCUES`)
  ..._random                  controls of equal size in a random direction

`protocol` continued decodes on with a part of the change, `protocol` answers
reads right answers: whether greedy decoding writes them, and with which
probability sampling does. A row is one cell, seed, source (pruned or the random
control), intervention, depth k, and prompt; means are over its positions.

Reference: He et al., arXiv 2603.24652, sections 5-7, and its reviews.
"""

import pathlib
import sys
import time

from absl import flags

from jaxprune.studies.sweep import configurations

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "The dense model: a folder, a hub id, or pocket."
)
flags.DEFINE_alias("dense", "model")
_PRUNED = flags.DEFINE_string(
  "pruned", None, "One pruned folder, instead of --cells and --seeds."
)
_CELLS = flags.DEFINE_list(
  "cells",
  ["wanda:0.5"],
  "METHOD:AMOUNT, as in jaxprune/studies/sweep/configurations.py.",
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "Of calibration, controls and directions."
)
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "As in experiments.prune."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 128, "Tokens of a calibration sequence.", lower_bound=2
)
_PROMPTS = flags.DEFINE_string(
  "prompts", "pocket", "txt or jsonl file, or an .npz of ids."
)
_LIMIT = flags.DEFINE_integer(
  "limit", 24, "Only the first so many prompts.", lower_bound=1
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens",
  32,
  "Steps to decode and compare, and tokens of an answer from a file.",
  lower_bound=1,
)
_ANSWERS = flags.DEFINE_string(
  "answers",
  "none",
  "Right answers: pocket, a jsonl file with prompt and reference, or none.",
)
_ANSWERS_LIMIT = flags.DEFINE_integer(
  "answers_limit", 120, "So many answers, evenly from all.", lower_bound=1
)
_ANALYSIS_TEMPERATURE = flags.DEFINE_float(
  "analysis_temperature",
  1.0,
  "T of the softmax that is measured.",
  lower_bound=1e-3,
)
_TOP_TOKENS = flags.DEFINE_integer(
  "top_tokens", 10, "Tokens of the part `top`.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)


def main() -> None:
  import jax

  from jaxprune import checkpoints, devices, report
  from jaxprune.studies import inputs
  from jaxprune.studies.interventions import measure, page

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  seeds = [int(seed) for seed in _SEEDS.value]
  if _TOP_TOKENS.value >= source.config.vocab_size:
    raise ValueError(
      f"--top_tokens={_TOP_TOKENS.value}: must be below the vocabulary,"
      f" {source.config.vocab_size}"
    )
  prompts = inputs.read_prompts(
    source,
    _PROMPTS.value,
    limit=_LIMIT.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
  )
  answers = measure.read_answers(
    source,
    _ANSWERS.value,
    limit=_ANSWERS_LIMIT.value,
    most=_MAX_NEW_TOKENS.value,
  )
  hashes = {"dense": checkpoints.checkpoint_hash(source)}
  calibration, cells, drawn = None, [], {}
  if _PRUNED.value is None:
    cells = [
      configurations.read_cell(text, group_size=64, target="attention")
      for text in _CELLS.value
    ]
    for cell in cells:
      configurations.check(source.config, cell)
    drawn, calibration = inputs.read_calibrations(
      source,
      _CALIBRATION.value,
      seeds,
      num_samples=_NUM_SAMPLES.value,
      seq_len=_SEQ_LEN.value,
    )
  else:
    pruned = inputs.open_model(_PRUNED.value)
    hashes["pruned"] = checkpoints.checkpoint_hash(pruned)
  settings = measure.Settings(
    max_new_tokens=_MAX_NEW_TOKENS.value,
    analysis_temperature=_ANALYSIS_TEMPERATURE.value,
    top_tokens=_TOP_TOKENS.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration, control, directions": seeds, "bootstrap": 0},
    checkpoint_hash=hashes,
    calibration=calibration,
  ) | {
    "prompts": {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    },
    "answers": None
    if answers is None
    else {"source": _ANSWERS.value, "count": len(answers)},
  }
  with report.RunFolder(
    _OUT.value, description, extra_fields=measure.FIELDS
  ) as run:
    study = measure.Study(source, prompts, answers, settings, run)
    work = pathlib.Path(_OUT.value) / "work"
    jobs = [(cell, seed) for cell in cells for seed in seeds] or [
      (None, seed) for seed in seeds
    ]
    progress = launch.Progress("model", len(jobs))
    for index, (cell, seed) in enumerate(jobs):
      if cell is None:
        study.measure(pruned, "pruned", seed)
      else:
        study.prune_and_measure(cell, seed, drawn[seed].tokens, work)
      progress.step(index)
    summary = page.summarise(
      report.columns(report.read_records(run.folder)), settings
    )
    run.write_summary(
      summary
      | {"seconds": time.monotonic() - began, "memory": devices.peak_bytes()}
    )
    page.write_page(run, description, summary, settings)
  print(page.headline(summary))
  print(f"wrote {_OUT.value}/report.html")


if __name__ == "__main__":
  launch.run(main)
