"""How is a model folder gathered that appears whole, or not at all?

For conversions, which begin anew after a cut: what one left beside the folder
(`staging`) is removed by the next. A pruning run goes on instead; see `export`.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import devices, files, staging
from jaxprune.checkpoints import (
  export,
  export_job,
  folders,
  huggingface,
  layout,
  sentence,
  shards,
)


@contextlib.contextmanager
def new_folder(
  home: str | os.PathLike, folder: str | os.PathLike, overwrite: bool
) -> Iterator[pathlib.Path]:
  """Open a folder that takes its name when the block ends well.

  Every process of a pod enters and leaves the block; what is not written by all
  of them together is written by the writer alone.

  Args:
    home: the folder of the source, which is kept.
    folder: the final place; absent or empty unless `overwrite`.
    overwrite: replace an older model folder.

  Yields:
    The folder to fill.

  Raises:
    ValueError: the folder is in use, or `FOLDER.partial` is other work.
  """
  stage = staging.stage(folder)
  export_job.check_target(stage.folder, pathlib.Path(home), overwrite)
  if devices.is_writer():
    staging.begin(stage, {"made_from": os.fspath(home)}, resume=False)
    stage.new.mkdir()
  devices.wait_for_all("began")
  try:
    yield stage.new
    devices.wait_for_all("filled")
    if devices.is_writer():
      staging.publish(stage)
  except BaseException:
    if devices.is_writer():
      staging.discard(stage)
    raise
  devices.wait_for_all("published")


def write_tensors(
  work: pathlib.Path,
  planned: Mapping[str, tuple[str, tuple[int, ...]]],
  tensors: Iterable[tuple[str, Callable[[slice], np.ndarray]]],
  shard_size: int,
) -> None:
  """Write the weights of a model, read back and compared.

  Args:
    work: folder that is filled.
    planned: by name: name of the dtype in the file, and shape.
    tensors: names, and what gives a part of the first axis of each; each
      tensor once, in any order.
    shard_size: bytes of tensors in a file.

  Raises:
    ValueError: a value is not finite in the dtype of the file, or the disk
      gives back something else.
  """
  plan = layout.plan_shards(planned, shard_size)
  places = {name: shard for shard in plan for name in shard.tensors}
  for shard in plan:
    layout.make_file(work, shard)
  hashes = {}
  for name, read in tensors:
    hashes[name] = layout.write_tensor(work, places[name], name, read)
  record = {
    shard.name: {
      "size": shard.size,
      "sha256": layout.read_back(work, shard, hashes.__getitem__),
    }
    for shard in plan
  }
  layout.name_files(work, plan)
  files.atomic_write_json(work / export.PROGRESS, {"shards": record})


def copy_companions(folder: pathlib.Path, work: pathlib.Path) -> None:
  """Copy what lies beside the weights: tokenizer, generation, pooling.

  Args:
    folder: of the model.
    work: folder that is filled.
  """
  for name in ("generation_config.json", *huggingface.TOKENIZER_FILES):
    if os.path.lexists(folder / name):
      path = folders.inside(folder, name)
      files.atomic_write_bytes(work / name, path.read_bytes())
  sentence.copy_sentence_files(folder, work)


def dtype_name(dtype: Any) -> str:
  """The name of a dtype in safetensors.

  Raises:
    ValueError: not one for weights.
  """
  for name in ("F32", "F16", "BF16"):
    if shards.DTYPES[name] == jnp.dtype(dtype):
      return name
  raise ValueError(
    f"dtype {dtype!r} is not one for weights; use float32, bfloat16 or float16"
  )


def with_dtype(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
  """config.json of a model whose weights have another dtype.

  Args:
    hf: config.json as it was.
    name: of the dtype in safetensors.
  """
  key = "torch_dtype" if "torch_dtype" in hf and "dtype" not in hf else "dtype"
  return dict(hf) | {key: shards.DTYPES[name].name}
