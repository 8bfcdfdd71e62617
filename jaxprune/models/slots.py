"""How are many texts continued, each joining as soon as another has ended?

A fixed number of rows is decoded together. A row that has ended is given the
keys and values of another prompt, which were read with other prompts
(`read_prompts`), while the others go on. All rows write their next key at one
place of the cache, which runs around it as around a ring; a mask says which
slots of a row hold its own tokens. So one program serves all lengths.

Reference: Yu et al., "Orca" (OSDI 2022), for the scheduling; transformers 5,
`generate`, for each row.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.models.context import Branches, context_at
from jaxprune.models.decoding import read_with_cache
from jaxprune.models.parts import Gates, Params
from jaxprune.models.sampling import choose, penalise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
  """Rows that are decoded together.

  Attributes:
    key: [L, B, S, K, H], or a tuple of L arrays [B, S, K, H].
    value: of the same form.
    positions: int32 [B, S], of the token in each slot.
    valid: bool [B, S], which slots hold a token of the row.
    cursor: int32 scalar, the slot that is written next.
    residual: [B, D], of the newest token of each row, before the final norm.
    active: bool [B], which rows are being continued.
    item: int32 [B], which prompt a row continues.
    written: int32 [B], tokens that were added to it.
    limit: int32 [B], most tokens to add to it.
    seen: bool [B, V], tokens that a row has; None where it does not matter.
  """

  key: Any
  value: Any
  positions: jax.Array
  valid: jax.Array
  cursor: jax.Array
  residual: jax.Array
  active: jax.Array
  item: jax.Array
  written: jax.Array
  limit: jax.Array
  seen: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """How the next token is chosen.

  Attributes:
    ends: int32 [n], tokens that end a row; -1 is none.
    key: randomness, which every row and step divides; None is greedy.
    options: of `sampling.choose`, scalars.
    penalty: repetition penalty; None is none.
  """

  ends: jax.Array
  key: jax.Array | None = None
  options: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  penalty: jax.Array | None = None


def make_slots(
  config: ModelConfig, params: Params, rows: int, size: int, penalised: bool
) -> Slots:
  """Rows that continue nothing yet.

  Args:
    config: the model.
    params: its parameters in the form to decode with, see `unstack`.
    rows: B.
    size: S, most tokens of a prompt and its continuation.
    penalised: whether the tokens of each row are remembered.
  """
  dtype = params["embed"]["table"].dtype
  shape = rows, size, config.num_kv_heads, config.head_dim
  layers = config.num_layers

  def cache():
    if isinstance(params["layers"], tuple):
      return tuple(jnp.zeros(shape, dtype) for _ in range(layers))
    return jnp.zeros((layers, *shape), dtype)

  def zeros(*shape, dtype=jnp.int32):
    return jnp.zeros(shape, dtype)

  return Slots(
    key=cache(),
    value=cache(),
    positions=zeros(rows, size),
    valid=zeros(rows, size, dtype=bool),
    cursor=zeros(),
    residual=zeros(rows, config.embed_dim, dtype=dtype),
    active=zeros(rows, dtype=bool),
    item=zeros(rows),
    written=zeros(rows),
    limit=zeros(rows),
    seen=zeros(rows, config.vocab_size, dtype=bool) if penalised else None,
  )


@functools.partial(jax.jit, static_argnums=0)
def read_prompts(
  config: ModelConfig,
  params: Params,
  tokens_1T: jax.Array,
  branches: Branches,
  gates: Gates | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Read prompts that share their beginnings.

  Args:
    config: the model.
    params: its parameters.
    tokens_1T: int [1, T].
    branches: how the prompts branch.
    gates: which sublayers stay; None is all.

  Returns:
    Keys and values [L, T, K, H], and the residual before the final norm,
    [T, D].
  """
  x_BTD, (key, value) = decoder.forward(
    config,
    params,
    tokens_1T,
    branches=branches,
    gates=gates,
    observe=lambda out: (out["key"], out["value"]),
  )
  return key[:, 0], value[:, 0], x_BTD[0]


@functools.partial(jax.jit, donate_argnums=0)
def join(
  slots: Slots,
  read: tuple[jax.Array, jax.Array, jax.Array],
  tokens_T: jax.Array,
  path_S: jax.Array,
  where: jax.Array,
) -> Slots:
  """Give a row another prompt.

  Args:
    slots: which are used up.
    read: from `read_prompts`.
    tokens_T: int [T], what was read.
    path_S: int32 [S], where in what was read the tokens of the prompt stand;
      the rest is not used.
    where: int32 [5], the row, the number of the prompt, its length, how many of
      its tokens were written before, and how many may be in the end.
  """
  row, item, length, written, limit = where
  size = path_S.shape[0]
  # The last token of the prompt stands just before the cursor.
  offset_S = jnp.mod(jnp.arange(size) - slots.cursor + length, size)
  from_S = path_S[offset_S]
  key_LTKH, value_LTKH, x_TD = read

  def put(cache, new_LTKH):
    if isinstance(cache, tuple):
      return tuple(
        old.at[row].set(new[from_S].astype(old.dtype))
        for old, new in zip(cache, new_LTKH)
      )
    return cache.at[:, row].set(new_LTKH[:, from_S].astype(cache.dtype))

  seen_BV = slots.seen
  if seen_BV is not None:
    token_S = tokens_T[from_S]
    seen_BV = seen_BV.at[row].set(False)
    seen_BV = seen_BV.at[row, token_S].max(offset_S < length)
  return dataclasses.replace(
    slots,
    key=put(slots.key, key_LTKH),
    value=put(slots.value, value_LTKH),
    positions=slots.positions.at[row].set(offset_S),
    valid=slots.valid.at[row].set(offset_S < length),
    residual=slots.residual.at[row].set(x_TD[path_S[length - 1]]),
    active=slots.active.at[row].set(True),
    item=slots.item.at[row].set(item),
    written=slots.written.at[row].set(written),
    limit=slots.limit.at[row].set(limit),
    seen=seen_BV,
  )


