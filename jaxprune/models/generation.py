"""How is text continued? A compiled loop of the steps of `decoding`.

RoPE kinds that depend on the length (see `rope`) see the length that each row
has at each step: keys keep the rotation they were written with, as in the
reference on that row alone. A family that `rereads` (Phi-3) reads a row again
when it outgrows the original context, so that all its keys have the long
factors; `generate` does that, `decode_step` does not.

Reference: transformers 5, `generate` with a dynamic cache.
Differs from the reference in: a row that has ended is filled with the pad id,
or with the first of `eos_ids` where there is none.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import platforms
from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.models.decoding import decode_step, prefill, unstack
from jaxprune.models.families import FAMILIES
from jaxprune.models.parts import Gates, Params
from jaxprune.models.sampling import GREEDY, Sampling, choose, penalise
from jaxprune.models.vocabulary import check_ids

_ENDS = 8  # ids that end a row are padded to a multiple


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
  """A continued batch.

  Attributes:
    tokens: int32 [B, max_new_tokens]; after the end of a row, padding.
    lengths: int32 [B], tokens of each row, the one that ends it included.
  """

  tokens: jax.Array
  lengths: jax.Array


def generate(
  config: ModelConfig,
  params: Params,
  tokens_BT: Any,
  *,
  max_new_tokens: int,
  valid_BT: Any = None,
  sampling: Sampling = GREEDY,
  key: jax.Array | None = None,
  gates: Gates | None = None,
) -> Generation:
  """Continue prompts; one compiled loop that stops when every row has ended.

  Args:
    config: the model.
    params: its parameters, stacked or a tuple of layers (`unstack`).
    tokens_BT: int [B, T], padded on the left.
    max_new_tokens: most tokens to add.
    valid_BT: bool [B, T], False for padding. None: every token is real.
    sampling: how tokens are chosen and what ends a text; by default the
      likeliest, and the config's ids.
    key: randomness, `jax.random.key(seed)`; needed for sampling.
    gates: which sublayers stay; None is all.

  Returns:
    The tokens that follow the prompts, and how many each row has.

  Raises:
    ValueError: a prompt and its new tokens exceed `config.max_positions`;
      padding that is not on the left; ids outside the vocabulary; sampling
      without a key.
  """
  prompts = _checked_prompts(config, tokens_BT, valid_BT, max_new_tokens)
  draw = None
  if sampling.temperature > 0:
    if key is None:
      raise ValueError(
        f"temperature={sampling.temperature} samples: give"
        " key=jax.random.key(seed)"
      )
    # These values are data, so that others do not compile the loop again.
    draw = dict(key=key, temperature=sampling.temperature)
    if sampling.top_k > 0 or sampling.top_p < 1.0:
      draw |= dict(top_k=sampling.top_k, top_p=sampling.top_p)
  penalty = sampling.repetition_penalty
  ends = config.eos_ids if sampling.eos_ids is None else sampling.eos_ids
  fill = config.pad_id if config.pad_id is not None else (*ends, 0)[0]
  # Few lengths, so that few programs are compiled; -1 is no token.
  ends = (*ends, *[-1] * (-len(ends) % _ENDS))
  # A CPU decodes from separate layers and prefills from the stack, which are
  # the same memory there.
  steps = unstack(params) if platforms.on_cpu() else params
  return _generate(
    config,
    max_new_tokens,
    params,
    steps,
    prompts,
    (draw, None if penalty == 1 else penalty),
    gates,
    (jnp.asarray(ends, jnp.int32), jnp.int32(fill)),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
  config, max_new_tokens, params, steps, prompts, choice, gates, ends
):
  """The loop: (step, (newest token, done, rows, seen), cache)."""
  tokens_BT, valid_BT = prompts
  draw, penalty = choice
  stop_ids, fill = ends
  batch, length = tokens_BT.shape
  outgrown_at = rereads_at(config)

  def next_token(step, x_BD, seen_BV):
    z_BV = decoder.unembed(config, params, x_BD)
    if penalty is not None:
      z_BV = penalise(z_BV, seen_BV, penalty)
    if draw is None:
      return choose(z_BV)
    limits = dict(draw)
    return choose(z_BV, jax.random.fold_in(limits.pop("key"), step), **limits)

  def put(step, x_BD, done_B, rows, seen_BV):
    token_B = jnp.where(done_B, fill, next_token(step, x_BD, seen_BV))
    tokens_BR = rows.tokens.at[:, step].set(token_B)
    lengths_B = rows.lengths + jnp.logical_not(done_B)
    done_B = done_B | jnp.any(token_B[:, None] == stop_ids[None], axis=1)
    if penalty is not None:
      seen_BV = seen_BV.at[jnp.arange(batch), token_B].set(True)
    rows = Generation(tokens=tokens_BR, lengths=lengths_B)
    return token_B, done_B, rows, seen_BV

  x_BTD, _, cache = prefill(
    config,
    params,
    tokens_BT,
    capacity=length + max_new_tokens,
    valid_BT=valid_BT,
    gates=gates,
  )
  if isinstance(steps["layers"], tuple):
    cache = dataclasses.replace(
      cache, key=tuple(cache.key), value=tuple(cache.value)
    )
  rows = Generation(
    tokens=jnp.full((batch, max_new_tokens), fill, jnp.int32),
    lengths=jnp.zeros(batch, jnp.int32),
  )
  seen_BV = None
  if penalty is not None:
    real_BT = True if valid_BT is None else valid_BT
    seen_BV = jnp.zeros((batch, config.vocab_size), bool)
    seen_BV = seen_BV.at[jnp.arange(batch)[:, None], tokens_BT].max(real_BT)
  state = put(0, x_BTD[:, -1], jnp.zeros(batch, bool), rows, seen_BV)

  def more(carry):
    step, (_, done_B, _, _), _ = carry
    return (step < max_new_tokens) & jnp.logical_not(jnp.all(done_B))

  def one_step(cache, rows, token_B):
    x_BTD, _, cache = decode_step(
      config, steps, cache, token_B[:, None], gates=gates
    )
    return x_BTD[:, 0], cache

  def read_again(cache, rows, token_B):
    x_BTD, _, new = prefill(
      config,
      steps,
      jnp.concatenate([tokens_BT, rows.tokens], axis=1),
      capacity=length + max_new_tokens,
      valid_BT=cache.valid.at[:, cache.length].set(True),
      gates=gates,
    )
    x_BD = jax.lax.dynamic_index_in_dim(x_BTD, cache.length, 1, keepdims=False)
    return x_BD, dataclasses.replace(new, length=cache.length + 1)

  def advance(carry):
    step, (token_B, done_B, rows, seen_BV), cache = carry
    if outgrown_at is None:
      x_BD, cache = one_step(cache, rows, token_B)
    else:
      again = jnp.any(jnp.sum(cache.valid, axis=1) == outgrown_at)
      x_BD, cache = jax.lax.cond(
        again, read_again, one_step, *(cache, rows, token_B)
      )
    return step + 1, put(step, x_BD, done_B, rows, seen_BV), cache

  return jax.lax.while_loop(more, advance, (jnp.int32(1), state, cache))[1][2]


def _checked_prompts(config, tokens_BT, valid_BT, max_new_tokens):
  """Refuse prompts that would be continued wrongly; return arrays."""
  tokens_BT = np.asarray(tokens_BT)
  if tokens_BT.ndim != 2 or not tokens_BT.size:
    raise ValueError(
      f"prompts of shape {tokens_BT.shape}: give int [batch, length] with at"
      " least one token"
    )
  check_ids(tokens_BT, config.vocab_size, "prompts")
  longest = tokens_BT.shape[1]
  if valid_BT is not None:
    valid_BT = np.asarray(valid_BT, bool)
    if valid_BT.shape != tokens_BT.shape:
      raise ValueError(
        f"valid of shape {valid_BT.shape}: must be {tokens_BT.shape} like the"
        " prompts"
      )
    if not valid_BT[:, -1].all() or (np.diff(valid_BT.astype(int)) < 0).any():
      raise ValueError("valid has padding after a token: pad on the left")
    longest = int(valid_BT.sum(axis=1).max())
  if max_new_tokens < 1:
    raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
  if longest + max_new_tokens > config.max_positions:
    raise ValueError(
      f"prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed"
      f" the model's {config.max_positions} positions"
    )
  return jnp.asarray(tokens_BT, jnp.int32), (
    None if valid_BT is None else jnp.asarray(valid_BT)
  )


def rereads_at(config: ModelConfig) -> int | None:
  """Tokens after which a text is read again; None where it never is."""
  if not FAMILIES[config.family].rereads or config.rope.kind != "longrope":
    return None
  return dict(config.rope.scaling)["original_max_position_embeddings"]
