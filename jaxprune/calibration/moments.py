"""Which simple moments of a kernel's input do some methods look at?

Two monoids: the mean absolute value of each input (AWQ scales by it) and the
mean and variance of each input (FLAP calls the variance fluctuation). They
know no model: arrays in, arrays out.

Reference: Lin et al., AWQ (arXiv 2306.00978); An et al., FLAP (arXiv
2312.11983); Chan, Golub and LeVeque (1979) for the merge.

Differs from the reference in: the variance is carried as centred sums of
squares and merged pairwise. A sum and a sum of squares would lose all digits
of the variance in float32 for the inputs with a large mean, those that FLAP
most wants to remove. FLAP's running update weighs sequences by how many came
before; here every token counts alike, in any order and grouping.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.calibration.statistics import sum_tokens, valid_inputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanAbs:
  """Absolute values summed over tokens.

  Attributes:
    sum_abs: [I] float32.
    tokens: number of tokens, [] float32.
  """

  sum_abs: jax.Array
  tokens: jax.Array

  @property
  def mean(self) -> jax.Array:
    """Mean of |x| per input, [I] float32; 0 before any token."""
    return self.sum_abs / jnp.maximum(self.tokens, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
  """Mean and spread over tokens.

  Attributes:
    mean: [I] float32, 0 before any token.
    sum_centred: sum over tokens of (x - mean)^2, [I] float32.
    tokens: number of tokens, [] float32.
  """

  mean: jax.Array
  sum_centred: jax.Array
  tokens: jax.Array

  @property
  def variance(self) -> jax.Array:
    """Unbiased variance per input, [I] float32; 0 for a single token."""
    return self.sum_centred / jnp.maximum(self.tokens - 1, 1)


def _weighed(x_BTI: jax.Array, valid_BT: jax.Array | None):
  """Inputs in float32, zero where not valid; and the weight of each token."""
  x_BTI = valid_inputs(x_BTI, valid_BT)
  if valid_BT is None:
    return x_BTI, jnp.ones(x_BTI.shape[:2], jnp.float32)
  return x_BTI, valid_BT.astype(jnp.float32)


def observe_mean_abs(
  x_BTI: jax.Array, valid_BT: jax.Array | None = None
) -> MeanAbs:
  """Sum |x| over the tokens of a batch.

  Args:
    x_BTI, valid_BT: inputs of a kernel, [B, T, I], and which tokens count,
      bool [B, T] or None for all.

  Returns:
    MeanAbs of this batch.
  """
  x_BTI, weight_BT = _weighed(x_BTI, valid_BT)
  return MeanAbs(sum_abs=sum_tokens(jnp.abs(x_BTI)), tokens=weight_BT.sum())


def observe_moments(
  x_BTI: jax.Array, valid_BT: jax.Array | None = None
) -> Moments:
  """Take mean and centred squares over the tokens of a batch, in two passes.

  Args:
    x_BTI: inputs of a kernel, [B, T, I].
    valid_BT: which tokens count, bool [B, T]; None: all do.
  """
  x_BTI, weight_BT = _weighed(x_BTI, valid_BT)
  tokens = weight_BT.sum()
  mean_I = sum_tokens(x_BTI) / jnp.maximum(tokens, 1)
  centred_BTI = (x_BTI - mean_I[None, None, :]) * weight_BT[:, :, None]
  return Moments(
    mean=mean_I, sum_centred=sum_tokens(centred_BTI**2), tokens=tokens
  )


def merge_moments(a: Moments, b: Moments) -> Moments:
  """Join the statistics of two disjoint sets of tokens.

  Associative and commutative up to rounding; no tokens is the neutral
  element. Means do not add: `statistics.merge` would be wrong here.

  Args:
    a: of one set.
    b: of the other, of the same shape.
  """
  tokens = a.tokens + b.tokens
  share = b.tokens / jnp.maximum(tokens, 1)
  step_I = b.mean - a.mean
  return Moments(
    mean=a.mean + step_I * share,
    sum_centred=a.sum_centred + b.sum_centred + step_I**2 * (a.tokens * share),
    tokens=tokens,
  )
