"""What the scripts read: a model, its tokenizer, calibration tokens, prompts.

Nothing here knows flags; a script passes what its flags say.
"""

import dataclasses
from typing import Any

from jaxprune import checkpoints, devices
from jaxprune.calibration import prompts, tokenizer, tokens
from jaxprune.pocket import shipped
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured


def open_model(name: str) -> checkpoints.Source:
  """Open a local folder, a hub id or `pocket`, checked from its headers."""
  if name == "pocket":
    return checkpoints.open_checkpoint(shipped.FOLDER)
  return checkpoints.open_checkpoint(checkpoints.resolve_model(name))


def read_calibration(
  source: checkpoints.Source,
  name: str,
  *,
  num_samples: int,
  seq_len: int,
  seed: int,
  sampling: str | None = None,
) -> tokens.Calibration:
  """Calibration tokens for a model, no longer than its context."""
  config = source.config
  if seq_len > config.max_positions and not name.endswith(".npz"):
    raise ValueError(
      f"--seq_len={seq_len} is longer than the context of"
      f" {source.folder}, {config.max_positions}: use a smaller one"
    )
  if name == "pocket":
    _check_pocket(source)
    return shipped.calibration_tokens(num_samples, seq_len, seed)
  calibration = tokens.read_calibration(
    name,
    _tokenizer(source, name),
    num_samples=num_samples,
    seq_len=seq_len,
    seed=seed,
    sampling=sampling,
    bos_id=config.bos_id,
    eos_id=config.eos_ids[0] if config.eos_ids else None,
    vocab_size=config.vocab_size,
  )
  if calibration.tokens.shape[1] > config.max_positions:
    raise ValueError(
      f"{name}: calibration rows of {calibration.tokens.shape[1]} tokens are"
      f" longer than the context of {source.folder}, {config.max_positions}:"
      " cut them"
    )
  return calibration


def read_calibrations(
  source: checkpoints.Source,
  name: str,
  seeds: list[int],
  *,
  num_samples: int,
  seq_len: int,
) -> tuple[dict[int, tokens.Calibration], dict[str, Any]]:
  """`read_calibration` by seed, and one description of them for run.json."""
  drawn = {
    seed: read_calibration(
      source, name, num_samples=num_samples, seq_len=seq_len, seed=seed
    )
    for seed in seeds
  }
  return drawn, tokens.describe(drawn[seeds[0]]) | {
    "seed": ", ".join(map(str, seeds)),
    "hash": ", ".join(drawn[seed].hash for seed in seeds),
  }


def read_prompts(
  source: checkpoints.Source,
  name: str,
  *,
  limit: int | None,
  max_new_tokens: int,
) -> prompts.Prompts:
  """Prompts for a model that leave room for the tokens to be decoded."""
  config = source.config
  if name == "pocket":
    _check_pocket(source)
    read = shipped.prompts(limit or 32)
  else:
    read = prompts.read_prompts(
      name,
      _tokenizer(source, name),
      limit=limit,
      bos_id=config.bos_id,
      vocab_size=config.vocab_size,
    )
  longest = max(map(len, read.tokens))
  if longest + max_new_tokens > config.max_positions:
    raise ValueError(
      f"{name}: a prompt of {longest} tokens and --max_new_tokens="
      f"{max_new_tokens} exceed the context of {source.folder},"
      f" {config.max_positions}: shorten one of them"
    )
  return read


def describe_prompts(read: prompts.Prompts) -> dict[str, Any]:
  """Describe prompts without their tokens, for run.json."""
  return {
    "source": read.source,
    "hash": read.hash,
    "count": len(read.tokens),
    "bos": read.bos,
  }


def read_pattern(
  pattern: str, sparsity: float, group: str
) -> Unstructured | NofM:
  """`unstructured`, or `n:m` with n kept out of m inputs."""
  if pattern == "unstructured":
    return Unstructured(sparsity=sparsity, group=group)
  keep, colon, of = pattern.partition(":")
  if not colon or not keep.isdigit() or not of.isdigit():
    raise ValueError(
      f"--pattern={pattern}: use unstructured, or n:m such as 2:4 (2 kept"
      " out of 4 inputs)"
    )
  return NofM(keep=int(keep), of=int(of))


def read_mesh(text: str | None):
  """A mesh from text such as data:4,model:2; None stays None."""
  if text is None:
    return None
  sizes = {}
  for part in text.split(","):
    axis, colon, size = part.partition(":")
    if not colon or not size.isdigit() or axis in sizes:
      raise ValueError(
        f"--mesh={text}: use axes and sizes such as data:4,model:2"
      )
    sizes[axis] = int(size)
  return devices.make_mesh(sizes)


def describe_pattern(
  pattern: Unstructured | NofM | Levels,
) -> dict[str, object]:
  """The pattern as flat JSON values."""
  if isinstance(pattern, Levels):
    return {"pattern": f"int{pattern.bits}", "group_size": pattern.group_size}
  if isinstance(pattern, NofM):
    return {"pattern": f"{pattern.keep}:{pattern.of}"}
  return {"pattern": "unstructured"} | dataclasses.asdict(pattern)


def is_pocket(source: checkpoints.Source) -> bool:
  """Whether a checkpoint speaks the pocket model's language."""
  ours = checkpoints.open_checkpoint(shipped.FOLDER).config
  path = source.folder / "tokenizer.json"
  return (
    source.config.vocab_size == ours.vocab_size
    and path.is_file()
    and (path.read_bytes() == (shipped.FOLDER / "tokenizer.json").read_bytes())
  )


def _check_pocket(source):
  if not is_pocket(source):
    raise ValueError(
      f"{source.folder}: the texts `pocket` are for the pocket model only;"
      " give --calibration and --prompts files for another model"
    )


def _tokenizer(source, name):
  """The model's tokenizer, unless `name` holds token ids already."""
  if name.endswith(".npz"):
    return None
  return tokenizer.load_tokenizer(source.folder)
