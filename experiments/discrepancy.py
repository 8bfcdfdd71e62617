"""Which tasks does which pruning leave intact? Tasks over methods and seeds.

  python -m experiments.discrepancy --model=pocket --pocket \\
    --cells=wanda:0.6,wanda:2:4,drop_attention:4 --seeds=0,1,2 --out=OUT

Prunes the model once per cell and calibration seed, scores every copy and the
dense model on the same items, and writes a row per cell, seed, task and metric,
and a table: the mean over seeds with a 95 % interval that resamples the items,
and beside it the range over seeds and the paired change from the dense model.
With --prompts every copy also reads what the dense model writes after them, and
the deviations in h, z and p at the output are kept beside the scores: what
`experiments.guidance` learns from.

A finished cell is kept in OUT/cells and not computed again, so a run that was
cut off goes on with the same command; another command refuses the folder.
Pruned weights are not kept. Data-free methods run for the first seed only.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import time

from absl import flags

from jaxprune.studies.sweep import configurations

from . import launch

_MODEL = flags.DEFINE_string(
  "model", "pocket", "The dense model: a folder, a hub id, or pocket."
)
_CELLS = flags.DEFINE_list(
  "cells",
  ["magnitude:0.5", "wanda:0.5", "sparsegpt:0.5"],
  "METHOD:AMOUNT, as in jaxprune/studies/sweep/configurations.py.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the calibration.")
_CALIBRATION = flags.DEFINE_string(
  "calibration", "pocket", "As in experiments.prune."
)
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", 32, "Calibration sequences.", lower_bound=1
)
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len",
  128,
  "Tokens of a calibration sequence and of a window for perplexity.",
  lower_bound=2,
)
_GROUP_SIZE = flags.DEFINE_integer(
  "group_size", 64, "Inputs that share a scale in rtn and awq; 0 for all."
)
_DROP_TARGET = flags.DEFINE_enum(
  "drop_target",
  "attention",
  ["attention", "mlp", "joint", "block"],
  "What drop_iterative, drop_random and drop_reverse drop.",
)
_PERPLEXITY = flags.DEFINE_multi_string(
  "perplexity", [], "Text that is read in windows: a file, wikitext2 or c4."
)
_CHOICE = flags.DEFINE_multi_string(
  "choice", [], "jsonl of multiple-choice questions."
)
_GENERATION = flags.DEFINE_multi_string(
  "generation",
  [],
  "jsonl of prompts that are continued greedily, compared"
  " with what the dense model writes.",
)
_POCKET = flags.DEFINE_bool(
  "pocket", False, "The tasks of the pocket model's world."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "Texts to measure h, z and p on: a file, or pocket."
)
_LIMIT = flags.DEFINE_integer(
  "limit", None, "Only the first so many items of each task.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)

_NEW_TOKENS = 32  # written after a prompt, of a task or of a measurement
_NUM_PROMPTS = 16  # measured on

EXTRA_FIELDS = {
  "cell": ("text", "", "METHOD:AMOUNT, or dense"),
  "removed": ("float", "", "fraction of zeros in the kernels"),
}


def main() -> None:
  import jax

  from jaxprune import checkpoints, report
  from jaxprune.calibration import load_tokenizer
  from jaxprune.studies import inputs
  from jaxprune.studies.sweep import scores as scores_lib
  from jaxprune.studies.tasks import scores as task_scores

  jax.config.update("jax_default_matmul_precision", "highest")
  began = time.monotonic()
  source = inputs.open_model(_MODEL.value)
  cells = [
    configurations.read_cell(
      text, group_size=_GROUP_SIZE.value or None, target=_DROP_TARGET.value
    )
    for text in _CELLS.value
  ]
  for cell in cells:
    configurations.check(source.config, cell)
  if not (
    _PERPLEXITY.value or _CHOICE.value or _GENERATION.value or _POCKET.value
  ):
    raise ValueError(
      "no task: give --perplexity, --choice, --generation or --pocket"
    )
  task_scores.check_files(
    choice=_CHOICE.value, generation_files=_GENERATION.value
  )
  if _POCKET.value and not inputs.is_pocket(source):
    raise ValueError(
      f"--pocket: {source.folder} does not speak the pocket model's"
      " language; leave the flag out"
    )
  prompts = (
    None
    if _PROMPTS.value is None
    else inputs.read_prompts(
      source, _PROMPTS.value, limit=_NUM_PROMPTS, max_new_tokens=_NEW_TOKENS
    )
  )
  seeds = [int(seed) for seed in _SEEDS.value]
  drawn, calibration = inputs.read_calibrations(
    source,
    _CALIBRATION.value,
    seeds,
    num_samples=_NUM_SAMPLES.value,
    seq_len=_SEQ_LEN.value,
  )
  description = report.describe_run(
    flags=launch.flag_values(),
    command=sys.argv,
    seeds={"calibration": seeds, "bootstrap": 0},
    checkpoint_hash=checkpoints.checkpoint_hash(source),
  ) | {
    "calibration": calibration,
    "prompts": None
    if prompts is None
    else {
      "source": prompts.source,
      "hash": prompts.hash,
      "count": len(prompts.tokens),
      "bos": prompts.bos,
    },
  }
  folder = _check_cells(description)
  tokenizer = load_tokenizer(source.folder)
  wanted = [(None, seeds[0])] + [
    (cell, seed)
    for cell in cells
    for seed in (
      seeds[:1] if cell.method in configurations.DATA_FREE else seeds
    )
  ]
  progress = launch.Progress("cell", len(wanted))
  extra = {name: report.Field(*field) for name, field in EXTRA_FIELDS.items()}
  # Records are made anew from the cells, so a run that goes on has all.
  with report.RunFolder(_OUT.value, description, extra_fields=extra) as run:
    _start_cells(folder, description)
    scores = []
    dense = _Dense(source, tokenizer, prompts)
    for index, (cell, seed) in enumerate(wanted):
      scores.append(_cell(folder, dense, cell, seed, drawn[seed]))
      progress.step(index)
    run.write_all(scores_lib.rows(scores))
    table = scores_lib.summarise(scores)
    bins = scores_lib.break_down(scores)
    run.write_summary(
      {"table": table, "breakdown": bins, "seconds": time.monotonic() - began}
    )
    run.write_page(scores_lib.render(table, bins, description))
  print("\n".join(scores_lib.lines(table)))
  print(f"wrote {_OUT.value}/report.html")


def _job(description) -> dict:
  """What a cell means; the list of cells and seeds may grow."""
  return {
    key: value
    for key, value in description["flags"].items()
    if key not in ("out", "cells", "seeds")
  } | {"checkpoint_hash": description["checkpoint_hash"]}


def _check_cells(description) -> pathlib.Path:
  """The folder of finished cells; refused if they are of another run."""
  folder = pathlib.Path(_OUT.value) / "cells"
  job = _job(description)
  if (folder / "job.json").is_file():
    earlier = json.loads((folder / "job.json").read_text())
    different = sorted(
      key
      for key in earlier.keys() | job.keys()
      if earlier.get(key) != job.get(key)
    )
    if different:
      raise ValueError(
        f"{folder}: holds cells of another run ({', '.join(different)}"
        " differ): choose another --out"
      )
  return folder


def _start_cells(folder, description) -> None:
  from jaxprune import checkpoints

  folder.mkdir(exist_ok=True)
  checkpoints.atomic_write_json(folder / "job.json", _job(description))


class _Dense:
  """The dense model; loaded once, and only if a cell has to be made."""

  def __init__(self, source, tokenizer, prompts):
    self.source, self.tokenizer, self.prompts = source, tokenizer, prompts
    self.written = {}  # texts by generation task, once it is scored

  @functools.cached_property
  def model(self):
    import jax.numpy as jnp

    from jaxprune import checkpoints

    return checkpoints.load_params(self.source, jnp.float32)


def _cell(folder, dense, cell, seed, calibration):
  """The scores of one cell, from its file or made now."""
  from jaxprune import checkpoints
  from jaxprune.evaluation import generation

  name = "dense" if cell is None else f"{cell.file}-seed{seed}"
  path = folder / f"{name}.json"
  if path.is_file():
    result = json.loads(path.read_text())
  else:
    result = {
      "cell": "dense" if cell is None else cell.name,
      "seed": seed,
      "removed": 0.0,
    }
    model, work = dense.model, folder / name
    if cell is not None:
      result["removed"] = configurations.prune(
        dense.source, cell, calibration.tokens, seed, work
      )
      model = checkpoints.load_params(
        checkpoints.open_checkpoint(work), "float32"
      )
      result["measurements"] = _measure(dense, model)
    result["tasks"] = _score(dense, model)
    checkpoints.atomic_write_json(path, result)
    shutil.rmtree(work, ignore_errors=True)
  if cell is None:
    dense.written = {
      task: [
        generation.Continuation(tokens=tuple(ids), text="", ended="")
        for ids in entry["written"]
      ]
      for task, entry in result["tasks"].items()
      if "written" in entry
    }
  return result


def _measure(dense, model) -> dict[str, list]:
  """h, z and p at the output on what the dense model writes, flat columns."""
  import jax
  import numpy as np

  from jaxprune.calibration import prompts as prompts_lib
  from jaxprune.studies.comparison import measure

  if dense.prompts is None:
    return {}
  tokens = dense.prompts.tokens
  tokens_BT, valid_BT = prompts_lib.left_pad(
    tokens, dense.source.config.pad_id or 0
  )
  _, output, lengths_B = measure.one_pass(
    dense.model,
    model,
    tokens_BT,
    valid_BT,
    jax.random.key(0),
    measure.Settings(max_new_tokens=_NEW_TOKENS, batch=len(tokens)),
  )
  prompt, step = np.nonzero(np.arange(_NEW_TOKENS) < lengths_B[:, None])
  return {"prompt": prompt.tolist(), "step": step.tolist()} | {
    field.name: np.asarray(getattr(output, field.name))[prompt, step].tolist()
    for field in dataclasses.fields(output)
  }


def _score(dense, model) -> dict[str, dict]:
  """Every task of one model, as a cell keeps it."""
  from jaxprune.studies.tasks import scores as task_scores

  model = task_scores.Model(
    name="pruned", config=model[0], params=model[1], tokenizer=dense.tokenizer
  )
  found = [
    *(
      task_scores.score_perplexity(model, path, _LIMIT.value, _SEQ_LEN.value)
      for path in _PERPLEXITY.value
    ),
    *(
      task_scores.score_choice(model, path, _LIMIT.value)
      for path in _CHOICE.value
    ),
    *(
      task_scores.score_generation(
        model, path, _LIMIT.value, _NEW_TOKENS, "none", dense.written
      )
      for path in _GENERATION.value
    ),
    *(task_scores.score_pocket(model) if _POCKET.value else ()),
  ]
  tasks = {}
  for scored in found:
    entry = tasks[scored.task] = {
      "columns": {k: v.tolist() for k, v in scored.columns.items()},
      "weights": None
      if scored.weights is None
      else [float(w) for w in scored.weights],
    }
    if scored.traits:
      entry["traits"] = {k: v.tolist() for k, v in scored.traits.items()}
    if isinstance(scored.detail, list):
      entry["written"] = [list(text.tokens) for text in scored.detail]
  return tasks


if __name__ == "__main__":
  launch.run(main)
