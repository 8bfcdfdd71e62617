"""Which sublayers leave the model, given how similar their ends are?

A sublayer that returns its input almost unchanged (`similarities.py`) goes
first. A selection turns scores into an ordered list, and the list into gates.

A model that has lost sublayers before is given with the `earlier` ones. They
return their input and would go first again, so a selection takes only what is
still there: of blocks those with both sublayers.

Reference: He et al., "What Matters in Transformers? Not All Attention is
Needed" (LLM-Drop, arXiv 2406.15786), for attention, MLP, joint and block
drops; Men et al., ShortGPT (arXiv 2403.03853), whose block influence is one
minus the block similarity; Gromov et al. (arXiv 2403.17887) for consecutive
blocks.

Differs from the reference in: a window of n blocks is scored by
cos(h_i, h_{i+n}), not n + 1, and the last window takes part; after one
sublayer of a layer is dropped, the other still runs when the iterative
selection scores again; the order of the list is kept; ties go to the lowest
index; a count out of range is an error.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

TARGETS = ("attention", "mlp", "joint", "block")
SELECTIONS = ("ranked", "reverse", "iterative", "consecutive", "random")

Scores = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drops:
  """Sublayers to drop, first to go first.

  Attributes:
    num_layers: L of the dense model.
    order: pairs of 'attention' or 'mlp' and a layer index; a block is its
      attention followed by its MLP.
  """

  num_layers: int
  order: tuple[tuple[str, int], ...] = ()

  def layers(self, sublayer: str) -> tuple[int, ...]:
    """Dropped layer indices of 'attention' or 'mlp', in order."""
    return tuple(i for kind, i in self.order if kind == sublayer)

  @property
  def gates(self) -> dict[str, jax.Array]:
    """{'attention': [L], 'mlp': [L]} float32: 1 stays, 0 is dropped."""
    gates = {k: np.ones(self.num_layers, np.float32) for k in TARGETS[:2]}
    for kind, i in self.order:
      gates[kind][i] = 0.0
    return {k: jnp.asarray(v) for k, v in gates.items()}


def _kinds(target: str) -> tuple[str, ...]:
  """The score vectors that a target ranks, in order."""
  if target not in TARGETS:
    raise ValueError(f"target is {target!r}; use one of {TARGETS}")
  return TARGETS[:2] if target == "joint" else (target,)


def _units(target: str, num_layers: int) -> list[tuple[tuple[str, int], ...]]:
  """What one step of a selection removes, in the order of the scores."""
  kinds = _kinds(target)
  if target == "block":
    return [(("attention", i), ("mlp", i)) for i in range(num_layers)]
  return [((kind, i),) for kind in kinds for i in range(num_layers)]


def _left(
  count: int, target: str, num_layers: int, earlier: Drops | None
) -> list[int]:
  """Indices of the units that are whole, at least `count` of them."""
  gone = set(earlier.order) if earlier else set()
  units = _units(target, num_layers)
  left = [i for i, unit in enumerate(units) if gone.isdisjoint(unit)]
  if not 0 <= count <= len(left):
    before = "" if len(left) == len(units) else f" left of {len(units)}"
    raise ValueError(
      f"drop count is {count}, but {target} has {len(left)} to drop{before};"
      f" use 0 to {len(left)}"
    )
  return left


def layers_left(
  kind: str, num_layers: int, earlier: Drops | None
) -> tuple[int, ...]:
  """The layers that still have it.

  Args:
    kind: 'attention', 'mlp' or 'block', which is both.
    num_layers: L.
    earlier: what was dropped before.
  """
  return tuple(_left(0, kind, num_layers, earlier))


def _windows(count: int, num_layers: int, earlier: Drops | None) -> list[int]:
  """First layers of the windows of whole blocks, at least one of them."""
  left = set(_left(count, "block", num_layers, earlier))
  starts = [i for i in left if left.issuperset(range(i, i + count))]
  if not starts and count:
    raise ValueError(
      f"drop count is {count}, but no {count} neighbouring blocks are left;"
      " drop fewer, or use another selection"
    )
  return sorted(starts)


def check_count(
  num_layers: int,
  count: int,
  target: str,
  *,
  selection: str = "ranked",
  earlier: Drops | None = None,
) -> None:
  """Refuse what cannot be dropped.

  Args:
    num_layers: L.
    count: number of sublayers, or of blocks for 'block'.
    target: a name in `TARGETS`.
    selection: a name in `SELECTIONS`.
    earlier: what was dropped before.

  Raises:
    ValueError: unknown target or selection, or more than is left.
  """
  if selection not in SELECTIONS:
    raise ValueError(
      f"selection {selection!r}: use one of {', '.join(SELECTIONS)}"
    )
  _left(count, target, num_layers, earlier)
  if selection == "consecutive":
    if target != "block":
      raise ValueError(f"consecutive drops are of blocks, not {target}")
    _windows(count, num_layers, earlier)


def _numbers(name: str, scores: jax.Array, size: int) -> np.ndarray:
  """Scores on the host, checked."""
  scores = np.asarray(scores, np.float32)
  if scores.shape != (size,):
    raise ValueError(
      f"scores of {name} have shape {scores.shape}; use ({size},)"
    )
  bad = ~np.isfinite(scores)
  if bad.any():
    raise ValueError(
      f"scores of {name} are inf or nan at {np.flatnonzero(bad).tolist()}:"
      " nothing to rank"
    )
  return scores


def _values(
  scores: Mapping[str, jax.Array], target: str, num_layers: int
) -> np.ndarray:
  """Scores in the order of `_units`."""
  return np.concatenate(
    [_numbers(name, scores[name], num_layers) for name in _kinds(target)]
  )


def _ranked(values: np.ndarray, reverse: bool) -> np.ndarray:
  """Indices from the first to go to the last; ties by lowest index."""
  return np.argsort(values if reverse else -values, kind="stable")


def select(
  scores: Mapping[str, jax.Array],
  count: int,
  target: str,
  *,
  reverse: bool = False,
  earlier: Drops | None = None,
) -> Drops:
  """Drop the `count` sublayers or blocks of highest similarity at once.

  Args:
    scores: similarities [L] under 'attention', 'mlp' or 'block', as the
      target needs; all of the dense model.
    count: number of sublayers, or of blocks for 'block'.
    target: 'attention', 'mlp', 'joint' (attention 0..L-1 then MLP 0..L-1 in
      one ranking) or 'block'.
    reverse: lowest similarity first, a control.
    earlier: what was dropped before.

  Returns:
    Drops, most similar first.

  Raises:
    ValueError: unknown target, more than is left, nan or uneven scores.
  """
  num_layers = len(scores[_kinds(target)[0]])
  left = _left(count, target, num_layers, earlier)
  ranked = _ranked(_values(scores, target, num_layers)[left], reverse)
  units = _units(target, num_layers)
  order = tuple(pair for i in ranked[:count] for pair in units[left[i]])
  return Drops(num_layers=num_layers, order=order)


def select_window(
  scores: jax.Array,
  num_layers: int,
  count: int,
  *,
  earlier: Drops | None = None,
) -> Drops:
  """Drop the `count` neighbouring blocks that change the stream least.

  Args:
    scores: cos(h_i, h_{i+count}) of every window, i from 0 to L - count,
      [L - count + 1]; not looked at when count is 0.
    num_layers: L.
    count: length of the window, 0..L.
    earlier: what was dropped before; a window holds none of it.

  Returns:
    Drops of blocks, in order of depth.

  Raises:
    ValueError: no such window is left, nan or another number of windows.
  """
  starts = _windows(count, num_layers, earlier)
  if count == 0:
    return Drops(num_layers=num_layers)
  scores = _numbers("windows", scores, num_layers - count + 1)
  start = starts[int(_ranked(scores[starts], reverse=False)[0])]
  units = _units("block", num_layers)[start : start + count]
  return Drops(num_layers=num_layers, order=sum(units, ()))


def choose_drops(
  score: Callable[[dict[str, jax.Array] | None], Scores] | None,
  num_layers: int,
  count: int,
  *,
  target: str,
  selection: str = "ranked",
  lowest_first: bool = False,
  seed: int = 0,
  earlier: Drops | None = None,
) -> tuple[Drops, dict[str, jax.Array]]:
  """Score the sublayers of a model and choose which of them leave.

  Args:
    score: from the gates of what is dropped already ({'attention': [L],
      'mlp': [L]}, 1 stays and 0 is dropped; None for nothing) to scores [L]
      under 'attention', 'mlp' or 'block', as the target needs; for
      'consecutive' also 'window', see `select_window`. Not called for 'random',
      where it may be None.
    num_layers: L of the dense model.
    count: number of sublayers, or of blocks for 'block'.
    target: a name in `TARGETS`.
    selection: 'ranked' drops all at once by the scores of the dense model;
      'iterative' drops one at a time and scores again; 'consecutive' drops the
      window of blocks that changes the residual stream least; 'reverse' (the
      last of the ranking first) and 'random' are controls.
    lowest_first: the lowest score leaves first, as for a KL; else the
      highest, as for a similarity.
    seed: of the random selection.
    earlier: what was dropped before; its scores are not used.

  Returns:
    The drops of this choice, and the scores of the whole model, {} for
    'random'.

  Raises:
    ValueError: an unknown target or selection, more than is left, no score,
      scores that are nan or of another size.
  """
  # Checked before the scores are computed, which may take long.
  check_count(num_layers, count, target, selection=selection, earlier=earlier)
  if selection == "random":
    key = jax.random.key(seed)
    return select_random(key, num_layers, count, target, earlier=earlier), {}
  if score is None:
    raise ValueError(f"selection {selection} needs scores: give calibration")
  if selection == "iterative" and count:
    rounds = []

    def score_again(gates):
      rounds.append(score(gates))
      return rounds[-1]

    chosen = select_iterative(
      score_again,
      num_layers,
      count,
      target,
      reverse=lowest_first,
      earlier=earlier,
    )
    return chosen, dict(rounds[0])
  scores = dict(score(None))
  if selection == "consecutive":
    # there are no windows of length 0
    windows = scores.pop("window", np.zeros(0))
    return select_window(windows, num_layers, count, earlier=earlier), scores
  reverse = lowest_first != (selection == "reverse")
  chosen = select(scores, count, target, reverse=reverse, earlier=earlier)
  return chosen, scores


def select_random(
  key: jax.Array,
  num_layers: int,
  count: int,
  target: str,
  *,
  earlier: Drops | None = None,
) -> Drops:
  """Drop `count` sublayers or blocks drawn without replacement, a control.

  Args:
    key: `jax.random.key`. One key gives nested lists for growing counts.
    num_layers: L.
    count: number of sublayers, or of blocks for 'block'.
    target: a name in `TARGETS`.
    earlier: what was dropped before.

  Returns:
    Drops in the order drawn.

  Raises:
    ValueError: unknown target or more than is left.
  """
  left = set(_left(count, target, num_layers, earlier))
  units = _units(target, num_layers)
  drawn = np.asarray(jax.random.permutation(key, len(units))).tolist()
  drawn = [i for i in drawn if i in left][:count]
  order = tuple(pair for i in drawn for pair in units[i])
  return Drops(num_layers=num_layers, order=order)


def select_iterative(
  score: Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]],
  num_layers: int,
  count: int,
  target: str,
  *,
  per_round: int = 1,
  reverse: bool = False,
  earlier: Drops | None = None,
) -> Drops:
  """Drop a few, score what remains again, until `count` are gone.

  Args:
    score: from the gates of the moment ({'attention': [L], 'mlp': [L]}, 1 stays
      and 0 is dropped) to similarities [L] under the kinds of the target. It
      must run every sublayer whose gate is 1, also in layers that already lost
      the other one. Scores of what is already gone are not used, but must not
      be nan.
    num_layers: L.
    count: number of sublayers, or of blocks for 'block'.
    target: a name in `TARGETS`.
    per_round: how many leave between two scorings; at least 1.
    reverse: lowest similarity first, a control.
    earlier: what was dropped before; its gates are 0 too.

  Returns:
    Drops of this choice, in the order of removal.

  Raises:
    ValueError: an unknown target, more than is left, nan or uneven scores, or
      per_round below 1.
  """
  if per_round < 1:
    raise ValueError(f"per_round is {per_round}; use at least 1")
  units = _units(target, num_layers)
  left = _left(count, target, num_layers, earlier)
  before = earlier.order if earlier else ()
  chosen = Drops(num_layers=num_layers)
  for begin in range(0, count, per_round):
    gone = dataclasses.replace(chosen, order=before + chosen.order)
    values = _values(score(gone.gates), target, num_layers)[left]
    ranked = _ranked(values, reverse)[: min(per_round, count - begin)]
    now = [left[i] for i in ranked]
    # What is dropped returns its input unchanged: its cosine is 1, but it
    # cannot be chosen again.
    left = [i for i in left if i not in now]
    order = tuple(pair for i in now for pair in units[i])
    chosen = dataclasses.replace(chosen, order=chosen.order + order)
  return chosen
