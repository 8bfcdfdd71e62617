"""Which encoders are compared: what is asked for, by method and amount."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxprune import checkpoints
from jaxprune.models import EncoderConfig
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import weights
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.layerwise.drops import Drops
from jaxprune.pruning.patterns import NofM, Unstructured

DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One model to measure.

  Attributes:
    name: of it, also of its folder.
    settings: record fields that identify it.
    pattern: what is removed in each kernel; None for drops and given models.
    folder: a model that exists already.
  """

  name: str
  settings: dict[str, Any]
  pattern: Unstructured | NofM | None = None
  folder: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
  """The models that are asked for; each method with each amount.

  Attributes:
    methods: weight methods.
    sparsities: fractions removed.
    patterns: n:m patterns.
    drop_attention: counts of attention sublayers to drop.
    drop_mlp: counts of MLP sublayers to drop.
    folders: models that were pruned elsewhere.
  """

  methods: tuple[str, ...] = ()
  sparsities: tuple[float, ...] = ()
  patterns: tuple[NofM, ...] = ()
  drop_attention: tuple[int, ...] = ()
  drop_mlp: tuple[int, ...] = ()
  folders: tuple[str, ...] = ()


def open_encoder(name: str, max_tokens: int) -> checkpoints.Source:
  """Open an encoder: a folder or a hub id.

  Args:
    name: of it.
    max_tokens: to which texts will be cut.

  Raises:
    ValueError: it is no encoder, or has fewer positions.
  """
  source = checkpoints.open_checkpoint(
    checkpoints.resolve_model(name), EncoderConfig
  )
  if max_tokens > source.config.max_positions:
    raise ValueError(
      f"--max_tokens={max_tokens} is more than the"
      f" {source.config.max_positions} positions of the encoder"
    )
  return source


def variants(wanted: Wanted) -> list[Variant]:
  """The models that are asked for: weights first, then drops, then folders.

  Raises:
    ValueError: there is none, or two have the same name.
  """
  models = []
  for method in wanted.methods:
    group = registry.default_group(method)
    for pattern in (
      *(Unstructured(sparsity=s, group=group) for s in wanted.sparsities),
      *wanted.patterns,
    ):
      text = (
        f"{pattern.keep}:{pattern.of}"
        if isinstance(pattern, NofM)
        else "unstructured"
      )
      size = text if isinstance(pattern, NofM) else f"{pattern.sparsity:g}"
      models.append(
        Variant(
          name=f"{method}-{size.replace(':', 'of')}",
          pattern=pattern,
          settings={"method": method, "pattern": text},
        )
      )
  for kind, counts in (
    ("attention", wanted.drop_attention),
    ("mlp", wanted.drop_mlp),
  ):
    models += [
      Variant(
        name=f"drop_{kind}-{count}",
        settings={"method": f"drop_{kind}", "drop_count": count},
      )
      for count in counts
    ]
  models += [
    Variant(
      name=pathlib.Path(folder).name,
      folder=pathlib.Path(folder),
      settings={"method": "given"},
    )
    for folder in wanted.folders
  ]
  names = [variant.name for variant in models]
  if not names or len({DENSE, *names}) <= len(names):
    raise ValueError(
      f"models to compare: {', '.join(names) or 'none'}; ask for at least"
      " one, none twice, and none called dense"
    )
  return models


def check(
  wanted: Sequence[Variant], config: EncoderConfig, earlier: Drops | None = None
) -> None:
  """Refuse, before any work, a model that cannot be made.

  Args:
    wanted: from `variants`.
    config: of the dense encoder.
    earlier: what was dropped before, `sublayers.dropped_before`.

  Raises:
    ValueError: a method or pattern that is not for encoders, or more drops than
      sublayers are left.
  """
  for variant in wanted:
    method = variant.settings["method"]
    if variant.pattern is not None:
      if method not in weights.encoder_methods():
        raise ValueError(
          f"--method={method}: is not for encoders; use some of"
          f" {', '.join(weights.encoder_methods())}"
        )
      weights.check_job(config, method, variant.pattern, tokens=True)
    if "drop_count" in variant.settings:
      try:
        drops.check_count(
          config.num_layers,
          variant.settings["drop_count"],
          method.removeprefix("drop_"),
          earlier=earlier,
        )
      except ValueError as error:
        raise ValueError(f"--{method}: {error}") from error
