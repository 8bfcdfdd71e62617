"""Which keys does a query read, and what does it get from them?

`plain` takes all keys. The other two are the same function in forms that a CPU
runs several times faster: `chunked` cuts the queries of a sequence into chunks
and gives each only the keys before its end, a static prefix, one sequence after
the other; `single` reads a cache with one query, in one pass over the keys as
they lie. All follow the rule of `allowed` and weigh keys by `softmax`.

Reference: Vaswani et al., arXiv:1706.03762; grouped queries, arXiv:2305.13245;
sliding windows, arXiv:2310.06825.
Differs from the reference in: a padded query reads itself, so that no row of
the softmax is empty and padding makes no NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# Queries per chunk. 64 rows of scores stay in the cache of a CPU core.
CHUNK = 64

_LARGEST = float(np.finfo(np.float32).max)


def allowed(
  query_slots_T: jax.Array,
  key_slots_S: jax.Array,
  query_positions_BT: jax.Array,
  key_positions_BS: jax.Array,
  key_valid_BS: jax.Array | None,
  window: int | None,
  sliding: bool | jax.Array,
  key_ends_BS: jax.Array | None = None,
) -> jax.Array:
  """Which keys each query reads.

  Slots are the order in which tokens arrived, positions the angles they have;
  they differ by the padding. Causality compares slots, the window positions.
  Where texts branch, a key is read before the slot at which its branch ends.

  Args:
    query_slots_T: int32 [T].
    key_slots_S: int32 [S].
    query_positions_BT: int32 [B or 1, T].
    key_positions_BS: int32 [B or 1, S].
    key_valid_BS: bool [B, S], False for padding; None when all are tokens.
    window: keys read by a sliding query, itself included; None is all.
    sliding: whether this layer slides; may be traced.
    key_ends_BS: int32 [B, S], the slot from which on a key is no longer read,
      above its own; None is never.

  Returns:
    bool [B or 1, T, S].
  """
  query_T1, key_1S = query_slots_T[:, None], key_slots_S[None]
  mask_BTS = (key_1S <= query_T1)[None]
  if window is not None and sliding is not False:
    near_BTS = (
      query_positions_BT[:, :, None] - key_positions_BS[:, None] < window
    )
    mask_BTS = mask_BTS & (near_BTS | jnp.logical_not(sliding))
  if key_ends_BS is not None:
    mask_BTS = mask_BTS & (query_T1[None] < key_ends_BS[:, None])
  if key_valid_BS is not None:
    self_BTS = (key_1S == query_T1)[None]
    mask_BTS = mask_BTS & (key_valid_BS[:, None] | self_BTS)
  return mask_BTS


def scaled(
  scores: jax.Array, width: int, scale: float | None, cap: float | None
) -> jax.Array:
  """Attention scores of products of queries and keys.

  Args:
    scores: products, float32.
    width: H.
    scale: factor on them; None is 1 / sqrt(H).
    cap: bound c of the scores, s becomes c tanh(s / c); None leaves them.

  Returns:
    float32, in the shape of `scores`.
  """
  scores = scores * (width**-0.5 if scale is None else scale)
  return scores if cap is None else cap * jnp.tanh(scores / cap)


def softmax(scores: jax.Array, mask: jax.Array, *, axis: int = -1) -> jax.Array:
  """Weights of the keys: the softmax of their scores over those that are read.

  A key that is not read weighs exactly 0, however low the scores of the others
  are. Scores beyond float32 count as its largest number, so that they make no
  NaN. A row that reads no key weighs all of them by their scores.

  Args:
    scores: float32, keys along `axis`.
    mask: bool, broadcast against `scores`; True where a key is read.
    axis: of the keys, in both arrays.

  Returns:
    float32, in the shape of `scores`.
  """
  scores = jnp.clip(scores, -_LARGEST, _LARGEST)
  empty = jnp.logical_not(jnp.any(mask, axis=axis, keepdims=True))
  return jax.nn.softmax(jnp.where(mask | empty, scores, -jnp.inf), axis=axis)


def plain(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKH: jax.Array,
  mask_BTS: jax.Array,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> jax.Array:
  """Softmax attention over all keys.

  Args:
    query_BTNH: [B, T, N, H].
    key_BSKH: [B, S, K, H]; query head n reads key head n // G.
    value_BSKH: [B, S, K, H].
    mask_BTS: bool [B or 1, T, S], no row empty.
    scale: see `scaled`.
    cap: see `scaled`.

  Returns:
    [B, T, N, H] in the dtype of the queries.
  """
  scores_BKGTS = jnp.einsum(
    "BTKGH,BSKH->BKGTS",
    rearrange(query_BTNH, "B T (K G) H -> B T K G H", K=key_BSKH.shape[2]),
    key_BSKH,
    preferred_element_type=jnp.float32,
  )
  weights_BKGTS = softmax(
    scaled(scores_BKGTS, query_BTNH.shape[-1], scale, cap),
    mask_BTS[:, None, None],
  )
  read_BTKGH = jnp.einsum(
    "BKGTS,BSKH->BTKGH", weights_BKGTS.astype(value_BSKH.dtype), value_BSKH
  )
  return rearrange(read_BTKGH, "B T K G H -> B T (K G) H")


def chunked(
  query_BTNH: jax.Array,
  key_BTKH: jax.Array,
  value_BTKH: jax.Array,
  mask_BTS: jax.Array,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> jax.Array:
  """What `plain` gives, for a sequence that reads itself causally.

  Args:
    query_BTNH: [B, T, N, H].
    key_BTKH, value_BTKH: [B, T, K, H]; query head n reads key head n // G.
    mask_BTS: bool [B or 1, T, T], causal, no row empty.
    scale, cap: see `scaled`.
  """
  mask_BTS = jnp.broadcast_to(
    mask_BTS, (query_BTNH.shape[0], *mask_BTS.shape[1:])
  )
  return jax.lax.map(
    lambda row: _chunked_row(*row, scale, cap),
    (query_BTNH, key_BTKH, value_BTKH, mask_BTS),
  )


def single(
  query_BTNH: jax.Array,
  key_BSKH: jax.Array,
  value_BSKH: jax.Array,
  mask_BTS: jax.Array,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> jax.Array:
  """What `plain` gives, for T = 1.

  Products and sums, not matrix products: those would first move the heads of
  the cache to the front, which is a copy of all of it.

  Args:
    query_BTNH: [B, 1, N, H].
    key_BSKH: [B, S, K, H]; query head n reads key head n // G.
    value_BSKH: [B, S, K, H].
    mask_BTS: bool [B or 1, 1, S], no row empty.
    scale: see `scaled`.
    cap: see `scaled`.

  Returns:
    [B, 1, N, H] in the dtype of the queries.
  """
  width = query_BTNH.shape[-1]
  query_BTKGH = rearrange(
    query_BTNH, "B T (K G) H -> B T K G H", K=key_BSKH.shape[2]
  ).astype(jnp.float32)
  scores_BSKG = jnp.sum(
    query_BTKGH * key_BSKH[:, :, :, None].astype(jnp.float32), axis=-1
  )
  weights_BSKG = softmax(
    scaled(scores_BSKG, width, scale, cap),
    mask_BTS[:, 0, :, None, None],
    axis=1,
  )
  read_BKGH = jnp.sum(
    weights_BSKG[..., None] * value_BSKH[:, :, :, None].astype(jnp.float32),
    axis=1,
  )
  return rearrange(read_BKGH, "B K G H -> B 1 (K G) H").astype(query_BTNH.dtype)


def _chunked_row(query_TNH, key_TKH, value_TKH, mask_TS, scale, cap):
  """Attention of one sequence; the G queries of a key head are one matrix."""
  length, _, width = query_TNH.shape
  key_KTH, value_KTH = (
    rearrange(x, "T K H -> K T H") for x in (key_TKH, value_TKH)
  )
  query_KGTH = rearrange(query_TNH, "T (K G) H -> K G T H", K=key_TKH.shape[1])
  parts = []
  for start in range(0, length, CHUNK):
    end = min(start + CHUNK, length)
    chunk_KGTH = query_KGTH[:, :, start:end]
    groups = chunk_KGTH.shape[1]
    scores_KRS = jnp.einsum(
      "KRH,KSH->KRS",
      rearrange(chunk_KGTH, "K G T H -> K (G T) H"),
      key_KTH[:, :end],
      preferred_element_type=jnp.float32,
    )
    scores_KRS = scaled(scores_KRS, width, scale, cap)
    weights_KGTS = softmax(
      rearrange(scores_KRS, "K (G T) S -> K G T S", G=groups),
      mask_TS[None, None, start:end, :end],
    ).astype(value_KTH.dtype)
    read_KRH = jnp.einsum(
      "KRS,KSH->KRH",
      rearrange(weights_KGTS, "K G T S -> K (G T) S"),
      value_KTH[:, :end],
    )
    parts.append(rearrange(read_KRH, "K (G T) H -> K G T H", G=groups))
  read_KGTH = jnp.concatenate(parts, axis=2)
  return rearrange(read_KGTH, "K G T H -> T (K G) H")
