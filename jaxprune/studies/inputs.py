"""What is a study given? A model, calibration tokens, prompts, a pattern.

A script passes what its flags say; errors name the flag that mends them. The
name `pocket` stands for the model that comes with the package, for its training
text and for its held-out texts.
"""

import dataclasses
import re
from typing import Any

import jax

from jaxprune import checkpoints, devices
from jaxprune.calibration import id_files, prompts, tokenizer, tokens
from jaxprune.pocket import shipped
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured


def open_model(name: str, *, logits: bool = True) -> checkpoints.Source:
  """Open a model, checked from its headers.

  Args:
    name: a local folder, a hub id or `pocket`.
    logits: whether logits will be needed; without, a model without an output
      head will do.

  Raises:
    ValueError: there is no such model, it is of a family that cannot be read,
      or it lacks the head.
  """
  if name == "pocket":
    return checkpoints.open_checkpoint(shipped.FOLDER)
  source = checkpoints.open_checkpoint(checkpoints.resolve_model(name))
  if logits:
    checkpoints.check_head(source)
  return source


def read_calibration(
  source: checkpoints.Source,
  name: str,
  *,
  num_samples: int,
  seq_len: int,
  seed: int,
  sampling: str | None = None,
  activations: bool = True,
) -> tokens.Calibration:
  """Read calibration tokens for a model, no longer than its context.

  Args:
    source: the model that reads them.
    name: a file or name of `calibration.tokens.read_calibration`, or `pocket`
      for the training text of the pocket model.
    num_samples: sequences.
    seq_len: tokens of a sequence.
    seed: of the draw from the text.
    sampling: how sequences are cut from text; None is what is usual for it.
    activations: whether those of all sequences will be in memory together.

  Raises:
    ValueError: the sequences are longer than the context, or more than fit into
      the memory, or the text cannot be read or is too short.
  """
  draw = tokens.Draw(
    num_samples=num_samples, seq_len=seq_len, seed=seed, sampling=sampling
  )
  check_calibration(source, name, draw, activations)
  return next(_read_seeds(source, name, draw, [seed]))


def calibration_shape(
  name: str, num_samples: int, seq_len: int
) -> tuple[int, int]:
  """How many calibration tokens there will be, before any is read.

  Args:
    name: as for `read_calibration`; of token ids only the header is read.
    num_samples: sequences of a text.
    seq_len: tokens of each.

  Raises:
    ValueError: token ids that are none, or more of them than fit into memory.
  """
  if not name.endswith(".npz"):
    tokens.check_room(num_samples, seq_len)
    return num_samples, seq_len
  shape = id_files.ids_shape(name, "calibration")
  if len(shape) != 2 or not all(shape):
    raise ValueError(
      f"{name}: calibration has shape {list(shape)}; token ids must be [rows,"
      " length], neither zero"
    )
  return shape


def check_calibration(
  source: checkpoints.Source,
  name: str,
  draw: tokens.Draw,
  activations: bool = True,
) -> None:
  """Refuse calibration tokens before any is read or written.

  Args:
    source: the model that reads them.
    name: as for `read_calibration`.
    draw: how many sequences, of which length.
    activations: whether those of all sequences will be in memory together.

  Raises:
    ValueError: the sequences are longer than the context, or more than fit into
      the memory.
  """
  config = source.config
  rows, length = calibration_shape(name, draw.num_samples, draw.seq_len)
  if length > config.max_positions:
    said = f"--seq_len={length} is"
    if name.endswith(".npz"):
      said = f"{name}: calibration rows of {length} tokens are"
    raise ValueError(
      f"{said} longer than the context of {source.folder},"
      f" {config.max_positions}: use shorter ones"
    )
  memory = devices.total_bytes()
  need = 4 * rows * length * config.embed_dim  # float32
  if activations and memory is not None and need > memory:
    raise ValueError(
      f"{name}: the activations of {rows} calibration sequences of"
      f" {length} tokens need {devices.gib(need)}, there are"
      f" {devices.gib(memory)}: use fewer (--num_samples) or shorter ones"
      " (--seq_len)"
    )


