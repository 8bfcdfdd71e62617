"""Which statistics of kernel inputs are there, by the name that methods use?

A literal table: name, and the function that sums the statistics of one batch.
`pruning.checkpoint.layer` looks up what a method of `pruning.registry` needs,
sums it batch by batch and merges the sums.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxprune.calibration import moments, statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observer:
  """A statistic of kernel inputs.

  Attributes:
    observe: `(x_BTI, valid_BT or None) -> s`, over the tokens that are valid.
    merge: `(s, s) -> s`.
    square: whether its size grows with the square of the inputs.
  """

  observe: Callable[[jax.Array, jax.Array | None], Any]
  merge: Callable[[Any, Any], Any] = statistics.merge
  square: bool = False


def _observe_gram_and_size(x_BTI, valid_BT=None):
  return (
    statistics.observe_gram(x_BTI, valid_BT),
    moments.observe_mean_abs(x_BTI, valid_BT),
  )


OBSERVERS = {
  "squares": Observer(observe=statistics.observe_squares),
  "gram": Observer(observe=statistics.observe_gram, square=True),
  "gram_and_size": Observer(observe=_observe_gram_and_size, square=True),
  "moments": Observer(
    observe=moments.observe_moments, merge=moments.merge_moments
  ),
}
