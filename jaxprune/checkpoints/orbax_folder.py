"""How does a Hugging Face folder become Orbax parameters, and back?

The folder that is written holds

  params/              the tree of `load_params`, by Orbax: kernels [L, I, O]
  masks/               bool kernels, True = keep, by Orbax, if the model has any
  config.json, ...     configuration and tokenizer, byte for byte
  jaxprune_orbax.json  the dtype of every tensor of the Hugging Face folder, its
                       hash and its provenance

and any JAX program reads the first by `orbax.checkpoint.v1.load`. Everything is
gathered in `FOLDER.partial` and renamed at the end. All processes call the
same functions; the writer writes what is not Orbax's.

Where the dtype is not changed, the way there and back gives the same bits, and
the hash of the weights is compared.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import devices, files
from jaxprune.checkpoints import folders, huggingface, layout, names, orbax
from jaxprune.checkpoints import masks as masks_file
from jaxprune.checkpoints.new_folder import (
  copy_companions,
  dtype_name,
  new_folder,
  with_dtype,
  write_tensors,
)
from jaxprune.checkpoints.source import Source
from jaxprune.models import config_fields
from jaxprune.models.config import ModelConfig

RECORD = "jaxprune_orbax.json"
_FORMAT = "jaxprune orbax 1"
_PARAMS, _MASKS = "params", "masks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrbaxFolder:
  """A folder of `write_orbax`, opened.

  Attributes:
    folder: where it lies.
    config: of the model.
    hf: config.json as it stands.
    record: what is known of the Hugging Face folder that it was made from:
      `tensors`, the dtype of each in a folder that is written from here;
      `checkpoint_hash`, None where the dtype was changed; `provenance`;
      `config`, the fields that config.json does not give; `masks`, metadata of
      the masks, None for none.
  """

  folder: pathlib.Path
  config: ModelConfig
  hf: dict[str, Any]
  record: dict[str, Any]


def is_orbax_folder(folder: str | os.PathLike) -> bool:
  """Whether a folder was written by `write_orbax`."""
  return (pathlib.Path(folder) / RECORD).is_file()


def write_orbax(
  source: Source,
  folder: str | os.PathLike,
  *,
  dtype: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write a checkpoint as Orbax parameters.

  Args:
    source: an opened checkpoint; its masks come along.
    folder: the final place; absent or empty unless `overwrite`.
    dtype: float32, bfloat16 or float16; None keeps those of the source.
    mesh: devices that the parameters are spread over, see
      `devices.params_sharding`; None is the default device.
    overwrite: replace an older model folder, at the end.

  Returns:
    The final folder.

  Raises:
    ValueError: the folder is in use, bad weights or masks, or a value too
      large for `dtype`.
  """
  sharding = devices.params_sharding(mesh)
  with new_folder(source.folder, folder, overwrite) as work:
    _, params = huggingface.load_params(source, dtype, sharding)
    orbax.save_tree(work / _PARAMS, params, {"format": _FORMAT})
    del params
    masks = _write_masks(source, work, sharding)
    if devices.is_writer():
      config = folders.inside(source.folder, "config.json")
      files.atomic_write_bytes(work / "config.json", config.read_bytes())
      copy_companions(source.folder, work)
      record = _record(source, dtype) | {"masks": masks}
      files.atomic_write_json(work / RECORD, record)
  return pathlib.Path(folder)


def open_orbax(folder: str | os.PathLike) -> OrbaxFolder:
  """Open a folder of `write_orbax`, without reading weights.

  Raises:
    ValueError: not such a folder, or a damaged one.
  """
  folder = pathlib.Path(folder)
  if not is_orbax_folder(folder):
    raise ValueError(
      f"{folder}: no {RECORD}; give a folder that jaxprune convert wrote"
    )
  record = files.read_json(folder / RECORD)
  if record.get("format") != _FORMAT:
    raise ValueError(
      f"{folder / RECORD}: expected format {_FORMAT!r}, found"
      f" {record.get('format')!r}; convert the model again"
    )
  fields = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in record["config"].items()
  }
  config = dataclasses.replace(ModelConfig.from_hf(folder), **fields)
  wanted = names.file_shapes(config).keys()
  if record["tensors"].keys() != wanted:
    raise ValueError(
      f"{folder / RECORD}: its tensors are not those of config.json; convert"
      " the model again"
    )
  return OrbaxFolder(
    folder=folder,
    config=config,
    hf=config_fields.read_object(folder / "config.json"),
    record=record,
  )