@jax.jit
def leave(slots: Slots, rows_B: jax.Array) -> Slots:
  """Stop continuing some rows.

  Args:
    slots: the rows.
    rows_B: bool [B], which ones.
  """
  return dataclasses.replace(slots, active=slots.active & ~rows_B)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnames=("slots",))
def advance(
  config: ModelConfig,
  most: int,
  weights: tuple[Params, Params],
  slots: Slots,
  choice: Choice,
  waiting: jax.Array,
  gates: Gates | None,
) -> tuple[jax.Array, jax.Array, Slots]:
  """Write the next tokens of every row.

  Args:
    config: the model.
    most: tokens of each row, R.
    weights: the parameters, and those in the form to decode with.
    slots: which are used up.
    choice: how tokens are chosen.
    waiting: bool scalar, whether to return as soon as a row has ended.
    gates: which sublayers stay; None is all.

  Returns:
    Tokens int32 [B, R]; how many each row has got, int32 [B]; the rows after
    it. A row that has ended is not active any more.
  """
  params, steps = weights
  batch, size = slots.valid.shape

  def next_token(slots):
    z_BV = decoder.unembed(config, params, slots.residual)
    if choice.penalty is not None:
      z_BV = penalise(z_BV, slots.seen, choice.penalty)
    if choice.key is None:
      return choose(z_BV)

    def draw(z_V, item, step):
      key = jax.random.fold_in(jax.random.fold_in(choice.key, item), step)
      return choose(z_V[None], key, **choice.options)[0]

    return jax.vmap(draw)(z_BV, slots.item, slots.written)

  def more(carry):
    step, _, _, slots = carry
    count = jnp.sum(slots.active)
    enough = jnp.where(waiting, jnp.sum(before), 1)
    return (step < most) & (count >= enough)

  def write(carry):
    step, tokens_BR, lengths_B, slots = carry
    active_B = slots.active
    token_B = jnp.where(active_B, next_token(slots), 0)
    tokens_BR = tokens_BR.at[:, step].set(token_B)
    lengths_B += active_B
    written_B = slots.written + active_B
    ended_B = jnp.any(token_B[:, None] == choice.ends[None], axis=1)
    slots = dataclasses.replace(
      slots,
      written=written_B,
      active=active_B & ~ended_B & (written_B < slots.limit),
    )
    if slots.seen is not None:
      slots = dataclasses.replace(
        slots, seen=slots.seen.at[jnp.arange(batch), token_B].max(active_B)
      )
    # What the last tokens of a chunk are for is not known yet, so the rows that
    # end here are read once for nothing.
    return step + 1, tokens_BR, lengths_B, read(slots, token_B, active_B)

  def read(slots, token_B, active_B):
    """Write the tokens into the cache, and make their residual."""
    position_B1 = jnp.sum(slots.valid, axis=1, dtype=jnp.int32)[:, None]

    def at_cursor(old_BS, new_B1):
      return jax.lax.dynamic_update_slice_in_dim(
        old_BS, new_B1, slots.cursor, axis=1
      )

    positions_BS = at_cursor(slots.positions, position_B1)
    valid_BS = at_cursor(slots.valid, active_B[:, None])
    # All keys were there before: the query stands behind the last slot.
    context = context_at(
      config, position_B1, jnp.full(1, size, jnp.int32), positions_BS, valid_BS
    )
    context = dataclasses.replace(context, written_at=slots.cursor)
    x_B1D, _, (key, value) = read_with_cache(
      config,
      steps,
      token_B[:, None],
      context,
      (slots.key, slots.value),
      gates=gates,
    )
    return dataclasses.replace(
      slots,
      key=key,
      value=value,
      positions=positions_BS,
      valid=valid_BS,
      cursor=jnp.mod(slots.cursor + 1, size),
      residual=x_B1D[:, 0],
    )

  before = slots.active
  _, tokens_BR, lengths_B, slots = jax.lax.while_loop(
    more,
    write,
    (
      jnp.int32(0),
      jnp.zeros((batch, most), jnp.int32),
      jnp.zeros(batch, jnp.int32),
      slots,
    ),
  )
  return tokens_BR, lengths_B, slots
