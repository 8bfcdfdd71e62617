"""Where is the model of this name?

Reference: `snapshot_download` of huggingface_hub.
Differs from the reference in: code from the hub is never fetched.
"""

import os
import pathlib
import re

from jaxprune import files
from jaxprune.checkpoints import (
  folders,
  gguf_file,
  gguf_folder,
  huggingface,
  sentence,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_model(name: str | os.PathLike) -> pathlib.Path:
  """Find the folder of a model, fetching it from the hub if need be.

  Args:
    name: a local folder, a GGUF file (see `gguf_folder.open_gguf`), or
      `ORGANISATION/NAME` on the Hugging Face hub. Only safetensors, JSON and
      tokenizer files are fetched, never code.

  Returns:
    A local folder.

  Raises:
    ValueError: no such folder, and not a hub id or not to be had from the hub.
  """
  folder = files.expand(name)
  if os.fspath(name) and folder.is_dir():  # Path("") is the current folder
    return folder
  if gguf_file.is_gguf(folder):
    return gguf_folder.open_gguf(folder)
  if not _HUB_ID.fullmatch(os.fspath(name)):
    raise ValueError(
      f"{os.fspath(name)!r}: no such folder; give a local checkpoint folder,"
      " or ORGANISATION/NAME on the Hugging Face hub"
    )
  try:
    import huggingface_hub

    fetched = huggingface_hub.snapshot_download(
      os.fspath(name),
      allow_patterns=[
        "config.json",
        "generation_config.json",
        folders.SINGLE,
        folders.INDEX,
        "model-*.safetensors",
        *huggingface.TOKENIZER_FILES,
        *sentence.PATTERNS,
      ],
    )
  except Exception as error:  # the client raises over a dozen unrelated types
    reason = files.reason(error)
    raise ValueError(
      f"{os.fspath(name)!r}: no such folder, and not to be had from the hub"
      f" ({type(error).__name__}: {reason}); check the name and the"
      " network, or give a local checkpoint folder"
    ) from error
  return pathlib.Path(fetched)
