"""What pruning does to embeddings h, logits z and probabilities p.

Arrays in, registered dataclasses out. A function takes one position, `[D]`
and `[V]`; `jax.vmap` gives steps, layers and batch. Everything is computed in
float32, or in float64 if an input is. p is dense, q pruned, every change is
pruned - dense, and projections and weights are taken at the dense side.

Any JAX model can be measured; all that is asked of it is h and z:

  import jax
  import jax.numpy as jnp
  import sys
  from jaxprune import probes

  def forward(params, tokens):  # your model, with Flax or without
    h = jnp.cumsum(params["table"][tokens], axis=0)
    return h, h @ params["table"].T

  dense = {"table": jax.random.normal(jax.random.key(0), (50, 16))}
  pruned = {"table": jnp.where(abs(dense["table"]) < 0.5, 0, dense["table"])}
  tokens = jnp.array([3, 14, 15, 9, 26, 5, 35])
  (h, z), (h_pruned, z_pruned) = (
      forward(params, tokens) for params in (dense, pruned))
  compare = jax.jit(jax.vmap(probes.compare_position))
  change = compare(h, h_pruned, z, z_pruned)
  print(*change.kl)  # nats, one per position
  print("flax" in sys.modules)  # False: nothing else was loaded

spaces, divergences           vectors h and z; distributions p
log_ratio, logit_moments      the log-ratio of q and p; weighted variances of dz
position                      all of these for one position
theorems, jacobian, lm_head   local estimates, and where a change is damped
options, subspace             answer options, and a set of tokens
scan                          two models through their layers
transitions                   one changed sublayer at a time
trajectories, monitoring      while text is written
ablation, interventions       a part left out, or undone
propagation                   which part of a change caused which effect
decoder/                      the same, run on this project's decoder
"""

import ast
import importlib
import pathlib
from typing import Any

# The stub names the files and what they hold, for type checkers and for this
# file, so that importing this package loads neither JAX nor any of them.
_STUB = pathlib.Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
# By public name: the module, and the name there.
_PLACES = {
  alias.asname: (line.module, alias.name)
  for line in ast.parse(_STUB).body
  for alias in line.names
}
_MODULES = {
  "scan",
  *(module.rpartition(".")[2] for module, _ in _PLACES.values()),
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
  """Load a file when one of its names, or it itself, is first used."""
  if name in _PLACES:
    module, own_name = _PLACES[name]
    value = getattr(importlib.import_module(module), own_name)
    globals()[name] = value
    return value
  if name in _MODULES:
    return importlib.import_module(f"jaxprune.probes.{name}")
  raise AttributeError(f"module 'jaxprune.probes' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_MODULES})
