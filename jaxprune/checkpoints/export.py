"""How does a changed model become a folder that stock transformers loads?

Layer by layer, each written at its place in shards of a chosen size
(`layout`) when it is finished, then what lies outside the layers, the index and
the configuration. Everything is gathered beside the final place (`staging`),
read back and compared with what was written, and renamed at the end: no reader
can meet half a model, an old model stays until the new one is whole, and a run
that was killed goes on with the layers it has. One tensor, in pieces, is in
memory beside the layer that the caller holds.

The state of an export is on disk (`jaxprune_export.json` in the folder: what
is exported, the sha256 of each tensor, and at the end size and sha256 of each
shard); `Export` only says where. Only one process may write.

Reference: the sharded layout of transformers 5.
Differs from the reference in: a dropped sublayer stays in the file with a zero
output projection and bias, an exact identity without custom code; shards are
5 GB by default, as in transformers 4.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import devices, files, staging
from jaxprune.checkpoints import (
  export_job,
  folders,
  huggingface,
  layout,
  names,
  sentence,
  shards,
)
from jaxprune.checkpoints.changed_config import patched_config
from jaxprune.checkpoints.huggingface import Tree
from jaxprune.checkpoints.rows import Row
from jaxprune.checkpoints.source import Source
from jaxprune.models.config import ModelConfig

PROGRESS = export_job.RECORD
_OUTER = "outer"  # the name of what lies outside the layers, in the record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """An export under way.

  Attributes:
    stage: the final place, and where the work is until `finish_export`; what is
      put beside `work` in `stage.scaffold` is removed then.
    source: the checkpoint that the model was made from.
    config: of the model that is written.
    job: what is exported, as JSON: `provenance`, `drop_attention`, `drop_mlp`,
      `changes`, `shard_size` and `source`.
    shards: the files that are filled.
  """

  stage: staging.Stage
  source: Source
  config: ModelConfig
  job: dict[str, Any]
  shards: tuple[layout.Shard, ...]

  @property
  def folder(self) -> pathlib.Path:
    """The final place."""
    return self.stage.folder

  @property
  def work(self) -> pathlib.Path:
    """What becomes the folder; other files put here are published with it."""
    return self.stage.new


class FinishedError(ValueError):
  """The folder is not empty: it holds what the same job finished.

  Attributes:
    folder: the final place.
  """

  def __init__(self, folder: pathlib.Path):
    super().__init__(
      f"{folder}: is not empty, the same job has finished it; choose another"
      " output folder or overwrite"
    )
    self.folder = folder


def start_export(
  folder: str | os.PathLike,
  source: Source,
  *,
  provenance: Mapping[str, Any] | None = None,
  drop_attention: Sequence[int] = (),
  drop_mlp: Sequence[int] = (),
  changes: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  shard_size: int = layout.SHARD_SIZE,
) -> Export:
  """Begin an export, or take up one that was cut off.

  Args:
    folder: the final place; absent or empty unless `overwrite`.
    source: gives names, dtypes, configuration and tokenizer.
    provenance: JSON values, written under `jaxprune` in config.json. A resumed
      export must be given the same, so leave times out.
    drop_attention: layers whose attention is written as zero.
    drop_mlp: layers whose MLP is written as zero.
    changes: fields of config.json in which the written model differs from the
      source, such as a smaller `intermediate_size`; the layers written must
      have the shapes that these say.
    overwrite: replace an older model folder, at the end.
    shard_size: bytes of tensors in a file; a single tensor may be larger.

  Returns:
    The export; `finished_layers` says what an earlier run left.

  Raises:
    ValueError: the folder is in use (a `FinishedError` where the same job has
      finished it), another job's work lies in `FOLDER.partial`, or an argument
      is wrong.
    OSError: there is no room for the model.
  """
  stage = staging.stage(folder)
  job = {
    "provenance": dict(provenance or {}),
    "drop_attention": export_job.check_drops(
      source, "attention", drop_attention
    ),
    "drop_mlp": export_job.check_drops(source, "mlp", drop_mlp),
    "changes": dict(changes or {}),
    "shard_size": shard_size,
    "source": export_job.fingerprint(source),
  }
  try:
    job = json.loads(json.dumps(job, allow_nan=False))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"provenance cannot be written as JSON ({error}); use strings, finite"
      " numbers, lists and dicts"
    ) from error
  staging.settle(stage)
  if not overwrite and export_job.finished_job(stage.folder) == job:
    raise FinishedError(stage.folder)
  export_job.check_target(stage.folder, source.folder, overwrite)
  _companions(source.folder)
  sentence.check_sentence_files(source.folder)
  config = source.config
  if changes:
    config = type(config).from_hf({**source.hf, **changes})
    if isinstance(config, ModelConfig):
      config = dataclasses.replace(
        config,
        bare_names=source.config.bare_names,
        has_head=source.config.has_head,
      )
  planned = layout.plan_shards(
    {
      name: (_dtype(source, name), shape)
      for name, shape in names.file_shapes(config).items()
    },
    shard_size,
  )
  export = Export(
    stage=stage, source=source, config=config, job=job, shards=tuple(planned)
  )
  staging.begin(stage, job | devices.machine(), resume=True)
  export.work.mkdir(exist_ok=True)
  if not (export.work / PROGRESS).is_file():
    files.atomic_write_json(export.work / PROGRESS, {"job": job, "layers": {}})
  _make_files(export)
  return export


def finished_layers(export: Export) -> tuple[int, ...]:
  """Return the layers that were written whole, to files that are still there.

  Their bytes are compared with the record by `finish_export`.
  """
  recorded = files.read_json(export.work / PROGRESS)["layers"]
  there = {
    name
    for shard in export.shards
    if layout.is_made(export.work, shard)
    for name in shard.tensors
  }
  rows = names.layer_rows(export.config)
  return tuple(
    index
    for index in range(export.config.num_layers)
    if {row.name.format(index) for row in rows}
    <= recorded.get(str(index), {}).keys() & there
  )


def check_layers(export: Export, indices: Iterable[int]) -> None:
  """Compare layers that were written with their record.

  Args:
    export: under way.
    indices: some of `finished_layers`.

  Raises:
    ValueError: a tensor is not what was written; says how to go on.
  """
  recorded = files.read_json(export.work / PROGRESS)["layers"]
  for index in indices:
    for name, expected in recorded[str(index)].items():
      [shard] = [shard for shard in export.shards if name in shard.tensors]
      if layout.hash_tensor(export.work, shard, name) != expected:
        raise ValueError(
          f"{export.work / shard.name}: tensor {name!r} is not what was"
          f" written; check the disk, and remove {export.stage.scaffold} to"
          " start over"
        )


def write_layer(export: Export, index: int, layer: Tree) -> None:
  """Write one layer, over an earlier one if there is.

  Args:
    export: where to.
    index: of the layer, in [0, L).
    layer: tree of one layer, kernels `[I, O]`; numpy or jax arrays of any
      float dtype, written in the dtype of the source.

  Raises:
    ValueError: a leaf is missing, extra, misshapen, not finite, or too large
      for the dtype of the source.
  """
  config = export.config
  if not 0 <= index < config.num_layers:
    raise ValueError(
      f"no layer {index} in {export.source.folder}; give one of"
      f" 0..{config.num_layers - 1}"
    )
  outputs = names.table(config).sublayer_outputs
  zero = tuple(
    outputs[sublayer] + "/"
    for sublayer in outputs
    if index in export.job[f"drop_{sublayer}"]
  )
  rows = names.layer_rows(config)
  leaves = names.leaves_of(config, layer)
  _check_leaves(export, rows, index, leaves)
  _record(export, str(index), {})
  written = {}
  for name, group in _by_tensor(rows, index).items():
    tensor = _tensor(export, name, group, leaves, zero)
    written[name] = _write(export, name, group, tensor.__getitem__)
  _record(export, str(index), written)


def finish_export(export: Export, outer: Tree | None = None) -> pathlib.Path:
  """Write the rest and give the folder its name.

  Args:
    export: all of whose layers are finished.
    outer: embedding, final norm and head; those of the source by default.

  Returns:
    The final folder.

  Raises:
    ValueError: a layer is not finished, or a leaf of `outer` is missing,
      misshapen, not finite or too large for the dtype of the source.
  """
  config, work = export.config, export.work
  missing = sorted(set(range(config.num_layers)) - {*finished_layers(export)})
  if missing:
    raise ValueError(
      f"{work}: layers {missing} are not finished; write them first"
    )
  rows, written = names.outer_rows(config), {}
  if outer is not None:
    leaves = names.flatten(outer)
    _check_leaves(export, rows, 0, leaves)
  else:
    huggingface.check_tied(export.source)
  for name, group in _by_tensor(rows, 0).items():
    if outer is None:
      tensor = export.source.tensors[name]
      piece = lambda part: shards.view(tensor, part)
    else:
      piece = _tensor(export, name, group, leaves, ()).__getitem__
    written[name] = _write(export, name, group, piece)
  _record(export, _OUTER, written)
  _finish_shards(export)
  for path in _companions(export.source.folder):
    files.atomic_write_bytes(work / path.name, path.read_bytes())
  sentence.copy_sentence_files(export.source.folder, work)
  drops = {key: export.job[f"drop_{key}"] for key in ("attention", "mlp")}
  hf = patched_config(export.source, export.job["provenance"], drops)
  hf |= export.job["changes"]
  files.atomic_write_json(work / "config.json", hf)
  staging.publish(export.stage)
  return export.folder


def _companions(folder: pathlib.Path) -> list[pathlib.Path]:
  """What is copied beside the weights; a link that leads out is refused."""
  return [
    folders.inside(folder, name)
    for name in ("generation_config.json", *huggingface.TOKENIZER_FILES)
    if os.path.lexists(folder / name)
  ]


def _make_files(export: Export) -> None:
  """Make the files that are not there yet; what is in the others is kept."""
  for shard in export.shards:
    named = export.work / shard.name
    if named.is_file():  # cut off after it got its name
      os.replace(named, named.with_name(named.name + layout.UNFINISHED))
    if layout.is_made(export.work, shard):
      continue
    progress = files.read_json(export.work / PROGRESS)
    for written in progress["layers"].values():
      for name in shard.tensors:
        written.pop(name, None)
    files.atomic_write_json(export.work / PROGRESS, progress)
    layout.make_file(export.work, shard)


def _record(export: Export, key: str, written: Mapping[str, str]) -> None:
  """Record the sha256 of the tensors of a layer; {} is a layer in work."""
  progress = files.read_json(export.work / PROGRESS)
  progress["layers"][key] = dict(written)
  files.atomic_write_json(export.work / PROGRESS, progress)


def _finish_shards(export: Export) -> None:
  """Read the shards back, name them and write the index."""
  progress = files.read_json(export.work / PROGRESS)
  expected = {}
  for written in progress["layers"].values():
    expected |= written
  try:
    progress["shards"] = {
      shard.name: {
        "size": shard.size,
        "sha256": layout.read_back(export.work, shard, expected.__getitem__),
      }
      for shard in export.shards
    }
  except layout.DamagedError as error:
    for written in progress["layers"].values():
      written.pop(error.tensor, None)
    files.atomic_write_json(export.work / PROGRESS, progress)
    raise
  files.atomic_write_json(export.work / PROGRESS, progress)
  layout.name_files(export.work, export.shards)


def _dtype(source: Source, name: str) -> str:
  """The dtype in the file; a bias that the source lacks has its kernel's."""
  tensors = source.tensors
  return (
    tensors.get(name) or tensors[name.removesuffix(".bias") + ".weight"]
  ).dtype


