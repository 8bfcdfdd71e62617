"""The pocket model with fewer layers: it knows nothing, is soon compiled."""

import dataclasses
import pathlib

import jax

from jaxprune import checkpoints
from jaxprune.pocket import export, shipped, tokenizer


def save_cut(folder: pathlib.Path, layers: int) -> pathlib.Path:
  """Write the pocket model's first layers as a model folder.

  Args:
    folder: a new folder.
    layers: how many are left.

  Returns:
    The folder.
  """
  config, params = checkpoints.load_params(shipped.FOLDER)
  params = {
    **params,
    "layers": jax.tree.map(lambda leaf: leaf[:layers], params["layers"]),
  }
  return export.write_model(
    folder,
    dataclasses.replace(
      config, num_layers=layers, sliding_layers=config.sliding_layers[:layers]
    ),
    params,
    tokenizer.load_tokenizer(shipped.FOLDER),
    "Cut, for tests.",
  )
