"""At which angles are queries and keys turned? Rotary position embedding.

Frequencies are computed in float64 by numpy and rounded once to float32.
Two kinds depend on the length of the row, its largest position in this pass
plus one:
  dynamic   beyond `max_positions` the base grows with the length;
  longrope  beyond the original context every position takes the long factors.
Padding counts to no length, on either side, so a row of a batch is what a
freshly made reference model computes of that row alone. With a cache each step
is a pass of its own: keys keep the rotation of the step that wrote them, as in
the reference.

Reference: Su et al., arXiv:2104.09864; YaRN, arXiv:2309.00071; LongRoPE,
arXiv:2402.13753; the RoPE functions of transformers 5.
Differs from the reference in: there the length is that of the longest row of
the batch, and `dynamic` remembers the longest pass it has seen; the angles and
the rotation are float32 whatever the dtype of the model.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models.config import ModelConfig, RopeConfig


def inv_freq(
  config: ModelConfig, length: int | jax.Array, rope: RopeConfig | None = None
) -> jax.Array:
  """Radians per position of each pair of coordinates.

  Args:
    config: the model.
    length: largest position of the row plus one; may be traced.
    rope: None is `config.rope`.

  Returns:
    float32 [H/2].
  """
  rope = rope or config.rope
  scaling = dict(rope.scaling)
  width = rope.rotary_dim or config.head_dim
  plain_H = _plain(rope, width)
  if rope.kind == "default":
    result_H = plain_H
  elif rope.kind == "linear":
    result_H = plain_H / scaling["factor"]
  elif rope.kind == "yarn":
    result_H = _yarn(rope, width)
  elif rope.kind == "llama3":
    result_H = _llama3(rope, width)
  elif rope.kind == "longrope":
    short_H = plain_H / np.asarray(scaling["short_factor"])
    long_H = plain_H / np.asarray(scaling["long_factor"])
    return jnp.where(
      length > scaling["original_max_position_embeddings"],
      long_H.astype(np.float32),
      short_H.astype(np.float32),
    )
  else:
    return _dynamic(config, rope, length)
  return jnp.asarray(result_H, jnp.float32)


def by_length(rope: RopeConfig | None) -> bool:
  """Whether a token's angle depends on how long the text after it is."""
  return rope is not None and rope.kind in ("dynamic", "longrope")


def attention_scale(rope: RopeConfig) -> float:
  """Factor on cos and sin; other than 1 for yarn and longrope only."""
  return dict(rope.scaling).get("attention_factor", 1.0)


def angles(
  config: ModelConfig, positions_BT: jax.Array, rope: RopeConfig | None = None
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine for one pass.

  Args:
    config: the model.
    positions_BT: int32 [B, T]; B may be 1 for all rows alike. Those of padding
      must not exceed those of the row's tokens.
    rope: None is `config.rope`.

  Returns:
    cos, sin: float32 [B, T, H/2], times the attention scale of the RoPE kind;
    half of what RoPE turns where that is not all of H, [B, T, 0] without RoPE.
  """
  rope = rope or config.rope
  if rope is None:
    none_BT0 = jnp.zeros((*positions_BT.shape, 0), jnp.float32)
    return none_BT0, none_BT0
  inv_freq_BH = jax.vmap(lambda length: inv_freq(config, length, rope))(
    jnp.max(positions_BT, axis=1) + 1
  )
  angle_BTH = positions_BT.astype(jnp.float32)[..., None] * inv_freq_BH[:, None]
  scale = attention_scale(rope)
  return jnp.cos(angle_BTH) * scale, jnp.sin(angle_BTH) * scale


def rotate(
  x_BTNH: jax.Array, cos_BTH: jax.Array, sin_BTH: jax.Array
) -> jax.Array:
  """Turn each pair (i, i + H/2) of coordinates by its angle.

  Fewer than H/2 angles turn the pairs of as many first coordinates, and leave
  the others as they are.

  Args:
    x_BTNH: queries or keys [B, T, N, H].
    cos_BTH: float32 [B, T, H/2], or fewer.
    sin_BTH: float32 [B, T, H/2], or fewer.

  Returns:
    [B, T, N, H] in the dtype of `x_BTNH`; computed in float32.
  """
  width = 2 * cos_BTH.shape[-1]
  if not width:
    return x_BTNH
  rest_BTNH = x_BTNH[..., width:].astype(jnp.float32)
  low_BTNH, high_BTNH = jnp.split(
    x_BTNH[..., :width].astype(jnp.float32), 2, axis=-1
  )
  cos_BTNH, sin_BTNH = cos_BTH[:, :, None], sin_BTH[:, :, None]
  turned_BTNH = jnp.concatenate(
    [
      low_BTNH * cos_BTNH - high_BTNH * sin_BTNH,
      high_BTNH * cos_BTNH + low_BTNH * sin_BTNH,
      rest_BTNH,
    ],
    axis=-1,
  )
  return turned_BTNH.astype(x_BTNH.dtype)


def _plain(rope: RopeConfig, head_dim: int) -> np.ndarray:
  return rope.theta ** -(np.arange(0, head_dim, 2) / head_dim)


def _dynamic(
  config: ModelConfig, rope: RopeConfig, length: int | jax.Array
) -> jax.Array:
  """theta * growth ** (H / (H - 2)), as a factor on the plain frequencies."""
  head_dim = rope.rotary_dim or config.head_dim
  factor = dict(rope.scaling)["factor"]
  # Only the growth of the base is raised to a power here: its logarithm is
  # small, so the float32 power is exact to a few ulp. The power of the whole
  # base would not be.
  excess = jnp.maximum(length - config.max_positions, 0) / config.max_positions
  growth = 1.0 + factor * excess.astype(jnp.float32)
  power_H = np.arange(0, head_dim, 2) / max(head_dim - 2, 1)
  plain_H = _plain(rope, head_dim)
  return jnp.asarray(plain_H, jnp.float32) * growth ** jnp.asarray(
    -power_H, jnp.float32
  )


def _yarn(rope: RopeConfig, head_dim: int) -> np.ndarray:
  """Interpolate the slow pairs, keep the fast ones, ramp between."""
  scaling = dict(rope.scaling)
  original = scaling["original_max_position_embeddings"]

  def pair_that_turns(times):
    return (
      head_dim
      * math.log(original / (times * 2 * math.pi))
      / (2 * math.log(rope.theta))
    )

  low = pair_that_turns(scaling["beta_fast"])
  high = pair_that_turns(scaling["beta_slow"])
  if scaling["truncate"]:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  high += 0.001 if low == high else 0.0
  slow_H = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
  plain_H = _plain(rope, head_dim)
  return plain_H * (slow_H / scaling["factor"] + 1 - slow_H)


def _llama3(rope: RopeConfig, head_dim: int) -> np.ndarray:
  """Divide the slow pairs by the factor, keep the fast ones, blend between."""
  scaling = dict(rope.scaling)
  low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
  plain_H = _plain(rope, head_dim)
  turns_H = (
    scaling["original_max_position_embeddings"] * plain_H / (2 * math.pi)
  )
  keep_H = np.clip((turns_H - low) / (high - low), 0, 1)
  return plain_H * (keep_H + (1 - keep_H) / scaling["factor"])
