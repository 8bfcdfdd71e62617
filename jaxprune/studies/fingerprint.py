"""Which inputs does a run have, so that another can tell whether its are these?

Weights and calibration tokens have their hashes in run.json; here is the rest:
what a configuration says of the outputs, the tokenizer and the masks beside a
model, and every file that a setting names.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from jaxprune import checkpoints, files
from jaxprune.checkpoints import export_job, huggingface
from jaxprune.checkpoints import masks as masks_file

_BESIDE = (
  *huggingface.TOKENIZER_FILES,
  "generation_config.json",
  masks_file.FILE,
)
# Of a folder that a setting names, such as that of a sweep.
_DATA = (".json", ".jsonl", ".npz", ".parquet", ".txt")


def describe_inputs(
  models: Mapping[str, checkpoints.Source], settings: Mapping[str, Any]
) -> dict[str, Any]:
  """What a run reads, beside weights and calibration tokens.

  Args:
    models: opened checkpoints, by role.
    settings: of the run; text, or lists of text, may be names of files.

  Returns:
    JSON values: `models`, by role the fields of the configuration and the
    sha256 of the files beside the weights; `files`, by setting the sha256 of
    each file that it names, and of the data in each folder.
  """
  described = {
    "models": {role: _model(source) for role, source in models.items()},
    "files": {
      name: hashes
      for name, value in settings.items()
      if (hashes := dict(_files(value)))
    },
  }
  return json.loads(json.dumps(described))  # tuples as lists


def _model(source) -> dict[str, Any]:
  return {
    "config": export_job.describe_config(source.config),
    "files": {
      name: files.sha256_file(source.folder / name)
      for name in _BESIDE
      if (source.folder / name).is_file()
    },
  }


def _files(value) -> Iterator[tuple[str, str]]:
  """Paths and hashes of the files that a setting names."""
  for text in value if isinstance(value, list | tuple) else [value]:
    if not isinstance(text, str) or not text:
      continue
    try:
      path = files.expand(text)
    except ValueError:
      continue
    if os.path.isfile(path):  # of a text that is no path, too
      yield text, files.sha256_file(path)
    elif os.path.isdir(path) and not (path / "config.json").is_file():
      for below in sorted(path.rglob("*")):
        if below.suffix in _DATA and below.is_file():
          yield os.fspath(below), files.sha256_file(below)
