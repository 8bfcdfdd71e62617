"""How is a residual, a query or a key normed? Over the last axis, in float32.

Reference: RMSNorm, arXiv:1910.07467; LayerNorm, arXiv:1607.06450; the norms of
the modelling files of transformers 5.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprune.models.config import ModelConfig


class OffsetRMSNorm(nn.Module):
  """RMSNorm whose scale is stored less 1.

  The 1 is added in float32, where the stored scale is exact; added before, it
  would be rounded to the dtype of the parameters.

  Attributes:
    epsilon: added to the mean square.
    param_dtype: of a new scale.
  """

  epsilon: float
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """Norm [..., D] to the same shape and dtype."""
    scale_D = self.param(
      "scale", nn.initializers.zeros, (x_BTD.shape[-1],), self.param_dtype
    )
    wide_BTD = x_BTD.astype(jnp.float32)
    square_BT1 = jnp.mean(wide_BTD * wide_BTD, axis=-1, keepdims=True)
    factor_BTD = jax.lax.rsqrt(square_BT1 + self.epsilon) * jnp.expand_dims(
      1 + scale_D.astype(jnp.float32), range(x_BTD.ndim - 1)
    )
    return (wide_BTD * factor_BTD).astype(x_BTD.dtype)


def norm(config: ModelConfig, dtype: Any = jnp.float32) -> nn.Module:
  """The norm of the residual, and of what a sublayer adds to it.

  Args:
    config: the model.
    dtype: of new parameters.
  """
  if config.norm == "rms":
    return rms_norm(config, dtype)
  return nn.LayerNorm(
    config.norm_eps, param_dtype=dtype, use_fast_variance=False
  )


def rms_norm(config: ModelConfig, dtype: Any = jnp.float32) -> nn.Module:
  """The RMSNorm of this model.

  Args:
    config: the model.
    dtype: of a new scale.
  """
  if config.unit_offset:
    return OffsetRMSNorm(config.norm_eps, dtype)
  return nn.RMSNorm(config.norm_eps, param_dtype=dtype)
