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
  change = jax.vmap(probes.compare_position)(h, h_pruned, z, z_pruned)
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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxprune.probes.ablation import ablate as ablate
  from jaxprune.probes.ablation import logit_divergence as logit_divergence
  from jaxprune.probes.divergences import Concentration as Concentration
  from jaxprune.probes.divergences import Divergences as Divergences
  from jaxprune.probes.divergences import (
    compare_distributions as compare_distributions,
  )
  from jaxprune.probes.divergences import concentration as concentration
  from jaxprune.probes.interventions import random_like as random_like
  from jaxprune.probes.interventions import replace_change as replace_change
  from jaxprune.probes.interventions import restorations as restorations
  from jaxprune.probes.interventions import split_change as split_change
  from jaxprune.probes.jacobian import Rates as Rates
  from jaxprune.probes.jacobian import SoftmaxGain as SoftmaxGain
  from jaxprune.probes.jacobian import TopSingular as TopSingular
  from jaxprune.probes.jacobian import apply_jacobian as apply_jacobian
  from jaxprune.probes.jacobian import rates as rates
  from jaxprune.probes.jacobian import softmax_gain as softmax_gain
  from jaxprune.probes.jacobian import top_singular as top_singular
  from jaxprune.probes.lm_head import HeadGain as HeadGain
  from jaxprune.probes.lm_head import Spectrum as Spectrum
  from jaxprune.probes.lm_head import head_gain as head_gain
  from jaxprune.probes.lm_head import spectrum as spectrum
  from jaxprune.probes.log_ratio import LogRatio as LogRatio
  from jaxprune.probes.log_ratio import from_logits as log_ratio_from_logits  # noqa: F401, E501
  from jaxprune.probes.logit_moments import LogitMoments as LogitMoments
  from jaxprune.probes.logit_moments import compare_moments as compare_moments
  from jaxprune.probes.monitoring import Monitored as Monitored
  from jaxprune.probes.monitoring import Policy as Policy
  from jaxprune.probes.monitoring import Risks as Risks
  from jaxprune.probes.monitoring import Writing as Writing
  from jaxprune.probes.monitoring import coverage_area as coverage_area
  from jaxprune.probes.monitoring import dense_forwards as dense_forwards
  from jaxprune.probes.monitoring import pruned_risks as pruned_risks
  from jaxprune.probes.monitoring import risk_coverage as risk_coverage
  from jaxprune.probes.monitoring import step_risks as step_risks
  from jaxprune.probes.monitoring import write_monitored as write_monitored
  from jaxprune.probes.options import OptionChange as OptionChange
  from jaxprune.probes.options import compare_options as compare_options
  from jaxprune.probes.options import option_scores as option_scores
  from jaxprune.probes.position import Position as Position
  from jaxprune.probes.position import compare_position as compare_position
  from jaxprune.probes.propagation import AlongPath as AlongPath
  from jaxprune.probes.propagation import Attribution as Attribution
  from jaxprune.probes.propagation import along_path as along_path
  from jaxprune.probes.propagation import interaction as interaction
  from jaxprune.probes.propagation import path_attribution as path_attribution
  from jaxprune.probes.spaces import Deviation as Deviation
  from jaxprune.probes.spaces import compare_logits as compare_logits
  from jaxprune.probes.spaces import compare_vectors as compare_vectors
  from jaxprune.probes.subspace import ChainRule as ChainRule
  from jaxprune.probes.subspace import Subspace as Subspace
  from jaxprune.probes.subspace import chain_rule as chain_rule
  from jaxprune.probes.subspace import compare_matched as compare_matched
  from jaxprune.probes.subspace import compare_tokens as compare_tokens
  from jaxprune.probes.subspace import matched_tokens as matched_tokens
  from jaxprune.probes.theorems import Checks as Checks
  from jaxprune.probes.theorems import Theorem1 as Theorem1
  from jaxprune.probes.theorems import Theorem2 as Theorem2
  from jaxprune.probes.theorems import Theorem3 as Theorem3
  from jaxprune.probes.theorems import check_position as check_position
  from jaxprune.probes.theorems import theorem_1 as theorem_1
  from jaxprune.probes.theorems import theorem_2 as theorem_2
  from jaxprune.probes.theorems import theorem_3 as theorem_3
  from jaxprune.probes.transitions import attend_to_history as attend_to_history
  from jaxprune.probes.transitions import compare_sublayers as compare_sublayers

# By file, so that importing this package loads neither JAX nor any of them.
_FILES = {
  "ablation": ("ablate", "logit_divergence"),
  "divergences": (
    "Concentration",
    "Divergences",
    "compare_distributions",
    "concentration",
  ),
  "interventions": (
    "random_like",
    "replace_change",
    "restorations",
    "split_change",
  ),
  "jacobian": (
    "Rates",
    "SoftmaxGain",
    "TopSingular",
    "apply_jacobian",
    "rates",
    "softmax_gain",
    "top_singular",
  ),
  "lm_head": ("HeadGain", "Spectrum", "head_gain", "spectrum"),
  "log_ratio": ("LogRatio", "log_ratio_from_logits"),
  "logit_moments": ("LogitMoments", "compare_moments"),
  "monitoring": (
    "Monitored",
    "Policy",
    "Risks",
    "Writing",
    "coverage_area",
    "dense_forwards",
    "pruned_risks",
    "risk_coverage",
    "step_risks",
    "write_monitored",
  ),
  "options": ("OptionChange", "compare_options", "option_scores"),
  "position": ("Position", "compare_position"),
  "propagation": (
    "AlongPath",
    "Attribution",
    "along_path",
    "interaction",
    "path_attribution",
  ),
  "spaces": ("Deviation", "compare_logits", "compare_vectors"),
  "subspace": (
    "ChainRule",
    "Subspace",
    "chain_rule",
    "compare_matched",
    "compare_tokens",
    "matched_tokens",
  ),
  "theorems": (
    "Checks",
    "Theorem1",
    "Theorem2",
    "Theorem3",
    "check_position",
    "theorem_1",
    "theorem_2",
    "theorem_3",
  ),
  "transitions": ("attend_to_history", "compare_sublayers"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}
_ELSEWHERE = {"log_ratio_from_logits": "from_logits"}  # their names there
_MODULES = (*_FILES, "scan")

__all__ = sorted(_FILE_OF)


def __getattr__(name: str) -> Any:
  """Load a file when one of its names, or it itself, is first used."""
  if name in _FILE_OF:
    module = importlib.import_module(f"jaxprune.probes.{_FILE_OF[name]}")
    value = getattr(module, _ELSEWHERE.get(name, name))
    globals()[name] = value
    return value
  if name in _MODULES:
    return importlib.import_module(f"jaxprune.probes.{name}")
  raise AttributeError(f"module 'jaxprune.probes' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, *_MODULES})
