"""Why does the text of a pruned model deviate? Several decodings, compared.

Several decodings of one prompt run side by side inside one scan. A decoding is
described by whose weights it uses, whose cache of the prompt it starts from and
whose tokens it reads. Decoding `dense` is the reference; every other one is
compared with it at every step, and only the scalars of that comparison leave
the scan.

  teacher_forced     pruned weights, dense tokens
  free_running       pruned weights, their own tokens
  control            dense weights, their own tokens from another seed
  dense_then_pruned  dense prefill, pruned decoding, own tokens
  pruned_then_dense  pruned prefill, dense decoding, own tokens
  direct             pruned weights at this step only: the history (cache) is
                     dense. The paper's F(dW, x) term, measured.
  history            dense weights on the history that the pruned weights left
                     (dense tokens). The paper's F(dx) term, measured.
  resynchronised_k   free-running, but put back on the dense tokens and on the
                     teacher-forced cache every k steps

With sampling, all decodings but `control` draw with common random numbers: the
same key at the same step, so a difference in tokens is a difference in p.

Reference: He et al., arXiv 2603.24652, section 7, Figs 7 and 12, Appendix E.
Differs from the reference in: the same step of two texts is compared there
without saying whether the texts still agree; here `aligned` says so, an
end-of-text token ends a decoding, and the dense model with another seed shows
how much of the deviation is lost alignment alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How one text is decoded beside the others.

  Attributes:
    name: under which its records are returned.
    weights: 'dense' or 'pruned', used for decoding.
    prefill: 'dense' or 'pruned', whose cache of the prompt it starts from.
    own_tokens: reads its own tokens; otherwise those of the dense decoding.
    borrow: decoding whose cache it reads at every step instead of its own.
    resync: every so many steps it takes the tokens of the dense decoding and
      the cache of decoding `teacher_forced`; 0 for never.
    other_seed: draws its tokens with keys of its own.
  """

  name: str
  weights: str = "pruned"
  prefill: str = "pruned"
  own_tokens: bool = False
  borrow: str = ""
  resync: int = 0
  other_seed: bool = False


DENSE = Decoding(
  name="dense", weights="dense", prefill="dense", own_tokens=True
)
TEACHER_FORCED = Decoding(name="teacher_forced")
FREE_RUNNING = Decoding(name="free_running", own_tokens=True)
CONTROL = Decoding(
  name="control",
  weights="dense",
  prefill="dense",
  own_tokens=True,
  other_seed=True,
)
HANDOFF = (
  Decoding(name="dense_then_pruned", prefill="dense", own_tokens=True),
  Decoding(name="pruned_then_dense", weights="dense", own_tokens=True),
)
HISTORY_SPLIT = (
  TEACHER_FORCED,
  Decoding(name="direct", borrow="dense"),
  Decoding(name="history", weights="dense", borrow="teacher_forced"),
)


