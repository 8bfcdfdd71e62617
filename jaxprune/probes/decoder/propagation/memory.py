"""Does an attribution fit, and how many directions go together?

Counted from shapes before anything is computed; the counts are upper sums of
what `path` holds at the same time.
"""

import dataclasses
import math

import jax

from jaxprune import devices
from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig

ROWS = 64  # positions whose logits exist at a time
# Directions that go together at most: more are no faster on a CPU, and the
# last piece of a list is filled up.
_TOGETHER = 8
_METRICS = 7  # read-outs at most
_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakBytes:
  """Bytes at the peak of an attribution; upper sums counted from shapes.

  Attributes:
    weights: the dense model, the pruned one, and their difference.
    nodes: states and weights of the quadrature.
    tangents: of the directions that go together.
    results: contributions and first order of all directions.
    total: the sum.
  """

  weights: int
  nodes: int
  tangents: int
  results: int
  total: int

  def describe(self) -> str:
    """The total and the largest parts, for reading."""
    return (
      f"{devices.gib(self.total)} (weights {devices.gib(self.weights)},"
      f" tangents {devices.gib(self.tangents)}, nodes"
      f" {devices.gib(self.nodes)})"
    )


def estimate_bytes(
  config: ModelConfig,
  *,
  batch: int,
  length: int,
  num_steps: int,
  directions: int,
  nodes: int,
  memory: int = 1 << 30,
) -> PeakBytes:
  """Count the bytes of `find_quadrature` and `attribute`.

  Args:
    config: of the dense model.
    batch: B.
    length: T, prompts and steps.
    num_steps: R.
    directions: P of the longer list.
    nodes: at most, Z.
    memory: bytes that tangents may take.
  """
  shapes = jax.tree.leaves(
    jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  )
  outputs = batch * num_steps
  parts = {
    "weights": 3 * _FLOAT * sum(math.prod(leaf.shape) for leaf in shapes),
    # The node weights of all read-outs, their sums, the states and the slopes.
    "nodes": _FLOAT
    * outputs
    * config.embed_dim
    * (2 * _METRICS * nodes + 2 * nodes + 2),
    "tangents": _tangent_bytes(config, batch, num_steps, length)
    * directions_at_once(config, batch, num_steps, length, memory),
    "results": 3 * _FLOAT * _METRICS * directions * outputs,
  }
  return PeakBytes(**parts, total=sum(parts.values()))


def directions_at_once(
  config: ModelConfig, batch: int, num_steps: int, length: int, memory: int
) -> int:
  """How many directions are differentiated together.

  Args:
    config: of the dense model.
    batch: B.
    num_steps: R.
    length: T, prompts and steps.
    memory: bytes that tangents may take.

  Returns:
    At least 1, and at most 8.
  """
  tangent = _tangent_bytes(config, batch, num_steps, length)
  return max(1, min(_TOGETHER, memory // tangent))


def _tangent_bytes(config, batch, num_steps, length):
  """Of one direction: those of one layer and of a chunk of read-outs."""
  heads = config.num_heads * config.head_dim
  layer = (
    batch
    * length
    * (
      6 * config.embed_dim
      + 4 * config.mlp_dim
      + 5 * heads
      + 3 * config.num_heads * length
    )
  )
  rows = min(ROWS, batch * num_steps) * 12 * config.vocab_size
  return _FLOAT * (layer + rows)
