"""What did pruning do to one position, in all three spaces at once?

The fields are the columns of a record (`records.jsonl`), so that every
protocol writes the same numbers under the same names.

Reference: He et al., arXiv:2603.24652, section 3 and Theorems 1-3.
Differs from the reference in: what `spaces`, `divergences` and `logit_moments`
say.
"""

import dataclasses
from typing import Any

import jax
from jax.typing import ArrayLike

from jaxprune.probes import divergences, logit_moments, spaces

# The fields of `Position` that say how alike the models are in each space.
COSINES = ("cos_h", "cos_z", "cos_z_centred", "cos_p")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
  """One position, dense against pruned; every field is a scalar.

  p is dense, q pruned, changes are pruned - dense, and projections and weights
  are taken at the dense side.

  Attributes:
    cos_h, cos_z, cos_z_centred, cos_p: cosines; `cos_z_centred` has the mean
      over the vocabulary removed from both logits.
    one_minus_cos_h, one_minus_cos_z, one_minus_cos_z_centred, one_minus_cos_p:
      1 - cosine, in [0, 2], with full relative accuracy: a float32 cosine near
      1 has lost it.
    alpha_h, alpha_z: change along the dense vector, relative to its norm.
    rho_h, rho_z: norm of the change across the dense vector, relative to the
      norm of the dense vector.
    kl, kl_reverse, js: KL(p||q), KL(q||p), Jensen-Shannon; nats.
    tv: total variation, in [0, 1].
    kl_estimate: Var_p(dz) / (2 T^2), nats.
    one_minus_cos_p_estimate: Var_r(dz) / (2 T^2).
    one_minus_cos_h_estimate, one_minus_cos_z_estimate: rho^2 / 2.
    var_p, var_r, var_uniform: variances of dz, logits squared, no 1 / (2 T^2).
    entropy, entropy_pruned: of p and q, nats.
    margin: the dense top logit less the second, in logits.
    max_abs_dz, rms_dz: of dz as it is, in logits.
    flip: bool, whether the top-1 token changed.
    token_dense, token_pruned: int32, the top-1 tokens.
  """

  cos_h: jax.Array
  cos_z: jax.Array
  cos_z_centred: jax.Array
  cos_p: jax.Array
  one_minus_cos_h: jax.Array
  one_minus_cos_z: jax.Array
  one_minus_cos_z_centred: jax.Array
  one_minus_cos_p: jax.Array
  alpha_h: jax.Array
  rho_h: jax.Array
  alpha_z: jax.Array
  rho_z: jax.Array
  kl: jax.Array
  kl_reverse: jax.Array
  js: jax.Array
  tv: jax.Array
  kl_estimate: jax.Array
  one_minus_cos_p_estimate: jax.Array
  one_minus_cos_h_estimate: jax.Array
  one_minus_cos_z_estimate: jax.Array
  var_p: jax.Array
  var_r: jax.Array
  var_uniform: jax.Array
  entropy: jax.Array
  entropy_pruned: jax.Array
  margin: jax.Array
  max_abs_dz: jax.Array
  rms_dz: jax.Array
  flip: jax.Array
  token_dense: jax.Array
  token_pruned: jax.Array


def compare_position(
  h: ArrayLike,
  h_pruned: ArrayLike,
  z: ArrayLike,
  z_pruned: ArrayLike,
  temperature: ArrayLike = 1.0,
) -> Position:
  """Compares one position of a dense and a pruned model; vmap over others.

  Args:
    h, h_pruned: embeddings [D].
    z, z_pruned: logits [V]; -inf masks a token (see `divergences`).
    temperature: T > 0 of the softmax.

  Returns:
    Every number of this position, float32 or the wider type of an input.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  in_h = spaces.compare_vectors(h, h_pruned)
  in_z, in_z_centred = spaces.compare_logits(z, z_pruned)
  in_p = divergences.compare_distributions(z, z_pruned, temperature)
  dense = divergences.concentration(z, temperature)
  pruned = divergences.concentration(z_pruned, temperature)
  size = logit_moments.compare_moments(z, z_pruned, temperature)
  scale = 1 / (2 * spaces.checked_temperature(temperature, in_p.kl.dtype) ** 2)
  return Position(
    cos_h=in_h.cos,
    cos_z=in_z.cos,
    cos_z_centred=in_z_centred.cos,
    cos_p=in_p.cos_p,
    one_minus_cos_h=in_h.one_minus_cos,
    one_minus_cos_z=in_z.one_minus_cos,
    one_minus_cos_z_centred=in_z_centred.one_minus_cos,
    one_minus_cos_p=in_p.one_minus_cos_p,
    alpha_h=in_h.alpha,
    rho_h=in_h.rho,
    alpha_z=in_z.alpha,
    rho_z=in_z.rho,
    kl=in_p.kl,
    kl_reverse=in_p.kl_reverse,
    js=in_p.js,
    tv=in_p.tv,
    kl_estimate=size.var_p * scale,
    one_minus_cos_p_estimate=size.var_r * scale,
    one_minus_cos_h_estimate=in_h.rho**2 / 2,
    one_minus_cos_z_estimate=in_z.rho**2 / 2,
    var_p=size.var_p,
    var_r=size.var_r,
    var_uniform=size.var_uniform,
    entropy=dense.entropy,
    entropy_pruned=pruned.entropy,
    margin=dense.margin,
    max_abs_dz=size.max_abs_dz,
    rms_dz=size.rms_dz,
    flip=dense.token != pruned.token,
    token_dense=dense.token,
    token_pruned=pruned.token,
  )


def fields_of(record: Any) -> dict[str, Any]:
  """The fields of a dataclass by name, as a row of a record has them.

  Unlike `dataclasses.asdict` it copies nothing, so that it works under jit.
  """
  return {
    field.name: getattr(record, field.name)
    for field in dataclasses.fields(record)
  }
