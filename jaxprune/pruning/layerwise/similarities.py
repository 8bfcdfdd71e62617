"""How little does each sublayer, block or run of blocks change the stream?

The measure is the cosine between what goes in and what comes out, averaged
over tokens in float32: a monoid that a forward pass fills batch by batch, so
attention, MLP and block scores come out of one pass. `drops.py` chooses.

Reference: He et al., "What Matters in Transformers? Not All Attention is
Needed" (LLM-Drop, arXiv 2406.15786); Men et al., ShortGPT (arXiv
2403.03853), whose block influence is one minus the block similarity; Gromov
et al. (arXiv 2403.17887) for windows of blocks.

Differs from the reference in: the block's scores and both sublayers' come
from one pass; padding can be left out of the mean.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity:
  """Cosines summed over tokens; add the leaves of two to merge them.

  Attributes:
    sum: sum of cosines, float32, any shape, for instance [L].
    count: number of tokens summed, int32, same shape.
  """

  sum: jax.Array
  count: jax.Array

  @property
  def mean(self) -> jax.Array:
    """Mean cosine in [-1, 1], float32; nan where nothing was summed."""
    mean = self.sum / jnp.maximum(self.count, 1)
    return jnp.where(self.count > 0, mean, jnp.nan)


def merge(a: Similarity, b: Similarity) -> Similarity:
  """Join the similarities of two disjoint sets of tokens.

  Args:
    a: of one set.
    b: of the other, of the same shape.
  """
  return Similarity(sum=a.sum + b.sum, count=a.count + b.count)


def _norm(x: jax.Array) -> jax.Array:
  """Length of the last axis, with 1 for zero vectors: their cosine is 0."""
  norm = jnp.sqrt(jnp.sum(x * x, axis=-1))
  return jnp.where(norm > 0, norm, 1.0)


def observe_similarity(
  x_BTD: jax.Array, y_BTD: jax.Array, valid_BT: jax.Array | None = None
) -> Similarity:
  """Sum the cosine of x and y over tokens.

  Args:
    x_BTD: [B, T, D], any float dtype; the cosine is taken in float32.
    y_BTD: [B, T, D]. A zero vector on either side counts as cosine 0.
    valid_BT: bool [B, T], True where a token counts; None for all.

  Returns:
    Similarity with scalar leaves.
  """
  x_BTD, y_BTD = x_BTD.astype(jnp.float32), y_BTD.astype(jnp.float32)
  length_BT = _norm(x_BTD) * _norm(y_BTD)
  cos_BT = jnp.sum(x_BTD * y_BTD, axis=-1) / length_BT
  # Divided by a length that overflowed, every cosine would be 0.
  cos_BT = jnp.where(jnp.isfinite(length_BT), cos_BT, jnp.nan)
  if valid_BT is None:
    valid_BT = jnp.ones(cos_BT.shape, bool)
  return Similarity(
    # Padding is replaced and not multiplied by 0, since it may hold nan.
    sum=jnp.sum(jnp.where(valid_BT, cos_BT, 0.0)),
    count=jnp.sum(valid_BT, dtype=jnp.int32),
  )


def observe_sublayers(
  tape: Mapping[str, jax.Array],
  valid_BT: jax.Array | None = None,
  *,
  residual: bool = True,
  parallel: bool = False,
) -> dict[str, Similarity]:
  """Score attention, MLP and block of one layer in one pass.

  Args:
    tape: `residual_in`, `residual_mid`, `residual_out` and, without
      residual, `attention_in` and `mlp_in`, each [B, T, D].
    valid_BT: bool [B, T]; None for all.
    residual: True compares the residual stream before and after a sublayer.
      False compares the output of the norm with that of the sublayer, the
      variant that LLM-Drop found to rank badly. The sublayer output is the
      difference of two residual states: use float32 there.
    parallel: whether attention and MLP read the same residual, so that the MLP
      is scored by what it adds to that one.

  Returns:
    {'attention', 'mlp', 'block'}; the block always by the residual stream.
  """
  start, mid, end = (
    tape[f"residual_{place}"].astype(jnp.float32)
    for place in ("in", "mid", "out")
  )
  pairs = {"attention": (start, mid), "mlp": (mid, end)}
  if parallel:
    pairs["mlp"] = (start, start + (end - mid))
  if not residual:
    pairs = {
      "attention": (tape["attention_in"], mid - start),
      "mlp": (tape["mlp_in"], end - mid),
    }
  pairs["block"] = (start, end)
  return {k: observe_similarity(*v, valid_BT) for k, v in pairs.items()}
