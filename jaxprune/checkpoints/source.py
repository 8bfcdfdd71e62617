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
from collections.abc import Collection, Mapping
from typing import Any

from jaxprune.checkpoints import drop_lists, folders, names, shards
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
    drops: {'attention': layers, 'mlp': layers} that config.json says to leave
      out, ascending.
    zeroed: names of the tensors that are read as zeros for it, whatever the
      file holds.
  """

  folder: pathlib.Path
  config: ModelConfig | EncoderConfig
  hf: dict[str, Any]
  tensors: dict[str, shards.Tensor]
  drops: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=lambda: {"attention": (), "mlp": ()}
  )
  zeroed: frozenset[str] = frozenset()


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
    effect, and sublayers that it says to leave out, are logged at level INFO.

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
  drops = drop_lists.parse(hf, config.num_layers, folder / "config.json")
  if any(drops.values()):
    _LOG.info("%s: runs without %s", folder, drop_lists.describe(drops))
  in_files = folders.read_tensors(folder)
  table = names.table(config)
  in_files = _one_per_expert(config, in_files)
  if isinstance(config, ModelConfig):
    config = _as_named(folder, config, hf, in_files)
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
  return Source(
    folder=folder,
    config=config,
    hf=hf,
    tensors=tensors,
    drops=drops,
    zeroed=drop_lists.zeroed(config, drops),
  )


def read_drops(source: Source) -> dict[str, tuple[int, ...]]:
  """Return the dropped layers that a config.json lists.

  Args:
    source: an opened checkpoint.

  Returns:
    {'attention': indices, 'mlp': indices}, ascending.
  """
  return dict(source.drops)


def without_layers(source: Source, gone: Collection[int]) -> Source:
  """A checkpoint as if it had been made without some of its layers.

  The layers that stay keep their order, their kind of attention and their
  place in the lists of dropped sublayers, and are numbered anew.

  Args:
    source: an opened checkpoint.
    gone: indices of the layers that are left out.

  Raises:
    ValueError: no layer would stay, there is no such layer, or the model is an
      encoder, whose norms after a sublayer work on what passes by it too.
  """
  config, hf = source.config, dict(source.hf)
  layers = range(config.num_layers)
  kept = [index for index in layers if index not in gone]
  if not set(gone) <= set(layers) or not kept:
    raise ValueError(
      f"layers {sorted(gone)} cannot be left out of {len(layers)}; leave out"
      f" some of 0..{len(layers) - 1}, but not all"
    )
  if not gone:
    return source
  if isinstance(config, EncoderConfig):
    raise ValueError(
      f"{source.folder}: a layer of an encoder cannot be left out, its norms"
      " stay; drop sublayers instead"
    )
  sliding = [config.sliding_layers[index] for index in kept]
  if len(set(config.sliding_layers)) > 1 and not hf.get("layer_types"):
    kinds = {True: "sliding_attention", False: "full_attention"}
    hf["layer_types"] = [kinds[slides] for slides in sliding]
  elif hf.get("layer_types"):
    hf["layer_types"] = [hf["layer_types"][index] for index in kept]
  for sublayer, key in drop_lists.KEYS.items():
    if source.drops[sublayer]:
      dropped = [index in source.drops[sublayer] for index in kept]
      hf[key] = [index for index, gone in enumerate(dropped) if gone]
  hf["n_layer" if "n_layer" in hf else "num_hidden_layers"] = len(kept)
  # What config.json does not say is as it was.
  plain, new = type(config).from_hf(source.hf), type(config).from_hf(hf)
  other = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(plain, field.name)
  }
  tensors = {
    row.name: source.tensors[row.name] for row in names.outer_rows(config)
  }
  for row in names.layer_rows(config):
    for index, before in enumerate(kept):
      tensor = source.tensors[row.name.format(before)]
      tensors[row.name.format(index)] = tensor
  config = dataclasses.replace(new, **other)
  drops = drop_lists.parse(hf, len(kept), source.folder / "config.json")
  return Source(
    folder=source.folder,
    config=config,
    hf=hf,
    tensors=tensors,
    drops=drops,
    zeroed=drop_lists.zeroed(config, drops),
  )


def check_head(source: Source) -> None:
  """Refuse a checkpoint without logits.

  Raises:
    ValueError: it has no output head.
  """
  if not getattr(source.config, "has_head", True):
    raise ValueError(
      f"{source.folder}: has no output head, only what embeds texts, and this"
      " needs logits; give the causal language model it was made from"
    )


def _as_named(folder, config, hf, in_files) -> ModelConfig:
  """The configuration with what only the names of the tensors say."""
  table = names.table(config)
  prefix, embedding = table.prefix, table.outer[0].name
  bare = (
    embedding not in in_files and embedding.removeprefix(prefix) in in_files
  )
  if prefix:
    body = {row.name for row in table.outer if row.name.startswith(prefix)}
    body = {*body, *(row.name.partition("{")[0] for row in table.layer)}
    body = tuple(name for name in body if name.startswith(prefix))
    other = body if bare else tuple(n.removeprefix(prefix) for n in body)
    odd = sorted(name for name in in_files if name.startswith(other))
    if odd:
      mixed = ", ".join(repr(name) for name in odd[:3])
      raise ValueError(
        f"{folder}: names of tensors with and without {prefix!r} in front"
        f" ({mixed}{' and others' if len(odd) > 3 else ''} beside"
        f" {embedding.removeprefix(prefix) if bare else embedding!r}); write"
        " them all in one way"
      )
  config = dataclasses.replace(config, bare_names=bare)
  architectures = hf.get("architectures")
  named = isinstance(architectures, list) and architectures[:1]
  headless = bare or bool(named) and str(named[0]).endswith("Model")
  if headless and table.tied and table.tied[0] not in in_files:
    config = dataclasses.replace(config, has_head=config.tie_embeddings)
  return config


def _one_per_expert(config, tensors):
  """Tensors of all experts as one tensor for each, which are parts of them."""
  found = {}
  for name, tensor in tensors.items():
    stem, _, last = name.rpartition(".")
    parts = names.table(config).fused_experts.get(last, ())
    count = tensor.shape[0] if len(tensor.shape) == 3 else 0
    if (
      not stem.endswith(".experts")
      or not parts
      or count != config.num_experts
      or tensor.shape[1] % len(parts)
    ):
      found[name] = tensor
      continue
    size = (tensor.end - tensor.begin) // (count * len(parts))
    shape = tensor.shape[1] // len(parts), tensor.shape[2]
    for index in range(count * len(parts)):
      expert, part = divmod(index, len(parts))
      begin = tensor.begin + index * size
      found[f"{stem}.{expert}.{parts[part]}"] = dataclasses.replace(
        tensor, shape=shape, begin=begin, end=begin + size
      )
  return found


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
