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

from jaxprune.probes.ablation import ablate, logit_divergence
from jaxprune.probes.divergences import (
  Concentration,
  Divergences,
  compare_distributions,
  concentration,
)
from jaxprune.probes.interventions import (
  random_like,
  replace_change,
  restorations,
  split_change,
)
from jaxprune.probes.jacobian import (
  Rates,
  SoftmaxGain,
  TopSingular,
  apply_jacobian,
  rates,
  softmax_gain,
  top_singular,
)
from jaxprune.probes.lm_head import HeadGain, Spectrum, head_gain, spectrum
from jaxprune.probes.log_ratio import LogRatio
from jaxprune.probes.log_ratio import from_logits as log_ratio_from_logits
from jaxprune.probes.logit_moments import LogitMoments, compare_moments
from jaxprune.probes.monitoring import (
  Monitored,
  Policy,
  Risks,
  Writing,
  coverage_area,
  dense_forwards,
  pruned_risks,
  risk_coverage,
  step_risks,
  write_monitored,
)
from jaxprune.probes.options import OptionChange, compare_options, option_scores
from jaxprune.probes.position import Position, compare_position
from jaxprune.probes.propagation import (
  AlongPath,
  Attribution,
  along_path,
  interaction,
  path_attribution,
)
from jaxprune.probes.spaces import Deviation, compare_logits, compare_vectors
from jaxprune.probes.subspace import (
  ChainRule,
  Subspace,
  chain_rule,
  compare_matched,
  compare_tokens,
  matched_tokens,
)
from jaxprune.probes.theorems import (
  Checks,
  Theorem1,
  Theorem2,
  Theorem3,
  check_position,
  theorem_1,
  theorem_2,
  theorem_3,
)
from jaxprune.probes.transitions import attend_to_history, compare_sublayers

__all__ = [
  "AlongPath",
  "Attribution",
  "ChainRule",
  "Checks",
  "Concentration",
  "Deviation",
  "Divergences",
  "HeadGain",
  "LogRatio",
  "LogitMoments",
  "Monitored",
  "OptionChange",
  "Policy",
  "Position",
  "Rates",
  "Risks",
  "SoftmaxGain",
  "Spectrum",
  "Subspace",
  "Theorem1",
  "Theorem2",
  "Theorem3",
  "TopSingular",
  "Writing",
  "ablate",
  "along_path",
  "apply_jacobian",
  "attend_to_history",
  "chain_rule",
  "check_position",
  "compare_distributions",
  "compare_logits",
  "compare_matched",
  "compare_moments",
  "compare_options",
  "compare_position",
  "compare_sublayers",
  "compare_tokens",
  "compare_vectors",
  "concentration",
  "coverage_area",
  "dense_forwards",
  "head_gain",
  "interaction",
  "log_ratio_from_logits",
  "logit_divergence",
  "matched_tokens",
  "option_scores",
  "path_attribution",
  "pruned_risks",
  "random_like",
  "rates",
  "replace_change",
  "restorations",
  "risk_coverage",
  "softmax_gain",
  "spectrum",
  "split_change",
  "step_risks",
  "theorem_1",
  "theorem_2",
  "theorem_3",
  "top_singular",
  "write_monitored",
]