def restore_params(
  folder: str | os.PathLike | OrbaxFolder,
  *,
  mesh: jax.sharding.Mesh | None = None,
  dtype: Any = None,
  parts: Sequence[str] = ("",),
  layers: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Read the parameters, or some of them, onto any mesh.

  Args:
    folder: of `write_orbax`.
    mesh: devices that they are spread over; not that of the writer; None is
      the default device.
    dtype: of the result; None is that of the folder.
    parts: beginnings of the paths of the leaves, such as "layers/mlp" or
      "embed"; "" is all.
    layers: indices of the layers that are kept of stacked leaves, in this
      order; None keeps all. Leaves are read whole, one after the other.

  Returns:
    The tree of the chosen leaves; stacked ones [L, ...], or with `layers`
    [len(layers), ...].

  Raises:
    ValueError: not such a folder, no leaf of a part, or no such layer.
  """
  opened = folder if isinstance(folder, OrbaxFolder) else open_orbax(folder)
  return _restore(opened, _PARAMS, mesh, dtype, parts, layers)


def restore_masks(
  folder: str | os.PathLike | OrbaxFolder,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any] | None:
  """Read the masks onto any mesh.

  Args:
    folder: of `write_orbax`.
    mesh: devices that they are spread over, like their kernels.

  Returns:
    {group: {kernel: bool [L, I, O]}}, True = keep; None where there are none.
  """
  opened = folder if isinstance(folder, OrbaxFolder) else open_orbax(folder)
  if opened.record["masks"] is None:
    return None
  tree = _restore(opened, _MASKS, mesh, None, ("",), None)
  return {
    group: {name: leaf["kernel"] for name, leaf in kernels.items()}
    for group, kernels in tree["layers"].items()
  }


def write_huggingface(
  opened: OrbaxFolder,
  folder: str | os.PathLike,
  *,
  dtype: Any = None,
  shard_size: int = layout.SHARD_SIZE,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write the parameters of an Orbax folder as a Hugging Face folder.

  One stacked leaf is in memory at a time.

  Args:
    opened: of `open_orbax`.
    folder: the final place; absent or empty unless `overwrite`.
    dtype: float32, bfloat16 or float16; None is that of the folder, of each
      tensor where they differed.
    shard_size: bytes of tensors in a file.
    overwrite: replace an older model folder, at the end.

  Returns:
    The final folder.

  Raises:
    ValueError: the folder is in use, a value is not finite in the dtype, or
      the result is not what the Orbax folder was made from.
  """
  tensors, name = opened.record["tensors"], None
  if dtype is not None:
    name = dtype_name(dtype)
  changed = name is not None and set(tensors.values()) != {name}
  if changed:
    tensors = dict.fromkeys(tensors, name)
  expected = None if changed else opened.record["checkpoint_hash"]
  masks = restore_masks(opened)
  with new_folder(opened.folder, folder, overwrite) as work:
    write_tensors(
      work,
      {
        name: (tensors[name], shape)
        for name, shape in names.file_shapes(opened.config).items()
      },
      _tensors(opened),
      shard_size,
    )
    copy_companions(opened.folder, work)
    config = folders.inside(opened.folder, "config.json")
    files.atomic_write_bytes(work / "config.json", config.read_bytes())
    if changed or opened.record["checkpoint_hash"] is None:
      written = set(tensors.values())
      hf = with_dtype(opened.hf, written.pop() if len(written) == 1 else "F32")
      files.atomic_write_json(work / "config.json", hf)
    if masks:
      host = jax.tree.map(np.asarray, masks)
      masks_file.write_masks(
        work / masks_file.FILE, host, opened.record["masks"]
      )
    if expected is not None:
      _check_hash(work, expected)
  return pathlib.Path(folder)


def _record(source: Source, dtype: Any) -> dict[str, Any]:
  """What the way back needs and config.json does not say."""
  tensors = {
    name: source.tensors[name].dtype
    for name in names.file_shapes(source.config)
  }
  kept = dtype is None or set(tensors.values()) == {dtype_name(dtype)}
  if not kept:
    tensors = dict.fromkeys(tensors, dtype_name(dtype))
  plain = ModelConfig.from_hf(source.folder)
  fields = {
    field.name: getattr(source.config, field.name)
    for field in dataclasses.fields(plain)
    if field.name != "ignored"
    and getattr(plain, field.name) != getattr(source.config, field.name)
  }
  return {
    "format": _FORMAT,
    "tensors": tensors,
    "checkpoint_hash": huggingface.checkpoint_hash(source) if kept else None,
    "provenance": source.hf.get("jaxprune"),
    "config": fields,
  }


def _write_masks(source, work, sharding) -> dict[str, Any] | None:
  """Write the masks of a folder; return their metadata, None for none."""
  path = source.folder / masks_file.FILE
  if not os.path.lexists(path):
    return None
  masks, metadata = masks_file.read_masks(
    folders.inside(source.folder, masks_file.FILE), source.config
  )
  tree = {
    f"layers/{path}/kernel": mask for path, mask in names.flatten(masks).items()
  }
  for path, mask in tree.items():
    place = sharding(path, mask.shape)
    tree[path] = jax.make_array_from_callback(
      mask.shape, place, lambda where: mask[where]
    )
  orbax.save_tree(work / _MASKS, names.nest(tree), {"format": _FORMAT})
  return metadata


def _restore(
  opened, tree, mesh, dtype, parts, layers, saved=None
) -> dict[str, Any]:
  """Read the chosen leaves of one of the trees, which `saved` describes."""
  folder = opened.folder / tree
  saved = saved or names.flatten(orbax.saved_shapes(folder))
  chosen = {}
  for part in parts:
    found = {
      path: leaf
      for path, leaf in saved.items()
      if not part or f"{path}/".startswith(part.rstrip("/") + "/")
    }
    if not found:
      raise ValueError(
        f"{folder}: no leaf begins with {part!r}; there are"
        f" {', '.join(sorted({path.split('/')[0] for path in saved}))}, and"
        " what is below them"
      )
    chosen |= found
  count = opened.config.num_layers
  if layers is not None and not set(layers) <= set(range(count)):
    raise ValueError(
      f"{folder}: no layers {sorted(set(layers) - set(range(count)))}; give"
      f" some of 0..{count - 1}"
    )
  sharding = devices.params_sharding(mesh)
  wanted = {
    path: jax.ShapeDtypeStruct(
      leaf.shape, dtype or leaf.dtype, sharding=sharding(path, leaf.shape)
    )
    for path, leaf in chosen.items()
  }
  if layers is None:
    return orbax.load_tree(folder, names.nest(wanted), partial=True)[0]
  leaves = {}
  for path, leaf in wanted.items():
    part = orbax.load_tree(folder, names.nest({path: leaf}), partial=True)[0]
    leaves[path] = names.flatten(part)[path]
    if path.startswith("layers/"):
      cut = leaves[path][np.asarray(layers, int)]
      leaves[path] = jax.device_put(cut, sharding(path, cut.shape))
  return names.nest(leaves)


def _tensors(
  opened: OrbaxFolder,
) -> Iterator[tuple[str, Callable[[slice], np.ndarray]]]:
  """The tensors of the Hugging Face folder; one stacked leaf in memory."""
  config = opened.config
  saved = names.flatten(orbax.saved_shapes(opened.folder / _PARAMS))  # once
  for rows, prefix in (
    (names.outer_rows(config), ""),
    (names.layer_rows(config), "layers/"),
  ):
    groups = {}
    for row in rows:
      groups.setdefault(row.name, []).append(row)
    paths, leaves = [], {}
    for name, group in groups.items():
      before, paths = paths, [prefix + row.path for row in group]
      if paths != before:  # the experts of a stack follow one another
        leaves = names.flatten(
          _restore(
            opened,
            _PARAMS,
            mesh=None,
            dtype=None,
            parts=paths,
            layers=None,
            saved=saved,
          )
        )
        leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}
      for index in range(config.num_layers) if prefix else (0,):
        one = {
          row.key: leaves[path][index] if prefix else leaves[path]
          for row, path in zip(group, paths)
        }
        one = {
          row.key: one[row.key]
          if row.expert is None
          else one[row.key][row.expert]
          for row in group
        }
        tensor = names.join_leaves(config, group, one)
        yield name.format(index), tensor.__getitem__


def _check_hash(work: pathlib.Path, expected: str) -> None:
  """Refuse a folder whose weights are not those that were converted."""
  found = huggingface.hash_tensors(folders.read_tensors(work))
  if found != expected:
    raise ValueError(
      f"{work}: the weights have the hash {found[:16]}, those that were"
      f" converted had {expected[:16]}; the Orbax folder was changed, convert"
      " the model again"
    )