def _check_leaves(export, rows, index, leaves) -> None:
  """Refuse leaves that are missing, extra or misshapen, before any work."""
  wrong = {row.key for row in rows} ^ leaves.keys()
  if wrong:
    raise ValueError(
      f"leaves {sorted(wrong)} are missing or extra in what is exported to"
      f" {export.folder}; pass the tree that the source has"
    )
  for row in rows:
    shape, leaf = names.leaf_shape(export.config, row), leaves[row.key]
    if tuple(leaf.shape) != shape or not jnp.issubdtype(
      leaf.dtype, jnp.floating
    ):
      raise ValueError(
        f"{row.path} of {row.name.format(index)!r}: expected floats"
        f" {list(shape)}, found {leaf.dtype} {list(leaf.shape)}; pass kernels"
        " as [I, O]"
      )


def _by_tensor(rows: Sequence[Row], index: int) -> dict[str, list[Row]]:
  """The rows by the tensor of the file that they are in."""
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row.name.format(index), []).append(row)
  return groups


def _tensor(export, name, rows, leaves, zero) -> np.ndarray:
  """A tensor as the file holds it; dropped leaves are zero."""
  dtype = shards.DTYPES[_dtype(export.source, name)]
  values = {}
  for row in rows:
    leaf = np.asarray(leaves[row.key])
    if zero and row.path.startswith(zero):
      leaf = np.broadcast_to(np.zeros((), dtype), leaf.shape)
    values[row.key] = leaf
  return names.join_leaves(export.config, rows, values, dtype)


def _write(
  export: Export,
  name: str,
  rows: Sequence[Row],
  piece: Callable[[slice], np.ndarray],
) -> str:
  """Write one tensor to the shard that has a place for it."""
  [shard] = [shard for shard in export.shards if name in shard.tensors]
  try:
    return layout.write_tensor(export.work, shard, name, piece)
  except ValueError as error:
    raise ValueError(
      f"{' and '.join(row.path for row in rows)} of {error}; the layer does"
      " not count as written, look at the step that made it"
    ) from error
