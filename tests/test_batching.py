import numpy as np
import pytest

from jaxprune.calibration import batching


@pytest.mark.parametrize("count,size", [(1, 1), (7, 3), (6, 3), (2, 5), (0, 4)])
def test_every_item_counts_once_and_shapes_are_equal(count, size):
  seen = []
  for indices, number in batching.batches(count, size):
    assert indices.shape == (size,)
    assert np.issubdtype(indices.dtype, np.integer)
    seen += indices[:number].tolist()
    assert (indices[number:] == count - 1).all()
  assert seen == list(range(count))
  assert batching.number_of_batches(count, size) == len(
    list(batching.batches(count, size))
  )


def test_a_batch_holds_something():
  with pytest.raises(ValueError, match="batch size 0"):
    next(batching.batches(3, 0))
