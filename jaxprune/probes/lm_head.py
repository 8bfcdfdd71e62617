"""Why does the LM head shrink a change? dh against the spectrum of the head.

z = W h with a head kernel W [D, V] (z_V = sum_D h_D W_DV). If dh avoids the
large singular directions of W more than h does, ||W dh|| / ||dh|| is below
||W h|| / ||h|| and logits look more robust than embeddings. Part of dz is a
constant offset, which softmax ignores: gains are given with and without it.

Reference: He et al., arXiv:2603.24652, section 5 (attenuation is observed, not
explained there). The spectrum is by randomized subspace iteration: Halko,
Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1.
Differs from the reference in: it has no spectral measurement.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import spaces

# Accelerators would otherwise round the factors of a product below float32.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
  """Leading singular directions of a head, in embedding space.

  Attributes:
    values: singular values [P], descending.
    directions: orthonormal columns [D, P]: dh along column i is stretched by
      values[i].
    residual: [P], |W v - value u| / values[0] with v = W^T u / value; a
      singular value of W lies within residual * values[0] of each value.
    frobenius: scalar, sqrt of the sum of all squared singular values.
  """

  values: jax.Array
  directions: jax.Array
  residual: jax.Array
  frobenius: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadGain:
  """What the head did to one h and its change dh; scalars unless said.

  Attributes:
    gain_h: |W h| / |h|.
    gain_dh: |W dh| / |dh|.
    gain_random: root mean square gain of a random direction, |W|_F / sqrt(D).
    attenuation: gain_dh / gain_h; below 1 the head shrinks the relative
      change.
    gain_h_centred, gain_dh_centred, attenuation_centred: the same for logits
      centred over the vocabulary, all that softmax sees.
    energy_h, energy_dh: share of |h|^2 and |dh|^2 in the first 1, ..., P
      singular directions [P], in [0, 1].
    energy_random: the mean of that share over random directions [P], k / D.
    energy_random_std: its standard deviation over random directions [P].
    offset_z, offset_dz: share of |z|^2 and |dz|^2 that is a constant over the
      vocabulary, in [0, 1].
  """

  gain_h: jax.Array
  gain_dh: jax.Array
  gain_random: jax.Array
  attenuation: jax.Array
  gain_h_centred: jax.Array
  gain_dh_centred: jax.Array
  attenuation_centred: jax.Array
  energy_h: jax.Array
  energy_dh: jax.Array
  energy_random: jax.Array
  energy_random_std: jax.Array
  offset_z: jax.Array
  offset_dz: jax.Array


def spectrum(
  kernel: ArrayLike,
  key: jax.Array,
  num_directions: int,
  *,
  oversampling: int = 8,
  num_iterations: int = 4,
) -> Spectrum:
  """Finds the leading singular directions of a head by random sampling.

  Costs 2 (num_iterations + 2) products of W [D, V] with
  num_directions + oversampling vectors.

  Args:
    kernel: W [D, V]; a tied embedding table [V, D] is its transpose.
    key: `jax.random.key` for the test vectors.
    num_directions: P, at most min(D, V).
    oversampling: extra vectors, so that the last directions are right too.
    num_iterations: subspace iterations; the error falls with the power
      2 num_iterations + 1 of the ratio of neighbouring singular values.

  Raises:
    ValueError: kernel is not a matrix, or num_directions is out of range.
  """
  if jnp.ndim(kernel) != 2:
    raise ValueError(f"kernel has shape {jnp.shape(kernel)}: give [D, V]")
  (kernel_DV,) = spaces.widen(kernel)
  limit = min(kernel_DV.shape)
  if not 1 <= num_directions <= limit:
    raise ValueError(
      f"num_directions={num_directions}: must be between 1 and"
      f" min(D, V)={limit}"
    )
  # W counts the P directions that are wanted and the extra ones.
  shape_VW = (kernel_DV.shape[1], min(num_directions + oversampling, limit))
  test_VW = jax.random.normal(key, shape_VW, kernel_DV.dtype)
  basis_DW = _orthonormal(_einsum("DV,VW->DW", kernel_DV, test_VW))

  def iterate(_, basis_DW):
    # The basis is made orthonormal after each product, or rounding would turn
    # all columns into the first direction.
    basis_VW = _orthonormal(_einsum("DV,DW->VW", kernel_DV, basis_DW))
    return _orthonormal(_einsum("DV,VW->DW", kernel_DV, basis_VW))

  basis_DW = jax.lax.fori_loop(0, num_iterations, iterate, basis_DW)
  # basis_DW^T W = (basis_VW small_WW)^T: only the small factor needs a
  # singular value decomposition.
  basis_VW, small_WW = jnp.linalg.qr(_einsum("DV,DW->VW", kernel_DV, basis_DW))
  left_WW, values_W, right_WW = jnp.linalg.svd(small_WW.T)
  values_P = values_W[:num_directions]
  directions_DP = _einsum("DW,WP->DP", basis_DW, left_WW[:, :num_directions])
  tokens_VP = _einsum("VW,PW->VP", basis_VW, right_WW[:num_directions])
  miss_DP = _einsum("DV,VP->DP", kernel_DV, tokens_VP)
  miss_DP -= directions_DP * values_P[None]
  top = jnp.where(values_P[0] == 0, 1, values_P[0])
  return Spectrum(
    values=values_P,
    directions=directions_DP,
    residual=jnp.sqrt(jnp.sum(miss_DP**2, axis=0)) / top,
    frobenius=jnp.sqrt(jnp.sum(kernel_DV**2)),
  )


def head_gain(
  h: ArrayLike, h_pruned: ArrayLike, kernel: ArrayLike, head: Spectrum
) -> HeadGain:
  """Measures how the head treats dh against how it treats h.

  Args:
    h, h_pruned: [D], what the head reads: after the final norm under the lens
      `final_norm`.
    kernel: W [D, V].
    head: `spectrum` of the same kernel.

  Returns:
    Gains; 0 for a vector that is zero.

  Raises:
    ValueError: shapes do not fit.
  """
  h_D, hq_D = spaces.checked_pair(h, h_pruned)
  (kernel_DV,) = spaces.widen(kernel)
  if kernel_DV.shape[:1] != h_D.shape or head.directions.shape[:1] != h_D.shape:
    raise ValueError(
      f"h has {h_D.size} entries, kernel shape {kernel_DV.shape}, directions"
      f" shape {head.directions.shape}: the first axes must agree"
    )
  dh_D = hq_D - h_D
  embed_dim, num_directions = head.directions.shape
  gain_h, gain_h_centred, offset_z = _gains(h_D, kernel_DV)
  gain_dh, gain_dh_centred, offset_dz = _gains(dh_D, kernel_DV)
  share_P = jnp.arange(1, num_directions + 1) / embed_dim
  # The share of k out of D coordinates is Beta(k / 2, (D - k) / 2).
  spread_P = jnp.sqrt(2 * share_P * (1 - share_P) / (embed_dim + 2))
  return HeadGain(
    gain_h=gain_h,
    gain_dh=gain_dh,
    gain_random=head.frobenius / math.sqrt(embed_dim),
    attenuation=spaces.ratio(gain_dh, gain_h),
    gain_h_centred=gain_h_centred,
    gain_dh_centred=gain_dh_centred,
    attenuation_centred=spaces.ratio(gain_dh_centred, gain_h_centred),
    energy_h=_energy(h_D, head.directions),
    energy_dh=_energy(dh_D, head.directions),
    energy_random=share_P.astype(h_D.dtype),
    energy_random_std=spread_P.astype(h_D.dtype),
    offset_z=offset_z,
    offset_dz=offset_dz,
  )


def _gains(x_D, kernel_DV) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns |W x| / |x|, the same centred, and the constant's share of W x."""
  size = spaces.norm_of(x_D)
  z_V = _einsum("D,DV->V", x_D, kernel_DV)
  gain = spaces.norm_of(z_V)
  centred = spaces.norm_of(spaces.centre(z_V))
  offset = jnp.abs(jnp.mean(z_V)) * math.sqrt(z_V.size)
  share = jnp.minimum(spaces.ratio(offset, gain), 1) ** 2
  return spaces.ratio(gain, size), spaces.ratio(centred, size), share


def _energy(x_D, directions_DP) -> jax.Array:
  """Returns the share of |x|^2 in the first 1, ..., P directions."""
  unit_D = x_D / jnp.maximum(spaces.norm_of(x_D), jnp.finfo(x_D.dtype).tiny)
  along_P = _einsum("D,DP->P", unit_D, directions_DP)
  return jnp.minimum(jnp.cumsum(along_P**2), 1)


def _orthonormal(x) -> jax.Array:
  return jnp.linalg.qr(x)[0]
