"""Where do the tokens of one pass stand, and which keys can they read?

Positions are the angles of RoPE or the rows of a learned table, slots the order
of arrival; they differ by the padding, and where texts that share a beginning
stand in one row.

Reference: `position_ids` and `attention_mask` of transformers 5; Miao et al.,
arXiv:2305.09781, for texts that branch within one row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxprune.models import rope
from jaxprune.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Branches:
  """Texts that share their beginnings, read in one row.

  The tokens stand depth first: those after which a text goes on in several
  ways come once, and each way follows as one piece.

  Attributes:
    positions: int32 [B, T], tokens before this one in its own text.
    ends: int32 [B, T], where the tokens end that follow this one in a text;
      its own slot plus 1 where none does, and for padding.
  """

  positions: jax.Array
  ends: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
  """What all layers of one pass share.

  Attributes:
    positions: int32 [B or 1, T], the angle of each token.
    cos: float32 [B or 1, T, H/2].
    sin: float32 [B or 1, T, H/2].
    slots: int32 [T], the order of arrival of each token.
    key_positions: int32 [B or 1, S]; of the cache when there is one.
    key_valid: bool [B, S], False for padding and for slots not yet written;
      None when every key is a token.
    local: cos and sin of the layers that slide, where they have a RoPE of their
      own; None otherwise.
    key_ends: int32 [B, S], slots from which on a key is not read; None is
      never.
    written_at: int32 scalar, the slot of a cache that the first token of this
      pass is written at; None is its own.
  """

  positions: jax.Array
  cos: jax.Array
  sin: jax.Array
  slots: jax.Array
  key_positions: jax.Array
  key_valid: jax.Array | None
  local: tuple[jax.Array, jax.Array] | None = None
  key_ends: jax.Array | None = None
  written_at: jax.Array | None = None


def make_context(
  config: ModelConfig,
  length: int,
  valid_BT: jax.Array | None = None,
  branches: Branches | None = None,
) -> Context:
  """The context of a pass without a cache.

  Args:
    config: the model.
    length: T.
    valid_BT: bool [B, T], False for padding. None: every token is real.
    branches: how the texts of a row branch; None is one text per row.

  Returns:
    Positions count the valid tokens, so left padding does not shift them; with
    branches they are those given.
  """
  slots_T = jnp.arange(length, dtype=jnp.int32)
  if branches is None:
    positions_BT = positions_of(length, valid_BT)
    return context_at(config, positions_BT, slots_T, positions_BT, valid_BT)
  positions_BT = branches.positions
  context = context_at(config, positions_BT, slots_T, positions_BT, valid_BT)
  return dataclasses.replace(context, key_ends=branches.ends)


def positions_of(length: int, valid_BT: jax.Array | None = None) -> jax.Array:
  """Positions of tokens, which count the valid ones.

  Args:
    length: T.
    valid_BT: bool [B, T], False for padding. None: every token is real.

  Returns:
    int32 [B, T], or [1, T] where every token is real; 0 before the first.
  """
  if valid_BT is None:
    return jnp.arange(length, dtype=jnp.int32)[None]
  return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1, 0)


def context_at(
  config: ModelConfig,
  positions_BT: jax.Array,
  slots_T: jax.Array,
  key_positions_BS: jax.Array,
  key_valid_BS: jax.Array | None,
) -> Context:
  """The context of tokens at known positions, which also read other keys.

  Args:
    config: the model.
    positions_BT: int [B, T], or [1, T] where all rows have the same.
    slots_T: int [T], where the tokens stand among the keys.
    key_positions_BS: int [B, S] or [1, S], positions of the keys.
    key_valid_BS: bool [B, S], False for keys that hold no token; None: all do.
  """
  cos_BTH, sin_BTH = rope.angles(config, positions_BT)
  local = None
  if config.local_rope is not None:
    local = rope.angles(config, positions_BT, config.local_rope)
  return Context(
    positions=positions_BT,
    cos=cos_BTH,
    sin=sin_BTH,
    local=local,
    slots=slots_T,
    key_positions=key_positions_BS,
    key_valid=key_valid_BS,
  )