def _read_seeds(source, name, draw, seeds):
  """The tokens of each seed."""
  config = source.config
  if name == "pocket":
    _check_pocket(source)
    return (
      shipped.calibration_tokens(draw.num_samples, draw.seq_len, seed)
      for seed in seeds
    )
  return tokens.read_seeds(
    name,
    _tokenizer(source, name),
    draw,
    seeds,
    tokens.Vocabulary(
      bos_id=config.bos_id,
      eos_id=config.eos_ids[0] if config.eos_ids else None,
      size=config.vocab_size,
    ),
  )


def read_calibrations(
  source: checkpoints.Source,
  name: str,
  seeds: list[int],
  *,
  num_samples: int,
  seq_len: int,
) -> tuple[dict[int, tokens.Calibration], dict[str, Any]]:
  """Read calibration tokens once per seed.

  Args:
    source: the model that reads them.
    name: of the text, as for `read_calibration`.
    seeds: one draw each.
    num_samples: sequences of a draw.
    seq_len: tokens of a sequence.

  Returns:
    The tokens by seed, and one description of them all for run.json.
  """
  draw = tokens.Draw(num_samples=num_samples, seq_len=seq_len)
  check_calibration(source, name, draw)
  drawn = dict(zip(seeds, _read_seeds(source, name, draw, seeds)))
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
  """Read prompts that leave room in the context for the tokens to be decoded.

  Args:
    source: the model that is to continue them.
    name: a file of `calibration.prompts.read_prompts`, or `pocket` for held-out
      texts of the pocket model.
    limit: only the first so many; None is all of a file, 32 of `pocket`.
    max_new_tokens: tokens to be decoded after each.

  Raises:
    ValueError: a prompt and its tokens exceed the context, or the file cannot
      be read.
  """
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
  """Read a pattern from its name.

  Args:
    pattern: `unstructured`, or `n:m` with n kept out of m inputs.
    sparsity: fraction removed, in [0, 1), of `unstructured`.
    group: what competes in `unstructured`: output, matrix or global.

  Raises:
    ValueError: another name, or a sparsity outside its range.
  """
  if pattern == "unstructured":
    return Unstructured(sparsity=sparsity, group=group)
  return read_nofm(pattern)


def read_nofm(pattern: str) -> NofM:
  """The pattern `n:m`, n kept out of m inputs."""
  keep, colon, of = pattern.partition(":")
  if not colon or not keep.isdigit() or not of.isdigit():
    raise ValueError(
      f"--pattern={pattern}: use unstructured, or n:m such as 2:4 (2 kept"
      " out of 4 inputs)"
    )
  return NofM(keep=int(keep), of=int(of))


def read_mesh(text: str | None) -> jax.sharding.Mesh | None:
  """Make a mesh from text such as data:4,model:2; None stays None."""
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


def read_size(text: str) -> int:
  """Read a number of bytes such as 5GB, 200MB or 1GiB.

  Raises:
    ValueError: another text, or less than a byte.
  """
  found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text, re.I)
  size = 0
  if found:
    number, prefix, binary = found.groups()
    power = " KMGT".index(prefix.upper() or " ")
    size = int(float(number) * (1024 if binary else 1000) ** power)
  if size < 1:
    raise ValueError(f"{text!r} is no size: use bytes such as 5GB or 200MB")
  return size


def describe_pattern(
  pattern: Unstructured | NofM | Levels,
) -> dict[str, object]:
  """Describe a pattern in flat JSON values, as the rows of records have it."""
  if isinstance(pattern, Levels):
    return {"pattern": f"int{pattern.bits}", "group_size": pattern.group_size}
  if isinstance(pattern, NofM):
    return {"pattern": f"{pattern.keep}:{pattern.of}"}
  return {"pattern": "unstructured"} | dataclasses.asdict(pattern)


def is_pocket(source: checkpoints.Source) -> bool:
  """Tell whether a checkpoint has the pocket model's tokenizer."""
  pocket = checkpoints.open_checkpoint(shipped.FOLDER)
  path, known = (model.folder / "tokenizer.json" for model in (source, pocket))
  return (
    source.config.vocab_size == pocket.config.vocab_size
    and path.is_file()
    and path.read_bytes() == known.read_bytes()
  )


def _check_pocket(source):
  """Refuse the texts `pocket` for a model with another tokenizer."""
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
