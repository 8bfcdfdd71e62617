"""How does a changed model become a folder that stock transformers loads?

One shard per layer, each written when its layer is finished, then the shard
outside the layers, the index and the configuration. Everything is gathered in
`FOLDER.partial` beside the final place and renamed at the end: no reader can
meet half a model, an old model stays until the new one is whole, and a run
that was killed goes on with the layers it has.

The state of an export is on disk (`jaxprune_export.json` in the folder: what
is exported, and size and sha256 of each shard); `Export` only says where.
Only one process may write.

Reference: the sharded layout of transformers 5.
Differs from the reference in: a dropped sublayer stays in the file with a zero
output projection and bias, an exact identity without custom code.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune import files
from jaxprune.checkpoints import folders, huggingface, names, sentence, shards
from jaxprune.checkpoints.changed_config import patched_config
from jaxprune.checkpoints.huggingface import Tree
from jaxprune.checkpoints.masks import FILE, Masks, write_masks
from jaxprune.checkpoints.source import Source
from jaxprune.models.config import ModelConfig

PROGRESS = "jaxprune_export.json"
_SAMPLE = 4096  # bytes of each tensor that tell two sources apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """An export under way.

  Attributes:
    folder: the final place.
    work: where the files are until `finish_export`; other files put here, such
      as masks, are published with the model.
    source: the checkpoint that the model was made from.
    config: of the model that is written.
    job: what is exported, as JSON: `provenance`, `drop_attention`, `drop_mlp`,
      `changes` and `source`.
  """

  folder: pathlib.Path
  work: pathlib.Path
  source: Source
  config: ModelConfig
  job: dict[str, Any]


def start_export(
  folder: str | os.PathLike,
  source: Source,
  *,
  provenance: Mapping[str, Any] | None = None,
  drop_attention: Sequence[int] = (),
  drop_mlp: Sequence[int] = (),
  changes: Mapping[str, Any] | None = None,
  overwrite: bool = False,
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

  Returns:
    The export; `finished_layers` says what an earlier run left.

  Raises:
    ValueError: the folder is in use, another job's work lies in
      `FOLDER.partial`, or an argument is wrong.
  """
  folder = pathlib.Path(folder).resolve()
  _check_target(folder, source, overwrite)
  job = {
    "provenance": dict(provenance or {}),
    "drop_attention": _drops(source, "attention", drop_attention),
    "drop_mlp": _drops(source, "mlp", drop_mlp),
    "changes": dict(changes or {}),
    "source": _fingerprint(source),
  }
  try:
    job = json.loads(json.dumps(job, allow_nan=False))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"provenance cannot be written as JSON ({error}); use strings, finite"
      " numbers, lists and dicts"
    ) from error
  work = folder.with_name(folder.name + ".partial")
  config = source.config
  if changes:
    config = type(config).from_hf({**source.hf, **changes})
  export = Export(
    folder=folder, work=work, source=source, config=config, job=job
  )
  work.mkdir(parents=True, exist_ok=True)
  for stale in work.glob(".*.tmp"):
    stale.unlink()
  if not any(work.iterdir()):
    files.atomic_write_json(work / PROGRESS, {"job": job, "shards": {}})
  elif not (work / PROGRESS).is_file():
    raise ValueError(
      f"{work}: not the work of an export; move it away or choose another"
      " output folder"
    )
  else:
    earlier = files.read_json(work / PROGRESS).get("job")
    if earlier != job:
      raise ValueError(
        f"{work}: unfinished work of another job ({_difference(earlier, job)}"
        "); finish that job, or remove the folder to start over"
      )
  return export


def finished_layers(export: Export) -> tuple[int, ...]:
  """Return the layers whose shards are whole: recorded size, right header."""
  recorded = files.read_json(export.work / PROGRESS)["shards"]
  return tuple(
    index
    for index in range(export.source.config.num_layers)
    if _is_whole(export, index, recorded)
  )


