"""How is the pocket model made? Tokenizer, training, export, with their order.

A run that was cut off goes on from its newest checkpoint.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import ml_dtypes
import tokenizers

from jaxprune import checkpoints
from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.pocket import documents, export, tasks, training
from jaxprune.pocket import tokenizer as tokenizer_lib

VOCAB_SIZE = 1280  # every word of the world is one token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A pocket model in memory.

  Attributes:
    config: its shape.
    params: float32, of the values that bfloat16 has.
    tokenizer: of the world.
    minutes: wall time of training; None where it was resumed or read.
  """

  config: ModelConfig
  params: decoder.Params
  tokenizer: tokenizers.Tokenizer
  minutes: float | None = None


def read(folder: str | os.PathLike) -> Model:
  """Read a model that was made before."""
  config, params = checkpoints.load_params(folder, dtype="float32")
  return Model(
    config=config,
    params=params,
    tokenizer=tokenizer_lib.load_tokenizer(pathlib.Path(folder)),
  )


def train(
  index: documents.Index,
  settings: training.TrainConfig,
  folder: pathlib.Path,
  *,
  save_every: int,
  report: Callable[[str], None],
) -> Model:
  """Train a model, or go on with it.

  Args:
    index: the world.
    settings: of the run.
    folder: where checkpoints go.
    save_every: steps between checkpoints.
    report: gets a line of progress from time to time.

  Returns:
    The model with the weights that `write` writes: what is scored is what is
    shipped.
  """
  tokenizer = tokenizer_lib.train_tokenizer(index, vocab_size=VOCAB_SIZE)
  config = training.model_config(VOCAB_SIZE)
  folder.mkdir(parents=True, exist_ok=True)
  resumed, start = any(folder.iterdir()), time.monotonic()
  params = training.run(
    config,
    settings,
    index,
    tokenizer,
    folder,
    save_every=save_every,
    report=report,
  )
  return Model(
    config=config,
    params=jax.tree.map(
      lambda x: x.astype(ml_dtypes.bfloat16).astype("float32"), params
    ),
    tokenizer=tokenizer,
    minutes=None if resumed else (time.monotonic() - start) / 60,
  )


def write(
  folder: pathlib.Path,
  model: Model,
  settings: training.TrainConfig,
  world_seed: int,
  items: tasks.Tasks,
  scores: Mapping[str, float],
) -> None:
  """Write the folder that is shipped, with its model card.

  Args:
    folder: an older model there is replaced.
    model: from `train`.
    settings: of its run.
    world_seed: of the world that it knows.
    items: that it was scored on.
    scores: of them.
  """
  card = export.model_card(
    dataclasses.asdict(settings),
    world_seed,
    sum(leaf.size for leaf in jax.tree.leaves(model.params)),
    scores,
    tasks.tasks_hash(items),
    model.minutes,
  )
  export.write_model(folder, model.config, model.params, model.tokenizer, card)
