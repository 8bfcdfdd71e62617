"""Where do weights come from and where do they go?

The only package that touches model files and their formats.
"""

from jaxprune.checkpoints.export import (
  Export,
  FinishedError,
  finish_export,
  finished_layers,
  start_export,
  write_layer,
)
from jaxprune.checkpoints.huggingface import (
  checkpoint_hash,
  load_params,
  read_layer,
  read_outer,
)
from jaxprune.checkpoints.layout import SHARD_SIZE
from jaxprune.checkpoints.masks import read_masks, write_masks
from jaxprune.checkpoints.resolve import resolve_model
from jaxprune.checkpoints.save import save_params
from jaxprune.checkpoints.sentence import (
  Pooling,
  Recipe,
  read_pooling,
  read_recipe,
)
from jaxprune.checkpoints.source import (
  Source,
  check_head,
  open_checkpoint,
  read_drops,
  without_layers,
)
from jaxprune.files import (
  atomic_write_bytes,
  atomic_write_json,
  atomic_write_text,
  sha256_file,
)

__all__ = [
  "SHARD_SIZE",
  "Export",
  "FinishedError",
  "Pooling",
  "Recipe",
  "Source",
  "atomic_write_bytes",
  "atomic_write_json",
  "atomic_write_text",
  "check_head",
  "checkpoint_hash",
  "finish_export",
  "finished_layers",
  "load_params",
  "open_checkpoint",
  "read_drops",
  "read_layer",
  "read_masks",
  "read_outer",
  "read_pooling",
  "read_recipe",
  "resolve_model",
  "save_params",
  "sha256_file",
  "start_export",
  "without_layers",
  "write_layer",
  "write_masks",
]
