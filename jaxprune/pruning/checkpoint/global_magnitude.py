"""Which weights are small in the whole model, one layer in memory at a time?

The k-th smallest magnitude of all kernels is found exactly in two passes over
the checkpoint: a histogram of the upper half of the bits of |W|, whose order
is that of the numbers, then one of the lower half inside the bucket of the
k-th. Ties leave in the order of layers, kernels (`kernels_of`) and rows.

At no time are all kernels in memory.
"""

import dataclasses

import numpy as np

from jaxprune import checkpoints
from jaxprune.models import kernels_of
from jaxprune.pruning.patterns import removed_count

_HALF = 16


@dataclasses.dataclass
class Threshold:
  """The largest magnitude that leaves, and how many equal to it still do.

  Attributes:
    bits: of |W| in float32, as an integer.
    ties: weights of just this magnitude that still have to leave; counted
      down by `keep`.
  """

  bits: int
  ties: int

  def keep(self, w_IO: np.ndarray) -> np.ndarray:
    """Mask of the next kernel, bool [I, O], in the order of the module."""
    key_IO = _key(w_IO)
    keep_IO = key_IO > self.bits
    equal = np.flatnonzero(key_IO == self.bits)
    keep_IO.ravel()[equal[self.ties :]] = True
    self.ties -= min(self.ties, len(equal))
    return keep_IO


def find_threshold(
  source: checkpoints.Source, sparsity: float, first_layer: int = 0
) -> Threshold:
  """Read all kernels twice and find what leaves.

  Args:
    source: an opened checkpoint.
    sparsity: fraction removed over all kernels, in [0, 1).
    first_layer: ties are counted as if the layers before it were done.
  """
  upper = sum(
    np.bincount(key.ravel() >> _HALF, minlength=2**_HALF)
    for key in _keys(source)
  )
  removed = removed_count(int(upper.sum()), sparsity)
  if removed == 0:
    return Threshold(bits=-1, ties=0)
  bucket, before = _find(upper, removed)
  lower = np.zeros(2**_HALF, np.int64)
  for key in _keys(source):
    inside = key[key >> _HALF == bucket] & (2**_HALF - 1)
    lower += np.bincount(inside, minlength=2**_HALF)
  low, inner = _find(lower, removed - before)
  threshold = Threshold(
    bits=bucket << _HALF | low, ties=removed - before - inner
  )
  for key in _keys(source, range(first_layer)):
    equal = int((key == threshold.bits).sum())
    threshold.ties -= min(threshold.ties, equal)
  return threshold


def _find(counts, rank):
  """Bucket of the rank-th entry (from 1), and how many lie before it."""
  total = np.cumsum(counts)
  bucket = int(np.searchsorted(total, rank))
  return bucket, int(total[bucket] - counts[bucket])


def _keys(source, layers=None):
  layers = range(source.config.num_layers) if layers is None else layers
  for index in layers:
    layer = checkpoints.read_layer(source, index)
    for group, kernel in kernels_of(layer):
      yield _key(layer[group][kernel]["kernel"])


def _key(w_IO):
  """Integers in the order of |W|; nonnegative floats sort as their bits."""
  return np.abs(np.asarray(w_IO, np.float32)).view(np.int32)
