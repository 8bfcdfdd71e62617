"""Where does the damage come from when a pruned model writes text?

Several decoders run in lockstep inside one scan, each a *lane*: whose weights
it uses, whose cache its prompt left, whose tokens it reads. Lane `dense` is
the reference; every other lane is compared with it at every step, and only
the scalars of that comparison leave the scan.

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

With sampling, all lanes but `control` draw with common random numbers: the
same key at the same step, so a difference in tokens is a difference in p.

Reference: He et al., arXiv 2603.24652, section 7, Figs 7 and 12, Appendix E.
Differs from the reference in: the same step of two texts is compared there
without saying whether the texts still agree; here `aligned` says so, an
end-of-text token ends a lane, and the dense model with another seed shows how
much of the deviation is lost alignment alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane:
  """One decoder of the lockstep.

  Attributes:
    name: under which its records are returned.
    weights: 'dense' or 'pruned', used for decoding.
    prefill: 'dense' or 'pruned', whose cache of the prompt it starts from.
    own_tokens: reads its own tokens; otherwise those of the dense lane.
    borrow: lane whose cache it reads at every step instead of its own.
    resync: every so many steps it takes the tokens of the dense lane and the
      cache of lane `teacher_forced`; 0 for never.
    other_seed: draws its tokens with keys of its own.
  """

  name: str
  weights: str = "pruned"
  prefill: str = "pruned"
  own_tokens: bool = False
  borrow: str = ""
  resync: int = 0
  other_seed: bool = False


DENSE = Lane(name="dense", weights="dense", prefill="dense", own_tokens=True)
TEACHER_FORCED = Lane(name="teacher_forced")
FREE_RUNNING = Lane(name="free_running", own_tokens=True)
CONTROL = Lane(
  name="control",
  weights="dense",
  prefill="dense",
  own_tokens=True,
  other_seed=True,
)
HANDOFF = (
  Lane(name="dense_then_pruned", prefill="dense", own_tokens=True),
  Lane(name="pruned_then_dense", weights="dense", own_tokens=True),
)
HISTORY_SPLIT = (
  TEACHER_FORCED,
  Lane(name="direct", borrow="dense"),
  Lane(name="history", weights="dense", borrow="teacher_forced"),
)


def resynchronised(every: int) -> Lane:
  """A free-running lane put back on the dense text every `every` steps."""
  if every < 1:
    raise ValueError(f"resynchronise every {every} steps: use 1 or more")
  return Lane(name=f"resynchronised_{every}", own_tokens=True, resync=every)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LaneRecords:
  """What one lane did, beside the dense lane.

  Attributes:
    position: tree of `measure`, leaves [T, B].
    token_dense: token that the dense lane chose at the step, int32 [T, B].
    token_pruned: token that this lane chose, or would have, int32 [T, B].
    aligned: bool [T, B], all tokens read so far equal those of the dense lane.
    alive: bool [T, B], neither the dense lane nor this one has read an
      end-of-text token before the step.
  """

  position: Tree
  token_dense: Array
  token_pruned: Array
  aligned: Array
  alive: Array


def decode_lanes(
  decode: Callable[[Tree, Array, Tree], tuple[Array, Array, Tree]],
  measure: Callable[[Array, Array, Array, Array], Tree],
  weights: dict[str, Tree],
  caches: dict[str, Tree],
  token_B: Array,
  lanes: Sequence[Lane],
  *,
  num_steps: int,
  key: Array,
  choose: Callable[[Array, Array], Array],
  eos_ids: Sequence[int] = (),
) -> dict[str, LaneRecords]:
  """Decode `num_steps` tokens with every lane at once and compare.

  Step 0 is the prediction after the last prompt token, so the caches hold the
  prompt without its last token and that token is read first.

  Args:
    decode: `(weights, token_B, cache) -> (h_BD, z_BV, cache)`, one step; h is
      what the model's LM head reads.
    measure: `(h, h_pruned, z, z_pruned) -> scalars` of one position.
    weights: 'dense' and 'pruned' weights, any pytrees.
    caches: 'dense' and 'pruned' caches of the prompt without its last token.
    token_B: last prompt token, int32 [B].
    lanes: lanes to compare with the dense lane, which is always run. A lane
      that borrows or resynchronises needs its source among them.
    num_steps: tokens to decode.
    key: `jax.random.key` of the draws.
    choose: `(key, z_BV) -> token_B`; greedy or sampled.
    eos_ids: tokens that end a text.

  Returns:
    Records by lane name, leaves [T, B].

  Raises:
    ValueError: a lane names a source that does not run, or a name twice.
  """
  lanes = (DENSE, *lanes)
  names = [lane.name for lane in lanes]
  if len(set(names)) != len(names):
    raise ValueError(f"lane names repeat: {names}")
  for lane in lanes:
    source = lane.borrow or ("teacher_forced" if lane.resync else "")
    if source and source not in names:
      raise ValueError(
        f"lane {lane.name} reads the cache of {source}: add that lane"
      )
  eos = jnp.asarray(tuple(eos_ids) or (-1,), jnp.int32)

  def step(state, t):
    token, cache, aligned, alive = state
    step_key = jax.random.fold_in(key, t)
    h, z, new_cache, chosen = {}, {}, {}, {}
    for lane in lanes:
      # A borrowing lane leaves no trace: its source writes its own entry.
      h[lane.name], z[lane.name], new_cache[lane.name] = decode(
        weights[lane.weights], token[lane.name], cache[lane.borrow or lane.name]
      )
      lane_key = (
        jax.random.fold_in(step_key, 1) if lane.other_seed else (step_key)
      )
      chosen[lane.name] = choose(lane_key, z[lane.name])
    positions = _measure_all(measure, h, z)
    records, new_token, new_aligned, new_alive = {}, {}, {}, {}
    for lane in lanes:
      name = lane.name
      new_token[name] = chosen[name if lane.own_tokens else "dense"]
      new_aligned[name] = aligned[name] & (new_token[name] == chosen["dense"])
      ended = jnp.any(new_token[name][:, None] == eos[None, :], axis=1)
      new_alive[name] = alive[name] & ~ended
      if lane.resync:
        back = (t + 1) % lane.resync == 0
        new_token[name] = jnp.where(back, chosen["dense"], new_token[name])
        new_aligned[name] = new_aligned[name] | back
        new_alive[name] = jnp.where(back, new_alive["dense"], new_alive[name])
        new_cache[name] = jax.lax.cond(
          back,
          lambda own, source: source,
          lambda own, source: own,
          new_cache[name],
          new_cache["teacher_forced"],
        )
      if name != "dense":
        records[name] = LaneRecords(
          position=positions[name],
          token_dense=chosen["dense"],
          token_pruned=chosen[name],
          aligned=aligned[name],
          alive=alive["dense"] & alive[name],
        )
    kept = {n: new_cache[n] for n in cache}
    return (new_token, kept, new_aligned, new_alive), records

  yes = jnp.ones(token_B.shape, bool)
  state = (
    {name: token_B for name in names},
    {lane.name: caches[lane.prefill] for lane in lanes if not lane.borrow},
    {name: yes for name in names},
    {name: yes for name in names},
  )
  _, records = jax.lax.scan(step, state, jnp.arange(num_steps))
  return records


def _measure_all(measure, h, z):
  """Each lane beside the dense one, by name, leaves [B].

  A loop over the lanes and not ten copies of the measurement: it is most of
  the program, and its copies were most of the time to compile it.
  """
  names = [name for name in h if name != "dense"]
  if not names:
    return {}
  others = tuple(jnp.stack([x[name] for name in names]) for x in (h, z))
  found = jax.lax.map(
    lambda lane: jax.vmap(measure)(h["dense"], lane[0], z["dense"], lane[1]),
    others,
  )
  return {
    name: jax.tree.map(lambda leaf, i=i: leaf[i], found)
    for i, name in enumerate(names)
  }


def first_divergence(records: LaneRecords) -> Array:
  """First step [B] at which a lane chose another token; T if it never did."""
  differs = records.token_dense != records.token_pruned
  steps = differs.shape[0]
  return jnp.where(differs.any(0), jnp.argmax(differs, axis=0), steps)