def write_layer(export: Export, index: int, layer: Tree) -> None:
  """Write the shard of one layer, over an earlier one if there is.

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
  _write_rows(export, index, names.layer_rows(config), layer, zero)


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
  if outer is None:
    outer = huggingface.read_outer(export.source)
  _write_rows(export, config.num_layers, names.outer_rows(config), outer, ())
  weight_map, total = {}, 0
  for index in range(config.num_layers + 1):
    shard = _shard_name(export, index)
    tensors, _ = shards.read_header(work / shard)
    weight_map |= dict.fromkeys(tensors, shard)
    total += sum(tensor.end - tensor.begin for tensor in tensors.values())
  files.atomic_write_json(
    work / folders.INDEX,
    {
      "metadata": {"total_size": total},
      "weight_map": dict(sorted(weight_map.items())),
    },
  )
  for name in ("generation_config.json", *huggingface.TOKENIZER_FILES):
    if os.path.lexists(export.source.folder / name):
      path = folders.inside(export.source.folder, name)
      files.atomic_write_bytes(work / name, path.read_bytes())
  sentence.copy_sentence_files(export.source.folder, work)
  drops = {key: export.job[f"drop_{key}"] for key in ("attention", "mlp")}
  hf = patched_config(export.source, export.job["provenance"], drops)
  hf |= export.job["changes"]
  files.atomic_write_json(work / "config.json", hf)
  files.publish_folder(work, export.folder)
  return export.folder


def save_params(
  folder: str | os.PathLike,
  params: Tree,
  source: Source,
  *,
  provenance: Mapping[str, Any] | None = None,
  drop_attention: Sequence[int] = (),
  drop_mlp: Sequence[int] = (),
  masks: Masks | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write a whole model of the shapes of another as a folder.

  The way back from a Flax tree to Hugging Face, for models that were changed in
  memory: trained ones (`studies.recovery`), or by a program of the user. On
  failure no folder is left that was not there before.

  Args:
    folder: the final place; absent or empty unless `overwrite`.
    params: the tree of `load_params`, layers stacked on `L`, any float dtype.
    source: gives names, dtypes, configuration and tokenizer.
    provenance: JSON values, written under `jaxprune` in config.json.
    drop_attention: layers whose attention is written as zero.
    drop_mlp: layers whose MLP is written as zero.
    masks: {group: {kernel: bool [L, I, O]}}, True = keep, written beside the
      weights; None or {} writes none.
    overwrite: replace an older model folder, at the end.

  Returns:
    The final folder.

  Raises:
    ValueError: the folder is in use, another job's work lies beside it, or a
      leaf is missing, extra, misshapen, not finite or too large for the dtype
      of the source.
  """
  leaves = names.flatten(params)
  stacked = {
    path.removeprefix("layers/"): leaf
    for path, leaf in leaves.items()
    if path.startswith("layers/")
  }
  outer = names.nest(
    {
      path: leaf
      for path, leaf in leaves.items()
      if not path.startswith("layers/")
    }
  )
  for path, leaf in stacked.items():
    if leaf.shape[:1] != (source.config.num_layers,):
      raise ValueError(
        f"layers/{path}: expected {source.config.num_layers} layers on the"
        f" first axis, found shape {list(leaf.shape)}; pass stacked params"
      )
  work = pathlib.Path(folder).resolve()
  work = work.with_name(work.name + ".partial")
  fresh = not work.exists()
  try:
    export = start_export(
      folder,
      source,
      provenance=provenance,
      drop_attention=drop_attention,
      drop_mlp=drop_mlp,
      overwrite=overwrite,
    )
    for index in range(source.config.num_layers):
      layer = {path: leaf[index] for path, leaf in stacked.items()}
      write_layer(export, index, names.nest(layer))
    if masks:
      write_masks(export.work / FILE, masks, export.job["provenance"])
    return finish_export(export, outer)
  except BaseException:
    if fresh:
      shutil.rmtree(work, ignore_errors=True)
    raise


def _drops(source: Source, sublayer: str, indices: Sequence[int]) -> list[int]:
  """Check the layers to drop from and sort them."""
  num_layers = source.config.num_layers
  drops = sorted({int(index) for index in indices})
  if drops and not 0 <= drops[0] <= drops[-1] < num_layers:
    raise ValueError(
      f"drop_{sublayer}={drops}: the model has layers 0..{num_layers - 1};"
      " drop some of those"
    )
  if drops and sublayer not in names.table(source.config).sublayer_outputs:
    raise ValueError(
      f"drop_{sublayer}={drops}: a zero projection is no identity in family"
      f" {source.config.family!r}; it cannot be exported with drops"
    )
  return drops


