"""Train the pocket model: world, tokenizer, training, export, scores.

  python -m experiments.train_pocket --seed=0 --out=out/pocket

A run that was cut off goes on when the same command is given again. The
folder `model` under --out is what is shipped as `pocket`; `summary.json` has
its scores on held-out items. On one CPU core three quarters of an hour.
Expected on the test split: choose >= 0.90, retrieve nDCG@10 >= 0.80, generate
>= 0.90.

With --evaluate=FOLDER nothing is trained; the folder is scored.
"""

import pathlib
import time

from absl import flags

from . import launch

SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of the initial parameters and the order of documents."
)
WORLD_SEED = flags.DEFINE_integer("world_seed", 0, "Seed of the world.")
STEPS = flags.DEFINE_integer("steps", 2500, "Optimiser steps.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak of AdamW.")
SAVE_EVERY = flags.DEFINE_integer(
  "save_every", 100, "Steps between checkpoints.", lower_bound=1
)
SPLIT = flags.DEFINE_enum(
  "split", "test", ["train", "validation", "test"], "Items to score."
)
EVALUATE = flags.DEFINE_string(
  "evaluate", None, "Score this model folder instead of training."
)
OUT = flags.DEFINE_string("out", None, "Folder for everything.", required=True)

VOCAB_SIZE = 1280  # every word of the world is one token


def main() -> None:
  """Flags to configurations, then one call per station."""
  import dataclasses

  import jax
  import ml_dtypes

  from jaxprune import checkpoints
  from jaxprune.pocket import documents, export, scores, tasks, training
  from jaxprune.pocket import tokenizer as tokenizer_lib
  from jaxprune.pocket import world as world_lib

  out = pathlib.Path(OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  index = documents.make_index(world_lib.make_world(WORLD_SEED.value))
  items = tasks.make_tasks(index, SPLIT.value)
  minutes = train = None
  if EVALUATE.value:
    folder = pathlib.Path(EVALUATE.value)
    tokenizer = tokenizer_lib.load_tokenizer(folder)
    config, params = checkpoints.load_params(folder, dtype="float32")
  else:
    train = training.TrainConfig(
      seed=SEED.value, steps=STEPS.value, learning_rate=LEARNING_RATE.value
    )
    tokenizer = tokenizer_lib.train_tokenizer(index, vocab_size=VOCAB_SIZE)
    config = training.model_config(VOCAB_SIZE)
    (out / "checkpoints").mkdir(exist_ok=True)
    resumed, start = any((out / "checkpoints").iterdir()), time.monotonic()
    params = training.run(
      config,
      train,
      index,
      tokenizer,
      out / "checkpoints",
      save_every=SAVE_EVERY.value,
      report=lambda s: print(s, flush=True),
    )
    minutes = None if resumed else (time.monotonic() - start) / 60
    # What is scored is what is shipped.
    params = jax.tree.map(
      lambda x: x.astype(ml_dtypes.bfloat16).astype("float32"), params
    )
  found = scores.score(config, params, tokenizer, items)
  if train is not None:
    card = export.model_card(
      dataclasses.asdict(train),
      WORLD_SEED.value,
      sum(leaf.size for leaf in jax.tree.leaves(params)),
      found,
      tasks.tasks_hash(items),
      minutes,
    )
    export.write_model(out / "model", config, params, tokenizer, card)
  checkpoints.atomic_write_json(
    out / "summary.json",
    {
      "split": SPLIT.value,
      "items_hash": tasks.tasks_hash(items),
      "train_minutes": minutes,
      **found,
    },
  )
  for name, value in found.items():
    print(f"{name} {value:.4f}")


if __name__ == "__main__":
  launch.run(main)
