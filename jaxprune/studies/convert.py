"""Which way is a model converted? The input decides."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from jaxprune import checkpoints, files
from jaxprune.checkpoints import gguf_file, gguf_folder, orbax_folder
from jaxprune.studies import inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a model is converted.

  Attributes:
    dtype: float32, bfloat16 or float16; None keeps what there is.
    mesh: devices that an Orbax checkpoint is spread over; None for the default
      device, and for the other ways.
    shard_size: bytes of tensors in a file of a Hugging Face folder.
    overwrite: replace an older model folder.
  """

  dtype: str | None = None
  mesh: jax.sharding.Mesh | None = None
  shard_size: int = checkpoints.SHARD_SIZE
  overwrite: bool = False


def identify(name: str) -> checkpoints.Source | str | None:
  """What tells a model from others, before it is converted.

  Args:
    name: what `convert` takes.

  Returns:
    The opened checkpoint, the hash of an Orbax folder, or None for a GGUF file,
    which is known by its own hash.

  Raises:
    ValueError: not a model.
  """
  if gguf_file.is_gguf(name):
    return None
  if not orbax_folder.is_orbax_folder(name):
    return inputs.open_model(name, logits=False)
  opened = orbax_folder.open_orbax(name)
  return opened.record["checkpoint_hash"] or files.sha256_tree(opened.folder)


def convert(
  name: str, out: str | os.PathLike, settings: Settings
) -> tuple[str, dict[str, Any]]:
  """Convert a model.

  Args:
    name: a GGUF file, an Orbax folder of `jaxprune convert`, or what
      `inputs.open_model` takes: a Hugging Face folder, a hub id or `pocket`.
    out: folder to write.
    settings: how.

  Returns:
    What was written, in words, and what is known of it, `checkpoint_hash` and
    more.

  Raises:
    ValueError: not a model, a mesh where none has a meaning or none where one
      is needed, the folder is in use, or bad weights.
  """
  out = pathlib.Path(out)
  gguf = gguf_file.is_gguf(name)
  if gguf or orbax_folder.is_orbax_folder(name):
    if settings.mesh is not None or jax.process_count() > 1:
      raise ValueError(
        f"--mesh, --distributed: {name} becomes a Hugging Face folder, which"
        " one process writes and no mesh spreads; leave them out"
      )
  elif settings.mesh is None and jax.process_count() > 1:
    raise ValueError("--distributed: say over which --mesh; or leave it out")
  folder = dict(
    dtype=settings.dtype,
    shard_size=settings.shard_size,
    overwrite=settings.overwrite,
  )
  if gguf:
    gguf_folder.write_gguf(name, out, **folder)
    record = {
      "checkpoint_hash": checkpoints.checkpoint_hash(
        checkpoints.open_checkpoint(out)
      )
    }
    return "a Hugging Face folder, dequantised", record
  if orbax_folder.is_orbax_folder(name):
    opened = orbax_folder.open_orbax(name)
    orbax_folder.write_huggingface(opened, out, **folder)
    return "a Hugging Face folder", opened.record
  source = inputs.open_model(name, logits=False)
  orbax_folder.write_orbax(
    source,
    out,
    dtype=settings.dtype,
    mesh=settings.mesh,
    overwrite=settings.overwrite,
  )
  record = orbax_folder.open_orbax(out).record
  return "an Orbax checkpoint of Flax parameters", record