def _check_target(
  folder: pathlib.Path, source: Source, overwrite: bool
) -> None:
  """Refuse an output folder before any long work."""
  home = source.folder.resolve()
  if folder == home or folder in home.parents:
    raise ValueError(
      f"{folder}: holds the source model; choose another output folder"
    )
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder}: is a file; choose another output folder")
  if not folder.exists() or not any(folder.iterdir()):
    return
  if not overwrite:
    raise ValueError(
      f"{folder}: is not empty; choose another output folder or overwrite"
    )
  if not (folder / "config.json").is_file():
    raise ValueError(
      f"{folder}: is not a model folder (no config.json), so it is not"
      " overwritten; choose another output folder"
    )


def _fingerprint(source: Source) -> str:
  """Tell sources apart by headers and the first bytes of every tensor."""
  digest = hashlib.sha256()
  for name, tensor in sorted(source.tensors.items()):
    line = json.dumps([name, tensor.dtype, list(tensor.shape)])
    digest.update(line.encode("utf-8") + b"\n")
    raw = shards.view(tensor).reshape(-1).view(np.uint8)
    digest.update(raw[:_SAMPLE].data)
  return digest.hexdigest()


def _difference(earlier: Any, job: dict[str, Any]) -> str:
  """Name the first thing in which two jobs differ."""
  earlier = earlier if isinstance(earlier, dict) else {}
  flat_earlier, flat_job = names.flatten(earlier), names.flatten(job)
  for key in sorted(flat_earlier.keys() | flat_job.keys()):
    before, now = flat_earlier.get(key), flat_job.get(key)
    if before != now:
      return f"{key} was {before!r:.80}, now {now!r:.80}"
  return "the layout differs"


def _shard_name(export: Export, index: int) -> str:
  """Return the shard of a layer; index L is what lies outside the layers."""
  count = export.source.config.num_layers + 1
  return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _is_whole(export: Export, index: int, recorded: dict[str, Any]) -> bool:
  path = export.work / _shard_name(export, index)
  entry = recorded.get(path.name)
  if entry is None or not path.is_file():
    return False
  if path.stat().st_size != entry["size"]:
    return False
  try:
    written, _ = shards.read_header(path)
  except ValueError:
    return False
  wanted = {}
  for row in names.layer_rows(export.config):
    name = row.name.format(index)
    shape = names.tensor_shape(export.config, row)
    wanted[name] = (_dtype(export, name), shape)
  return wanted == {name: (t.dtype, t.shape) for name, t in written.items()}


def _dtype(export: Export, name: str) -> str:
  """The dtype in the file; a bias that the source lacks has its kernel's."""
  tensors = export.source.tensors
  return (
    tensors.get(name) or tensors[name.removesuffix(".bias") + ".weight"]
  ).dtype


def _write_rows(export, index, rows, tree, zero) -> None:
  """Write the tensors of some rows as one shard and record it."""
  leaves = names.flatten(tree)
  wrong = {row.path for row in rows} ^ leaves.keys()
  if wrong:
    raise ValueError(
      f"leaves {sorted(wrong)} are missing or extra in what is exported to"
      f" {export.folder}; pass the tree that the source has"
    )
  tensors = {}
  for row in rows:
    name = row.name.format(index)
    dtype = shards.DTYPES[_dtype(export, name)]
    shape = names.leaf_shape(export.config, row)
    leaf = leaves[row.path]
    if tuple(leaf.shape) != shape or not jnp.issubdtype(
      leaf.dtype, jnp.floating
    ):
      raise ValueError(
        f"{row.path} of {name!r}: expected floats {list(shape)}, found"
        f" {leaf.dtype} {list(leaf.shape)}; pass kernels as [I, O]"
      )
    if name not in tensors:  # otherwise another leaf shares it
      whole = names.tensor_shape(export.config, row)
      tensors[name] = np.zeros(whole, dtype)
    if zero and row.path.startswith(zero):
      continue
    names.put_leaf(export.config, row, tensors[name], np.asarray(leaf))
    if not shards.all_finite(tensors[name]):
      raise ValueError(
        f"{row.path} of {name!r}: NaN or infinite as {dtype}; nothing was"
        " written for it, look at the step that made it"
      )
  path = export.work / _shard_name(export, index)
  sha256 = shards.write_shard(path, tensors, {"format": "pt"})
  progress = files.read_json(export.work / PROGRESS)
  progress["shards"][path.name] = {
    "size": path.stat().st_size,
    "sha256": sha256,
  }
  files.atomic_write_json(export.work / PROGRESS, progress)
