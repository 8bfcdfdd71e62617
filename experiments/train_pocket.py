"""Train the pocket model: world, tokenizer, training, export, scores.

  jaxprune train_pocket --seed=0 --out=out/pocket
  jaxprune train_pocket --evaluate=FOLDER --out=OUT

The folder `model` under --out is what comes with the package as `pocket`;
summary.json has its scores on held-out items. A run that was killed goes on
with the same command. Three quarters of an hour on one CPU core. Expected on
the test split: choose >= 0.90, retrieve nDCG@10 >= 0.80, generate >= 0.90.

With --evaluate=FOLDER nothing is trained; the folder is scored.
"""

import pathlib
import shutil

from absl import flags

from . import descriptions, flag_groups, launch

_SEED = flag_groups.seed(
  "Seed of the initial parameters and the order of documents."
)
_WORLD_SEED = flags.DEFINE_integer("world_seed", 0, "Seed of the world.")
_STEPS = flags.DEFINE_integer("steps", 2500, "Optimiser steps.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate", 3e-3, "Peak of the learning rate of AdamW."
)
_SAVE_EVERY = flags.DEFINE_integer(
  "save_every", 100, "Steps between checkpoints.", lower_bound=1
)
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["train", "validation", "test"], "Items to score."
)
_EVALUATE = flags.DEFINE_string(
  "evaluate", None, "Score this model folder instead of training."
)
_OUT = flag_groups.out(about="Folder for everything.")


def main() -> None:
  from jaxprune import staging

  out = pathlib.Path(_OUT.value)
  with staging.lock(out):
    out.mkdir(parents=True, exist_ok=True)
    _begin(out)
    _run(out)


def _begin(out):
  """Write run.json, or compare it with the run that began here."""
  from jaxprune import files
  from jaxprune.report import records, run_stage

  free = ("save_every", "split")  # the training is the same
  description = descriptions.describe(
    seeds={"order": _SEED.value, "world": _WORLD_SEED.value}
  )
  if any(out.iterdir()) and not records.is_run(out):
    raise ValueError(
      f"--out={out}: is not empty and holds no run.json of this script; give a"
      " new folder, or empty this one"
    )
  earlier = files.read_json(out / "run.json") if any(out.iterdir()) else None
  if launch.overwrites():
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
  elif earlier is not None:
    run_stage.refuse_another(out, earlier, description, free)
    same = records.identity(earlier) == records.identity(description)
    if same and (out / "summary.json").is_file():
      launch.end_as_finished(out)
  (out / "summary.json").unlink(missing_ok=True)
  files.atomic_write_json(out / "run.json", description)


def _run(out):
  """Train and score, or score alone."""
  from jaxprune import files
  from jaxprune.pocket import build, documents, scores, tasks, training
  from jaxprune.pocket import world as world_lib

  index = documents.make_index(world_lib.make_world(_WORLD_SEED.value))
  items = tasks.make_tasks(index, _SPLIT.value)
  settings = training.TrainConfig(
    seed=_SEED.value, steps=_STEPS.value, learning_rate=_LEARNING_RATE.value
  )
  if _EVALUATE.value:
    model = build.read(_EVALUATE.value)
  else:
    model = build.train(
      index,
      settings,
      out / "checkpoints",
      save_every=_SAVE_EVERY.value,
      report=lambda line: print(line, flush=True),
    )
  reached = scores.score(model.config, model.params, model.tokenizer, items)
  if not _EVALUATE.value:
    build.write(
      out / "model", model, settings, _WORLD_SEED.value, items, reached
    )
  about = {
    "split": _SPLIT.value,
    "items_hash": tasks.tasks_hash(items),
    "train_minutes": model.minutes,
  }
  files.atomic_write_json(out / "summary.json", about | reached)
  for name, value in reached.items():
    print(f"{name} {value:.4f}")


if __name__ == "__main__":
  launch.run(main)
