"""The arithmetic of the benchmark; what it times has tests of its own."""

import numpy as np
import pytest

from jaxprune.studies import inputs
from jaxprune.studies.benchmark import methods, timing


def test_sides_take_turns_and_the_first_call_is_apart():
  order = []

  def side(name, cost):
    def call():
      order.append(name)
      return np.array([cost + len(order), 0.0])

    return call

  seconds = timing.take_turns({"a": side("a", 10), "b": side("b", 20)}, 2)
  assert order == ["a", "b"] * 3
  np.testing.assert_array_equal(seconds["a"][:, timing.WALL], [11, 13, 15])
  np.testing.assert_array_equal(seconds["b"][:, timing.WALL], [22, 24, 26])


def test_time_is_charged_per_unit():
  wall, processor = timing.timed(lambda: sum(range(100_000)), units=1000)
  assert 0 < wall < 1e-3 and 0 <= processor < 1e-3


def test_every_method_is_there_with_wanda_first():
  config = inputs.open_model("pocket").config
  names = [c.name for c in methods.read_configurations(config, 0.5, 64)]
  assert names[0] == "wanda:0.5" and len(set(names)) == len(names)
  assert {"flap:0.5", "sparsegpt:0.5", "awq:4"} <= set(names)
  with pytest.raises(ValueError, match="sparsity"):
    methods.read_configurations(config, 1.5, 64)
