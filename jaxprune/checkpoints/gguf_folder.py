"""How does a GGUF file become a Hugging Face folder?

Weights are dequantised by the `gguf` package, a few rows at a time, to float32,
which holds every dequantised value exactly, or to another dtype. Rows of query
and key that llama.cpp put in another order are put back, what it added to the
scales of norms is taken off, and configuration and tokenizer are made of the
metadata. Everything else then reads an ordinary folder, stock transformers too,
and the weights are dequantised once and not in every run.

Reference: GGUF loading of transformers 5 (`load_gguf_checkpoint`), to whose
weights those written here are equal, bit for bit.
"""

import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune import devices, files
from jaxprune.checkpoints import (
  gguf_config,
  gguf_file,
  gguf_tokenizer,
  layout,
  names,
)
from jaxprune.checkpoints.new_folder import (
  dtype_name,
  new_folder,
  with_dtype,
  write_tensors,
)
from jaxprune.models.config import ModelConfig

_LOG = logging.getLogger(__name__)
RECORD = "jaxprune_gguf.json"
CONVERTED = ".converted"  # behind the name of a file that was opened as a model


def open_gguf(path: str | os.PathLike) -> pathlib.Path:
  """Return a Hugging Face folder with the content of a GGUF file.

  It lies beside the file, as `FILE.converted`, is written in float32 when it is
  first asked for, and again when the file is another one.

  Args:
    path: the file.

  Returns:
    The folder.

  Raises:
    ValueError: see `write_gguf`, or the folder cannot be written there.
  """
  path = pathlib.Path(path).resolve()
  folder = path.with_name(path.name + CONVERTED)
  record = folder / RECORD
  if record.is_file() and files.read_json(record) == _record(path, "F32"):
    return folder
  if not os.access(path.parent, os.W_OK):
    raise ValueError(
      f"{path}: its folder cannot be written to; convert it to another place:"
      " jaxprune convert --model=FILE.gguf --out=FOLDER"
    )
  write_gguf(path, folder, overwrite=record.is_file())
  _LOG.info(
    "%s: dequantised to %s, which the next run reads again", path.name, folder
  )
  return folder


def write_gguf(
  path: str | os.PathLike,
  folder: str | os.PathLike,
  *,
  dtype: Any = None,
  shard_size: int = layout.SHARD_SIZE,
  overwrite: bool = False,
) -> pathlib.Path:
  """Write the content of a GGUF file as a Hugging Face folder.

  Args:
    path: the file.
    folder: the final place; absent or empty unless `overwrite`.
    dtype: float32, bfloat16 or float16; None is float32.
    shard_size: bytes of tensors in a file.
    overwrite: replace an older model folder, at the end.

  Returns:
    The final folder. A tokenizer that cannot be made is said in the log, at
    level INFO.

  Raises:
    ValueError: no GGUF file, one of several parts, an architecture, RoPE or
      kind of weights that is not known, missing or extra tensors, the folder
      is in use, or a value that is not finite in the dtype.
  """
  path = pathlib.Path(path).resolve()
  name = dtype_name(dtype or np.float32)
  metadata, tensors = gguf_file.read_header(path)
  _check_file(path, metadata, tensors)
  freqs = tensors.pop("rope_freqs.weight", None)
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  hf = gguf_config.read_config(
    str(path),
    metadata,
    shapes,
    None if freqs is None else gguf_file.read_rows(freqs),
  )
  hf = with_dtype(hf, name)
  config = ModelConfig.from_hf(hf)
  arch = gguf_config.ARCHITECTURES[metadata["general.architecture"]]
  stock = gguf_config.stock_names(arch, config.num_layers)
  expected = names.file_shapes(config)
  _check_tensors(path, expected, stock, shapes)
  with new_folder(path, folder, overwrite) as work:
    if devices.is_writer():
      write_tensors(
        work,
        {key: (name, shape) for key, shape in expected.items()},
        ((key, _rows(tensors[stock[key]], arch, config)) for key in expected),
        shard_size,
      )
      _write_companions(path, work, hf, metadata)
      files.atomic_write_json(work / RECORD, _record(path, name))
  return pathlib.Path(folder)


def _check_file(path, metadata, tensors) -> None:
  """Refuse what is not one whole language model."""
  if metadata.get("split.count", 1) > 1:
    raise ValueError(
      f"{path}: one of {metadata['split.count']} parts of a model; join them"
      " by `gguf-split --merge` of llama.cpp"
    )
  if "token_embd.weight" not in tensors:
    raise ValueError(f"{path}: no token_embd.weight; this is no language model")


def _check_tensors(path, expected, stock, shapes) -> None:
  """Refuse a file that has other tensors than its metadata say."""
  problems = []
  wanted = {stock[name]: shape for name, shape in expected.items()}
  for name, shape in wanted.items():
    if shapes.get(name) != shape:
      found = list(shapes[name]) if name in shapes else "none"
      problems.append(f"{name!r} expected {list(shape)}, found {found}")
  problems += [f"{name!r} is extra" for name in shapes.keys() - wanted.keys()]
  if problems:
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    raise ValueError(
      f"{path}: tensors {'; '.join(problems[:5])}{more}; metadata and tensors"
      " are not of one model that is known here"
    )


def _rows(tensor, arch, config) -> Callable[[slice], np.ndarray]:
  """What gives rows of a tensor, dequantised, in the stock order."""
  order = None
  for part, heads in (
    (".attn_q.", config.num_heads),
    (".attn_k.", config.num_kv_heads),
  ):
    if arch.permuted and part in tensor.name:
      # From pairs (2i, 2i + 1) of a head to (i, i + H/2).
      order = np.arange(tensor.shape[0]).reshape(heads, -1, 2)
      order = order.swapaxes(1, 2).reshape(-1)
  offset = arch.norm_offset if tensor.name.endswith("norm.weight") else 0.0

  def read(rows: slice) -> np.ndarray:
    chosen = rows if order is None else order[rows]
    values = gguf_file.read_rows(tensor, chosen)
    return values - np.float32(offset) if offset else values

  return read


def _write_companions(path, work, hf, metadata) -> None:
  """Write configuration and tokenizer."""
  files.atomic_write_json(work / "config.json", hf)
  ids = ("bos_token_id", "eos_token_id", "pad_token_id")
  files.atomic_write_json(
    work / "generation_config.json",
    {key: hf[key] for key in ids if hf[key] is not None},
  )
  tokenizer, reason = gguf_tokenizer.build_tokenizer(metadata)
  if tokenizer is None:
    _LOG.info(
      "%s: no tokenizer was made (%s); copy the model's tokenizer.json to the"
      " folder",
      path.name,
      reason,
    )
    return
  files.atomic_write_text(work / "tokenizer.json", tokenizer.to_str())
  files.atomic_write_json(
    work / "tokenizer_config.json", gguf_tokenizer.tokenizer_config(metadata)
  )
  template = metadata.get("tokenizer.chat_template")
  if template:
    files.atomic_write_text(work / "chat_template.jinja", template)


def _record(path: pathlib.Path, dtype: str) -> dict[str, Any]:
  """What tells this file, as it was converted, from another."""
  status = path.stat()
  return {
    "file": path.name,
    "size": status.st_size,
    "changed_ns": status.st_mtime_ns,
    "dtype": dtype,
  }
