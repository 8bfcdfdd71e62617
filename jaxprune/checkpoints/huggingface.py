"""What are the weights of a Hugging Face checkpoint?

Read slice by slice: torch linear weights `[O, I]` become kernels `[I, O]` in C
order, in the dtype of the file (bfloat16 included), and a NaN or an infinity
is an error that names its tensor.

Reference: the safetensors layout of transformers 5 (`save_pretrained`).
Differs from the reference in: values are checked; code from a folder or from
the hub is never fetched or run.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.checkpoints import names, shards
from jaxprune.checkpoints.rows import Row
from jaxprune.checkpoints.source import WEIGHT_DTYPES, Source, open_checkpoint

Tree = dict[str, Any]
Sharding = jax.sharding.Sharding

# These files are copied beside exported weights; of the hub only these and the
# weights are fetched.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tokenizer.model",
  "chat_template.jinja",
)


def read_layer(source: Source, index: int) -> Tree:
  """Read one layer.

  Args:
    source: an opened checkpoint.
    index: of the layer, in [0, L).

  Returns:
    The tree of one layer: numpy arrays in the dtype of the file, kernels
    `[I, O]` in C order.

  Raises:
    ValueError: no such layer, or a NaN or an infinity.
  """
  if not 0 <= index < source.config.num_layers:
    raise ValueError(
      f"{source.folder}: no layer {index}; give one of"
      f" 0..{source.config.num_layers - 1}"
    )
  rows = names.layer_rows(source.config)
  leaves = {row.key: _read(source, row, index) for row in rows}
  return names.tree_of(source.config, leaves)


def read_outer(source: Source) -> Tree:
  """Read what lies outside the layers: numpy arrays in the dtype of the file.

  Raises:
    ValueError: a NaN or an infinity, or a tied model whose copy of the head
      differs from the embedding.
  """
  check_tied(source)
  rows = names.outer_rows(source.config)
  return names.nest({row.path: _read(source, row, 0) for row in rows})


def load_params(
  folder_or_source: str | os.PathLike | Source,
  dtype: Any = None,
  sharding: Callable[[str, tuple[int, ...]], Sharding | None] | None = None,
) -> tuple[names.Config, Tree]:
  """Load a whole model, layers stacked on a leading `L`.

  At most one stacked leaf exists on the host beside the device arrays; with a
  sharding, only the slices of this process's devices are read.

  Args:
    folder_or_source: the folder of a decoder, or an opened checkpoint of
      either kind.
    dtype: float32, bfloat16 or float16; None keeps the dtype of the file,
      float32 where the layers of one leaf disagree (which is exact).
    sharding: maps the path of a leaf, such as "layers/mlp/up/kernel", and its
      stacked shape to a sharding; None places a leaf on the default device.

  Returns:
    (config, params), leaves jax arrays.

  Raises:
    ValueError: a file or tensor that is missing or not what config.json says,
      a NaN or an infinity, or a value too large for `dtype`.
  """
  source = folder_or_source
  if not isinstance(source, Source):
    source = open_checkpoint(source)
  if dtype is not None and jnp.dtype(dtype) not in _float_dtypes():
    raise ValueError(
      f"dtype {dtype!r} is not one for weights; use float32, bfloat16 or"
      " float16"
    )
  check_tied(source)
  config = source.config
  outer = {
    row.path: _load(source, row.path, row, None, dtype, sharding)
    for row in names.outer_rows(config)
  }
  layers = {
    f"layers/{row.key}": _load(
      source, f"layers/{row.key}", row, config.num_layers, dtype, sharding
    )
    for row in names.layer_rows(config)
  }
  return config, names.tree_of(
    config, outer | layers, lambda experts: jnp.stack(experts, axis=1)
  )


def checkpoint_hash(source: Source) -> str:
  """Return the sha256 of the weights, however they are spread over files.

  Over the model's tensors in the order of their names: a JSON line of name,
  dtype and shape, then the raw bytes, zeros for `source.zeroed`. Buffers that
  are ignored on reading and the second copy of a tied head do not count.
  """
  shapes = names.file_shapes(source.config)
  tensors = {name: source.tensors[name] for name in shapes}
  return hash_tensors(tensors, source.zeroed)


def hash_tensors(
  tensors: Mapping[str, shards.Tensor], zeroed: Collection[str] = ()
) -> str:
  """Return what `checkpoint_hash` does, of tensors by their names.

  Args:
    tensors: where each lies.
    zeroed: names of those that count as zeros.
  """
  digest = hashlib.sha256()
  for name, tensor in sorted(tensors.items()):
    line = json.dumps([name, tensor.dtype, list(tensor.shape)])
    digest.update(line.encode("utf-8") + b"\n")
    for _, piece in shards.pieces(tensor):
      raw = piece.reshape(-1).view(np.uint8)
      digest.update((np.zeros_like(raw) if name in zeroed else raw).data)
  return digest.hexdigest()


def _float_dtypes() -> tuple[np.dtype, ...]:
  return tuple(shards.DTYPES[name] for name in WEIGHT_DTYPES)


def check_tied(source: Source) -> None:
  """Refuse a tied model whose file holds a different head."""
  tied = names.table(source.config).tied
  if tied is None or not source.config.tie_embeddings:
    return
  copy, original = (source.tensors.get(name) for name in tied)
  if copy is None:
    return
  bits = lambda piece: piece.view(f"u{piece.itemsize}")
  if copy.dtype != original.dtype or not all(
    np.array_equal(bits(mine), bits(theirs))
    for (_, mine), (_, theirs) in zip(
      shards.pieces(copy), shards.pieces(original)
    )
  ):
    raise ValueError(
      f"{copy.path}: tensor {tied[0]!r} differs from {tied[1]!r} but"
      " config.json says tie_word_embeddings=true; set it to false, or"
      " remove the tensor"
    )


def _read(source: Source, row: Row, index: int) -> np.ndarray:
  tensor = source.tensors[row.name.format(index)]
  shape = names.leaf_shape(source.config, row)
  name = row.name.format(index)
  out = np.empty(shape, shards.DTYPES[tensor.dtype])
  _read_into(out, source, row, name, ())
  return out


def _read_into(out, source, row, name, where) -> None:
  """Zeros for a sublayer that is left out, else what the file holds."""
  if name in source.zeroed:
    out[...] = 0
  else:
    _fill(out, source, row, name, where)


def _fill(out, source, row, name, where) -> None:
  """Copy the part `where` of a leaf from the file into a C-ordered array."""
  tensor = source.tensors[name]
  if where == () and row.part is None:
    for rows, piece in shards.pieces(tensor):
      piece = names.leaf_of(source.config, row, piece)
      shards.copy_into(out[:, rows] if row.transpose else out[rows], piece)
  else:
    view = names.leaf_of(source.config, row, shards.view(tensor))
    shards.copy_into(out, view[where])
  if shards.all_finite(out):
    return
  view = names.leaf_of(source.config, row, shards.view(tensor))[where]
  if shards.all_finite(np.ascontiguousarray(view)):
    raise ValueError(
      f"{tensor.path}: tensor {name!r} has values too large for {out.dtype};"
      " load it as float32 or bfloat16"
    )
  raise ValueError(
    f"{tensor.path}: tensor {name!r} has NaN or infinite values; the"
    " checkpoint is damaged, download or train it again"
  )


def _load(source, path, row, num_layers, dtype, sharding) -> jax.Array:
  """Load one leaf, stacked on L when `num_layers` is given."""
  shape = names.leaf_shape(source.config, row)
  tensor_names = [row.name.format(index) for index in range(num_layers or 1)]
  if dtype is None:
    dtypes = {source.tensors[name].dtype for name in tensor_names}
    dtype = shards.DTYPES[dtypes.pop() if len(dtypes) == 1 else "F32"]
  inner = shape
  if num_layers is not None:
    shape = (num_layers, *shape)

  def piece(where: tuple[slice, ...]) -> np.ndarray:
    sizes = [len(range(*s.indices(n))) for s, n in zip(where, shape)]
    out = shards.empty_aligned(sizes, dtype)
    if all(
      size == n for size, n in zip(sizes[len(sizes) - len(inner) :], inner)
    ):
      where = where[: len(where) - len(inner)]
    if num_layers is None:
      _read_into(out, source, row, tensor_names[0], where)
      return out
    chosen = tensor_names[where[0]]
    # Copies release the interpreter lock: layers fill side by side.
    with concurrent.futures.ThreadPoolExecutor() as pool:
      filled = pool.map(
        lambda slot, name: _read_into(slot, source, row, name, where[1:]),
        out,
        chosen,
      )
      list(filled)  # raises the exception of a thread, lowest layer first
    return out

  placement = sharding(path, shape) if sharding is not None else None
  if placement is None:
    return jax.device_put(piece((slice(None),) * len(shape)), may_alias=True)
  # Devices that hold the same slice share one read.
  pieces: dict[str, np.ndarray] = {}

  def cached(where: tuple[slice, ...]) -> np.ndarray:
    key = str(where)
    if key not in pieces:
      pieces[key] = piece(where)
    return pieces[key]

  return jax.make_array_from_callback(shape, placement, cached)
