"""What do the pruning methods need to know about the inputs of a kernel?

Two monoids over tokens: squared norms of each input (Wanda, RIA, neuron
pruning) and the Gram matrix of all inputs (SparseGPT and what builds on it).
`observe` a batch, `merge` batches; both are plain sums, so a sequential
accumulation, any split into batches and a `jax.lax.psum` of all fields over
devices give the same up to rounding, and zeros are the neutral element. They
know no model: arrays in, arrays out.

Reference: Sun et al., Wanda (arXiv 2306.11695), section 3, for the norms;
Frantar and Alistarh, SparseGPT (arXiv 2301.00774), section 3.1, for H = X X^T.

Differs from the reference in: sums instead of running means, divided once at
the end; tokens can be left out (padding).
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

# Reduced-precision products, the default on accelerators, would be squared by
# the condition number when the Gram is factorised.
_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredNorm:
  """Squares of each input, summed over tokens.

  Attributes:
    sum_squares: [I] float32.
    sequences: number of sequences with a token that counts, [] int32.
    tokens: number of tokens that count, [] int32.
  """

  sum_squares: jax.Array
  sequences: jax.Array
  tokens: jax.Array

  @property
  def mean(self) -> jax.Array:
    """Mean over sequences of the sum over tokens, [I] float32; s_j in Wanda.

    0 before any sequence.
    """
    return self.sum_squares / jnp.maximum(self.sequences, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gram:
  """Outer products of the inputs, summed over tokens.

  Attributes:
    sum_outer: [I, I] float32, symmetric up to rounding.
    sequences, tokens: how many, see `SquaredNorm`; [] int32.
  """

  sum_outer: jax.Array
  sequences: jax.Array
  tokens: jax.Array

  @property
  def squares(self) -> SquaredNorm:
    """The diagonal: what `observe_squares` would have seen, up to rounding."""
    return SquaredNorm(
      sum_squares=jnp.diagonal(self.sum_outer),
      sequences=self.sequences,
      tokens=self.tokens,
    )


S = TypeVar("S", SquaredNorm, Gram)


def valid_inputs(x_BTI: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
  """The inputs in float32, zero where they do not count.

  Args:
    x_BTI: input of a kernel, [B, T, I], any float dtype.
    valid_BT: bool [B, T], True where a token counts; None for all.

  Returns:
    [B, T, I] float32.

  Raises:
    ValueError: inputs or valid of another shape.
  """
  if x_BTI.ndim != 3:
    raise ValueError(f"inputs have shape {list(x_BTI.shape)}; use [B, T, I]")
  x_BTI = x_BTI.astype(jnp.float32)
  if valid_BT is None:
    return x_BTI
  if valid_BT.shape != x_BTI.shape[:2]:
    raise ValueError(
      f"valid has shape {list(valid_BT.shape)}; use {list(x_BTI.shape[:2])},"
      " as the inputs"
    )
  # A product with 0 would keep a nan that sits in the padding.
  return jnp.where(valid_BT[:, :, None], x_BTI, 0.0)


def _count(x_BTI, valid_BT):
  """The inputs that count, in how many sequences and tokens."""
  x_BTI = valid_inputs(x_BTI, valid_BT)
  batch, length, _ = x_BTI.shape
  if valid_BT is None:
    # Sequences of no tokens do not count either.
    sequences = jnp.int32(batch if length else 0)
    return x_BTI, sequences, jnp.int32(batch * length)
  sequences = jnp.sum(jnp.any(valid_BT, axis=1), dtype=jnp.int32)
  return x_BTI, sequences, jnp.sum(valid_BT, dtype=jnp.int32)


def sum_rows(x_RI: jax.Array) -> jax.Array:
  """Sum over the rows of a matrix, with the same bits on any number of cores.

  XLA cuts a sum over rows by the number of cores, and rounds accordingly. A
  product with ones it does not.

  Args:
    x_RI: float32 [R, I].

  Returns:
    [I] float32.
  """
  ones_R = jnp.ones(x_RI.shape[:1], x_RI.dtype)
  return jnp.einsum("R,RI->I", ones_R, x_RI, precision=_HIGHEST)


def sum_tokens(x_BTI: jax.Array) -> jax.Array:
  """Sum over the tokens of all sequences, by `sum_rows`.

  Args:
    x_BTI: float32 [B, T, I].

  Returns:
    [I] float32.
  """
  # The sum over tokens comes first: two short sums round less than a long one.
  return sum_rows(jax.vmap(sum_rows)(x_BTI))


def observe_squares(
  x_BTI: jax.Array, valid_BT: jax.Array | None = None
) -> SquaredNorm:
  """Sum the squares of each input over the tokens of a batch.

  Args:
    x_BTI: input of a kernel, [B, T, I], any float dtype.
    valid_BT: bool [B, T], True where a token counts; None for all.

  Returns:
    SquaredNorm of this batch.

  Raises:
    ValueError: inputs or valid of another shape.
  """
  x_BTI, sequences, tokens = _count(x_BTI, valid_BT)
  return SquaredNorm(
    sum_squares=sum_tokens(jnp.square(x_BTI)),
    sequences=sequences,
    tokens=tokens,
  )


def observe_gram(x_BTI: jax.Array, valid_BT: jax.Array | None = None) -> Gram:
  """Sum the outer product of the inputs over the tokens of a batch.

  Args:
    x_BTI, valid_BT: inputs of a kernel, [B, T, I], and which tokens count,
      bool [B, T] or None for all.

  Returns:
    Gram of this batch.

  Raises:
    ValueError: inputs or valid of another shape.
  """
  x_BTI, sequences, tokens = _count(x_BTI, valid_BT)
  # Not flattened to rows: XLA would cut a long contraction by the number of
  # cores, and round accordingly.
  sum_II = jnp.einsum("BTI,BTJ->IJ", x_BTI, x_BTI, precision=_HIGHEST)
  return Gram(sum_outer=sum_II, sequences=sequences, tokens=tokens)


def merge(a: S, b: S) -> S:
  """Join the statistics of two disjoint sets of sequences.

  Associative and commutative up to rounding.

  Args:
    a: of one set.
    b: of the other; the same class and shapes.
  """
  return jax.tree.map(jnp.add, a, b)