def resynchronised(every: int) -> Decoding:
  """A free-running decoding put back on the dense text every `every` steps."""
  if every < 1:
    raise ValueError(f"resynchronise every {every} steps: use 1 or more")
  return Decoding(name=f"resynchronised_{every}", own_tokens=True, resync=every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """How long is decoded, and how tokens are chosen.

  Attributes:
    count: T, tokens to decode.
    choose: `(key, z_BV) -> token_B`; greedy or sampled.
    eos_ids: tokens that end a text.
  """

  count: int
  choose: Callable[[Array, Array], Array]
  eos_ids: Sequence[int] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingRecords:
  """What one decoding did, compared with the dense one.

  Attributes:
    position: tree of `measure`, leaves [R, B].
    token_dense: token that the dense decoding chose at the step, int32 [R, B].
    token_pruned: token that this decoding chose, or would have, int32 [R, B].
    aligned: bool [R, B], all tokens read so far equal those of the dense
      decoding.
    alive: bool [R, B], neither the dense decoding nor this one has read an
      end-of-text token before the step.
  """

  position: Tree
  token_dense: Array
  token_pruned: Array
  aligned: Array
  alive: Array


def decode_together(
  decode: Callable[[Tree, Array, Tree], tuple[Array, Array, Tree]],
  measure: Callable[[Array, Array, Array, Array], Tree],
  models: dict[str, tuple[Tree, Tree]],
  token_B: Array,
  decodings: Sequence[Decoding],
  steps: Steps,
  *,
  key: Array,
) -> dict[str, DecodingRecords]:
  """Decode in several ways at once and compare each with the dense decoding.

  Step 0 is the prediction after the last prompt token, so the caches hold the
  prompt without its last token and that token is read first.

  Args:
    decode: `(weights, token_B, cache) -> (h_BD, z_BV, cache)`, one step; h is
      what the model's LM head reads.
    measure: `(h_D, h_pruned_D, z_V, z_pruned_V) -> scalars` of one position.
    models: of 'dense' and 'pruned': weights, any pytree, and the cache of the
      prompt without its last token.
    token_B: last prompt token, int32 [B].
    decodings: what is compared with the dense decoding, which is always run.
      One that borrows or resynchronises needs its source among them.
    steps: how many tokens, how they are chosen, and what ends a text.
    key: `jax.random.key` of the draws.

  Returns:
    Records by name of the decoding, leaves [R, B].

  Raises:
    ValueError: a decoding names a source that does not run, or a name twice.
  """
  decodings = (DENSE, *decodings)
  names = [decoding.name for decoding in decodings]
  if len(set(names)) != len(names):
    raise ValueError(f"names of decodings repeat: {names}")
  for decoding in decodings:
    source = decoding.borrow or ("teacher_forced" if decoding.resync else "")
    if source and source not in names:
      raise ValueError(
        f"decoding {decoding.name} reads the cache of {source}: add that"
        " decoding"
      )
  stop_ids = jnp.asarray(tuple(steps.eos_ids) or (-1,), jnp.int32)

  def step(state, t):
    token, cache, aligned, alive = state
    step_key = jax.random.fold_in(key, t)
    h, z, new_cache, chosen = {}, {}, {}, {}
    for decoding in decodings:
      name = decoding.name
      # A decoding that borrows a cache leaves no trace in it: the owner writes
      # the entry of this step itself.
      h[name], z[name], new_cache[name] = decode(
        models[decoding.weights][0], token[name], cache[decoding.borrow or name]
      )
      own_key = (
        jax.random.fold_in(step_key, 1) if decoding.other_seed else step_key
      )
      chosen[name] = steps.choose(own_key, z[name])
    positions = _measure_all(measure, h, z)
    records, new_token, new_aligned, new_alive = {}, {}, {}, {}
    for decoding in decodings:
      name = decoding.name
      new_token[name] = chosen[name if decoding.own_tokens else "dense"]
      new_aligned[name] = aligned[name] & (new_token[name] == chosen["dense"])
      ended = jnp.any(new_token[name][:, None] == stop_ids[None], axis=1)
      new_alive[name] = alive[name] & ~ended
      if decoding.resync:
        back = (t + 1) % decoding.resync == 0
        new_token[name] = jnp.where(back, chosen["dense"], new_token[name])
        new_aligned[name] = new_aligned[name] | back
        new_alive[name] = jnp.where(back, new_alive["dense"], new_alive[name])
        new_cache[name] = jax.lax.cond(
          back,
          lambda own_cache, source_cache: source_cache,
          lambda own_cache, source_cache: own_cache,
          new_cache[name],
          new_cache["teacher_forced"],
        )
      if name != "dense":
        records[name] = DecodingRecords(
          position=positions[name],
          token_dense=chosen["dense"],
          token_pruned=chosen[name],
          aligned=aligned[name],
          alive=alive["dense"] & alive[name],
        )
    kept = {n: new_cache[n] for n in cache}
    return (new_token, kept, new_aligned, new_alive), records

  yes_B = jnp.ones(token_B.shape, bool)
  state = (
    {name: token_B for name in names},
    {
      decoding.name: models[decoding.prefill][1]
      for decoding in decodings
      if not decoding.borrow
    },
    {name: yes_B for name in names},
    {name: yes_B for name in names},
  )
  _, records = jax.lax.scan(step, state, jnp.arange(steps.count))
  return records


def _measure_all(measure, h, z):
  """Each decoding against the dense one, by name, leaves [B].

  The decodings are measured in a loop: the measurement is most of the program,
  and a copy of it for each decoding was most of the time to compile.
  """
  names = [name for name in h if name != "dense"]
  if not names:
    return {}
  others = tuple(jnp.stack([x[name] for name in names]) for x in (h, z))
  records = jax.lax.map(
    lambda other: jax.vmap(measure)(h["dense"], other[0], z["dense"], other[1]),
    others,
  )
  return {
    name: jax.tree.map(lambda leaf, i=i: leaf[i], records)
    for i, name in enumerate(names)
  }
