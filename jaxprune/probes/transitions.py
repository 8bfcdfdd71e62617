"""What does one pruned sublayer do where everything else is dense?

The dense model reads a text. At every layer one sublayer, attention or MLP, is
computed a second time with pruned weights (or left out) from the same dense
residual stream, and the two streams behind it are compared. Changes do not add
up over layers: each number belongs to one sublayer at one position.

The text is known once the dense model has written it, and pruned sublayers
leave no trace, so there is no loop over steps. One pass over the finished text
gives the dense residual stream and the dense keys and values of all positions;
a query at slot t reads those before t and, at t, the key and value of its own
weights. That is what a step-by-step decoder with a dense cache computes, for
all steps in one matrix product. What is compared is reduced to scalars inside
the scan over layers, some positions at a time, so that logits of all positions
never exist together.

The model comes as callables; `probes.decoder.transitions` has those of this
project.

Reference: He et al., "Demystifying When Pruning Works via Representation
Hierarchies", arXiv 2603.24652, section 5, Figs 2, 4-6 and 13-21.
Differs from the reference in: after the prompt its pruned attention reads no
key but its own, because it does not get the cache, and during the prompt
it reads keys that the pruned weights made; `HISTORIES` has all three.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune import platforms
from jaxprune.probes import scan

Array = jax.Array
Tree = Any

# Whose keys and values a pruned query reads before its own position:
#   dense   the cache of the dense model;
#   pruned  what the pruned weights make of the dense residual stream, as if
#           this one sublayer had been pruned from the first token on. The
#           official script at step 0;
#   none    nothing: the official script at step 1 and later.
HISTORIES = ("dense", "pruned", "none")

# Logits that a CPU measures together: the arrays between the sums of one
# measurement then stay in its cache.
_CACHED = 1 << 18

# Scores beyond float32 count as its largest number, and make no NaN.
_LARGEST = float(np.finfo(np.float32).max)


def attend_to_history(
  query_BRNH: Array,
  key_BSKH: Array,
  value_BSKH: Array,
  own_key_BRKH: Array,
  own_value_BRKH: Array,
  mask_BRS: Array,
  *,
  scale: float | None = None,
  cap: float | None = None,
) -> Array:
  """Softmax attention over foreign keys and, last, one key of each query.

  Args:
    query_BRNH: queries at R positions, [B, R, N, H].
    key_BSKH: keys of the history [B, S, K, H]; query head n reads key head
      n // (N / K).
    value_BSKH: its values [B, S, K, H].
    own_key_BRKH: the key that goes with each query, [B, R, K, H].
    own_value_BRKH: its value, [B, R, K, H].
    mask_BRS: which part of the history a query reads, bool [B or 1, R, S];
      all False leaves its own key.
    scale: factor on the products of queries and keys; None is 1 / sqrt(H).
    cap: bound c of the scores, s becomes c tanh(s / c); None leaves them.

  Returns:
    [B, R, N, H] in the dtype of the queries. One sequence is in work at a
    time: beside the result it takes N R (S + 1) floats.
  """
  batch, width = query_BRNH.shape[0], query_BRNH.shape[-1]
  kv_heads = key_BSKH.shape[2]
  scale = width**-0.5 if scale is None else scale
  mask_BRS = jnp.broadcast_to(mask_BRS, (batch, *mask_BRS.shape[1:]))

  def sequence(inputs):
    query_RNH, key_SKH, value_SKH, own_key_RKH, own_value_RKH, mask_RS = inputs
    query_RKGH = rearrange(query_RNH, "R (K G) H -> R K G H", K=kv_heads)
    scores_KGRS = jnp.einsum(
      "RKGH,SKH->KGRS", query_RKGH, key_SKH, preferred_element_type=jnp.float32
    )
    own_KGR = jnp.einsum(
      "RKGH,RKH->KGR",
      query_RKGH,
      own_key_RKH,
      preferred_element_type=jnp.float32,
    )
    scores_KGRS = jnp.concatenate([scores_KGRS, own_KGR[..., None]], axis=-1)
    scores_KGRS = scores_KGRS * scale
    if cap is not None:
      scores_KGRS = cap * jnp.tanh(scores_KGRS / cap)
    scores_KGRS = jnp.clip(scores_KGRS, -_LARGEST, _LARGEST)
    # No score is so low that a key which is not read could weigh more.
    read_RS = jnp.pad(mask_RS, ((0, 0), (0, 1)), constant_values=True)
    scores_KGRS = jnp.where(read_RS[None, None], scores_KGRS, -jnp.inf)
    weights_KGRS = jax.nn.softmax(scores_KGRS, axis=-1).astype(value_SKH.dtype)
    read_RKGH = jnp.einsum("KGRS,SKH->RKGH", weights_KGRS[..., :-1], value_SKH)
    read_RKGH += jnp.einsum(
      "KGR,RKH->RKGH", weights_KGRS[..., -1], own_value_RKH
    )
    return rearrange(read_RKGH, "R K G H -> R (K G) H")

  read_BRNH = jax.lax.map(
    sequence,
    (query_BRNH, key_BSKH, value_BSKH, own_key_BRKH, own_value_BRKH, mask_BRS),
  )
  return read_BRNH.astype(query_BRNH.dtype)


def compare_sublayers(
  sublayers: Callable[[Tree, Array], tuple[Array, tuple, tuple]],
  read: Callable[[Array], Array],
  measure: Callable[[Array, Array, Array, Array], Tree],
  x_BTD: Array,
  layers: Tree,
  *,
  chunk: int = 256,
) -> tuple[Array, Tree]:
  """Replace each sublayer of each layer in turn, on the dense stream.

  Args:
    sublayers: `(layer, x_BTD) -> (x_BTD, dense, pruned)`: the dense residual
      behind the layer, and the streams to compare, two tuples with one array
      [B, R, D] per sublayer.
    read: `h_RD -> z_RV`, the logits of some positions.
    measure: `(h_D, h_pruned_D, z_V, z_pruned_V) -> scalars` of one position.
    x_BTD: dense residual stream before the first layer.
    layers: whatever `sublayers` needs of a layer, dense and pruned, every leaf
      with a leading L.
    chunk: most positions that are read out together.

  Returns:
    The dense residual stream after the last layer, and the tree of `measure`
    with leaves [L, sublayers, B, R].
  """

  def step(x_BTD, layer):
    x_BTD, dense, pruned = sublayers(layer, x_BTD)
    # The barrier keeps both sides as they are in memory, so that equal weights
    # give equal bits whatever the compiler would fuse into their comparison.
    pair = jax.lax.optimization_barrier((jnp.stack(dense), jnp.stack(pruned)))
    records = _measure(read, measure, *pair, chunk)
    sizes = dict(zip("PBR", (len(dense), *dense[0].shape[:2])))
    return x_BTD, jax.tree.map(
      lambda leaf: rearrange(leaf, "(P B R) ... -> P B R ...", **sizes), records
    )

  return jax.lax.scan(step, x_BTD, layers)


def _measure(read, measure, h, g, chunk):
  """Read out `chunk` positions at once, and measure as many as fit a cache.

  h and g are [P, B, R, D]; the leaves of the result are [P * B * R].
  """
  rows = h.size // h.shape[-1]
  # All pieces have one size and the last is filled up, because another size
  # would be compiled separately.
  unit = min(4, chunk)
  pieces = -(-rows // (chunk // unit * unit))
  size = -(-rows // (pieces * unit)) * unit
  on_cpu = platforms.on_cpu()

  def piece(pair):
    h_RD, g_RD = pair
    z_RV, y_RV = jax.lax.optimization_barrier((read(h_RD), read(g_RD)))
    cached = max(1, _CACHED // z_RV.shape[1]) if on_cpu else size
    return jax.tree.map(
      lambda leaf: leaf[0],
      scan.measure_rows(
        measure,
        *(a[None] for a in (h_RD, g_RD, z_RV, y_RV)),
        chunk=max(n for n in range(1, min(size, cached) + 1) if size % n == 0),
      ),
    )

  def split(x_PBRD):
    x_RD = rearrange(x_PBRD, "P B R D -> (P B R) D")
    x_RD = jnp.pad(x_RD, ((0, pieces * size - rows), (0, 0)), mode="edge")
    return rearrange(x_RD, "(pieces size) D -> pieces size D", size=size)

  records = jax.lax.map(piece, (split(h), split(g)))
  return jax.tree.map(
    lambda leaf: rearrange(leaf, "pieces size ... -> (pieces size) ...")[:rows],
    records,
  )
