"""Is this Hugging Face folder a model we can run?

Answered from headers alone, before any long work: configuration, file names,
tensor names, shapes and dtypes.

Reference: the safetensors layout of transformers 5 (`save_pretrained`).
Differs from the reference in: missing, extra or misshapen tensors are errors,
where stock transformers warns and runs on with random ones; names in the index
may not leave the folder; pickled weights are never used.
"""

import dataclasses
import logging
import os
import pathlib
from typing import Any

from jaxprune.checkpoints import folders, names, shards
from jaxprune.models import config_fields
from jaxprune.models.config import ModelConfig
from jaxprune.models.encoder_config import EncoderConfig

# Silent unless the program asks for it; the scripts do.
_LOG = logging.getLogger(__name__)

_SHOWN = 60  # keys named in one line; a whole dump of transformers 4 has fewer

WEIGHT_DTYPES = ("F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A checkpoint whose headers were checked.

  Attributes:
    folder: where it lies.
    config: the model it is.
    hf: config.json as it stands.
    tensors: where each tensor lies, by its Hugging Face name: those of the
      model and, in a tied model that holds one, the copy of the head.
  """

  folder: pathlib.Path
  config: ModelConfig | EncoderConfig
  hf: dict[str, Any]
  tensors: dict[str, shards.Tensor]


def open_checkpoint(
  folder: str | os.PathLike,
  config_type: type[ModelConfig] | type[EncoderConfig] = ModelConfig,
) -> Source:
  """Check a Hugging Face folder from its headers.

  Args:
    folder: with config.json and safetensors, or a snapshot folder in the
      Hugging Face cache.
    config_type: what the caller can run: decoders, or encoders.

  Returns:
    The checked source; no weight has been read. Keys of config.json without
    effect are logged, at level INFO.

  Raises:
    ValueError: one line that names file, tensor, what was expected and found,
      and the fix; all wrong tensors are reported together.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(
      f"{os.fspath(folder)!r}: no such folder; give a local checkpoint folder"
    )
  if not os.path.lexists(folder / "config.json"):
    raise ValueError(
      f"{folder}: no config.json; give the folder of a Hugging Face checkpoint"
    )
  file = folders.inside(folder, "config.json")
  config = config_type.from_hf(folder)
  hf = config_fields.read_object(file)
  if config.ignored:
    _LOG.info(
      "%s: without effect, as in stock transformers: %s",
      folder / "config.json",
      ", ".join(config.ignored[:_SHOWN])
      + (" and others" if len(config.ignored) > _SHOWN else ""),
    )
  in_files = folders.read_tensors(folder)
  table = names.table(config)
  if table.optional:
    field, tensor = table.optional
    config = dataclasses.replace(config, **{field: tensor in in_files})
  expected = names.file_shapes(config)
  optional = {}
  if table.tied and table.tied[0] not in expected:
    optional[table.tied[0]] = expected[table.tied[1]]
  tensors = {
    name: tensor
    for name, tensor in in_files.items()
    if name in expected or not name.endswith(table.ignored)
  }
  problems = _compare(expected, optional, tensors)
  if problems:
    raise ValueError(
      f"{folder}: {folders.summarise(problems)}; config.json and the weights"
      " do not fit, download or export the folder again"
    )
  return Source(folder=folder, config=config, hf=hf, tensors=tensors)


def _compare(expected, optional, tensors) -> list[str]:
  """List every tensor that is missing, extra or not as it should be."""
  problems = []
  for name, shape in expected.items():
    if name not in tensors:
      problems.append(f"tensor {name!r} missing (expected shape {list(shape)})")
  allowed = expected | optional
  for name, tensor in tensors.items():
    label = f"{tensor.path.name}: tensor {name!r}"
    if name not in allowed:
      problems.append(
        f"{label} {list(tensor.shape)} is extra (config.json has no place"
        " for it)"
      )
      continue
    if tensor.shape != allowed[name]:
      problems.append(
        f"{label} expected shape {list(allowed[name])}, found"
        f" {list(tensor.shape)}"
      )
    if tensor.dtype not in WEIGHT_DTYPES:
      problems.append(
        f"{label} expected dtype {', '.join(WEIGHT_DTYPES)}, found"
        f" {tensor.dtype}: cast or dequantize it first"
      )
  return problems
