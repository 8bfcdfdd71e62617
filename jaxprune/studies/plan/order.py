"""In which order do sublayers leave, when each costs as little as possible?

The first round measures what the output loses without each of them alone, per
unit of what is saved. In every later round only those that looked cheapest are
measured again, together with what has left already: a sublayer that costs much
alone seldom gets cheap.

Reference: Minoux (1978), Accelerated greedy algorithms, for the lazy greedy
choice.
Differs from the reference in: losses of sets are not submodular, so an old
estimate bounds nothing; a fixed number of candidates is measured again instead
of as many as a bound asks for.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

WIDTH = 6  # units that are measured again in a round
Unit = tuple[tuple[str, int], ...]  # sublayers that leave together


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """How far an order has come.

  Attributes:
    chosen: indices of units, first to go first.
    losses: of the output after each of them, in nats.
    costs: by index of the units that are left, what each was last seen to cost:
      nats per unit of what is saved.
  """

  chosen: tuple[int, ...] = ()
  losses: tuple[float, ...] = ()
  costs: Mapping[int, float] = dataclasses.field(default_factory=dict)


def extend(
  state: State,
  units: Sequence[Unit],
  savings: Sequence[float],
  loss: Callable[[list[tuple[int, ...]]], Sequence[float]],
  *,
  width: int = WIDTH,
) -> State:
  """Choose one more unit.

  Args:
    state: of before; `State()` at the beginning.
    units: all of them.
    savings: what is saved with each, above 0.
    loss: from sets of indices of units to what the output loses without each
      set, in nats.
    width: units that are measured again in a round.

  Returns:
    The state with one more unit chosen, ties to the lowest index.

  Raises:
    ValueError: no unit is left.
  """
  left = [i for i in range(len(units)) if i not in state.chosen]
  if not left:
    raise ValueError(f"all {len(units)} units have left already")
  before = state.losses[-1] if state.losses else 0.0
  if state.costs:
    left = sorted(sorted(left, key=lambda i: state.costs[i])[:width])
  losses = loss([(*state.chosen, i) for i in left])
  costs = dict(state.costs) | {
    i: (float(value) - before) / savings[i] for i, value in zip(left, losses)
  }
  best = min(left, key=lambda i: (costs[i], i))
  del costs[best]
  return State(
    chosen=(*state.chosen, best),
    losses=(*state.losses, float(losses[left.index(best)])),
    costs=costs,
  )
