"""What does the output lose when one part of a model is left out? In nats.

The similarity of what enters a sublayer and what leaves it says how much that
sublayer does. It does not say how much of it the rest of the model passes on,
nor how much of that the softmax can see. Ablation does: the mean over positions
of KL(p || q), where q is the output of the model without that part and with
everything else unchanged. Two cheaper guesses stand beside it: Var_p(dz) /
(2 T^2) of the true change of the logits, and the same of the change that the
derivative at the dense model predicts.

The model is a callable from a candidate (gates or coefficients: data, not
structure) to what the LM head reads, so one program serves all candidates. They
are run one after the other; a chunk of logits exists at a time, and never those
of two candidates.

Reference: He et al., arXiv:2603.24652, Theorem 3, for the estimate. Against
LLM-Drop, arXiv:2406.15786, which ranks by similarity, and Kim et al., Shortened
LLaMA, arXiv:2402.02834, who rank blocks by the perplexity without them.
Differs from the reference in: the ranking is by distance from the dense
distribution, whatever the text, and of sublayers too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import divergences, log_ratio, logit_moments, spaces
from jaxprune.probes.scan import measure_rows

Array = jax.Array
Tree = Any


def logit_divergence(
  z: ArrayLike, z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> dict[str, Array]:
  """How far q is from p at one position.

  Args:
    z, z_pruned: logits [V]; -inf masks a token.
    temperature: T > 0.

  Returns:
    kl, KL(p || q) in nats, and kl_estimate, Var_p(dz) / (2 T^2); both exactly
    0 for equal logits.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  kl, _ = divergences.kl_of(log_ratio.from_logits(z_V, zq_V, temperature))
  return {
    "kl": kl,
    "kl_estimate": _variance(z_V, spaces.logit_change(z_V, zq_V), temperature),
  }


def predicted_divergence(
  z: ArrayLike, dz: ArrayLike, temperature: ArrayLike = 1.0
) -> dict[str, Array]:
  """KL at one position that a change of the logits predicts, to 2nd order.

  Args:
    z, dz: logits and their change [V].
    temperature: T > 0.

  Returns:
    kl_first_order, Var_p(dz) / (2 T^2).

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, dz_V = spaces.checked_pair(z, dz)
  return {"kl_first_order": _variance(z_V, dz_V, temperature)}


def ablate(
  hidden: Callable[[Tree], Array],
  measure: Callable[[Array, Array], Tree],
  candidates: Tree,
  *,
  chunk: int = 64,
) -> Tree:
  """Measure every candidate against the first.

  The first goes through the same program as the others, so what leaves nothing
  out has a KL of exactly 0.

  Args:
    hidden: from a candidate to what the LM head reads, [B, T, D].
    measure: `(h_D, h_pruned_D) -> scalars` at one position; holds the head.
    candidates: pytree with leaves [1 + P, ...]; the dense model at index 0.
    chunk: positions read out together.

  Returns:
    The tree of `measure`, leaves [1 + P, B]: means over the positions of each
    sequence.
  """
  count = len(jax.tree.leaves(candidates)[0])

  def step(dense_BTD, inputs):
    is_first, candidate = inputs
    h_BTD = hidden(candidate)
    dense_BTD = jnp.where(is_first, h_BTD, dense_BTD)
    # Without the barrier the compiler may fuse the two read-outs differently,
    # and they would differ for equal h.
    pair = jax.lax.optimization_barrier((dense_BTD, h_BTD))
    return dense_BTD, _means(measure, *pair, chunk)

  first = jax.eval_shape(hidden, jax.tree.map(lambda leaf: leaf[0], candidates))
  return jax.lax.scan(
    step,
    jnp.zeros(first.shape, first.dtype),
    (jnp.arange(count) == 0, candidates),
  )[1]


def predict(
  hidden: Callable[[Tree], Array],
  measure: Callable[[Array, Array], Tree],
  base: Tree,
  directions: Tree,
  *,
  chunk: int = 64,
) -> Tree:
  """Measure what the derivative predicts for every direction.

  One forward-mode derivative per direction. It is no cheaper than `ablate`, to
  whose exact numbers the prediction is compared.

  Args:
    hidden: from a candidate to what the LM head reads, [B, T, D].
    measure: `(h_D, dh_D) -> scalars` at one position.
    base: the candidate where the derivative is taken.
    directions: pytree like `base`, leaves [P, ...].
    chunk: positions read out together.

  Returns:
    The tree of `measure`, leaves [P, B]: means over the positions of each
    sequence.
  """

  def predict_one(direction):
    return _means(measure, *jax.jvp(hidden, (base,), (direction,)), chunk)

  return jax.lax.map(predict_one, directions)


def _variance(z_V, dz_V, temperature):
  """Var_p(dz) / (2 T^2)."""
  temperature = spaces.checked_temperature(temperature, z_V.dtype)
  variance = logit_moments.variance(log_ratio.softmax(z_V, temperature), dz_V)
  return variance / (2 * temperature * temperature)


def _means(measure, x_BTD, y_BTD, chunk):
  """Means over T of `measure` at each position."""
  values = measure_rows(measure, x_BTD, y_BTD, chunk=chunk)
  return jax.tree.map(lambda leaf_BT: jnp.mean(leaf_BT, axis=1), values)
