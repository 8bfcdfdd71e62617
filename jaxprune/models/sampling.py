"""Which token comes next? Greedy or sampled, among all or the likeliest few.

Reference: transformers 5, the logits processors of `generate`, in its order:
repetition penalty, temperature, top_k, top_p.
Differs from the reference in: `top_k` and `top_p` keep all entries that tie
with the last one kept.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How the next token is chosen, and what ends a text.

  Attributes:
    temperature: 0 takes the likeliest token, above 0 samples.
    top_k: sample among the k largest; 0 is all.
    top_p: sample among the fewest whose probability reaches this.
    repetition_penalty: logits of tokens that the row has, its prompt included,
      are divided by this where they are positive and multiplied elsewhere; 1
      leaves them.
    eos_ids: tokens that end a row; None is the config's, () never ends.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  eos_ids: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(
        f"temperature={self.temperature}: must be 0 (greedy) or above"
      )
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k}: must be 0 (all) or above")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
    if not self.repetition_penalty > 0:
      raise ValueError(
        f"repetition_penalty={self.repetition_penalty}: must be above 0; 1"
        " leaves the logits"
      )


GREEDY = Sampling()


def choose(
  z_BV: jax.Array,
  key: jax.Array | None = None,
  *,
  temperature: float | jax.Array = 0.0,
  top_k: int | jax.Array = 0,
  top_p: float | jax.Array = 1.0,
) -> jax.Array:
  """Pick a token from each row of logits.

  Args:
    z_BV: float32 [B, V].
    key: for sampling; None takes the largest, the first of equals.
    temperature: of the softmax to sample from, above 0.
    top_k: sample among the k largest; 0 is all.
    top_p: sample among the fewest whose probability reaches this, after top_k.

  Returns:
    int32 [B].
  """
  if key is None:
    return jnp.argmax(z_BV, axis=-1).astype(jnp.int32)
  z_BV = z_BV / temperature
  if (
    isinstance(top_k, int)
    and top_k == 0
    and (isinstance(top_p, float) and top_p == 1.0)
  ):
    return jax.random.categorical(key, z_BV).astype(jnp.int32)
  z_BV = truncate(z_BV, top_k=top_k, top_p=top_p)
  return jax.random.categorical(key, z_BV).astype(jnp.int32)


def truncate(
  z_BV: jax.Array, *, top_k: int | jax.Array = 0, top_p: float | jax.Array = 1.0
) -> jax.Array:
  """Mask with -inf the logits [B, V] that `choose` would not sample among.

  Args:
    z_BV: float32 [B, V], already divided by the temperature.
    top_k: keep the k largest; 0 is all.
    top_p: keep the fewest whose probability reaches this, after top_k.
  """
  vocab = z_BV.shape[-1]
  sorted_BV = -jnp.sort(-z_BV, axis=-1)
  rank_V = jnp.arange(vocab)
  limit = jnp.where(top_k > 0, top_k, vocab)
  sorted_BV = jnp.where(rank_V[None] < limit, sorted_BV, -jnp.inf)
  before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
  before_BV = jnp.pad(before_BV[:, :-1], ((0, 0), (1, 0)))
  kept_BV = (before_BV < top_p) & jnp.isfinite(sorted_BV)
  least_B1 = jnp.min(
    jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True
  )
  return jnp.where(z_BV >= least_B1, z_BV, -jnp.inf)


def penalise(
  z_BV: jax.Array, seen_BV: jax.Array, penalty: float | jax.Array
) -> jax.Array:
  """Lower the logits of tokens that a row has already.

  Args:
    z_BV: float32 [B, V].
    seen_BV: bool [B, V], which tokens the row has.
    penalty: above 0; what is positive is divided by it, the rest multiplied.

  Returns:
    float32 [B, V].
  """
  lowered_BV = jnp.where(z_BV > 0, z_BV / penalty, z_BV * penalty)
  return jnp.where(seen_BV, lowered_BV, z_BV)
