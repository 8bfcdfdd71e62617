"""Prune a language model and measure what that does to h, z and p.

In memory, from Python: `load`, `prune` and `compare` (see `api`). For the rest
import the packages by name: `jaxprune.models`, `.checkpoints`, `.calibration`,
`.pruning`, `.probes`, `.evaluation`, `.report`. Data goes through them in that
order and imports go the other way.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxprune.api import Comparison as Comparison
  from jaxprune.api import Model as Model
  from jaxprune.api import compare as compare
  from jaxprune.api import load as load
  from jaxprune.api import prune as prune

__version__ = "0.1.0"

_PUBLIC = ("Comparison", "Model", "compare", "load", "prune")


def __getattr__(name: str) -> Any:
  """Load `api` when one of its names is first used."""
  if name in _PUBLIC:
    return getattr(importlib.import_module("jaxprune.api"), name)
  raise AttributeError(f"module 'jaxprune' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
